"""What every threshold of a probability gives: the counts behind ROC, precision-recall and gain."""

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
    """The rows by falling score, of one class against the others or of one label.

    Attributes:
        order: ``(n,)``, the rows.
        positive: ``(n,)`` bool, which of these are positive.
        ends: ``(m,)``, the last place of each distinct score.
        scores: ``(m,)``, the distinct scores.
    """

    order: np.ndarray
    positive: np.ndarray
    ends: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """What is called positive, at each distinct score as the threshold, the highest first.

    Rows at or above the threshold are called positive. The first threshold is infinite. Rows that
    count nothing are left out.

    Attributes:
        thresholds: ``(m,)``, scores or, where rows are ranked by these, probabilities.
        hits: ``(m,)``, the number (or weight) of true positives, from 0.
        misses: ``(m,)``, that of false positives.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    @property
    def positives(self) -> float:
        """The number (or weight) of all positive rows."""
        return float(self.true_positives[-1])

    @property
    def negatives(self) -> float:
        """The number (or weight) of all other rows."""
        return float(self.false_positives[-1])

    @property
    def precision(self) -> np.ndarray:
        """Of what is called positive, the share that is; 0 where nothing is called positive."""
        return ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> np.ndarray:
        """Of what is positive, the share that is called so; NaN without positives."""
        return self.true_positives / (self.positives or np.nan)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall: ``2 tp / (2 tp + fp + fn)``."""
        return ratio(
            2 * self.true_positives, self.true_positives + self.false_positives + self.positives
        )

    @property
    def fall_out(self) -> np.ndarray:
        """Of what is negative, the share that is called positive; NaN without negatives."""
        return self.false_positives / (self.negatives or np.nan)


def ranked(scored: EvaluationData, *, by_probability: bool = False) -> Iterator[Ranking]:
    """Yields the rankings a task consists of.

    Binary: that of the positive class alone; multiclass: of every class against the others;
    multilabel: of every label.

    Args:
        scored: of a model with probabilities.
        by_probability: whether rows with the same probability are tied, whatever their scores:
            no threshold of the probability tells them apart.
    """
    part = scored.part(rankings_by_probability if by_probability else rankings)
    values = scored.probabilities if by_probability else scored.part(scores)
    assert values is not None
    columns = values[:, 1:] if scored.kind == 'binary' else values
    for index, (order, rival, own) in enumerate(zip(part.order, part.rival, part.own, strict=True)):
        ends = np.arange(len(order))
        if part.last is not None:
            ends = np.flatnonzero(part.last[index] == ends)
        yield Ranking(order, rival == own, ends, columns[order[ends], index])


def ladder(ranking: Ranking, weight: np.ndarray) -> ThresholdCounts:
    """Counts true and false positives down a ranking, for any weights of the rows ``(n,)``."""
    weight = weight[ranking.order]
    true_positives = np.cumsum(weight * ranking.positive)[ranking.ends]
    false_positives = np.cumsum(weight * ~ranking.positive)[ranking.ends]
    return ladder_of(ranking.scores, true_positives, false_positives)


def ladder_of(
    scores: np.ndarray, true_positives: np.ndarray, false_positives: np.ndarray
) -> ThresholdCounts:
    """The ladder of counts down to each score, the highest first, all ``(m,)``."""
    rungs = np.flatnonzero(np.diff(true_positives + false_positives, prepend=0) > 0)
    return ThresholdCounts(
        np.append(np.inf, scores[rungs]),
        np.append(0, true_positives[rungs]),
        np.append(0, false_positives[rungs]),
    )


def all_ladders(
    scored: EvaluationData, *, by_probability: bool = False
) -> Iterator[ThresholdCounts]:
    """Yields the ladder of each ranking, with the rows' own weights; see `ranked`."""
    weight = scored.weights
    for ranking in ranked(scored, by_probability=by_probability):
        yield ladder(ranking, weight)


def named_columns(evaluation: Evaluation) -> tuple[Any, ...]:
    """The classes or labels that `ranked` ranks: for binary the positive class alone."""
    classes = evaluation.task.classes or ()
    return classes[1:] if evaluation.task.kind == 'binary' else classes


def check_probabilities(evaluation: Evaluation, function: str) -> None:
    """Refuses an evaluation without probabilities.

    Raises:
        ConfigError: for regression and models that only predict.
    """
    if evaluation.task.classes is None:
        raise ConfigError(
            f'{function}: got the evaluation of a regression model, expected one of a '
            'classification model. For regression see plot_residuals and get_metrics().'
        )
    if evaluation.probabilities is None:
        raise ConfigError(
            f'{function}: got the evaluation of a model without probabilities, expected one with. '
            'Give the model a predict_proba.'
        )
