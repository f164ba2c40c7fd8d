"""Damaged and malicious model files, and saves that are killed."""

import contextlib
import copy
import faulthandler
import functools
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings

import jax
import numpy as np
import pytest
from flax import nnx
from jax import export

from tests.models.forged import forge, sign
from tests.models.save_to_kill import KINDS
from tests.models_for_tests import DropoutBatchNorm, mlp
from thinkml.checkpoint import fast_reader
from thinkml.checkpoint.filesystem import read_bounded
from thinkml.core.model import exported_forward
from thinkml.errors import ModelFileError, ThinkMLWarning
from thinkml.models import ModelManager
from thinkml.models.serialization import model_file
from thinkml.training import ModelTrainer, TrainingConfig

ROOT = pathlib.Path(__file__).parents[2]
MANAGER = ModelManager()
X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
Y = np.where(X[:, 0] > 0, 'yes', 'no')
NOTES = {'note': 'x', 'scores': [0.5, None, {'a': True}], 'big': 10**20}


def trained(model, path):
    ModelTrainer(TrainingConfig(epochs=1, batch_size=16)).train(model, X, Y, progress=False)
    return MANAGER.save_model(model, path, NOTES, include_optimizer=True)


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """Returns a folder with a model, a copy whose class is missing, and another model."""
    folder = tmp_path_factory.mktemp('originals')
    trained(DropoutBatchNorm(3, 2, nnx.Rngs(0)), folder / 'model')
    trained(mlp(3, 2), folder / 'other')
    shutil.copytree(folder / 'model', folder / 'gone')
    forge(folder / 'gone', 'model.json', lambda about: about['model']['graph'].update(module=GONE))
    return folder


GONE = 'tests.models_for_tests:Gone'


@pytest.fixture(autouse=True)
def _look_once_at_a_program(monkeypatch):
    """Caches the check of programs, which takes a second: most files have one of three programs."""
    monkeypatch.setattr(model_file, 'check_readable', look_once)


@functools.cache
def look_once(program):
    exported_forward.check_readable(program)


# --- changes ----------------------------------------------------------------------------------


def contents(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob('*'))
        if file.is_file()
    }


def flipped(rng, files, other):
    name = rng.choice(sorted(files))
    content = bytearray(files[name] or b'\0')
    for _ in range(rng.choice([1, 1, 2, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return {name: bytes(content)}


def cut(rng, files, other):
    name = rng.choice(sorted(files))
    content = files[name]
    if rng.random() < 0.2:
        return {name: content + rng.randbytes(rng.randrange(1, 100))}
    return {name: content[: rng.randrange(len(content) or 1)]}


def swapped(rng, files, other):
    first, second = rng.sample(sorted(files), 2)
    return {first: files[second], second: files[first]}


def borrowed(rng, files, other):
    both = sorted(files.keys() & other.keys())
    name = rng.choice(both if rng.random() < 0.7 else sorted(files))
    return {name: other[name] if name in both else other[rng.choice(sorted(other))]}


def edited(rng, files, other):
    """Changes one to three values or keys of a JSON file."""
    name = rng.choice([name for name in sorted(files) if name.endswith('.json')])
    tree = json.loads(files[name])
    for _ in range(rng.choice([1, 1, 2, 3])):
        edit_somewhere(rng, tree)
    tree = tree if rng.random() < 0.97 else rng.choice(ODD)
    text = json.dumps(tree)
    for mark, written in WRITTEN.items():
        text = text.replace(mark, written)
    return {name: text.encode()}


# Text that json.dumps does not write.
WRITTEN = {'"@deep"': '[' * 50_000 + ']' * 50_000, '"@huge"': '1e999', '@twice': ''}
ODD = [
    None, True, -1, 0, 3, 2**31, 2**64, 10**15, 10**400, 0.5, 1e308, float('nan'), '', 'a',
    'float32', 'object', 'V99999999', '\ud800', '\0', '..', '../../../../etc/passwd', '/etc/passwd',
    'builtins:eval', 'os:system', '__main__:f', 'jax:numpy.tanh', 'jax.numpy:load', 'jax.nn:relu',
    'flax.nnx:Linear', 'numpy:load', 'exported', '@deep', '@huge', [], {}, [[]], [10**9] * 40,
    [-1], {'$tuple': 5}, {'$array': 'hidden/kernel'}, {'$array': []}, {'$dict': [[[], 1]]},
    {'$float': 'x'}, {'$numpy': ['float32', 10**400]}, {'$dtype': 'object'}, {'$x': 1, '$y': 2},
    {'$function': 'jax.lax:while_loop'}, {'$partial': [{'$function': 'jax.nn:relu'}, [], {}]},
    {'$mapping': ['FrozenDict', 1]}, {'$linen': ['flax.linen:Dense', {'features': -1}]},
    {'$initializer': ['normal', {}]}, {'shared': 0}, {'static': {'$class': 'flax.nnx:Linear'}},
    {'container': 'dict', 'items': []}, {'leaf': 1},
]  # fmt: skip


def edit_somewhere(rng, tree):
    filled = [part for part in parts_of(tree) if part]
    if not filled:
        return
    parent = filled[0] if rng.random() < 0.3 else rng.choice(filled)
    key = rng.choice(sorted(parent) if isinstance(parent, dict) else range(len(parent)))
    match rng.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(['', 'a', '$x', '../a', '__class__', '\ud800'])] = parent.pop(key)
        case 2 if isinstance(parent, dict):
            parent[f'@twice{key}'] = copy.deepcopy(rng.choice(ODD))
        case 2:
            parent.insert(key, copy.deepcopy(parent[key]))
        case 3:
            parent[key] = copy.deepcopy(rng.choice(list(parts_of(tree))))
        case _:
            parent[key] = copy.deepcopy(rng.choice(ODD))
            for _ in range(200 if rng.random() < 0.03 else 0):
                parent[key] = [parent[key]]


def parts_of(tree):
    """Returns all lists and dicts in a tree, including the tree itself."""
    if isinstance(tree, dict | list):
        yield tree
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from parts_of(part)


IN_BYTES = (flipped, flipped, cut, swapped, borrowed)


def a_change(rng, files, other, kinds=(*IN_BYTES, edited, edited, edited)):
    while True:
        change = rng.choice(kinds)(rng, files, other)
        changed = {name: content for name, content in change.items() if files[name] != content}
        if changed:
            return changed


# --- changed files as they are ----------------------------------------------------------------


def refused_or_equal(path, changed, call, expected=None):
    """Checks that a call with a changed file names the file in an error, or returns as before."""
    try:
        found = call(path)
    except ModelFileError as error:
        assert str(path) in str(error)
        assert 'manifest.json' in changed or any(name in str(error) for name in changed)
    else:
        assert expected is not None and found == expected


def check_changed_files(originals, folder, count, seed):
    path, other = folder / 'model', contents(originals / 'other')
    shutil.copytree(originals / 'model', path)
    files, rng = contents(path), random.Random(seed)
    known, notes = MANAGER.inspect(path), MANAGER.metadata(path)
    for _ in range(count):
        changed = a_change(rng, files, other)
        for name, content in changed.items():
            (path / name).write_bytes(content)
        for call in (MANAGER.load_model, MANAGER.verify):
            refused_or_equal(path, changed, call)
        refused_or_equal(path, changed, MANAGER.inspect, known)
        refused_or_equal(path, changed, MANAGER.metadata, notes)
        for name in changed:
            (path / name).write_bytes(files[name])
    assert type(MANAGER.load_model(path)) is DropoutBatchNorm


def test_a_changed_file_gives_no_model(originals, tmp_path):
    check_changed_files(originals, tmp_path, count=200, seed=2)


@pytest.mark.slow
def test_8500_changed_files_give_no_model(originals, tmp_path):
    check_changed_files(originals, tmp_path, count=8500, seed=1)


# --- changed files with a manifest that fits --------------------------------------------------


def rezarred(path, name, change):
    """Changes the metadata of an array, which are inside the database."""
    import tensorstore

    base = {'driver': 'file', 'path': f'{path}/weights/arrays/'}
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
    tree = json.loads(store.read(f'{name}/.zarray').result().value)
    change(tree)
    store.write(f'{name}/.zarray', json.dumps(tree).encode()).result()
    sign(path)


def write_changed(rng, originals, path):
    shutil.rmtree(path, ignore_errors=True)
    source = originals / rng.choice(['model', 'gone'])
    shutil.copytree(source, path)
    kind = rng.randrange(10)
    if kind == 0:
        name = rng.choice(['hidden/kernel', 'norm/mean', 'out/bias'])
        rezarred(path, name, lambda tree: edit_somewhere(rng, tree))
    else:
        files, kinds = contents(source), (*IN_BYTES, *5 * [edited])
        if kind == 1:  # not its bits: MLIR's reader, which is C++, ends the process at some
            kinds = (cut, swapped, borrowed)
            files = {n: c for n, c in files.items() if n in ('forward.bin', 'metadata.json')}
        else:
            del files['forward.bin']
        if kind in (2, 3):  # the weights, whose reader is not Python
            kinds, files = IN_BYTES, {n: c for n, c in files.items() if '/arrays/' in n}
        changed = a_change(rng, files, contents(originals / 'other'), kinds)
        for name, content in changed.items():
            (path / name).write_bytes(content)
    sign(path)


def outcome(path, call):
    """Returns the problem with a call; None if it returns or raises the right error."""
    try:
        call(path)
    except ModelFileError as error:
        return None if str(path) in str(error) else f'does not name the path: {error}'
    except BaseException:
        return traceback.format_exc(limit=-6)
    return None


# Events that reading a file must not cause.
FORBIDDEN = (
    'os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.Popen', 'socket.connect',
    'os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.chmod', 'os.symlink',
)  # fmt: skip


def watch(found):
    """Records everything that this process does besides reading."""

    def hook(event, args):
        writes = (
            event == 'open' and isinstance(args[1], str) and not set(args[1]).isdisjoint('wax+')
        )
        if writes or event in FORBIDDEN:
            found.append(f'{event}: {args}')

    sys.addaudithook(hook)


def load_signed(originals, path, first, count):
    """Loads forged files; runs in a separate process, since C++ code may end it."""
    warnings.simplefilter('error')
    warnings.simplefilter('ignore', ThinkMLWarning)
    sys.dont_write_bytecode = True
    os.fsync = lambda descriptor: None
    # The check of each program takes a second, and is tested in tests/core/test_exported.py.
    model_file.check_readable = lambda program: None
    originals, path, done = pathlib.Path(originals), pathlib.Path(path), []
    MANAGER.load_model(originals / 'model', include_optimizer=True)
    watch(done)
    for turn in range(int(first), int(first) + int(count)):
        write_changed(random.Random(turn), originals, path)
        print(turn, flush=True)
        faulthandler.dump_traceback_later(60, exit=True)
        done.clear()
        for call in (
            lambda path: MANAGER.load_model(path, include_optimizer=True),
            lambda path: str(MANAGER.inspect(path)),
            lambda path: str(MANAGER.compare(path)),
            MANAGER.metadata,
            MANAGER.verify,
        ):
            problem = outcome(path, call) or '\n'.join(done)
            if problem:
                print(f'turn {turn}: {problem}', file=sys.stderr)
        faulthandler.cancel_dump_traceback_later()
    peak = peak_memory()
    if peak is not None and peak > 2000:
        print(f'{peak} MB of memory', file=sys.stderr)


def peak_memory():
    """Returns the peak memory of this process in MB; None without /proc.

    `resource.getrusage` is no use here: a process inherits that value from its parent.
    """
    status = pathlib.Path('/proc/self/status')
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith('VmHWM')), None)


def load_many_signed(originals, folder, first, count):
    code = (
        'import sys; from tests.models.test_hostile import load_signed; load_signed(*sys.argv[1:])'
    )
    arguments = [originals, folder / 'model', str(first), str(count)]
    done = subprocess.run(
        [sys.executable, '-c', code, *arguments], cwd=ROOT, capture_output=True, text=True,
        # The compilation cache would also write files.
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'THINKML_COMPILATION_CACHE': '0'},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-20:], done.stderr[-4000:])
    assert done.stdout.split() == [str(turn) for turn in range(first, first + count)]
    assert 'turn ' not in done.stderr and 'MB of memory' not in done.stderr, done.stderr


def test_a_forged_file_gives_a_model_or_a_model_file_error(originals, tmp_path):
    load_many_signed(originals, tmp_path, first=10**6, count=40)


@pytest.mark.slow
def test_1500_forged_files_give_a_model_or_a_model_file_error(originals, tmp_path):
    load_many_signed(originals, tmp_path, first=0, count=1500)


# --- harm on purpose --------------------------------------------------------------------------


@pytest.fixture
def path(originals, tmp_path):
    return shutil.copytree(originals / 'model', tmp_path / 'model')


def refused(path, match, call=MANAGER.load_model):
    with pytest.raises(ModelFileError, match=match) as caught:
        call(path)
    assert str(path) in str(caught.value)


CALLS = {name: getattr(MANAGER, name) for name in ('load_model', 'inspect', 'metadata', 'verify')}


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
@pytest.mark.parametrize('name', ['model.json', 'weights/index.json', 'manifest.json'])
@pytest.mark.parametrize('target', ['/etc/passwd', '/dev/zero', 'model.json', '..'])
def test_a_link_is_not_followed(target, name, call, path):
    (path / name).unlink()
    (path / name).symlink_to(target)
    refused(
        path, 'is not part of it|not the directory of a saved|is damaged|is a symbolic link', call
    )


def test_a_model_that_lost_its_model_json_is_not_taken_for_a_checkpoint(path):
    (path / 'model.json').unlink()
    refused(path, 'model.json.* is missing')


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
@pytest.mark.parametrize('name', ['model.json', 'forward.bin', 'manifest.json'])
def test_a_pipe_is_not_waited_for(name, call, path):
    (path / name).unlink()
    os.mkfifo(path / name)
    refused(path, 'is not part of it|not the directory of a saved', call)


def test_no_device_is_read_without_end(tmp_path):
    (tmp_path / 'zeros').symlink_to('/dev/zero')
    os.mkfifo(tmp_path / 'pipe')
    for name in ('zeros', 'pipe'):
        with pytest.raises(ValueError, match=f'{name} is not a regular file'):
            read_bounded(tmp_path / name, 100)


def test_links_to_the_directory_itself_end(path):
    (path / 'weights' / 'again').symlink_to(path)
    refused(path, "'weights/again' is not part of it")
    shutil.rmtree(path)
    path.symlink_to(path)
    refused(path, 'does not exist')


def test_sizes_are_looked_at_before_contents(path):
    os.truncate(path / 'forward.bin', 2**40)
    refused(path, f"'forward.bin' has {2**40} bytes, expected")
    os.truncate(path / 'forward.bin', 0)
    os.truncate(path / 'weights' / 'index.json', 2**26 + 1)
    sign(path)
    refused(path, 'index.json has .* bytes, at most')


def test_a_manifest_that_leads_out_is_refused(path):
    content = json.loads((path / 'manifest.json').read_text())
    del content['sha256']
    (path.parent / 'outside').write_bytes(b'')
    for name in ('../outside', '/etc/passwd', '', '\0', '\ud800', 'x' * 5000):
        files = {**content['files'], name: [0, hashlib.sha256(b'').hexdigest()]}
        body = json.dumps({**content, 'files': files}, indent=1, sort_keys=True)
        signed = {**json.loads(body), 'sha256': hashlib.sha256(body.encode()).hexdigest()}
        (path / 'manifest.json').write_text(json.dumps(signed, indent=1, sort_keys=True) + '\n')
        for call in CALLS.values():
            refused(path, 'is missing', call)


def test_numbers_that_are_too_many_take_no_memory(path):
    for size, match in ((10**15, 'the memory of this machine'), (10**8, 'could not be read')):
        rezarred(path, 'hidden/kernel', lambda tree, n=size: tree.update(shape=[n], chunks=[n]))
        change = {'shape': [size]}
        forge(path, 'weights/index.json', lambda index, c=change: index['hidden/kernel'].update(c))
        refused(path, match)


def test_stored_parts_larger_than_the_array_are_refused(path):
    rezarred(path, 'hidden/kernel', lambda tree: tree.update(chunks=[10**6, 10**6]))
    refused(path, 'hidden/kernel is stored in chunks that are larger than the array')


def test_too_many_arrays_are_refused(path, monkeypatch):
    assert fast_reader._MAX_ARRAYS == 100_000
    monkeypatch.setattr(fast_reader, '_MAX_ARRAYS', 1000)
    entry = {'shape': [1], 'dtype': 'float32'}
    forge(path, 'weights/index.json', lambda _: {f'{n}': entry for n in range(1001)})
    refused(path, '1,001 arrays, at most 1,000')


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [
        ([10**30], 'float32'), ([10**4000] * 2, 'float32'), ([2**32] * 2, 'float32'),
        ([-1], 'float32'), ([1.5], 'float32'), (['1'], 'float32'), (3, 'float32'),
        ([3], None), ([3], 'object'), ([3], 'V9'), ([3], []),
    ],
)  # fmt: skip
def test_impossible_arrays_are_refused_without_weights(shape, dtype, path):
    entry = {'shape': shape, 'dtype': dtype}
    forge(path, 'weights/index.json', lambda index: index.update({'hidden/kernel': entry}))
    for call in (MANAGER.inspect, MANAGER.compare, MANAGER.load_model):
        refused(path, 'index.json|weights', call)


@pytest.mark.parametrize('notes', [[1], 'x', 5, None, {'$tuple': []}])
def test_metadata_that_is_no_dict_is_refused(notes, path):
    (path / 'metadata.json').write_text(json.dumps(notes))
    sign(path)
    for call in (MANAGER.metadata, MANAGER.inspect, MANAGER.compare):
        refused(path, r'metadata\.json: got', call)


@pytest.mark.parametrize('text', ['{"a": NaN}', '{"a": [-Infinity]}', '{"a": 1', ''])
def test_metadata_that_is_no_json_is_refused(text, path):
    (path / 'metadata.json').write_text(text)
    sign(path)
    for call in (MANAGER.metadata, MANAGER.inspect):
        refused(path, r'metadata\.json is damaged', call)


@pytest.mark.parametrize('parent', [5, 'x', [1], {}, {'path': 5}])
def test_a_parent_that_is_none_is_refused(parent, path):
    forge(path, 'model.json', lambda about: about.update(parent=parent))
    for call in (MANAGER.inspect, MANAGER.compare):
        refused(path, r'model\.json', call)


@pytest.mark.parametrize('parent', ['\0', '\ud800', 'loop/x', '/etc/passwd', 'x' * 5000])
def test_a_parent_is_not_looked_for(parent, path):
    (path.parent / 'loop').symlink_to('loop')
    forge(path, 'model.json', lambda about: about.update(parent={'path': f'../{parent}'}))
    MANAGER.compare(path)


def test_a_data_hash_that_is_no_text_is_shown(path):
    forge(path, 'record.json', lambda record: record.update(data_fingerprint={'sha256': 5}))
    assert '5' in str(MANAGER.compare(path))


@pytest.mark.parametrize(
    'taken',
    [
        5, [], 'x', {'arrays': 5, 'rows': None}, {'arrays': [[1]], 'rows': None},
        {'arrays': ['../..'], 'rows': None}, {'arrays': [], 'rows': None},
        {'arrays': [], 'rows': True}, {'arrays': [], 'rows': 10**9},
    ],
)  # fmt: skip
def test_arguments_of_a_forward_pass_that_are_none_are_refused(taken, originals, tmp_path):
    path = shutil.copytree(originals / 'gone', tmp_path / 'gone')
    forge(path, 'model.json', lambda about: about.update(forward=taken))
    refused(path, r'forward\.bin')


@pytest.mark.parametrize(
    'name',
    ['..', '../..:x', '__main__:Net', 'builtins:eval', 'jax.__init__:x', 'flax:nnx.Linear',
     'flax.nnx:Linear.__init__', 'flax.nnx:', ':Linear', '', '\ud800:x', 5, None, [], 'os:system',
     'subprocess:Popen', 'pytest:Item', 'flax.nnx:relu', 'a.' * 5000 + 'a:b'],
)  # fmt: skip
def test_names_of_what_is_no_module_class_are_refused(name, path):
    forge(path, 'model.json', lambda about: about['model']['graph'].update(module=name))
    (path / 'forward.bin').write_bytes(b'')  # nothing is to stand in
    sign(path)
    refused(path, r'model\.json|forward\.bin')


# --- forward passes that fit something else ---------------------------------------------------


CHANGED = 'tests.models_for_tests'


@pytest.mark.parametrize('kind', ['gone', 'model'])
@pytest.mark.parametrize('shape', [[5], [10**12], [10**30], [3, 1], []])
def test_a_forward_pass_for_other_inputs_is_refused(shape, kind, originals, tmp_path):
    path = shutil.copytree(originals / kind, tmp_path / kind)
    forge(path, 'model.json', lambda about: about.update(sources={CHANGED: 'another'}))
    forge(path, 'record.json', lambda record: record['input_spec'].update(shape=shape))
    refused(path, r'forward\.bin: the exported forward pass takes')


def test_a_forward_pass_of_another_model_is_refused(originals, tmp_path):
    path = shutil.copytree(originals / 'gone', tmp_path / 'gone')
    shutil.copy(originals / 'other' / 'forward.bin', path)
    sign(path)
    refused(path, r'forward\.bin: the exported forward pass takes other arrays')


def test_a_forward_pass_that_calls_python_is_refused(originals, tmp_path):
    path = shutil.copytree(originals / 'gone', tmp_path / 'gone')
    taken = json.loads((path / 'model.json').read_text())['forward']['arrays']

    def calls(arrays, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.ffi.ffi_call('xla_ffi_python_cpu_callback', shape)(x)

    weights = model_file.read_arrays(path)
    shapes = tuple(jax.ShapeDtypeStruct(weights[n].shape, weights[n].dtype) for n in taken)
    check = export.DisabledSafetyCheck.custom_call('xla_ffi_python_cpu_callback')
    program = export.export(jax.jit(calls), disabled_checks=[check])(
        shapes, jax.ShapeDtypeStruct((1, 3), np.float32)
    )
    (path / 'forward.bin').write_bytes(program.serialize())
    sign(path)
    refused(path, 'makes a call that no model file may make: xla_ffi_python_cpu_callback')


# --- saves that are killed --------------------------------------------------------------------


def check_whole(path):
    """Checks that the model at the path is complete, and returns its number."""
    model, number = MANAGER.load_model(path), MANAGER.metadata(path)['number']
    assert type(model) is KINDS[number % 2]
    assert all((array == number).all() for array in jax.tree.leaves(nnx.state(model)))
    return number


def kill_saves(path, times):
    rng, number, moments = random.Random(0), 1, set()
    code = 'import sys; from tests.models.save_to_kill import serve; serve(sys.argv[1])'
    command = [sys.executable, '-c', code, path]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as server:  # fmt: skip
        assert server.stdout.readline() == 'imported\n'
        for _ in range(times):
            server.stdin.write(f'{number}\n')
            server.stdin.flush()
            pid, _ = server.stdout.readline().split()
            begun = time.monotonic()
            server.stdout.readline()
            took = time.monotonic() - begun
            time.sleep(rng.uniform(0, 2 * took))
            os.kill(int(pid), signal.SIGKILL)
            while server.stdout.readline() != 'ended\n':
                pass
            found = check_whole(path)
            assert found > number
            others = {file.name for file in path.parent.iterdir()} - {path.name}
            assert all(name.startswith(f'.{path.name}.') for name in others)
            moments.add(tuple(sorted(file.name.split('.')[-1] for file in path.parent.iterdir())))
            number = found + 1
        server.stdin.close()
    MANAGER.save_model(mlp(3, 2), path, overwrite=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return moments


def test_a_save_that_is_killed_leaves_a_whole_model(tmp_path):
    kill_saves(tmp_path / 'model', 3)


@pytest.mark.slow
def test_50_saves_that_are_killed_leave_a_whole_model(tmp_path):
    moments = kill_saves(tmp_path / 'model', 50)
    assert any('thinkml-new' in names for names in moments)


SAVE_OFTEN = """
import sys
from tests.models.save_to_kill import KINDS
from thinkml.models import ModelManager
path, first = sys.argv[1], int(sys.argv[2])
ModelManager().save_model(KINDS[0](0), f'{path}-{first}')  # imports all there is
print('ready', flush=True)
sys.stdin.readline()
for number in range(first, first + 30):
    ModelManager().save_model(KINDS[number % 2](number), path, {'number': number}, overwrite=True)
"""


@pytest.mark.slow
def test_two_processes_save_over_each_other_while_others_read(tmp_path):
    path = tmp_path / 'model'
    MANAGER.save_model(KINDS[0](0), path, {'number': 0})
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    seen = set()
    with contextlib.ExitStack() as stack:
        saving = []
        for first in (100, 200):
            command = [sys.executable, '-c', SAVE_OFTEN, path, str(first)]
            pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
            process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
            saving.append(stack.enter_context(process))
            stack.callback(process.kill)
        assert [process.stdout.readline() for process in saving] == ['ready\n'] * 2
        for process in saving:
            process.stdin.write('go\n')
            process.stdin.flush()
        while any(process.poll() is None for process in saving):
            model = MANAGER.load_model(path)
            states = map(np.asarray, jax.tree.leaves(nnx.state(model)))
            (number,) = {float(number) for state in states for number in state.flat}
            assert type(model) is KINDS[int(number) % 2]
            seen.add(number)
        for process in saving:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
    assert len(seen) > 2 and check_whole(path) in (129, 229)
    assert {file.name for file in tmp_path.iterdir()} == {'model', 'model-100', 'model-200'}
