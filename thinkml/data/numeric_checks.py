"""Numeric checks: finite values, and values that the dtypes of the device can represent."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from thinkml.errors import DataError, warn_user

# float64 and int64 are narrowed to the dtypes accelerators compute in; narrower dtypes stay.
_DEVICE_DTYPES = {
    'longdouble': np.float32,
    'float128': np.float32,
    'float64': np.float32,
    'int64': np.int32,
    'uint64': np.uint32,
}


def as_dtype_of(array: np.ndarray, dtype: np.dtype, argument: str) -> np.ndarray:
    """Returns inputs in the dtype a model was trained on, if no information is lost.

    Raises:
        DataError: for floats where the model takes integers, and values out of the dtype's range.
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
            f'{argument}: got values from {array.min()} to {array.max()}, expected values within '
            f'{dtype.name}, which the model is trained on.'
        )
    return converted


def device_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the dtype on the device: float32 for float64, int32 for int64, else the same."""
    return np.dtype(_DEVICE_DTYPES.get(dtype.name, dtype))


def check_for_device(array: np.ndarray, argument: str, rows: np.ndarray | None = None) -> None:
    """Checks that the device can compute with these numbers, without copying them.

    Args:
        array: ``[rows, ...]``.
        argument: the name used in error messages.
        rows: the numbers of these rows in the data they were read from; None if this is all of it.

    Raises:
        DataError: for NaN and infinite values, and values out of the range of the device's dtype.
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
    """Raises a `DataError` for finite numbers that become infinite in a float dtype."""
    largest = max(abs(float(array.max())), abs(float(array.min())))
    limit = float(jnp.finfo(dtype).max)
    if largest > limit:
        raise DataError(
            f'{argument}: got a value of magnitude {largest:.3g}, more than {dtype.name} holds '
            f'({limit:.3g}). {fix}.'
        )


# A column is rejected if rounding changes half of its values by this fraction of its spread.
_MAX_ROUNDING = 0.01
# A spread below this fraction of the values is itself rounding noise in float64.
_NOISE = 1e-12
# The rows that are examined (fewer rows if they are large), and the number of their values.
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
    """Raises a `DataError` for a column whose values are too close for a float dtype.

    Times in seconds since 1970 are an example: float32 represents only every 128th second.

    Args:
        array: finite numbers, ``[rows, ...]``; a sample of the rows is examined.
        dtype: the dtype they are converted to.
        argument: the name used in error messages.
        columns: the column names of a table.
        is_first: True for the first of several batches. For a column that only rises or falls in
            it, a warning is given instead: later batches may differ more, as the hours of a day
            differ more than its first minute.
    """
    candidates = np.flatnonzero(_may_lose(_some_rows(array, _FEW_ROWS), dtype))
    if not candidates.size:
        return
    count = min(_SOME_ROWS, max(_FEW_ROWS, _SOME_VALUES // candidates.size))
    values = np.ascontiguousarray(_some_rows(array, count)[:, candidates].T)
    least = _NOISE * np.abs(values).max(axis=1)
    # Quartiles first: a 0 that replaces a missing value would hide how close the others are.
    low, high = np.quantile(values, (0.25, 0.75), axis=1)
    lost = np.median(np.abs(values - _round_as_device(values, dtype)), axis=1)
    spread = np.where((high - low) / 1.349 > least, (high - low) / 1.349, values.std(axis=1))
    found = np.flatnonzero((spread > least) & (lost > _MAX_ROUNDING * spread))
    if not found.size:
        return
    column = values[found[0]]
    problem = (
        f'{argument}: got {_column_name(int(candidates[found[0]]), array, columns)}values from '
        f'{column.min():.15g} to {column.max():.15g}, which '
    )
    if np.abs(column).max() < jnp.finfo(dtype).tiny:
        problem += f'{dtype.name} rounds to 0. Scale them, for instance values / values.std().'
    else:
        problem += (
            f'differ by less than the precision of {dtype.name} at that size. Subtract their mean '
            '(for times, the first one) in float64 before, for instance values - values.mean().'
        )
    steps = np.diff(column)
    if not is_first or (steps.min() < 0 < steps.max()):
        raise DataError(problem)
    warn_user(f'{problem} Later batches were not checked: nothing is lost if they differ more.')


def _some_rows(array: Any, count: int) -> np.ndarray:
    """Returns at most ``count`` rows, as float64 ``[rows, columns]``."""
    if len(array) > count:
        # Unevenly spaced: a regular step of 128 seconds would hit times that float32 represents.
        positions = np.arange(count) * _GOLDEN_RATIO % 1 * len(array)
        array = array[np.unique(positions.astype(np.int64))]
    some = np.asarray(array, np.float64)
    return some.reshape(len(some), -1)


def _may_lose(few: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns True for each column in which a third of a few rows are nearly equal."""
    # Rounding loses at most eps / 2 times the largest value, or a value too small for the dtype.
    limits = jnp.finfo(dtype)
    limit = np.maximum(float(limits.eps) * np.abs(few).max(axis=0), float(limits.tiny))
    limit /= _MAX_ROUNDING
    third = -(-len(few) // 3)
    ordered = np.sort(few, axis=0)
    nearest = (ordered[third:] - ordered[: len(few) - third]).min(axis=0, initial=np.inf)
    return (nearest <= limit) & (few != _round_as_device(few, dtype)).any(axis=0)


def _round_as_device(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the values rounded as on a device, in float64: subnormal numbers become 0."""
    rounded = values.astype(dtype).astype(np.float64)
    return np.where(np.abs(rounded) < float(jnp.finfo(dtype).tiny), 0.0, rounded)


def warn_of_equal_ids(
    array: np.ndarray,
    dtype: np.dtype,
    argument: str,
    columns: Sequence[str] | None = None,
) -> None:
    """Warns about different whole numbers that become equal in a float dtype.

    Args:
        array: finite numbers, ``[rows]`` or ``[rows, columns]``; arrays with more axes hold no ids.
        dtype: the dtype they are converted to.
        argument: the name used in warnings.
        columns: the column names of a table.
    """
    limit = 2.0 ** (jnp.finfo(dtype).nmant + 1)
    if array.ndim > 2 or not array.size or (array.max() < limit and array.min() > -limit):
        return
    table = array.reshape(len(array), -1)
    for index in np.flatnonzero((table.max(axis=0) >= limit) | (table.min(axis=0) <= -limit)):
        values = np.unique(table[:, index])
        is_whole = array.dtype.kind in 'iu' or np.array_equal(values, np.round(values))
        if is_whole and len(np.unique(values.astype(dtype))) < len(values):
            # Without the number of the batch, so that Python shows the warning once.
            warn_user(
                f'{argument.partition(", batch ")[0]}: got '
                f'{_column_name(int(index), array, columns)}whole numbers beyond '
                f'{limit:,.0f}, and {dtype.name} can not represent all of them: different numbers '
                'become equal. Pass ids as a separate input, as integers from 0 on; for amounts '
                'nothing is lost.'
            )


def _column_name(index: int, array: np.ndarray, columns: Sequence[str] | None) -> str:
    if columns is not None:
        return f'the column {columns[index % len(columns)]!r} with '
    return f'column {index} with ' if array.size > len(array) else ''


def check_finite(array: np.ndarray, argument: str, rows: np.ndarray | None = None) -> None:
    """Raises a `DataError` that counts and locates NaN and infinite values."""
    if array.dtype.kind in 'biu':
        return
    # A sum is finite only if every term is, and computing it needs no temporary array.
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
