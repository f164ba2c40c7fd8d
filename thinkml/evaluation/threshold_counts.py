"""Threshold counts: true and false positives at every threshold, for ROC and other curves."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from thinkml.core.objectives.confusion_counts import ratio
from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.ranking import rankings, rankings_by_probability
from thinkml.evaluation.ranking_scores import scores
from thinkml.evaluation.result import Evaluation


class Ranking(NamedTuple):
    """The rows by falling score, for one class against the others or for one label.

    Attributes:
        order: ``(n,)``, the rows.
        positive: ``(n,)`` bool, True for rows that are positive, in the same order.
        ends: ``(m,)``, the last position of each distinct score.
        scores: ``(m,)``, the distinct scores.
    """

    order: np.ndarray
    positive: np.ndarray
    ends: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """The counts of true and false positives with each distinct score as the threshold.

    Thresholds fall; the first one is infinite. Rows at or above the threshold are predicted
    positive. Rows with weight 0 are left out.

    Attributes:
        thresholds: ``(m,)``, scores, or probabilities if the rows are ranked by these.
        true_positives: ``(m,)``, the number (or weight) of true positives, starting at 0.
        false_positives: ``(m,)``, the number (or weight) of false positives, starting at 0.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def positives(self) -> float:
        """Returns the number (or weight) of all positive rows."""
        return float(self.true_positives[-1])

    @property
    def negatives(self) -> float:
        """Returns the number (or weight) of all other rows."""
        return float(self.false_positives[-1])

    @property
    def precision(self) -> np.ndarray:
        """Returns the fraction of predicted positives that are positive; 0 if there are none."""
        return ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> np.ndarray:
        """Returns the fraction of positives that are predicted positive; NaN without positives."""
        return self.true_positives / (self.positives or np.nan)

    @property
    def f1(self) -> np.ndarray:
        """Returns the harmonic mean of precision and recall: ``2 tp / (2 tp + fp + fn)``."""
        return ratio(
            2 * self.true_positives, self.true_positives + self.false_positives + self.positives
        )

    @property
    def false_positive_rate(self) -> np.ndarray:
        """Returns the fraction of negatives that are predicted positive; NaN without negatives."""
        return self.false_positives / (self.negatives or np.nan)


def each_ranking(data: EvaluationData, *, by_probability: bool = False) -> Iterator[Ranking]:
    """Yields the rankings of a task.

    For binary there is one, by the positive class; for multiclass one for every class against the
    others; for multilabel one for every label.

    Args:
        data: the data set, from a model with probabilities.
        by_probability: True if rows with the same probability are tied even if their scores differ,
            since no threshold of the probability separates them.
    """
    part = data.part(rankings_by_probability if by_probability else rankings)
    values = data.probabilities if by_probability else data.part(scores)
    assert values is not None
    columns = values[:, data.task_type.ranked]
    rows = zip(part.order, part.label, part.positive_label, strict=True)
    for index, (order, label, positive_label) in enumerate(rows):
        ends = np.arange(len(order))
        if part.last is not None:
            ends = np.flatnonzero(part.last[index] == ends)
        yield Ranking(
            order=order,
            positive=label == positive_label,
            ends=ends,
            scores=columns[order[ends], index],
        )


def count_thresholds(ranking: Ranking, weight: np.ndarray) -> ThresholdCounts:
    """Counts true and false positives down a ranking, with weights ``(n,)`` of the rows."""
    weight = weight[ranking.order]
    true_positives = np.cumsum(weight * ranking.positive)[ranking.ends]
    false_positives = np.cumsum(weight * ~ranking.positive)[ranking.ends]
    return counts_at_scores(ranking.scores, true_positives, false_positives)


def counts_at_scores(
    scores: np.ndarray, true_positives: np.ndarray, false_positives: np.ndarray
) -> ThresholdCounts:
    """Returns the threshold counts from cumulative counts at each falling score, all ``(m,)``."""
    changes = np.flatnonzero(np.diff(true_positives + false_positives, prepend=0) > 0)
    return ThresholdCounts(
        np.append(np.inf, scores[changes]),
        np.append(0, true_positives[changes]),
        np.append(0, false_positives[changes]),
    )


def all_threshold_counts(
    data: EvaluationData, *, by_probability: bool = False
) -> Iterator[ThresholdCounts]:
    """Yields the counts of each ranking, with the weights of the data set; see `each_ranking`."""
    weight = data.weights
    for ranking in each_ranking(data, by_probability=by_probability):
        yield count_thresholds(ranking, weight)


def ranked_classes(evaluation: Evaluation) -> tuple[Any, ...]:
    """Returns the classes or labels that `each_ranking` ranks: for binary the positive class."""
    return (evaluation.task.classes or ())[evaluation.task.type.ranked]


def check_probabilities(evaluation: Evaluation, function: str) -> None:
    """Raises an error for an evaluation without probabilities.

    Raises:
        ConfigError: for regression and models that only predict.
    """
    if evaluation.task.classes is None:
        raise ConfigError(
            f'{function}: got the evaluation of a regression model, expected one of a '
            'classification model. For regression see plot_residuals and get_metrics().'
        )
    if evaluation.scored.summary is not None:
        raise ConfigError(
            f'{function}: got an evaluation that did not keep the scores of all classes, since '
            'they are too large, expected one with. Evaluate fewer rows.'
        )
    if evaluation.probabilities is None:
        raise ConfigError(
            f'{function}: got the evaluation of a model without probabilities, expected one with. '
            'Give the model a predict_proba.'
        )
