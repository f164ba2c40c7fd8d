"""Inputs that are read by rows: in memory, on disk, or example by example."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.model.image_layout import layout_hint
from thinkml.data.arrays import (
    as_dtype_of,
    as_numeric,
    check_for_device,
    check_resolution,
    device_dtype,
    is_numeric,
    warn_of_equal_ids,
)
from thinkml.data.dataframes import (
    are_frames,
    column_names,
    in_order_of,
    is_frame,
    is_named_row,
    stack_frames,
)
from thinkml.data.example_datasets import (
    collate,
    inputs_alone,
    is_array,
    is_items,
    num_items,
    read_items,
    refuse_several,
)
from thinkml.data.input_range import check_range
from thinkml.errors import DataError, did_you_mean
from thinkml.model_record import ArraySpec, ColumnNames, InputSpec

# The part of a stored array that is read at once, beyond what is asked for: reading rows one by
# one out of HDF5 takes longer than reading those between them as well.
_MAX_SPAN = 4
# Rows that tell which range the values of an array have, and their bytes at most.
_SAMPLED, _SAMPLED_BYTES = 64, 16 * 2**20

Selection = slice | np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """Checked inputs with random access by rows; made by `open_rows`.

    Attributes:
        num_rows: also ``len(rows)``.
        inputs: what a row looks like on the device.
        in_memory: whether all of it is in memory, checked already.
        arrays: the arrays themselves, where they are in memory as the device takes them (or on it);
            None where reading them makes others.
    """

    num_rows: int
    inputs: InputSpec
    in_memory: bool
    _read: Callable[[Selection], Any] = dataclasses.field(repr=False)
    arrays: Any = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return self.num_rows

    @property
    def spec(self) -> Any:
        """Shape ``[rows, ...]`` and dtype of each array: `jax.ShapeDtypeStruct` in their places."""
        return jax.tree.map(
            lambda part: jax.ShapeDtypeStruct((self.num_rows, *part.shape), jnp.dtype(part.dtype)),
            self.inputs.arrays,
        )

    @property
    def num_bytes(self) -> int:
        """Size of all rows on the device."""
        return sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.spec)
        )

    def take(self, indices: np.ndarray) -> Any:
        """Reads rows, in any order and more than once if asked.

        Args:
            indices: ``[n]`` of 0 to ``num_rows - 1``.

        Returns:
            arrays ``[n, ...]`` in the dtype of the device, not to be written to.

        Raises:
            DataError: if what is read now is not finite, or not like the other rows.
            IndexError: for rows that are not there.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) == 0:
            return jax.tree.map(lambda leaf: np.empty((0, *leaf.shape[1:]), leaf.dtype), self.spec)
        if not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f'rows {indices.min()} to {indices.max()} of {self.num_rows}')
        return self._read(_as_slice(indices))

    def part(self, start: int, stop: int) -> 'Rows':
        """Returns the rows from ``start`` to before ``stop``, of which none is read yet."""

        def read(selection: Selection) -> Any:
            return self._read(_as_slice(start + indices_of(selection, stop - start)))

        return Rows(stop - start, self.inputs, self.in_memory, read)

    def all(self) -> Any:
        """Reads all rows; these are ``arrays``, where there are some."""
        return self._read(slice(0, self.num_rows)) if self.arrays is None else self.arrays


def open_rows(X: Any, argument: str = 'X_train', like: InputSpec | None = None) -> Rows:
    """Opens model inputs of any kind that has random access.

    Arrays in memory (NumPy, JAX, torch, nested lists, frames of pandas, polars and pyarrow) are
    checked now.
    What is stored elsewhere is checked as it is read: `numpy.memmap`, HDF5 and zarr arrays and
    whatever else has a shape and a dtype and is indexed; data sets of examples (Hugging Face,
    torch, Grain: a length and an example for each index); SciPy's sparse matrices, of which only
    the rows that are read become dense. A dict, or a tuple of arrays, is several inputs, which the
    model gets as a dict or tuple.

    float64 becomes float32 and int64 becomes int32; other dtypes stay (uint8 images, bool).

    Args:
        X: the inputs, one row per example.
        argument: the name used in error messages.
        like: what the inputs must be like, of those the model is trained on. Columns of a frame
            are put into that order. `InputSpec.names_alone` asks for no more than that.

    Warns:
        ThinkMLWarning: for pictures on another scale than those of the training.

    Raises:
        DataError: for what is empty, not numeric, ragged, or holds NaN or infinite values; for
            inputs of different length; for inputs that are not ``like`` those of the training, as
            whole numbers on another scale than the floats of the training are not.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import open_rows
        >>> rows = open_rows({'image': np.zeros((5, 8, 8), np.uint8), 'age': np.arange(5.0)})
        >>> len(rows), rows.num_bytes
        (5, 340)
        >>> rows.take(np.array([3, 0]))['age']
        array([3., 0.], dtype=float32)
    """
    arrays = None if like is None else like.arrays
    if is_items(X):
        return open_items(X, argument, like, lambda examples: inputs_alone(examples, arrays))
    tree = _open_tree(X, argument, arrays)
    leaves = list(_leaves(tree))
    _check_same_length(leaves)
    return Rows(
        leaves[0].num_rows,
        InputSpec(_map(lambda leaf: leaf.spec, tree)),
        all(leaf.in_memory for leaf in leaves),
        lambda selection: _map(lambda leaf: leaf.read(selection), tree),
        None if any(leaf.array is None for leaf in leaves) else _map(lambda leaf: leaf.array, tree),
    )


def check_tree(
    X: Any,
    argument: str,
    like: InputSpec | None = None,
    rows: np.ndarray | None = None,
    *,
    is_first: bool = False,
) -> tuple[Any, InputSpec]:
    """Returns the arrays of one batch, checked as by `open_rows`, and what they are like.

    Args:
        X: an array, or a dict or tuple of them.
        argument: the name used in error messages.
        like: what it must be like.
        rows: the numbers of these rows in the whole they were read from.
        is_first: see `thinkml.data.arrays.check_resolution`.
    """
    tree = _open_tree(X, argument, None if like is None else like.arrays, rows, is_first)
    leaves = list(_leaves(tree))
    _check_same_length(leaves)
    arrays = _map(lambda leaf: leaf.read(slice(0, leaf.num_rows)), tree)
    return arrays, InputSpec(_map(lambda leaf: leaf.spec, tree))


def open_items(
    dataset: Any, argument: str, like: InputSpec | None, inputs_of: Callable[[Any], Any]
) -> Rows:
    """Opens the inputs of a data set of examples; the first one tells what all are like.

    Where the range of the training is known, some more are read, to compare theirs with it.

    Args:
        dataset: the data set.
        argument: the name used in error messages.
        like: what the inputs must be like; None for whatever the first example is.
        inputs_of: the inputs among stacked examples.
    """
    count, are_first = (
        num_items(dataset, argument),
        _FirstRows(next(iter(jax.tree.leaves(like and like.arrays)), None)),
    )

    def read(indices: np.ndarray, like: InputSpec | None) -> tuple[Any, InputSpec]:
        inputs = inputs_of(read_items(dataset, indices, argument))
        if are_first(len(indices)):
            check_tree(inputs, argument, None, indices)
        return check_tree(inputs, argument, like, indices)

    _, inputs = read(_first_read(count, like), like)
    spec = inputs.without_ranges()  # which were compared just now
    return Rows(count, inputs, False, lambda selection: read(indices_of(selection, count), spec)[0])


def _first_read(count: int, like: InputSpec | None) -> np.ndarray:
    # The first example tells what all are like, but not their range: it may be a black picture.
    parts = [] if like is None else jax.tree.leaves(like.arrays)
    compared = [part for part in parts if isinstance(part, ArraySpec) and part.range is not None]
    return sampled(count, sum(map(_row_bytes, compared))) if compared else np.array([0])


class _Leaf(NamedTuple):
    """One array of the inputs."""

    argument: str
    num_rows: int
    spec: ArraySpec
    in_memory: bool
    read: Callable[[Selection], np.ndarray]
    array: Any = None


def _open_tree(
    X: Any, argument: str, like: Any, rows: np.ndarray | None = None, is_first: bool = False
) -> Any:
    """A `_Leaf` for each array, in the structure of the inputs."""
    if _had_no_names(like) and not _has_structure(X, like):
        like = None
    if isinstance(X, Mapping) and X:
        refuse_several(X, argument)
        _check_names(X, argument, like)
        return {
            str(name): _open_tree(
                X[name], f'{argument}[{name!r}]', like and like[name], rows, is_first
            )
            for name in X
        }
    if is_several(X):
        if like is not None and not (isinstance(like, tuple) and len(like) == len(X)):
            raise _not_like(f'a tuple of {len(X)} arrays', argument, like)
        return tuple(
            _open_tree(part, f'{argument}[{index}]', like and like[index], rows, is_first)
            for index, part in enumerate(X)
        )
    if not isinstance(like, ArraySpec | ColumnNames | None):
        raise _not_like('one array', argument, like)
    return _open_array(X, argument, like, rows, is_first)


def _had_no_names(like: Any) -> bool:
    """Returns True where it is asked for names alone, of inputs that had none."""
    return like is not None and all(part == ColumnNames(None) for part in jax.tree.leaves(like))


def _has_structure(X: Any, like: Any) -> bool:
    if isinstance(like, dict):
        return isinstance(X, Mapping)
    return not isinstance(X, Mapping) and is_several(X) == isinstance(like, tuple)


def is_several(X: Any) -> bool:
    """Whether it is a tuple of arrays: several inputs, where a list would be rows."""
    return isinstance(X, tuple) and len(X) > 0 and all(is_array(x) or is_frame(x) for x in X)


def _check_names(X: Mapping[Any, Any], argument: str, like: Any) -> None:
    names = list(X)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f'{argument}: got a dict with the keys {names}, expected text as keys.')
    if like is None:
        return
    if not isinstance(like, dict):
        raise _not_like(f'a dict of {", ".join(names)}', argument, like)
    missing = [name for name in like if name not in names]
    extra = [name for name in names if name not in like]
    if missing or extra:
        close = did_you_mean(extra[0], missing) if extra else ''
        raise DataError(
            f'{argument}: got a dict of {", ".join(names)}, expected {", ".join(like)}, which the '
            f'model was trained on.{close}'
        )


def _not_like(got: str, argument: str, like: Any) -> DataError:
    return DataError(
        f'{argument}: got {got}, expected what the model was trained on: {InputSpec(like)}.'
    )


# What an array must be like: that of the training in all, or in the names of its columns alone.
Like = ArraySpec | ColumnNames | None


def _open_array(
    X: Any, argument: str, like: Like, rows: np.ndarray | None, is_first: bool
) -> _Leaf:
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
    return _Leaf(
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


def _open_on_device(X: jax.Array, argument: str, like: Like) -> _Leaf | None:
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
    return _Leaf(argument, len(X), spec, True, read, X)


def _open_sparse(X: Any, argument: str, like: Like) -> _Leaf:
    if len(X.shape) != 2 or 0 in X.shape:
        raise DataError(f'{argument}: got a sparse array of shape {X.shape}, expected (rows, n).')
    matrix = X.tocsr()
    if not is_numeric(matrix.dtype):
        raise DataError(f'{argument}: got dtype {matrix.dtype}, expected numbers.')
    spec, first = _spec_like(matrix.shape, matrix.dtype, argument, like), _FirstRows(like)

    def read(selection: Selection) -> np.ndarray:
        return _checked(matrix[selection].toarray(), selection, argument, spec, first)

    return _Leaf(argument, matrix.shape[0], spec, False, read)


def _open_stored(X: Any, argument: str, like: Like) -> _Leaf:
    if 0 in X.shape:
        raise DataError(
            f'{argument}: got an empty array of shape {X.shape}, expected at least one example.'
        )
    if not is_numeric(X.dtype):
        raise DataError(
            f'{argument}: got dtype {X.dtype}, expected numbers. Store it as float32 or uint8.'
        )
    spec, first = _spec_like(X.shape, X.dtype, argument, like), _FirstRows(like)
    _check_range(lambda chosen: _read_stored(X, chosen), X.shape[0], like, argument)

    def read(selection: Selection) -> np.ndarray:
        return _checked(_read_stored(X, selection), selection, argument, spec, first)

    return _Leaf(argument, X.shape[0], spec, False, read)


def _is_new(like: Like) -> bool:
    """Returns True for what a model learns from, which may be unlike what it knows."""
    return not isinstance(like, ArraySpec)


class _FirstRows:
    """A function that returns True for the first rows that can be compared, if they are new."""

    def __init__(self, like: Like):
        self._waiting = _is_new(like)

    def __call__(self, num_rows: int) -> bool:
        is_first = self._waiting and num_rows > 1
        self._waiting = self._waiting and not is_first
        return is_first


def _checked(
    array: np.ndarray, selection: Selection, argument: str, spec: ArraySpec, first: _FirstRows
) -> np.ndarray:
    is_run = isinstance(selection, slice)
    rows = np.arange(selection.start, selection.stop) if is_run else selection
    check_for_device(array, argument, rows)
    narrow = array.astype(device_dtype(array.dtype), copy=False)
    converted = as_dtype_of(narrow, jnp.dtype(spec.dtype), argument)
    _check_numbers(array, converted.dtype, argument, is_new=first(len(array)))
    return converted


def _check_range(
    read: Callable[[np.ndarray], np.ndarray], num_rows: int, like: Like, argument: str
) -> None:
    if isinstance(like, ArraySpec) and like.range is not None:
        check_range(read(sampled(num_rows, _row_bytes(like))), like, argument)


def _row_bytes(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * jnp.dtype(spec.dtype).itemsize


def sampled(num_rows: int, row_bytes: int) -> np.ndarray:
    """Returns some rows, evenly spaced, that tell which range the values of an array have."""
    count = max(1, min(_SAMPLED, num_rows, _SAMPLED_BYTES // max(1, row_bytes)))
    return np.linspace(0, num_rows - 1, count).astype(np.int64)


def _spec_like(
    shape: tuple[int, ...],
    dtype: np.dtype,
    argument: str,
    like: Like,
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


def _as_slice(indices: np.ndarray) -> Selection:
    """A slice where the indices are consecutive, which needs no gathering."""
    first = int(indices[0])
    is_run = len(indices) == 1 or bool((np.diff(indices) == 1).all())
    return slice(first, first + len(indices)) if is_run else indices


def _check_same_length(leaves: list[_Leaf]) -> None:
    if len({leaf.num_rows for leaf in leaves}) > 1:
        got = ', '.join(f'{leaf.argument} with {leaf.num_rows:,} rows' for leaf in leaves)
        raise DataError(f'{got}: expected the same number of rows in all inputs.')


def _leaves(tree: Any) -> Iterator[_Leaf]:
    if isinstance(tree, dict):
        for part in tree.values():
            yield from _leaves(part)
    elif isinstance(tree, _Leaf):
        yield tree
    else:
        for part in tree:
            yield from _leaves(part)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, part) for name, part in tree.items()}
    if isinstance(tree, tuple) and not isinstance(tree, _Leaf):
        return tuple(_map(function, part) for part in tree)
    return function(tree)
