"""What a report sets beside the metrics: a baseline, calibration, thresholds."""

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
from thinkml.evaluation.threshold_choice import Objective, choose_threshold


def baseline(evaluation: Evaluation) -> dict[str, float]:
    """The metrics of a baseline that predicts the same for every row.

    The most frequent class with the shares of the classes as probabilities, each label's most
    frequent value, or the mean of the targets. Metrics that are functions of the user's are left
    out.
    """
    scored, kind = _baseline(evaluation.scored), evaluation.task.kind
    found = {name: _value(name, scored) for name in evaluation.metrics if get_metric(name, kind)}
    in_units = kind == 'regression'  # in which 1e-13 may be a lot
    return {
        name: value if in_units and name not in _UNITLESS else round(value, 12)  # no 1e-17 for a 0
        for name, value in found.items()
    }


def _value(name: str, scored: EvaluationData) -> float:
    metric = get_metric(name, scored.kind)
    assert metric is not None
    return metric.of(scored)


def _baseline(scored: EvaluationData) -> EvaluationData:
    labels, weight = scored.labels, scored.weights
    if scored.kind == 'regression':
        prediction, probabilities = np.average(labels, axis=0, weights=weight), None
    elif scored.kind == 'multilabel':
        shares = weight @ (labels > 0.5) / weight.sum()
        prediction, probabilities = (shares > 0.5).astype(labels.dtype), shares
    else:
        shares = tally(labels, weight, scored.num_classes) / weight.sum()
        prediction, probabilities = shares.argmax(), shares
    if probabilities is not None:
        probabilities = np.broadcast_to(probabilities, (len(scored), len(probabilities)))
    return dataclasses.replace(
        scored,
        predictions=np.broadcast_to(prediction, labels.shape),
        probabilities=probabilities,
        outputs=None,
    )


def calibration(evaluation: Evaluation) -> dict[str, Any] | None:
    """How often what was given a probability came true, by bins of even width; ECE.

    Of several labels the bins hold the rows of each.
    """
    scored = evaluation.scored
    if scored.probabilities is None:
        return None
    part, weight = scored.part(even_bins), scored.weights
    confidence, truth = (values.ravel() for values in confidences(scored))
    weight = np.tile(weight, len(part.bin))
    bins = np.ravel(part.bin)
    totals, sums, hits = (
        tally(bins, values, NUM_BINS) for values in (weight, weight * confidence, weight * truth)
    )
    counts = tally(bins, (weight > 0).astype(float), NUM_BINS)
    return {
        'num_bins': NUM_BINS,
        'ece': calibration_error(part, scored.weights),
        'bins': [
            {
                'low': index / NUM_BINS,
                'high': (index + 1) / NUM_BINS,
                'count': int(counts[index]),
                'mean_probability': sums[index] / totals[index],
                'share_true': hits[index] / totals[index],
            }
            for index in np.flatnonzero(counts)
        ],
    }


_UNITLESS = ('r2', 'explained_variance')
_BEST: dict[str, Objective] = {'best F1': 'f1', "best Youden's J": 'youden'}
_ADVICE = (
    'The best thresholds are those of the very rows they are measured on, which flatters them. '
    'Choose a threshold on validation data (choose_threshold), then evaluate it on other data.'
)


def thresholds(evaluation: Evaluation) -> dict[str, Any] | None:
    """Precision, recall and the like of the predictions, and at the best thresholds; binary only.

    A row is called positive if its probability is at or above the threshold.
    """
    scored = evaluation.scored
    if scored.kind != 'binary' or scored.probabilities is None:
        return None
    if len(np.unique(scored.labels[scored.weights > 0])) < 2:
        return None
    scores = ('precision', 'recall', 'f1', 'specificity')
    rows: list[dict[str, Any]] = [{'rule': 'as predicted', 'threshold': 0.5}]
    rows[0] |= {name: _value(name, scored) for name in scores}
    for rule, objective in _BEST.items():
        best = choose_threshold(evaluation, objective)
        rows.append({'rule': rule} | {n: getattr(best, n) for n in ('threshold', *scores)})
    return {'rows': rows, 'note': _ADVICE}
