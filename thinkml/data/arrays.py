"""Checks on the arrays people pass, before anything is compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from thinkml.data.dataframes import frame_values, is_frame
from thinkml.data.object_arrays import (
    holds_text,
    how_to_convert,
    is_missing,
    kinds_of,
    row_of,
)
from thinkml.errors import DataError, warn_user

# float64 and int64 become what accelerators compute in; everything narrower stays as it is.
_DEVICE_DTYPES = {
    'longdouble': np.float32,
    'float128': np.float32,
    'float64': np.float32,
    'int64': np.int32,
    'uint64': np.uint32,
}
_EXTENDED_FLOATS = (np.dtype(ml_dtypes.bfloat16),)
_FILL = 'Fill them in, as series.fillna(...) does, or leave these rows out.'


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


def as_numeric(values: Any, argument: str) -> np.ndarray:
    """Returns the values as a non-empty numeric array, or says why they are none."""
    array = as_array(frame_values(values, argument) if is_frame(values) else values, argument)
    if not is_numeric(array.dtype):
        raise DataError(
            f'{argument}: got dtype {array.dtype}, expected numbers. ' + _how_to_convert(array)
        )
    return array


def is_numeric(dtype: np.dtype) -> bool:
    """Whether it is one of real numbers or bools."""
    return dtype.kind in 'biuf' or dtype in _EXTENDED_FLOATS


def as_array(values: Any, argument: str) -> np.ndarray:
    """Returns the values as a non-empty numpy array of any dtype.

    Text beside other values stays what it is, in an array of objects: NumPy alone would make text
    of all of them, of a missing value too.
    """
    if values is None:
        raise DataError(f'{argument}: got None, expected an array with one row per example.')
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f'{argument}: got a {type(values).__name__} that is no array ({error}). Expected rows '
            'of equal length; pad or cut them first.'
        ) from error
    if array.dtype == object and array.ndim == 0:
        kind = 'sparse matrix' if hasattr(values, 'tocsr') else type(values).__name__
        ways = [name for name in ('toarray', 'collect', 'compute') if hasattr(values, name)]
        fix = f'what its {ways[0]}() returns' if ways else 'an array'
        raise DataError(f'{argument}: got a {kind}, which can not be read as rows. Pass {fix}.')
    if array.dtype.kind in 'US' and not hasattr(values, 'dtype'):
        objects = np.asarray(values, object)
        array = array if holds_text(objects, all) else objects
    elif array.dtype.kind == 'T':
        array = array.astype(object)
    if np.ma.is_masked(values):
        raise DataError(
            f'{argument}: got a masked array with {np.ma.count_masked(values)} masked values, '
            'which would be taken for real ones. Drop these rows; inputs may be filled, .filled(0).'
        )
    if array.size == 0:
        raise DataError(
            f'{argument}: got an empty array of shape {array.shape}, expected at least one example.'
        )
    return array


def _how_to_convert(array: np.ndarray) -> str:
    if array.dtype.kind in 'US':
        return 'Encode text as numbers first; text labels may be passed with .astype(str).'
    if array.dtype.kind == 'O':
        return f'It holds {kinds_of(array)}: {how_to_convert(array)}.'
    if array.dtype.kind in 'mM':
        return (
            'Pass the time since some date as a number, for instance '
            '(values - values.min()) / np.timedelta64(1, "D").'
        )
    return 'Convert it to float32 first.'


def as_values(values: Any, argument: str, fix: str = _FILL) -> np.ndarray:
    """Returns labels, groups or the like: an array none of whose values is missing.

    Args:
        values: anything `as_array` takes.
        argument: the name used in error messages.
        fix: what to do about missing values.

    Returns:
        an array of text, of numbers, or of objects that are not text.

    Raises:
        DataError: if values are missing, or text is beside other values. Names the first row.
    """
    array = as_array(values, argument)
    check_none_missing(array, argument, fix)
    if isinstance(values, list | tuple) and array.dtype.kind in 'iuf':
        _check_numbers_kept(np.asarray(values, object), array, argument)
    if array.dtype != object or not holds_text(array, any):
        return array
    if not holds_text(array, all):
        raise DataError(
            f'{argument}: got text beside other values, {kinds_of(array)}, expected values of one '
            "kind, since 1 and '1' are two. Repair these rows, or make text of all: "
            '[str(value) for value in values].'
        )
    return array.astype(str)


def _check_numbers_kept(objects: np.ndarray, array: np.ndarray, argument: str) -> None:
    """Raises a `DataError` for a list of values of which NumPy makes other ones."""
    values = objects.ravel().tolist()
    if any(isinstance(value, bool | np.bool_) for value in values):
        raise DataError(
            f'{argument}: got {kinds_of(objects)}, expected values of one kind, since True would '
            'be 1. Repair these rows, or make numbers of all: [int(value) for value in values].'
        )
    if array.dtype.kind == 'f' and any(isinstance(v, int) and abs(v) > 2**53 for v in values):
        raise DataError(
            f'{argument}: got {kinds_of(objects)} of up to {max(values)}, of which NumPy makes '
            'floats, where different ones become equal. Make text of all: '
            '[str(value) for value in values].'
        )


def warn_of_missing_text(array: np.ndarray, argument: str, what: str) -> None:
    """Warns of the text that NumPy and pandas make of a missing value.

    Args:
        array: values of any dtype.
        argument: the name used in warnings.
        what: what a value stands for: a class, a group.
    """
    if array.dtype.kind != 'U':
        return
    for text in ('nan', '<NA>', 'NaT'):
        if (array == text).any():
            warn_user(
                f'{argument}: got the text {text!r} as {what}, which NumPy and pandas make of a '
                'missing value. If it is one, leave these rows out.'
            )


def check_none_missing(array: np.ndarray, argument: str, fix: str = _FILL) -> None:
    """Raises a `DataError` for None, NaN, NaT, and what pandas has for them."""
    if array.dtype.kind == 'O':
        missing = np.fromiter(map(is_missing, array.ravel().tolist()), bool, array.size)
    elif array.dtype.kind in 'mM':
        missing = np.isnat(array).ravel()
    elif is_numeric(array.dtype) and array.dtype.kind not in 'biu':
        missing = np.isnan(array).ravel()
    else:
        return
    if missing.any():
        raise DataError(
            f'{argument}: got {missing.sum()} missing values of {array.size}, the first at row '
            f'{row_of(int(missing.argmax()), array)}, expected none. {fix}'
        )


def concatenate_labels(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates labels; text beside other values stays what it is, as in `as_array`."""
    mixed = len({part.dtype.kind in 'US' for part in parts}) > 1
    return np.concatenate([part.astype(object) for part in parts] if mixed else parts)


def number_groups(values: Any, num_rows: int, argument: str) -> np.ndarray:
    """Returns which group each row is in, numbered from 0, ``[rows]``.

    Args:
        values: ``[rows]`` or ``[rows, 1]``, text or numbers: equal ones are a group.
        num_rows: how many there must be.
        argument: the name used in error messages.

    Raises:
        DataError: for another number of them, missing ones, and text beside other values.
    """
    array = as_values(values, argument)
    warn_of_missing_text(array, argument, 'a group')
    if array.shape not in ((num_rows,), (num_rows, 1)):
        raise DataError(
            f'{argument}: got shape {array.shape}, expected ({num_rows},), one value for each row.'
        )
    try:
        return np.unique(array.reshape(num_rows), return_inverse=True)[1]
    except TypeError as error:
        raise DataError(
            f'{argument}: got values that can not be compared ({error}), expected numbers or text. '
            'Make text of all: [str(value) for value in values].'
        ) from error


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


def check_lengths(arrays: Mapping[str, Any]) -> None:
    """Raises a `DataError` unless all arrays have the same number of rows.

    Args:
        arrays: by argument name; arrays, dicts or tuples of them, or `Rows`.
    """
    lengths = {name: _num_rows(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        got = ' and '.join(f'{name} with {length:,} rows' for name, length in lengths.items())
        raise DataError(
            f'{", ".join(lengths)}: got {got}, expected one target per example. Check that both '
            f'were split and filtered alike.{_way_to_columns(arrays, lengths)}'
        )


def _way_to_columns(arrays: Mapping[str, Any], lengths: Mapping[str, int]) -> str:
    """Returns a hint for arrays that are as wide as others are long, such as ``[y1, y2]``."""
    for name, array in arrays.items():
        others = {length for other, length in lengths.items() if other != name}
        if getattr(array, 'ndim', 0) == 2 and others == {array.shape[1]}:
            return f' If {name} has an array for each column: np.column_stack({name}).'
    return ''


def _num_rows(values: Any) -> int:
    if isinstance(values, Mapping):
        return _num_rows(next(iter(values.values())))
    is_several = isinstance(values, tuple) and hasattr(values[0], 'shape')
    return _num_rows(values[0]) if is_several else len(values)
