"""Curve types: ROC, precision-recall, gain and rates over the threshold."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from thinkml.evaluation.threshold_counts import ThresholdCounts

Points = tuple[np.ndarray, np.ndarray]


class CurveType(NamedTuple):
    """A type of curve over threshold counts.

    Attributes:
        points: returns ``x`` and ``y`` from threshold counts, ``x`` rising.
        is_steps: True if each value holds back to the point before; else lines join the points.
        needs_negatives: True if the curve is not defined for positive rows alone.
    """

    points: Callable[[ThresholdCounts], Points]
    is_steps: bool = False
    needs_negatives: bool = False

    @property
    def drawstyle(self) -> str:
        """Returns the draw style in matplotlib's terms."""
        return 'steps-pre' if self.is_steps else 'default'

    def is_defined(self, counts: ThresholdCounts) -> bool:
        """Returns True if the curve is defined for these counts."""
        return counts.positives > 0 and (counts.negatives > 0 or not self.needs_negatives)

    def at(self, grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns a curve's values on a grid, as it is drawn."""
        if self.is_steps:
            return y[np.searchsorted(x, grid).clip(max=len(y) - 1)]
        return np.interp(grid, x, y)

    def mean_at(self, grid: np.ndarray, counts: Sequence[ThresholdCounts]) -> np.ndarray:
        """Returns the mean of all defined curves on a grid; NaN if none is defined."""
        defined = [self.at(grid, *self.points(each)) for each in counts if self.is_defined(each)]
        return np.mean(defined, axis=0) if defined else np.full(len(grid), np.nan)


def _roc_points(counts: ThresholdCounts) -> Points:
    return counts.false_positive_rate, counts.recall


def _precision_recall_points(counts: ThresholdCounts) -> Points:
    precision = counts.precision
    precision[0] = 1  # with no predicted positives, none of them is wrong
    return counts.recall, precision


def _gain_points(counts: ThresholdCounts) -> Points:
    total = counts.positives + counts.negatives
    return (counts.true_positives + counts.false_positives) / total, counts.recall


def _over_threshold(rate: str) -> Callable[[ThresholdCounts], Points]:
    def points(counts: ThresholdCounts) -> Points:
        values = getattr(counts, rate)
        if rate == 'precision':
            values[0] = np.nan  # undefined without predicted positives
        return counts.thresholds[::-1], values[::-1]

    return points


ROC = CurveType(_roc_points, needs_negatives=True)
PRECISION_RECALL = CurveType(_precision_recall_points, is_steps=True)
GAIN = CurveType(_gain_points)
OVER_THRESHOLD = {
    rate: CurveType(_over_threshold(rate), is_steps=True) for rate in ('precision', 'recall', 'f1')
}
"""Rates over the threshold; the last threshold is infinite."""
