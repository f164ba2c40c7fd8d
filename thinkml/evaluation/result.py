"""What an evaluation found."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from thinkml.errors import unknown_name
from thinkml.evaluation.bootstrap import Interval, Resampling
from thinkml.evaluation.confidence_intervals import class_intervals, intervals_of
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.registry import Metric, get_metric
from thinkml.model_record import Task


@dataclasses.dataclass(frozen=True)
class Slice:
    """How the model does on a part of the rows.

    Attributes:
        name: of the slice.
        num_rows: rows in it.
        metrics: as in `Evaluation.metrics`; empty where the slice has too few rows.
        confidence_intervals: of them.
        gaps: what each metric is above (or below) that of all rows.
        is_supported: whether it has the rows that were asked for at least, of those that count.
    """

    name: str
    num_rows: int
    metrics: dict[str, float]
    confidence_intervals: dict[str, Interval]
    gaps: dict[str, float]
    is_supported: bool


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What `ModelEvaluator.evaluate` found. ``evaluation['f1']`` is ``evaluation.metrics['f1']``.

    Attributes:
        task: what the model's outputs mean, and its classes.
        metrics: plain floats under the asked names.
        per_class: ``precision``, ``recall``, ``f1`` and ``support`` (the number of examples, or
            their weight) by class, for multilabel by label; None for regression.
        confusion_matrix: ``(classes, classes)``, true classes in rows, predicted in columns; for
            multilabel ``[[tn, fp], [fn, tp]]`` per label, ``(k, 2, 2)``; None for regression.
            Integers, with sample weights floats.
        predictions: in the form of the labels, ``(rows, ...)``.
        labels: the true ones, as they were passed.
        scored: both as the metrics take them, with the probabilities.
        resampling: how the confidence intervals are made.
        warnings: what was undefined or unusual, a sentence each.
        slices: how the model does on parts of the rows, by name.
        definitions: of the metrics, by name, as far as they can be resampled: not of functions of
            the user's own that have one number for all rows.
        name: of the data set; empty where it has none.
        data_fingerprint: identifies the data: rows, what they are like, a hash.
        versions: of the libraries.
    """

    task: Task
    metrics: dict[str, float]
    per_class: dict[Any, dict[str, float]] | None
    confusion_matrix: np.ndarray | None
    predictions: np.ndarray
    labels: np.ndarray
    scored: EvaluationData
    resampling: Resampling = dataclasses.field(default_factory=Resampling)
    warnings: tuple[str, ...] = ()
    slices: dict[str, Slice] = dataclasses.field(default_factory=dict)
    definitions: dict[str, Metric] = dataclasses.field(default_factory=dict)
    name: str = ''
    data_fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """The number of examples evaluated."""
        return len(self.labels)

    @property
    def probabilities(self) -> np.ndarray | None:
        """``(rows, classes)``, for multilabel ``(rows, k)``; None for regression."""
        return self.scored.probabilities

    @property
    def encoded_labels(self) -> np.ndarray:
        """The true ones as `EvaluationData` has them: class indices, for instance."""
        return self.scored.labels

    @functools.cached_property
    def confidence_intervals(self) -> dict[str, Interval]:
        """``(low, high)`` of each metric, made when first asked for; empty without confidence.

        By the bootstrap's percentiles, those of simple shares (accuracy) by Wilson's formula where
        the rows are independent and count alike.
        """
        return intervals_of(self.scored, self.definitions, self.resampling)

    @functools.cached_property
    def per_class_intervals(self) -> dict[Any, dict[str, Interval]]:
        """The same by class (or label), of ``precision``, ``recall`` and ``f1``."""
        return class_intervals(self.scored, tuple(self.per_class or ()), self.resampling)

    def __getitem__(self, name: str) -> float:
        if name not in self.metrics:
            raise KeyError(unknown_name('evaluation', name, self.metrics))
        return self.metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self.metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __getstate__(self) -> dict[str, Any]:
        # Metrics that have a name go by it: they are made of functions made in functions.
        names = {
            name: name if get_metric(name, self.task.kind) is metric else metric
            for name, metric in self.definitions.items()
        }
        return self.__dict__ | {'definitions': names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found = {
            name: get_metric(metric, state['task'].kind) if isinstance(metric, str) else metric
            for name, metric in state['definitions'].items()
        }
        self.__dict__.update(state, definitions=found)

    def __repr__(self) -> str:
        metrics = ', '.join(f'{name}={number(value)}' for name, value in self.metrics.items())
        return f'Evaluation({self.headline()}: {metrics})'

    def headline(self) -> str:
        """The data set, the task and the number of rows, in a line."""
        name = f'{self.name}: ' if self.name else ''
        return f'{name}{self.task}, {self.num_rows:,} row{"s" if self.num_rows > 1 else ""}'


def number(value: float) -> str:
    """A value with four decimals, or four digits where that would hide or drown them."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e5 or not np.isfinite(value)
    return f'{value:.4f}' if plain else f'{value:.4g}'
