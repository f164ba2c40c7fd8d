"""Checked arrays onto the device."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from thinkml.core import DeviceData
from thinkml.data.rows import Rows
from thinkml.errors import DataError

# Room that parameters, optimizer state and activations need beside the data.
_RESERVED_SHARE = 0.3
_MEMINFO = Path('/proc/meminfo')
_CGROUP_LIMIT = Path('/sys/fs/cgroup/memory.max')


def place(
    x: Any, y: np.ndarray, rows: np.ndarray | None = None, weight: np.ndarray | None = None
) -> DeviceData:
    """Puts a data set on the device.

    Arrays are padded to a capacity at most 1/64 larger, so that data sets of nearly equal length
    (the folds of a cross-validation) share compiled programs.

    Args:
        x: inputs ``[rows, ...]``: an array, or a dict or tuple of them.
        y: encoded targets ``[rows, ...]``.
        rows: the rows to use; None for all.
        weight: float32 ``[rows]``, what each example's loss counts; None where all count 1.

    Raises:
        DataError: if the arrays don't fit into the device's memory.
    """
    check_fits({'x': x, 'y': y})
    count = capacity(len(y))
    used = np.arange(len(y)) if rows is None else rows

    def put(array: np.ndarray) -> jax.Array:
        return jax.device_put(padded(array, count))

    return DeviceData(
        x=jax.tree.map(put, x),
        y=put(y),
        rows=put(used.astype(np.int32)),
        num_rows=jax.device_put(np.int32(len(used))),
        weight=None if weight is None else put(weight),
    )


def select(data: DeviceData, rows: np.ndarray) -> DeviceData:
    """Another part of a placed data set; the arrays are shared."""
    return data.replace(
        rows=jax.device_put(padded(rows.astype(np.int32), len(data.rows))),
        num_rows=jax.device_put(np.int32(len(rows))),
    )


def capacity(num_rows: int) -> int:
    """``num_rows`` rounded up to seven significant bits."""
    granularity = 2 ** max(0, num_rows.bit_length() - 7)
    return -(-num_rows // granularity) * granularity


def device_budget(limit: int | None = None) -> int | None:
    """Bytes that data may take on the device; None where nobody says and nothing limits them.

    What is free now, less what parameters, optimizer state and activations need.

    Args:
        limit: the most it may be; None for no such limit.
    """
    free = _free_bytes(jax.devices()[0])
    budgets = [limit, None if free is None else int(free * (1 - _RESERVED_SHARE))]
    return min((budget for budget in budgets if budget is not None), default=None)


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
        free = _free_bytes(jax.devices()[0]) or 0
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
    padded = np.empty((count, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    padded[len(array) :] = array[0]
    return padded
