"""Trainings on tokens and of several heads give the curve of one device on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models_with_heads import DictModel
from tests.models_with_steps import Gan, GanStep
from tests.training.test_objective import Vae, elbo
from tests.training.test_objective import X as ROWS_OF_VAE
from tests.training.test_sequences import TAGS, Reader
from tests.training.test_sequences import TOKENS as SEQUENCES
from thinkml.history import MACHINE_VALUES
from thinkml.models import predict
from thinkml.training import (
    CTC,
    CrossEntropy,
    DistributedTrainer,
    ModelTrainer,
    Objective,
    TrainingConfig,
)
from thinkml.training.callbacks import throughput

ROWS, TOKENS, WORDS = 61, 6, 8  # rows that no number of devices divides
SETTINGS = {'epochs': 3, 'batch_size': 16, 'learning_rate': 0.05, 'optimizer': 'momentum'}
RNG = np.random.default_rng(0)
X = RNG.integers(0, WORDS, (ROWS, TOKENS))
# Rows of very different numbers of tokens that count, some of none.
Y = np.where(np.arange(TOKENS) < RNG.integers(0, TOKENS + 1, ROWS)[:, None], X * 3 % WORDS, -100)


class Tagger(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(WORDS, 128, rngs=rngs)
        self.out = nnx.Linear(128, WORDS, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.embed(x)).cumsum(axis=1))


def trained(trainer, chunk=None):
    model = Tagger()
    metrics = ['f1', 'perplexity', *([] if chunk else ['exact_match'])]
    history = trainer.train(
        model, X, Y, X, Y, loss_fn=CrossEntropy(chunk=chunk), metrics=metrics,
        class_weights={0: 3.0}, progress=False,
    )  # fmt: skip
    return dict(history), nnx.to_pure_dict(nnx.state(model, nnx.Param)), predict(model, X)


@pytest.mark.parametrize(
    ('strategy', 'devices', 'parts', 'num_bytes', 'chunk'),
    [
        ('mirrored', 2, 1, None, None), ('mirrored', 8, 2, None, 5), ('fsdp', 4, 1, None, None),
        ('fsdp', 4, 1, None, 5), ('mirrored', 4, 1, 1000, None), ('mirrored', 2, 1, 100, None),
    ],
    ids=['mirrored', 'accumulated, chunks', 'fsdp', 'fsdp, chunks', 'sharded', 'streamed'],
)  # fmt: skip
def test_the_curve_of_tokens_does_not_depend_on_the_devices(
    strategy, devices, parts, num_bytes, chunk, monkeypatch
):
    monkeypatch.setattr(throughput, '_device_kind', lambda run: 'NVIDIA H200')
    settings = {'accumulate_steps': parts, 'batch_size': 16 // parts, 'callbacks': ['throughput']}
    config = TrainingConfig(**SETTINGS | settings, device_data_bytes=num_bytes)
    trainer = DistributedTrainer(config, strategy=strategy, num_gpus=devices)
    history, params, predictions = trained(trainer, chunk)
    expected = trained(ModelTrainer(TrainingConfig(**SETTINGS | settings)))
    left_out = {'exact_match', 'val_exact_match'} if chunk else set()
    assert expected[0].keys() - history.keys() == left_out
    for name in history.keys() - MACHINE_VALUES:
        np.testing.assert_allclose(history[name], expected[0][name], atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected[1])
    np.testing.assert_array_equal(predictions, expected[2])
    assert per_example(history, 'elements_per_second') == pytest.approx((Y != -100).sum() / ROWS)
    share = per_example(history, 'mfu') * devices
    assert share == pytest.approx(per_example(expected[0], 'mfu'))


def per_example(history, name):
    """Returns a rate of the last epoch, divided by that of the examples."""
    return history[name][-1] / history['examples_per_second'][-1]


@pytest.mark.parametrize('strategy', ['mirrored', 'fsdp'])
def test_the_quality_of_images_does_not_depend_on_the_devices(strategy):
    y = RNG.random((21, 9, 8, 1)).astype(np.float32)

    def train(trainer):
        model = nnx.Conv(1, 1, (3, 3), rngs=nnx.Rngs(0))
        return dict(trainer.train(model, y, y, y, y, metrics=['psnr', 'ssim'], progress=False))

    config = TrainingConfig(**SETTINGS)
    history = train(DistributedTrainer(config, strategy=strategy, num_gpus=4))
    for name, values in train(ModelTrainer(config)).items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)


# --- several heads ------------------------------------------------------------------------------


def trained_heads(trainer):
    x = np.random.default_rng(0).normal(size=(61, 4)).astype(np.float32)
    y = {'kind': x[:, :3].argmax(1), 'price': x.sum(1), 'tags': (x[:, :1] + np.arange(5) > 2) * 1}
    y['tags'][:40, 2:] = -100
    model = DictModel()
    history = trainer.train(
        model, x, y, x, y, metrics={'kind': ['f1'], 'price': ['r2']}, loss_weights={'price': 0.1},
        sample_weight={'price': x[:, 0] > 0}, progress=False,
    )  # fmt: skip
    return dict(history), nnx.to_pure_dict(nnx.state(model, nnx.Param)), predict(model, x)


@pytest.mark.parametrize(
    ('strategy', 'devices', 'parts', 'num_bytes'),
    [('mirrored', 8, 2, None), ('fsdp', 4, 1, None), ('mirrored', 2, 1, 100)],
    ids=['accumulated', 'fsdp', 'streamed'],
)
def test_the_curve_of_heads_does_not_depend_on_the_devices(strategy, devices, parts, num_bytes):
    settings = {'accumulate_steps': parts, 'batch_size': 16 // parts}
    config = TrainingConfig(**SETTINGS | settings, device_data_bytes=num_bytes)
    history, params, predictions = trained_heads(
        DistributedTrainer(config, strategy=strategy, num_gpus=devices)
    )
    expected = trained_heads(ModelTrainer(TrainingConfig(**SETTINGS | settings)))
    for name, values in expected[0].items():
        np.testing.assert_allclose(history[name], values, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected[1])
    np.testing.assert_array_equal(predictions['kind'], expected[2]['kind'])


@pytest.mark.parametrize(('strategy', 'devices'), [('mirrored', 4), ('fsdp', 2)])
def test_the_curve_of_sequences_does_not_depend_on_the_devices(strategy, devices):
    def train(trainer):
        model = Reader()
        history = trainer.train(
            model, SEQUENCES, TAGS, SEQUENCES, TAGS, metrics=['f1', 'exact_match'], progress=False
        )
        return dict(history), nnx.to_pure_dict(nnx.state(model, nnx.Param))

    config = TrainingConfig(**SETTINGS)
    history, params = train(DistributedTrainer(config, strategy=strategy, num_gpus=devices))
    expected = train(ModelTrainer(config))
    for name, values in expected[0].items():
        np.testing.assert_allclose(history[name], values, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected[1])


@pytest.mark.parametrize(('strategy', 'devices'), [('mirrored', 4), ('fsdp', 2)])
def test_the_curve_of_frames_does_not_depend_on_the_devices(strategy, devices):
    labels = [tags[: (1 + len(tags)) // 2] + 1 for tags in TAGS]

    def train(trainer):
        model = Reader(outputs=4)
        history = trainer.train(
            model, SEQUENCES, labels, loss_fn=CTC(), metrics=['exact_match'], progress=False
        )
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return dict(history), params, predict(model, SEQUENCES)

    config = TrainingConfig(**SETTINGS, validation_split=0)
    history, params, predictions = train(
        DistributedTrainer(config, strategy=strategy, num_gpus=devices)
    )
    expected = train(ModelTrainer(config))
    for name, values in expected[0].items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected[1])
    for row, other in zip(predictions, expected[2], strict=True):
        np.testing.assert_array_equal(row, other)


@pytest.mark.parametrize('strategy', ['mirrored', 'fsdp'])
@pytest.mark.parametrize(
    ('make', 'arguments', 'settings'),
    [
        (Vae, {'loss_fn': Objective(elbo)}, SETTINGS),
        (Gan, {'step': GanStep()}, {'epochs': 3, 'batch_size': 16}),
    ],
    ids=['objective', 'step'],
)
def test_the_curve_of_an_objective_does_not_depend_on_the_devices(
    strategy, make, arguments, settings
):
    def train(trainer):
        model = make()
        history = trainer.train(model, ROWS_OF_VAE, **arguments, progress=False)
        return dict(history), nnx.to_pure_dict(nnx.state(model, nnx.Param))

    config = TrainingConfig(**settings, validation_split=0)
    history, params = train(DistributedTrainer(config, strategy=strategy, num_gpus=2))
    expected = train(ModelTrainer(config))
    for name, values in expected[0].items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected[1])
