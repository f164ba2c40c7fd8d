"""Checked arrays onto the device."""

import os
from typing import Any

import jax
import numpy as np

from thinkml.core import DeviceData
from thinkml.errors import DataError

# Room that parameters, optimizer state and activations need beside the data.
_RESERVED_SHARE = 0.3


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
    check_fits(x.nbytes + y.nbytes)
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


def check_fits(num_bytes: int) -> None:
    """Raises a `DataError` if that much data leaves no room for the training itself."""
    free = _free_bytes(jax.devices()[0])
    if free is not None and num_bytes > free * (1 - _RESERVED_SHARE):
        raise DataError(
            f'X_train: got {num_bytes / 2**30:.2f} GiB of data, but the device has '
            f'{free / 2**30:.2f} GiB free, of which {_RESERVED_SHARE:.0%} is kept for training. '
            'Pass fewer rows, or a narrower dtype (float16, uint8).'
        )


def _free_bytes(device: Any) -> int | None:
    stats = device.memory_stats()
    if stats and 'bytes_limit' in stats:
        return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
    if device.platform == 'cpu' and 'SC_AVPHYS_PAGES' in os.sysconf_names:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return None


def _padded(array: np.ndarray, count: int) -> np.ndarray:
    """The array with its first row repeated up to ``count`` rows."""
    if len(array) == count:
        return array
    padded = np.empty((count, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    padded[len(array) :] = array[0]
    return padded
