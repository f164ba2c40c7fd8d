"""Inputs that are read by rows: in memory, on disk, or example by example."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.data.dataframes import is_frame
from thinkml.data.example_datasets import (
    inputs_alone,
    is_array,
    is_items,
    num_items,
    read_items,
    refuse_several,
)
from thinkml.data.input_arrays import (
    FirstRows,
    InputArray,
    Selection,
    as_slice,
    indices_of,
    open_array,
    row_bytes_of,
    sampled,
)
from thinkml.errors import DataError, did_you_mean
from thinkml.model_record import ArraySpec, ColumnNames, InputSpec


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
        return self._read(as_slice(indices))

    def part(self, start: int, stop: int) -> 'Rows':
        """Returns the rows from ``start`` to before ``stop``, of which none is read yet."""

        def read(selection: Selection) -> Any:
            return self._read(as_slice(start + indices_of(selection, stop - start)))

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
        is_first: see `thinkml.data.numeric_checks.check_resolution`.
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
        FirstRows(next(iter(jax.tree.leaves(like and like.arrays)), None)),
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
    return sampled(count, sum(map(row_bytes_of, compared))) if compared else np.array([0])


def _open_tree(
    X: Any, argument: str, like: Any, rows: np.ndarray | None = None, is_first: bool = False
) -> Any:
    """A `InputArray` for each array, in the structure of the inputs."""
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
    return open_array(X, argument, like, rows, is_first)


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


def _check_same_length(leaves: list[InputArray]) -> None:
    if len({leaf.num_rows for leaf in leaves}) > 1:
        got = ', '.join(f'{leaf.argument} with {leaf.num_rows:,} rows' for leaf in leaves)
        raise DataError(f'{got}: expected the same number of rows in all inputs.')


def _leaves(tree: Any) -> Iterator[InputArray]:
    if isinstance(tree, dict):
        for part in tree.values():
            yield from _leaves(part)
    elif isinstance(tree, InputArray):
        yield tree
    else:
        for part in tree:
            yield from _leaves(part)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, part) for name, part in tree.items()}
    if isinstance(tree, tuple) and not isinstance(tree, InputArray):
        return tuple(_map(function, part) for part in tree)
    return function(tree)
