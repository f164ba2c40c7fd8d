"""Metrics of the user's own, in evaluation."""

import dataclasses
from typing import Any

import numpy as np
from clu import metrics as clu_metrics

from thinkml.core.metric_names import check_metric, metric_name
from thinkml.errors import ConfigError
from thinkml.evaluation.metrics import Metric
from thinkml.evaluation.probabilistic import mean_of_rows
from thinkml.evaluation.scored import Scored


def own_values(metric: Any, scored: Scored) -> np.ndarray | float:
    """Computes a function ``(logits, labels)`` or a CLU class, as training does.

    Args:
        metric: it is given the arrays of all rows.
        scored: labels and the model's outputs.

    Returns:
        a value for each row, of which `row_metric` makes a metric like all others; or one number
        for all rows, which knows neither weights nor intervals.

    Raises:
        ConfigError: if it is no such thing, or the model gives no logits.
    """
    if problem := check_metric(metric, scored.kind):
        raise ConfigError(problem)
    name = metric_name(metric)
    if scored.outputs is None:
        raise ConfigError(
            f'metrics: {name!r} takes logits, which a model with predict alone does not give. '
            'Ask for metrics by name.'
        )
    found = _value(metric, scored.outputs, scored.labels)
    if found.ndim and len(found) == len(scored):
        return found.reshape(len(scored), -1).mean(axis=1).astype(np.float64)
    if found.size == 1:
        return float(found.reshape(()))
    raise ConfigError(
        f'metrics: {name!r} returned shape {found.shape}, expected one number, or one for each row.'
    )


def row_metric(name: str, scored: Scored) -> Metric:
    """The mean of what ``scored.own`` has under this name."""
    return Metric(_Own(name), mean_of_rows, frozenset({scored.kind}))


@dataclasses.dataclass(frozen=True)
class _Own:
    """A part that is there already."""

    name: str

    def __call__(self, scored: Scored) -> np.ndarray:
        return scored.own[self.name]


def _value(metric: Any, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if isinstance(metric, type) and issubclass(metric, clu_metrics.Metric):
        mask = np.ones(len(labels), bool)
        filled = metric.from_model_output(
            logits=outputs, labels=labels, losses=mask * 0.0, weight=mask * 1.0, mask=mask
        )
        return np.asarray(filled.compute())
    return np.asarray(metric(outputs, labels))
