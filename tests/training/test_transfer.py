"""TransferLearner: which layers are frozen or trained, and the role of the passed model."""

import dataclasses
import functools
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.core import (
    Batch,
    get_loss,
    init_state,
    make_metrics,
    make_optimizer,
    make_train_step,
)
from thinkml.core.model.layer_inspection import layers_in_order
from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.errors import (
    ConfigError,
    DataError,
    ModelTypeError,
    NotTrainedError,
    PretrainedWeightsWarning,
    ThinkMLWarning,
)
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.models import (
    ModelManager,
    TransferModel,
    create,
    predict,
    predict_proba,
    save_safetensors,
)
from thinkml.training import EarlyStopping, ModelTrainer, TrainingConfig, TransferLearner
from thinkml.training.transfer.backbone import infer_role, make_backbone
from thinkml.training.transfer.feature_cache import FeatureCache
from thinkml.training.transfer.layer_groups import groups_of_headed

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 8, 8, 3)).astype(np.float32)
Y = (X[:, :4].mean((1, 2, 3)) > 0).astype(int) + (X[:, :, :4].mean((1, 2, 3)) > 0.05)
CONFIG = TrainingConfig(batch_size=32, optimizer='sgd', learning_rate=0.05, epochs=2)


class Block(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.conv = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class Small(nnx.Module):
    """Four convolutions; returns features if there are no classes."""

    def __init__(self, num_classes=None, seed=0):
        rngs = nnx.Rngs(seed)
        # Not in the order in which they are computed.
        self.last = Block(16, 16, rngs)
        self.blocks = nnx.List([Block(3, 16, rngs), Block(16, 16, rngs), Block(16, 16, rngs)])
        self.head = None if num_classes is None else nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        features = self.last(x).mean((1, 2))
        return features if self.head is None else self.head(features)


NAMES = ['blocks.0.conv', 'blocks.1.conv', 'blocks.2.conv', 'last.conv']


def base(seed=0):
    """Returns a base whose BatchNorm statistics are not the initial ones."""
    return nnx.clone(_base(seed))


@functools.cache
def _base(seed):
    model = Small(seed=seed)
    for _ in range(3):
        model(jnp.asarray(X))
    model.eval()
    return model


def arrays_of(model):
    kept = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return {
        '.'.join(map(str, path)): np.asarray(leaf.get_value())
        for path, leaf in nnx.to_flat_state(kept)
    }


def moved(before, after):
    """Returns the modules whose arrays have changed."""
    before, after = arrays_of(before), arrays_of(after)
    return {name.rsplit('.', 1)[0] for name in before if (before[name] != after[name]).any()}


def fine_tuned(
    layers, *, config=CONFIG, model=None, data=(X, Y), of=None, options=None, **arguments
):
    learner = TransferLearner(of or base(), layers, config=config, **options or {})
    found = learner.fine_tune(model, *data, progress=False, **arguments)
    return learner, found


# --- layers -----------------------------------------------------------------------------------


def test_layers_come_in_the_order_they_are_computed_in_with_their_normalisation():
    layers = layers_in_order(Small(5), X)
    assert [layer.name for layer in layers] == [*NAMES, 'head']
    assert [layer.num_parameters for layer in layers] == [
        27 * 16 + 16 + 32, *[9 * 256 + 16 + 32] * 3, 85,
    ]  # fmt: skip
    assert ('last', 'norm', 'scale') in layers[3].params


def test_parts_of_attention_are_layers():
    class Attends(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

        def __call__(self, x):
            return self.attention(self.norm(x)).mean(1)

    layers = layers_in_order(Attends(nnx.Rngs(0)), np.ones((2, 5, 8), np.float32))
    names = [layer.name for layer in layers]
    assert set(names) == {f'attention.{part}' for part in ('query', 'key', 'value', 'out')}
    assert names[-1] == 'attention.out'
    assert ('norm', 'scale') in layers[0].params


@pytest.mark.parametrize(
    ('layers', 'expected'),
    [
        (0, []),
        (1, NAMES[3:]),
        (2, NAMES[2:]),
        ('all', NAMES),
        (9, NAMES),
        (['last.*'], NAMES[3:]),
        (['blocks.[01].*', 'last.conv'], [NAMES[0], NAMES[1], NAMES[3]]),
    ],
)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(layers, expected):
    before = base()
    learner, model = fine_tuned(layers, of=before)
    assert isinstance(model, TransferModel)
    of_layers = {name.removesuffix('conv') + part for name in expected for part in ('conv', 'norm')}
    assert moved(before, model.base) == of_layers
    assert moved(before, base()) == set()  # the user's object
    table = learner.summary()
    assert table['layer'] == [f'base.{name}' for name in NAMES] + ['head']
    assert [row['layer'] for row in table.rows if row['trained'] == 'yes'] == [
        *(f'base.{name}' for name in expected), 'head',
    ]  # fmt: skip


def test_frozen_statistics_are_used_and_kept():
    model = TransferModel(base(), nnx.Linear(16, 3, rngs=nnx.Rngs(0)))
    parts = groups_of_headed(model, X[:13])
    frozen = PartlyFrozen(model, dict.fromkeys(parts.head, 1.0))
    functional = frozen.functionalize(X, jax.random.key(0))
    in_training, state = functional.apply(
        functional.params, functional.model_state, X, key=jax.random.key(0), train=True
    )
    model.eval()
    np.testing.assert_array_equal(in_training, model(X))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state, functional.model_state)))


def test_dropout_of_a_head_is_random_in_training_and_that_of_a_frozen_base_is_not():
    rngs = nnx.Rngs(0)
    dropped = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    for part, is_random in (('base', False), ('head', True)):
        whole = TransferModel(
            nnx.clone(dropped) if part == 'base' else nnx.Linear(4, 4, rngs=rngs),
            nnx.clone(dropped) if part == 'head' else nnx.Linear(4, 4, rngs=rngs),
        )
        trained = [p for p, _ in nnx.to_flat_state(nnx.state(whole, nnx.Param)) if p[0] == 'head']
        functional = PartlyFrozen(whole, dict.fromkeys(trained, 1.0)).functionalize(
            np.ones((3, 4)), jax.random.key(0)
        )
        first, second = (
            functional.apply(
                functional.params, functional.model_state, jnp.ones((3, 4)),
                key=jax.random.key(seed), train=True,
            )[0]
            for seed in (1, 2)
        )  # fmt: skip
        assert np.array_equal(first, second) != is_random


@pytest.mark.parametrize(('layers', 'expected'), [(0, 4), (1, 5), (2, 7), (4, 11)])
def test_the_compiled_step_has_no_gradient_of_frozen_convolutions(layers, expected, monkeypatch):
    monkeypatch.setattr('thinkml.core.train.step.fast_convolutions', lambda function: function)
    whole = TransferModel(base(), nnx.Linear(16, 3, rngs=nnx.Rngs(0)))
    parts = groups_of_headed(whole, X[:13])
    trained = [p for layer in parts.layers[4 - layers :] for p in layer.params]
    frozen = PartlyFrozen(whole, dict.fromkeys([*parts.head, *trained], 1.0))
    functional = frozen.functionalize(X, jax.random.key(0))
    tx = make_optimizer('adam')
    state = init_state(
        functional.params, functional.model_state, tx, jax.random.key(0), learning_rate=0.1
    )
    make_train_step.cache_clear()
    step = make_train_step(functional.apply, get_loss('cross_entropy'), tx, make_metrics())
    batch = Batch(jnp.asarray(X[:32]), jnp.asarray(Y[:32]), jnp.ones(32))
    program = jax.jit(step).lower(state, batch).compile().as_text()
    make_train_step.cache_clear()
    # Four forward; a kernel gradient for each trained one, and input gradients except the first's.
    assert len(re.findall(r' = \S+ convolution\(', program)) == expected
    num_trained = sum(leaf.size for leaf in jax.tree.leaves(functional.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * num_trained


# --- rates, stages, features ------------------------------------------------------------------


def test_each_layer_moves_by_its_share_of_the_rate():
    one_step = TrainingConfig(batch_size=120, optimizer='sgd', learning_rate=0.1, epochs=1)
    start = base()

    def steps(decay):
        head = nnx.Linear(16, 3, rngs=nnx.Rngs(0))
        _, model = fine_tuned(
            'all', config=one_step, of=start, model=head, options={'layer_decay': decay}
        )
        after = arrays_of(model.base)
        return {name: after[name] - value for name, value in arrays_of(start).items()}

    whole, decayed = steps(1.0), steps(0.5)
    for depth, layer in enumerate(reversed(NAMES), start=1):
        name = f'{layer}.kernel'
        np.testing.assert_allclose(decayed[name], whole[name] * 0.5**depth, rtol=1e-3, atol=1e-7)
        assert np.abs(whole[name]).max() > 1e-5


def test_the_first_epochs_train_the_head_alone():
    learner, model = fine_tuned(2, options={'head_epochs': 1})
    first, second = record_of(model).runs
    assert (first.epochs, second.epochs) == (1, 1)
    _, alone = fine_tuned(0, epochs=1)
    assert dict(record_of(alone).runs[0]) == dict(first)
    assert learner.history is second
    assert moved(base(), model.base) == {'blocks.2.conv', 'blocks.2.norm', 'last.conv', 'last.norm'}


def identity(key, x, y):
    return x, y


def ends_after_one_epoch(run):
    if run.epoch == 1:
        run.stop('enough')


def interrupts(run):
    if run.epoch == 1:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize('kept', [True, False], ids=['features kept', 'computed'])
@pytest.mark.parametrize(
    ('settings', 'steps'),
    [
        ({'callbacks': [ends_after_one_epoch]}, 4),
        ({'callbacks': [interrupts]}, 4),
        ({'max_steps': 3}, 3),
        ({'max_steps': 12}, 12),
        ({'max_steps': 14}, 14),
        ({'max_time': 1e-6}, 1),
    ],
    ids=['stop', 'ctrl-c', 'in the first', 'at the border', 'in the second', 'time'],
)
def test_what_ends_a_fine_tuning_ends_both_of_its_runs(settings, steps, kept):
    config = dataclasses.replace(CONFIG, epochs=5, steps_per_dispatch=1, **settings)
    head = nnx.Linear(16, 3, rngs=nnx.Rngs(1))
    if not kept:
        head = nnx.Sequential(head, nnx.Dropout(0.1, rngs=nnx.Rngs(2)))
    base = Small()
    learner = TransferLearner(base, 1, config=config, head_epochs=3)
    augmentation = None if kept else lambda key, x, y: (x, y)
    model = learner.fine_tune(head, X, Y, role='head', augmentation=augmentation, progress=False)
    runs = record_of(model).runs
    assert sum(run.steps for run in runs) == steps
    assert len(runs) == (2 if steps > 12 else 1) and learner.history is runs[-1]
    assert runs[0].interrupted == (settings.get('callbacks') == [interrupts])
    assert set(predict(model, X).tolist()) <= {0, 1, 2}
    moved = (model.base.last.conv.kernel[...] != base.last.conv.kernel[...]).any()
    assert bool(moved) == (steps > 12)


def test_early_stopping_of_the_head_ends_its_run_alone():
    stopping = EarlyStopping('loss', patience=1, min_delta=1e9)
    config = dataclasses.replace(CONFIG, epochs=6, early_stopping=stopping)
    learner = TransferLearner(Small(), 1, config=config, head_epochs=4)
    model = learner.fine_tune(X_train=X, y_train=Y, progress=False)
    assert len(record_of(model).runs) == 2


def test_a_second_ctrl_c_leaves_a_model_that_knows_its_classes():
    def twice(run):
        interrupts(run)
        signal.raise_signal(signal.SIGINT)

    config = dataclasses.replace(CONFIG, epochs=5, callbacks=[twice])
    model = Small(3)
    learner = TransferLearner(Small(3), 1, config=config, head_epochs=3)
    with pytest.raises(KeyboardInterrupt):
        learner.fine_tune(model, X, np.array(['a', 'b', 'c'])[Y], role='model', progress=False)
    assert set(predict(model, X).tolist()) <= {'a', 'b', 'c'}


def test_features_that_are_kept_train_as_those_that_are_computed_each_time():
    kept, model = fine_tuned(0, X_val=X[:40], y_val=Y[:40])
    computed, other = fine_tuned(0, X_val=X[:40], y_val=Y[:40], augmentation=identity)
    for name, values in dict(computed.history).items():
        np.testing.assert_allclose(kept.history[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict_proba(model, X), predict_proba(other, X), atol=1e-5)
    record = record_of(model)
    assert record.input_spec == record_of(other).input_spec
    assert record.data_fingerprint == record_of(other).data_fingerprint
    assert record.task == record_of(other).task


def test_features_go_to_files_where_memory_ends(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    made = []
    open_memmap = np.lib.format.open_memmap
    monkeypatch.setattr(
        'numpy.lib.format.open_memmap',
        lambda path, *args: made.append(path) or open_memmap(path, *args),
    )
    in_files, _ = fine_tuned(0, options={'cache_bytes': 120 * 16 * 4}, X_val=X[:40], y_val=Y[:40])
    assert [path.name for path in made] == ['val.npy']
    in_memory, _ = fine_tuned(0, X_val=X[:40], y_val=Y[:40])
    assert dict(in_files.history) == dict(in_memory.history)
    assert not list(tmp_path.iterdir())


def test_features_are_computed_each_time_where_validation_comes_in_batches():
    batches = [(X[rows], Y[rows]) for rows in np.array_split(np.arange(60), 3)]
    in_batches, _ = fine_tuned(0, X_val=lambda: iter(batches))
    in_rows, _ = fine_tuned(0, X_val=X[:60], y_val=Y[:60])
    np.testing.assert_allclose(
        in_batches.history['val_loss'], in_rows.history['val_loss'], rtol=1e-4
    )


@pytest.mark.parametrize('layers', [0, 1])
def test_the_model_that_comes_back_predicts_as_it_is(layers):
    start = base()
    start.train()
    _, model = fine_tuned(layers, of=start)
    before = arrays_of(model)
    np.testing.assert_allclose(jax.nn.softmax(model(X)), predict_proba(model, X), atol=1e-5)
    assert all((before[name] == array).all() for name, array in arrays_of(model).items())


def test_whole_numbers_of_images_are_normalised_and_floats_are_not():
    whole = TransferModel(
        base(), nnx.Linear(16, 3, rngs=nnx.Rngs(0)), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    )
    images = RNG.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    by_hand = (images / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(whole(images), whole(by_hand.astype(np.float32)), atol=1e-5)


# --- low rank ---------------------------------------------------------------------------------


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(6, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(nnx.relu(self.embed(x))).mean(1)


def test_low_rank_updates_are_all_that_changes_and_are_added_in_the_end():
    sequences = RNG.normal(size=(90, 5, 6)).astype(np.float32)
    labels = (sequences[:, :, 0].max(1) > 1).astype(int)
    start = Attention(nnx.Rngs(0))
    config = TrainingConfig(batch_size=30, learning_rate=0.01, epochs=4)
    learner, model = fine_tuned(
        0, of=start, data=(sequences, labels, sequences, labels), config=config,
        options={'lora_rank': 2},
    )  # fmt: skip
    before, after = arrays_of(start), arrays_of(model.base)
    for name, array in before.items():
        update = after[name] - array
        if name.endswith('bias'):
            assert not update.any()
            continue
        inputs = 8 if name.startswith('attention') else 6
        values = np.linalg.svd(update.reshape(inputs, -1), compute_uv=False)
        assert values[1] > 1e-4 and (values[2:] < 1e-6).all(), name
    assert set(learner.summary()['trained']) == {'low rank', 'yes'}
    found = ModelEvaluator().evaluate(model, sequences, labels, ['log_loss'])['log_loss']
    assert found == pytest.approx(learner.history['val_loss'][-1], abs=1e-5)
    assert learner.history['loss'][-1] < learner.history['loss'][0]


# --- roles ------------------------------------------------------------------------------------


def test_a_head_is_trained_in_place():
    head = nnx.Sequential(
        nnx.Linear(16, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    )
    before = nnx.clone(head)
    _, model = fine_tuned(0, model=head)
    assert model.head is head
    assert moved(before, head) == {'layers.0', 'layers.2'}
    assert predict(model, X).shape == (120,)


@pytest.mark.parametrize(
    ('targets', 'outputs', 'kind'),
    [
        (Y, 3, 'multiclass'),
        (np.where(Y > 0, 'yes', 'no'), 2, 'binary'),
        (X[:, 0, 0, 0], 1, 'regression'),
        (np.stack([Y > 0, Y > 1], 1), 2, 'multilabel'),
    ],
)
def test_a_head_is_made_for_the_targets(targets, outputs, kind):
    _, model = fine_tuned(0, data=(X, targets))
    assert model.head.out_features == outputs
    assert record_of(model).task.kind == kind


def test_a_base_that_was_trained_loses_its_last_layer():
    trained = Small(7, seed=3)
    _, model = fine_tuned(1, of=trained)
    assert model.head.in_features == 16
    assert moved(trained, Small(7, seed=3)) == set()
    shared = arrays_of(trained)
    for name, array in arrays_of(model.base).items():
        if name.startswith('blocks'):
            np.testing.assert_array_equal(array, shared[name])


def test_a_whole_model_takes_what_it_shares():
    class Around(nnx.Module):
        def __init__(self):
            self.backbone = Small(seed=5)
            self.norm = nnx.LayerNorm(16, rngs=nnx.Rngs(0))
            self.out = nnx.Linear(16, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.out(self.norm(self.backbone(x)))

    start = base()
    whole = Around()
    learner, model = fine_tuned(1, of=start, model=whole)
    assert model is whole
    assert moved(start, model.backbone) == {'last.conv', 'last.norm'}
    assert moved(Around(), model) >= {'norm', 'out'}
    assert learner.loaded.taken == tuple(f'backbone.{name}' for name in sorted(arrays_of(start)))
    assert learner.loaded.kept == ('norm.bias', 'norm.scale', 'out.bias', 'out.kernel')
    assert str(learner.loaded).startswith('24 tensors of Small loaded: backbone.blocks.0.conv.bias')
    assert learner.summary()['layer'] == [*(f'backbone.{name}' for name in NAMES), 'head']


def test_a_base_with_random_weights_has_nothing_to_give(no_weights):
    model = create('resnet18', 3, seed=5)
    before = nnx.clone(model)
    images = (X[:8], Y[:8])
    with pytest.warns(PretrainedWeightsWarning, match='resnet18 has RANDOM weights'):
        learner, _ = fine_tuned(0, of='resnet18', model=model, data=images, epochs=1)
    assert learner.loaded is None
    assert moved(before, model) == {'head'}


def test_a_whole_model_takes_what_is_in_a_file_of_its_architecture(no_weights, tmp_path):
    path = save_safetensors(create('resnet18', 7, seed=3), tmp_path / 'w.safetensors')
    model = create('resnet18', 3, seed=5)
    with pytest.warns(ThinkMLWarning, match='X_train: whole numbers.*get_preprocessing'):
        learner, _ = fine_tuned(
            0, of='resnet18', model=model, data=(X[:8].astype(np.uint8), Y[:8]), epochs=1,
            options={'weights': path},
        )  # fmt: skip
    assert moved(create('resnet18', 3, seed=3), model) == {'head'}
    assert learner.loaded.kept == ('head.bias', 'head.kernel')


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    for name in ('THINKML_HOME', 'HF_HOME', 'TORCH_HOME'):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv('HF_HUB_CACHE', raising=False)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)


def test_features_of_a_whole_model_are_kept_where_its_head_is_a_dense_layer(monkeypatch):
    computed = []
    compute = FeatureCache.compute
    monkeypatch.setattr(
        FeatureCache, 'compute', lambda *args: computed.append(args[-1]) or compute(*args)
    )
    kept, other = Small(3, seed=4), Small(3, seed=4)
    learner, model = fine_tuned(0, model=kept, X_val=X[:40], y_val=Y[:40])
    assert model is kept and computed == ['train', 'val']
    each_time, _ = fine_tuned(0, model=other, X_val=X[:40], y_val=Y[:40], augmentation=identity)
    assert computed == ['train', 'val']
    for name, values in dict(each_time.history).items():
        np.testing.assert_allclose(learner.history[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict_proba(kept, X), predict_proba(other, X), atol=1e-5)
    assert record_of(kept).input_spec == record_of(other).input_spec
    assert record_of(kept).data_fingerprint == record_of(other).data_fingerprint
    sets = {'same': (X[:40], Y[:40]), 'few': (X[:9], Y[:9])}
    several, _ = fine_tuned(0, model=Small(3, seed=4), X_val=sets)
    assert computed[2:] == ['train', 'val_same', 'val_few']
    assert several.history['val_same_loss'] == learner.history['val_loss']
    fine_tuned(0, model=kept)
    assert len(record_of(kept).runs) == 2 and record_of(kept).input_spec is not None


class Squeezed(Small):
    """A model whose last layer is not its last operation."""

    def __init__(self):
        super().__init__(1, seed=4)

    def __call__(self, x):
        return super().__call__(x).squeeze(-1)


def test_a_last_layer_that_is_squeezed_stays(monkeypatch):
    monkeypatch.setattr(FeatureCache, 'compute', None)
    numbers = (X, X[:, 0, 0, 0])
    start = base()
    _, model = fine_tuned(0, of=start, model=Squeezed(), data=numbers)
    assert moved(start, model) == set()
    with pytest.raises(ModelTypeError, match=r'base_model: it returns \(rows,\), expected feat'):
        fine_tuned(0, of=Squeezed(), data=numbers)


def test_features_are_not_kept_where_there_is_dropout_before_the_head(monkeypatch):
    class Dropped(Small):
        def __init__(self):
            super().__init__(3, seed=4)
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(self.dropout(self.last(x).mean((1, 2))))

    monkeypatch.setattr(FeatureCache, 'compute', None)
    start = base()
    _, model = fine_tuned(0, of=start, model=Dropped())
    assert moved(start, model) == set() and moved(model, Dropped()) >= {'head'}


class Flat(nnx.Module):
    """A model that shares no tensors with the others."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.dense = nnx.Linear(192, 24, rngs=rngs)
        self.logits = nnx.Linear(24, 3, rngs=rngs)

    def __call__(self, x):
        return self.logits(nnx.relu(self.dense(x.reshape(len(x), -1))))


def test_a_model_that_shares_nothing_is_trained_by_itself():
    model, expected = Flat(), Flat()
    with pytest.warns(ThinkMLWarning, match='no tensor in common with Small.*all of it'):
        _, found = fine_tuned(1, model=model)
    assert found is model
    ModelTrainer(CONFIG).train(expected, X, Y, progress=False)
    assert moved(expected, model) == set()


def test_of_a_trained_model_that_shares_nothing_the_last_layers_are_trained():
    model = Flat()
    ModelTrainer(CONFIG).train(model, X, Y, progress=False)
    before = nnx.clone(model)
    with pytest.warns(ThinkMLWarning, match='by itself: its last layers'):
        learner, _ = fine_tuned(1, model=model)
    assert moved(before, model) == {'logits'}
    assert learner.summary()['trained'] == ['no', 'yes']
    assert len(record_of(model).runs) == 2
    with (
        pytest.warns(ThinkMLWarning, match='by itself'),
        pytest.raises(ConfigError, match='fine_tune_layers: got 0 for a model that is fine-tuned'),
    ):
        fine_tuned(0, model=model)


def test_a_model_that_may_be_either_needs_a_role():
    flat = X.reshape(120, -1)[:, :16]
    base_of_vectors = nnx.Sequential(nnx.Linear(16, 16, rngs=nnx.Rngs(0)), nnx.relu)
    either = mlp(16, 3)
    with pytest.raises(ConfigError, match=r"role: the model takes both.*role='head'"):
        fine_tuned(0, of=base_of_vectors, model=either, data=(flat, Y))
    _, model = fine_tuned(0, of=base_of_vectors, model=either, data=(flat, Y), role='head')
    assert model.head is either
    with pytest.warns(ThinkMLWarning, match='by itself'):
        _, model = fine_tuned(1, of=Small(), model=Flat(), role='model')
    with pytest.raises(DataError, match='X_train: got rows of'):
        fine_tuned(0, model=Flat(), role='head')


class Traced(Flat):
    """A model that can't be computed, only traced."""

    def __call__(self, x):
        assert isinstance(x, jax.core.Tracer)
        return super().__call__(x)


def test_what_a_model_is_is_told_by_shapes(count_compiles):
    rows = jax.ShapeDtypeStruct((13, 8, 8, 3), np.float32)
    of = make_backbone(base(), rows)
    roles = []
    for model, expected in ((mlp(16, 3), 'head'), (Small(3), 'model'), (Traced(), 'model')):
        assert (
            count_compiles(lambda model=model: roles.append(infer_role(model, of, rows, None))) == 0
        )
        assert roles.pop() == expected


# --- afterwards -------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['array', 'batches'])
def test_batches_and_saved_models_are_bases_as_well(kind, tmp_path):
    trained = Small(4, seed=2)
    path = ModelManager().save_model(trained, tmp_path / 'base')
    batches = [(X[rows], Y[rows]) for rows in np.array_split(np.arange(120), 4)]
    data = (X, Y) if kind == 'array' else (lambda: iter(batches), None)
    head = nnx.Linear(16, 3, rngs=nnx.Rngs(0))
    _, model = fine_tuned(0, of=str(path), model=head, data=data)
    saved = ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(saved)
    np.testing.assert_array_equal(predict_proba(loaded, X), predict_proba(model, X))


def test_callbacks_see_the_whole_model():
    seen = []
    config = TrainingConfig(batch_size=60, epochs=1, callbacks=[lambda run: seen.append(run.model)])
    _, model = fine_tuned(1, config=config)
    assert seen == [model]


@pytest.mark.slow
def test_what_was_learned_of_some_digits_helps_with_others(digits):
    X_train, X_test, y_train, y_test = digits
    images = [part.reshape(-1, 8, 8, 1).repeat(3, -1) for part in (X_train, X_test)]
    config = TrainingConfig(batch_size=32, epochs=15)
    known = Small(5, seed=1)
    related = y_train < 5
    ModelTrainer(config).train(known, images[0][related], y_train[related], progress=False)
    others, of_test = np.flatnonzero(y_train >= 5)[:60], y_test >= 5
    task = (images[0][others], y_train[others])
    scores = {}
    for name, of, layers in (('transfer', known, 1), ('scratch', Small(5, seed=1), 'all')):
        _, model = fine_tuned(layers, of=of, data=task, config=TrainingConfig(epochs=15))
        found = ModelEvaluator().evaluate(model, images[1][of_test], y_test[of_test], ['accuracy'])
        scores[name] = found['accuracy']
    assert scores['transfer'] > scores['scratch'] + 0.05, scores


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'fine_tune_layers': -1}, 'fine_tune_layers: got -1, expected the number'),
        ({'fine_tune_layers': 'last'}, "fine_tune_layers: got 'last'"),
        ({'layer_decay': 0}, 'layer_decay: got 0, expected more than 0'),
        ({'head_epochs': 1.5}, 'head_epochs: got 1.5'),
        ({'lora_rank': 0}, 'lora_rank: got 0'),
        ({'cache_bytes': None}, 'cache_bytes: got None'),
        ({'weights': 3}, "weights: got 3, expected None, 'auto', 'required' or the path"),
        ({'config': {'epochs': 1}}, 'config: got dict'),
    ],
)
def test_settings_are_checked(options, match):
    with pytest.raises(ConfigError, match=match):
        TransferLearner(Small(), **options)


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        (
            {'layers': ['block.*']},
            ConfigError,
            r"got 'block.\*', which matches none of .*last.conv",
        ),
        ({'of': 'resnet51'}, ConfigError, "base_model: got 'resnet51'.*Did you mean 'resnet50'"),
        ({'of': 'mlp'}, ConfigError, "no pretrained weights of 'mlp'"),
        ({'of': lambda x: x}, ModelTypeError, 'base_model: got a function'),
        ({'model': 3}, ModelTypeError, 'model: got a int'),
        ({'model': mlp(5, 3)}, DataError, 'takes neither the features of Small, 16 a row'),
        ({'model': Flat(), 'role': 'tail'}, ConfigError, "role: got 'tail'"),
        ({'data': (None, Y)}, DataError, 'X_train: got None'),
        ({'data': (X[..., :2], Y)}, DataError, 'X_train: got rows of'),
        ({'options': {'lora_rank': 2}}, ConfigError, 'no dense or attention layers'),
        ({'data': (lambda: iter([(X, Y)]), None)}, DataError, 'model: got None for batches'),
    ],
)
def test_what_does_not_fit_is_told(arguments, error, match):
    with pytest.raises(error, match=match):
        fine_tuned(**{'layers': 0, **arguments})


def test_there_is_no_summary_before():
    with pytest.raises(NotTrainedError, match='Call fine_tune'):
        TransferLearner(Small()).summary()
