"""Slices: the performance of a model on parts of the rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from thinkml.data import as_values, warn_of_missing_text
from thinkml.errors import DataError
from thinkml.evaluation.confidence_intervals import Subset, metric_intervals
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.result import Evaluation, Slice

Mask = np.ndarray
_MAX_VALUES = 100


def open_slices(
    slices: Mapping[str, Any] | None, num_rows: int, element_shape: tuple[int, ...] = ()
) -> dict[str, Mask]:
    """Returns the rows or elements of each slice, as a mask.

    Args:
        slices: by name, a mask or values of rows, or of the elements of rows.
        num_rows: the number of rows.
        element_shape: the axes of the elements of a row that may be in different slices.

    Raises:
        DataError: if a slice is neither a mask nor one value per row or element.
    """
    masks, of_elements = {}, (num_rows, *element_shape)
    for name, values in (slices or {}).items():
        array = as_values(values, f'slices: {name!r}')
        warn_of_missing_text(array, f'slices: {name!r}', 'a slice')
        if array.shape not in ((num_rows,), of_elements):
            expected = f'({num_rows},), a bool or a value for each row'
            if element_shape:
                expected += f', or {of_elements} for each element'
            raise DataError(f'slices: {name!r} has shape {array.shape}, expected {expected}.')
        if array.dtype == object and all(
            isinstance(value, bool | np.bool_) for value in array.flat
        ):
            array = array.astype(bool)
        new = {str(name): array} if array.dtype == bool else _by_value(name, array)
        if duplicates := masks.keys() & new.keys():
            raise DataError(
                f'slices: got two called {min(duplicates)!r}, expected different names.'
            )
        masks |= new
    return masks


def _by_value(name: str, array: np.ndarray) -> dict[str, Mask]:
    if array.dtype == object:
        array = array.astype(str)  # values of several types have no order
    distinct = np.unique(array)
    if len(distinct) > _MAX_VALUES:
        raise DataError(
            f'slices: {name!r} has {len(distinct):,} different values, expected at most '
            f'{_MAX_VALUES}. Pass masks, such as values > 60, or bins: np.digitize(values, '
            '[20, 40, 60]).'
        )
    return {f'{name} = {value}': array == value for value in distinct}


def evaluate_slices(
    evaluation: Evaluation, masks: dict[str, Mask], min_support: int
) -> tuple[dict[str, Slice], list[str]]:
    """Evaluates each slice on its rows alone.

    Returns:
        The slices by name, and one sentence for each metric that is undefined in some of them.
    """
    slices, notes = {}, {}
    for name, mask in masks.items():
        rows = evaluation.scored.take(mask)
        if (rows.weights > 0).sum() < min_support:
            slices[name] = Slice(
                name=name,
                num_rows=_num_rows(rows, evaluation),
                metrics={},
                confidence_intervals={},
                gaps={},
                is_supported=False,
            )
            continue
        slices[name] = _evaluate_slice(name, evaluation, rows, mask)
        for metric_name, metric in evaluation.definitions.items():
            if note := metric.note(metric_name, rows):
                notes.setdefault(note, []).append(name)
    return slices, [f'{_slice_names(names)}: {note}' for note, names in notes.items()]


def _evaluate_slice(name: str, evaluation: Evaluation, rows: EvaluationData, mask: Mask) -> Slice:
    definitions = evaluation.definitions
    values = {n: metric.of(rows) for n, metric in definitions.items()}
    gaps = {n: value - evaluation.metrics[n] for n, value in values.items()}
    subset = Subset(evaluation.scored, mask)
    intervals = metric_intervals(rows, definitions, evaluation.resampling, subset)
    return Slice(
        name=name,
        num_rows=_num_rows(rows, evaluation),
        metrics=values,
        confidence_intervals=intervals,
        gaps=gaps,
        is_supported=True,
    )


def _num_rows(data: EvaluationData, evaluation: Evaluation) -> int:
    if data.positions is None:
        return len(data)
    return len(np.unique(data.positions // evaluation.task.num_elements))


def _slice_names(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'slice{"s" if len(names) > 1 else ""} {", ".join(map(repr, names[:3]))}{more}'
