"""Single arrays of the inputs: in memory, on the device, sparse or stored, read by rows."""

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
from thinkml.data.example_datasets import collate, is_array
from thinkml.data.input_range import check_range
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

# The part of a stored array that is read at once, beyond what is asked for: reading rows one by
# one out of HDF5 takes longer than reading those between them as well.
_MAX_SPAN = 4
# Rows that tell which range the values of an array have, and their bytes at most.
_SAMPLED, _SAMPLED_BYTES = 64, 16 * 2**20
Selection = slice | np.ndarray


class InputArray(NamedTuple):
    """One array of the inputs."""

    argument: str
    num_rows: int
    spec: ArraySpec
    in_memory: bool
    read: Callable[[Selection], np.ndarray]
    array: Any = None


# What an array must be like: that of the training in all, or in the names of its columns alone.
ExpectedArray = ArraySpec | ColumnNames | None


def open_array(
    X: Inputs, argument: str, like: ExpectedArray, rows: np.ndarray | None, is_first: bool
) -> InputArray:
    """Opens one array of the inputs; checks it now if it is in memory, else as it is read.

    Args:
        X: the array.
        argument: the name used in error messages.
        like: what the array must be like.
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
    _check_range(lambda chosen: array[chosen], len(array), like, argument)
    given = array
    if not isinstance(X, np.ndarray) or device_dtype(array.dtype) != dtype:
        narrow = array.astype(device_dtype(array.dtype), copy=False)
        array = as_dtype_of(narrow, dtype, argument)
    _check_numbers(given, dtype, argument, columns, is_new=_is_new(like), is_first=is_first)
    # Of an array that its owner keeps a second one is never made: rows are converted as they are
    # read.
    return InputArray(
        argument, len(array), spec, True,
        lambda selection: _chosen(array, selection).astype(dtype, copy=False),
        array if array.dtype == dtype else None,
    )  # fmt: skip


def _check_numbers(
    array: Any,
    dtype: np.dtype,
    argument: str,
    columns: tuple[str, ...] | None = None,
    *,
    is_new: bool,
    is_first: bool = False,
) -> None:
    """Checks that rows differ in the dtype they get.

    Args:
        array: checked numbers.
        dtype: on the device.
        argument: the name used in error messages.
        columns: their names.
        is_new: True for what a model learns from. A request to a trained model may well be
            of rows that are nearly the same.
        is_first: see `check_resolution`.
    """
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    is_wide = array.dtype.kind in 'iu' and array.dtype.itemsize > 2  # layers make float32 of them
    if is_new and (is_wide or (is_float and dtype != array.dtype)):
        computed = dtype if is_float else np.dtype(np.float32)
        check_resolution(array, computed, argument, columns, is_first=is_first)
    if is_float and dtype != array.dtype:
        warn_of_equal_ids(array, dtype, argument, columns)


def _open_on_device(X: jax.Array, argument: str, like: ExpectedArray) -> InputArray | None:
    """An array that is where it is to be already; None where it must be converted, or is broken."""
    spec = _spec_like(X.shape, np.dtype(X.dtype), argument, like)
    if X.dtype != jnp.dtype(spec.dtype) or not bool(jnp.isfinite(X).all()):
        return None
    _check_numbers(X, np.dtype(spec.dtype), argument, is_new=_is_new(like))

    def read(selection: Selection) -> np.ndarray:
        # On a CPU the host sees the array itself.
        array: Any = np.asarray(X) if jax.default_backend() == 'cpu' else X
        return np.asarray(_chosen(array, selection))

    _check_range(read, len(X), like, argument)
    return InputArray(argument, len(X), spec, True, read, X)


def _open_sparse(X: Any, argument: str, like: ExpectedArray) -> InputArray:
    if len(X.shape) != 2 or 0 in X.shape:
        raise DataError(f'{argument}: got a sparse array of shape {X.shape}, expected (rows, n).')
    matrix = X.tocsr()
    if not is_numeric(matrix.dtype):
        raise DataError(f'{argument}: got dtype {matrix.dtype}, expected numbers.')
    spec, first = _spec_like(matrix.shape, matrix.dtype, argument, like), FirstRows(like)

    def read(selection: Selection) -> np.ndarray:
        return _checked(matrix[selection].toarray(), selection, argument, spec, first)

    return InputArray(argument, matrix.shape[0], spec, False, read)


def _open_stored(X: Any, argument: str, like: ExpectedArray) -> InputArray:
    if 0 in X.shape:
        raise DataError(
            f'{argument}: got an empty array of shape {X.shape}, expected at least one example.'
        )
    if not is_numeric(X.dtype):
        raise DataError(
            f'{argument}: got dtype {X.dtype}, expected numbers. Store it as float32 or uint8.'
        )
    spec, first = _spec_like(X.shape, X.dtype, argument, like), FirstRows(like)
    _check_range(lambda chosen: _read_stored(X, chosen), X.shape[0], like, argument)

    def read(selection: Selection) -> np.ndarray:
        return _checked(_read_stored(X, selection), selection, argument, spec, first)

    return InputArray(argument, X.shape[0], spec, False, read)


def _is_new(like: ExpectedArray) -> bool:
    """Returns True for what a model learns from, which may be unlike what it knows."""
    return not isinstance(like, ArraySpec)


class FirstRows:
    """A function that returns True for the first rows that can be compared, if they are new."""

    def __init__(self, like: ExpectedArray):
        self._waiting = _is_new(like)

    def __call__(self, num_rows: int) -> bool:
        is_first = self._waiting and num_rows > 1
        self._waiting = self._waiting and not is_first
        return is_first


def _checked(
    array: np.ndarray, selection: Selection, argument: str, spec: ArraySpec, first: FirstRows
) -> np.ndarray:
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
        check_range(read(sampled(num_rows, row_bytes_of(like))), like, argument)


def row_bytes_of(spec: ArraySpec) -> int:
    """Returns the size of one row on the device, in bytes."""
    return math.prod(spec.shape) * jnp.dtype(spec.dtype).itemsize


def sampled(num_rows: int, row_bytes: int) -> np.ndarray:
    """Returns some rows, evenly spaced, that tell which range the values of an array have."""
    count = max(1, min(_SAMPLED, num_rows, _SAMPLED_BYTES // max(1, row_bytes)))
    return np.linspace(0, num_rows - 1, count).astype(np.int64)


def _spec_like(
    shape: tuple[int, ...],
    dtype: np.dtype,
    argument: str,
    like: ExpectedArray,
    columns: tuple[str, ...] | None = None,
) -> ArraySpec:
    """What an array is to look like on the device.

    Raises:
        DataError: if it can't be made ``like`` the one of the training.
    """
    if not isinstance(like, ArraySpec):
        names = columns if like is None else columns or like.columns
        sizes = tuple(map(int, shape[1:]))
        have_names = names is not None and sizes[-1:] == (len(names),)
        return ArraySpec(sizes, device_dtype(dtype).name, names if have_names else None)
    if shape == like.shape:
        raise DataError(
            f'{argument}: got one row of shape {shape} without the axis of rows. Pass it as '
            f'{argument}[None], or frame.iloc[[0]] of a frame.'
        )
    if shape[1:] != like.shape:
        raise DataError(
            f'{argument}: got rows of shape {shape[1:]}, expected {like.shape}, which the model '
            f'was trained on.{layout_hint(shape[1:], like.shape, argument)}'
        )
    # An empty array asks whether the one dtype becomes the other at all.
    as_dtype_of(np.empty(0, device_dtype(dtype)), jnp.dtype(like.dtype), argument)
    return like if columns is None else dataclasses.replace(like, columns=columns)


def _is_sparse(X: Any) -> bool:
    return hasattr(X, 'tocsr') and hasattr(X, 'toarray')


def _is_stored(X: Any) -> bool:
    """Whether it is an array that may be larger than memory."""
    if isinstance(X, np.memmap):
        return True
    is_in_memory = isinstance(X, np.ndarray | jax.Array) or hasattr(X, 'to_numpy')
    is_indexed = hasattr(X, '__getitem__') and isinstance(getattr(X, 'dtype', None), np.dtype)
    return is_indexed and is_array(X) and not is_in_memory


def _is_on_device(X: Any) -> bool:
    """Whether it is an array with rows on the device that computes, and there alone.

    One that was committed to it is not: what is computed with it would be too, and compiled anew.
    """
    if not isinstance(X, jax.Array) or X.ndim == 0 or X.size == 0 or X.committed:
        return False
    return is_numeric(np.dtype(X.dtype)) and X.devices() == {jax.local_devices()[0]}


def _read_stored(array: Any, selection: Selection) -> np.ndarray:
    """Reads rows out of what may take only slices and increasing indices."""
    if isinstance(selection, slice) or isinstance(array, np.memmap):
        return np.asarray(_chosen(array, selection))
    unique, place = np.unique(selection, return_inverse=True)
    first, last = int(unique[0]), int(unique[-1]) + 1
    if last - first <= _MAX_SPAN * len(unique):
        return np.asarray(array[first:last])[selection - first]
    # zarr's plain index by an array is pointwise over all axes.
    return np.asarray(getattr(array, 'oindex', array)[unique])[place]


def _chosen(array: np.ndarray, selection: Selection) -> np.ndarray:
    # numpy.take is several times as fast as an index.
    is_run = isinstance(selection, slice)
    return array[selection] if is_run else np.take(array, selection, axis=0)


def indices_of(selection: Selection, num_rows: int) -> np.ndarray:
    """The indices of selected rows; those of a slice without making all others too."""
    if isinstance(selection, slice):
        return np.arange(*selection.indices(num_rows))
    return selection


def as_slice(indices: np.ndarray) -> Selection:
    """A slice where the indices are consecutive, which needs no gathering."""
    first = int(indices[0])
    is_run = len(indices) == 1 or bool((np.diff(indices) == 1).all())
    return slice(first, first + len(indices)) if is_run else indices
