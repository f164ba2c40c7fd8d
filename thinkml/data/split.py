"""Validation rows out of the training data."""

from typing import Any, Literal, get_args

import numpy as np

from thinkml.data.arrays import number_groups
from thinkml.errors import ConfigError, DataError, unknown_name
from thinkml.model_record import Task

SplitOrder = Literal['random', 'last']

# Rows of a group can't be told apart, so the best of some random draws is taken.
_DRAWS = 32


def split_rows(
    targets: np.ndarray,
    task: Task,
    fraction: float,
    seed: int,
    *,
    order: SplitOrder = 'random',
    groups: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into training and validation rows.

    At random, each class of a binary or multiclass task gives its share (stratified), to the
    nearest row. With groups, all rows of a group are on the same side; the share is met up to half
    of the largest group (unless a side would then be empty), and that of each class as well as 32
    random draws can.

    Args:
        targets: encoded targets ``[rows, ...]``.
        task: what they mean.
        fraction: share of the rows for validation, between 0 and 1.
        seed: of the shuffling.
        order: ``'random'``, or ``'last'`` for the last rows, of data in the order of time.
        groups: ``[rows]``, numbers or text: which rows belong together (of one patient, of one
            speaker), so that none is validated on that was trained on. None: each row is its own.

    Returns:
        training rows and validation rows, each sorted.

    Raises:
        DataError: if either part would be empty; if there is not one group for each row.
        ConfigError: for an order that is unknown, or does not go with groups.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import split_rows
        >>> from thinkml.model_record import Task
        >>> task = Task('regression', None, 1)
        >>> split_rows(np.zeros(5), task, 0.4, seed=0, order='last')
        (array([0, 1, 2]), array([3, 4]))
    """
    if order not in get_args(SplitOrder):
        raise ConfigError(unknown_name('order', order, get_args(SplitOrder)))
    num_rows = len(targets)
    num_val = round(num_rows * fraction)
    if not 0 < num_val < num_rows:
        raise DataError(
            f'validation_split: got {fraction} of {num_rows} rows, which leaves '
            f'{num_rows - num_val} for training and {num_val} for validation. Expected at least '
            'one each: use another fraction, or pass X_val and y_val.'
        )
    rng = np.random.default_rng(seed)
    labels = targets if task.kind in ('binary', 'multiclass') else np.zeros(num_rows, np.int64)
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


def _spread_classes(order: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Reorders rows so that every prefix holds each class in proportion."""
    labels = targets[order]
    by_class = np.argsort(labels, kind='stable')
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.arange(len(labels)) - starts
    position = (rank + 0.5) / np.repeat(counts, counts)
    return order[by_class[np.argsort(position, kind='stable')]]


def _group_numbers(groups: Any, num_rows: int) -> np.ndarray:
    """The groups numbered from 0, ``[rows]``."""
    numbers = number_groups(groups, num_rows, 'groups')
    if not numbers.any():
        raise DataError(
            f'groups: got all {num_rows} rows in one group, expected at least two to split.'
        )
    return numbers


def _draw_groups(
    groups: np.ndarray, labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Which rows are for validation: the best of some draws of whole groups."""
    _, labels = np.unique(labels, return_inverse=True)
    counts = np.zeros((groups.max() + 1, labels.max() + 1))
    np.add.at(counts, (groups, labels), 1)
    wanted = fraction * counts.sum(axis=0)
    draws = [_draw(counts.sum(axis=1), wanted.sum(), rng) for _ in range(_DRAWS)]
    best = min(draws, key=lambda chosen: np.abs(counts[chosen].sum(axis=0) - wanted).sum())
    return best[groups]


def _draw(sizes: np.ndarray, wanted: float, rng: np.random.Generator) -> np.ndarray:
    """Goes through the groups at random and takes each that brings the size nearer."""
    chosen = np.zeros(len(sizes), bool)
    left = wanted
    for group in rng.permutation(len(sizes)):
        if abs(left - sizes[group]) < abs(left):
            chosen[group] = True
            left -= sizes[group]
    # Neither side may be empty; the smallest group costs least.
    if not chosen.any() or chosen.all():
        chosen[sizes.argmin()] ^= True
    return chosen
