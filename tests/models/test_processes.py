"""A model that all processes of one run save together."""

import numpy as np

from tests.processes import run_together
from thinkml.models import ModelManager
from thinkml.models.serialization.weights import named_arrays

TWO_PROCESSES = """
import sys, jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from thinkml.core.parallel.multiprocess import initialize
from thinkml.errors import ModelFileError
from thinkml.models import ModelManager
initialize()
root = sys.argv[1]
mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))

def spread(value, *axes):
    value = np.asarray(value)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])

def make(seed):
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(seed))
    model.kernel.set_value(spread(model.kernel.get_value(), 'data'))  # rows apart
    model.bias.set_value(spread(np.arange(2, dtype=np.float32)))  # on both
    return model

manager = ModelManager(root=root)
path = manager.save_model(make(0), 'together', {'by': 'both'})
assert manager.metadata('together') == {'by': 'both'}
try:
    manager.save_model(make(0), path)
except ModelFileError as error:
    assert 'overwrite=True' in str(error)
manager.save_model(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), root + '/alone')  # the same in each
mine = make(1)
manager.load_model('together', into=mine)
expected = np.asarray(nnx.Linear(4, 2, rngs=nnx.Rngs(0)).kernel[...])
for shard in mine.kernel.get_value().addressable_shards:
    np.testing.assert_array_equal(shard.data, expected[shard.index])
print('done')
"""


def test_processes_save_one_model_together(tmp_path):
    for output, _ in run_together(TWO_PROCESSES, 2, tmp_path):
        assert output.endswith('done\n')
    manager = ModelManager(root=tmp_path)
    assert manager.versions('together')['model'] == ['together@1']
    manager.verify('together')
    loaded = manager.load_model('together')
    np.testing.assert_array_equal(loaded.bias[...], [0, 1])
    alone = named_arrays(manager.load_model(tmp_path / 'alone'))
    np.testing.assert_array_equal(loaded.kernel[...], alone['kernel'])
    assert not list(tmp_path.glob('**/.*.thinkml-new'))
