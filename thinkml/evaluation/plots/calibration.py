"""Calibration curve: the fraction of true cases over the predicted probability."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thinkml.evaluation.confidence_intervals import wilson
from thinkml.evaluation.metrics.calibration import (
    NUM_BINS,
    calibration_error,
    confidences,
    even_bins,
)
from thinkml.evaluation.metrics.class_counts import tally
from thinkml.evaluation.plots.axes import (
    GREY,
    MAX_NAMED,
    NUM_WORST,
    PALE,
    PathLike,
    add_legend,
    finish,
    line_style,
    new_axes,
    set_rate_axes,
    shorten,
)
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_counts import check_probabilities, ranked_classes
from thinkml.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Reliability(NamedTuple):
    """The fraction of true cases by predicted probability.

    Attributes:
        name: the name of the label.
        error: the expected calibration error.
        counts: ``(bins,)``, the rows (or their weight) in each of `NUM_BINS` bins of equal width.
        predicted: the mean probability in each bin that is not empty. The other arrays have the
            same bins.
        true: the fraction of true cases.
        low: the lower bound of its confidence interval; NaN without confidence.
        high: the upper bound.
    """

    name: str
    error: float
    counts: np.ndarray
    predicted: np.ndarray
    true: np.ndarray
    low: np.ndarray
    high: np.ndarray


def reliabilities(evaluation: Evaluation) -> list[Reliability]:
    """Returns the calibration of the positive class, of the predicted class, or of each label.

    Intervals are Wilson's. With weights, the rows of a bin count as ``(sum w)^2 / sum w^2`` rows of
    equal weight. Rows of one group count as one row, as if they were all the same.
    """
    data, weight = evaluation.scored, evaluation.scored.weights
    bins = data.part(even_bins)
    names = map(shorten, ranked_classes(evaluation)) if len(bins.bin) > 1 else ['']
    curves = []
    for name, column, confidence, truth in zip(names, bins.bin, *confidences(data), strict=True):
        total = tally(column, weight, NUM_BINS)
        filled = total > 0
        sums = [tally(column, weight * values, NUM_BINS) for values in (confidence, truth)]
        predicted, true = (values[filled] / total[filled] for values in sums)
        low, high = _bounds(evaluation, true, _effective_rows(evaluation, column)[filled])
        error = calibration_error(
            bins._replace(bin=column[None], gap=(confidence - truth)[None]), weight
        )
        curves.append(
            Reliability(
                name=name,
                error=float(error),
                counts=total,
                predicted=predicted,
                true=true,
                low=low,
                high=high,
            )
        )
    return curves


def _effective_rows(evaluation: Evaluation, column: np.ndarray) -> np.ndarray:
    """Returns the number of independent rows of equal weight that each bin's rows are worth."""
    weight, groups = evaluation.scored.weights, evaluation.resampling.groups
    if groups is not None:
        cells, index = np.unique(groups * NUM_BINS + column, return_inverse=True)
        column, weight = cells % NUM_BINS, np.bincount(index, weight)
    squares = tally(column, weight**2, NUM_BINS)
    return tally(column, weight, NUM_BINS) ** 2 / np.where(squares > 0, squares, 1)


def _bounds(
    evaluation: Evaluation, true: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    confidence = evaluation.resampling.confidence
    bounds = np.full((len(true), 2), np.nan)
    if confidence is not None:
        pairs = zip(true, rows, strict=True)
        bounds[:] = [wilson(fraction * size, size, confidence) for fraction, size in pairs]
    return bounds[:, 0], bounds[:, 1]


def calibration_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws the fraction of true cases over the probability; see `plot_calibration`."""
    check_probabilities(evaluation, 'plot_calibration')
    curves = reliabilities(evaluation)
    ax = new_axes(ax, 5, 5.2)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=':', label='perfect')
    if len(curves) == 1:
        _draw_one(ax, curves[0], evaluation.resampling.confidence)
    else:
        _draw_labels(ax, curves)
    _draw_counts(ax, np.sum([curve.counts for curve in curves], axis=0))
    title, xlabel = _title(evaluation)
    set_rate_axes(ax, title=title, xlabel=xlabel, ylabel='fraction that is true')
    ax.set_aspect('equal')
    add_legend(ax, loc='best', title=None if len(curves) == 1 else 'label (ECE)')
    return finish(ax, path)


def _draw_one(ax: 'Axes', curve: Reliability, confidence: float | None) -> None:
    label = f'model (ECE = {curve.error:.3f})'
    ax.plot(
        curve.predicted,
        curve.true,
        marker='o',
        markersize=4,
        linewidth=1.2,
        color=COLOURS[0],
        label=label,
    )
    if confidence is not None:
        ax.vlines(
            curve.predicted, curve.low, curve.high, color=COLOURS[0], alpha=0.5, linewidth=3,
            label=f'{100 * confidence:.4g}% intervals',
        )  # fmt: skip


def _draw_labels(ax: 'Axes', curves: Sequence[Reliability]) -> None:
    named = curves
    if len(curves) > MAX_NAMED:
        named = sorted(curves, key=lambda curve: -curve.error)[:NUM_WORST]
        for curve in curves:
            ax.plot(curve.predicted, curve.true, color=PALE, linewidth=0.6, zorder=1)
        ax.plot([], [], color=PALE, label=f'all {len(curves)}; the worst:')
    for index, curve in enumerate(named):
        style = line_style(index) | {'linewidth': 1.3, 'marker': 'o', 'markersize': 3}
        ax.plot(curve.predicted, curve.true, **style, label=f'{curve.name} ({curve.error:.3f})')
        # Under the lines, so that several curves stay distinct.
        ax.vlines(curve.predicted, curve.low, curve.high, color=style['color'], alpha=0.3)


def _draw_counts(ax: 'Axes', counts: np.ndarray) -> None:
    """Draws the number of rows in each bin, along the bottom."""
    heights = 0.12 * counts / counts.max()
    left = np.arange(NUM_BINS) / NUM_BINS
    ax.bar(
        left, heights, 1 / NUM_BINS, bottom=-0.02, align='edge', color='#d0d0d0',
        edgecolor='white', zorder=0.5, label=f'rows (most in a bin: {counts.max():,.0f})',
    )  # fmt: skip


def _title(evaluation: Evaluation) -> tuple[str, str]:
    """Returns the title and the name of the probability axis."""
    task_type = evaluation.task.type
    if task_type.has_positive_class:
        name = shorten(ranked_classes(evaluation)[0])
        return f'Calibration of class {name}', f'probability of class {name}'
    if task_type.has_one_class:
        return 'Calibration of the predicted class', 'probability of the predicted class'
    return 'Calibration of each label', 'probability of the label'
