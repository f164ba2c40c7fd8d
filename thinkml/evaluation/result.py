"""Evaluation: the metrics, intervals, slices and predictions of a model on a data set."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from thinkml.errors import unknown_name
from thinkml.evaluation.bootstrap import Interval, Resampling
from thinkml.evaluation.confidence_intervals import class_intervals, metric_intervals
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.registry import Metric, get_metric
from thinkml.tasks import Task


@dataclasses.dataclass(frozen=True)
class Slice:
    """The performance of a model on a part of the rows.

    Attributes:
        name: the name of the slice.
        num_rows: the number of rows in it.
        metrics: as in `Evaluation.metrics`; empty if the slice has too few rows.
        confidence_intervals: the confidence interval of each metric.
        gaps: the difference of each metric to that of all rows, positive where the slice is above.
        is_supported: True if at least ``min_support`` of its rows have a weight above 0.
    """

    name: str
    num_rows: int
    metrics: dict[str, float]
    confidence_intervals: dict[str, Interval]
    gaps: dict[str, float]
    is_supported: bool


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The result of `ModelEvaluator.evaluate`.

    ``evaluation['f1']`` is short for ``evaluation.metrics['f1']``.

    Attributes:
        task: the meaning of the model's outputs, and its classes.
        metrics: plain floats under the requested names.
        per_class: ``precision``, ``recall``, ``f1``, ``iou`` and ``support`` (the number of
            examples, or their weight) by class, for multilabel by label; None for regression.
        confusion_matrix: ``(classes, classes)``, true classes in rows, predicted in columns; for
            multilabel ``[[tn, fp], [fn, tp]]`` per label, ``(k, 2, 2)``. Integers, or floats with
            sample weights. None for regression, and if it would take more than 1 GiB.
        predictions: in the form of the labels, ``(rows, ...)``.
        labels: the true labels, as they were passed.
        scored: labels and predictions as the metrics take them, with the probabilities.
        resampling: the settings of the confidence intervals.
        warnings: anything undefined or unusual, one sentence each.
        slices: the performance on parts of the rows, by name.
        definitions: the definitions of the metrics, by name. Custom functions that return one
            number for all rows cannot be resampled and are left out.
        name: the name of the data set; empty if it has none.
        data_fingerprint: identifies the data: rows, their shapes and dtypes, a hash.
        versions: the versions of the libraries.
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
        """Returns the number of rows evaluated, without those whose one label is ignored."""
        return len(self.labels) - self.num_ignored

    @property
    def num_ignored(self) -> int:
        """Returns the number of rows that were left out, since their one label is ignored."""
        if self.task.element_shape or self.scored.positions is None:
            return 0
        return len(self.labels) - len(self.scored)

    @property
    def probabilities(self) -> np.ndarray | None:
        """Probabilities ``(rows, classes)``, for multilabel ``(rows, k)``.

        None for regression, and for scores of one class per example that take more than 1 GiB. Rows
        and elements that are ignored have none.
        """
        return self.scored.probabilities

    @property
    def encoded_labels(self) -> np.ndarray:
        """Returns the true labels encoded as in `EvaluationData`, for example as class indices."""
        return self.scored.labels

    @functools.cached_property
    def confidence_intervals(self) -> dict[str, Interval]:
        """Returns ``(low, high)`` of each metric, computed on first use; empty without confidence.

        The bounds are percentiles of the bootstrap. Wilson's formula is used for simple proportions
        (such as accuracy) if the rows are independent and count alike.
        """
        return metric_intervals(self.scored, self.definitions, self.resampling)

    @functools.cached_property
    def per_class_intervals(self) -> dict[Any, dict[str, Interval]]:
        """Returns the intervals of ``precision``, ``recall`` and ``f1`` by class (or label)."""
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
        # Metrics in the table are pickled by name, since they hold nested functions.
        task = self.task
        names = {
            name: name if get_metric(name, task.kind, task.classes) is metric else metric
            for name, metric in self.definitions.items()
        }
        return self.__dict__ | {'definitions': names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        task = state['task']
        definitions = {
            name: get_metric(metric, task.kind, task.classes) if isinstance(metric, str) else metric
            for name, metric in state['definitions'].items()
        }
        self.__dict__.update(state, definitions=definitions)

    def __repr__(self) -> str:
        metrics = ', '.join(f'{name}={number(value)}' for name, value in self.metrics.items())
        return f'Evaluation({self.headline()}: {metrics})'

    def headline(self) -> str:
        """Returns the data set, the task and the number of rows in one line."""
        name = f'{self.name}: ' if self.name else ''
        rows = f'{self.num_rows:,} row{"s" if self.num_rows > 1 else ""}'
        ignored = f', {self.num_ignored:,} more with an ignored label' if self.num_ignored else ''
        return f'{name}{self.task}, {rows}{ignored}'


def number(value: float) -> str:
    """Formats a value with four decimals, or with four digits if it is very small or very large."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e5 or not np.isfinite(value)
    return f'{value:.4f}' if plain else f'{value:.4g}'
