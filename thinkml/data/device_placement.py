"""Checked arrays onto the device."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from thinkml.core import DeviceData
from thinkml.core.parallel.multiprocess import all_min
from thinkml.core.parallel.sharding import Layout, ShardedRows, put_global
from thinkml.data.rows import Rows
from thinkml.errors import DataError

# Room that parameters, optimizer state and activations need beside the data.
_RESERVED_SHARE = 0.3
# What XLA asks of the arrays of others.
_ALIGNMENT = 64
# Rows that are converted on their way are converted so much at a time.
_PART_BYTES = 4 * 2**20
_MEMINFO = Path('/proc/meminfo')
_CGROUP_LIMIT = Path('/sys/fs/cgroup/memory.max')


def place(
    x: Any,
    y: np.ndarray,
    rows: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    layout: Layout | None = None,
    *,
    parted: bool = False,
) -> DeviceData:
    """Puts a data set on the device, or on all of them.

    Arrays are padded to a capacity at most 1/64 larger, so that data sets of nearly equal length
    (the folds of a cross-validation) share compiled programs. What is on the device already is
    taken as it is: not copied, and so not padded. On a CPU the padded array is the device's.

    Args:
        x: inputs ``[rows, ...]``: an array, a dict or tuple of them, or `Rows`.
        y: encoded targets ``[rows, ...]``.
        rows: the rows to use; None for all.
        weight: float32 ``[rows]``, what each example's loss counts; None where all count 1.
        layout: the devices, where there are several.
        parted: whether each of them has a part of the rows, and not all. A process then reads no
            others than its devices have.

    Raises:
        DataError: if the arrays don't fit into the device's memory.
    """
    if layout is None:
        check_fits({'x': x, 'y': y})
    count = capacity(len(y))
    used = np.arange(len(y)) if rows is None else rows
    read = functools.partial(_read, x, y, weight)
    if parted and layout is not None:
        positions = np.arange(-(-count // layout.num_devices) * layout.num_devices)
        arrays = put_parts(read, positions, len(y), layout)
    else:
        whole = x.all() if isinstance(x, Rows) and x.arrays is not None else x
        whole = _filled(whole, count) if isinstance(whole, Rows) else whole
        arrays = jax.tree.map(
            lambda array: put(
                array if isinstance(array, jax.Array) else padded(array, count), layout
            ),
            (whole, y, weight),
        )
    x_placed, y_placed, weight_placed = arrays
    return DeviceData(
        x=x_placed, y=y_placed, weight=weight_placed,
        rows=put(padded(used.astype(np.int32), count), layout),
        num_rows=put(np.int32(len(used)), layout),
        parted=ShardedRows(layout.mesh, aligned=False) if parted and layout is not None else None,
    )  # fmt: skip


def _read(x: Any, y: np.ndarray, weight: np.ndarray | None, rows: slice | np.ndarray) -> Any:
    if not isinstance(x, Rows):
        x = jax.tree.map(lambda array: array[rows], x)
    elif isinstance(rows, slice):
        x = x.all()
    else:
        x = x.take(rows)
    return x, y[rows], None if weight is None else weight[rows]


def put(array: Any, layout: Layout | None) -> jax.Array:
    """Puts an array on the device, or on all devices of a layout."""
    return jax.device_put(array) if layout is None else put_global(array, layout.replicated)


def put_parts(
    read: Callable[[np.ndarray], Any], positions: np.ndarray, num_rows: int, layout: Layout
) -> Any:
    """Puts rows on the devices, each of which gets an equal part of them.

    Args:
        read: returns the arrays of some rows, given their positions.
        positions: of the rows, in the order in which they are to lie on the devices.
        num_rows: how many there are; later positions only fill up.
        layout: the devices.

    Returns:
        the arrays ``[len(positions), ...]``, of which this process has read its own parts.
    """

    def part_of(device: Any, part: slice) -> Any:
        wanted = positions[part]
        there = wanted[wanted < num_rows]
        arrays = read(there if len(there) else np.zeros(1, np.int64))
        return jax.tree.map(lambda leaf: jax.device_put(padded(leaf, len(wanted)), device), arrays)

    def whole(*parts: jax.Array) -> jax.Array:
        shape = (len(positions), *parts[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, layout.rows, list(parts))

    places: Any = layout.rows.addressable_devices_indices_map((len(positions),))
    return jax.tree.map(whole, *(part_of(device, part) for device, (part,) in places.items()))


def select(data: DeviceData, rows: np.ndarray, layout: Layout | None = None) -> DeviceData:
    """Another part of a placed data set; the arrays are shared."""
    return data.replace(
        rows=put(padded(rows.astype(np.int32), len(data.rows)), layout),
        num_rows=put(np.int32(len(rows)), layout),
    )


def capacity(num_rows: int) -> int:
    """``num_rows`` rounded up to seven significant bits."""
    granularity = 2 ** max(0, num_rows.bit_length() - 7)
    return -(-num_rows // granularity) * granularity


def device_budget(limit: int | None = None, layout: Layout | None = None) -> int | None:
    """Bytes that data may take on a device; None where nobody says and nothing limits them.

    What is free now, less what parameters, optimizer state and activations need.

    Args:
        limit: the most it may be; None for no such limit.
        layout: the devices, where there are several; the one with the least counts.
    """
    free = free_bytes(layout)
    budgets = [limit, None if free is None else int(free * (1 - _RESERVED_SHARE))]
    return min((budget for budget in budgets if budget is not None), default=None)


def free_bytes(layout: Layout | None = None) -> int | None:
    """Bytes that can still be taken on each device; None where nobody says.

    Args:
        layout: the devices, where there are several; the one with the least counts.
    """
    devices = jax.local_devices()[:1] if layout is None else layout.mesh.local_devices
    frees = [free for device in devices if (free := _free_bytes(device)) is not None]
    # All devices that are simulated on a CPU share its memory.
    shares = len(devices) if devices[0].platform == 'cpu' else 1
    free = min(frees) // shares if frees else None
    return free if layout is None else all_min(free)


def fits(num_bytes: int, limit: int | None = None) -> bool:
    """Whether data of this size may stay on the device, see `device_budget`."""
    budget = device_budget(limit)
    return budget is None or num_bytes <= budget


def check_fits(arrays: Mapping[str, Any]) -> None:
    """Raises a `DataError` if the arrays together leave no room for the training itself.

    Args:
        arrays: by argument name; arrays, dicts or tuples of them, or `Rows`.
    """
    needed = sum(map(_num_bytes, arrays.values()))
    if not fits(needed):
        free = _free_bytes(jax.local_devices()[0]) or 0
        raise DataError(
            f'{", ".join(arrays)}: got {needed / 2**20:,.0f} MiB of data, but the device has '
            f'{free / 2**20:,.0f} MiB free, of which {_RESERVED_SHARE:.0%} is kept for training. '
            'Pass fewer rows, or a narrower dtype (float16, uint8).'
        )


def _num_bytes(values: Any) -> int:
    if isinstance(values, Rows):
        return values.num_bytes
    return sum(leaf.nbytes for leaf in jax.tree.leaves(values))


def _free_bytes(device: Any) -> int | None:
    """Memory that can still be taken; None where nobody says."""
    stats = device.memory_stats()
    if stats and 'bytes_limit' in stats:
        return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
    if device.platform != 'cpu' or not _MEMINFO.exists():
        return None
    # "Available" counts the page cache as free, which it is; a container may allow less.
    (available,) = re.findall(r'^MemAvailable: +(\d+) kB', _MEMINFO.read_text(), re.MULTILINE)
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else 'max'
    free = int(available) * 1024
    return free if limit == 'max' else min(free, int(limit))


def padded(array: np.ndarray, count: int) -> np.ndarray:
    """Returns the array with its first row repeated up to ``count`` rows."""
    if len(array) == count:
        return array
    padded = _room((count, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    padded[len(array) :] = array[0]
    return padded


def _filled(x: Rows, count: int) -> Any:
    """The same of rows that are read or converted, a part at a time."""
    room = jax.tree.map(lambda leaf: _room((count, *leaf.shape[1:]), leaf.dtype), x.spec)
    at_once = max(1, _PART_BYTES * len(x) // max(1, x.num_bytes))
    for first in range(0, len(x), at_once):
        rows = np.arange(first, min(first + at_once, len(x)))
        jax.tree.map(lambda leaf, part, rows=rows: _set(leaf, rows, part), room, x.take(rows))
    jax.tree.map(lambda leaf: _set(leaf, np.arange(len(x), count), leaf[0]), room)
    return room


def _set(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    if len(rows):
        array[rows[0] : rows[-1] + 1] = values


def _room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled, where a CPU device can take it without another copy."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).reshape(shape)
