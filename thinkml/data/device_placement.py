"""Device placement: puts checked arrays into device memory, and measures that memory."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from thinkml.core import DeviceData
from thinkml.core.parallel.multiprocess import all_min
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout
from thinkml.data.rows import Rows
from thinkml.errors import DataError
from thinkml.typing import PyTree

# The fraction of free memory kept for parameters, optimizer state and activations.
_RESERVED_FRACTION = 0.3
# XLA uses host memory without a copy only if it is aligned to this many bytes.
_ALIGNMENT = 64
# Rows that must be read or converted are copied in chunks of this size.
_CHUNK_BYTES = 4 * 2**20
_MEMINFO = Path('/proc/meminfo')
_CGROUP_LIMIT = Path('/sys/fs/cgroup/memory.max')


def place(
    x: Rows | PyTree,
    y: PyTree,
    rows: np.ndarray | None = None,
    weight: PyTree = None,
    layout: Layout = ONE_DEVICE,
    *,
    parted: bool = False,
) -> DeviceData:
    """Puts a data set on the device, or on several devices.

    Arrays are padded to a capacity at most 1/64 larger, so that data sets of nearly equal length
    (the folds of a cross-validation) share compiled programs. Arrays already on the device are
    used directly: they are not copied, and so not padded. On a CPU, the device uses the padded
    array without another copy.

    Args:
        x: inputs ``[rows, ...]``: an array, a dict or tuple of them, or `Rows`.
        y: encoded targets ``[rows, ...]``, or a dict of them by head.
        rows: the rows to use; None for all.
        weight: float32 ``[rows]``, the weight of each example's loss, or a dict by head; None if
            all are 1.
        layout: the devices.
        parted: True to shard the rows over the devices, False to replicate them. With True, each
            process reads only the rows of its devices.

    Raises:
        DataError: if the arrays don't fit into the device's memory.
    """
    if layout.mesh is None:
        check_fits({'x': x, 'y': y})
    num_rows = len(jax.tree.leaves(y)[0])
    count = capacity(num_rows)
    used = np.arange(num_rows) if rows is None else rows
    read = functools.partial(_read, x, y, weight)
    parted = parted and layout.num_devices > 1
    if parted:
        positions = np.arange(-(-count // layout.num_devices) * layout.num_devices)
        arrays = put_parts(read, positions, num_rows, layout)
    else:
        inputs = x.all() if isinstance(x, Rows) and x.arrays is not None else x
        inputs = _read_padded(inputs, count) if isinstance(inputs, Rows) else inputs
        arrays = jax.tree.map(
            lambda array: layout.put(
                array if isinstance(array, jax.Array) else padded(array, count)
            ),
            (inputs, y, weight),
        )
    x_placed, y_placed, weight_placed = arrays
    return DeviceData(
        x=x_placed, y=y_placed, weight=weight_placed,
        rows=layout.put(padded(used.astype(np.int32), count)),
        num_rows=layout.put(np.int32(len(used))),
        parted=layout.sharded_rows(aligned=False) if parted else None,
    )  # fmt: skip


def _read(
    x: Rows | PyTree, y: PyTree, weight: PyTree, rows: slice | np.ndarray
) -> tuple[PyTree, PyTree, PyTree]:
    if not isinstance(x, Rows):
        x = jax.tree.map(lambda array: array[rows], x)
    elif isinstance(rows, slice):
        x = x.all()
    else:
        x = x.take(rows)
    return x, *jax.tree.map(lambda array: array[rows], (y, weight))


def put_parts(
    read: Callable[[np.ndarray], PyTree], positions: np.ndarray, num_rows: int, layout: Layout
) -> PyTree:
    """Shards rows over the devices; each device gets an equal number of them.

    Args:
        read: returns the arrays of some rows, given their positions.
        positions: the positions of the rows, in their order on the devices.
        num_rows: the number of rows; larger positions are padding.
        layout: the devices.

    Returns:
        the arrays ``[len(positions), ...]``; this process has read only the shards of its devices.
    """

    def shard_of(device: Any, part: slice) -> PyTree:
        of_device = positions[part]
        existing = of_device[of_device < num_rows]
        arrays = read(existing if len(existing) else np.zeros(1, np.int64))
        return jax.tree.map(
            lambda leaf: jax.device_put(padded(leaf, len(of_device)), device), arrays
        )

    def global_array(*shards: jax.Array) -> jax.Array:
        shape = (len(positions), *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, layout.rows, list(shards))

    slices: Any = layout.rows.addressable_devices_indices_map((len(positions),))
    shards = (shard_of(device, part) for device, (part,) in slices.items())
    return jax.tree.map(global_array, *shards)


def select(data: DeviceData, rows: np.ndarray, layout: Layout = ONE_DEVICE) -> DeviceData:
    """Returns a placed data set with other rows in use; the arrays are shared."""
    return data.replace(
        rows=layout.put(padded(rows.astype(np.int32), len(data.rows))),
        num_rows=layout.put(np.int32(len(rows))),
    )


def capacity(num_rows: int) -> int:
    """Returns ``num_rows`` rounded up to seven significant bits."""
    granularity = 2 ** max(0, num_rows.bit_length() - 7)
    return -(-num_rows // granularity) * granularity


def device_budget(limit: int | None = None, layout: Layout = ONE_DEVICE) -> int | None:
    """Returns the bytes that data may take on a device; None if neither is known nor limited.

    This is the memory free now, less a reserve for parameters, optimizer state and activations.

    Args:
        limit: the maximum; None for no limit.
        layout: the devices; the one with the least free memory counts.
    """
    free = free_bytes(layout)
    budgets = [limit, None if free is None else int(free * (1 - _RESERVED_FRACTION))]
    return min((budget for budget in budgets if budget is not None), default=None)


def free_bytes(layout: Layout = ONE_DEVICE) -> int | None:
    """Returns the free bytes on each device; None if the device does not report them.

    Args:
        layout: the devices; the one with the least free memory counts.
    """
    if layout.device_bytes is not None:
        return layout.device_bytes
    devices = layout.local_devices
    all_free = [free for device in devices if (free := _free_bytes(device)) is not None]
    # All devices that are simulated on a CPU share its memory.
    sharing = len(devices) if devices[0].platform == 'cpu' else 1
    free = min(all_free) // sharing if all_free else None
    return all_min(free) if layout.spans_processes else free


def fits(num_bytes: int, limit: int | None = None) -> bool:
    """Returns True if data of this size may stay on the device, see `device_budget`."""
    budget = device_budget(limit)
    return budget is None or num_bytes <= budget


def check_fits(arrays: Mapping[str, Rows | PyTree]) -> None:
    """Raises a `DataError` if the arrays together leave no memory for the training itself.

    Args:
        arrays: by argument name; arrays, dicts or tuples of them, or `Rows`.
    """
    needed = sum(map(_num_bytes, arrays.values()))
    if not fits(needed):
        free = _free_bytes(jax.local_devices()[0]) or 0
        raise DataError(
            f'{", ".join(arrays)}: got {needed / 2**20:,.0f} MiB of data, but the device has '
            f'{free / 2**20:,.0f} MiB free and keeps {_RESERVED_FRACTION:.0%} of them for '
            'training. Pass fewer rows, or a narrower dtype (float16, uint8).'
        )


def _num_bytes(values: Rows | PyTree) -> int:
    if isinstance(values, Rows):
        return values.num_bytes
    return sum(leaf.nbytes for leaf in jax.tree.leaves(values))


def _free_bytes(device: Any) -> int | None:
    """Returns the free bytes of a device; None if they are not reported."""
    stats = device.memory_stats()
    if stats and 'bytes_limit' in stats:
        return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
    if device.platform != 'cpu' or not _MEMINFO.exists():
        return None
    # "Available" rightly counts the page cache as free; a container may allow less.
    (available,) = re.findall(r'^MemAvailable: +(\d+) kB', _MEMINFO.read_text(), re.MULTILINE)
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else 'max'
    free = int(available) * 1024
    return free if limit == 'max' else min(free, int(limit))


def padded(array: np.ndarray, count: int) -> np.ndarray:
    """Returns the array with its first row repeated up to ``count`` rows."""
    if len(array) == count:
        return array
    padded = _aligned_empty((count, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    padded[len(array) :] = array[0]
    return padded


def _read_padded(x: Rows, count: int) -> PyTree:
    """Reads all rows in chunks, into arrays padded as by `padded`."""
    arrays = jax.tree.map(lambda leaf: _aligned_empty((count, *leaf.shape[1:]), leaf.dtype), x.spec)
    chunk_rows = max(1, _CHUNK_BYTES * len(x) // max(1, x.num_bytes))
    for first in range(0, len(x), chunk_rows):
        rows = np.arange(first, min(first + chunk_rows, len(x)))
        jax.tree.map(lambda leaf, part, rows=rows: _set(leaf, rows, part), arrays, x.take(rows))
    jax.tree.map(lambda leaf: _set(leaf, np.arange(len(x), count), leaf[0]), arrays)
    return arrays


def _set(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    if len(rows):
        array[rows[0] : rows[-1] + 1] = values


def _aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Returns an uninitialised array that a CPU device can use without another copy."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).reshape(shape)
