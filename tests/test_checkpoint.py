import concurrent.futures
import contextlib
import math
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import run_together, simulating
from thinkml.checkpoint import Checkpointer, load_arrays, manifest, save_arrays
from thinkml.errors import CheckpointError, ConfigError, ThinkMLWarning

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
    environment = os.environ | {'PYTHONPATH': str(root)} | simulating(2)
    command = [sys.executable, '-W', 'error', '-c', TWO_DEVICES, tmp_path]
    subprocess.run(command, check=True, cwd=root, env=environment)
    assert load_arrays(tmp_path / 'tree')['a'].ravel().tolist() == list(range(8))


TWO_PROCESSES = """
import pathlib, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from thinkml.checkpoint import Checkpointer
from thinkml.core.parallel.multiprocess import initialize
from thinkml.errors import CheckpointError
initialize()
index, directory = jax.process_index(), pathlib.Path(sys.argv[1])
mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
def full(value, *axes):
    array = np.full((4, 2), value, np.float32)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
def state(value):
    return {'rows': full(value, 'data'), 'all': full(value)}
def damage(name):
    if index == 0:
        for path in directory.glob(name):
            path.write_bytes(path.read_bytes()[:-1])
    multihost_utils.sync_global_devices(name)
checkpointer = Checkpointer(directory, keep=2)
for step in (1, 2, 3):
    checkpointer.save(step, state(step), {'step': step}, best=step == 1)
checkpointer.wait()
assert checkpointer.steps() == [1, 2, 3]
damage('3/metadata.json')
assert checkpointer.latest_sound() == 2
restored, metadata = checkpointer.restore(2, state(0))
assert metadata == {'step': 2}
assert all(
    (shard.data == 2).all() for leaf in restored.values() for shard in leaf.addressable_shards
)
checkpointer.save(4, restored)
checkpointer.close()
assert (checkpointer.steps(), checkpointer.best_step()) == ([1, 2, 4], 1)
damage('*/metadata.json')
try:
    checkpointer.latest_sound()
except CheckpointError:
    print('none is sound')
"""


def test_processes_write_one_checkpoint_together_and_agree_on_what_is_sound(tmp_path):
    for output, _ in run_together(TWO_PROCESSES, 2, tmp_path / 'steps'):
        assert output.endswith('none is sound\n')


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(tmp_path / 'steps', keep=2)
    yield checkpointer
    checkpointer.close()


def saved(directory, *steps, keep=None):
    """Makes a directory with a checkpoint for each step, whose arrays contain the step."""
    checkpointer = Checkpointer(directory, keep)
    for step in steps:
        checkpointer.save(step, {'w': jnp.full(3, step), 'key': jax.random.key(step)})
    checkpointer.close()
    return directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_checkpoints_come_back_with_their_metadata(checkpointer):
    assert checkpointer.latest_step() is None
    checkpointer.save(3, TREE, {'epoch': 1, 'loss': [0.5, math.inf], 'name': 'é'})
    checkpointer.wait()
    state, metadata = checkpointer.restore(3, TREE)
    assert_same(state, TREE)
    assert metadata == {'epoch': 1, 'loss': [0.5, math.inf], 'name': 'é'}


def test_metadata_come_without_arrays_and_may_be_large(checkpointer):
    history = {f'metric {i}': [i / 3 + j for j in range(10_000)] for i in range(10)}
    checkpointer.save(3, {'w': jnp.ones(2)}, history)
    history.clear()  # later changes by the caller have no effect
    checkpointer.close()
    metadata = Checkpointer(checkpointer.directory).metadata(3)
    assert metadata == {f'metric {i}': [i / 3 + j for j in range(10_000)] for i in range(10)}


@pytest.mark.parametrize('tree', [{}, {'a': jnp.zeros((2, 0))}, {'a': np.float64(1 / 3)}])
def test_states_of_little_come_back(checkpointer, tree):
    checkpointer.save(0, tree)
    checkpointer.wait()
    assert checkpointer.latest_sound() == 0
    assert_same(checkpointer.restore(0, tree)[0], tree)


def test_the_newest_and_the_best_stay_whatever_came_before(tmp_path):
    """Compares random runs, which go back and restart, with a plain list of the expected steps."""
    rng = np.random.default_rng(0)
    checkpointer = Checkpointer(tmp_path, keep=2)
    expected, step = {}, 0
    for _ in range(40):
        step = max(0, step + int(rng.choice([-2, 0, 1, 3, 9], p=[0.1, 0.1, 0.3, 0.3, 0.2])))
        best = bool(rng.random() < 0.3)
        checkpointer.save(step, {'w': jnp.full(3, step)}, best=best)
        expected = {s: b for s, b in expected.items() if s < step} | {step: best}
        best_step = max((s for s, b in expected.items() if b), default=None)
        kept = {*sorted(expected)[-2:], best_step}
        expected = {s: b for s, b in expected.items() if s in kept}
        checkpointer.wait()
        if rng.random() < 0.2:
            checkpointer.close()
            checkpointer = Checkpointer(tmp_path, keep=2)
        assert checkpointer.steps() == sorted(expected)
        assert (checkpointer.latest_step(), checkpointer.best_step()) == (step, best_step)
        assert names(tmp_path) == sorted(map(str, expected))


def test_a_complete_checkpoint_becomes_the_best(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=1)
    for step in (1, 2):
        checkpointer.save(step, {'w': jnp.full(3, step)}, best=step == 1)
    checkpointer.mark_best(2)
    assert (checkpointer.steps(), checkpointer.best_step()) == ([2], 2)
    assert [path.name for path in tmp_path.iterdir()] == ['2']
    assert Checkpointer(tmp_path).latest_sound() == 2
    with pytest.raises(CheckpointError, match='step: got 1, expected one of'):
        checkpointer.mark_best(1)
    (tmp_path / '2' / manifest.NAME).write_text('{}')
    with pytest.raises(CheckpointError, match=r'step: 2 in .* could not be marked as the best'):
        checkpointer.mark_best(2)


def test_a_run_that_went_back_drops_what_was_its_future(checkpointer):
    for step in (5, 10):
        checkpointer.save(step, {'w': jnp.full(3, step)})
    checkpointer.save(5, {'w': jnp.full(3, -5)})
    checkpointer.wait()
    assert checkpointer.steps() == [5]
    assert checkpointer.restore(5, {'w': jnp.zeros(3, int)})[0]['w'].tolist() == [-5, -5, -5]


def test_a_saved_state_may_be_donated_at_once(checkpointer):
    step = jax.jit(lambda w: w + 1, donate_argnums=0)
    w, host = step(jnp.zeros(2**20)), np.ones(2**20)
    checkpointer.save(1, {'w': w, 'host': host})
    host[:] = 7
    for _ in range(20):
        w = step(w)
    w.block_until_ready()
    checkpointer.wait()
    template = {'w': jnp.zeros(2**20), 'host': np.zeros(2**20)}
    restored = checkpointer.restore(1, template)[0]
    assert (restored['w'] == 1).all() and (restored['host'] == 1).all() and (w == 21).all()


def test_a_checkpoint_completes_behind_the_training_without_another_call(checkpointer):
    checkpointer.save(1, {'w': jnp.ones(3)})
    deadline = time.monotonic() + 60
    while checkpointer.steps() != [1]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def gate(monkeypatch):
    """Blocks the writing of manifests until the event is set."""
    gate, write = threading.Event(), manifest.write
    monkeypatch.setattr(
        manifest, 'write', lambda *args, **about: (gate.wait(60), write(*args, **about))
    )
    yield gate
    gate.set()


def test_saving_waits_for_nothing_and_lists_nothing_that_is_not_complete(tmp_path, gate):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {'w': jnp.ones(3)})  # returns, though the gate is closed
    assert checkpointer.steps() == []
    reader = Checkpointer(tmp_path)  # opening removes leftovers, but not running saves
    assert (reader.steps(), reader.latest_sound()) == ([], None)
    gate.set()
    checkpointer.close()
    assert (reader.steps(), reader.latest_sound()) == ([1], 1)


def test_steps_that_are_not_there_or_do_not_fit_are_named(checkpointer):
    checkpointer.save(1, {'w': jnp.ones(3)})
    checkpointer.wait()
    for read in (checkpointer.metadata, lambda step: checkpointer.restore(step, {})):
        with pytest.raises(CheckpointError, match=r'step: got 2, expected one of \[1\]'):
            read(2)
    with pytest.raises(CheckpointError, match=r'w: stored as float32\[3\], the template has'):
        checkpointer.restore(1, {'w': jnp.ones(4)})


@pytest.mark.parametrize('step', [-1, 1.0, '1', True, None])
def test_steps_are_whole_numbers(checkpointer, step):
    with pytest.raises(CheckpointError, match=r'^step: got .*, expected a whole number'):
        checkpointer.save(step, {})


@pytest.mark.parametrize('keep', [0, -1, 1.5, '2', True])
def test_keep_is_a_number_of_checkpoints(tmp_path, keep):
    with pytest.raises(ConfigError, match=r'^keep: got .*, expected a whole number'):
        Checkpointer(tmp_path / 'steps', keep=keep)
    assert not (tmp_path / 'steps').exists()


def test_metadata_that_is_no_json_is_a_checkpoint_error(checkpointer):
    with pytest.raises(CheckpointError, match='step: 1 could not be written'):
        checkpointer.save(1, {'w': jnp.ones(3)}, {'a': object()})
    assert names(checkpointer.directory) == []


# Damage.


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def sound_step(checkpointer):
    """Returns the step that is found, and the text of the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        step = checkpointer.latest_sound()
    assert all(warning.category is ThinkMLWarning for warning in caught)
    return step, '\n'.join(str(warning.message) for warning in caught)


def flip(content, rng):
    place = int(rng.integers(len(content)))
    bit = 1 << int(rng.integers(8))
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def truncate(content, rng):
    return content[: int(rng.integers(len(content)))]


def extend(content, rng):
    return content + rng.bytes(1 + int(rng.integers(9)))


def test_whatever_changes_in_a_checkpoint_is_noticed(tmp_path):
    checkpointer = Checkpointer(saved(tmp_path, 1, 2))
    assert sound_step(checkpointer) == (2, '')
    rng = np.random.default_rng(0)
    files = contents(tmp_path / '2')
    for path, content in files.items():
        changes = [flip] * 30 + [truncate] * 3 + [extend, None]
        changes += [flip] * 200 if path.name == 'manifest.json' else []
        for change in changes:
            if change is None:
                path.unlink()
            else:
                path.write_bytes(change(content, rng))
            step, text = sound_step(checkpointer)
            assert step == 1 and 'step 2: ' in text and 'step 1 is used' in text
            if path.name != 'manifest.json':
                assert path.relative_to(tmp_path / '2').as_posix() in text
            path.write_bytes(content)
    assert sound_step(checkpointer) == (2, '')


def add_file(checkpoint):
    (checkpoint / 'arrays' / 'odd \udcff\nname').write_bytes(b'')


def add_folder(checkpoint):
    (checkpoint / 'empty').mkdir()


def add_link(checkpoint):
    (checkpoint / 'link').symlink_to(checkpoint)


def link_a_file(checkpoint):
    moved = (checkpoint / 'metadata.json').rename(checkpoint.parent / 'aside')
    (checkpoint / 'metadata.json').symlink_to(moved)


def link_the_manifest(checkpoint):
    moved = (checkpoint / 'manifest.json').rename(checkpoint.parent / 'aside')
    (checkpoint / 'manifest.json').symlink_to(moved)


def link_a_folder(checkpoint):
    moved = (checkpoint / 'arrays').rename(checkpoint.parent / 'aside')
    (checkpoint / 'arrays').symlink_to(moved)


def link_it_all(checkpoint):
    checkpoint.symlink_to(checkpoint.rename(checkpoint.parent / 'aside'))


def make_a_pipe(checkpoint):
    (checkpoint / 'metadata.json').unlink()
    os.mkfifo(checkpoint / 'metadata.json')


def swap_another_in(checkpoint):
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name('1'), checkpoint)


def write_a_huge_manifest(checkpoint):
    os.truncate(checkpoint / 'manifest.json', 2**40)


@pytest.mark.parametrize(
    'change',
    [
        add_file, add_folder, add_link, link_a_file, link_the_manifest, link_a_folder, link_it_all,
        make_a_pipe, swap_another_in, write_a_huge_manifest,
    ],
)  # fmt: skip
def test_what_does_not_belong_is_damage_and_makes_way_for_the_next(tmp_path, change):
    saved(tmp_path, 1, 2)
    change(tmp_path / '2')
    outside = contents(tmp_path / 'aside') if (tmp_path / 'aside').is_dir() else {}
    checkpointer = Checkpointer(tmp_path, keep=2)
    with pytest.warns(ThinkMLWarning, match='step 2: '):
        assert checkpointer.latest_sound() == 1
    if 2 in checkpointer.steps():
        with pytest.raises(CheckpointError, match=r'step: 2 in .* is damaged: '):
            checkpointer.restore(2, {'w': jnp.zeros(3, int), 'key': jax.random.key(0)})
    checkpointer.save(3, {'w': jnp.ones(3)})
    checkpointer.close()
    assert checkpointer.steps() == [1, 3]  # the damaged one was not counted
    assert not os.path.lexists(tmp_path / '2')
    assert contents(tmp_path / 'aside') == outside if outside else True


def test_only_damaged_checkpoints_are_an_error_that_names_each(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / '1' / 'index.json').unlink()
    (tmp_path / '2' / 'manifest.json').unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpointer(tmp_path).latest_sound()
    assert str(caught.value).splitlines() == [
        f'directory: {tmp_path} has no checkpoint that is not damaged:',
        "  - step 2: 'manifest.json' is missing",
        "  - step 1: 'index.json' is missing",
    ]


# Killed processes, failed saves, and foreign files.


def test_what_a_kill_left_is_removed_or_completed_and_nothing_else_is_touched(tmp_path):
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'kept').write_text('kept')
    steps = saved(tmp_path / 'steps', 1, 4, 6, 9)
    (steps / '6').rename(steps / '.6.thinkml-new')  # killed just before it is renamed
    shutil.copytree(steps / '1', steps / '.7.thinkml-new')
    (steps / '.7.thinkml-new' / 'manifest.json').unlink()  # killed while it was written
    (steps / '4').rename(steps / '.4.thinkml-old')  # killed while it was removed
    (steps / '.8.thinkml-new').symlink_to(outside)
    (steps / '.9.thinkml-newer').mkdir()
    (steps / '5').mkdir()
    (steps / '5' / 'image.png').write_text('kept')
    (steps / '03').mkdir()
    (steps / '2.orbax-checkpoint-tmp').mkdir()
    (steps / 'notes.txt').write_text('kept')
    not_ours = ['.8.thinkml-new', '.9.thinkml-newer', '03', '2.orbax-checkpoint-tmp', '5']
    checkpointer = Checkpointer(steps, keep=1)
    assert names(steps) == sorted(['1', '6', *not_ours, 'notes.txt'])
    assert checkpointer.latest_sound() == 6
    with pytest.raises(CheckpointError, match='5 exists and is not a checkpoint'):
        checkpointer.save(5, {'w': jnp.ones(3)})
    checkpointer.save(7, {'w': jnp.ones(3)})
    checkpointer.close()
    assert names(steps) == sorted(['7', *not_ours, 'notes.txt'])
    assert (outside / 'kept').exists() and (steps / '5' / 'image.png').exists()


# Each round forks a run that saves until it is killed, before JAX has any thread.
KILLED_RUNS = """
import os, random, signal, sys, time
import jax.numpy as jnp, numpy as np, orbax.checkpoint
from thinkml.checkpoint import Checkpointer

def run():
    checkpointer = Checkpointer(sys.argv[1], keep=1)
    step = checkpointer.latest_sound() or 0
    while True:
        step = max(0, step + random.choice([-3, 0, 1, 2, 3]))
        state = {'w': jnp.asarray(np.full(100_000, step, np.int32)), 'host': np.array(step)}
        checkpointer.save(step, state, {'step': step}, best=random.random() < 0.2)
        os.write(ready, b'.')

for line in sys.stdin:
    started, ready = os.pipe()
    run_id = os.fork()
    if not run_id:
        random.seed(int(line))
        run()
    for _ in range(1 + int(line) % 3):  # saves, also on a slow machine
        os.read(started, 1)
    time.sleep(random.Random(int(line)).uniform(0, 0.3))
    os.kill(run_id, signal.SIGKILL)
    os.waitpid(run_id, 0)
    print('killed', flush=True)
"""


def test_a_run_killed_at_any_moment_leaves_sound_checkpoints(tmp_path):
    root = pathlib.Path(__file__).parents[1]
    environment = {**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'}
    template = {'w': jnp.zeros(100_000, int), 'host': np.array(0)}
    found = []
    with subprocess.Popen(
        [sys.executable, '-c', KILLED_RUNS, tmp_path / 'steps'],
        cwd=root, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as runs:  # fmt: skip
        assert runs.stdin and runs.stdout
        for seed in range(12):
            print(seed, file=runs.stdin, flush=True)
            assert runs.stdout.readline() == 'killed\n'
            checkpointer = Checkpointer(tmp_path / 'steps', keep=1)
            step = checkpointer.latest_sound()  # a warning would be an error here
            assert step == checkpointer.latest_step() and (step is not None or not found)
            for step in checkpointer.steps():
                state, metadata = checkpointer.restore(step, template)
                expected = np.full(100_000, step, np.int32)
                assert_same(state, {'w': jnp.asarray(expected), 'host': np.array(step)})
                assert metadata == {'step': step}
            found += checkpointer.steps()
            assert names(tmp_path / 'steps') == sorted(map(str, checkpointer.steps()))
        runs.stdin.close()
    assert len(set(found)) > 3


@contextlib.contextmanager
def largest_file(num_bytes):
    """Limits the size of files, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('end', ['save', 'wait', 'close'])
def test_a_save_that_failed_is_told_and_the_next_can_succeed(tmp_path, end):
    state = {'w': jax.random.normal(jax.random.key(0), (2**20,))}
    checkpointer = Checkpointer(saved(tmp_path, 1))
    with largest_file(2**20):
        checkpointer.save(2, state)
        concurrent.futures.wait([checkpointer._pending[1]])
    call = (lambda: checkpointer.save(3, state)) if end == 'save' else getattr(checkpointer, end)
    with pytest.raises(CheckpointError, match=f'step: 2 could not be written to {tmp_path}'):
        call()
    assert names(tmp_path) == ['1']
    checkpointer.save(3, state)
    checkpointer.close()
    assert names(tmp_path) == ['1', '3']
    assert_same(checkpointer.restore(3, state)[0], state)


def test_a_checkpoint_that_could_not_be_put_in_place_waits_for_the_next_opening(
    tmp_path, monkeypatch
):
    checkpointer = Checkpointer(saved(tmp_path, 1, 2))
    state = {'w': jnp.full(3, 22)}

    def refuse(*_):
        raise OSError('refused')

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, 'rename', refuse)
        checkpointer.save(2, state)
        with pytest.raises(CheckpointError, match=r'step: 2 could not be written to .*: refused'):
            checkpointer.wait()
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.latest_sound() == 2
    assert checkpointer.restore(2, {'w': jnp.zeros(3, int)})[0]['w'].tolist() == [22] * 3
    assert names(tmp_path) == ['1', '2']


def open_a_file(path):
    (path / 'file').write_text('')
    return path / 'file'


def open_below_a_file(path):
    (path / 'file').write_text('')
    return path / 'file' / 'steps'


def open_where_nothing_can_be_made(path):
    return pathlib.Path('/proc/thinkml/steps')


@pytest.mark.parametrize(
    'open_path', [open_a_file, open_below_a_file, open_where_nothing_can_be_made]
)
def test_directories_that_can_not_be_written_are_refused_at_once(tmp_path, capfd, open_path):
    path = open_path(tmp_path)
    with pytest.raises(CheckpointError, match=f'^directory: {path} '):
        Checkpointer(path)
    assert capfd.readouterr() == ('', '')


def test_a_full_disk_is_told_when_the_directory_is_opened(tmp_path, capfd):
    with largest_file(0), pytest.raises(CheckpointError, match='free some space'):
        Checkpointer(tmp_path / 'steps')
    assert capfd.readouterr() == ('', '')
    assert names(tmp_path / 'steps') == []


def test_room_is_compared_with_what_is_free(checkpointer):
    free = shutil.disk_usage(checkpointer.directory).free
    checkpointer.check_space(free // 2)
    with pytest.raises(CheckpointError, match=r'needs 12\.5 PB|needs 12500\.0 TB, .* are free'):
        checkpointer.check_space(12_500 * 10**12)


UNFINISHED = """
import concurrent.futures, sys, time
import jax.numpy as jnp
from thinkml.checkpoint import Checkpointer, checkpointer as module
start = module.start_saving
def start_slowly(path, packed):
    write = start(path, packed)
    def finish():
        time.sleep(1)  # the main thread has ended
        concurrent.futures.ThreadPoolExecutor(1).submit(int).result()  # as Orbax does
        write()
    return finish
checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(1, {'w': jnp.ones(3)})
checkpointer.wait()
module.start_saving = start_slowly
checkpointer.save(2, {'w': jnp.ones(2**20)})
"""


def test_a_program_that_ends_without_close_completes_its_checkpoint(tmp_path):
    root = pathlib.Path(__file__).parents[1]
    environment = {**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', UNFINISHED, tmp_path]
    subprocess.run(command, check=True, cwd=root, env=environment, capture_output=True)
    checkpointer = Checkpointer(tmp_path)
    # Python 3.12 starts no thread at its end, which Orbax needs.
    complete = ['1'] if sys.version_info[:2] == (3, 12) else ['1', '2']
    assert checkpointer.latest_sound() == int(complete[-1])
    assert names(tmp_path) == complete


@pytest.mark.parametrize('free', [0, 10**6])
def test_a_full_disk_is_one_error_and_no_traceback(tmp_path, monkeypatch, capfd, free):
    """Orbax would log an error per thread, without the free space."""
    state = {'w': jax.random.normal(jax.random.key(0), (2**19,))}
    usage = shutil.disk_usage(tmp_path)
    checkpointer = Checkpointer(saved(tmp_path / 'steps', 1))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=free))
        with pytest.raises(CheckpointError, match=r'step: 2 could not .* 2\.2 MB are needed, '):
            checkpointer.save(2, state)
        with pytest.raises(CheckpointError, match=r'path: .* are needed, '):
            save_arrays(tmp_path / 'tree', state)
    assert 'Traceback' not in capfd.readouterr().err


def test_what_orbax_raises_is_not_logged_as_well(tmp_path, caplog):
    state = {'w': jax.random.normal(jax.random.key(0), (2**20,))}
    checkpointer = Checkpointer(saved(tmp_path, 1))
    with largest_file(2**20), pytest.raises(CheckpointError, match='step: 2 could not be written'):
        checkpointer.save(2, state)
        checkpointer.wait()
    assert not [record for record in caplog.records if record.name == 'absl']


def test_saves_of_several_threads_are_all_on_disk(tmp_path):
    state = {f'layer {index}': jnp.full(100, index) for index in range(5)}

    def save_often(name):
        checkpointer = Checkpointer(tmp_path / name, keep=None)
        for step in range(12):
            checkpointer.save(step, state)
        checkpointer.close()
        return checkpointer.steps()

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        assert list(threads.map(save_often, 'abcdef')) == [list(range(12))] * 6
    restored, _ = Checkpointer(tmp_path / 'b').restore(11, state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_save_that_fails_does_not_hold_up_the_next(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(
            'orbax.checkpoint.AsyncCheckpointer.save', lambda *_, **__: os.stat('/nowhere')
        )
        with pytest.raises(CheckpointError, match='step: 1 could not be written'):
            checkpointer.save(1, {'a': jnp.ones(3)})
    checkpointer.save(2, {'a': jnp.ones(3)})
    checkpointer.close()
    assert checkpointer.steps() == [2]
