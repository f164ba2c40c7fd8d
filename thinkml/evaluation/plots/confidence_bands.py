"""Confidence bands of curves, by the bootstrap on the host.

The rows are sorted once; a resample is a count of how often each is drawn, and so a weight.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thinkml.evaluation.bootstrap import Resampling, can_vary, percentiles, units_of
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.plots.curve_types import CurveType
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_counts import (
    Ranking,
    ThresholdCounts,
    all_ladders,
    ladder_of,
    ranked,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Denser towards 0, where the curves of good models rise.
_GRID = np.linspace(0, 1, 201) ** 2
_MAX_RESAMPLES = 300
_MAX_LADDERS = 6000  # of all resamples and rankings
_MAX_VISITS = 3e7  # of rows, in all resamples and rankings
_MIN_ROWS = 2000
_MAX_CELLS = 2000
_SHADE = 0.2


class Band(NamedTuple):
    """Bounds at each ``x``, at the confidence of the evaluation."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    confidence: float


class Cells(NamedTuple):
    """The rows of a ranking by score, few enough cells to be gone through often.

    Attributes:
        cell: ``(n,)``, twice the cell of each row, 1 more for positives.
        scores: ``(cells,)``, the lowest score of each, the highest cell first.
    """

    cell: np.ndarray
    scores: np.ndarray


def bands(
    evaluation: Evaluation, kinds: Sequence[CurveType], *, by_probability: bool = False
) -> list[Band | None]:
    """The pointwise confidence bands of curves, each of one, or of the mean of several rankings.

    Percentiles of resamples around their median, which is moved onto the curve. Of very many rows
    a part is drawn from, and the bands made narrower by the root of its share.

    Returns:
        None for each where the evaluation is without confidence, the curve is not defined, or
        fewer than two rows (or groups) count.
    """
    scored, resampling = evaluation.scored, evaluation.resampling
    confidence = resampling.confidence
    if confidence is None or not can_vary(resampling, scored.weight, len(scored)):
        return [None] * len(kinds)
    columns = 1 if scored.kind == 'binary' else scored.num_classes
    num_resamples = max(100, min(_MAX_LADDERS // columns, _MAX_RESAMPLES))
    num_resamples = min(resampling.num_resamples, num_resamples)
    part, drawn, share = _some_rows(
        scored, resampling, max(_MIN_ROWS, int(_MAX_VISITS / (num_resamples * columns)))
    )
    rankings = ranked(part, by_probability=by_probability)
    cells = [cells_of(each, part.weights) for each in rankings]

    def curves(ladders: Sequence[ThresholdCounts]) -> np.ndarray:
        return np.stack([kind.mean_at(_GRID, ladders) for kind in kinds])

    def weighted(weight: np.ndarray) -> np.ndarray:
        return curves([_coarse(each, weight) for each in cells])

    weights = (part.weights * count for count in row_counts(drawn, len(part), num_resamples))
    draws = np.stack([weighted(weight) for weight in weights])
    # Rows drawn twice are tied, which moves the curves as a whole; a band is to hold its own.
    around = percentiles(draws, confidence) - percentiles(draws, 0)
    whole = list(all_ladders(scored, by_probability=by_probability))
    low, high = np.clip(curves(whole) + np.sqrt(share) * around, 0, 1)
    return [
        None if np.isnan(below).all() else Band(_GRID, below, above, confidence)
        for below, above in zip(low, high, strict=True)
    ]


def draw_band(
    ax: 'Axes', band: Band | None, kind: CurveType, colour: str, is_named: bool = True
) -> None:
    """Shades the band of a curve, where there is one, and names it in the legend."""
    if band is not None:
        label = f'{100 * band.confidence:.4g}% band' if is_named else None
        step = 'pre' if kind.is_steps else None
        x, low, high, _ = band
        ax.fill_between(x, low, high, step=step, color=colour, alpha=_SHADE, lw=0, label=label)


def row_counts(resampling: Resampling, num_rows: int, num_resamples: int) -> Iterator[np.ndarray]:
    """Yields how often each row is drawn, ``(num_rows,)``, for each resample."""
    units = units_of(resampling, num_rows)
    rng = np.random.default_rng(resampling.seed)
    num_units = len(units.size)
    for _ in range(num_resamples):
        if resampling.strata is None:
            chosen = rng.integers(num_units, size=num_units)
        else:
            place = units.first + (rng.random(num_units) * units.size).astype(np.int64)
            chosen = units.unit[place]
        drawn = np.bincount(chosen, minlength=num_units)
        yield drawn if units.of_row is None else drawn[units.of_row]


def cells_of(ranking: Ranking, weight: np.ndarray) -> Cells:
    """Cuts a ranking into up to `_MAX_CELLS` pieces, spread evenly along its ROC curve.

    Towards the top they are finer, each row its own, as precision there is that of a few rows.
    """
    num_scores = len(ranking.ends)
    cell = np.arange(num_scores)
    scores = ranking.scores
    if num_scores > _MAX_CELLS:
        weight = weight[ranking.order]
        places = np.log1p(np.arange(len(weight)))
        length = places / places[-1]
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


def _coarse(cells: Cells, weight: np.ndarray) -> ThresholdCounts:
    """The ladder of the rows' weights, one rung per cell."""
    sums = np.bincount(cells.cell, weight, 2 * len(cells.scores))
    return ladder_of(cells.scores, np.cumsum(sums[1::2]), np.cumsum(sums[::2]))


def _some_rows(
    scored: EvaluationData, resampling: Resampling, most: int
) -> tuple[EvaluationData, Resampling, float]:
    """Up to about ``most`` rows, in whole groups, how to draw them, and the share they are."""
    if len(scored) <= most:
        return scored, resampling, 1.0
    groups = np.arange(len(scored)) if resampling.groups is None else resampling.groups
    order = np.random.default_rng(resampling.seed).permutation(int(groups.max()) + 1)
    rows = np.flatnonzero(order[groups] < most / len(scored) * len(order))

    def kept(numbers: np.ndarray | None) -> np.ndarray | None:
        return None if numbers is None else np.unique(numbers[rows], return_inverse=True)[1]

    part = dataclasses.replace(
        resampling, groups=kept(resampling.groups), strata=kept(resampling.strata)
    )
    return scored.take(rows), part, len(rows) / len(scored)
