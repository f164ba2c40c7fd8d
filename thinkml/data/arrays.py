"""Checks on the arrays people pass, before anything is compiled."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from thinkml.data.frames import frame_values, is_frame
from thinkml.errors import DataError

# float64 and int64 become what accelerators compute in; everything narrower stays as it is.
_DEVICE_DTYPES = {
    'longdouble': np.float32,
    'float128': np.float32,
    'float64': np.float32,
    'int64': np.int32,
    'uint64': np.uint32,
}
_EXTENDED_FLOATS = (np.dtype(ml_dtypes.bfloat16),)


def as_dtype_of(array: np.ndarray, dtype: np.dtype, argument: str) -> np.ndarray:
    """Returns inputs in the dtype a model is trained on, if that loses nothing.

    Raises:
        DataError: for floats where the model takes integers, and values the dtype does not hold.
    """
    if array.dtype == dtype or jnp.issubdtype(dtype, jnp.inexact):
        return array.astype(dtype, copy=False)
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
            f'{argument}: got dtype {array.dtype}, expected numbers. '
            + _how_to_convert(values, array)
        )
    return array


def is_numeric(dtype: np.dtype) -> bool:
    """Whether it is one of real numbers or bools."""
    return dtype.kind in 'biuf' or dtype in _EXTENDED_FLOATS


def as_array(values: Any, argument: str) -> np.ndarray:
    """Returns the values as a non-empty numpy array of any dtype."""
    if values is None:
        raise DataError(f'{argument}: got None, expected an array with one row per example.')
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f'{argument}: got a {type(values).__name__} that is no array ({error}). Expected rows '
            'of equal length; pad or cut them first.'
        ) from error
    if np.ma.is_masked(values):
        raise DataError(
            f'{argument}: got a masked array with {np.ma.count_masked(values)} masked values, '
            'which would be taken for real ones. Drop these rows, or fill them with .filled(0).'
        )
    if array.size == 0:
        raise DataError(
            f'{argument}: got an empty array of shape {array.shape}, expected at least one example.'
        )
    return array


def _how_to_convert(values: Any, array: np.ndarray) -> str:
    if hasattr(values, 'tocsr'):
        return f'It is a sparse matrix: pass {type(values).__name__}.toarray().'
    if array.ndim == 0:
        return f'A {type(values).__name__} can not be read as rows: pass an array.'
    if array.dtype.kind in 'UST':
        return 'Encode text as numbers first; text labels may be passed with .astype(str).'
    if array.dtype.kind == 'O':
        kinds = sorted({type(value).__name__ for value in array.ravel()[:100].tolist()})
        return f'It holds {", ".join(kinds)}: convert with .astype("float32"), or encode the text.'
    return 'Convert it to float32 first.'


def device_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype the device computes in: float32 for float64, int32 for int64, else the same."""
    return np.dtype(_DEVICE_DTYPES.get(dtype.name, dtype))


def for_device(array: np.ndarray, argument: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Returns finite numbers in the dtype the device computes in, see `check_for_device`."""
    check_for_device(array, argument, rows)
    return array.astype(device_dtype(array.dtype), copy=False)


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
    largest = max(abs(array.max()), abs(array.min()))
    if largest > np.finfo(dtype).max:
        raise DataError(
            f'{argument}: got a value of magnitude {largest:.3g}, more than float32 holds '
            f'({np.finfo(dtype).max:.3g}). Scale the columns first.'
        )


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
            'were split and filtered alike.'
        )


def _num_rows(values: Any) -> int:
    if isinstance(values, Mapping):
        return _num_rows(next(iter(values.values())))
    is_several = isinstance(values, tuple) and hasattr(values[0], 'shape')
    return _num_rows(values[0]) if is_several else len(values)
