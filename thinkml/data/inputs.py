"""Model inputs as checked arrays, in memory, and what identifies a data set."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from thinkml.core import num_outputs
from thinkml.data.input_arrays import sampled
from thinkml.data.input_range import range_of, warn_of_other_range
from thinkml.data.rows import Rows, open_rows
from thinkml.model_record import ArraySpec, InputSpec, record_of

# A fingerprint reads at most this many bytes and rows, but never fewer rows than the least.
_MAX_BYTES, _MAX_ROWS, _MIN_ROWS = 16 * 2**20, 4096, 64


def check_inputs(X: Any, argument: str = 'X_train', like: InputSpec | None = None) -> Any:
    """Returns model inputs as numeric arrays, in the dtype the device computes in.

    float64 becomes float32 and int64 becomes int32; other dtypes stay (uint8 images, bool). See
    `open_rows` for inputs that don't fit into memory.

    Args:
        X: anything `open_rows` takes: arrays, nested lists, frames of numbers, sparse matrices,
            stored arrays, data sets; a dict or a tuple of them for several inputs.
        argument: the name used in error messages.
        like: what the inputs must be like, of those the model is trained on.

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


def open_rows_of(model: Any, X: Any, argument: str = 'X_test') -> Rows:
    """Opens inputs for a model's forward pass, checked as by `open_rows`.

    Integers become floats where the model was trained on floats, and columns of a frame are put
    into the order of the training.

    Raises:
        DataError: also if the rows have another shape than the model was trained on, or are
            floats where it was trained on integers.
        ModelTypeError: if the object is not a model.
    """
    like = record_of(model).input_spec
    rows = open_rows(X, argument, like)
    if like is None:
        num_outputs(model, rows.spec, argument)
    return rows


def check_inputs_of(model: Any, X: Any, argument: str = 'X_test') -> Any:
    """Returns inputs for a model's forward pass: all rows of `open_rows_of`.

    Raises:
        DataError: if they are none, or none the model can take.
        ModelTypeError: if the object is not a model.
    """
    return open_rows_of(model, X, argument).all()


def some_rows(rows: Rows) -> Any:
    """Reads some rows, evenly spaced, few enough to be read twice."""
    return rows.take(sampled(len(rows), rows.num_bytes // len(rows)))


def with_ranges(inputs: InputSpec, some: Any) -> InputSpec:
    """Returns the description of inputs with the ranges of their values.

    Args:
        inputs: what they are like.
        some: some of the rows, as `some_rows` reads them.
    """

    def described(part: ArraySpec, array: Any) -> ArraySpec:
        if part.columns is not None or not part.shape:
            return part  # columns have ranges of their own
        return dataclasses.replace(part, range=range_of(array))

    return inputs.map(described, some)


def warn_of_other_ranges(now: InputSpec, before: InputSpec, argument: str) -> None:
    """Warns if a model that was trained before gets values on another scale to be trained on.

    Args:
        now: what the inputs are like.
        before: what the model was trained on; no scale of another structure is compared.
        argument: the name of the inputs.
    """
    if jax.tree.structure(now.arrays) != jax.tree.structure(before.arrays):
        return
    now.map(lambda *parts: warn_of_other_range(*parts, argument=argument), before.arrays)


def fingerprint(
    X: Any,
    y: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    rows: np.ndarray | None = None,
) -> dict[str, Any]:
    """Identifies a data set: the number of rows, what they are like, and a hash.

    The hash is over shapes, dtypes and evenly spaced rows, at most 4,096 of them (fewer of large
    rows). Stored and in memory, the same values have the same one.

    Args:
        X: checked inputs, or `Rows`.
        y: encoded targets.
        weight: of the rows; None where all count 1.
        rows: those in use; None for all.
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
    parts = (stored.take(chosen), y[chosen], None if weight is None else weight[chosen])
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        place = jax.tree_util.keystr(path)
        digest.update(f'{place} {num_rows} {leaf.shape[1:]} {leaf.dtype}'.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {'rows': num_rows, 'inputs': str(stored.inputs), 'sha256': digest.hexdigest()}
