"""ROC, precision-recall and gain curves."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thinkml.evaluation.metrics.ranking import step_area
from thinkml.evaluation.plots.axes import (
    GREY,
    MAX_NAMED,
    NUM_WORST,
    PALE,
    PathLike,
    finish,
    legend,
    look,
    new_axes,
    noun,
    rates,
    say,
    short,
    thinned,
)
from thinkml.evaluation.plots.confidence_bands import bands, draw_band
from thinkml.evaluation.plots.curve_types import GAIN, PRECISION_RECALL, ROC, CurveType
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_counts import (
    ThresholdCounts,
    all_ladders,
    check_probabilities,
    named_columns,
)
from thinkml.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIFT_AT = 0.1


class Drawing(NamedTuple):
    """How a kind of curve is drawn.

    Attributes:
        kind: of curve.
        number: what the legend says of each.
        number_name: its name there.
        corners: where the legend is of curves that are above the middle, and of those below.
    """

    kind: CurveType
    number: Callable[[np.ndarray, np.ndarray], float]
    number_name: str
    corners: tuple[str, str]


class Curve(NamedTuple):
    """A curve and the number the legend gives."""

    name: str
    x: np.ndarray
    y: np.ndarray
    number: float


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.trapezoid(y, x))


def _lift(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.interp(_LIFT_AT, x, y) / _LIFT_AT)


_ROC = Drawing(ROC, _area, 'AUC', ('lower right', 'upper left'))
_PRECISION_RECALL = Drawing(PRECISION_RECALL, step_area, 'AP', ('lower left', 'upper right'))
_GAIN = Drawing(GAIN, _lift, f'lift at {_LIFT_AT:.0%}', ('lower right', 'upper left'))


def roc_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws the ROC curves, see `PerformanceAnalysis.plot_roc_curve`."""
    ladders = _ladders(evaluation, 'plot_roc_curve')
    ax = new_axes(ax, 5, 4.8)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=':', label='chance')
    _draw(ax, evaluation, _ROC, ladders)
    ax.set(title=_title('ROC curve', evaluation), aspect='equal')
    ax.set(xlabel='false positive rate', ylabel='true positive rate (recall)')
    return finish(ax, path)


def precision_recall_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws precision over recall, see `PerformanceAnalysis.plot_precision_recall_curve`."""
    ladders = _ladders(evaluation, 'plot_precision_recall_curve')
    ax = new_axes(ax, 5, 4.8)
    if share := _share_of_positives(evaluation, ladders):
        ax.axhline(share, color=GREY, linewidth=1, linestyle=':', label=f'chance ({share:.3f})')
    _draw(ax, evaluation, _PRECISION_RECALL, ladders)
    ax.set(title=_title('Precision-recall curve', evaluation), aspect='equal')
    ax.set(xlabel='recall', ylabel='precision')
    return finish(ax, path)


def gain_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws the cumulative gain, see `PerformanceAnalysis.plot_gain`."""
    ladders = _ladders(evaluation, 'plot_gain')
    ax = new_axes(ax, 5, 4.8)
    if share := _share_of_positives(evaluation, ladders):
        ax.plot([0, share, 1], [0, 1, 1], color=GREY, linewidth=1, linestyle='--', label='perfect')
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=':', label='chance')
    _draw(ax, evaluation, _GAIN, ladders)
    ax.set(title=_title('Cumulative gain', evaluation), aspect='equal')
    ax.set(xlabel='share of rows, highest scores first', ylabel='share of positives found')
    return finish(ax, path)


def _ladders(evaluation: Evaluation, function: str) -> list[ThresholdCounts]:
    check_probabilities(evaluation, function)
    return list(all_ladders(evaluation.scored))


def _share_of_positives(evaluation: Evaluation, ladders: Sequence[ThresholdCounts]) -> float:
    """0 where there are several such shares, or none."""
    first = ladders[0]
    is_one = evaluation.task.kind == 'binary' and first.positives
    return first.positives / (first.positives + first.negatives) if is_one else 0.0


def _draw(
    ax: 'Axes', evaluation: Evaluation, drawing: Drawing, ladders: Sequence[ThresholdCounts]
) -> None:
    """Draws one curve per ranking and, of several, their mean; the band of the one or the mean."""
    rates(ax)
    kind = drawing.kind
    curves = []
    for label, each in zip(named_columns(evaluation), ladders, strict=True):
        if kind.is_defined(each):
            x, y = kind.points(each)
            curves.append(Curve(short(label), x, y, drawing.number(x, y)))
    if not curves:
        return say(ax, 'no examples to draw a curve from')
    [band] = bands(evaluation, [kind])
    if evaluation.task.kind == 'binary':
        label, title = f'{drawing.number_name} = {curves[0].number:.3f}', None
        points = thinned(curves[0].x, curves[0].y)
        ax.plot(*points, color=COLOURS[0], linewidth=2, drawstyle=kind.drawstyle, label=label)
        draw_band(ax, band, kind, COLOURS[0])
    else:
        _draw_each(ax, curves, kind.drawstyle)
        _draw_mean(ax, curves, kind, ladders)
        draw_band(ax, band, kind, 'black')
        title = f'{noun(evaluation)} ({drawing.number_name})'
    is_above = np.mean([_area(curve.x, curve.y) for curve in curves]) >= 0.5
    legend(ax, loc=drawing.corners[0 if is_above else 1], title=title)


def _draw_each(ax: 'Axes', curves: Sequence[Curve], drawstyle: str) -> None:
    named = curves
    if len(curves) > MAX_NAMED:
        named = sorted(curves, key=lambda curve: curve.number)[:NUM_WORST]
        for curve in curves:
            points = thinned(curve.x, curve.y)
            ax.plot(*points, color=PALE, linewidth=0.6, drawstyle=drawstyle, zorder=1)
        ax.plot([], [], color=PALE, label=f'all {len(curves)}; the worst:')
    for index, curve in enumerate(named):
        label = f'{curve.name} ({curve.number:.3f})'
        points = thinned(curve.x, curve.y)
        ax.plot(*points, **look(index), linewidth=1.3, drawstyle=drawstyle, label=label)


def _draw_mean(
    ax: 'Axes', curves: Sequence[Curve], kind: CurveType, ladders: Sequence[ThresholdCounts]
) -> None:
    grid = np.linspace(0, 1, 501)
    mean = kind.mean_at(grid, ladders)
    if not kind.is_steps:  # interpolation starts above the rise at 0
        grid, mean = np.append(0, grid), np.append(0, mean)
    left_out = f', {len(curves)} of {len(ladders)}' if len(curves) < len(ladders) else ''
    label = f'mean{left_out} ({np.mean([curve.number for curve in curves]):.3f})'
    ax.plot(grid, mean, color='black', linewidth=2.2, drawstyle=kind.drawstyle, label=label)


def _title(what: str, evaluation: Evaluation) -> str:
    if evaluation.task.kind == 'binary':
        return f'{what} of class {short(named_columns(evaluation)[0])}'
    against = 'label' if noun(evaluation) == 'label' else 'class against the others'
    return f'{what}s, each {against}' if what.endswith('curve') else f'{what} of each {against}'
