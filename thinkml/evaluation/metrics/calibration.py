"""Calibration: whether what is given a probability of 80 % is true in 80 % of the cases."""

from typing import Any, NamedTuple

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import tally
from thinkml.evaluation.ranking_scores import scores

NUM_BINS = 15
_NEWTON_STEPS = 25


class Bins(NamedTuple):
    """Rows by how sure the model was, for each column of what it may be sure of.

    Attributes:
        bin: ``(columns, n)``, the bin of each row's confidence.
        gap: ``(columns, n)``, its confidence less 1 where it was right.
        bins: ``(bins,)``, their indices.
    """

    bin: Any
    gap: Any
    bins: Any


class Logits(NamedTuple):
    """The logit of each positive probability and whether it was positive, ``(columns, n)``."""

    logit: Any
    truth: Any


def confidences(scored: EvaluationData) -> tuple[np.ndarray, np.ndarray]:
    """How sure the model was of what, and whether that was true, each ``(columns, n)``.

    Of binary it is the positive class, of multilabel each label, of multiclass the class that was
    predicted.
    """
    assert scored.probabilities is not None
    sure = _of_the_sure(scored, scored.probabilities)
    if scored.kind == 'multiclass':
        return sure, (scored.predictions == scored.labels)[None]
    return sure, (scored.labels == 1)[None] if scored.kind == 'binary' else scored.labels.T > 0.5


def _of_the_sure(scored: EvaluationData, values: np.ndarray) -> np.ndarray:
    """Those of what the model was sure of, ``(columns, n)``; see `confidences`."""
    if scored.kind == 'multiclass':
        return values.max(axis=1)[None]
    return values[:, 1][None] if scored.kind == 'binary' else values.T


def even_bins(scored: EvaluationData) -> Bins:
    """Bins of even width, ``(0, 1/15], (1/15, 2/15], ...``."""
    confidence, _ = confidences(scored)
    edges = [np.linspace(0, 1, NUM_BINS + 1)] * len(confidence)
    return _binned(scored, confidence, edges)


def filled_bins(scored: EvaluationData) -> Bins:
    """Bins of about as many rows each, by quantiles of all of them."""
    values = _of_the_sure(scored, scored.part(scores))
    edges = [np.quantile(column, np.linspace(0, 1, NUM_BINS + 1)) for column in values]
    return _binned(scored, values, edges)


def _binned(scored: EvaluationData, values: np.ndarray, edges: list[np.ndarray]) -> Bins:
    confidence, truth = confidences(scored)
    pairs = zip(edges, values, strict=True)
    bins = np.stack([np.searchsorted(edge[1:-1], column) for edge, column in pairs])
    return Bins(bins, confidence - truth.astype(np.float64), np.arange(NUM_BINS))


def calibration_error(part: Bins, weight: Any) -> Any:
    """The expected calibration error: each bin's gap, weighed by its share of the rows.

    The mean over several columns.

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


def logits(scored: EvaluationData) -> Logits:
    """Logits of the positive class, or of each label: a probability's are clipped by rounding."""
    confidence, truth = confidences(scored)
    if scored.outputs is None:
        eps = np.finfo(confidence.dtype).eps
        p = np.clip(confidence, eps, 1 - eps).astype(np.float64)
        logit = np.log(p) - np.log1p(-p)
    else:
        logit = _of_the_sure(scored, scored.part(scores)).astype(np.float64)
    return Logits(logit, truth.astype(np.float64))


def calibration_slope(part: Logits, weight: Any) -> Any:
    """The slope of a logistic regression of the labels on the logits.

    1 is calibrated, below 1 overconfident. The mean over the labels of multilabel. NaN where the
    logits tell the labels apart without error, or there is only one label.

    Reference:
        Cox, 1958, *Two further applications of a model for binary regression*.
    """
    return _regressed(part, weight)[1]


def calibration_intercept(part: Logits, weight: Any) -> Any:
    """The intercept of the same regression: 0 is calibrated, below 0 positives are overstated."""
    return _regressed(part, weight)[0]


def _regressed(part: Logits, weight: Any) -> Any:
    xp = weight.__array_namespace__()
    lines = [_line(x, y, weight) for x, y in zip(part.logit, part.truth, strict=True)]
    return xp.stack(lines).mean(axis=0)


def _line(x: Any, y: Any, weight: Any) -> Any:
    """Intercept and slope, by Newton's method."""
    xp = weight.__array_namespace__()
    line = moved = xp.zeros(2, dtype=weight.dtype)
    determinant = weight.sum()
    for _ in range(_NEWTON_STEPS):
        # Where the labels can be told apart the slope has no bound.
        p = 1 / (1 + xp.exp(-xp.clip(line[0] + line[1] * x, -60, 60)))
        error, spread = weight * (y - p), weight * p * (1 - p)
        a, b, c = spread.sum(), (spread * x).sum(), (spread * x * x).sum()
        first, second = error.sum(), (error * x).sum()
        determinant = a * c - b * b
        safe = xp.where(determinant > 0, determinant, 1)
        moved = xp.stack([(c * first - b * second) / safe, (a * second - b * first) / safe])
        line = line + xp.where(determinant > 0, moved, 0)
    converged = (abs(moved) < 1e-3 * (1 + abs(line))).all() & (determinant > 0)
    return xp.where(converged, line, xp.nan)
