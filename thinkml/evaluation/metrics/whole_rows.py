"""Whole-row metrics: means of values that need all elements of a row, such as the exact match."""

import math
from typing import NamedTuple

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.per_row import accuracy_rows, mean_of_rows
from thinkml.typing import Array


class RowIndex(NamedTuple):
    """The row of each example, and an example of each row.

    Attributes:
        row: ``(n,)``, the rows numbered from 0.
        example: ``(rows,)``, an example with the largest weight of those of the row. Its weight is
            the weight of the row.
    """

    row: np.ndarray
    example: np.ndarray


class RowValues(NamedTuple):
    """A value of each row, ``(rows,)``, and an example of each row, see `RowIndex`."""

    value: Array
    example: Array


def row_index(data: EvaluationData) -> RowIndex:
    """Returns the rows that the examples belong to."""
    if data.positions is None:
        return RowIndex(np.arange(len(data)), np.arange(len(data)))
    numbers = data.positions // math.prod(data.element_shape)
    _, row = np.unique(numbers, return_inverse=True)
    order = np.lexsort((-data.weights, row))
    return RowIndex(row, order[np.diff(row[order], prepend=-1) > 0])


def mean_of_whole_rows(part: RowValues, weight: Array) -> Array:
    """Returns the weighted mean of a value per row."""
    weight = weight[part.example]
    # Infinite values of rows that do not count would make the mean NaN.
    return mean_of_rows(weight.__array_namespace__().where(weight > 0, part.value, 0), weight)


def sum_of_whole_rows(part: RowValues, weight: np.ndarray) -> tuple[float, float]:
    """Returns the weighted sum of a value per row, and the sum of the weights."""
    weight = weight[part.example]
    return float(weight @ part.value), float(weight.sum())


def exact_match_rows(data: EvaluationData) -> RowValues:
    """Returns 1 for each row whose elements with a weight above 0 are all predicted right."""
    row, example = data.part(row_index)
    is_wrong = (data.part(accuracy_rows) == 0) & (data.weights > 0)
    return RowValues((np.bincount(row, is_wrong) == 0).astype(np.float64), example)
