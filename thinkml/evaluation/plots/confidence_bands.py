"""Confidence bands of curves, by the bootstrap on the host.

The rows are sorted once. A resample counts how often each row is drawn; these counts are weights.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thinkml.evaluation.bootstrap import Resampling, can_vary, make_units, percentiles
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.plots.curve_types import CurveType
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_counts import (
    Ranking,
    ThresholdCounts,
    all_threshold_counts,
    counts_at_scores,
    each_ranking,
    ranked_classes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Denser towards 0, where the curves of good models rise.
_GRID = np.linspace(0, 1, 201) ** 2
_MAX_RESAMPLES = 300
_MAX_CURVES = 6000  # in all resamples and rankings together
_MAX_ROW_VISITS = 3e7  # in all resamples and rankings together
_MIN_ROWS = 2000
_MAX_CELLS = 2000
_SHADE = 0.2


class Band(NamedTuple):
    """The bounds of a curve at each ``x``, at the confidence of the evaluation."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    confidence: float


class Cells(NamedTuple):
    """The rows of a ranking grouped by score, into few cells so that counting them is fast.

    Attributes:
        cell: ``(n,)``, twice the cell of each row, plus 1 for positives.
        scores: ``(cells,)``, the lowest score of each cell, the highest cell first.
    """

    cell: np.ndarray
    scores: np.ndarray


def bands(
    evaluation: Evaluation, curve_types: Sequence[CurveType], *, by_probability: bool = False
) -> list[Band | None]:
    """Returns the pointwise confidence bands of curves, or of the mean curve of several rankings.

    The bounds are percentiles of resamples relative to their median, shifted to the curve. If there
    are very many rows, resamples are drawn from a fraction of them, and the bands are narrowed by
    the square root of this fraction.

    Returns:
        A band for each curve. It is None if the evaluation has no confidence, the curve is not
        defined, or fewer than two rows (or groups) have a weight above 0.
    """
    data, resampling = evaluation.scored, evaluation.resampling
    confidence = resampling.confidence
    if confidence is None or not can_vary(resampling, data.weight, len(data)):
        return [None] * len(curve_types)
    columns = len(ranked_classes(evaluation))
    num_resamples = max(100, min(_MAX_CURVES // columns, _MAX_RESAMPLES))
    num_resamples = min(resampling.num_resamples, num_resamples)
    sample, sample_resampling, fraction = _subsample(
        data, resampling, max(_MIN_ROWS, int(_MAX_ROW_VISITS / (num_resamples * columns)))
    )
    rankings = each_ranking(sample, by_probability=by_probability)
    cells = [make_cells(ranking, sample.weights) for ranking in rankings]

    def curves(counts: Sequence[ThresholdCounts]) -> np.ndarray:
        return np.stack([curve_type.mean_at(_GRID, counts) for curve_type in curve_types])

    def resampled_curves(weight: np.ndarray) -> np.ndarray:
        return curves([_counts_by_cell(each, weight) for each in cells])

    draws = draw_counts(sample_resampling, len(sample), num_resamples)
    samples = np.stack([resampled_curves(sample.weights * count) for count in draws])
    # Rows drawn twice are tied, which moves all resampled curves. The offsets from their median
    # keep the curve itself inside the band.
    offsets = percentiles(samples, confidence) - percentiles(samples, 0)
    counts = list(all_threshold_counts(data, by_probability=by_probability))
    low, high = np.clip(curves(counts) + np.sqrt(fraction) * offsets, 0, 1)
    return [
        None if np.isnan(below).all() else Band(_GRID, below, above, confidence)
        for below, above in zip(low, high, strict=True)
    ]


def draw_band(
    ax: 'Axes', band: Band | None, curve_type: CurveType, colour: str, is_named: bool = True
) -> None:
    """Shades the band of a curve, if there is one, and names it in the legend."""
    if band is not None:
        label = f'{100 * band.confidence:.4g}% band' if is_named else None
        step = 'pre' if curve_type.is_steps else None
        x, low, high, _ = band
        ax.fill_between(x, low, high, step=step, color=colour, alpha=_SHADE, lw=0, label=label)


def draw_counts(resampling: Resampling, num_rows: int, num_resamples: int) -> Iterator[np.ndarray]:
    """Yields how often each row is drawn, ``(num_rows,)``, for each resample."""
    units = make_units(resampling, num_rows)
    rng = np.random.default_rng(resampling.seed)
    num_units = len(units.size)
    for _ in range(num_resamples):
        if resampling.strata is None:
            chosen = rng.integers(num_units, size=num_units)
        else:
            position = units.first + (rng.random(num_units) * units.size).astype(np.int64)
            chosen = units.unit[position]
        drawn = np.bincount(chosen, minlength=num_units)
        yield drawn if units.unit_of_row is None else drawn[units.unit_of_row]


def make_cells(ranking: Ranking, weight: np.ndarray) -> Cells:
    """Cuts a ranking into up to `_MAX_CELLS` cells, spread evenly along its ROC curve.

    Towards the top the cells are finer, down to one row each, since the precision there depends on
    a few rows.
    """
    num_scores = len(ranking.ends)
    cell = np.arange(num_scores)
    scores = ranking.scores
    if num_scores > _MAX_CELLS:
        weight = weight[ranking.order]
        positions = np.log1p(np.arange(len(weight)))
        length = positions / positions[-1]
        for side in (ranking.positive, ~ranking.positive):
            total = np.cumsum(weight * side)
            length += total / (total[-1] or 1)
        length = length[ranking.ends]
        piece = np.floor(length / length[-1] * (_MAX_CELLS - 1))
        cell = np.cumsum(np.diff(piece, prepend=piece[0]) > 0)
        scores = scores[np.append(cell[1:] > cell[:-1], True)]
    in_order = np.repeat(cell, np.diff(ranking.ends, prepend=-1))
    by_row = np.empty(len(in_order), np.int64)
    by_row[ranking.order] = 2 * in_order + ranking.positive
    return Cells(by_row, scores)


def _counts_by_cell(cells: Cells, weight: np.ndarray) -> ThresholdCounts:
    """Returns the threshold counts with these weights of the rows, one threshold per cell."""
    sums = np.bincount(cells.cell, weight, 2 * len(cells.scores))
    return counts_at_scores(cells.scores, np.cumsum(sums[1::2]), np.cumsum(sums[::2]))


def _subsample(
    data: EvaluationData, resampling: Resampling, most: int
) -> tuple[EvaluationData, Resampling, float]:
    """Draws up to about ``most`` rows, in complete groups.

    Returns:
        The rows, how to resample them, and the fraction of all rows that they are.
    """
    if len(data) <= most:
        return data, resampling, 1.0
    groups = np.arange(len(data)) if resampling.groups is None else resampling.groups
    order = np.random.default_rng(resampling.seed).permutation(int(groups.max()) + 1)
    rows = np.flatnonzero(order[groups] < most / len(data) * len(order))

    def select(numbers: np.ndarray | None) -> np.ndarray | None:
        return None if numbers is None else np.unique(numbers[rows], return_inverse=True)[1]

    sample_resampling = dataclasses.replace(
        resampling, groups=select(resampling.groups), strata=select(resampling.strata)
    )
    return data.take(rows), sample_resampling, len(rows) / len(data)
