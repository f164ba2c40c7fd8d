"""Rows: checked inputs with random access, in memory, on disk, or in a data set of examples."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.data.dataframes import is_frame
from thinkml.data.input_arrays import (
    FirstRows,
    InputArray,
    Selection,
    as_slice,
    indices_of,
    open_array,
    row_bytes_of,
    sample_rows,
)
from thinkml.data.map_style_datasets import (
    ExampleDataset,
    inputs_alone,
    is_array,
    is_items,
    num_items,
    read_items,
    refuse_several,
)
from thinkml.errors import DataError, did_you_mean
from thinkml.model_record import ArraySpec, ColumnNames, InputSpec
from thinkml.typing import Inputs, PyTree

ArrayTree: TypeAlias = PyTree
"""An `InputArray`, or a dict or tuple of them."""

ExpectedTree: TypeAlias = PyTree
"""An `ExpectedArray`, or a dict or tuple of them."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Checked inputs with random access by rows; made by `open_rows`.

    Attributes:
        num_rows: the number of rows, also ``len(rows)``.
        inputs: the description of one row on the device.
        in_memory: True if all rows are in memory and already checked.
        arrays: the arrays themselves, if they are on the device or in memory in its dtype; None if
            reading them makes new arrays.
    """

    num_rows: int
    inputs: InputSpec
    in_memory: bool
    _read: Callable[[Selection], PyTree] = dataclasses.field(repr=False)
    arrays: PyTree = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return self.num_rows

    @property
    def spec(self) -> PyTree:
        """Returns the shape ``[rows, ...]`` and dtype of each array (`jax.ShapeDtypeStruct`)."""
        return jax.tree.map(
            lambda part: jax.ShapeDtypeStruct((self.num_rows, *part.shape), jnp.dtype(part.dtype)),
            self.inputs.arrays,
        )

    @property
    def num_bytes(self) -> int:
        """Returns the size of all rows on the device."""
        return sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.spec)
        )

    def take(self, indices: np.ndarray) -> PyTree:
        """Reads rows in any order; indices may repeat.

        Args:
            indices: ``[n]`` of 0 to ``num_rows - 1``.

        Returns:
            read-only arrays ``[n, ...]`` in the dtype of the device.

        Raises:
            DataError: if the rows hold values that are not finite, or differ from the other rows.
            IndexError: for rows that do not exist.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) == 0:
            return jax.tree.map(lambda leaf: np.empty((0, *leaf.shape[1:]), leaf.dtype), self.spec)
        if not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f'rows {indices.min()} to {indices.max()} of {self.num_rows}')
        return self._read(as_slice(indices))

    def part(self, start: int, stop: int) -> 'Rows':
        """Returns the rows from ``start`` (inclusive) to ``stop`` (exclusive), without reading."""

        def read(selection: Selection) -> PyTree:
            return self._read(as_slice(start + indices_of(selection, stop - start)))

        return Rows(num_rows=stop - start, inputs=self.inputs, in_memory=self.in_memory, _read=read)

    def all(self) -> PyTree:
        """Reads all rows; returns ``arrays`` if they are set."""
        return self._read(slice(0, self.num_rows)) if self.arrays is None else self.arrays


def open_rows(X: Inputs, argument: str = 'X_train', like: InputSpec | None = None) -> Rows:
    """Opens model inputs of any kind that has random access.

    Arrays in memory are checked now: NumPy, JAX, torch, nested lists, and frames of pandas, polars
    and pyarrow. Other inputs are checked as they are read:

    * `numpy.memmap`, HDF5 and zarr arrays, and any other object with a shape, a dtype and indexing;
    * data sets of examples (Hugging Face, torch, Grain), with a length and an example per index;
    * SciPy's sparse matrices; only the rows that are read become dense.

    A dict, or a tuple of arrays, is several inputs. The model gets them as a dict or tuple.

    float64 becomes float32 and int64 becomes int32; other dtypes stay (uint8 images, bool).

    Args:
        X: the inputs, one row per example.
        argument: the name used in error messages.
        like: the description of the inputs the model was trained on, which ``X`` must match.
            Columns of a frame are put into its order. With `InputSpec.names_alone`, only the names
            of columns are compared.

    Warns:
        ThinkMLWarning: for pictures on another scale than those of the training.

    Raises:
        DataError: for inputs that are empty, not numeric, ragged, or hold NaN or infinite values;
            for inputs of different lengths; for inputs that do not match ``like``, such as whole
            numbers on another scale than the floats of the training.

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
    is_ready = all(leaf.array is not None for leaf in leaves)
    return Rows(
        num_rows=leaves[0].num_rows,
        inputs=InputSpec(_map(lambda leaf: leaf.spec, tree)),
        in_memory=all(leaf.in_memory for leaf in leaves),
        _read=lambda selection: _map(lambda leaf: leaf.read(selection), tree),
        arrays=_map(lambda leaf: leaf.array, tree) if is_ready else None,
    )


def check_tree(
    X: Inputs,
    argument: str,
    like: InputSpec | None = None,
    rows: np.ndarray | None = None,
    *,
    is_first: bool = False,
) -> tuple[PyTree, InputSpec]:
    """Checks the arrays of one batch as `open_rows` does.

    Args:
        X: an array, or a dict or tuple of them.
        argument: the name used in error messages.
        like: the description that ``X`` must match.
        rows: the numbers of these rows in the data they were read from.
        is_first: see `thinkml.data.numeric_checks.check_resolution`.

    Returns:
        the checked arrays, and their description.
    """
    tree = _open_tree(X, argument, None if like is None else like.arrays, rows, is_first)
    leaves = list(_leaves(tree))
    _check_same_length(leaves)
    arrays = _map(lambda leaf: leaf.read(slice(0, leaf.num_rows)), tree)
    return arrays, InputSpec(_map(lambda leaf: leaf.spec, tree))


def open_items(
    dataset: ExampleDataset,
    argument: str,
    like: InputSpec | None,
    inputs_of: Callable[[PyTree], PyTree],
) -> Rows:
    """Opens the inputs of a data set of examples; all must match the first one.

    If the range of the training is known, a sample of examples is read to compare their range.

    Args:
        dataset: the data set.
        argument: the name used in error messages.
        like: the description that the inputs must match; None to use that of the first example.
        inputs_of: returns the inputs of stacked examples.
    """
    count = num_items(dataset, argument)
    are_first = FirstRows(next(iter(jax.tree.leaves(like and like.arrays)), None))

    def read(indices: np.ndarray, like: InputSpec | None) -> tuple[PyTree, InputSpec]:
        inputs = inputs_of(read_items(dataset, indices, argument))
        if are_first(len(indices)):
            check_tree(inputs, argument, None, indices)
        return check_tree(inputs, argument, like, indices)

    _, inputs = read(_first_indices(count, like), like)
    spec = inputs.without_ranges()  # the ranges have just been compared
    return Rows(
        num_rows=count,
        inputs=inputs,
        in_memory=False,
        _read=lambda selection: read(indices_of(selection, count), spec)[0],
    )


def _first_indices(count: int, like: InputSpec | None) -> np.ndarray:
    # One example shows shapes and dtypes, but not the range: it may be a black picture.
    parts = [] if like is None else jax.tree.leaves(like.arrays)
    compared = [part for part in parts if isinstance(part, ArraySpec) and part.range is not None]
    return sample_rows(count, sum(map(row_bytes_of, compared))) if compared else np.array([0])


def _open_tree(
    X: Inputs,
    argument: str,
    like: ExpectedTree,
    rows: np.ndarray | None = None,
    is_first: bool = False,
) -> ArrayTree:
    """Opens each array of the inputs; returns them in the structure of the inputs."""
    if _expects_no_names(like) and not _has_structure(X, like):
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
            raise _mismatch_error(f'a tuple of {len(X)} arrays', argument, like)
        return tuple(
            _open_tree(part, f'{argument}[{index}]', like and like[index], rows, is_first)
            for index, part in enumerate(X)
        )
    if not isinstance(like, ArraySpec | ColumnNames | None):
        raise _mismatch_error('one array', argument, like)
    return open_array(X, argument, like, rows, is_first)


def _expects_no_names(like: ExpectedTree) -> bool:
    """Returns True if only names are to be compared, and the training had none."""
    return like is not None and all(part == ColumnNames(None) for part in jax.tree.leaves(like))


def _has_structure(X: Inputs, like: ExpectedTree) -> bool:
    if isinstance(like, dict):
        return isinstance(X, Mapping)
    return not isinstance(X, Mapping) and is_several(X) == isinstance(like, tuple)


def is_several(X: Inputs) -> bool:
    """Returns True for a tuple of arrays, which is several inputs; a list would be rows."""
    return isinstance(X, tuple) and len(X) > 0 and all(is_array(x) or is_frame(x) for x in X)


def _check_names(X: Mapping[Any, Any], argument: str, like: ExpectedTree) -> None:
    names = list(X)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f'{argument}: got a dict with the keys {names}, expected text as keys.')
    if like is None:
        return
    if not isinstance(like, dict):
        raise _mismatch_error(f'a dict of {", ".join(names)}', argument, like)
    missing = [name for name in like if name not in names]
    extra = [name for name in names if name not in like]
    if missing or extra:
        close = did_you_mean(extra[0], missing) if extra else ''
        raise DataError(
            f'{argument}: got a dict of {", ".join(names)}, expected {", ".join(like)}, which the '
            f'model was trained on.{close}'
        )


def _mismatch_error(got: str, argument: str, like: ExpectedTree) -> DataError:
    return DataError(
        f'{argument}: got {got}, expected the inputs the model was trained on: {InputSpec(like)}.'
    )


def _check_same_length(leaves: list[InputArray]) -> None:
    if len({leaf.num_rows for leaf in leaves}) > 1:
        got = ', '.join(f'{leaf.argument} with {leaf.num_rows:,} rows' for leaf in leaves)
        raise DataError(f'{got}: expected the same number of rows in all inputs.')


def _leaves(tree: ArrayTree) -> Iterator[InputArray]:
    if isinstance(tree, dict):
        for part in tree.values():
            yield from _leaves(part)
    elif isinstance(tree, InputArray):
        yield tree
    else:
        for part in tree:
            yield from _leaves(part)


def _map(function: Callable[[InputArray], PyTree], tree: ArrayTree) -> PyTree:
    if isinstance(tree, dict):
        return {name: _map(function, part) for name, part in tree.items()}
    if isinstance(tree, tuple) and not isinstance(tree, InputArray):
        return tuple(_map(function, part) for part in tree)
    return function(tree)
