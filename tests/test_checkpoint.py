import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkml.checkpoint import Checkpointer, load_arrays, save_arrays
from thinkml.errors import CheckpointError

TREE = {
    'layers': [{0: jnp.arange(3.0), 10: (jnp.ones((2, 3), jnp.bfloat16), None)}],
    'a/b': jnp.asarray(1),
    'a': {'b': jnp.asarray(2)},
    'empty': jnp.zeros((0, 3), jnp.int8),
    'key': jax.random.key(3),
    'keys': jax.random.split(jax.random.key(4, impl='rbg'), 2),
    'small': jnp.arange(-4, 4).astype(jnp.int4),
    'float8': jnp.linspace(-1, 1, 5).astype(jnp.float8_e4m3fn),
    'complex': jnp.asarray([1 + 2j]),
    'bool': jnp.asarray([True, False]),
    'odd': jnp.asarray([jnp.nan, -0.0, jnp.inf]),
    'weak': jnp.full((2, 2), 0.5),
    'number': 7,
    'numpy': np.arange(3, dtype=np.float64) / 3,
    'numpy 64': np.array([2**40, -1]),
    'numpy scalar': np.float64(1 / 3),
    'numpy empty': np.zeros((0, 3), np.int64),
}


def bits(leaf):
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype, leaf.shape, leaf.tobytes()
    leaf = jnp.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), bits(jax.random.key_data(leaf))
    return leaf.aval, np.asarray(leaf).tobytes()


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert bits(got) == bits(wanted)


def test_a_tree_comes_back_bit_for_bit_in_its_templates_structure(tmp_path):
    save_arrays(tmp_path / 'a' / 'tree', TREE)
    assert_same(load_arrays(tmp_path / 'a' / 'tree', TREE), TREE)
    is_numpy = lambda leaf: isinstance(leaf, np.ndarray | np.generic)  # noqa: E731
    abstract = jax.tree.map(
        lambda leaf: leaf if is_numpy(leaf) else jax.eval_shape(lambda: leaf), TREE
    )
    assert_same(load_arrays(tmp_path / 'a' / 'tree', abstract), TREE)


def test_without_a_template_arrays_come_back_by_path(tmp_path):
    save_arrays(tmp_path / 'tree', TREE)
    arrays = load_arrays(tmp_path / 'tree')
    assert len(arrays) == len(jax.tree.leaves(TREE))
    assert arrays['layers/0/0'].tolist() == [0.0, 1.0, 2.0]
    assert {int(arrays['a/b']), int(arrays["a/b'"])} == {1, 2}
    assert bits(arrays['keys']) == bits(TREE['keys'])
    for name in ('numpy', 'numpy 64', 'numpy scalar', 'numpy empty'):
        assert isinstance(arrays[name], np.ndarray)
        assert bits(arrays[name]) == bits(TREE[name])


@pytest.mark.parametrize(
    'array', [np.array(['a']), np.array([b'a']), np.array([{}]), np.array(['2024'], 'M8[D]')]
)
def test_arrays_of_anything_but_numbers_are_refused_by_name(array, tmp_path):
    with pytest.raises(CheckpointError, match=r'^a/b: got an array of .*, expected numbers'):
        save_arrays(tmp_path / 'tree', {'a': {'b': array}})
    assert not (tmp_path / 'tree').exists()


def test_nothing_but_empty_arrays_can_be_saved(tmp_path):
    save_arrays(tmp_path / 'none', {})
    save_arrays(tmp_path / 'empty', {'a': jnp.zeros((2, 0))})
    assert load_arrays(tmp_path / 'none') == {}
    assert load_arrays(tmp_path / 'empty')['a'].shape == (2, 0)


def test_what_does_not_fit_the_template_is_named_leaf_by_leaf(tmp_path):
    key = jax.random.key(0)
    save_arrays(tmp_path / 'tree', {'a': {'w': jnp.ones((2, 3))}, 'b': jnp.ones(2), 'key': key})
    template = {'a': {'w': jnp.ones((3, 2))}, 'c': jnp.ones(2), 'key': jax.random.key_data(key)}
    with pytest.raises(CheckpointError) as caught:
        load_arrays(tmp_path / 'tree', template)
    assert str(caught.value).splitlines()[1:] == [
        '  - a/w: stored as float32[2,3], the template has float32[3,2]',
        '  - b: only in the checkpoint',
        '  - c: only in the template',
        '  - key: stored as key<threefry2x32>[2], the template has uint32[2]',
    ]


def test_what_is_not_there_or_there_already_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f'path: {tmp_path}/none could not be read'):
        load_arrays(tmp_path / 'none')
    with pytest.raises(CheckpointError, match=f'path: {tmp_path} could not be written'):
        save_arrays(tmp_path, {'a': jnp.ones(1)})


def test_64_bit_arrays_are_not_cut_in_silence(tmp_path):
    with jax.enable_x64(True):
        third = jnp.asarray([1 / 3])
        save_arrays(tmp_path / 'tree', {'a': third})
        assert bits(load_arrays(tmp_path / 'tree')['a']) == bits(third)
    with pytest.raises(CheckpointError, match=r'a: stored as float64.*jax_enable_x64'):
        load_arrays(tmp_path / 'tree')


TWO_DEVICES = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from thinkml.checkpoint import Checkpointer, load_arrays, save_arrays
mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data',), (None, 'data')))
array = jax.device_put(jnp.arange(8.0).reshape(4, 2), rows)
save_arrays(f'{sys.argv[1]}/tree', {'a': array})
template = {'a': jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=columns)}
checkpointer = Checkpointer(f'{sys.argv[1]}/steps')
checkpointer.save(1, {'a': array})
checkpointer.wait()
for loaded in (load_arrays(f'{sys.argv[1]}/tree', template), checkpointer.restore(1, template)[0]):
    assert loaded['a'].sharding == columns, loaded['a'].sharding
    assert (loaded['a'] == array).all()
"""


def test_arrays_come_back_on_any_number_of_devices(tmp_path):
    root = pathlib.Path(__file__).parents[1]
    environment = {
        **os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    }  # fmt: skip
    command = [sys.executable, '-W', 'error', '-c', TWO_DEVICES, tmp_path]
    subprocess.run(command, check=True, cwd=root, env=environment)
    assert load_arrays(tmp_path / 'tree')['a'].ravel().tolist() == list(range(8))


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(tmp_path / 'steps', keep=2)
    yield checkpointer
    checkpointer.close()


def test_checkpoints_come_back_with_their_metadata(checkpointer):
    assert checkpointer.latest_step() is None
    checkpointer.save(3, TREE, {'epoch': 1, 'loss': 0.5})
    checkpointer.wait()
    state, metadata = checkpointer.restore(3, TREE)
    assert_same(state, TREE)
    assert metadata == {'epoch': 1, 'loss': 0.5}


def test_the_latest_are_kept_and_found_by_another_checkpointer(checkpointer):
    for step in (5, 10, 15):
        checkpointer.save(step, {'w': jnp.full(3, step)})
    checkpointer.close()
    again = Checkpointer(checkpointer.directory)
    assert (again.steps(), again.latest_step()) == ([10, 15], 15)
    assert again.restore(10, {'w': jnp.zeros(3, int)})[0]['w'].tolist() == [10, 10, 10]
    again.close()


def test_a_run_that_went_back_drops_what_was_its_future(checkpointer):
    for step in (5, 10):
        checkpointer.save(step, {'w': jnp.full(3, step)})
    checkpointer.save(5, {'w': jnp.full(3, -5)})
    checkpointer.wait()
    assert checkpointer.steps() == [5]
    assert checkpointer.restore(5, {'w': jnp.zeros(3, int)})[0]['w'].tolist() == [-5, -5, -5]


def test_a_saved_state_may_be_donated_at_once(checkpointer):
    step = jax.jit(lambda w: w + 1, donate_argnums=0)
    w = step(jnp.zeros(2**20))
    checkpointer.save(1, {'w': w})
    for _ in range(20):
        w = step(w)
    w.block_until_ready()
    checkpointer.wait()
    restored = checkpointer.restore(1, {'w': jnp.zeros(2**20)})[0]['w']
    assert (restored == 1).all() and (w == 21).all()


def test_a_save_that_was_killed_is_not_listed(checkpointer):
    checkpointer.save(1, {'w': jnp.ones(3)})
    checkpointer.close()
    (checkpointer.directory / '2.orbax-checkpoint-tmp').mkdir()
    again = Checkpointer(checkpointer.directory)
    assert again.steps() == [1]
    again.close()


def test_steps_that_are_not_there_or_do_not_fit_are_named(checkpointer):
    checkpointer.save(1, {'w': jnp.ones(3)})
    checkpointer.wait()
    with pytest.raises(CheckpointError, match=r'step: got 2, expected one of \[1\]'):
        checkpointer.restore(2, {'w': jnp.ones(3)})
    with pytest.raises(CheckpointError, match=r'w: stored as float32\[3\], the template has'):
        checkpointer.restore(1, {'w': jnp.ones(4)})


def test_metadata_that_is_no_json_is_a_checkpoint_error(checkpointer):
    with pytest.raises(CheckpointError, match='step: 1 could not be written'):
        checkpointer.save(1, {'w': jnp.ones(3)}, {'a': object()})
