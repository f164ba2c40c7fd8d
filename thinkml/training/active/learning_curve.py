"""Learning curves: plots of a metric over the number of labels."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinkml.errors import DataError
from thinkml.figures import COLOURS, give_to_pyplot, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]


def draw_learning_curves(
    curves: Mapping[str, Sequence[Curve]],
    metric: str,
    ax: 'Axes | None',
    path: str | os.PathLike[str] | None,
) -> 'Figure':
    """Draws a line for each name: the mean of its curves, with their 95 % interval.

    Raises:
        DataError: if the curves of a name share no point.
    """
    from matplotlib.ticker import MaxNLocator

    means = {name: mean_curve(repeats) for name, repeats in curves.items()}
    ax = new_figure(5.6, 4).add_subplot() if ax is None else ax
    figure = ax.figure.figure  # the whole figure, also for axes of a subfigure
    styles = ('-', '--', '-.', ':')
    title = 'Learning curve'
    for index, (name, (counts, mean, half)) in enumerate(means.items()):
        repeats = curves[name]
        colour = COLOURS[index % len(COLOURS)]
        label = name if len(repeats) == 1 else f'{name}, {len(repeats)} seeds'
        style = styles[index % len(styles)]
        ax.plot(counts, mean, color=colour, linestyle=style, marker='.', label=label)
        if half is not None:
            title = 'Learning curve: means and their 95 % intervals'
            ax.fill_between(counts, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(title=title, xlabel='labels', ylabel=metric)
    if len(curves) > 1:
        ax.legend(frameon=False)
    if path is not None:
        save_figure(figure, path)
    return give_to_pyplot(figure)


def mean_curve(repeats: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns the mean of curves where all have a point, and half the width of its 95 % interval.

    The interval is that of Student's t; it is None for one curve.

    Raises:
        DataError: if the curves share no point.
    """
    from scipy.special import stdtrit

    shared = functools.reduce(np.intersect1d, (counts for counts, _ in repeats))
    if not len(shared):
        raise DataError(
            'others: got histories that have no number of labels in common, expected those of the '
            'same experiment with other seeds.'
        )
    values = np.array([values[np.isin(counts, shared)] for counts, values in repeats])
    mean, number = values.mean(0), len(values)
    if number == 1:
        return shared, mean, None
    half = stdtrit(number - 1, 0.975) * values.std(0, ddof=1) / np.sqrt(number)
    return shared, mean, half
