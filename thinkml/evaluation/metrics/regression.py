"""Regression metrics: errors, explained variance, quantiles and intervals."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from thinkml.core.objectives.confusion_counts import ratio
from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.typing import Array


class Errors(NamedTuple):
    """Target minus prediction, and the targets around their mean, ``(n, targets)``."""

    error: Array
    target: Array


class Ordered(NamedTuple):
    """The absolute errors in rising order, and their rows, ``(targets, n)``."""

    size: Array
    order: Array


def errors(data: EvaluationData) -> Errors:
    """Returns the part for metrics that sum errors or squared errors."""
    target = data.labels.reshape(len(data), -1).astype(np.float64)
    prediction = data.predictions.reshape(target.shape)
    return Errors(target - prediction, target - target.mean(axis=0))


def ordered_errors(data: EvaluationData) -> Ordered:
    """Returns the part for medians and largest errors."""
    size = np.abs(data.part(errors).error).T
    order = np.argsort(size, axis=1)
    return Ordered(np.take_along_axis(size, order, axis=1), order)


def mse(part: Errors, weight: Array) -> Array:
    """Returns the mean squared error, in squared units of the target."""
    return (weight @ part.error**2 / weight.sum()).mean()


def rmse(part: Errors, weight: Array) -> Array:
    """Returns the root mean squared error in the target's units; the mean over several targets."""
    return ((weight @ part.error**2 / weight.sum()) ** 0.5).mean()


def mae(part: Errors, weight: Array) -> Array:
    """Returns the mean absolute error, in the target's units."""
    return (weight @ abs(part.error) / weight.sum()).mean()


def median_absolute_error(part: Ordered, weight: Array) -> Array:
    """Returns the median of the absolute errors, in the target's units."""
    xp = weight.__array_namespace__()
    medians = []
    for size, order in zip(part.size, part.order, strict=True):
        cumulative = xp.cumsum(weight[order])
        half = cumulative[-1] / 2
        low = size[xp.searchsorted(cumulative, half)]
        above = xp.searchsorted(cumulative, half, side='right')
        medians.append((low + size[xp.clip(above, 0, len(size) - 1)]) / 2)
    return xp.stack(medians).mean()


def max_error(part: Ordered, weight: Array) -> Array:
    """Returns the largest absolute error, in the target's units."""
    xp = weight.__array_namespace__()
    largest = [
        (size * (weight[order] > 0)).max()
        for size, order in zip(part.size, part.order, strict=True)
    ]
    return xp.stack(largest).mean()


def r2(part: Errors, weight: Array) -> Array:
    """Returns the coefficient of determination ``1 - sum(error^2) / sum((y - mean(y))^2)``.

    1 is perfect, 0 is as good as always predicting the mean. A constant target gives 1 if predicted
    exactly, else 0. NaN if fewer than two rows have a weight above 0.
    """
    return _explained(weight @ part.error**2, _spread(part.target, weight), weight)


def explained_variance(part: Errors, weight: Array) -> Array:
    """Returns `r2` with errors around their mean, so that a constant error has no effect."""
    return _explained(_spread(part.error, weight), _spread(part.target, weight), weight)


def _spread(values: Array, weight: Array) -> Array:
    mean = weight @ values / weight.sum()
    return weight @ (values - mean) ** 2


def _explained(squares: Array, spread: Array, weight: Array) -> Array:
    xp = weight.__array_namespace__()
    score = xp.where(spread > 0, 1 - ratio(squares, spread), squares == 0).mean()
    return xp.where((weight > 0).sum() < 2, xp.nan, score)


def mape_rows(data: EvaluationData) -> np.ndarray:
    """Returns each row's absolute error divided by its absolute target."""
    target = data.labels.reshape(len(data), -1).astype(np.float64)
    sizes = np.maximum(np.abs(target), np.finfo(np.float64).eps)
    return (np.abs(data.part(errors).error) / sizes).mean(axis=1)


@functools.lru_cache(maxsize=256)
def pinball_rows(quantile: float) -> Callable[[EvaluationData], np.ndarray]:
    """Returns a function that gives each row's pinball loss for a forecast of this quantile.

    Reference:
        Koenker and Bassett, 1978, *Regression quantiles*.
    """

    def rows(data: EvaluationData) -> np.ndarray:
        error = data.part(errors).error
        return np.maximum(quantile * error, (quantile - 1) * error).mean(axis=1)

    return rows


# --- intervals: models that return a lower and an upper bound ----------------------------------


def coverage_rows(data: EvaluationData) -> np.ndarray:
    """Returns 1 for each row whose target is within the bounds."""
    low, high, target = _bounds(data)
    return ((low <= target) & (target <= high)).astype(np.float64)


def width_rows(data: EvaluationData) -> np.ndarray:
    """Returns the distance between the bounds of each row."""
    low, high, _ = _bounds(data)
    return high - low


@functools.lru_cache(maxsize=256)
def interval_score_rows(level: float) -> Callable[[EvaluationData], np.ndarray]:
    """Returns a function that gives each row's interval score.

    The score is for bounds that should contain a fraction ``level`` of the targets: their width,
    plus ``2 / (1 - level)`` times the distance of the target from the interval if it is outside.

    Reference:
        Gneiting and Raftery, 2007, *Strictly proper scoring rules, prediction, and estimation*.
    """

    def rows(data: EvaluationData) -> np.ndarray:
        low, high, target = _bounds(data)
        outside = np.maximum(low - target, 0) + np.maximum(target - high, 0)
        return high - low + 2 / (1 - level) * outside

    return rows


def _bounds(data: EvaluationData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    target = data.labels.reshape(len(data), -1).astype(np.float64)
    bounds = data.predictions.reshape(len(data), -1).astype(np.float64)
    if bounds.shape[1] < 2 or (target != target[:, :1]).any():
        raise ConfigError(
            'metrics: interval metrics need a model that returns the lower bound first and the '
            'upper bound last, and y_test with the same target in each column: '
            'np.stack([y, y], axis=1). '
            f'Got {bounds.shape[1]} output{"s" if bounds.shape[1] > 1 else ""}.'
        )
    return bounds[:, 0], bounds[:, -1], target[:, 0]
