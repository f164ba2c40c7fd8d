"""Report diagnostics: a baseline, calibration and thresholds."""

import dataclasses
from typing import Any

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.calibration import (
    NUM_BINS,
    calibration_error,
    confidences,
    even_bins,
)
from thinkml.evaluation.metrics.class_counts import tally
from thinkml.evaluation.metrics.registry import get_metric
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.score_summary import summary_of_constant
from thinkml.evaluation.threshold_choice import Objective, choose_threshold


def baseline(evaluation: Evaluation) -> dict[str, float]:
    """Returns the metrics of a baseline that predicts the same for every row.

    The baseline predicts the most frequent class, with the classes' frequencies as probabilities;
    each label's most frequent value; or the mean of the targets. Custom metrics are left out.
    """
    data, task = _baseline(evaluation.scored), evaluation.task
    values = {
        name: metric.of(data)
        for name in evaluation.metrics
        if (metric := get_metric(name, task.kind, task.classes)) is not None
    }
    has_units = not evaluation.task.is_classification  # 1e-13 may be a large value in these units
    return {
        name: value if has_units and name not in _UNITLESS else round(value, 12)  # 1e-17 becomes 0
        for name, value in values.items()
    }


def _value(name: str, data: EvaluationData) -> float:
    metric = get_metric(name, data.kind)
    assert metric is not None
    return metric.of(data)


def _baseline(data: EvaluationData) -> EvaluationData:
    labels, weight, task_type = data.labels, data.weights, data.task_type
    if not task_type.is_classification:
        prediction, probabilities = np.average(labels, axis=0, weights=weight), None
    elif task_type.has_many_labels:
        probabilities = weight @ (labels > 0.5) / weight.sum()
        prediction = (probabilities > 0.5).astype(labels.dtype)
    else:
        probabilities = tally(labels, weight, data.num_classes) / weight.sum()
        prediction = probabilities.argmax()
    summary = None
    if probabilities is not None and data.summary is not None:
        summary, probabilities = summary_of_constant(probabilities, labels), None
    elif probabilities is not None:
        probabilities = np.broadcast_to(probabilities, (len(data), len(probabilities)))
    return dataclasses.replace(
        data,
        predictions=np.broadcast_to(prediction, labels.shape),
        probabilities=probabilities,
        outputs=None,
        summary=summary,
    )


def calibration(evaluation: Evaluation) -> dict[str, Any] | None:
    """Returns the fraction of true cases by probability, in bins of equal width, and the ECE.

    For several labels the bins hold the rows of each.
    """
    data = evaluation.scored
    if not data.has_probabilities:
        return None
    part, weight = data.part(even_bins), data.weights
    confidence, truth = (values.ravel() for values in confidences(data))
    weight = np.tile(weight, len(part.bin))
    bins = np.ravel(part.bin)
    totals, sums, positives = (
        tally(bins, values, NUM_BINS) for values in (weight, weight * confidence, weight * truth)
    )
    counts = tally(bins, (weight > 0).astype(float), NUM_BINS)
    return {
        'num_bins': NUM_BINS,
        'ece': calibration_error(part, data.weights),
        'bins': [
            {
                'low': index / NUM_BINS,
                'high': (index + 1) / NUM_BINS,
                'count': int(counts[index]),
                'mean_probability': sums[index] / totals[index],
                'share_true': positives[index] / totals[index],
            }
            for index in np.flatnonzero(counts)
        ],
    }


_UNITLESS = ('r2', 'explained_variance')
_BEST: dict[str, Objective] = {'best F1': 'f1', "best Youden's J": 'youden'}
_ADVICE = (
    'The best thresholds were chosen on the same rows as their metrics, which look too good. '
    'Choose a threshold on validation data (choose_threshold), then evaluate it on other data.'
)


def thresholds(evaluation: Evaluation) -> dict[str, Any] | None:
    """Returns precision, recall and others, as predicted and at the best thresholds.

    None unless the task is binary, with both classes and probabilities. A row is predicted positive
    if its probability is at or above the threshold.
    """
    data = evaluation.scored
    if not evaluation.task.type.has_positive_class or data.probabilities is None:
        return None
    if len(np.unique(data.labels[data.weights > 0])) < 2:
        return None
    scores = ('precision', 'recall', 'f1', 'specificity')
    rows: list[dict[str, Any]] = [{'rule': 'as predicted', 'threshold': 0.5}]
    rows[0] |= {name: _value(name, data) for name in scores}
    for rule, objective in _BEST.items():
        best = choose_threshold(evaluation, objective)
        rows.append({'rule': rule} | {n: getattr(best, n) for n in ('threshold', *scores)})
    return {'rows': rows, 'note': _ADVICE}
