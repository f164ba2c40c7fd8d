"""Checks on the arrays people pass, before anything is compiled."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from thinkml.core import num_outputs
from thinkml.errors import DataError
from thinkml.record import record_of

# float64 and int64 become what accelerators compute in; everything narrower stays as it is.
_DEVICE_DTYPES = {
    'longdouble': np.float32,
    'float128': np.float32,
    'float64': np.float32,
    'int64': np.int32,
    'uint64': np.uint32,
}
_EXTENDED_FLOATS = (np.dtype(ml_dtypes.bfloat16),)


def check_inputs(X: Any, argument: str = 'X_train') -> np.ndarray:
    """Returns model inputs as a numeric array, in the dtype the device computes in.

    float64 becomes float32 and int64 becomes int32; other dtypes stay (uint8 images, bool).

    Args:
        X: anything `numpy.asarray` takes: arrays, nested lists, a frame of numbers.
        argument: the name used in error messages.

    Raises:
        DataError: if it is empty, not numeric, ragged, or holds NaN or infinite values.

    Example:
        >>> from thinkml.data import check_inputs
        >>> check_inputs([[1.0, 2.0], [3.0, 4.0]]).dtype
        dtype('float32')
    """
    array = as_numeric(X, argument)
    if array.ndim == 0:
        raise DataError(f'{argument}: got a single number, expected one row per example.')
    return _for_device(array, argument)


def check_inputs_of(model: Any, X: Any, argument: str = 'X_test') -> np.ndarray:
    """Returns inputs for a model's forward pass, checked as by `check_inputs`.

    Integers become floats where the model was trained on floats.

    Raises:
        DataError: also if the rows have another shape than the model was trained on, or are
            floats where it was trained on integers.
        ModelTypeError: if the object is not a model.
    """
    array = check_inputs(X, argument)
    record = record_of(model)
    if record.input_shape is None or record.input_dtype is None:
        num_outputs(model, array, argument)
        return array
    if array.shape == record.input_shape:
        raise DataError(
            f'{argument}: got one row of shape {array.shape} without the axis of rows. Pass it as '
            f'{argument}[None], or frame.iloc[[0]] of a frame.'
        )
    if array.shape[1:] != record.input_shape:
        raise DataError(
            f'{argument}: got rows of shape {array.shape[1:]}, expected {record.input_shape}, '
            'which the model was trained on.'
        )
    return as_dtype_of(array, jnp.dtype(record.input_dtype), argument)


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
    array = as_array(values, argument)
    if array.dtype.kind not in 'biuf' and array.dtype not in _EXTENDED_FLOATS:
        raise DataError(
            f'{argument}: got dtype {array.dtype}, expected numbers. '
            + _how_to_convert(values, array)
        )
    return array


def as_array(values: Any, argument: str) -> np.ndarray:
    """Returns the values as a non-empty numpy array of any dtype."""
    if values is None:
        raise DataError(f'{argument}: got None, expected an array with one row per example.')
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
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


def _for_device(array: np.ndarray, argument: str) -> np.ndarray:
    check_finite(array, argument)
    dtype = _DEVICE_DTYPES.get(array.dtype.name)
    if dtype is None:
        return array
    if array.dtype.kind in 'iu':
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise DataError(
                f'{argument}: got integers from {array.min()} to {array.max()}, expected them '
                f'within {np.dtype(dtype).name}. Scale them or pass floats.'
            )
        return array.astype(dtype)
    largest = np.abs(array).max()
    if largest > np.finfo(dtype).max:
        raise DataError(
            f'{argument}: got a value of magnitude {largest:.3g}, more than float32 holds '
            f'({np.finfo(dtype).max:.3g}). Scale the columns first.'
        )
    return array.astype(dtype)


def check_finite(array: np.ndarray, argument: str) -> None:
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
    raise DataError(
        f'{argument}: got {np.isnan(array).sum()} NaN and {np.isinf(array).sum()} infinite values '
        f'of {array.size}, the first at index {first}; expected finite numbers. Drop these rows or '
        "fill them, for instance with numpy.nan_to_num or scikit-learn's SimpleImputer."
    )


def check_lengths(arrays: Mapping[str, Any]) -> None:
    """Raises a `DataError` unless all arrays have the same number of rows.

    Args:
        arrays: by argument name.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        got = ' and '.join(f'{name} with {length:,} rows' for name, length in lengths.items())
        raise DataError(
            f'{", ".join(lengths)}: got {got}, expected one target per example. Check that both '
            'were split and filtered alike.'
        )


def fingerprint(X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Identifies a data set: shapes, dtypes, and a hash over at most 4,096 evenly spaced rows."""
    digest = hashlib.sha256()
    for array in (X, y):
        rows = np.linspace(0, len(array) - 1, min(len(array), 4096)).astype(np.int64)
        digest.update(f'{array.shape} {array.dtype}'.encode())
        digest.update(np.ascontiguousarray(array[rows]).tobytes())
    return {
        'rows': len(X),
        'input_shape': list(X.shape[1:]),
        'input_dtype': X.dtype.name,
        'sha256': digest.hexdigest(),
    }
