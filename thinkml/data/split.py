"""Splitting of the training data into training and validation rows."""

from typing import Literal, get_args

import numpy as np

from thinkml.data.arrays import number_groups
from thinkml.data.head_targets import num_rows_of
from thinkml.errors import ConfigError, DataError, unknown_name
from thinkml.tasks import AnyTask, Task
from thinkml.typing import Labels, PyTree

SplitOrder = Literal['random', 'last']

# A group can't be divided, so the best of several random draws of groups is used.
_DRAWS = 32


def split_rows(
    targets: PyTree,
    task: AnyTask,
    fraction: float,
    seed: int,
    *,
    order: SplitOrder = 'random',
    groups: Labels | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into training and validation rows.

    The random split of a binary or multiclass task with one label a row is stratified: each class
    has the same fraction of validation rows, to the nearest row; for several heads each combination
    of their classes has. With groups, all rows of a group
    are on the same side. The fraction is then accurate to half of the largest group (unless a side
    would be empty). The fractions of the classes are the best of 32 random draws.

    Args:
        targets: encoded targets ``[rows, ...]``, or a dict of them by head.
        task: the task of the targets.
        fraction: the fraction of the rows for validation, between 0 and 1.
        seed: the seed of the shuffling.
        order: ``'random'``, or ``'last'`` for the last rows, for data in the order of time.
        groups: ``[rows]``, numbers or text; equal values mark rows that belong together (one
            patient, one speaker), so that no group is in both parts. None for no groups.

    Returns:
        training rows and validation rows, each sorted.

    Raises:
        DataError: if either part would be empty; if there is not one group for each row.
        ConfigError: for an order that is unknown, or can not be used with groups.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import split_rows
        >>> from thinkml.tasks import Task
        >>> task = Task('regression', None, 1)
        >>> split_rows(np.zeros(5), task, 0.4, seed=0, order='last')
        (array([0, 1, 2]), array([3, 4]))
    """
    if order not in get_args(SplitOrder):
        raise ConfigError(unknown_name('order', order, get_args(SplitOrder)))
    num_rows = num_rows_of(targets)
    num_val = round(num_rows * fraction)
    if not 0 < num_val < num_rows:
        raise DataError(
            f'validation_split: got {fraction} of {num_rows} rows, which leaves '
            f'{num_rows - num_val} for training and {num_val} for validation. Expected at least '
            'one each: use another fraction, or pass X_val and y_val.'
        )
    rng = np.random.default_rng(seed)
    labels = _classes_of_rows(targets, task, num_rows)
    if groups is not None:
        if order == 'last':
            raise ConfigError("groups: got them with the order 'last', expected one of the two.")
        in_val = _draw_groups(_group_numbers(groups, num_rows), labels, fraction, rng)
        return np.flatnonzero(~in_val), np.flatnonzero(in_val)
    if order == 'last':
        rows = np.arange(num_rows)
        return rows[:-num_val], rows[-num_val:]
    shuffled = _spread_classes(rng.permutation(num_rows), labels)
    return np.sort(shuffled[num_val:]), np.sort(shuffled[:num_val])


def _classes_of_rows(targets: PyTree, task: AnyTask, num_rows: int) -> np.ndarray:
    """Returns the number of each row's class; for heads, of its combination of classes."""
    heads = (
        [(task, targets)] if isinstance(task, Task) else [(t, targets[n]) for n, t in task.heads]
    )
    classes = [
        labels for head, labels in heads if head.type.has_one_class and not head.element_shape
    ]
    if len(classes) < 2:
        return classes[0] if classes else np.zeros(num_rows, np.int64)
    return np.unique(np.stack(classes), axis=1, return_inverse=True)[1].reshape(num_rows)


def _spread_classes(order: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Reorders rows so that each class has the same proportion in every prefix."""
    labels = targets[order]
    by_class = np.argsort(labels, kind='stable')
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.arange(len(labels)) - starts
    position = (rank + 0.5) / np.repeat(counts, counts)
    return order[by_class[np.argsort(position, kind='stable')]]


def _group_numbers(groups: Labels, num_rows: int) -> np.ndarray:
    """Returns the groups numbered from 0, ``[rows]``.

    Raises:
        DataError: if all rows are in one group.
    """
    numbers = number_groups(groups, num_rows, 'groups')
    if not numbers.any():
        raise DataError(
            f'groups: got all {num_rows} rows in one group, expected at least two to split.'
        )
    return numbers


def _draw_groups(
    groups: np.ndarray, labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns a mask of the validation rows, from the best of several draws of groups."""
    _, labels = np.unique(labels, return_inverse=True)
    counts = np.zeros((groups.max() + 1, labels.max() + 1))
    np.add.at(counts, (groups, labels), 1)
    goal = fraction * counts.sum(axis=0)
    draws = [_draw(counts.sum(axis=1), goal.sum(), rng) for _ in range(_DRAWS)]
    best = min(draws, key=lambda drawn: np.abs(counts[drawn].sum(axis=0) - goal).sum())
    return best[groups]


def _draw(sizes: np.ndarray, goal: float, rng: np.random.Generator) -> np.ndarray:
    """Visits the groups in random order and adds each that brings the size nearer to the goal."""
    drawn = np.zeros(len(sizes), bool)
    missing = goal
    for group in rng.permutation(len(sizes)):
        if abs(missing - sizes[group]) < abs(missing):
            drawn[group] = True
            missing -= sizes[group]
    # Neither side may be empty; moving the smallest group changes the fraction least.
    if not drawn.any() or drawn.all():
        drawn[sizes.argmin()] ^= True
    return drawn
