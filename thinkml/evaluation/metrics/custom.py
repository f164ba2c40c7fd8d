"""Metrics of the user's own, in evaluation."""

import dataclasses
from typing import Any

import numpy as np
from clu import metrics as clu_metrics

from thinkml.core.objectives.metric_names import check_metric, metric_name
from thinkml.core.objectives.streaming_metrics import one_number, value_of
from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.per_row import mean_of_rows
from thinkml.evaluation.metrics.registry import Metric


def own_values(metric: Any, scored: EvaluationData) -> np.ndarray | float:
    """Computes a function ``(logits, labels)`` or a CLU class, as training does.

    Args:
        metric: it is given the arrays of all rows, shaped as in training: those of one output, or
            of one target, are ``(n,)``.
        scored: labels and the model's outputs.

    Returns:
        a value for each row, of which `row_metric` makes a metric like all others; or one number
        for all rows, which knows neither weights nor intervals.

    Raises:
        ConfigError: if it is no such thing, the model gives no logits, or the values' shape is
            one that training refuses.
    """
    if problem := check_metric(metric, scored.kind):
        raise ConfigError(problem)
    name = metric_name(metric)
    if scored.outputs is None:
        raise ConfigError(
            f'metrics: {name!r} takes logits, which a model with predict alone does not give. '
            'Ask for metrics by name.'
        )
    outputs, labels = map(_without_an_axis_of_one, (scored.outputs, scored.labels))
    if isinstance(metric, type):
        return _of_class(metric, outputs, labels)
    found = value_of(metric, outputs, labels)
    if found.ndim == 0:
        return float(found)
    return found.reshape(len(scored), -1).mean(axis=1).astype(np.float64)


def _without_an_axis_of_one(values: np.ndarray) -> np.ndarray:
    # Else a difference of (n, 1) and (n,) is one of all pairs of rows.
    return values.reshape(len(values)) if values.size == len(values) else values


def row_metric(name: str, scored: EvaluationData) -> Metric:
    """The mean of what ``scored.own`` has under this name."""
    return Metric(_CustomValues(name), mean_of_rows, frozenset({scored.kind}))


@dataclasses.dataclass(frozen=True)
class _CustomValues:
    """A part that is there already."""

    name: str

    def __call__(self, scored: EvaluationData) -> np.ndarray:
        return scored.own[self.name]


def _of_class(metric: type[clu_metrics.Metric], outputs: np.ndarray, labels: np.ndarray) -> float:
    mask, name = np.ones(len(labels), bool), metric_name(metric)
    try:
        filled = metric.from_model_output(
            logits=outputs, labels=labels, losses=mask * 0.0, weight=mask * 1.0, mask=mask
        )
    except Exception as error:
        raise ConfigError(
            f'metrics: {name!r} failed for logits {outputs.shape} and labels {labels.shape} '
            f'{labels.dtype}: {type(error).__name__}: {error}'
        ) from error
    return one_number(name, filled.compute())
