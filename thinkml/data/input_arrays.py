"""Input arrays: single arrays of the inputs, in memory, on the device, sparse, or on disk."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.model.image_layout import layout_hint
from thinkml.data.arrays import as_numeric, is_numeric
from thinkml.data.dataframes import (
    are_frames,
    column_names,
    in_order_of,
    is_frame,
    is_named_row,
    stack_frames,
)
from thinkml.data.input_range import check_range
from thinkml.data.map_style_datasets import collate, is_array
from thinkml.data.numeric_checks import (
    as_dtype_of,
    check_for_device,
    check_resolution,
    device_dtype,
    warn_of_equal_ids,
)
from thinkml.errors import DataError
from thinkml.model_record import ArraySpec, ColumnNames
from thinkml.typing import Inputs

# A span of a stored array is read at once if it has at most this many times the selected rows:
# reading single rows from HDF5 takes longer than reading the rows between them too.
_MAX_SPAN = 4
# The number of rows that are sampled for the range of their values, and the limit of their bytes.
_SAMPLE_ROWS, _SAMPLE_BYTES = 64, 16 * 2**20
Selection = slice | np.ndarray


class InputArray(NamedTuple):
    """One array of the inputs, which is read by rows.

    Attributes:
        argument: the name used in error messages.
        num_rows: the number of rows.
        spec: the description of one row on the device.
        in_memory: True if the array is in memory and already checked.
        read: returns the selected rows in the dtype of the device.
        array: the array itself, if it is in the dtype of the device; None if reading converts it.
    """

    argument: str
    num_rows: int
    spec: ArraySpec
    in_memory: bool
    read: Callable[[Selection], np.ndarray]
    array: np.ndarray | jax.Array | None = None


# The description an array must match: the whole array of the training, only its column names,
# or, for None, nothing.
ExpectedArray = ArraySpec | ColumnNames | None


def open_array(
    X: Inputs, argument: str, like: ExpectedArray, rows: np.ndarray | None, is_first: bool
) -> InputArray:
    """Opens one array of the inputs; checks it now if it is in memory, else as it is read.

    Args:
        X: the array.
        argument: the name used in error messages.
        like: the description that the array must match.
        rows: the numbers of these rows in the data they were read from; None if this is all of it.
        is_first: see `thinkml.data.numeric_checks.check_resolution`.

    Raises:
        DataError: as `thinkml.data.open_rows` does.
    """
    if _is_sparse(X):
        return _open_sparse(X, argument, like)
    if _is_stored(X):
        return _open_stored(X, argument, like)
    if _is_on_device(X) and (leaf := _open_on_device(X, argument, like)) is not None:
        return leaf
    if isinstance(X, list) and X and all(map(is_named_row, X)):
        X = collate(X, argument)
    columns = None
    if is_frame(X):
        columns = column_names(X)
        if like is not None and like.columns is not None:
            X, columns = in_order_of(X, like.columns, argument)
    elif are_frames(X):
        columns = (like and like.columns) or column_names(X[0])
        X, columns = stack_frames(X, columns, argument)
    array = as_numeric(X, argument)
    if array.ndim == 0:
        raise DataError(f'{argument}: got a single number, expected one row per example.')
    spec = _spec_like(array.shape, array.dtype, argument, like, columns)
    dtype = jnp.dtype(spec.dtype)
    check_for_device(array, argument, rows)
    _check_range(lambda rows: array[rows], len(array), like, argument)
    original = array
    if not isinstance(X, np.ndarray) or device_dtype(array.dtype) != dtype:
        narrow = array.astype(device_dtype(array.dtype), copy=False)
        array = as_dtype_of(narrow, dtype, argument)
    _check_numbers(original, dtype, argument, columns, is_new=_is_new(like), is_first=is_first)
    # The caller keeps the original array, so no second copy is made: rows are converted as they
    # are read.
    return InputArray(
        argument=argument,
        num_rows=len(array),
        spec=spec,
        in_memory=True,
        read=lambda selection: _select(array, selection).astype(dtype, copy=False),
        array=array if array.dtype == dtype else None,
    )


def _check_numbers(
    array: Any,
    dtype: np.dtype,
    argument: str,
    columns: tuple[str, ...] | None = None,
    *,
    is_new: bool,
    is_first: bool = False,
) -> None:
    """Checks that different rows stay different in the dtype of the device.

    Args:
        array: checked numbers.
        dtype: the dtype on the device.
        argument: the name used in error messages.
        columns: the names of the columns.
        is_new: True for training data. Rows passed to a trained model may be nearly equal.
        is_first: see `check_resolution`.
    """
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    is_wide = array.dtype.kind in 'iu' and array.dtype.itemsize > 2  # layers convert to float32
    if is_new and (is_wide or (is_float and dtype != array.dtype)):
        computed = dtype if is_float else np.dtype(np.float32)
        check_resolution(array, computed, argument, columns, is_first=is_first)
    if is_float and dtype != array.dtype:
        warn_of_equal_ids(array, dtype, argument, columns)


def _open_on_device(X: jax.Array, argument: str, like: ExpectedArray) -> InputArray | None:
    """Opens an array that is already on the device; None if it must be converted or is invalid."""
    spec = _spec_like(X.shape, np.dtype(X.dtype), argument, like)
    if X.dtype != jnp.dtype(spec.dtype) or not bool(jnp.isfinite(X).all()):
        return None
    _check_numbers(X, np.dtype(spec.dtype), argument, is_new=_is_new(like))

    def read(selection: Selection) -> np.ndarray:
        # The host can read an array in a CPU's memory without a copy.
        array = np.asarray(X) if all(d.platform == 'cpu' for d in X.devices()) else X
        return np.asarray(_select(array, selection))

    _check_range(read, len(X), like, argument)
    return InputArray(
        argument=argument, num_rows=len(X), spec=spec, in_memory=True, read=read, array=X
    )


def _open_sparse(X: Inputs, argument: str, like: ExpectedArray) -> InputArray:
    if len(X.shape) != 2 or 0 in X.shape:
        raise DataError(f'{argument}: got a sparse array of shape {X.shape}, expected (rows, n).')
    matrix = X.tocsr()
    if not is_numeric(matrix.dtype):
        raise DataError(f'{argument}: got dtype {matrix.dtype}, expected numbers.')
    spec, first = _spec_like(matrix.shape, matrix.dtype, argument, like), FirstRows(like)

    def read(selection: Selection) -> np.ndarray:
        return _check_rows(matrix[selection].toarray(), selection, argument, spec, first)

    return InputArray(
        argument=argument, num_rows=matrix.shape[0], spec=spec, in_memory=False, read=read
    )


def _open_stored(X: Inputs, argument: str, like: ExpectedArray) -> InputArray:
    if 0 in X.shape:
        raise DataError(
            f'{argument}: got an empty array of shape {X.shape}, expected at least one example.'
        )
    if not is_numeric(X.dtype):
        raise DataError(
            f'{argument}: got dtype {X.dtype}, expected numbers. Store it as float32 or uint8.'
        )
    spec, first = _spec_like(X.shape, X.dtype, argument, like), FirstRows(like)
    _check_range(lambda rows: _read_stored(X, rows), X.shape[0], like, argument)

    def read(selection: Selection) -> np.ndarray:
        return _check_rows(_read_stored(X, selection), selection, argument, spec, first)

    return InputArray(argument=argument, num_rows=X.shape[0], spec=spec, in_memory=False, read=read)


def _is_new(like: ExpectedArray) -> bool:
    """Returns True for training data, whose shapes and values need not match earlier data."""
    return not isinstance(like, ArraySpec)


class FirstRows:
    """A function that returns True once: for the first read of several rows of training data."""

    def __init__(self, like: ExpectedArray):
        self._is_pending = _is_new(like)

    def __call__(self, num_rows: int) -> bool:
        is_first = self._is_pending and num_rows > 1
        self._is_pending = self._is_pending and not is_first
        return is_first


def _check_rows(
    array: np.ndarray, selection: Selection, argument: str, spec: ArraySpec, first: FirstRows
) -> np.ndarray:
    """Checks rows that were read; returns them in the dtype of the device."""
    is_run = isinstance(selection, slice)
    rows = np.arange(selection.start, selection.stop) if is_run else selection
    check_for_device(array, argument, rows)
    narrow = array.astype(device_dtype(array.dtype), copy=False)
    converted = as_dtype_of(narrow, jnp.dtype(spec.dtype), argument)
    _check_numbers(array, converted.dtype, argument, is_new=first(len(array)))
    return converted


def _check_range(
    read: Callable[[np.ndarray], np.ndarray], num_rows: int, like: ExpectedArray, argument: str
) -> None:
    if isinstance(like, ArraySpec) and like.range is not None:
        check_range(read(sample_rows(num_rows, row_bytes_of(like))), like, argument)


def row_bytes_of(spec: ArraySpec) -> int:
    """Returns the size of one row on the device, in bytes."""
    return math.prod(spec.shape) * jnp.dtype(spec.dtype).itemsize


def sample_rows(num_rows: int, row_bytes: int) -> np.ndarray:
    """Returns the indices of evenly spaced rows, for estimating the range of an array's values."""
    count = max(1, min(_SAMPLE_ROWS, num_rows, _SAMPLE_BYTES // max(1, row_bytes)))
    return np.linspace(0, num_rows - 1, count).astype(np.int64)


def _spec_like(
    shape: tuple[int, ...],
    dtype: np.dtype,
    argument: str,
    like: ExpectedArray,
    columns: tuple[str, ...] | None = None,
) -> ArraySpec:
    """Returns the description of an array on the device.

    Raises:
        DataError: if the array can't be converted to match ``like``.
    """
    if not isinstance(like, ArraySpec):
        names = columns if like is None else columns or like.columns
        sizes = tuple(map(int, shape[1:]))
        have_names = names is not None and sizes[-1:] == (len(names),)
        return ArraySpec(sizes, device_dtype(dtype).name, names if have_names else None)
    if shape == like.shape:
        raise DataError(
            f'{argument}: got one row of shape {shape} without the axis of rows. Pass it as '
            f'{argument}[None], or for a frame, frame.iloc[[0]].'
        )
    if shape[1:] != like.shape:
        raise DataError(
            f'{argument}: got rows of shape {shape[1:]}, expected {like.shape}, which the model '
            f'was trained on.{layout_hint(shape[1:], like.shape, argument)}'
        )
    # An empty array raises the error if the dtypes can't be converted.
    as_dtype_of(np.empty(0, device_dtype(dtype)), jnp.dtype(like.dtype), argument)
    return like if columns is None else dataclasses.replace(like, columns=columns)


def _is_sparse(X: Inputs) -> bool:
    return hasattr(X, 'tocsr') and hasattr(X, 'toarray')


def _is_stored(X: Inputs) -> bool:
    """Returns True for an array that may be larger than memory."""
    if isinstance(X, np.memmap):
        return True
    is_in_memory = isinstance(X, np.ndarray | jax.Array) or hasattr(X, 'to_numpy')
    is_indexed = hasattr(X, '__getitem__') and isinstance(getattr(X, 'dtype', None), np.dtype)
    return is_indexed and is_array(X) and not is_in_memory


def _is_on_device(X: Inputs) -> bool:
    """Returns True for an array with rows that is on the default device only, uncommitted.

    Results computed from a committed array are committed too, and programs are compiled again.
    """
    if not isinstance(X, jax.Array) or X.ndim == 0 or X.size == 0 or X.committed:
        return False
    return is_numeric(np.dtype(X.dtype)) and X.devices() == {jax.local_devices()[0]}


def _read_stored(array: Any, selection: Selection) -> np.ndarray:
    """Reads rows from an array that may support only slices and increasing indices."""
    if isinstance(selection, slice) or isinstance(array, np.memmap):
        return np.asarray(_select(array, selection))
    unique, inverse = np.unique(selection, return_inverse=True)
    first, last = int(unique[0]), int(unique[-1]) + 1
    if last - first <= _MAX_SPAN * len(unique):
        return np.asarray(array[first:last])[selection - first]
    # Indexing zarr directly by an array is pointwise over all axes.
    return np.asarray(getattr(array, 'oindex', array)[unique])[inverse]


def _select(array: Any, selection: Selection) -> Any:
    # numpy.take is several times faster than indexing.
    is_run = isinstance(selection, slice)
    return array[selection] if is_run else np.take(array, selection, axis=0)


def indices_of(selection: Selection, num_rows: int) -> np.ndarray:
    """Returns the indices of the selected rows, without creating the indices of all rows."""
    if isinstance(selection, slice):
        return np.arange(*selection.indices(num_rows))
    return selection


def as_slice(indices: np.ndarray) -> Selection:
    """Returns a slice if the indices are consecutive, which needs no gather; else the indices."""
    first = int(indices[0])
    is_run = len(indices) == 1 or bool((np.diff(indices) == 1).all())
    return slice(first, first + len(indices)) if is_run else indices
