"""Calibration metrics: they compare predicted probabilities with the fraction of true cases."""

from typing import NamedTuple

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import tally
from thinkml.evaluation.ranking_scores import scores
from thinkml.typing import Array

NUM_BINS = 15
_NEWTON_STEPS = 25


class Bins(NamedTuple):
    """Rows binned by confidence, for each column of confidences.

    Attributes:
        bin: ``(columns, n)``, the bin of each row's confidence.
        gap: ``(columns, n)``, its confidence, minus 1 where the prediction was right.
        bins: ``(bins,)``, the indices of the bins.
    """

    bin: Array
    gap: Array
    bins: Array


class Logits(NamedTuple):
    """The logits of the positive probabilities and the true values, 1 or 0, ``(columns, n)``."""

    logit: Array
    truth: Array


def confidences(data: EvaluationData) -> tuple[np.ndarray, np.ndarray]:
    """Returns the model's confidences and whether they came true, each ``(columns, n)``.

    For binary the confidence is the probability of the positive class, for multilabel that of each
    label, for multiclass that of the predicted class.
    """
    if data.summary is not None:
        return data.summary.confidence[None], (data.predictions == data.labels)[None]
    assert data.probabilities is not None
    confidence = _confidence_columns(data, data.probabilities)
    if not data.task_type.has_threshold:
        return confidence, (data.predictions == data.labels)[None]
    return confidence, np.atleast_2d(data.labels.T > 0.5)


def _confidence_columns(data: EvaluationData, values: np.ndarray) -> np.ndarray:
    """Returns the columns of ``values`` that are `confidences`, ``(columns, n)``."""
    if not data.task_type.has_threshold:
        return values.max(axis=1)[None]
    return values[:, data.task_type.ranked].T


def even_bins(data: EvaluationData) -> Bins:
    """Returns bins of equal width, ``(0, 1/15], (1/15, 2/15], ...``."""
    confidence, _ = confidences(data)
    edges = [np.linspace(0, 1, NUM_BINS + 1)] * len(confidence)
    return _binned(data, confidence, edges)


def filled_bins(data: EvaluationData) -> Bins:
    """Returns bins with about the same number of rows each, by quantiles of all rows."""
    if data.summary is not None:
        values = data.summary.logit[None].astype(np.float64)
    else:
        values = _confidence_columns(data, data.part(scores))
    edges = [np.quantile(column, np.linspace(0, 1, NUM_BINS + 1)) for column in values]
    return _binned(data, values, edges)


def _binned(data: EvaluationData, values: np.ndarray, edges: list[np.ndarray]) -> Bins:
    confidence, truth = confidences(data)
    pairs = zip(edges, values, strict=True)
    bins = np.stack([np.searchsorted(edge[1:-1], column) for edge, column in pairs])
    return Bins(bins, confidence - truth.astype(np.float64), np.arange(NUM_BINS))


def calibration_error(part: Bins, weight: Array) -> Array:
    """Returns the expected calibration error: the mean gap of the bins, weighted by their rows.

    If there are several columns, it is the mean of their errors.

    Reference:
        Guo, Pleiss, Sun and Weinberger, 2017, *On calibration of modern neural networks*; with
        bins of as many rows each, Nguyen and O'Connor, 2015, *Posterior calibration and
        exploratory analysis for natural language processing models*.
    """
    columns = [
        abs(tally(bins, weight * gap, len(part.bins))).sum()
        for bins, gap in zip(part.bin, part.gap, strict=True)
    ]
    return sum(columns) / (len(columns) * weight.sum())


def logits(data: EvaluationData) -> Logits:
    """Returns logits of the positive class, or of each label.

    Logits of probabilities are clipped by the precision of their dtype.
    """
    confidence, truth = confidences(data)
    if data.outputs is None:
        eps = np.finfo(confidence.dtype).eps
        p = np.clip(confidence, eps, 1 - eps).astype(np.float64)
        logit = np.log(p) - np.log1p(-p)
    else:
        logit = _confidence_columns(data, data.part(scores)).astype(np.float64)
    return Logits(logit, truth.astype(np.float64))


def calibration_slope(part: Logits, weight: Array) -> Array:
    """Returns the slope of a logistic regression of the labels on the logits.

    A slope of 1 is calibrated, below 1 overconfident. For multilabel it is the mean over the
    labels. It is NaN if the logits separate the labels perfectly, or if there is only one label.

    Reference:
        Cox, 1958, *Two further applications of a model for binary regression*.
    """
    return _fit_logistic(part, weight)[1]


def calibration_intercept(part: Logits, weight: Array) -> Array:
    """Returns the intercept of the regression of `calibration_slope`.

    An intercept of 0 is calibrated; below 0, the probabilities are too high.
    """
    return _fit_logistic(part, weight)[0]


def _fit_logistic(part: Logits, weight: Array) -> Array:
    xp = weight.__array_namespace__()
    lines = [_fit_column(x, y, weight) for x, y in zip(part.logit, part.truth, strict=True)]
    return xp.stack(lines).mean(axis=0)


def _fit_column(x: Array, y: Array, weight: Array) -> Array:
    """Returns intercept and slope, by Newton's method."""
    xp = weight.__array_namespace__()
    line = step = xp.zeros(2, dtype=weight.dtype)
    determinant = weight.sum()
    for _ in range(_NEWTON_STEPS):
        # If the logits separate the labels, the slope has no bound.
        p = 1 / (1 + xp.exp(-xp.clip(line[0] + line[1] * x, -60, 60)))
        error, spread = weight * (y - p), weight * p * (1 - p)
        a, b, c = spread.sum(), (spread * x).sum(), (spread * x * x).sum()
        first, second = error.sum(), (error * x).sum()
        determinant = a * c - b * b
        safe = xp.where(determinant > 0, determinant, 1)
        step = xp.stack([(c * first - b * second) / safe, (a * second - b * first) / safe])
        line = line + xp.where(determinant > 0, step, 0)
    converged = (abs(step) < 1e-3 * (1 + abs(line))).all() & (determinant > 0)
    return xp.where(converged, line, xp.nan)
