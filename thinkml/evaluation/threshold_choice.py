"""Threshold choice: the best probability at which a row is predicted positive."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from thinkml.errors import (
    ConfigError,
    DataError,
    is_number,
    problems,
    unknown_name,
    warn_user,
)
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_counts import (
    ThresholdCounts,
    all_threshold_counts,
    check_probabilities,
    ranked_classes,
)

Objective = Literal['f1', 'youden', 'cost', 'precision', 'recall']

_SLACK = 1e-12  # sums of weights that differ by less are treated as equal


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A probability at and above which a row is predicted positive, with the resulting metrics.

    Attributes:
        threshold: a row is predicted positive if its probability is at least this. Infinite if it
            is best to predict no row positive.
        precision: the precision on the data it was chosen on, as are the other metrics.
        recall: the fraction of positives that are found.
        f1: the harmonic mean of both.
        specificity: the fraction of negatives that are predicted negative; NaN without negatives.
        objective: the objective it was chosen by.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    specificity: float
    objective: Objective


def choose_threshold(
    evaluation: Evaluation,
    objective: Objective = 'f1',
    *,
    false_positive_cost: float | None = None,
    false_negative_cost: float | None = None,
    min_recall: float | None = None,
    min_precision: float | None = None,
) -> Threshold | dict[Any, Threshold]:
    """Chooses the probability at and above which a row is predicted positive.

    Choose it on validation data, then evaluate with it on test data: on the data it was chosen on,
    its metrics look better than they are.

    Every distinct probability is tried, and sample weights count. If several are equally good, the
    highest is taken; for ``'precision'`` the one with the highest recall.

    Args:
        evaluation: the evaluation of a binary or multilabel model on validation data.
        objective: the quantity to optimise. ``'f1'``: the harmonic mean of precision and recall.
            ``'youden'``: recall + specificity - 1. ``'cost'``: the lowest total cost of the errors.
            ``'precision'``: precision, among thresholds with a recall of at least ``min_recall``.
            ``'recall'``: recall, among thresholds with a precision of at least ``min_precision``.
        false_positive_cost: the cost of a negative row that is predicted positive, for ``'cost'``.
        false_negative_cost: the cost of a positive row that is predicted negative, for ``'cost'``.
        min_recall: between 0 and 1, for ``'precision'``.
        min_precision: between 0 and 1, for ``'recall'``.

    Returns:
        The threshold with its metrics; for multilabel a dict with one per label.

    Raises:
        ConfigError: for regression, multiclass and models without probabilities; for an unknown
            objective, missing settings, or settings of another objective.
        DataError: if there are no positive rows, for ``'youden'`` no negative rows, or if no
            threshold reaches the requested precision. For multilabel such labels are left out,
            with a warning.

    Example:
        >>> from thinkml.evaluation.result import Evaluation
        >>> from thinkml.evaluation.evaluation_data import EvaluationData
        >>> from thinkml.tasks import Task
        >>> labels, p = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.4, 0.3, 0.6, 0.9])
        >>> data = EvaluationData('binary', 2, labels, labels, np.stack([1 - p, p], axis=1))
        >>> task = Task('binary', (0, 1), 2)
        >>> validation = Evaluation(task, {}, None, None, labels, labels, data)
        >>> choose_threshold(validation, 'precision', min_recall=0.6).threshold
        0.6

    Reference:
        Youden, 1950, *Index for rating diagnostic tests*.
    """
    settings = {
        'false_positive_cost': false_positive_cost,
        'false_negative_cost': false_negative_cost,
        'min_recall': min_recall,
        'min_precision': min_precision,
    }
    check_uses_threshold(evaluation, 'choose_threshold')
    _check_settings(objective, settings)
    all_counts = dict(
        zip(
            ranked_classes(evaluation),
            all_threshold_counts(evaluation.scored, by_probability=True),
            strict=True,
        )
    )
    obstacles = {
        label: _obstacle(counts, objective, settings) for label, counts in all_counts.items()
    }
    if evaluation.task.type.has_many_labels:
        if skipped := [f'{label}: it has {why}' for label, why in obstacles.items() if why]:
            headline = f'choose_threshold: {len(skipped)} of {len(all_counts)} labels are left out:'
            warn_user(problems(headline, skipped))
    elif why := ''.join(obstacles.values()):
        raise DataError(
            f'evaluation: it has {why}, expected data on which a threshold can be chosen by '
            f'{objective!r}. Use other validation data, or another objective.'
        )
    chosen = {
        label: threshold_at(counts, best_index(counts, objective, settings), objective)
        for label, counts in all_counts.items()
        if not obstacles[label]
    }
    return chosen if evaluation.task.type.has_many_labels else next(iter(chosen.values()))


_SETTINGS: dict[str, tuple[str, ...]] = {
    'f1': (),
    'youden': (),
    'cost': ('false_positive_cost', 'false_negative_cost'),
    'precision': ('min_recall',),
    'recall': ('min_precision',),
}


def _check_settings(objective: str, settings: Mapping[str, float | None]) -> None:
    if objective not in _SETTINGS:
        raise ConfigError(unknown_name('objective', objective, _SETTINGS))
    errors = []
    for name, value in settings.items():
        is_needed, is_cost = name in _SETTINGS[objective], name.endswith('_cost')
        expected = 'a number of at least 0' if is_cost else 'a fraction from 0 to 1'
        most = np.inf if is_cost else 1
        if not is_needed and value is not None:
            [owner] = (other for other, names in _SETTINGS.items() if name in names)
            errors.append(f'{name}: got {value!r}, expected None: it is only for {owner!r}.')
        elif is_needed and not (is_number(value) and 0 <= float(value or 0) <= most):
            errors.append(f'{name}: got {value!r}, expected {expected}.')
    if errors:
        raise ConfigError(problems(f'The objective {objective!r} has other settings:', errors))


def check_uses_threshold(evaluation: Evaluation, function: str) -> None:
    """Raises an error unless a threshold decides the predictions.

    Raises:
        ConfigError: for regression, multiclass and models without probabilities.
    """
    task = evaluation.task
    if task.is_classification and not task.type.has_threshold:
        raise ConfigError(
            f'{function}: got a {task.kind} evaluation, expected a binary or multilabel one. The '
            'most probable class is predicted, so there is no threshold to choose.'
        )
    check_probabilities(evaluation, function)


def _obstacle(counts: ThresholdCounts, objective: str, settings: Mapping[str, Any]) -> str:
    """Returns the reason why no threshold can be chosen; empty if there is none."""
    if not counts.positives:
        return 'no positive rows'
    if objective == 'youden' and not counts.negatives:
        return 'no negative rows'
    best, least = counts.precision.max(), settings['min_precision'] or 0
    return (
        f'no threshold of precision {least} (at most {best:.4g})' if best < least - _SLACK else ''
    )


def best_index(counts: ThresholdCounts, objective: Objective, settings: Mapping[str, Any]) -> int:
    """Returns the index of the best threshold, for counts on which one can be chosen."""
    match objective:
        case 'f1':
            return _first_best(counts.f1)
        case 'youden':
            return _first_best(counts.recall - counts.false_positive_rate)
        case 'cost':
            wrong = settings['false_positive_cost'] * counts.false_positives
            missed = settings['false_negative_cost'] * (counts.positives - counts.true_positives)
            return _first_best(-(wrong + missed))
        case 'precision':
            enough = counts.recall >= settings['min_recall'] - _SLACK
            precision = np.where(enough, counts.precision, -1)
            return len(precision) - 1 - _first_best(precision[::-1])  # the highest recall
        case 'recall':
            enough = counts.precision >= settings['min_precision'] - _SLACK
            return _first_best(np.where(enough, counts.recall, -1))


def _first_best(values: np.ndarray) -> int:
    best = values.max()
    return int(np.flatnonzero(values >= best - _SLACK * max(1, abs(best)))[0])


def threshold_at(counts: ThresholdCounts, index: int, objective: Objective) -> Threshold:
    """Returns the threshold at an index of the counts, with its metrics."""
    return Threshold(
        threshold=float(counts.thresholds[index]),
        precision=float(counts.precision[index]),
        recall=float(counts.recall[index]),
        f1=float(counts.f1[index]),
        specificity=float(1 - counts.false_positive_rate[index]),
        objective=objective,
    )
