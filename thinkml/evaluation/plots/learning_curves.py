"""Learning curves: a metric of training and validation over the epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinkml.errors import ConfigError, NotTrainedError, unknown_name
from thinkml.evaluation.plots.axes import GREY, PathLike, add_legend, finish, new_axes, style_axes
from thinkml.figures import COLOURS
from thinkml.history import History, split_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_MARKED = 30  # epochs with a marker each


def learning_curve(
    runs: Sequence[History],
    path: PathLike | None = None,
    ax: 'Axes | None' = None,
    metric: str = 'loss',
) -> 'Figure':
    """Draws a metric over the epochs of a model's trainings; see `plot_learning_curve`."""
    from matplotlib.ticker import MaxNLocator

    runs = [run.copy() for run in runs if run.epochs]  # a copy, as training may still add epochs
    if not runs:
        raise NotTrainedError(
            'plot_learning_curve: got a model without a recorded training, expected one that was '
            'trained by ThinkML or loaded with its history.'
        )
    recorded = dict.fromkeys(split_name(name, run)[1] for run in runs for name in run)
    if metric not in recorded:
        raise ConfigError(unknown_name('metric', metric, recorded))
    ax = new_axes(ax, 5.6, 4)
    style_axes(ax)
    start = 0
    for index, run in enumerate(runs):
        if index:
            ax.axvline(start + 0.5, color='#dddddd', linewidth=3, zorder=0)
        _draw_run(ax, run, metric, start)
        start += run.epochs
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    several = f', {len(runs)} trainings' if len(runs) > 1 else ''
    ax.set(title=f'Learning curve{several}', xlabel='epoch', ylabel=metric)
    # One entry per name, since several trainings draw lines of the same name.
    named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    add_legend(ax, loc='best', labels=list(named), handles=list(named.values()))
    return finish(ax, path)


def _draw_run(ax: 'Axes', run: History, metric: str, start: int) -> None:
    """Draws one training that follows ``start`` epochs of earlier trainings."""
    names = {split_name(name, run): name for name in run}
    sets = [of_set for of_set, of in names if of == metric and of_set is not None]
    lines = {'training': (None, COLOURS[0], '-', '.')} | {
        f'validation {of_set}'.strip(): (of_set, COLOURS[index % len(COLOURS)], '--', 'x')
        for index, of_set in enumerate(sets, 1)
    }
    for label, (of_set, colour, style, marker) in lines.items():
        values = np.array(run.get(names.get((of_set, metric), ''), []))
        [finite] = np.nonzero(np.isfinite(values))
        if len(finite):
            ax.plot(
                start + 1 + finite, values[finite], color=colour, linestyle=style, linewidth=1.6,
                marker=marker if len(finite) <= _MAX_MARKED else None, markersize=5, label=label,
            )  # fmt: skip
    if run.best_epoch is not None:
        at = start + run.best_epoch
        ax.axvline(at, color=GREY, linewidth=1, linestyle=':', label='best epoch')
