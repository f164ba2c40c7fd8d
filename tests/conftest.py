import atexit
import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

# All processes share one compilation cache: pytest's workers, processes that tests start, and later
# runs. It is not the developer's cache. `make clean` removes it.
if 'THINKML_TEST_RUN' not in os.environ:
    _run_directory = tempfile.TemporaryDirectory(
        prefix='thinkml-tests-', ignore_cleanup_errors=True
    )
    atexit.register(_run_directory.cleanup)
    os.environ['THINKML_TEST_RUN'] = _run_directory.name
    _programs = Path(__file__).parents[1] / '.pytest_cache' / 'programs'
    _programs.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _directory in ('XDG_CACHE_HOME', 'LOCALAPPDATA'):
        os.environ[_directory] = str(_programs)
    for _setting in [name for name in os.environ if 'COMPILATION_CACHE' in name]:
        del os.environ[_setting]
    if sys.platform == 'darwin':  # the cache directory can't be changed there
        os.environ['THINKML_COMPILATION_CACHE'] = '0'

# Each core runs a test process already, and OpenBLAS's idle threads would take processor time.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import matplotlib

matplotlib.use('agg')

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

from tests.run_time import RunTime

# Shells start background processes with Ctrl-C ignored, but tests raise it.
signal.signal(signal.SIGINT, signal.default_int_handler)
_compiles = [0]


def _count_compile(event: str, duration: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
        _compiles[0] += 1


jax.monitoring.register_event_duration_secs_listener(_count_compile)


def pytest_addoption(parser):
    parser.addoption(
        '--budgets', action='store_true', help='fail when a file takes more time than it may'
    )


def pytest_configure(config):
    # The tests and the libraries have a million objects, and tracing creates many more. With the
    # default thresholds, garbage collection takes a twentieth of the run.
    gc.set_threshold(20_000, 20, 50)
    config.pluginmanager.register(RunTime(config), 'run-time')


def pytest_runtest_logreport(report):
    if (
        report.when == 'call' and report.duration > 30
    ):  # shows the slow tests of a run that was cut off
        print(f'\n{report.nodeid} took {report.duration:.0f} s')


@pytest.fixture(scope='module', autouse=True)
def _forget_compiled_programs():
    # XLA maps each program's code into memory. The programs of all tests exceed the number of maps
    # that Linux allows a process (vm.max_map_count), and end it with a segmentation fault.
    yield
    from thinkml.core.xla.jit import forget_programs

    forget_programs()
    jax.clear_caches()


@pytest.fixture
def count_compiles(monkeypatch):
    """Returns a function that counts the programs XLA compiles while another function runs.

    Programs from earlier tests do not count, because JAX's caches are not cleared in between.
    """
    monkeypatch.setattr('thinkml.core.xla.jit.MOST_COMPILED', float('inf'))

    def count(function, *args, **kwargs) -> int:
        before = _compiles[0]
        function(*args, **kwargs)
        return _compiles[0] - before

    return count


@pytest.fixture(scope='session')
def digits():
    """Returns X_train, X_test, y_train, y_test of scikit-learn's digits, scaled to 0..1."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(
        (X / 16).astype(np.float32), y, test_size=0.2, random_state=0, stratify=y
    )


@pytest.fixture(scope='session')
def breast_cancer():
    """Returns X_train, X_test, y_train, y_test of the breast-cancer data, standardised."""
    X, y = load_breast_cancer(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    return train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
