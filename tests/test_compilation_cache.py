"""Tests of the compiled programs that processes share on disk."""

import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from thinkml import compilation_cache
from thinkml.compilation_cache import Programs, prune
from thinkml.environment import user_cache_directory

ROOT = Path(__file__).parents[1]
SETTINGS: Any = jax.config

# Prints the bits of the trained parameters, and the numbers of programs found and not found.
TRAIN = """
import hashlib, jax, jax.numpy as jnp
counts = {f'/jax/compilation_cache/cache_{name}': 0 for name in ('hits', 'misses')}
def count(event, **_):
    if event in counts:
        counts[event] += 1
jax.monitoring.register_event_listener(count)
def report(bits):
    print(hashlib.sha256(bits).hexdigest(), *counts.values())
    counts.update(dict.fromkeys(counts, 0))
import thinkml.core
THEN
@jax.jit
def train(w, x):
    def step(w, _):
        return w - 0.1 * jax.grad(lambda w: jnp.mean((jnp.tanh(x @ w) - 1) ** 2))(w), None
    return jax.lax.scan(step, w, length=20)[0]
key = jax.random.key(0)
w = train(jax.random.normal(key, (8, 4)), jax.random.normal(key, (64, 8)))
report(w.tobytes())
"""

# Then the same for a full training run.
TRAIN_A_MODEL = """
import numpy as np
from flax import nnx
from thinkml.training import ModelTrainer, TrainingConfig
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu,
                       nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs))
X = np.random.default_rng(0).normal(size=(90, 4))
history = ModelTrainer(TrainingConfig(epochs=3, validation_split=0.2)).train(
    model, X, np.arange(90) % 3, progress=False)
arrays = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))))
report(b''.join(np.asarray(array).tobytes() for array in arrays) + repr(history['loss']).encode())
"""


def environment(cache, **variables):
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != 'THINKML_COMPILATION_CACHE' and not name.startswith('JAX_')
    }
    # The cache directory of each platform.
    places = dict.fromkeys(('XDG_CACHE_HOME', 'LOCALAPPDATA', 'HOME'), str(cache))
    return kept | places | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'} | variables


def start(cache, then='', also='', **variables):
    return subprocess.Popen(
        [sys.executable, '-W', 'error', '-c', TRAIN.replace('THEN', then) + also], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(cache, **variables),
    )  # fmt: skip


def outcomes(process):
    """Returns the bits, programs found and programs not found of each run, without warnings."""
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, '')
    lines = [line.split() for line in output.splitlines()]
    return [(bits, int(found), int(missed)) for bits, found, missed in lines]


def outcome(process):
    (alone,) = outcomes(process)
    return alone


def files(cache):
    return sorted(path for path in Path(cache).rglob('*') if path.is_file())


def is_whole(file):
    entry = file.read_bytes()
    return hashlib.sha256(entry[32:]).digest() == entry[:32]


@pytest.fixture(scope='module')
def bits_without_cache(tmp_path_factory):
    """Returns the bits of both training runs without a cache."""
    place = tmp_path_factory.mktemp('off')
    found = outcomes(start(place, also=TRAIN_A_MODEL, THINKML_COMPILATION_CACHE='0'))
    assert [counts for _, *counts in found] == [[0, 0], [0, 0]]
    assert files(place) == []
    return [bits for bits, *_ in found]


@pytest.fixture(scope='module')
def without_cache(bits_without_cache):
    return bits_without_cache[0]


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
    """Returns a directory that two processes filled together, its files, and their results."""
    place = tmp_path_factory.mktemp('filled')
    found = [outcome(process) for process in [start(place), start(place)]]
    return place, files(place), found


@pytest.fixture(scope='module')
def second(filled):
    """Returns the results of the next process, which also trains a model."""
    return outcomes(start(filled[0], also=TRAIN_A_MODEL))


def test_the_tests_have_a_directory_of_their_own():
    importlib.import_module('thinkml.core')  # switches it on
    directory = SETTINGS.jax_compilation_cache_dir
    if sys.platform == 'darwin':
        assert directory is None
    else:
        assert Path(directory).is_relative_to(os.environ['XDG_CACHE_HOME'])


@pytest.mark.compiled
def test_processes_that_start_at_once_share_the_directory(filled, without_cache):
    place, programs, processes = filled
    assert all(map(is_whole, programs))
    for bits, found, missed in processes:
        assert bits == without_cache
        assert found + missed == len(programs) > 1
    # Only the user can access them.
    directories = [path for path in place.rglob('*') if path.is_dir() and path.name != 'thinkml']
    assert {path.stat().st_mode & 0o777 for path in directories} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in programs} == {0o600}


@pytest.mark.compiled
def test_a_second_process_finds_every_program_and_computes_the_same_bits(
    second, filled, without_cache
):
    assert second[0] == (without_cache, len(filled[1]), 0)


@pytest.mark.compiled
def test_a_training_of_cached_programs_gives_the_same_bits(second, filled, bits_without_cache):
    _, (first, found, missed) = second
    _, (again, found_again, missed_again) = outcomes(start(filled[0], also=TRAIN_A_MODEL))
    assert missed > 8
    assert (found_again, missed_again) == (found + missed, 0)
    assert bits_without_cache[1] == first == again


@pytest.mark.compiled
def test_damaged_programs_are_compiled_and_written_anew(filled, without_cache):
    place, programs, _ = filled
    before = files(place)
    for number, file in enumerate(programs):
        entry = bytearray(file.read_bytes())
        entry[len(entry) // 2] ^= 1
        file.write_bytes([b'', entry[: len(entry) // 2], os.urandom(100), entry][number % 4])
    assert outcome(start(place)) == (without_cache, 0, len(programs))
    assert files(place) == before
    assert all(map(is_whole, programs))


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_directory_that_the_user_set_is_used_instead(when, tmp_path, without_cache):
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    if when == 'before':
        settings = {'JAX_COMPILATION_CACHE_DIR': str(theirs)}
        settings['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
        process = start(ours, **settings)
    else:
        then = f'jax.config.update("jax_compilation_cache_dir", {str(theirs)!r})'
        process = start(ours, then=then)
    bits, _, missed = outcome(process)
    assert bits == without_cache
    assert files(ours) == []
    assert len(files(theirs)) == missed > 1


@pytest.fixture
def switched_off(monkeypatch):
    """Resets JAX to its state before the cache was switched on."""
    monkeypatch.delenv('THINKML_COMPILATION_CACHE', raising=False)
    of_the_tests = SETTINGS.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    yield
    jax.config.update('jax_compilation_cache_dir', of_the_tests)


def no_place(why, tmp_path):
    place = tmp_path / 'cache'
    if why == 'a file is there':
        place.write_text('')
    else:
        (place / 'thinkml' / 'compiled').mkdir(parents=True)
        (place / 'thinkml' / 'compiled').chmod(0o777)
    return place


@pytest.mark.parametrize('why', ['a file is there', 'others can write'])
def test_a_place_that_is_no_good_is_not_used(why, tmp_path, switched_off, monkeypatch):
    place = no_place(why, tmp_path)
    monkeypatch.setattr(compilation_cache, 'user_cache_directory', lambda: place)
    before = sorted(tmp_path.rglob('*'))
    assert compilation_cache.switch_on() is None
    assert SETTINGS.jax_compilation_cache_dir is None
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.slow
@pytest.mark.parametrize('why', ['a file is there', 'others can write'])
def test_a_process_without_a_place_computes_the_same_bits(why, tmp_path, without_cache):
    process = start(no_place(why, tmp_path), HOME=str(tmp_path))
    before = files(tmp_path)
    assert outcome(process) == (without_cache, 0, 0)
    assert files(tmp_path) == before


def test_where_jax_is_told_to_keep_nothing_nothing_is_kept(switched_off):
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        assert compilation_cache.switch_on() is None
        assert SETTINGS.jax_compilation_cache_dir is None
    finally:
        jax.config.update('jax_enable_compilation_cache', True)


@pytest.mark.slow
def test_a_process_that_keeps_nothing_computes_the_same_bits(tmp_path, without_cache):
    assert outcome(start(tmp_path, JAX_ENABLE_COMPILATION_CACHE='0')) == (without_cache, 0, 0)
    assert files(tmp_path) == []


def test_a_user_without_a_home_has_no_place(switched_off, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', 'not/absolute')
    monkeypatch.delenv('LOCALAPPDATA', raising=False)

    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(Path, 'home', no_home)
    assert compilation_cache.switch_on() is None
    assert SETTINGS.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
    ('platform', 'place'),
    [('linux', '.cache'), ('darwin', 'Library/Caches'), ('win32', 'AppData/Local')],
)
def test_each_platform_has_its_place(platform, place, monkeypatch, tmp_path):
    for name in ('XDG_CACHE_HOME', 'LOCALAPPDATA'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, 'platform', platform)
    monkeypatch.setattr(Path, 'home', lambda: tmp_path)
    assert user_cache_directory() == tmp_path / place


def test_other_processors_have_directories_of_their_own(monkeypatch):
    here = compilation_cache._machine()
    assert compilation_cache._machine() == here
    monkeypatch.setattr(compilation_cache, '_first_processor', lambda: iter(['flags: avx512f\n']))
    assert compilation_cache._machine() != here


def own(tmp_path):
    """Returns a directory whose parent, which counts towards the size, no other test uses."""
    directory = tmp_path / 'machine'
    directory.mkdir()
    return directory


def test_programs_come_back_as_they_were_put(tmp_path):
    programs = Programs(own(tmp_path))
    assert programs.get('jit_f-1') is None
    programs.put('jit_f-1', b'one')
    programs.put('jit_f-2', b'two')
    programs.put('jit_f-2', b'another')
    assert (programs.get('jit_f-1'), programs.get('jit_f-2')) == (b'one', b'another')
    programs.put(f'jit_{"long" * 100}-3', b'three')
    assert programs.get(f'jit_{"long" * 100}-3') == b'three'


def test_a_directory_that_was_removed_is_made_again(tmp_path):
    programs = Programs(own(tmp_path) / 'gone')
    programs.put('jit_f-1', b'one')
    assert programs.get('jit_f-1') == b'one'
    assert (tmp_path / 'machine' / 'gone').stat().st_mode & 0o777 == 0o700


def test_a_full_disk_ends_the_writing_and_nothing_else(tmp_path, monkeypatch):
    programs = Programs(own(tmp_path))
    programs.put('before', b'one')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    programs.put('then', b'two')
    monkeypatch.undo()
    programs.put('later', b'three')
    assert programs.get('before') == b'one'
    assert files(tmp_path) == [tmp_path / 'machine' / 'before']


def test_runs_of_several_processes_keep_nothing(tmp_path, monkeypatch):
    programs = Programs(own(tmp_path))
    programs.put('alone', b'one')
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    programs.put('together', b'two')
    assert programs.get('alone') is None
    assert files(tmp_path) == [tmp_path / 'machine' / 'alone']


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    mine = tmp_path / 'mine'
    other = tmp_path / 'another machine'
    for directory in (mine, other):
        directory.mkdir()
    for age, file in enumerate([mine / 'new', mine / 'used', other / 'old', mine / 'oldest']):
        Programs(file.parent).put(file.name, bytes(100 - 32))
        os.utime(file, (1e9 - age, 1e9 - age))
    prune(tmp_path, 400)
    assert len(files(tmp_path)) == 4
    assert Programs(mine).get('used') is not None  # makes it the most recently used
    os.utime(mine / 'new', (0, 0))
    prune(tmp_path, 399)
    assert set(files(tmp_path)) == {mine / 'used', other / 'old'}


def test_the_size_is_bounded(tmp_path):
    directory = tmp_path / 'machine'
    directory.mkdir()
    for number in range(100):
        Programs(directory, max_bytes=1600).put(str(number), bytes(100 - 32))
        assert sum(file.stat().st_size for file in files(tmp_path)) <= 1700
    programs = Programs(directory, max_bytes=1600)
    for number in range(100):
        programs.put(str(number), bytes(100 - 32))
        assert sum(file.stat().st_size for file in files(tmp_path)) <= 1900
