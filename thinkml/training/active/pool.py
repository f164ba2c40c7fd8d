"""The rows of an active learning: those to choose from, and those that have labels already."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from thinkml.data import (
    Rows,
    as_array,
    check_lengths,
    check_targets,
    encode_targets,
    fingerprint,
    is_batches,
    open_batches,
    open_data,
    open_rows,
    rows_of_batches,
)
from thinkml.errors import DataError
from thinkml.record import Task
from thinkml.training.active.history import plain


class Pool:
    """Inputs without labels, and what has labels from the beginning.

    Args:
        X_unlabeled: see `ActiveLearner.train`.
        X_labeled: likewise.
        y_labeled: likewise.

    Attributes:
        rows: those without labels.
        first_labels: of the others, as the user writes them; None where there are none.

    Raises:
        DataError: for data that can't be used, or don't fit each other.
    """

    def __init__(self, X_unlabeled: Any, X_labeled: Any, y_labeled: Any):
        if X_unlabeled is None:
            raise DataError('X_unlabeled: got None, expected the inputs to choose from.')
        self._first: Rows | None = None
        self.first_labels: np.ndarray | None = None
        inputs = None
        if X_labeled is not None:
            self._first, targets = open_data(X_labeled, y_labeled, 'X_labeled', 'y_labeled')
            inputs = self._first.inputs
            self.first_labels = check_targets(targets, 'y_labeled')
            check_lengths({'X_labeled': self._first, 'y_labeled': self.first_labels})
        elif y_labeled is not None:
            raise DataError('X_labeled: got None together with y_labeled, expected both or none.')
        if is_batches(X_unlabeled):
            batches = open_batches(X_unlabeled, 'X_unlabeled', with_labels=False, like=inputs)
            self.rows = rows_of_batches(batches)
        else:
            self.rows = open_rows(X_unlabeled, 'X_unlabeled', like=inputs)

    def check_rows(self, indices: Any) -> list[int]:
        """Returns rows of the pool as a list.

        Raises:
            DataError: for what is none, or comes twice.
        """
        rows = np.asarray(indices).reshape(-1)
        if rows.size and rows.dtype.kind not in 'iu':
            raise DataError(f'indices: got {rows.dtype}, expected whole numbers: rows of the pool.')
        wrong = rows[(rows < 0) | (rows >= len(self.rows))]
        if wrong.size:
            raise DataError(
                f'indices: got row {wrong[0]}, expected 0 to {len(self.rows) - 1:,}: they count '
                'the rows of the pool as it was passed in.'
            )
        if len(np.unique(rows)) < len(rows):
            raise DataError('indices: got a row twice, expected each once.')
        return [int(row) for row in rows]

    def check_labels(self, y: Any, rows: list[int], task: Task | None) -> list[Any]:
        """Returns a label for each row as plain values, None where there is none.

        Raises:
            DataError: for another number of labels, and for labels that can't be learned.
        """
        labels = [
            plain(label) for label in (y if isinstance(y, list | tuple) else as_array(y, 'y'))
        ]
        if len(labels) != len(rows):
            raise DataError(f'y: got {len(labels)} labels for {len(rows)} rows, expected one each.')
        labels = [None if is_missing(label) else label for label in labels]
        given = [label for label in labels if label is not None]
        if given and task is not None:
            encode_targets(given, task, 'y')
        elif given:
            check_targets(given, 'y')
        return labels

    def labeled(self, labels: Mapping[int, Any]) -> tuple[Any, np.ndarray | None]:
        """Returns the inputs and labels of all rows that have some; None and None for none.

        Args:
            labels: by row of the pool.
        """
        parts, targets = [], []
        if self._first is not None and self.first_labels is not None:
            parts.append(self._first.all())
            targets.append(self.first_labels)
        if labels:
            parts.append(self.rows.take(np.array(list(labels))))
            targets.append(check_targets(list(labels.values()), 'y'))
        if not parts:
            return None, None
        if len({target.dtype.kind in 'UO' for target in targets}) > 1:
            raise DataError('y: got text and numbers as labels, expected labels of one kind.')
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), np.concatenate(targets)

    def about(self) -> dict[str, Any]:
        """What identifies the data: `thinkml.data.fingerprint` of both parts, by argument."""
        first = None
        if self._first is not None and self.first_labels is not None:
            first = fingerprint(self._first, _bytes_of(self.first_labels))
        return {
            'X_unlabeled': fingerprint(self.rows, np.zeros(len(self.rows), np.int8)),
            'X_labeled': first,
        }


def is_missing(label: Any) -> bool:
    """Whether a label is none: None, NaN, pandas's NA, or a row that holds one of them."""
    if isinstance(label, list | tuple | np.ndarray):
        return any(map(is_missing, label))
    return label is None or type(label).__name__ in ('NAType', 'NaTType') or label != label


def _bytes_of(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers that are hashed: texts by their characters."""
    if labels.dtype.kind != 'U':
        return labels
    return np.ascontiguousarray(labels).view(np.uint32).reshape(len(labels), -1)
