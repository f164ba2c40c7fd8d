"""A model that the processes of one run save together."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from thinkml.models import ModelManager
from thinkml.models.weights import named_arrays

TWO_PROCESSES = """
import sys, jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from thinkml.errors import ModelFileError
from thinkml.models import ModelManager
port, index, root = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, index)
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
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'}
    environment.pop('XLA_FLAGS', None)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', TWO_PROCESSES, port, str(index), str(tmp_path)],
            cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            output, errors = process.communicate(timeout=120)
            assert output.endswith('done\n'), errors
    finally:
        for process in processes:
            process.kill()
    manager = ModelManager(root=tmp_path)
    assert manager.versions('together')['model'] == ['together@1']
    manager.verify('together')
    loaded = manager.load_model('together')
    np.testing.assert_array_equal(loaded.bias[...], [0, 1])
    alone = named_arrays(manager.load_model(tmp_path / 'alone'))
    np.testing.assert_array_equal(loaded.kernel[...], alone['kernel'])
    assert not list(tmp_path.glob('**/.*.tmp'))
