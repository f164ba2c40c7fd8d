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
    add_legend,
    class_or_label,
    finish,
    line_style,
    new_axes,
    set_rate_axes,
    shorten,
    thin_points,
    write_message,
)
from thinkml.evaluation.plots.confidence_bands import bands, draw_band
from thinkml.evaluation.plots.curve_types import GAIN, PRECISION_RECALL, ROC, CurveType
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_counts import (
    ThresholdCounts,
    all_threshold_counts,
    check_probabilities,
    ranked_classes,
)
from thinkml.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIFT_AT = 0.1


class Drawing(NamedTuple):
    """The settings to draw a type of curve with.

    Attributes:
        curve_type: the type of curve.
        number: returns the number that the legend shows for a curve.
        number_name: the name of this number.
        corners: the positions of the legend for curves above the middle and for those below.
    """

    curve_type: CurveType
    number: Callable[[np.ndarray, np.ndarray], float]
    number_name: str
    corners: tuple[str, str]


class Curve(NamedTuple):
    """A curve, and its number in the legend."""

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
    """Draws the ROC curves; see `PerformanceAnalysis.plot_roc_curve`."""
    counts = _threshold_counts(evaluation, 'plot_roc_curve')
    ax = new_axes(ax, 5, 4.8)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=':', label='chance')
    _draw(ax, evaluation, _ROC, counts)
    ax.set(title=_title('ROC curve', evaluation), aspect='equal')
    ax.set(xlabel='false positive rate', ylabel='true positive rate (recall)')
    return finish(ax, path)


def precision_recall_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws precision over recall; see `PerformanceAnalysis.plot_precision_recall_curve`."""
    counts = _threshold_counts(evaluation, 'plot_precision_recall_curve')
    ax = new_axes(ax, 5, 4.8)
    if rate := _positive_rate(evaluation, counts):
        ax.axhline(rate, color=GREY, linewidth=1, linestyle=':', label=f'chance ({rate:.3f})')
    _draw(ax, evaluation, _PRECISION_RECALL, counts)
    ax.set(title=_title('Precision-recall curve', evaluation), aspect='equal')
    ax.set(xlabel='recall', ylabel='precision')
    return finish(ax, path)


def gain_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws the cumulative gain; see `PerformanceAnalysis.plot_gain`."""
    counts = _threshold_counts(evaluation, 'plot_gain')
    ax = new_axes(ax, 5, 4.8)
    if rate := _positive_rate(evaluation, counts):
        ax.plot([0, rate, 1], [0, 1, 1], color=GREY, linewidth=1, linestyle='--', label='perfect')
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=':', label='chance')
    _draw(ax, evaluation, _GAIN, counts)
    ax.set(title=_title('Cumulative gain', evaluation), aspect='equal')
    ax.set(xlabel='fraction of rows, highest scores first', ylabel='fraction of positives found')
    return finish(ax, path)


def _threshold_counts(evaluation: Evaluation, function: str) -> list[ThresholdCounts]:
    check_probabilities(evaluation, function)
    return list(all_threshold_counts(evaluation.scored))


def _positive_rate(evaluation: Evaluation, counts: Sequence[ThresholdCounts]) -> float:
    """Returns the fraction of positive rows of a binary evaluation; 0 if there are no such rows.

    It is also 0 for other tasks, which have several such fractions.
    """
    first = counts[0]
    is_one = evaluation.task.type.has_positive_class and first.positives
    return first.positives / (first.positives + first.negatives) if is_one else 0.0


def _draw(
    ax: 'Axes', evaluation: Evaluation, drawing: Drawing, counts: Sequence[ThresholdCounts]
) -> None:
    """Draws one curve per ranking, and their mean if there are several.

    The band is that of the single curve or of the mean.
    """
    set_rate_axes(ax)
    curve_type = drawing.curve_type
    curves = []
    for label, each in zip(ranked_classes(evaluation), counts, strict=True):
        if curve_type.is_defined(each):
            x, y = curve_type.points(each)
            curves.append(Curve(shorten(label), x, y, drawing.number(x, y)))
    if not curves:
        return write_message(ax, 'no examples to draw a curve from')
    [band] = bands(evaluation, [curve_type])
    if evaluation.task.type.has_positive_class:
        label, title = f'{drawing.number_name} = {curves[0].number:.3f}', None
        points = thin_points(curves[0].x, curves[0].y)
        ax.plot(*points, color=COLOURS[0], linewidth=2, drawstyle=curve_type.drawstyle, label=label)
        draw_band(ax, band, curve_type, COLOURS[0])
    else:
        _draw_each(ax, curves, curve_type.drawstyle)
        _draw_mean(ax, curves, curve_type, counts)
        draw_band(ax, band, curve_type, 'black')
        title = f'{class_or_label(evaluation)} ({drawing.number_name})'
    is_above = np.mean([_area(curve.x, curve.y) for curve in curves]) >= 0.5
    add_legend(ax, loc=drawing.corners[0 if is_above else 1], title=title)


def _draw_each(ax: 'Axes', curves: Sequence[Curve], drawstyle: str) -> None:
    named = curves
    if len(curves) > MAX_NAMED:
        named = sorted(curves, key=lambda curve: curve.number)[:NUM_WORST]
        for curve in curves:
            points = thin_points(curve.x, curve.y)
            ax.plot(*points, color=PALE, linewidth=0.6, drawstyle=drawstyle, zorder=1)
        ax.plot([], [], color=PALE, label=f'all {len(curves)}; the worst:')
    for index, curve in enumerate(named):
        label = f'{curve.name} ({curve.number:.3f})'
        points = thin_points(curve.x, curve.y)
        ax.plot(*points, **line_style(index), linewidth=1.3, drawstyle=drawstyle, label=label)


def _draw_mean(
    ax: 'Axes', curves: Sequence[Curve], curve_type: CurveType, counts: Sequence[ThresholdCounts]
) -> None:
    grid = np.linspace(0, 1, 501)
    mean = curve_type.mean_at(grid, counts)
    if not curve_type.is_steps:  # interpolation would start above the rise at 0
        grid, mean = np.append(0, grid), np.append(0, mean)
    left_out = f', {len(curves)} of {len(counts)}' if len(curves) < len(counts) else ''
    label = f'mean{left_out} ({np.mean([curve.number for curve in curves]):.3f})'
    ax.plot(grid, mean, color='black', linewidth=2.2, drawstyle=curve_type.drawstyle, label=label)


def _title(name: str, evaluation: Evaluation) -> str:
    if evaluation.task.type.has_positive_class:
        return f'{name} of class {shorten(ranked_classes(evaluation)[0])}'
    against = 'label' if class_or_label(evaluation) == 'label' else 'class against the others'
    return f'{name}s, each {against}' if name.endswith('curve') else f'{name} of each {against}'
