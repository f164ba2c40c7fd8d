"""Scored elements: the rows, tokens or pixels of a data set that count."""

import dataclasses

import numpy as np

from thinkml.core.objectives.elements import IGNORED
from thinkml.data.targets import counted_rows
from thinkml.evaluation.bootstrap import Resampling
from thinkml.tasks import Task


def has_positions(encoded: np.ndarray, task: Task) -> bool:
    """Returns True if the examples are not all rows in order: elements, or the rows that count."""
    return bool(task.element_shape) or not counted_rows(encoded, task).all()


def counted_elements(encoded: np.ndarray, task: Task) -> np.ndarray:
    """Returns the positions, among all elements of all rows, of those that are not ignored."""
    if not task.type.has_one_class:
        return np.arange(len(encoded) * task.num_elements)
    return np.flatnonzero(encoded.reshape(-1) != IGNORED)


def of_elements(array: np.ndarray, task: Task, positions: np.ndarray) -> np.ndarray:
    """Returns the elements at these positions of an array ``[rows, *element_shape, ...]``."""
    num_axes = 1 + len(task.element_shape)
    return array.reshape(-1, *array.shape[num_axes:])[positions]


def weights_of_elements(
    weight: np.ndarray | None, task: Task, positions: np.ndarray
) -> np.ndarray | None:
    """Returns the weights of elements, from those of rows or of all elements."""
    if weight is None:
        return None
    return weight[positions // task.num_elements] if weight.ndim == 1 else weight.flat[positions]


def draw_rows(resampling: Resampling, rows: np.ndarray) -> Resampling:
    """Returns a resampling that draws all elements of a row together.

    The elements of a row depend on each other, so intervals from elements alone would be too
    narrow. Rows of one element are drawn alone.

    Args:
        resampling: how rows are drawn.
        rows: the row of each element, in order.
    """
    strata = None if resampling.strata is None else resampling.strata[rows]
    if resampling.groups is None and np.diff(rows).all():
        return dataclasses.replace(resampling, strata=strata)
    groups = rows if resampling.groups is None else resampling.groups[rows]
    _, numbered = np.unique(groups, return_inverse=True)
    return dataclasses.replace(resampling, groups=numbered, strata=strata)
