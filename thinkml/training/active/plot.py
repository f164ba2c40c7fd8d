"""The plot of learning curves over the number of labels."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinkml.figures import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]

# The 97.5 % points of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def draw_learning_curves(
    curves: Mapping[str, Sequence[Curve]],
    metric: str,
    ax: 'Axes | None',
    path: str | os.PathLike[str] | None,
) -> 'Figure':
    """Draws a line for each name: the mean of its curves, with their interval."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(5.6, 4) if ax is None else ax.figure
    ax = figure.add_subplot() if ax is None else ax
    styles = ('-', '--', '-.', ':')
    for index, (name, repeats) in enumerate(curves.items()):
        counts, mean, half = mean_curve(repeats)
        colour = COLOURS[index % len(COLOURS)]
        label = name if len(repeats) == 1 else f'{name}, {len(repeats)} seeds'
        style = styles[index % len(styles)]
        ax.plot(counts, mean, color=colour, linestyle=style, marker='.', label=label)
        if half is not None:
            ax.fill_between(counts, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(title='Learning curve', xlabel='labels', ylabel=metric)
    if len(curves) > 1:
        ax.legend(frameon=False)
    if path is not None:
        save_figure(figure, path)  # pyright: ignore[reportArgumentType]
    return figure  # pyright: ignore[reportReturnType]


def mean_curve(repeats: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The mean of curves where all have a point, and half the width of its 95 % interval."""
    shared = sorted(set.intersection(*(set(counts.tolist()) for counts, _ in repeats)))
    values = np.array(
        [
            [value for count, value in zip(*curve, strict=True) if count in shared]
            for curve in repeats
        ]
    )
    mean = values.mean(0)
    if len(repeats) == 1:
        return np.array(shared), mean, None
    t = _T[min(len(repeats) - 2, len(_T) - 1)]
    return np.array(shared), mean, t * values.std(0, ddof=1) / np.sqrt(len(repeats))
