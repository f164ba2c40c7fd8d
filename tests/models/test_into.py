"""Loading into an existing model, resumed training, and files of old formats."""

import math
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm
from tests.processes import simulating
from thinkml.errors import ConfigError, ModelFileError, ModelTypeError
from thinkml.model_record import record_of
from thinkml.models import ModelManager, from_functions, from_linen, predict_proba
from thinkml.models.serialization.weights import fill, named_arrays
from thinkml.training import ModelTrainer, TrainingConfig

MANAGER = ModelManager()
X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def trained(model, **settings):
    ModelTrainer(TrainingConfig(epochs=2, batch_size=20, **settings)).train(
        model, X, Y, progress=False
    )
    return model


class Unnamed(nnx.Module):
    """A model that no file can describe: it has a function without a name."""

    def __init__(self, seed=0, width=4):
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(3, width, rngs=rngs)
        self.activation = lambda x: nnx.relu(x)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.activation(self.norm(self.hidden(x)))))


class Named(Unnamed):
    """The same model, in a form that a file can describe."""

    def __init__(self, seed=0, width=4):
        super().__init__(seed, width)
        self.activation = nnx.relu


def test_a_model_that_no_file_could_name_is_filled(tmp_path):
    model = trained(Named())
    path = MANAGER.save_model(model, tmp_path / 'model')
    mine = Unnamed(seed=1)
    assert MANAGER.load_model(path, into=mine) is mine
    np.testing.assert_array_equal(predict_proba(mine, X), predict_proba(model, X))
    assert record_of(mine).task == record_of(model).task
    assert mine.dropout.deterministic


def linen():
    return from_linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]))


def init(key, x):
    return {'w': [jax.random.normal(key, (x.shape[-1], 2)) * 0.1], 'b': jnp.zeros(2)}


def apply(params, x):
    return x @ params['w'][0] + params['b']


@pytest.mark.parametrize('make', [linen, lambda: from_functions(init, apply)])
def test_other_kinds_of_models_are_filled(make, tmp_path):
    model, mine = trained(make()), trained(make(), seed=5)
    path = MANAGER.save_model(model, tmp_path / 'model')
    MANAGER.load_model(path, into=mine)
    np.testing.assert_array_equal(predict_proba(mine, X), predict_proba(model, X))
    with pytest.raises(ModelFileError, match='has no parameters yet'):
        MANAGER.load_model(path, into=make())


def test_everything_that_does_not_fit_is_named_and_nothing_changes(tmp_path):
    path = MANAGER.save_model(trained(Named(width=4)), tmp_path / 'model')
    mine = Unnamed(width=5)
    mine.extra = nnx.Param(jnp.zeros(2, jnp.bfloat16))
    before = {name: np.asarray(array) for name, array in arrays_of(mine).items()}
    with pytest.raises(ModelFileError) as caught:
        MANAGER.load_model(path, into=mine)
    lines = str(caught.value).splitlines()
    assert lines[0] == f'into: {path} does not fit the model:'
    assert '  - extra: bfloat16[2] in the model, not in the file' in lines
    assert '  - hidden/kernel: float32[3,5] in the model, float32[3,4] in the file' in lines
    assert len(lines) == 1 + 8
    for name, array in arrays_of(mine).items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(ModelTypeError, match='model: got'):
        MANAGER.load_model(path, into={'w': 1})


def arrays_of(model):
    return {n: a for n, a in named_arrays(model).items() if not n.startswith('dropout')}


ON_DEVICES = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.models.test_into import Named, MANAGER
root, before = sys.argv[1], sys.argv[2]
mine = Named(seed=3, width=8)
mesh = Mesh(np.array(jax.devices()), ('model',))
for kernel, spec in ((mine.hidden.kernel, P(None, 'model')), (mine.out.kernel, P('model'))):
    kernel.set_value(jax.device_put(kernel.get_value(), NamedSharding(mesh, spec)))
places = [layer.kernel.get_value().sharding for layer in (mine.hidden, mine.out)]
MANAGER.load_model(f'{root}/{before}', into=mine)
found = [layer.kernel.get_value() for layer in (mine.hidden, mine.out)]
assert [array.sharding for array in found] == places, found
assert all(len(array.addressable_shards) == len(jax.devices()) for array in found)
alone = MANAGER.load_model(f'{root}/{before}')
assert len(alone.hidden.kernel.get_value().devices()) == 1
for array, layer in zip(found, (alone.hidden, alone.out)):
    np.testing.assert_array_equal(array, layer.kernel.get_value())
MANAGER.save_model(mine, f'{root}/{len(jax.devices())}')
"""


@pytest.mark.slow
def test_models_are_saved_and_loaded_on_any_number_of_devices(tmp_path):
    model = trained(Named(width=8))
    MANAGER.save_model(model, tmp_path / '1')
    for before, devices in ((1, 8), (8, 2), (2, 4)):
        subprocess.run(
            [sys.executable, '-c', ON_DEVICES, tmp_path, str(before)], check=True,
            cwd=Path(__file__).parents[2], env=os.environ | simulating(devices),
        )  # fmt: skip
    loaded = MANAGER.load_model(tmp_path / '4')
    assert predict_proba(loaded, X).tobytes() == predict_proba(model, X).tobytes()


# --- the optimizer ----------------------------------------------------------------------------


def one_batch(epochs):
    """Returns the settings of a training with one step per epoch, so that it can stop anywhere."""
    return TrainingConfig(epochs=epochs, batch_size=60, optimizer='adam', learning_rate=0.01)


def train_one_batch(model, epochs):
    ModelTrainer(one_batch(epochs)).train(model, X, Y, progress=False)
    return model


def test_training_is_resumed_where_it_ended(tmp_path):
    def make():
        return nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    whole = train_one_batch(make(), 6)
    path = MANAGER.save_model(train_one_batch(make(), 3), tmp_path / 'half', include_optimizer=True)
    cut = train_one_batch(MANAGER.load_model(path, include_optimizer=True), 3)
    without = train_one_batch(MANAGER.load_model(path), 3)
    np.testing.assert_allclose(cut.kernel[...], whole.kernel[...], rtol=1e-5, atol=1e-7)
    assert not np.allclose(without.kernel[...], whole.kernel[...], rtol=1e-4, atol=1e-6)
    assert len(record_of(cut).runs) == 2


def test_it_is_resumed_bit_for_bit_as_in_memory(tmp_path):
    config = TrainingConfig(epochs=2, batch_size=20, optimizer='adamw')
    model = Named()
    ModelTrainer(config).train(model, X, Y, progress=False)
    path = MANAGER.save_model(model, tmp_path / 'model', include_optimizer=True)
    loaded = MANAGER.load_model(path, include_optimizer=True)
    record_of(model).continues = True
    for one in (model, loaded):
        ModelTrainer(config).train(one, X, Y, progress=False)
    assert record_of(loaded).runs[1]['loss'] == record_of(model).runs[1]['loss']
    for name, array in arrays_of(loaded).items():
        assert np.asarray(array).tobytes() == np.asarray(arrays_of(model)[name]).tobytes(), name
    for name, array in record_of(loaded).optimizer.items():
        np.testing.assert_array_equal(array, record_of(model).optimizer[name])


def test_only_the_first_training_is_resumed(tmp_path):
    model = train_one_batch(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), 2)
    path = MANAGER.save_model(model, tmp_path / 'model', include_optimizer=True)
    loaded = MANAGER.load_model(path, include_optimizer=True)
    train_one_batch(loaded, 2)
    assert not record_of(loaded).continues
    assert 0 in {int(a) for n, a in record_of(loaded).optimizer.items() if n.endswith('count')} or (
        max(int(a) for n, a in record_of(loaded).optimizer.items() if n.endswith('count')) == 4
    )


def test_an_optimizer_that_does_not_fit_or_is_missing(tmp_path):
    model = train_one_batch(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), 2)
    path = MANAGER.save_model(model, tmp_path / 'model', include_optimizer=True)
    loaded = MANAGER.load_model(path, include_optimizer=True)
    before = np.asarray(loaded.kernel[...])
    with pytest.raises(
        ConfigError, match='optimizer: its state in the model file belongs to another'
    ):
        ModelTrainer(TrainingConfig(epochs=1, optimizer=optax.sgd(0.1, momentum=0.9))).train(
            loaded, X, Y, progress=False
        )
    np.testing.assert_array_equal(before, loaded.kernel[...])
    fresh = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ModelFileError, match='include_optimizer: this model has no optimizer'):
        MANAGER.save_model(fresh, tmp_path / 'fresh', include_optimizer=True)
    plain = MANAGER.save_model(model, tmp_path / 'plain')
    with pytest.raises(ModelFileError, match='plain holds no optimizer'):
        MANAGER.load_model(plain, include_optimizer=True)


# --- old formats ------------------------------------------------------------------------------


@pytest.mark.parametrize('number', [1, 2])
def test_files_of_every_format_can_be_read(number):
    path = Path(__file__).parent / 'data' / f'format-{number}'
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    loaded = MANAGER.load_model(path)
    outputs = MANAGER.metadata(path)['outputs']
    np.testing.assert_allclose(predict_proba(loaded, x[:3]), outputs, rtol=1e-6)
    assert record_of(loaded).task.classes == ('no', 'yes')
    assert MANAGER.inspect(path).format == number
    MANAGER.verify(path)
    target = nnx.Sequential(
        *[
            type(layer)(*a, rngs=nnx.Rngs(9)) if a else layer
            for layer, a in zip(loaded.layers, [(3, 4), (), (4,), (4, 2)], strict=True)
        ]
    )
    np.testing.assert_allclose(
        predict_proba(MANAGER.load_model(path, into=target), x[:3]), outputs, rtol=1e-6
    )
    assert math.isfinite(sum(record_of(loaded).runs[0]['loss']))


def test_damage_of_the_first_format_is_found(tmp_path):
    import shutil

    source = Path(__file__).parent / 'data' / 'format-1'
    for name in ('model.json', 'weights/index.json', 'manifest.json'):
        path = tmp_path / name.replace('/', '-')
        shutil.copytree(source, path)
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=str(path)):
            MANAGER.load_model(path)


def test_fill_takes_arrays_by_name():
    one, other = (DropoutBatchNorm(3, 2, nnx.Rngs(seed)) for seed in (0, 1))
    fill(other, named_arrays(one), 'memory')
    for name, array in named_arrays(other).items():
        if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(array, named_arrays(one)[name])
