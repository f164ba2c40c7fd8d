"""Custom metrics: the user's functions ``(logits, labels)`` and CLU classes."""

import dataclasses
from typing import Any

import numpy as np
from clu import metrics as clu_metrics

from thinkml.core.objectives.metric_table import check_metric, metric_name
from thinkml.core.objectives.streaming_metrics import one_number, value_of
from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.per_row import mean_of_rows
from thinkml.evaluation.metrics.registry import Metric


def custom_values(metric: Any, data: EvaluationData) -> np.ndarray | float:
    """Computes a function ``(logits, labels)`` or a CLU class, as training does.

    Args:
        metric: it gets the arrays of all rows, shaped as in training: if there is one output or one
            target, they are ``(n,)``.
        data: labels and the model's outputs.

    Returns:
        A value for each row, which `custom_metric` turns into a `Metric`; or one number for all
        rows, which has neither weights nor intervals.

    Raises:
        ConfigError: if it is not such a metric, the model returns no logits, or the shape of the
            values is one that training rejects.
    """
    if problem := check_metric(metric, data.kind):
        raise ConfigError(problem)
    name = metric_name(metric)
    if data.outputs is None:
        raise ConfigError(
            f'metrics: {name!r} takes logits, which a model with only predict does not return. '
            'Use metrics by name.'
        )
    outputs, labels = map(_drop_axis_of_one, (data.outputs, data.labels))
    if isinstance(metric, type):
        return _compute_class(metric, outputs, labels)
    values = value_of(metric, outputs, labels)
    if values.ndim == 0:
        return float(values)
    return values.reshape(len(data), -1).mean(axis=1).astype(np.float64)


def _drop_axis_of_one(values: np.ndarray) -> np.ndarray:
    # Otherwise a difference of (n, 1) and (n,) would be taken for all pairs of rows.
    return values.reshape(len(values)) if values.size == len(values) else values


def custom_metric(name: str, data: EvaluationData) -> Metric:
    """Returns the mean of the values that ``data.custom`` has under this name."""
    return Metric(_CustomValues(name), mean_of_rows, frozenset({data.kind}))


@dataclasses.dataclass(frozen=True)
class _CustomValues:
    """A part that reads the values of a custom metric, which were computed before."""

    name: str

    def __call__(self, data: EvaluationData) -> np.ndarray:
        return data.custom[self.name]


def _compute_class(
    metric: type[clu_metrics.Metric], outputs: np.ndarray, labels: np.ndarray
) -> float:
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
