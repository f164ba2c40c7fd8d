"""Curves and matrices of an evaluation, drawn with matplotlib's object API.

Nothing here needs a display or changes matplotlib's global state. Colours are Okabe and Ito's,
told apart by the colour-blind; line styles tell them apart in black and white.
"""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from thinkml.errors import ConfigError
from thinkml.evaluation.ranking import one_vs_rest, step_area
from thinkml.evaluation.ranking import precision_recall_curve as precision_recall_points
from thinkml.evaluation.ranking import roc_curve as roc_points
from thinkml.evaluation.result import Evaluation
from thinkml.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_STYLES = ('-', '--', '-.', (0, (1, 1)))
_GREY = '#555555'
_MAX_NAMED = 10  # curves told apart; of more classes only the worst are
_NUM_WORST = 3
_MAX_POINTS = 2000  # drawn per curve
_MAX_LABELLED = 30  # classes named and counted in a confusion matrix

PathLike = str | os.PathLike[str]


class _Curve(NamedTuple):
    name: str
    x: np.ndarray
    y: np.ndarray
    area: float


def roc_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws the ROC curves, see `PerformanceAnalysis.plot_roc_curve`."""
    curves = []
    for name, positive, scores in _rankings(evaluation, 'plot_roc_curve'):
        if positive.any() and not positive.all():
            x, y, _ = roc_points(positive, scores)
            curves.append(_Curve(name, x, y, float(np.trapezoid(y, x))))
    ax = _axes(ax, (6, 5.5))
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=':', label='chance')
    _draw_curves(ax, curves, evaluation, 'AUC', 'default')
    ax.set(title=_title('ROC curve', evaluation), aspect='equal')
    ax.set(xlabel='false positive rate', ylabel='true positive rate (recall)')
    return _finish(ax, path)


def precision_recall_curve(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws precision over recall, see `PerformanceAnalysis.plot_precision_recall_curve`."""
    curves = []
    share = np.nan
    for name, positive, scores in _rankings(evaluation, 'plot_precision_recall_curve'):
        if positive.any():
            precision, recall, _ = precision_recall_points(positive, scores)
            curves.append(_Curve(name, recall, precision, step_area(recall, precision)))
            share = positive.mean()
    ax = _axes(ax, (6, 5.5))
    if evaluation.task.kind == 'binary' and curves:
        ax.axhline(share, color=_GREY, linewidth=1, linestyle=':', label=f'chance ({share:.3f})')
    _draw_curves(ax, curves, evaluation, 'AP', 'steps-pre')
    ax.set(title=_title('Precision-recall curve', evaluation), aspect='equal')
    ax.set(xlabel='recall', ylabel='precision')
    return _finish(ax, path)


def confusion_matrix(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws the confusion matrix, see `PerformanceAnalysis.plot_confusion_matrix`."""
    rows = columns = _class_names(evaluation, 'plot_confusion_matrix')
    counts = np.asarray(evaluation.confusion_matrix)
    titles = {'title': 'Confusion matrix', 'xlabel': 'predicted', 'ylabel': 'true'}
    if counts.ndim == 3:
        counts, columns = (
            counts.reshape(-1, 4),
            ['true neg.', 'false pos.', 'false neg.', 'true pos.'],
        )
        titles = {'title': 'Predictions by label', 'xlabel': '', 'ylabel': 'label'}
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    height, width = (3 + 0.4 * size if size <= _MAX_LABELLED else 8 for size in counts.shape)
    ax = _axes(ax, (width + 1, height))
    image = ax.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='auto')
    bar = ax.figure.colorbar(image, ax=ax, label="share of the row's examples")
    bar.outline.set_visible(False)
    ax.set(**titles)
    if len(rows) <= _MAX_LABELLED:
        _name_cells(ax, counts, shares, rows, columns)
    else:
        ax.set_ylabel(f'{titles["ylabel"]} (index)')
        ax.set_xlabel('predicted (index)' if counts.shape[1] > 4 else '')
    return _finish(ax, path)


def _name_cells(
    ax: 'Axes', counts: np.ndarray, shares: np.ndarray, rows: list[str], columns: list[str]
) -> None:
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)
    if max(map(len, columns)) > 3 and len(columns) > 4:
        ax.tick_params(axis='x', rotation=45)
        for label in ax.get_xticklabels():
            label.set(ha='right', rotation_mode='anchor')
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    size = 10 if len(rows) <= 12 else 7
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = 'white' if share > 0.5 else 'black' if count else '#999999'
        ax.text(column, row, f'{count:,}', ha='center', va='center', color=colour, fontsize=size)


def _draw_curves(
    ax: 'Axes',
    curves: Sequence[_Curve],
    evaluation: Evaluation,
    area_name: str,
    drawstyle: str,
) -> None:
    """Draws one curve per ranking and, of several, their mean. The axes are those of rates."""
    is_binary = evaluation.task.kind == 'binary'
    named = curves
    if len(curves) > _MAX_NAMED:
        named = sorted(curves, key=lambda curve: curve.area)[:_NUM_WORST]
        for curve in curves:
            ax.plot(*_thinned(curve), color='#bbbbbb', linewidth=0.6, drawstyle=drawstyle, zorder=1)
        ax.plot([], [], color='#bbbbbb', label=f'all {len(curves)}; the worst:')
    for index, curve in enumerate(named):
        ax.plot(
            *_thinned(curve),
            color=_COLOURS[index % len(_COLOURS)],
            linestyle='-' if is_binary else _STYLES[index % len(_STYLES)],
            linewidth=2 if is_binary else 1.4,
            drawstyle=drawstyle,
            label=f'{area_name} = {curve.area:.3f}'
            if is_binary
            else f'{curve.name} ({curve.area:.3f})',
        )
    if not is_binary and curves:
        _draw_mean(ax, curves, len(evaluation.task.classes or ()), drawstyle)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.grid(color='#dddddd', linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)
    if curves:
        noun = 'label' if evaluation.task.kind == 'multilabel' else 'class'
        title = None if is_binary else f'{noun} ({area_name})'
        ax.legend(loc='best', fontsize=8, title_fontsize=8, title=title)
    else:
        ax.text(0.5, 0.5, 'no examples to draw a curve from', ha='center', va='center')


def _draw_mean(ax: 'Axes', curves: Sequence[_Curve], num_classes: int, drawstyle: str) -> None:
    grid = np.linspace(0, 1, 501)
    mean = np.mean([_at(grid, curve, drawstyle) for curve in curves], axis=0)
    area = np.mean([curve.area for curve in curves])
    if drawstyle == 'default':  # interpolation starts above the rise at 0
        grid, mean = np.append(0, grid), np.append(0, mean)
    left_out = f', {len(curves)} of {num_classes}' if len(curves) < num_classes else ''
    ax.plot(
        grid, mean, color='black', linewidth=2.4, drawstyle=drawstyle,
        label=f'mean{left_out} ({area:.3f})',
    )  # fmt: skip


def _at(grid: np.ndarray, curve: _Curve, drawstyle: str) -> np.ndarray:
    """A curve's values on a grid, as it is drawn: straight between points, or in steps."""
    if drawstyle == 'default':
        return np.interp(grid, curve.x, curve.y)
    return curve.y[np.searchsorted(curve.x, grid, side='left').clip(max=len(curve.y) - 1)]


def _thinned(curve: _Curve) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points of a curve, evenly spread along its length."""
    x, y = curve.x, curve.y
    if len(x) <= _MAX_POINTS:
        return x, y
    length = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    chosen = np.searchsorted(length, np.linspace(0, length[-1], _MAX_POINTS)).clip(max=len(x) - 1)
    return x[chosen], y[chosen]


def _rankings(
    evaluation: Evaluation, function: str
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    names = _class_names(evaluation, function)
    kind = evaluation.task.kind
    if evaluation.probabilities is not None:
        rankings = one_vs_rest(evaluation.encoded_labels, evaluation.probabilities, kind)
        for name, ranking in zip(names[kind == 'binary' :], rankings, strict=True):
            yield name, *ranking


def _class_names(evaluation: Evaluation, function: str) -> list[str]:
    if evaluation.task.classes is None:
        raise ConfigError(
            f'{function}: got the evaluation of a regression model, expected one of a '
            'classification model. For regression see get_metrics().'
        )
    return [_cut(label) for label in evaluation.task.classes]


def _title(what: str, evaluation: Evaluation) -> str:
    kind = evaluation.task.kind
    if kind == 'binary':
        return f'{what} of class {_class_names(evaluation, what)[1]}'
    return f'{what}s, each {"label" if kind == "multilabel" else "class against the others"}'


def _cut(label: Any) -> str:
    text = str(label)
    if text.startswith('_'):  # which matplotlib leaves out of legends
        text = f' {text}'
    return text if len(text) <= 20 else f'{text[:18]}..'


def _axes(ax: 'Axes | None', size: tuple[float, float]) -> 'Axes':
    return new_figure(*size).add_subplot() if ax is None else ax


def _finish(ax: 'Axes', path: PathLike | None) -> 'Figure':
    figure = ax.figure.figure  # of a subfigure, the whole
    if path is not None:
        save_figure(figure, path)
    return figure
