"""Confidence intervals of metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thinkml.core.objectives.confusion_counts import precision, ratio_or_nan, recall
from thinkml.evaluation.bootstrap import (
    Interval,
    Resampling,
    percentiles,
    resampled_or_nan,
    shared_parts,
)
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import class_counts, class_part, per_class_f1
from thinkml.evaluation.metrics.registry import Metric


def wilson(count: float, total: float, confidence: float = 0.95) -> Interval:
    """The interval of a share of independent rows: of ``count`` among ``total``.

    Reference:
        Wilson, 1927, *Probable inference, the law of succession, and statistical inference*.

    Example:
        >>> from thinkml.evaluation.confidence_intervals import wilson
        >>> [round(bound, 3) for bound in wilson(9, 10)]
        [0.596, 0.982]
    """
    if total <= 0:
        return math.nan, math.nan
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = ((centre + side * spread) / (1 + z * z / total) for side in (-1, 1))
    return float(max(low, 0.0)), float(min(high, 1.0))


class Subset(NamedTuple):
    """The data set that rows are a part of, and which of its rows they are, a mask."""

    scored: EvaluationData
    mask: np.ndarray


def intervals_of(
    scored: EvaluationData,
    metrics: Mapping[str, Metric],
    resampling: Resampling,
    within: Subset | None = None,
) -> dict[str, Interval]:
    """The interval of each metric.

    Args:
        scored: labels and predictions.
        metrics: by name.
        resampling: how rows are drawn; without confidence there are no intervals.
        within: where they are a part of a data set, which ``resampling`` is of. The whole is drawn
            then, and the other rows weigh nothing, so that all parts share a program.
    """
    if resampling.confidence is None:
        return {}
    whole, weight = scored, scored.weight
    if within is not None:
        whole, weight = within.scored, within.scored.weights * within.mask
    shares = {}
    if _is_simple(scored) and resampling.groups is None and resampling.strata is None:
        shares = {name: metric for name, metric in metrics.items() if metric.share}
    drawn = {name: metric for name, metric in metrics.items() if name not in shares}
    found = {}
    for name, metric in shares.items():
        assert metric.share is not None
        counted = metric.share(scored.part(metric.part), scored.weights)
        found[name] = wilson(*counted, resampling.confidence)
    if drawn:
        values, parts = shared_parts(whole, drawn)
        samples = resampled_or_nan(values, parts, weight, resampling, len(whole))
        for name, sample in zip(drawn, samples, strict=True):
            low, high = percentiles(sample, resampling.confidence)
            value = metrics[name].of(scored)
            if np.isnan(value) or np.isnan(low):
                low = high = np.nan
            elif metrics[name].is_biased:
                bias = np.nanmedian(sample) - value
                low, high = max(0.0, low - bias), high - bias
            found[name] = (float(low), float(high))
    return {name: found[name] for name in metrics}


def _is_simple(scored: EvaluationData) -> bool:
    """Whether rows count 1, or not at all."""
    return scored.weight is None or bool(np.isin(scored.weight, (0, 1)).all())


def class_intervals(
    scored: EvaluationData, classes: Sequence[Any], resampling: Resampling
) -> dict[Any, dict[str, Interval]]:
    """The intervals of ``precision``, ``recall`` and ``f1`` of each class (or label)."""
    confidence = resampling.confidence
    if confidence is None or not classes:
        return {}
    shares = {'precision': precision, 'recall': recall}
    is_simple = scored.weight is None and resampling.groups is None and resampling.strata is None
    bounds: dict[str, Any] = {}
    if is_simple:
        counts = scored.part(class_part).whole
        for name, share in shares.items():
            pairs = zip(*share(counts), strict=True)
            bounds[name] = np.transpose([wilson(*pair, confidence) for pair in pairs])
    values = (per_class_f1,) if is_simple else (per_class_f1, _precisions, _recalls)
    samples = resampled_or_nan(
        values, scored.part(class_part), scored.weight, resampling, len(scored)
    )
    for name, sample in zip(('f1', *shares), samples, strict=False):
        bounds[name] = percentiles(sample, confidence)
    return {
        label: {
            name: (float(bounds[name][0][index]), float(bounds[name][1][index]))
            for name in (*shares, 'f1')
        }
        for index, label in enumerate(classes)
    }


def _precisions(part: Any, weight: Any) -> Any:
    counts = class_counts(part, weight)
    return ratio_or_nan(*precision(counts))


def _recalls(part: Any, weight: Any) -> Any:
    counts = class_counts(part, weight)
    return ratio_or_nan(*recall(counts))
