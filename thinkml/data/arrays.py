"""Array conversion: array-likes to NumPy, with checks for missing values and equal lengths."""

from collections.abc import Mapping, Sequence
from typing import Any

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
from thinkml.typing import Inputs, Labels, PyTree

_EXTENDED_FLOATS = (np.dtype(ml_dtypes.bfloat16),)
_FILL = 'Fill them in, as series.fillna(...) does, or leave these rows out.'


def as_numeric(values: Inputs, argument: str) -> np.ndarray:
    """Returns the values as a non-empty numeric array.

    Raises:
        DataError: if they are not numeric. Says how to convert them.
    """
    array = as_array(frame_values(values, argument) if is_frame(values) else values, argument)
    if not is_numeric(array.dtype):
        raise DataError(
            f'{argument}: got dtype {array.dtype}, expected numbers. ' + _how_to_convert(array)
        )
    return array


def is_numeric(dtype: np.dtype) -> bool:
    """Returns True for a dtype of real numbers or bools."""
    return dtype.kind in 'biuf' or dtype in _EXTENDED_FLOATS


def as_array(values: Any, argument: str) -> np.ndarray:
    """Returns the values as a non-empty numpy array of any dtype.

    Text next to other values gives an array of objects. NumPy alone would convert all values to
    text, including missing ones.

    Raises:
        DataError: if the values are None, empty, masked, ragged, or not readable as rows.
    """
    if values is None:
        raise DataError(f'{argument}: got None, expected an array with one row per example.')
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f'{argument}: got a {type(values).__name__} that is not an array ({error}). Expected '
            'rows of equal length; pad or cut them first.'
        ) from error
    if array.dtype == object and array.ndim == 0:
        kind = 'sparse matrix' if hasattr(values, 'tocsr') else type(values).__name__
        ways = [name for name in ('toarray', 'collect', 'compute') if hasattr(values, name)]
        fix = f'the result of its {ways[0]}()' if ways else 'an array'
        raise DataError(f'{argument}: got a {kind}, which can not be read as rows. Pass {fix}.')
    if array.dtype.kind in 'US' and not hasattr(values, 'dtype'):
        objects = np.asarray(values, object)
        array = array if holds_text(objects, all) else objects
    elif array.dtype.kind == 'T':
        array = array.astype(object)
    if np.ma.is_masked(values):
        raise DataError(
            f'{argument}: got a masked array with {np.ma.count_masked(values)} masked values, '
            'which would be used as real ones. Drop these rows; inputs may be filled, .filled(0).'
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
        return f'The array holds {kinds_of(array)}: {how_to_convert(array)}.'
    if array.dtype.kind in 'mM':
        return (
            'Pass the time since some date as a number, for instance '
            '(values - values.min()) / np.timedelta64(1, "D").'
        )
    return 'Convert it to float32 first.'


def as_values(values: Labels, argument: str, fix: str = _FILL) -> np.ndarray:
    """Returns labels, groups or similar values as an array without missing values.

    Args:
        values: anything `as_array` takes.
        argument: the name used in error messages.
        fix: the advice for missing values in error messages.

    Returns:
        an array of text, of numbers, or of objects that are not text.

    Raises:
        DataError: if values are missing, or text is mixed with other values. Names the first row.
    """
    array = as_array(values, argument)
    check_none_missing(array, argument, fix)
    if isinstance(values, list | tuple) and array.dtype.kind in 'iuf':
        _check_numbers_kept(np.asarray(values, object), array, argument)
    if array.dtype != object or not holds_text(array, any):
        return array
    if not holds_text(array, all):
        raise DataError(
            f'{argument}: got text mixed with other values, {kinds_of(array)}, expected values of '
            "one kind, since 1 and '1' are different. Repair these rows, or convert all to text: "
            '[str(value) for value in values].'
        )
    return array.astype(str)


def _check_numbers_kept(objects: np.ndarray, array: np.ndarray, argument: str) -> None:
    """Raises a `DataError` for a list whose values change when NumPy converts it."""
    values = objects.ravel().tolist()
    if any(isinstance(value, bool | np.bool_) for value in values):
        raise DataError(
            f'{argument}: got {kinds_of(objects)}, expected values of one kind, since True would '
            'become 1. Repair these rows, or convert all to numbers: [int(value) for value in '
            'values].'
        )
    if array.dtype.kind == 'f' and any(isinstance(v, int) and abs(v) > 2**53 for v in values):
        raise DataError(
            f'{argument}: got {kinds_of(objects)} of up to {max(values)}, which NumPy converts to '
            'floats, where different values become equal. Convert all to text: '
            '[str(value) for value in values].'
        )


def warn_of_missing_text(array: np.ndarray, argument: str, what: str) -> None:
    """Warns about text that NumPy and pandas write for a missing value, such as ``'nan'``.

    Args:
        array: values of any dtype.
        argument: the name used in warnings.
        what: the meaning of a value in words: a class, a group.
    """
    if array.dtype.kind != 'U':
        return
    for text in ('nan', '<NA>', 'NaT'):
        if (array == text).any():
            warn_user(
                f'{argument}: got the text {text!r} as {what}, which NumPy and pandas write for a '
                'missing value. If it is one, leave these rows out.'
            )


def check_none_missing(array: np.ndarray, argument: str, fix: str = _FILL) -> None:
    """Raises a `DataError` for None, NaN, NaT, and the missing values of pandas."""
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
    """Concatenates labels; text and other values become an array of objects, as in `as_array`."""
    mixed = len({part.dtype.kind in 'US' for part in parts}) > 1
    return np.concatenate([part.astype(object) for part in parts] if mixed else parts)


def number_groups(values: Labels, num_rows: int, argument: str) -> np.ndarray:
    """Returns the group of each row, numbered from 0, ``[rows]``.

    Args:
        values: ``[rows]`` or ``[rows, 1]``, text or numbers; rows with equal values are a group.
        num_rows: the expected number of values.
        argument: the name used in error messages.

    Raises:
        DataError: for another number of values, missing values, and text mixed with other values.
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
            'Convert all to text: [str(value) for value in values].'
        ) from error


def check_lengths(arrays: Mapping[str, Any]) -> None:
    """Raises a `DataError` unless all arrays have the same number of rows.

    Args:
        arrays: by argument name; arrays, dicts or tuples of them, or `Rows`.
    """
    arrays = _by_part(arrays)
    lengths = {name: _num_rows(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        got = ' and '.join(f'{name} with {length:,} rows' for name, length in lengths.items())
        raise DataError(
            f'{", ".join(lengths)}: got {got}, expected one target per example. Check that both '
            f'were split and filtered in the same way.{_columns_hint(arrays, lengths)}'
        )


def _by_part(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays, with each part of a dict under its own name."""
    named = {}
    for name, array in arrays.items():
        if isinstance(array, Mapping):
            named |= {f'{name}[{part!r}]': values for part, values in array.items()}
        else:
            named[name] = array
    return named


def _columns_hint(arrays: Mapping[str, Any], lengths: Mapping[str, int]) -> str:
    """Returns a hint for an array as wide as the others are long, such as ``[y1, y2]``."""
    for name, array in arrays.items():
        others = {length for other, length in lengths.items() if other != name}
        if getattr(array, 'ndim', 0) == 2 and others == {array.shape[1]}:
            return f' If {name} has an array for each column: np.column_stack({name}).'
    return ''


def _num_rows(values: PyTree) -> int:
    if isinstance(values, Mapping):
        return _num_rows(next(iter(values.values())))
    is_several = isinstance(values, tuple) and hasattr(values[0], 'shape')
    return _num_rows(values[0]) if is_several else len(values)
