"""Pool: the unlabelled rows to choose from, and the rows that have labels from the beginning."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

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
from thinkml.model_record import InputSpec
from thinkml.tasks import Task
from thinkml.typing import Inputs, Labels, PyTree


class Pool:
    """Inputs without labels, and inputs that have labels from the beginning.

    Args:
        X_unlabeled: see `ActiveLearner.train`.
        X_labeled: see `ActiveLearner.train`.
        y_labeled: see `ActiveLearner.train`.
        trained_spec: the inputs that the models were trained on before; None for none.

    Attributes:
        rows: the rows without labels.
        inputs: the names, shapes, dtypes and ranges of a row of either kind.
        initial_rows: the rows that have labels from the beginning; None for none.
        initial_labels: their labels, as the user writes them.

    Raises:
        DataError: for data that can't be used, or that do not match each other.
    """

    def __init__(
        self,
        X_unlabeled: Inputs,
        X_labeled: Inputs,
        y_labeled: Labels,
        trained_spec: InputSpec | None = None,
    ):
        if X_unlabeled is None:
            raise DataError('X_unlabeled: got None, expected the inputs to choose from.')
        self.initial_rows: Rows | None = None
        self.initial_labels: np.ndarray | None = None
        inputs = None if trained_spec is None else trained_spec.names_alone()
        if X_labeled is not None:
            rows, targets = open_data(X_labeled, y_labeled, 'X_labeled', 'y_labeled', inputs)
            inputs = with_ranges(rows.inputs, some_rows(rows))
            labels = check_targets(targets, 'y_labeled')
            check_lengths({'X_labeled': rows, 'y_labeled': labels})
            self.initial_rows, self.initial_labels = rows, labels
        elif y_labeled is not None:
            raise DataError('X_labeled: got None together with y_labeled, expected both or none.')
        if is_batches(X_unlabeled):
            batches = open_batches(X_unlabeled, 'X_unlabeled', with_labels=False, like=inputs)
            self.rows, some = rows_of_batches(batches), batches.peek().x
        else:
            self.rows = open_rows(X_unlabeled, 'X_unlabeled', like=inputs)
            some = some_rows(self.rows)
        # With initial rows the range is theirs, and the rows of the pool are compared with it.
        self.inputs = self.rows.inputs
        if self.initial_rows is None:
            self.inputs = with_ranges(self.inputs, some)
        if trained_spec is not None:
            argument = 'X_unlabeled' if self.initial_rows is None else 'X_labeled'
            warn_of_other_ranges(self.inputs, trained_spec, argument)

    def check_rows(self, indices: ArrayLike) -> list[int]:
        """Returns rows of the pool as a list.

        Raises:
            DataError: for an index that is not a row of the pool, or that occurs twice.
        """
        rows = np.asarray(indices).reshape(-1)
        if rows.size and rows.dtype.kind not in 'iu':
            raise DataError(f'indices: got {rows.dtype}, expected whole numbers: rows of the pool.')
        wrong = rows[(rows < 0) | (rows >= len(self.rows))]
        if wrong.size:
            raise DataError(
                f'indices: got row {wrong[0]}, expected 0 to {len(self.rows) - 1:,}: they count '
                'the rows of the pool as it was passed.'
            )
        if len(np.unique(rows)) < len(rows):
            raise DataError('indices: got a row twice, expected each once.')
        return [int(row) for row in rows]

    def check_labels(
        self,
        y: Labels,
        rows: list[int],
        task: Task | None,
        others: Mapping[int, Any],
        argument: str,
    ) -> list[Any]:
        """Returns a label for each row as plain values, None for a missing one.

        Args:
            y: the labels.
            rows: the rows of the pool that the labels belong to.
            task: the task; None if it is not known yet.
            others: labels that were added before, by row.
            argument: the name used in error messages.

        Raises:
            DataError: for another number of labels, and for labels that can't be learned, either
                alone or together with the others.
        """
        labels = _as_list(y, argument)
        if len(labels) != len(rows):
            raise DataError(
                f'{argument}: got {len(labels)} labels for {len(rows)} rows, expected one each, '
                'None for a row that has none.'
            )
        by_row = {row: y for row, y in zip(rows, labels, strict=True) if not _has_missing(y)}
        if not by_row:
            return [None] * len(rows)
        plain = _as_targets(list(by_row.values()), argument).tolist()
        by_row = dict(zip(by_row, plain, strict=True))
        if task is not None:
            encode_targets(plain, task, argument)
        else:
            # One of the others is enough: they passed this check too.
            others = dict(others)  # a copy, since other threads may add labels
            other = next((label for row, label in others.items() if row not in by_row), plain[0])
            self.with_initial_labels([other, *plain], argument)
        return [by_row.get(row) for row in rows]

    def labeled_rows(self, labels: Mapping[int, Any]) -> tuple[PyTree, np.ndarray | None]:
        """Returns the inputs and labels of all rows that have labels; None and None for none.

        Args:
            labels: the added labels, by row of the pool.
        """
        parts = [] if self.initial_rows is None else [self.initial_rows.all()]
        if labels:
            parts.append(self.rows.take(np.array(list(labels))))
        if not parts:
            return None, None
        x = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return x, self.with_initial_labels(list(labels.values()), 'y')

    def with_initial_labels(self, labels: list[Any], argument: str) -> np.ndarray:
        """Returns the initial labels and others as one array.

        Raises:
            DataError: if they are of different kinds.
        """
        initial = self.initial_labels
        if not labels and initial is not None:
            return initial
        targets = _as_targets(labels, argument)
        if initial is None:
            return targets
        if (initial.dtype.kind == 'U') != (targets.dtype.kind == 'U'):
            raise DataError(_MIXED.format(argument))
        if {initial.shape[1:], targets.shape[1:]} == {(), (1,)}:
            targets = targets.reshape(len(targets), *initial.shape[1:])
        if initial.shape[1:] != targets.shape[1:]:
            raise DataError(
                f'{argument}: got labels of shape {targets.shape}, expected that of y_labeled, '
                f'{initial.shape}, except for the number of rows.'
            )
        return np.concatenate([initial, targets])

    def fingerprints(self) -> dict[str, Any]:
        """Returns `thinkml.data.fingerprint` of both parts of the data, by argument."""
        initial = None
        if self.initial_rows is not None and self.initial_labels is not None:
            initial = fingerprint(self.initial_rows, _as_numbers(self.initial_labels))
        return {
            'X_unlabeled': fingerprint(self.rows, np.zeros(len(self.rows), np.int8)),
            'X_labeled': initial,
        }


_MIXED = '{}: got text and numbers as labels, expected labels of one kind.'


def _as_list(y: Labels, argument: str) -> list[Any]:
    if y is None:
        raise DataError(
            f'{argument}: got None, expected a label for each row, None for a missing label.'
        )
    if not isinstance(y, list | tuple):
        is_empty = hasattr(y, '__len__') and not len(y)
        y = [] if is_empty else np.atleast_1d(as_array(y, argument))
    return [plain_label(label) for label in y]


def plain_label(label: Any) -> Any:
    """Returns a label as plain Python values; a label alone in a list or an array is unpacked.

    So a column ``[rows, 1]``, which some calls pass, gives the same labels as ``[rows]``.
    """
    if hasattr(label, 'tolist'):
        label = label.tolist()
    while isinstance(label, list | tuple) and len(label) == 1:
        [label] = label
    return label


def _as_targets(labels: list[Any], argument: str) -> np.ndarray:
    if len({isinstance(label, str) for label in labels}) > 1:
        raise DataError(_MIXED.format(argument))  # NumPy would turn the numbers into text
    return check_targets(labels, argument)


def _has_missing(label: Any) -> bool:
    """Returns True for a missing label (None, NaN, pandas's NA), and for a row that holds one."""
    if isinstance(label, list | tuple | np.ndarray):
        return any(map(_has_missing, label))
    return is_missing(label)


def _as_numbers(labels: np.ndarray) -> np.ndarray:
    """Returns labels as numbers for hashing; texts as the code points of their characters."""
    if labels.dtype.kind != 'U':
        return labels
    return np.ascontiguousarray(labels).view(np.uint32).reshape(len(labels), -1)
