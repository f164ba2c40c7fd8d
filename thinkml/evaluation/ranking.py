"""What a ranking by score gives: ROC and precision-recall curves and the areas under them.

Labels are encoded and probabilities shaped as `thinkml.evaluation.metrics` has it.
"""

import sys
import warnings
from collections.abc import Iterator

import numpy as np

from thinkml.errors import ThinkMLWarning
from thinkml.record import TaskKind


def one_vs_rest(
    labels: np.ndarray, probabilities: np.ndarray, kind: TaskKind
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the rankings a task consists of, as ``(is_positive, score)``, each ``(n,)``.

    Binary: the positive class alone; multiclass: every class against the others; multilabel:
    every label.
    """
    if kind == 'binary':
        yield labels == 1, probabilities[:, 1]
    elif kind == 'multiclass':
        for index, scores in enumerate(probabilities.T):
            yield labels == index, scores
    else:
        yield from zip(labels.T > 0.5, probabilities.T, strict=True)


def roc_curve(
    positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rates of calling everything at or above a threshold positive, for each threshold.

    Args:
        positive: ``(n,)`` bool, with both values among them.
        scores: ``(n,)``, higher for positives.

    Returns:
        False positive rates, true positive rates (both rise from 0 to 1) and the thresholds,
        highest first, starting with infinity. As scikit-learn's with ``drop_intermediate=False``.

    Example:
        >>> import numpy as np
        >>> roc_curve(np.array([False, True, True]), np.array([0.1, 0.4, 0.8]))[1]
        array([0. , 0.5, 1. , 1. ])
    """
    hits, misses, thresholds = _hits_by_threshold(positive, scores)
    hits, misses = np.append(0, hits), np.append(0, misses)
    return misses / misses[-1], hits / hits[-1], np.append(np.inf, thresholds)


def precision_recall_curve(
    positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall of calling everything at or above a threshold positive.

    Args:
        positive: ``(n,)`` bool, with at least one positive.
        scores: ``(n,)``, higher for positives.

    Returns:
        Precision, recall and the thresholds, highest first, starting with precision 1 and recall
        0 at infinity. This is scikit-learn's curve, which starts at the other end.
    """
    hits, misses, thresholds = _hits_by_threshold(positive, scores)
    precision, recall = hits / (hits + misses), hits / hits[-1]
    return np.append(1.0, precision), np.append(0.0, recall), np.append(np.inf, thresholds)


def _hits_by_threshold(
    positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at each distinct score as threshold, the highest first."""
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(positive[order])[last_of_ties]
    return hits, last_of_ties + 1 - hits, ranked[last_of_ties]


def roc_auc(labels: np.ndarray, probabilities: np.ndarray, kind: TaskKind) -> float:
    """The area under the ROC curve; the mean over classes (one-vs-rest) or labels, if several.

    It is the chance that a positive example scores above a negative one, ties counted half. NaN,
    with a warning, if a class has no examples or all of them.

    Example:
        >>> import numpy as np
        >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
        >>> roc_auc(np.array([0, 0, 1, 1]), probabilities, 'binary')
        0.75
    """
    areas = [_roc_area(*ranking) for ranking in one_vs_rest(labels, probabilities, kind)]
    if undefined := int(np.isnan(areas).sum()):
        noun = 'labels' if kind == 'multilabel' else 'classes'
        where = '' if kind == 'binary' else f' for {undefined} of {len(areas)} {noun}'
        warn(
            f'roc_auc: NaN, since it is not defined{where}: y_test needs positive and negative '
            'examples.'
        )
    return float(np.mean(areas))


def _roc_area(positive: np.ndarray, scores: np.ndarray) -> float:
    if positive.all() or not positive.any():
        return np.nan
    false_positive_rate, true_positive_rate, _ = roc_curve(positive, scores)
    return float(np.trapezoid(true_positive_rate, false_positive_rate))


def average_precision(labels: np.ndarray, probabilities: np.ndarray, kind: TaskKind) -> float:
    """The precision-recall curve's area; the mean over classes (one-vs-rest) or labels, if several.

    The area is the sum of steps ``sum_i (recall_i - recall_{i-1}) precision_i``. A class without
    examples has 0, with a warning.
    """
    areas = [_precision_area(*ranking) for ranking in one_vs_rest(labels, probabilities, kind)]
    if undefined := sum(area is None for area in areas):
        noun = 'labels' if kind == 'multilabel' else 'classes'
        where = '' if kind == 'binary' else f' for {undefined} of {len(areas)} {noun}'
        warn(f'average_precision: set to 0{where}: y_test has no positive examples.')
    return float(np.mean([area or 0.0 for area in areas]))


def _precision_area(positive: np.ndarray, scores: np.ndarray) -> float | None:
    if not positive.any():
        return None
    precision, recall, _ = precision_recall_curve(positive, scores)
    return step_area(recall, precision)


def step_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under a precision-recall curve drawn as steps, its average precision."""
    return float(np.sum(np.diff(recall) * precision[1:]))


def warn(message: str) -> None:
    """Issues a warning about a metric where ThinkML was called, however deep inside it arises."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get('__name__', '').startswith('thinkml.'):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, ThinkMLWarning, stacklevel=level)
