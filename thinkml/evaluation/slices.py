"""How a model does on parts of the rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from thinkml.errors import DataError
from thinkml.evaluation.intervals import intervals_of
from thinkml.evaluation.result import Evaluation, Slice

Mask = np.ndarray
_MAX_VALUES = 100


def open_slices(slices: Mapping[str, Any] | None, num_rows: int) -> dict[str, Mask]:
    """The rows of each slice, as a mask.

    Raises:
        DataError: if something is neither a mask nor values of the rows.
    """
    masks = {}
    for name, values in (slices or {}).items():
        array = np.asarray(values)
        if array.shape != (num_rows,):
            raise DataError(
                f'slices: {name!r} has shape {array.shape}, expected ({num_rows},), a bool or a '
                'value for each row.'
            )
        if array.dtype == bool:
            masks[str(name)] = array
            continue
        found = np.unique(array)
        if len(found) > _MAX_VALUES:
            raise DataError(
                f'slices: {name!r} has {len(found):,} different values, expected at most '
                f'{_MAX_VALUES}. Pass masks, such as values > 60, or bins: np.digitize(values, '
                '[20, 40, 60]).'
            )
        masks |= {f'{name} = {value}': array == value for value in found}
    return masks


def evaluate_slices(
    evaluation: Evaluation, masks: dict[str, Mask], min_support: int
) -> dict[str, Slice]:
    """Measures each slice.

    A slice is a weight of 0 for all other rows, so nothing is sorted, predicted or compiled again.
    """
    return {
        name: _evaluate_slice(name, evaluation, mask, min_support) for name, mask in masks.items()
    }


def _evaluate_slice(name: str, evaluation: Evaluation, mask: Mask, min_support: int) -> Slice:
    scored, metrics, num_rows = evaluation.scored, evaluation.definitions, int(mask.sum())
    if num_rows < min_support:
        return Slice(name, num_rows, {}, {}, {}, is_supported=False)
    weight = scored.weights * mask
    values = {n: metric.of(scored, weight) for n, metric in metrics.items()}
    gaps = {n: value - evaluation.metrics[n] for n, value in values.items()}
    intervals = intervals_of(scored, metrics, evaluation.resampling, weight)
    return Slice(name, num_rows, values, intervals, gaps, is_supported=True)
