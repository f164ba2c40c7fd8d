"""Validation rows out of the training data."""

import numpy as np

from thinkml.errors import DataError
from thinkml.record import Task


def split_rows(
    targets: np.ndarray, task: Task, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the rows at random into training and validation rows.

    For binary and multiclass tasks each class gives its share (stratified), to the nearest row.

    Args:
        targets: encoded targets ``[rows, ...]``.
        task: what they mean.
        fraction: share of the rows for validation, between 0 and 1.
        seed: of the shuffling.

    Returns:
        training rows and validation rows, each sorted.

    Raises:
        DataError: if either part would be empty.
    """
    num_rows = len(targets)
    num_val = round(num_rows * fraction)
    if not 0 < num_val < num_rows:
        raise DataError(
            f'validation_split: got {fraction} of {num_rows} rows, which leaves '
            f'{num_rows - num_val} for training and {num_val} for validation. Expected at least '
            'one each: use another fraction, or pass X_val and y_val.'
        )
    order = np.random.default_rng(seed).permutation(num_rows)
    if task.kind in ('binary', 'multiclass'):
        order = _spread_classes(order, targets)
    return np.sort(order[num_val:]), np.sort(order[:num_val])


def _spread_classes(order: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Reorders rows so that every prefix holds each class in proportion."""
    labels = targets[order]
    by_class = np.argsort(labels, kind='stable')
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.arange(len(labels)) - starts
    position = (rank + 0.5) / np.repeat(counts, counts)
    return order[by_class[np.argsort(position, kind='stable')]]
