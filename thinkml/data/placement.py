"""Checked arrays onto the device."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from thinkml.core import DeviceData
from thinkml.errors import DataError

# Room that parameters, optimizer state and activations need beside the data.
_RESERVED_SHARE = 0.3
_MEMINFO = Path('/proc/meminfo')
_CGROUP_LIMIT = Path('/sys/fs/cgroup/memory.max')


def place(x: np.ndarray, y: np.ndarray, rows: np.ndarray | None = None) -> DeviceData:
    """Puts a data set on the device.

    Arrays are padded to a capacity at most 1/64 larger, so that data sets of nearly equal length
    (the folds of a cross-validation) share compiled programs.

    Args:
        x: inputs ``[rows, ...]``.
        y: encoded targets ``[rows, ...]``.
        rows: the rows to use; None for all.

    Raises:
        DataError: if the arrays don't fit into the device's memory.
    """
    check_fits({'x': x, 'y': y})
    count = capacity(len(x))
    used = np.arange(len(x)) if rows is None else rows
    return DeviceData(
        x=jax.device_put(_padded(x, count)),
        y=jax.device_put(_padded(y, count)),
        rows=jax.device_put(_padded(used.astype(np.int32), count)),
        num_rows=jax.device_put(np.int32(len(used))),
    )


def select(data: DeviceData, rows: np.ndarray) -> DeviceData:
    """Another part of a placed data set; the arrays are shared."""
    return data.replace(
        rows=jax.device_put(_padded(rows.astype(np.int32), len(data.rows))),
        num_rows=jax.device_put(np.int32(len(rows))),
    )


def capacity(num_rows: int) -> int:
    """``num_rows`` rounded up to seven significant bits."""
    granularity = 2 ** max(0, num_rows.bit_length() - 7)
    return -(-num_rows // granularity) * granularity


def check_fits(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a `DataError` if the arrays together leave no room for the training itself.

    Args:
        arrays: by argument name.
    """
    free = _free_bytes(jax.devices()[0])
    needed = sum(array.nbytes for array in arrays.values())
    if free is not None and needed > free * (1 - _RESERVED_SHARE):
        raise DataError(
            f'{", ".join(arrays)}: got {needed / 2**20:,.0f} MiB of data, but the device has '
            f'{free / 2**20:,.0f} MiB free, of which {_RESERVED_SHARE:.0%} is kept for training. '
            'Pass fewer rows, or a narrower dtype (float16, uint8).'
        )


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


def _padded(array: np.ndarray, count: int) -> np.ndarray:
    """The array with its first row repeated up to ``count`` rows."""
    if len(array) == count:
        return array
    padded = np.empty((count, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    padded[len(array) :] = array[0]
    return padded
