"""What an evaluation found."""

import dataclasses
from typing import Any

import numpy as np

from thinkml.errors import unknown_name
from thinkml.record import Task


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What `ModelEvaluator.evaluate` found. ``evaluation['f1']`` is ``evaluation.metrics['f1']``.

    Attributes:
        task: what the model's outputs mean, and its classes.
        metrics: plain floats under the asked names.
        per_class: ``precision``, ``recall``, ``f1`` and ``support`` (the number of examples) by
            class, for multilabel by label; None for regression.
        confusion_matrix: integers ``(classes, classes)``, true classes in rows, predicted in
            columns; for multilabel ``[[tn, fp], [fn, tp]]`` per label, ``(k, 2, 2)``; None for
            regression.
        predictions: in the form of the labels, ``(rows, ...)``.
        probabilities: ``(rows, classes)``, for multilabel ``(rows, k)``; None for regression.
        labels: the true ones, as they were passed.
        encoded_labels: the true ones as the functions in `thinkml.evaluation.metrics` take them.
    """

    task: Task
    metrics: dict[str, float]
    per_class: dict[Any, dict[str, float]] | None
    confusion_matrix: np.ndarray | None
    predictions: np.ndarray
    probabilities: np.ndarray | None
    labels: np.ndarray
    encoded_labels: np.ndarray

    @property
    def num_rows(self) -> int:
        """The number of examples evaluated."""
        return len(self.labels)

    def __getitem__(self, name: str) -> float:
        if name not in self.metrics:
            raise KeyError(unknown_name('evaluation', name, self.metrics))
        return self.metrics[name]

    def __repr__(self) -> str:
        metrics = ', '.join(f'{name}={number(value)}' for name, value in self.metrics.items())
        return f'Evaluation({self.headline()}: {metrics})'

    def headline(self) -> str:
        """The task and the number of rows, in a line."""
        return f'{self.task}, {self.num_rows:,} row{"s" if self.num_rows > 1 else ""}'


def number(value: float) -> str:
    """A value with four decimals, or four digits where that would hide or drown them."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e5 or not np.isfinite(value)
    return f'{value:.4f}' if plain else f'{value:.4g}'
