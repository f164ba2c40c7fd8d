"""Residual plot: residuals over predictions, and their distribution."""

from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thinkml.errors import ConfigError
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.plots.axes import (
    GREY,
    NUM_WORST,
    STYLES,
    PathLike,
    add_legend,
    finish,
    line_style,
    new_axes,
    sample_rows,
    style_axes,
)
from thinkml.evaluation.result import Evaluation
from thinkml.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_DOTS = 4000
_MAX_DRAWN = 6  # targets; with more, only the worst are drawn
_ROWS_PER_BIN = 20
_MAX_BINS = 20
_MAX_VECTOR_DOTS = 1000  # dots that a PDF draws as vectors; more become pixels
_MARKERS = 'o^sDvP'


class Residuals(NamedTuple):
    """The residuals of one target, ``(n,)``.

    Attributes:
        name: the name of the target; empty if there is only one.
        predicted: the predictions.
        residual: the true values minus the predictions.
    """

    name: str
    predicted: np.ndarray
    residual: np.ndarray


class Trend(NamedTuple):
    """The mean residual by prediction, in bins with about the same number of rows.

    Attributes:
        predicted: ``(bins,)``, the mean prediction.
        mean: the mean residual.
        low: the lower bound of its confidence interval; NaN without confidence.
        high: the upper bound.
    """

    predicted: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def residual_plot(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws residuals over predictions, and their distribution; see `plot_residuals`."""
    if evaluation.task.type.decision != 'regression':
        got = 'of sequences' if evaluation.task.type.has_sequences else 'of a classification model'
        raise ConfigError(
            f'plot_residuals: got the evaluation {got}, expected one of a regression model. For '
            'classification see plot_calibration.'
        )
    targets, weight = _residuals(evaluation), evaluation.scored.weights
    shown = _worst(targets, weight) if len(targets) > _MAX_DRAWN else targets
    ax = new_axes(ax, 6.2, 4.2)
    style_axes(ax)
    ax.axhline(0, color='black', linewidth=1)
    rows = sample_rows(weight, _MAX_DOTS // len(shown))
    for index, target in enumerate(shown):
        _draw_dots(ax, evaluation, target, rows, index)
    for index, target in enumerate(shown):
        _draw_trend(ax, evaluation, target, index)
    unit = '' if len(targets) == 1 else ' (in sd of the target)'
    ax.set(title='Residuals', xlabel=f'predicted{unit}', ylabel=f'true - predicted{unit}')
    _draw_distribution(ax, shown, weight)
    title = 'mean of' if len(shown) == len(targets) else f'mean of the worst of {len(targets)}'
    add_legend(ax, loc='best', title=title if len(targets) > 1 else None)
    return finish(ax, path)


def _residuals(evaluation: Evaluation) -> list[Residuals]:
    """Returns the residuals of each target.

    Several targets are in units of their standard deviation, around their mean.
    """
    true, predicted = (
        values.reshape(len(evaluation.scored), -1).astype(np.float64)
        for values in (evaluation.scored.labels, evaluation.scored.predictions)
    )
    if true.shape[1] == 1:
        return [Residuals('', predicted[:, 0], true[:, 0] - predicted[:, 0])]
    weight = evaluation.scored.weights / evaluation.scored.weights.sum()
    centre = weight @ true
    spread = np.sqrt(weight @ (true - centre) ** 2)
    spread = np.where(spread > 0, spread, 1)
    predicted, residual = (predicted - centre) / spread, (true - predicted) / spread
    return [
        Residuals(f'target {index}', *columns)
        for index, columns in enumerate(zip(predicted.T, residual.T, strict=True))
    ]


def _worst(targets: list[Residuals], weight: np.ndarray) -> list[Residuals]:
    return sorted(targets, key=lambda target: -(weight @ target.residual**2))[:NUM_WORST]


def trend(target: Residuals, weight: np.ndarray, resampling: Resampling) -> Trend:
    """Returns the mean residual by prediction, with normal intervals; each group is one draw."""
    order = np.argsort(target.predicted)
    order = order[weight[order] > 0]
    num_bins = int(np.clip(len(order) // _ROWS_PER_BIN, 1, _MAX_BINS))
    bins = np.arange(len(order)) * num_bins // len(order)
    weight, predicted, residual = (
        values[order] for values in (weight, target.predicted, target.residual)
    )
    total = np.bincount(bins, weight)
    mean = np.bincount(bins, weight * residual) / total
    centre = np.bincount(bins, weight * predicted) / total
    if resampling.confidence is None:
        undefined = np.full(num_bins, np.nan)
        return Trend(predicted=centre, mean=mean, low=undefined, high=undefined)
    errors = weight * (residual - mean[bins])
    if resampling.groups is not None:
        cells, index = np.unique(resampling.groups[order] * num_bins + bins, return_inverse=True)
        bins, errors = cells % num_bins, np.bincount(index, errors)
    draws = np.bincount(bins)
    variance = np.bincount(bins, errors**2) / total**2 * draws / np.maximum(draws - 1, 1)
    spread = NormalDist().inv_cdf((1 + resampling.confidence) / 2) * np.sqrt(variance)
    spread[draws < 2] = np.nan
    return Trend(predicted=centre, mean=mean, low=mean - spread, high=mean + spread)


def _draw_dots(
    ax: 'Axes', evaluation: Evaluation, target: Residuals, rows: np.ndarray, index: int
) -> None:
    """Draws a dot per row; if rows are weighted and all are drawn, its area is the weight."""
    weight = evaluation.scored.weights
    total = np.count_nonzero(weight)
    size = np.full(len(rows), 5.0 if target.name else 10.0)
    if len(rows) == total:
        size *= weight[rows] / weight[rows].mean()
    label = f'{total:,} rows' + ('' if len(rows) == total else f' ({len(rows):,} drawn)')
    ax.scatter(
        target.predicted[rows], target.residual[rows], s=size, color=COLOURS[index], linewidths=0,
        marker=_MARKERS[index], alpha=float(np.clip(10 / np.sqrt(len(rows)), 0.2, 0.7)),
        label=None if target.name else label, rasterized=len(rows) > _MAX_VECTOR_DOTS,
    )  # fmt: skip


def _draw_trend(ax: 'Axes', evaluation: Evaluation, target: Residuals, index: int) -> None:
    """Draws the mean residual, and its band if there is only one target."""
    line = trend(target, evaluation.scored.weights, evaluation.resampling)
    if target.name:
        ax.plot(line.predicted, line.mean, **line_style(index), linewidth=1.8, label=target.name)
        return
    ax.plot(line.predicted, line.mean, color=COLOURS[1], linewidth=2, label='mean')
    if evaluation.resampling.confidence is not None:
        label = f'{100 * evaluation.resampling.confidence:.4g}% band'
        band = (line.predicted, line.low, line.high)
        ax.fill_between(*band, color=COLOURS[1], alpha=0.25, linewidth=0, label=label)


def _draw_distribution(ax: 'Axes', targets: list[Residuals], weight: np.ndarray) -> None:
    """Draws histograms of the residuals beside the axes.

    If there is one target, the normal curve with its mean and standard deviation is drawn too.
    """
    beside = ax.inset_axes((1.02, 0, 0.22, 1), sharey=ax)
    counted = weight > 0
    num_bars = int(np.clip(2 * counted.sum() ** (1 / 3), 5, 60))
    for index, target in enumerate(targets):
        heights, edges = np.histogram(
            target.residual[counted], num_bars, weights=weight[counted], density=True
        )
        colour, style = COLOURS[index], STYLES[index % len(STYLES)] if target.name else '-'
        beside.stairs(heights, edges, orientation='horizontal', color=colour, linestyle=style)
        if not target.name:
            beside.stairs(
                heights, edges, orientation='horizontal', fill=True, color=colour, alpha=0.4
            )
            _draw_normal(beside, target.residual, weight, edges)
            ax.plot([], [], color=GREY, linewidth=1, linestyle='--', label='normal curve')
    beside.axhline(0, color='black', linewidth=1)
    beside.spines[['top', 'right', 'bottom']].set_visible(False)
    beside.tick_params(labelleft=False, left=False, labelbottom=False, bottom=False)


def _draw_normal(ax: 'Axes', values: np.ndarray, weight: np.ndarray, edges: np.ndarray) -> None:
    """Draws the normal density with the same mean and standard deviation."""
    fraction = weight / weight.sum()
    mean = fraction @ values
    spread = np.sqrt(fraction @ (values - mean) ** 2)
    if spread > 0:
        normal = NormalDist(float(mean), float(spread))
        grid = np.linspace(edges[0], edges[-1], 200)
        density = [normal.pdf(value) for value in grid]
        ax.plot(density, grid, color=GREY, linewidth=1, linestyle='--')
