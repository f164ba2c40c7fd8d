"""Model inputs as checked arrays in memory, and fingerprints of data sets."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.model.functional import any_outputs_of
from thinkml.data.input_arrays import sample_rows
from thinkml.data.input_range import range_of, warn_of_other_range
from thinkml.data.rows import Rows, open_rows
from thinkml.model_record import ArraySpec, InputSpec, record_of
from thinkml.typing import Inputs, Model, PyTree

# A fingerprint reads at most this many bytes and rows, but at least the minimum of rows.
_MAX_BYTES, _MAX_ROWS, _MIN_ROWS = 16 * 2**20, 4096, 64


def check_inputs(X: Inputs, argument: str = 'X_train', like: InputSpec | None = None) -> PyTree:
    """Returns model inputs as numeric arrays, in the dtype the device computes in.

    float64 becomes float32 and int64 becomes int32; other dtypes stay (uint8 images, bool). See
    `open_rows` for inputs that don't fit into memory.

    Args:
        X: anything `open_rows` takes: arrays, nested lists, frames of numbers, sparse matrices,
            stored arrays, data sets; a dict or a tuple of them for several inputs.
        argument: the name used in error messages.
        like: the description of the inputs the model was trained on, which ``X`` must match.

    Returns:
        an array ``[rows, ...]``, or a dict or tuple of them.

    Raises:
        DataError: if it is empty, not numeric, ragged, or holds NaN or infinite values.

    Example:
        >>> from thinkml.data import check_inputs
        >>> check_inputs([[1.0, 2.0], [3.0, 4.0]]).dtype
        dtype('float32')
    """
    return open_rows(X, argument, like).all()


def open_rows_of(model: Model, X: Inputs, argument: str = 'X_test') -> Rows:
    """Opens inputs for a model's forward pass, checked as by `open_rows`.

    Integers become floats if the model was trained on floats. Columns of a frame are put into the
    order of the training.

    Raises:
        DataError: as `open_rows` does; also if the rows have another shape than in the training,
            or are floats and the model was trained on integers.
        ModelTypeError: if the object is not a model.
    """
    like = record_of(model).input_spec
    rows = open_rows(X, argument, like)
    if like is None:
        any_outputs_of(model, rows.spec, argument)
    return rows


def check_inputs_of(model: Model, X: Inputs, argument: str = 'X_test') -> PyTree:
    """Returns inputs for a model's forward pass: all rows of `open_rows_of`.

    Raises:
        DataError: if there are no inputs, or the model can't take them.
        ModelTypeError: if the object is not a model.
    """
    return open_rows_of(model, X, argument).all()


def some_rows(rows: Rows) -> PyTree:
    """Reads a sample of evenly spaced rows, small enough to be read twice."""
    return rows.take(sample_rows(len(rows), rows.num_bytes // len(rows)))


def probe_of(inputs: InputSpec, rows: int) -> Any:
    """Returns a number of rows of the inputs, as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda part: jax.ShapeDtypeStruct((rows, *part.shape), jnp.dtype(part.dtype)),
        inputs.arrays,
    )


def with_ranges(inputs: InputSpec, some: PyTree) -> InputSpec:
    """Returns the description of inputs with the ranges of their values.

    Args:
        inputs: the description of the inputs.
        some: a sample of the rows, as `some_rows` reads them.
    """

    def add_range(part: ArraySpec, array: np.ndarray) -> ArraySpec:
        if part.columns is not None or not part.shape:
            return part  # each column has its own range
        return dataclasses.replace(part, range=range_of(array))

    return inputs.map(add_range, some)


def warn_of_other_ranges(now: InputSpec, before: InputSpec, argument: str) -> None:
    """Warns if a model that was trained before now gets training data on another scale.

    Args:
        now: the description of the inputs.
        before: the description of the inputs of the earlier training; inputs of another structure
            are not compared.
        argument: the name of the inputs.
    """
    if jax.tree.structure(now.arrays) != jax.tree.structure(before.arrays):
        return
    now.map(lambda *parts: warn_of_other_range(*parts, argument=argument), before.arrays)


def fingerprint(
    X: Rows | Inputs,
    y: PyTree,
    weight: PyTree = None,
    *,
    rows: np.ndarray | None = None,
) -> dict[str, Any]:
    """Identifies a data set by the number of rows, the description of a row, and a hash.

    The hash is over shapes, dtypes and evenly spaced rows, at most 4,096 of them (fewer if rows
    are large). The same values have the same hash, whether stored or in memory.

    Args:
        X: checked inputs, or `Rows`.
        y: encoded targets, or a dict of them by head.
        weight: the weights of the rows, or a dict of them; None if all are 1.
        rows: the rows in use; None for all.
    """
    stored = X if isinstance(X, Rows) else open_rows(X, 'X')
    num_rows = len(stored) if rows is None else len(rows)
    row_bytes = max(1, stored.num_bytes // len(stored))
    count = min(num_rows, max(_MIN_ROWS, min(_MAX_ROWS, _MAX_BYTES // row_bytes)))
    chosen = np.linspace(0, num_rows - 1, count).astype(np.int64)
    digest = hashlib.sha256()
    if rows is not None:
        digest.update(rows.astype(np.int64).tobytes())
        chosen = np.sort(rows[chosen])
    parts = (stored.take(chosen), *jax.tree.map(lambda array: array[chosen], (y, weight)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        key = jax.tree_util.keystr(path)
        digest.update(f'{key} {num_rows} {leaf.shape[1:]} {leaf.dtype}'.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {'rows': num_rows, 'inputs': str(stored.inputs), 'sha256': digest.hexdigest()}
