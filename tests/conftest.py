import atexit
import os
import signal
import sys
import tempfile

# What one process of a run compiles the others find: pytest's workers, and what tests start.
# Nothing is written into the developer's cache, and nothing is left of an earlier run.
if 'THINKML_TEST_RUN' not in os.environ:
    _place = tempfile.TemporaryDirectory(prefix='thinkml-tests-', ignore_cleanup_errors=True)
    atexit.register(_place.cleanup)
    for _directory in ('THINKML_TEST_RUN', 'XDG_CACHE_HOME', 'LOCALAPPDATA'):
        os.environ[_directory] = _place.name
    for _setting in [name for name in os.environ if 'COMPILATION_CACHE' in name]:
        del os.environ[_setting]
    if sys.platform == 'darwin':  # where the cache has one place
        os.environ['THINKML_COMPILATION_CACHE'] = '0'

import matplotlib

matplotlib.use('agg')

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

# Shells start what runs in the background with Ctrl-C ignored; tests raise it.
signal.signal(signal.SIGINT, signal.default_int_handler)
_compiles = [0]


def _count_compile(event: str, duration: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
        _compiles[0] += 1


jax.monitoring.register_event_duration_secs_listener(_count_compile)


def pytest_runtest_logreport(report):
    if report.when == 'call' and report.duration > 30:  # what a run that was cut off spent time on
        print(f'\n{report.nodeid} took {report.duration:.0f} s')


@pytest.fixture(scope='module', autouse=True)
def _forget_compiled_programs():
    # XLA maps each program's code into memory; those of all the tests are more maps than Linux
    # gives one process (vm.max_map_count), which ends it with a segmentation fault.
    yield
    from thinkml.core.jit import forget_programs

    forget_programs()
    jax.clear_caches()


@pytest.fixture
def count_compiles():
    """A function that says how many programs XLA compiled while another one ran."""

    def count(function, *args, **kwargs) -> int:
        before = _compiles[0]
        function(*args, **kwargs)
        return _compiles[0] - before

    return count


@pytest.fixture(scope='session')
def digits():
    """X_train, X_test, y_train, y_test of scikit-learn's digits, scaled to 0..1."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(
        (X / 16).astype(np.float32), y, test_size=0.2, random_state=0, stratify=y
    )


@pytest.fixture(scope='session')
def breast_cancer():
    """X_train, X_test, y_train, y_test of the breast-cancer data, standardised."""
    X, y = load_breast_cancer(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    return train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
