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
    some_rows,
    warn_of_other_ranges,
    with_ranges,
)
from thinkml.data.object_arrays import is_missing
from thinkml.errors import DataError
from thinkml.model_record import InputSpec, Task


class Pool:
    """Inputs without labels, and what has labels from the beginning.

    Args:
        X_unlabeled: see `ActiveLearner.train`.
        X_labeled: likewise.
        y_labeled: likewise.
        known: what the models were trained on before; None for nothing.

    Attributes:
        rows: those without labels.
        inputs: what a row of all of them looks like.
        first: those that have labels from the beginning; None for none.
        first_labels: their labels, as the user writes them.

    Raises:
        DataError: for data that can't be used, or don't fit each other.
    """

    def __init__(
        self, X_unlabeled: Any, X_labeled: Any, y_labeled: Any, known: InputSpec | None = None
    ):
        if X_unlabeled is None:
            raise DataError('X_unlabeled: got None, expected the inputs to choose from.')
        self.first: Rows | None = None
        self.first_labels: np.ndarray | None = None
        inputs = None if known is None else known.names_alone()
        if X_labeled is not None:
            self.first, targets = open_data(X_labeled, y_labeled, 'X_labeled', 'y_labeled', inputs)
            inputs = with_ranges(self.first.inputs, some_rows(self.first))
            self.first_labels = check_targets(targets, 'y_labeled')
            check_lengths({'X_labeled': self.first, 'y_labeled': self.first_labels})
        elif y_labeled is not None:
            raise DataError('X_labeled: got None together with y_labeled, expected both or none.')
        if is_batches(X_unlabeled):
            batches = open_batches(X_unlabeled, 'X_unlabeled', with_labels=False, like=inputs)
            self.rows, some = rows_of_batches(batches), batches.peek().x
        else:
            self.rows = open_rows(X_unlabeled, 'X_unlabeled', like=inputs)
            some = some_rows(self.rows)
        # Rows with labels have told the range, and those without are compared with it.
        self.inputs = self.rows.inputs
        if self.first is None:
            self.inputs = with_ranges(self.inputs, some)
        if known is not None:
            opened = 'X_unlabeled' if self.first is None else 'X_labeled'
            warn_of_other_ranges(self.inputs, known, opened)

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

    def check_labels(
        self, y: Any, rows: list[int], task: Task | None, others: Mapping[int, Any], argument: str
    ) -> list[Any]:
        """Returns a label for each row as plain values, None where there is none.

        Args:
            y: the labels.
            rows: of the pool, which they are for.
            task: what is learned; None where that is not known yet.
            others: labels that were given before, by row.
            argument: the name used in error messages.

        Raises:
            DataError: for another number of labels, and for labels that can't be learned, or not
                together with the others.
        """
        labels = _one_by_one(y, argument)
        if len(labels) != len(rows):
            raise DataError(
                f'{argument}: got {len(labels)} labels for {len(rows)} rows, expected one each, '
                'None for a row that has none.'
            )
        given = {row: y for row, y in zip(rows, labels, strict=True) if not _has_missing(y)}
        if not given:
            return [None] * len(rows)
        plain = _as_targets(list(given.values()), argument).tolist()
        given = dict(zip(given, plain, strict=True))
        if task is not None:
            encode_targets(plain, task, argument)
        else:
            # One of the others speaks for all: they went through this too.
            known = dict(others)  # at once: other threads may teach
            other = next((label for row, label in known.items() if row not in given), plain[0])
            self.with_first([other, *plain], argument)
        return [given.get(row) for row in rows]

    def labeled(self, labels: Mapping[int, Any]) -> tuple[Any, np.ndarray | None]:
        """Returns the inputs and labels of all rows that have some; None and None for none.

        Args:
            labels: by row of the pool.
        """
        parts = [] if self.first is None else [self.first.all()]
        if labels:
            parts.append(self.rows.take(np.array(list(labels))))
        if not parts:
            return None, None
        x = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return x, self.with_first(list(labels.values()), 'y')

    def with_first(self, labels: list[Any], argument: str) -> np.ndarray:
        """Returns the first labels and others as one array.

        Raises:
            DataError: if they are of different kinds.
        """
        first = self.first_labels
        if not labels and first is not None:
            return first
        targets = _as_targets(labels, argument)
        if first is None:
            return targets
        if (first.dtype.kind == 'U') != (targets.dtype.kind == 'U'):
            raise DataError(_MIXED.format(argument))
        if {first.shape[1:], targets.shape[1:]} == {(), (1,)}:
            targets = targets.reshape(len(targets), *first.shape[1:])
        if first.shape[1:] != targets.shape[1:]:
            raise DataError(
                f'{argument}: got labels of shape {targets.shape}, expected those of y_labeled, '
                f'{first.shape}, but for the number of rows.'
            )
        return np.concatenate([first, targets])

    def about(self) -> dict[str, Any]:
        """What identifies the data: `thinkml.data.fingerprint` of both parts, by argument."""
        first = None
        if self.first is not None and self.first_labels is not None:
            first = fingerprint(self.first, _bytes_of(self.first_labels))
        return {
            'X_unlabeled': fingerprint(self.rows, np.zeros(len(self.rows), np.int8)),
            'X_labeled': first,
        }


_MIXED = '{}: got text and numbers as labels, expected labels of one kind.'


def _one_by_one(y: Any, argument: str) -> list[Any]:
    if y is None:
        raise DataError(f'{argument}: got None, expected a label for each row, None where none is.')
    if not isinstance(y, list | tuple):
        is_empty = hasattr(y, '__len__') and not len(y)
        y = [] if is_empty else np.atleast_1d(as_array(y, argument))
    return [plain_label(label) for label in y]


def plain_label(label: Any) -> Any:
    """Returns a label as Python's values; one that is alone in a list or an array as itself.

    So a column ``[rows, 1]``, which is what some calls pass, gives the labels that others have.
    """
    if hasattr(label, 'tolist'):
        label = label.tolist()
    while isinstance(label, list | tuple) and len(label) == 1:
        [label] = label
    return label


def _as_targets(labels: list[Any], argument: str) -> np.ndarray:
    if len({isinstance(label, str) for label in labels}) > 1:
        raise DataError(_MIXED.format(argument))  # NumPy would make text of the numbers
    return check_targets(labels, argument)


def _has_missing(label: Any) -> bool:
    """Returns True for a missing label, and for a row that holds a missing value."""
    if isinstance(label, list | tuple | np.ndarray):
        return any(map(_has_missing, label))
    return is_missing(label)


def _bytes_of(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers that are hashed: texts by their characters."""
    if labels.dtype.kind != 'U':
        return labels
    return np.ascontiguousarray(labels).view(np.uint32).reshape(len(labels), -1)
