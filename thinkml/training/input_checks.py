"""Checks of the inputs of a training: pixels, the lengths of sequences, and ids."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from thinkml.core import functionalize
from thinkml.core.model.embedding_lookups import check_lookups, has_lookups, lookups
from thinkml.core.model.functional import any_outputs_of
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import Rows
from thinkml.data.input_range import check_standardised
from thinkml.data.inputs import probe_of
from thinkml.data.sequences import bucket_lengths, shorter_inputs
from thinkml.model_record import ArraySpec, InputSpec
from thinkml.training.training_data import Examples, Stream, advising
from thinkml.typing import Model

# Enough rows to see the range of values.
_SOME_ROWS = 1000
# The ids of so many rows are checked in one call.
_BLOCK_ROWS = 2**14

_FIXED_LENGTH = (
    'Rows of similar lengths share a batch, whose length is that of its longest row: let the model '
    'take shorter sequences, for instance by positions[: tokens.shape[1]].'
)


def check_pixels_of(model: Any, inputs: InputSpec) -> None:
    """Checks the images of a model that standardises them itself.

    Raises:
        DataError: see `thinkml.data.input_range.check_standardised`.
    """
    # By an attribute, since TransferModel's package is not imported for other models.
    standardises = getattr(model, 'standardises_pixels', False) is True
    if standardises and isinstance(inputs.arrays, ArraySpec):
        check_standardised(inputs.arrays, 'X_train')


def check_shorter_rows(model: Model, inputs: InputSpec, lengths: np.ndarray | None) -> None:
    """Raises a `DataError` if the model can't take the shorter sequences of a bucket."""
    for length in [] if lengths is None else bucket_lengths(lengths):
        shorter = probe_of(shorter_inputs(inputs, int(length)), PROBE_ROWS)
        with advising(_FIXED_LENGTH):
            any_outputs_of(model, shorter, 'X_train')


def first_rows(x: Any, probe: Any) -> Any:
    """Returns the first rows of inputs in memory, else the shapes and dtypes of some rows."""
    if not (isinstance(x, Rows) and x.in_memory):
        return probe
    return x.take(np.arange(min(len(x), _SOME_ROWS)))


def check_ids(model: Any, probe: Any, parts: dict[str, Examples | Stream]) -> None:
    """Checks the ids of all rows in memory, and of some rows on disk, see `check_lookups`."""
    functional = functionalize(model, probe, jax.random.key(0))
    if not has_lookups(functional, probe):
        return
    for argument, data in parts.items():
        check_lookups([lookups(functional, x) for x in _inputs_to_check(data)], argument)


def _inputs_to_check(data: Examples | Stream) -> Iterator[Any]:
    """Yields rows in blocks of one size; the last one is filled up."""
    if isinstance(data, Stream):
        yield data.batches.peek().x
        return
    rows = data.rows
    if not data.x.in_memory:
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SOME_ROWS)).astype(np.int64)]
    size = min(len(rows), _BLOCK_ROWS)
    for first in range(0, len(rows), size):
        yield data.x.take(np.resize(rows[first : first + size], size))
