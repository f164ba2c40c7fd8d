"""An evaluation in words."""

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinkml.errors import ThinkMLWarning
from thinkml.evaluation.metrics import compute_metrics
from thinkml.evaluation.result import Evaluation, number

_MAX_ROWS = 50  # of the table by class
_MAX_MATRIX = 20  # classes in the printed confusion matrix


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """An evaluation in words. Made by `ModelEvaluator.generate_report`.

    ``str(report)`` holds the metrics beside those of a baseline that knows nothing of the inputs,
    the table by class in scikit-learn's layout, and the confusion matrix where it fits (up to 20
    classes). The baseline predicts the most frequent class of the evaluated data, with the shares
    of the classes as probabilities; in regression, the mean of the targets.

    Attributes:
        evaluation: what is reported.
    """

    evaluation: Evaluation

    def __str__(self) -> str:
        evaluation = self.evaluation
        parts = [
            evaluation.headline(),
            _metrics_table(evaluation.metrics, self.baseline()),
            _notes(evaluation),
        ]
        if evaluation.per_class is not None:
            parts.append(_class_table(evaluation))
        matrix = evaluation.confusion_matrix
        if matrix is not None and matrix.ndim == 2 and len(matrix) <= _MAX_MATRIX:
            parts.append(_matrix_table(matrix, evaluation.task.classes or ()))
        return '\n\n'.join(parts)

    def __repr__(self) -> str:
        return str(self)

    def baseline(self) -> dict[str, float]:
        """The metrics of a baseline that predicts the same for every row."""
        evaluation = self.evaluation
        labels, kind = evaluation.encoded_labels, evaluation.task.kind
        shares = None
        if evaluation.probabilities is None:
            prediction = labels.mean(axis=0)
        else:
            size = evaluation.probabilities.shape
            counts = (
                labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=size[1])
            )
            shares = np.broadcast_to(counts / len(labels), size)
            prediction = shares[0] > 0.5 if labels.ndim == 2 else counts.argmax()
        predictions = np.broadcast_to(prediction, labels.shape)
        with warnings.catch_warnings():
            # The baseline never predicts most classes: that is its nature, no news.
            warnings.simplefilter('ignore', ThinkMLWarning)
            return compute_metrics(list(evaluation.metrics), labels, predictions, shares, kind)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that JSON can take; NaN is None, classes are text."""
        evaluation = self.evaluation
        per_class, matrix = evaluation.per_class, evaluation.confusion_matrix
        return {
            'task': evaluation.task.kind,
            'classes': None if per_class is None else [str(label) for label in per_class],
            'num_rows': evaluation.num_rows,
            'metrics': _without_nan(evaluation.metrics),
            'baseline': _without_nan(self.baseline()),
            'per_class': None
            if per_class is None
            else {str(label): row for label, row in per_class.items()},
            'confusion_matrix': None if matrix is None else matrix.tolist(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the text to a file, whole or not at all. Makes the directory if there is none."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            unfinished.write_text(f'{self}\n', encoding='utf-8')
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _metrics_table(metrics: dict[str, float], baseline: dict[str, float]) -> str:
    rows = [[name, number(value), number(baseline[name])] for name, value in metrics.items()]
    return _table([['', 'model', 'baseline'], *rows])


def _notes(evaluation: Evaluation) -> str:
    """What the numbers are of, and what the baseline is."""
    task = evaluation.task
    if task.classes is None:
        mean = '' if task.num_outputs == 1 else 'Metrics: means over the targets.\n'
        return f'{mean}Baseline: always the mean of the true values.'
    if task.kind == 'multilabel':
        return (
            'Metrics: means over the labels; accuracy: all labels right.\n'
            "Baseline: each label's most frequent value; probabilities: the shares of the labels."
        )
    most = task.classes[int(np.bincount(evaluation.encoded_labels).argmax())]
    over = 'means over the classes'
    if task.kind == 'binary':
        over = f'of class {task.classes[1]}'
    return (
        f'Precision, recall and the like: {over}.\n'
        f'Baseline: always class {most}, the most frequent; probabilities: the shares of classes.'
    )


def _class_table(evaluation: Evaluation) -> str:
    """The table by class; of very many classes only the worst."""
    assert evaluation.per_class is not None
    noun = 'label' if evaluation.task.kind == 'multilabel' else 'class'
    columns = ('precision', 'recall', 'f1', 'support')
    rows, note = list(evaluation.per_class.items()), ''
    if len(rows) > _MAX_ROWS:
        note = f'The {_MAX_ROWS} of {len(rows)} classes with the lowest F1:\n'
        rows = sorted(rows, key=lambda row: row[1]['f1'])[:_MAX_ROWS]
    body = [
        [_cut(label, 30), *(f'{row[name]:.3f}' for name in columns[:3]), f'{row["support"]:,}']
        for label, row in rows
    ]
    values = np.array([[row[name] for name in columns] for row in evaluation.per_class.values()])
    scores, support = values[:, :3], values[:, 3]
    total = f'{int(support.sum()):,}'
    weights = support / max(support.sum(), 1)
    macro = scores[_occurring(evaluation)].mean(axis=0)
    foot = [
        [f'{kind} mean', *(f'{value:.3f}' for value in mean), total]
        for kind, mean in (('macro', macro), ('weighted', weights @ scores))
    ]
    lines = _table([[noun, *columns], *body, *foot]).split('\n')
    return note + '\n'.join([*lines[: len(body) + 1], '', *lines[len(body) + 1 :]])


def _occurring(evaluation: Evaluation) -> np.ndarray:
    """Which classes a macro mean is over: those with examples or predictions; all labels."""
    matrix = evaluation.confusion_matrix
    assert matrix is not None
    if matrix.ndim == 3:
        return np.full(len(matrix), True)
    return matrix.sum(axis=0) + matrix.sum(axis=1) > 0


def _matrix_table(matrix: np.ndarray, classes: Sequence[Any]) -> str:
    width = 12 if len(classes) <= 8 else 6
    head = ['', *(_cut(label, width) for label in classes)]
    body = [
        [_cut(label, 30), *(f'{count:,}' for count in row)]
        for label, row in zip(classes, matrix.tolist(), strict=True)
    ]
    return f'Confusion matrix (rows: true, columns: predicted)\n{_table([head, *body])}'


def _cut(label: Any, width: int) -> str:
    text = str(label)
    return text if len(text) <= width else f'{text[: width - 2]}..'


def _table(rows: list[list[str]]) -> str:
    """Lines up columns: the first to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )
    return '\n'.join(line.rstrip() for line in lines)
