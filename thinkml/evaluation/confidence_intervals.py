"""Confidence intervals of metrics: Wilson's formula and the bootstrap."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thinkml.core.objectives.confusion_counts import precision, ratio_or_nan, recall
from thinkml.evaluation.bootstrap import (
    Interval,
    Resampling,
    percentiles,
    resample_values_or_nan,
    shared_parts,
)
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import class_counts, class_part, per_class_f1
from thinkml.evaluation.metrics.registry import Metric
from thinkml.typing import Array, PyTree


def wilson(count: float, total: float, confidence: float = 0.95) -> Interval:
    """Returns the interval of a proportion of independent rows: ``count`` among ``total``.

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
    proportion = count / total
    centre = proportion + z * z / (2 * total)
    spread = z * math.sqrt(proportion * (1 - proportion) / total + z * z / (4 * total * total))
    low, high = ((centre + side * spread) / (1 + z * z / total) for side in (-1, 1))
    return float(max(low, 0.0)), float(min(high, 1.0))


class Subset(NamedTuple):
    """A data set and a mask of some of its rows."""

    data: EvaluationData
    mask: np.ndarray


def metric_intervals(
    data: EvaluationData,
    metrics: Mapping[str, Metric],
    resampling: Resampling,
    subset: Subset | None = None,
) -> dict[str, Interval]:
    """Returns the interval of each metric.

    Args:
        data: labels and predictions.
        metrics: the metrics, by name.
        resampling: how rows are drawn; without confidence there are no intervals.
        subset: the data set that ``resampling`` is for and a mask of the rows in ``data``, if these
            are only a part of it. All rows are then drawn and those outside the mask get weight 0,
            so that all parts share a program.
    """
    if resampling.confidence is None:
        return {}
    all_data, weight = data, data.weight
    if subset is not None:
        all_data, weight = subset.data, subset.data.weights * subset.mask
    proportions = {}
    if _is_simple(data) and resampling.groups is None and resampling.strata is None:
        proportions = {name: metric for name, metric in metrics.items() if metric.proportion}
    others = {name: metric for name, metric in metrics.items() if name not in proportions}
    intervals = {}
    for name, metric in proportions.items():
        assert metric.proportion is not None
        count, total = metric.proportion(data.part(metric.part), data.weights)
        intervals[name] = wilson(count, total, resampling.confidence)
    if others:
        values, parts = shared_parts(all_data, others)
        samples = resample_values_or_nan(values, parts, weight, resampling, len(all_data))
        for name, sample in zip(others, samples, strict=True):
            low, high = percentiles(sample, resampling.confidence)
            value = metrics[name].of(data)
            if not np.isfinite(value) or np.isnan(low):
                low = high = np.nan
            elif metrics[name].is_biased:
                bias = np.nanmedian(sample) - value
                low, high = max(0.0, low - bias), min(1.0, high - bias)
            intervals[name] = (float(low), float(high))
    return {name: intervals[name] for name in metrics}


def _is_simple(data: EvaluationData) -> bool:
    """Returns True if every row has weight 1 or 0."""
    return data.weight is None or bool(np.isin(data.weight, (0, 1)).all())


def class_intervals(
    data: EvaluationData, classes: Sequence[Any], resampling: Resampling
) -> dict[Any, dict[str, Interval]]:
    """Returns the intervals of ``precision``, ``recall`` and ``f1`` of each class (or label)."""
    confidence = resampling.confidence
    if confidence is None or not classes:
        return {}
    proportions = {'precision': precision, 'recall': recall}
    is_simple = data.weight is None and resampling.groups is None and resampling.strata is None
    bounds: dict[str, Any] = {}
    if is_simple:
        counts = data.part(class_part).full_counts
        for name, proportion in proportions.items():
            pairs = zip(*proportion(counts), strict=True)
            bounds[name] = np.transpose([wilson(*pair, confidence) for pair in pairs])
    values = (per_class_f1,) if is_simple else (per_class_f1, _precisions, _recalls)
    samples = resample_values_or_nan(
        values, data.part(class_part), data.weight, resampling, len(data)
    )
    for name, sample in zip(('f1', *proportions), samples, strict=False):
        bounds[name] = percentiles(sample, confidence)
    return {
        label: {
            name: (float(bounds[name][0][index]), float(bounds[name][1][index]))
            for name in (*proportions, 'f1')
        }
        for index, label in enumerate(classes)
    }


def _precisions(part: PyTree, weight: Array) -> Array:
    counts = class_counts(part, weight)
    return ratio_or_nan(*precision(counts))


def _recalls(part: PyTree, weight: Array) -> Array:
    counts = class_counts(part, weight)
    return ratio_or_nan(*recall(counts))
