"""Tests that training on any number of devices gives the curve of one device."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.core import inference_batch_size
from thinkml.training import DistributedTrainer, ModelTrainer, TrainingConfig

pytestmark = pytest.mark.compiled
RNG = np.random.default_rng(0)
# Neither a multiple of the batch nor of the devices.
X = RNG.normal(size=(203, 8, 8, 1)).astype(np.float32)
Y = (X.mean((1, 2, 3)) > 0).astype(int) + (X[:, 0, 0, 0] > 0.7)
# Two batches; the second one has 77 rows and is padded with rows of weight 0.
X_VAL = np.resize(X, (1101, *X.shape[1:])) + RNG.normal(0, 0.1, (1101, 1, 1, 1)).astype(np.float32)
Y_VAL = np.resize(Y, 1101)


class ConvBatchNorm(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(128, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.out(self.dropout(x.reshape(len(x), -1)))


class TransformerBlock(nnx.Module):
    """A transformer block on the rows of an image as a sequence."""

    def __init__(self, rngs):
        self.embed = nnx.Linear(8, 32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=4, in_features=32, dropout_rate=0.2, decode=False, rngs=rngs
        )
        self.norms = nnx.List([nnx.LayerNorm(32, rngs=rngs) for _ in range(2)])
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.down = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x[..., 0])
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.out(x.mean(1))


class Flat(nnx.Module):
    def __init__(self, rngs):
        self.mlp = mlp(64, 3, hidden=64)

    def __call__(self, x):
        return self.mlp(x.reshape(len(x), -1))


MODELS = {'mlp': Flat, 'cnn': ConvBatchNorm, 'transformer': TransformerBlock}
SETTINGS = {
    'epochs': 2, 'batch_size': 32, 'optimizer': 'momentum', 'learning_rate': 0.05,
    'gradient_clip_norm': 1.0, 'ema_decay': 0.9, 'steps_per_dispatch': 3,
}  # fmt: skip
STRATEGIES = ['mirrored', 'fsdp']
# Every model, strategy, number of devices and number of accumulated parts occurs, and so do all
# pairs except those with the number of devices. `test_adam_too` covers the mirrored MLP.
COVERING = {
    ('cnn', 'mirrored', 1, 1),
    ('transformer', 'mirrored', 2, 2),
    ('transformer', 'fsdp', 3, 1),
    ('mlp', 'fsdp', 4, 2),
    ('cnn', 'fsdp', 8, 2),
}
_cache = {}


def combinations(covering, *values):
    """Returns all combinations of the values; those not in `covering` are slow."""
    assert covering <= set(itertools.product(*values))
    return [
        pytest.param(*one, marks=[] if one in covering else pytest.mark.slow)
        for one in itertools.product(*values)
    ]


def arrays_of(model):
    kept = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return {str(path): np.asarray(value) for path, value in nnx.to_flat_state(kept)}


def trained(kind, trainer, x=X, y=Y, **options):
    model = MODELS[kind](nnx.Rngs(0))
    options = {'metrics': ['f1', 'roc_auc'], 'class_weights': 'balanced', **options}
    history = trainer.train(model, x, y, X_VAL, Y_VAL, progress=False, **options)
    return dict(history), history.step_loss, arrays_of(model)


def on_one(kind, **settings):
    key = (kind, *sorted(settings.items()))
    if key not in _cache:
        _cache[key] = trained(kind, ModelTrainer(TrainingConfig(**SETTINGS | settings)))
    return _cache[key]


def assert_same(got, expected, tolerance=1e-5):
    assert got[0].keys() == expected[0].keys()
    for name, values in expected[0].items():
        np.testing.assert_allclose(got[0][name], values, rtol=0, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(got[1], expected[1], rtol=0, atol=tolerance)
    for name, array in expected[2].items():
        np.testing.assert_allclose(got[2][name], array, rtol=0, atol=tolerance, err_msg=name)


def test_validation_is_masked():
    assert inference_batch_size(X_VAL) == 1024


@pytest.mark.parametrize(
    ('kind', 'strategy', 'devices', 'accumulate_steps'),
    combinations(COVERING, MODELS, STRATEGIES, [1, 2, 3, 4, 8], [1, 2]),
)
def test_the_curve_does_not_depend_on_the_devices(kind, strategy, devices, accumulate_steps):
    settings = {'accumulate_steps': accumulate_steps, 'batch_size': 32 // accumulate_steps}
    config = TrainingConfig(**SETTINGS | settings)
    trainer = DistributedTrainer(config, strategy=strategy, num_gpus=devices)
    assert_same(trained(kind, trainer), on_one(kind, **settings))


def test_adam_too():
    # Not a model with parameters whose gradients are 0 up to rounding (a bias before BatchNorm):
    # Adam divides such a gradient by its size.
    trainer = DistributedTrainer(TrainingConfig(**SETTINGS | {'optimizer': 'adam'}))
    assert_same(trained('mlp', trainer), on_one('mlp', optimizer='adam'))


PATTERNS = {
    '(embed|up)/.*': 'frozen',  # the second kernel is sharded
    'down/.*': {'optimizer': 'adamw', 'learning_rate': 0.001},
    'out/.*': optax.polyak_sgd(max_learning_rate=0.1),  # takes the loss
    '.*': 'momentum',
}


@functools.cache
def trained_by_pattern(make, **options):
    return trained(
        'transformer', make(TrainingConfig(**SETTINGS | {'optimizer': PATTERNS}), **options)
    )


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_the_curve_of_optimizers_by_pattern(strategy):
    several = trained_by_pattern(DistributedTrainer, strategy=strategy, num_gpus=2)
    assert_same(several, trained_by_pattern(ModelTrainer))
    frozen = TransformerBlock(nnx.Rngs(0)).up.kernel[...]
    (array,) = [array for path, array in several[2].items() if path == "('up', 'kernel')"]
    np.testing.assert_array_equal(array, frozen)


@pytest.mark.parametrize(
    ('place', 'devices'),
    combinations({('sharded', 3), ('streamed', 8)}, ['sharded', 'streamed'], [3, 8]),
)
def test_the_curve_does_not_depend_on_where_the_data_is(place, devices):
    bytes_ = {'sharded': 20_000, 'streamed': 4_000}[place]
    config = TrainingConfig(**SETTINGS, device_data_bytes=bytes_ * 8 // devices)
    trainer = DistributedTrainer(config, num_gpus=devices)
    assert_same(trained('cnn', trainer), on_one('cnn'))


def batches():
    for first in range(0, len(X), 32):
        yield X[first : first + 32], Y[first : first + 32]


@functools.cache
def trained_on_batches(make, **options):
    weights = {0: 1.0, 1: 2.0, 2: 0.5}
    trainer = make(TrainingConfig(**SETTINGS), **options)
    return trained('cnn', trainer, x=batches, y=None, class_weights=weights, metrics=['f1'])


@pytest.mark.parametrize('devices', [3, pytest.param(8, marks=pytest.mark.slow)])
def test_the_curve_of_batches(devices):
    assert_same(
        trained_on_batches(DistributedTrainer, num_gpus=devices), trained_on_batches(ModelTrainer)
    )


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_the_same_seed_gives_the_same_bits(strategy):
    runs = [
        trained('cnn', DistributedTrainer(TrainingConfig(**SETTINGS), strategy=strategy))
        for _ in range(2)
    ]
    assert runs[0][0] == runs[1][0]
    for name, array in runs[0][2].items():
        np.testing.assert_array_equal(runs[1][2][name], array)


@pytest.mark.parametrize('settings', [{}, {'device_data_bytes': 20_000}])
def test_nothing_compiles_twice(settings, count_compiles):
    def train(epochs=2):
        config = TrainingConfig(**SETTINGS | settings | {'epochs': epochs})
        trained('cnn', DistributedTrainer(config))

    train()
    assert count_compiles(train) == 0
    assert count_compiles(train, epochs=4) == 0
    assert len(jax.devices()) == 8
