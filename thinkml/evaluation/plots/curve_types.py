"""The curves of a ranking, as points on a ladder of thresholds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from thinkml.evaluation.threshold_counts import ThresholdCounts

Points = tuple[np.ndarray, np.ndarray]


class CurveType(NamedTuple):
    """A kind of curve.

    Attributes:
        points: ``x`` and ``y`` of a ladder, ``x`` rising.
        is_steps: whether each value holds back to the point before; else lines join the points.
        needs_negatives: whether positive rows alone don't define it.
    """

    points: Callable[[ThresholdCounts], Points]
    is_steps: bool = False
    needs_negatives: bool = False

    @property
    def drawstyle(self) -> str:
        """What matplotlib calls it."""
        return 'steps-pre' if self.is_steps else 'default'

    def is_defined(self, ladder: ThresholdCounts) -> bool:
        """Whether the rows have what the curve needs."""
        return ladder.positives > 0 and (ladder.negatives > 0 or not self.needs_negatives)

    def at(self, grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """A curve's values on a grid, as it is drawn."""
        if self.is_steps:
            return y[np.searchsorted(x, grid).clip(max=len(y) - 1)]
        return np.interp(grid, x, y)

    def mean_at(self, grid: np.ndarray, ladders: Sequence[ThresholdCounts]) -> np.ndarray:
        """The mean of several curves on a grid, of those that are defined; else NaN."""
        defined = [self.at(grid, *self.points(each)) for each in ladders if self.is_defined(each)]
        return np.mean(defined, axis=0) if defined else np.full(len(grid), np.nan)


def _roc_points(ladder: ThresholdCounts) -> Points:
    return ladder.fall_out, ladder.recall


def _precision_recall_points(ladder: ThresholdCounts) -> Points:
    precision = ladder.precision
    precision[0] = 1  # where nothing is called positive, nothing is called so wrongly
    return ladder.recall, precision


def _gain_points(ladder: ThresholdCounts) -> Points:
    total = ladder.positives + ladder.negatives
    return (ladder.true_positives + ladder.false_positives) / total, ladder.recall


def _over_threshold(rate: str) -> Callable[[ThresholdCounts], Points]:
    def points(ladder: ThresholdCounts) -> Points:
        values = getattr(ladder, rate)
        if rate == 'precision':
            values[0] = np.nan  # of nothing
        return ladder.thresholds[::-1], values[::-1]

    return points


ROC = CurveType(_roc_points, needs_negatives=True)
PRECISION_RECALL = CurveType(_precision_recall_points, is_steps=True)
GAIN = CurveType(_gain_points)
OVER_THRESHOLD = {
    rate: CurveType(_over_threshold(rate), is_steps=True) for rate in ('precision', 'recall', 'f1')
}
"""Rates over the threshold; the last one is infinite."""
