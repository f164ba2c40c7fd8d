"""Metrics of numbers: errors, what they explain of the targets, quantiles and intervals."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from thinkml.core.objectives.confusion_counts import ratio
from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData


class Errors(NamedTuple):
    """Target less prediction, and the targets around their mean, ``(n, targets)``."""

    error: Any
    target: Any


class Ordered(NamedTuple):
    """The sizes of errors in rising order, and the rows they are of, ``(targets, n)``."""

    size: Any
    order: Any


def errors(scored: EvaluationData) -> Errors:
    """What the errors' squares are summed from."""
    target = scored.labels.reshape(len(scored), -1).astype(np.float64)
    prediction = scored.predictions.reshape(target.shape)
    return Errors(target - prediction, target - target.mean(axis=0))


def ordered_errors(scored: EvaluationData) -> Ordered:
    """What medians and largest errors are read from."""
    size = np.abs(scored.part(errors).error).T
    order = np.argsort(size, axis=1)
    return Ordered(np.take_along_axis(size, order, axis=1), order)


def mse(part: Errors, weight: Any) -> Any:
    """The mean squared error, in squared units of the target."""
    return (weight @ part.error**2 / weight.sum()).mean()


def rmse(part: Errors, weight: Any) -> Any:
    """The root of each target's mean squared error, in the target's units; the mean of these."""
    return ((weight @ part.error**2 / weight.sum()) ** 0.5).mean()


def mae(part: Errors, weight: Any) -> Any:
    """The mean absolute error, in the target's units."""
    return (weight @ abs(part.error) / weight.sum()).mean()


def median_absolute_error(part: Ordered, weight: Any) -> Any:
    """The median of the absolute errors, in the target's units."""
    xp = weight.__array_namespace__()
    medians = []
    for size, order in zip(part.size, part.order, strict=True):
        reached = xp.cumsum(weight[order])
        half = reached[-1] / 2
        low = size[xp.searchsorted(reached, half)]
        above = xp.searchsorted(reached, half, side='right')
        medians.append((low + size[xp.clip(above, 0, len(size) - 1)]) / 2)
    return xp.stack(medians).mean()


def max_error(part: Ordered, weight: Any) -> Any:
    """The largest absolute error, in the target's units."""
    xp = weight.__array_namespace__()
    largest = [
        (size * (weight[order] > 0)).max()
        for size, order in zip(part.size, part.order, strict=True)
    ]
    return xp.stack(largest).mean()


def r2(part: Errors, weight: Any) -> Any:
    """The coefficient of determination ``1 - sum(error^2) / sum((y - mean(y))^2)``.

    1 is perfect, 0 is as good as always predicting the mean. A constant target gives 1 if predicted
    exactly, else 0. NaN where fewer than two rows count.
    """
    return _explained(weight @ part.error**2, _spread(part.target, weight), weight)


def explained_variance(part: Errors, weight: Any) -> Any:
    """The same, but for errors around their mean: a constant error costs nothing."""
    return _explained(_spread(part.error, weight), _spread(part.target, weight), weight)


def _spread(values: Any, weight: Any) -> Any:
    mean = weight @ values / weight.sum()
    return weight @ (values - mean) ** 2


def _explained(squares: Any, spread: Any, weight: Any) -> Any:
    xp = weight.__array_namespace__()
    score = xp.where(spread > 0, 1 - ratio(squares, spread), squares == 0).mean()
    return xp.where((weight > 0).sum() < 2, xp.nan, score)


def mape_rows(scored: EvaluationData) -> np.ndarray:
    """Each row's absolute error over its target."""
    target = scored.labels.reshape(len(scored), -1).astype(np.float64)
    sizes = np.maximum(np.abs(target), np.finfo(np.float64).eps)
    return (np.abs(scored.part(errors).error) / sizes).mean(axis=1)


@functools.lru_cache(maxsize=256)
def pinball_rows(quantile: float) -> Callable[[EvaluationData], np.ndarray]:
    """Makes each row's pinball loss: what a forecast of this quantile of the target costs.

    Reference:
        Koenker and Bassett, 1978, *Regression quantiles*.
    """

    def rows(scored: EvaluationData) -> np.ndarray:
        error = scored.part(errors).error
        return np.maximum(quantile * error, (quantile - 1) * error).mean(axis=1)

    return rows


# --- intervals: models that return a lower and an upper bound ----------------------------------


def coverage_rows(scored: EvaluationData) -> np.ndarray:
    """1 where the target is within the bounds."""
    low, high, target = _bounds(scored)
    return ((low <= target) & (target <= high)).astype(np.float64)


def width_rows(scored: EvaluationData) -> np.ndarray:
    """How far apart the bounds are."""
    low, high, _ = _bounds(scored)
    return high - low


@functools.lru_cache(maxsize=256)
def interval_score_rows(level: float) -> Callable[[EvaluationData], np.ndarray]:
    """Makes the interval score of bounds that are to hold a share ``level`` of the targets.

    The width, and ``2 / (1 - level)`` times what the target is outside.

    Reference:
        Gneiting and Raftery, 2007, *Strictly proper scoring rules, prediction, and estimation*.
    """

    def rows(scored: EvaluationData) -> np.ndarray:
        low, high, target = _bounds(scored)
        outside = np.maximum(low - target, 0) + np.maximum(target - high, 0)
        return high - low + 2 / (1 - level) * outside

    return rows


def _bounds(scored: EvaluationData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    target = scored.labels.reshape(len(scored), -1).astype(np.float64)
    bounds = scored.predictions.reshape(len(scored), -1).astype(np.float64)
    if bounds.shape[1] < 2 or (target != target[:, :1]).any():
        raise ConfigError(
            'metrics: interval metrics need a model that returns the lower bound first and the '
            'upper bound last, and y_test with the same target in each column: '
            'np.stack([y, y], axis=1). '
            f'Got {bounds.shape[1]} output{"s" if bounds.shape[1] > 1 else ""}.'
        )
    return bounds[:, 0], bounds[:, -1], target[:, 0]
