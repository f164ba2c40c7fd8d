"""Confusion matrix plot."""

from typing import TYPE_CHECKING

import numpy as np

from thinkml.errors import ConfigError
from thinkml.evaluation.plots.axes import PathLike, finish, new_axes, shorten
from thinkml.evaluation.result import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LABELLED = 30  # classes named and counted
_CELL = 0.42  # inches


def confusion_matrix(
    evaluation: Evaluation, path: PathLike | None = None, ax: 'Axes | None' = None
) -> 'Figure':
    """Draws the confusion matrix; see `PerformanceAnalysis.plot_confusion_matrix`."""
    if evaluation.task.classes is None:
        raise ConfigError(
            'plot_confusion_matrix: got the evaluation of a regression model, expected one of a '
            'classification model. For regression see plot_residuals and get_metrics().'
        )
    if evaluation.confusion_matrix is None:
        raise ConfigError(
            f'plot_confusion_matrix: got {len(evaluation.task.classes):,} classes, whose matrix '
            'is too large to be kept, expected fewer. See evaluation.per_class.'
        )
    rows = columns = [shorten(label) for label in evaluation.task.classes]
    counts = np.asarray(evaluation.confusion_matrix)
    titles = {'title': 'Confusion matrix', 'xlabel': 'predicted', 'ylabel': 'true'}
    if counts.ndim == 3:
        counts = counts.reshape(-1, 4)
        columns = ['true neg.', 'false pos.', 'false neg.', 'true pos.']
        titles = {'title': 'Predictions by label', 'xlabel': '', 'ylabel': 'label'}
    totals = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    height, width = (2.4 + _CELL * size if size <= _MAX_LABELLED else 7 for size in counts.shape)
    ax = new_axes(ax, width + 1, height)
    image = ax.imshow(fractions, cmap='Blues', vmin=0, vmax=1, aspect='auto')
    bar = ax.figure.colorbar(image, ax=ax, label="fraction of the row's examples")
    bar.outline.set_visible(False)
    ax.set(**titles)
    if len(rows) <= _MAX_LABELLED:
        _label_cells(ax, counts, fractions, rows, columns)
    else:
        ax.set_ylabel(f'{titles["ylabel"]} (index)')
        ax.set_xlabel('predicted (index)' if counts.shape[1] > 4 else '')
    return finish(ax, path)


def _label_cells(
    ax: 'Axes', counts: np.ndarray, fractions: np.ndarray, rows: list[str], columns: list[str]
) -> None:
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)
    if max(map(len, columns)) > 3 and len(columns) > 4:
        ax.tick_params(axis='x', rotation=45)
        for label in ax.get_xticklabels():
            label.set(ha='right', rotation_mode='anchor')
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    cells = {index: _number(count) for index, count in np.ndenumerate(counts)}
    # The largest font with which the longest number fits into its cell.
    width = 1.6 * _CELL if len(columns) <= 4 else _CELL
    size = np.clip(width * 72 / (0.62 * max(map(len, cells.values()))), 4, 10)
    for (row, column), text in cells.items():
        colour = (
            'white'
            if fractions[row, column] > 0.5
            else 'black'
            if counts[row, column]
            else '#999999'
        )
        ax.text(column, row, text, ha='center', va='center', color=colour, fontsize=size)


def _number(count: float) -> str:
    """Formats an integer count exactly, and a sum of weights with one decimal."""
    return f'{count:,}' if isinstance(count, np.integer) else f'{count:,.1f}'
