"""The probability from which on a row is called positive: which one is best."""

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
    all_ladders,
    check_probabilities,
    named_columns,
)

Objective = Literal['f1', 'youden', 'cost', 'precision', 'recall']

_SLACK = 1e-12  # within which sums of weights count as equal


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A probability from which on a row is called positive, and what that gives.

    Attributes:
        threshold: call a row positive where its probability is at least this. Infinite where it
            is best to call none positive.
        precision: on the data it was chosen on, as the others are.
        recall: the share of the positives that is found.
        f1: of both.
        specificity: the share of the negatives that is called negative; NaN without negatives.
        objective: what it was chosen by.
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
    """Chooses the probability from which on a row is called positive.

    Choose it on validation data, and evaluate with it on test data: on the data it was chosen on,
    it looks better than it is.

    Every distinct probability is tried; sample weights count. Of equally good ones the highest is
    taken, for ``'precision'`` the one with the most recall.

    Args:
        evaluation: of a binary or multilabel model on validation data.
        objective: what is to be best. ``'f1'``: the harmonic mean of precision and recall.
            ``'youden'``: recall + specificity - 1. ``'cost'``: the total cost of the errors, the
            lowest. ``'precision'``: precision, among thresholds of at least ``min_recall``.
            ``'recall'``: recall, among thresholds of at least ``min_precision``.
        false_positive_cost: what a negative row costs that is called positive, for ``'cost'``.
        false_negative_cost: what a positive row costs that is called negative, for ``'cost'``.
        min_recall: between 0 and 1, for ``'precision'``.
        min_precision: between 0 and 1, for ``'recall'``.

    Returns:
        The threshold and what it gives. For multilabel a dict of one per label.

    Raises:
        ConfigError: for regression, multiclass and models without probabilities; for an unknown
            objective, one whose settings are missing, or settings of another one.
        DataError: if there are no positive rows, for ``'youden'`` no negative ones, or no threshold
            has the precision that is asked for. For multilabel such labels are left out, with a
            warning.

    Example:
        >>> from thinkml.evaluation.result import Evaluation
        >>> from thinkml.evaluation.evaluation_data import Scored
        >>> from thinkml.model_record import Task
        >>> labels, p = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.4, 0.3, 0.6, 0.9])
        >>> scored = Scored('binary', 2, labels, labels, np.stack([1 - p, p], axis=1))
        >>> task = Task('binary', (0, 1), 2)
        >>> validation = Evaluation(task, {}, None, None, labels, labels, scored)
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
    check_decided_by_threshold(evaluation, 'choose_threshold')
    _check_settings(objective, settings)
    found = all_ladders(evaluation.scored, by_probability=True)
    ladders = dict(zip(named_columns(evaluation), found, strict=True))
    obstacles = {label: _obstacle(each, objective, settings) for label, each in ladders.items()}
    if evaluation.task.kind == 'multilabel':
        if found := [f'{label}: it has {why}' for label, why in obstacles.items() if why]:
            headline = f'choose_threshold: {len(found)} of {len(ladders)} labels are left out:'
            warn_user(problems(headline, found))
    elif why := ''.join(obstacles.values()):
        raise DataError(
            f'evaluation: it has {why}, expected data on which a threshold can be chosen by '
            f'{objective!r}. Take other validation data, or another objective.'
        )
    chosen = {
        label: threshold_at(each, best_rung(each, objective, settings), objective)
        for label, each in ladders.items()
        if not obstacles[label]
    }
    return chosen if evaluation.task.kind == 'multilabel' else next(iter(chosen.values()))


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
    found = []
    for name, value in settings.items():
        is_needed, is_cost = name in _SETTINGS[objective], name.endswith('_cost')
        expected = 'a number from 0' if is_cost else 'a share from 0 to 1'
        most = np.inf if is_cost else 1
        if not is_needed and value is not None:
            [owner] = (other for other, names in _SETTINGS.items() if name in names)
            found.append(f'{name}: got {value!r}, expected None: it is for {owner!r} alone.')
        elif is_needed and not (is_number(value) and 0 <= float(value or 0) <= most):
            found.append(f'{name}: got {value!r}, expected {expected}.')
    if found:
        raise ConfigError(problems(f'The objective {objective!r} has other settings:', found))


def check_decided_by_threshold(evaluation: Evaluation, function: str) -> None:
    """Refuses what no threshold decides.

    Raises:
        ConfigError: for regression, multiclass and models without probabilities.
    """
    kind = evaluation.task.kind
    if kind == 'multiclass':
        raise ConfigError(
            f'{function}: got a multiclass evaluation, expected a binary or multilabel one. The '
            'most probable class is predicted, so there is no threshold to choose.'
        )
    check_probabilities(evaluation, function)


def _obstacle(each: ThresholdCounts, objective: str, settings: Mapping[str, Any]) -> str:
    """What keeps a threshold from being chosen; empty if nothing does."""
    if not each.positives:
        return 'no positive rows'
    if objective == 'youden' and not each.negatives:
        return 'no negative rows'
    best, least = each.precision.max(), settings['min_precision'] or 0
    return (
        f'no threshold of precision {least} (at most {best:.4g})' if best < least - _SLACK else ''
    )


def best_rung(each: ThresholdCounts, objective: Objective, settings: Mapping[str, Any]) -> int:
    """The index of the best threshold of a ladder on which one can be chosen."""
    match objective:
        case 'f1':
            return _first_best(each.f1)
        case 'youden':
            return _first_best(each.recall - each.fall_out)
        case 'cost':
            wrong = settings['false_positive_cost'] * each.false_positives
            missed = settings['false_negative_cost'] * (each.positives - each.true_positives)
            return _first_best(-(wrong + missed))
        case 'precision':
            enough = each.recall >= settings['min_recall'] - _SLACK
            precision = np.where(enough, each.precision, -1)
            return len(precision) - 1 - _first_best(precision[::-1])  # the most recall
        case 'recall':
            enough = each.precision >= settings['min_precision'] - _SLACK
            return _first_best(np.where(enough, each.recall, -1))


def _first_best(values: np.ndarray) -> int:
    best = values.max()
    return int(np.flatnonzero(values >= best - _SLACK * max(1, abs(best)))[0])


def threshold_at(each: ThresholdCounts, rung: int, objective: Objective) -> Threshold:
    """What a threshold of the ladder gives."""
    return Threshold(
        threshold=float(each.thresholds[rung]),
        precision=float(each.precision[rung]),
        recall=float(each.recall[rung]),
        f1=float(each.f1[rung]),
        specificity=float(1 - each.fall_out[rung]),
        objective=objective,
    )
