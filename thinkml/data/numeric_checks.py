"""Numeric checks: finite values, and values that keep their meaning in the device's dtypes."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from thinkml.errors import DataError, warn_user

# float64 and int64 become what accelerators compute in; everything narrower stays as it is.
_DEVICE_DTYPES = {
    'longdouble': np.float32,
    'float128': np.float32,
    'float64': np.float32,
    'int64': np.int32,
    'uint64': np.uint32,
}


def as_dtype_of(array: np.ndarray, dtype: np.dtype, argument: str) -> np.ndarray:
    """Returns inputs in the dtype a model is trained on, if that loses nothing.

    Raises:
        DataError: for floats where the model takes integers, and values the dtype does not hold.
    """
    if array.dtype == dtype:
        return array
    if jnp.issubdtype(dtype, jnp.inexact):
        if array.size:
            check_magnitude(array, dtype, argument, 'The model is trained on it: scale the inputs')
        return array.astype(dtype)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        raise DataError(
            f'{argument}: got {array.dtype}, expected {dtype.name}, which the model is trained on. '
            'Pass the same kind of numbers everywhere, for instance .astype("float32").'
        )
    converted = array.astype(dtype)
    if (converted != array).any():
        raise DataError(
            f'{argument}: got values from {array.min()} to {array.max()}, expected what '
            f'{dtype.name} holds, which the model is trained on.'
        )
    return converted


def device_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype the device computes in: float32 for float64, int32 for int64, else the same."""
    return np.dtype(_DEVICE_DTYPES.get(dtype.name, dtype))


def check_for_device(array: np.ndarray, argument: str, rows: np.ndarray | None = None) -> None:
    """Checks that the device can compute with these numbers; makes no copy of them.

    Args:
        array: ``[rows, ...]``.
        argument: the name used in error messages.
        rows: the numbers of these rows in the whole they were read from; None for all of it.

    Raises:
        DataError: for NaN and infinite values, and those the dtype does not hold.
    """
    check_finite(array, argument, rows)
    dtype = device_dtype(array.dtype)
    if dtype == array.dtype:
        return
    if array.dtype.kind in 'iu':
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise DataError(
                f'{argument}: got integers from {array.min()} to {array.max()}, expected them '
                f'within {dtype.name}. Scale them or pass floats.'
            )
        return
    check_magnitude(array, dtype, argument, 'Scale the columns first')


def check_magnitude(array: np.ndarray, dtype: np.dtype, argument: str, fix: str) -> None:
    """Raises a `DataError` for finite numbers that would be infinite in a dtype of floats."""
    largest = max(abs(float(array.max())), abs(float(array.min())))
    limit = float(jnp.finfo(dtype).max)
    if largest > limit:
        raise DataError(
            f'{argument}: got a value of magnitude {largest:.3g}, more than {dtype.name} holds '
            f'({limit:.3g}). {fix}.'
        )


# A column is refused where half of its values lose so much of the column's spread to rounding.
_LOST = 0.01
# Spread that is rounding already, of numbers in float64.
_NOISE = 1e-12
# What is looked at for it: rows, fewer of large ones.
_SOME_ROWS, _FEW_ROWS, _SOME_VALUES = 1000, 16, 2**20
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def check_resolution(
    array: np.ndarray,
    dtype: np.dtype,
    argument: str,
    columns: Sequence[str] | None = None,
    *,
    is_first: bool = False,
) -> None:
    """Raises a `DataError` for a column whose values a dtype of floats does not tell apart.

    Times in seconds since 1970 are such a column: float32 holds every 128th second of them.

    Args:
        array: finite numbers, ``[rows, ...]``, of which some rows are looked at.
        dtype: what they become.
        argument: the name used in error messages.
        columns: their names, of a table.
        is_first: True for the first of several batches. A column that rises or falls in it is
            warned of, since later ones may differ more: the first minute is not the day.
    """
    candidates = np.flatnonzero(_may_lose(_some_rows(array, _FEW_ROWS), dtype))
    if not candidates.size:
        return
    count = min(_SOME_ROWS, max(_FEW_ROWS, _SOME_VALUES // candidates.size))
    values = np.ascontiguousarray(_some_rows(array, count)[:, candidates].T)
    least = _NOISE * np.abs(values).max(axis=1)
    # Quartiles first: a 0 in place of what is missing would hide how near the others are.
    low, high = np.quantile(values, (0.25, 0.75), axis=1)
    lost = np.median(np.abs(values - _as_computed(values, dtype)), axis=1)
    spread = np.where((high - low) / 1.349 > least, (high - low) / 1.349, values.std(axis=1))
    found = np.flatnonzero((spread > least) & (lost > _LOST * spread))
    if not found.size:
        return
    column = values[found[0]]
    problem = (
        f'{argument}: got {_column_name(int(candidates[found[0]]), array, columns)}values from '
        f'{column.min():.15g} to {column.max():.15g}, which '
    )
    if np.abs(column).max() < jnp.finfo(dtype).tiny:
        problem += f'{dtype.name} takes for 0. Scale them, for instance values / values.std().'
    else:
        problem += (
            f'differ by less than {dtype.name} tells apart at that size. Subtract their mean (of '
            'times: the first one) in float64 before, for instance values - values.mean().'
        )
    steps = np.diff(column)
    if not is_first or (steps.min() < 0 < steps.max()):
        raise DataError(problem)
    warn_user(f'{problem} Later batches were not looked at: nothing is lost if they differ more.')


def _some_rows(array: Any, count: int) -> np.ndarray:
    """At most so many rows, as float64 ``[rows, columns]``."""
    if len(array) > count:
        # Unevenly spaced: each 128th second is one that float32 holds.
        places = np.arange(count) * _GOLDEN_RATIO % 1 * len(array)
        array = array[np.unique(places.astype(np.int64))]
    some = np.asarray(array, np.float64)
    return some.reshape(len(some), -1)


def _may_lose(few: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns True for each column of which a third of a few rows is nearly the same."""
    # What is lost is at most half of eps, of the largest value, or a value too small for the dtype.
    about = jnp.finfo(dtype)
    limit = np.maximum(float(about.eps) * np.abs(few).max(axis=0), float(about.tiny)) / _LOST
    third = -(-len(few) // 3)
    ordered = np.sort(few, axis=0)
    nearest = (ordered[third:] - ordered[: len(few) - third]).min(axis=0, initial=np.inf)
    return (nearest <= limit) & (few != _as_computed(few, dtype)).any(axis=0)


def _as_computed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values as a device has them, in float64: the smallest ones are 0."""
    rounded = values.astype(dtype).astype(np.float64)
    return np.where(np.abs(rounded) < float(jnp.finfo(dtype).tiny), 0.0, rounded)


def warn_of_equal_ids(
    array: np.ndarray,
    dtype: np.dtype,
    argument: str,
    columns: Sequence[str] | None = None,
) -> None:
    """Warns of whole numbers that differ and become equal in a dtype of floats.

    Args:
        array: finite numbers, ``[rows]`` or ``[rows, columns]``; others do not hold ids.
        dtype: what they become.
        argument: the name used in warnings.
        columns: their names, of a table.
    """
    limit = 2.0 ** (jnp.finfo(dtype).nmant + 1)
    if array.ndim > 2 or not array.size or (array.max() < limit and array.min() > -limit):
        return
    table = array.reshape(len(array), -1)
    for index in np.flatnonzero((table.max(axis=0) >= limit) | (table.min(axis=0) <= -limit)):
        values = np.unique(table[:, index])
        is_whole = array.dtype.kind in 'iu' or np.array_equal(values, np.round(values))
        if is_whole and len(np.unique(values.astype(dtype))) < len(values):
            # Without the number of a batch, so that Python shows it once.
            warn_user(
                f'{argument.partition(", batch ")[0]}: got '
                f'{_column_name(int(index), array, columns)}whole numbers beyond '
                f'{limit:,.0f}, of which {dtype.name} does not hold each one: different ones '
                'become equal. Pass ids as an input of their own, as integers from 0 on; of '
                'amounts nothing is lost.'
            )


def _column_name(index: int, array: np.ndarray, columns: Sequence[str] | None) -> str:
    if columns is not None:
        return f'the column {columns[index % len(columns)]!r} with '
    return f'column {index} with ' if array.size > len(array) else ''


def check_finite(array: np.ndarray, argument: str, rows: np.ndarray | None = None) -> None:
    """Raises a `DataError` that counts and locates NaN and infinite values."""
    if array.dtype.kind in 'biu':
        return
    # A sum is finite only if every term is, and needs no temporary array.
    with np.errstate(invalid='ignore', over='ignore'):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    finite = np.isfinite(array)
    if finite.all():
        return
    first = tuple(int(index) for index in np.argwhere(~finite)[0])
    if rows is not None:
        first = (int(rows[first[0]]), *first[1:])
    raise DataError(
        f'{argument}: got {np.isnan(array).sum()} NaN and {np.isinf(array).sum()} infinite values '
        f'of {array.size}, the first at index {first}; expected finite numbers. Drop these rows or '
        "fill them, for instance with numpy.nan_to_num or scikit-learn's SimpleImputer."
    )
