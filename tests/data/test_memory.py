"""Memory: the number of copies of a data set while it is put on the device."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkml.data import open_rows, place
from thinkml.errors import DataError

ROWS = 40_003  # not a capacity, so that the placed arrays are padded

SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import jax, numpy as np
from thinkml.data import open_rows, place

def private_bytes():
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('RssAnon'))

kind, path, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
dtype = np.float64 if '64' in kind else np.float32
if 'memmap' in kind:
    x = np.lib.format.open_memmap(path, 'w+', dtype, (rows, 500))
    x[:] = 1
elif kind == 'jax':
    x = jax.numpy.ones((rows, 500)).block_until_ready()
else:
    x = np.ones((rows, 500), dtype)
y = np.zeros(rows, np.int32)
place(open_rows(np.array(x[:130])), y[:130])
most, done = [0], threading.Event()
before = private_bytes()

def watch():
    while not done.is_set():
        most[0] = max(most[0], private_bytes())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
data = place(open_rows(x), y)
jax.block_until_ready(data)
most[0] = max(most[0], private_bytes())
done.set()
watcher.join()
after = []
for _ in range(30):  # another thread frees temporary arrays, a little later
    time.sleep(0.01)
    after.append(private_bytes())
print(json.dumps([most[0] - before, min(after) - before, data.x.nbytes]))
"""


@pytest.mark.compiled
@pytest.mark.skipif(sys.platform != 'linux', reason='asks Linux for the memory of a process')
@pytest.mark.parametrize(
    ('kind', 'copies'),
    [
        ('float32', 1),
        ('jax', 0),
        *(
            pytest.param(kind, 1, marks=pytest.mark.slow)
            for kind in ('float64', 'memmap of float32', 'memmap of float64')
        ),
    ],
)
def test_the_most_memory_on_the_way_to_the_device(kind, copies, tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, kind, str(tmp_path / 'x.npy'), str(ROWS)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    most, after, num_bytes = json.loads(done.stdout)
    assert most < (copies + 0.5) * num_bytes
    assert abs(after / num_bytes - copies) < 0.2


def pointer(array):
    return array.unsafe_buffer_pointer()


def test_an_array_on_the_device_is_taken_as_it_is():
    x, y = jnp.arange(3.0 * 203).reshape(203, 3), np.zeros(203, np.int32)
    data = place(open_rows(x), y)
    assert pointer(data.x) == pointer(x)
    assert data.x.shape == x.shape and len(data.rows) > len(x)
    several = place(open_rows({'a': x, 'b': np.arange(203, dtype=np.int32)}), y)
    assert pointer(several.x['a']) == pointer(x)
    assert np.array_equal(several.x['b'][:203], np.arange(203))


@pytest.mark.parametrize('rows', [slice(3, 9), np.array([5, 0, 5])], ids=str)
def test_rows_of_an_array_on_the_device(rows):
    x = np.arange(40.0, dtype=np.float32).reshape(10, 4)
    indices = np.arange(10)[rows]
    taken = open_rows(jnp.asarray(x)).take(indices)
    assert isinstance(taken, np.ndarray)
    np.testing.assert_array_equal(taken, x[rows])


def test_an_array_on_the_device_is_checked_as_others_are():
    with pytest.raises(DataError, match=r'1 NaN and 0 infinite values of 4, the first at index'):
        open_rows(jnp.array([[1.0, 2.0], [jnp.nan, 3.0]]))


@pytest.mark.parametrize('dtype', [np.float64, np.int64, np.uint8])
def test_what_is_placed_is_what_was_passed(dtype):
    x = np.random.default_rng(0).integers(0, 100, (777, 5)).astype(dtype)
    data = place(open_rows(x), np.zeros(777, np.int32))
    np.testing.assert_array_equal(data.x[:777], x)
    np.testing.assert_array_equal(data.x[777:], np.broadcast_to(x[0], (len(data.x) - 777, 5)))


def test_conversion_needs_no_copy_of_the_whole():
    x = np.zeros((1000, 8))
    rows = open_rows(x)
    x[3] = 7  # the rows are a view of the passed array, converted as they are read
    assert rows.arrays is None and rows.take(np.array([3]))[0, 0] == 7
    assert rows.take(np.arange(4)).dtype == np.float32


def test_what_is_placed_is_committed_to_no_device():
    """Otherwise the state is committed from its second step on, and the step compiled twice."""
    x = jax.device_put(np.ones((203, 3), np.float32), jax.devices()[0])
    assert x.committed
    for inputs in (x, jnp.ones((203, 3)), np.ones((203, 3))):
        assert not place(open_rows(inputs), np.zeros(203, np.int32)).x.committed
