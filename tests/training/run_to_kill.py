"""A training that test_kill.py kills: ``python run_to_kill.py DIRECTORY KIND OUTPUT``."""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm, PixelClassifier, TokenTagger
from tests.models_with_heads import DictModel
from tests.models_with_steps import Gan, GanStep
from tests.recipes import Experts
from thinkml.training import Checkpoint, GaussianNoise, ModelTrainer, Objective, TrainingConfig

rng = np.random.default_rng(0)
X = rng.normal(size=(300, 4)).astype(np.float32)
y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)
WORDS = rng.integers(0, 7, (300, 5))
TAGS = np.where(np.arange(5) < rng.integers(1, 6, (300, 1)), WORDS % 3, -100)
IMAGES = rng.normal(size=(300, 6, 6, 1)).astype(np.float32)
HEADS = {
    'kind': X[:, :3].argmax(1), 'price': X.sum(1), 'tags': (X[:, :1] + np.arange(5) > 2).astype(int)
}  # fmt: skip
MASKS = np.where(IMAGES[..., 0] > 1.5, 255, IMAGES[..., 0] > 0)


def realism(model, batch, key):
    return nnx.softplus(-model(batch.x))


class Batches:
    """Batches in an order of its own for each epoch."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 19

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(300)
        return ((X[rows], y[rows]) for rows in np.array_split(order, 19))


def data_of(kind, directory):
    """Training data, and settings that go with it."""
    if kind == 'memmap':
        np.save(directory / 'x.npy', X)
        return (np.load(directory / 'x.npy', mmap_mode='r'), y), {'device_data_bytes': 1500}
    if kind == 'experts':
        return (np.tile(X, 2)[:, :6], X.sum(1)), {'aux_losses': {'balance': 0.1}}
    if kind == 'gan':  # whose step has optimizers of its own
        return (X, None), {'batch_size': 32}
    others = {
        'batches': (Batches(), None), 'periods': (Batches(), None), 'tokens': (WORDS, TAGS),
        'pixels': (IMAGES, MASKS), 'heads': (X, HEADS),
    }  # fmt: skip
    return others.get(kind, (X, y)), {'validate_every': 7} if kind == 'periods' else {}


def with_noise(model, batch, key):
    outputs = model(batch.x + 0.1 * jax.random.normal(key, batch.x.shape))
    return (outputs - batch.y) ** 2, {'error': abs(outputs - batch.y)}


def arguments_of(kind):
    """The model, and what train is given beside the data."""
    if kind == 'tokens':
        arguments = {'metrics': ['perplexity'], 'class_weights': {2: 3.0}}
        return TokenTagger(7, 3, nnx.Rngs(0)), arguments
    if kind == 'experts':
        return Experts(), {'loss_fn': Objective(with_noise)}
    if kind == 'gan':
        return Gan(4), {'step': GanStep(), 'loss_fn': Objective(realism)}
    if kind == 'heads':
        return DictModel(), {
            'metrics': {'kind': ['f1'], 'price': ['r2']}, 'loss_weights': {'price': 0.1},
            'sample_weight': {'price': X[:, 0] > 0}, 'class_weights': {'tags': {1: 2.0}},
        }  # fmt: skip
    if kind == 'pixels':
        return PixelClassifier(2, nnx.Rngs(0)), {
            'metrics': ['mean_iou'], 'loss_fn': 'dice', 'ignore_label': 255,
            'augmentation': ['flip', 'vertical_flip'],
        }  # fmt: skip
    return DropoutBatchNorm(4, 3, nnx.Rngs(0)), {
        'metrics': ['f1', 'roc_auc'], 'augmentation': GaussianNoise(0.1), 'class_weights': {2: 3.0},
    }  # fmt: skip


class Slowly:
    """Leaves time to be killed in, and keeps the last state."""

    def on_chunk_end(self, run):
        time.sleep(0.02)

    def on_train_end(self, run):
        self.state = jax.device_get(run.state.replace(key=jax.random.key_data(run.state.key)))


def main(directory, kind, output):
    data, settings = data_of(kind, directory)
    slowly = Slowly()
    optimizer = {
        'batch_size': 16, 'accumulate_steps': 2, 'optimizer': 'adam', 'learning_rate': 0.01,
        'lr_schedule': 'reduce_on_plateau', 'weight_decay': 0.01,
    }  # fmt: skip
    config = TrainingConfig(
        epochs=6, steps_per_dispatch=2, early_stopping=True, ema_decay=0.9,
        callbacks=[Checkpoint(every_steps=3), slowly], checkpoint_dir=directory,
        **({} if kind == 'gan' else optimizer), **settings,
    )  # fmt: skip
    model, arguments = arguments_of(kind)
    is_separate = kind in ('tokens', 'pixels', 'heads', 'experts')
    validation = jax.tree.map(lambda part: part[:40], data if is_separate else (X, y))
    validation = (X[:40], None) if kind == 'gan' else validation
    history = ModelTrainer(config).train(
        model, *data, *validation, resume=True, progress=False, **arguments
    )
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            (slowly.state, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))))
        )
    }
    np.savez(output.with_suffix('.npz'), **leaves)
    same = history.to_dict() | {'seconds': 0, 'resumed_at': []}
    output.with_suffix('.json').write_text(json.dumps(same))


if __name__ == '__main__':
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
