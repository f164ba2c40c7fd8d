"""Axes: colours, styles, labels and helpers that all plots share.

Colours are those of Okabe and Ito, which colour-blind people can tell apart. Line styles and
markers differ too, for black and white. Nothing here needs a display or changes matplotlib's global
state.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkml.errors import ConfigError
from thinkml.evaluation.result import Evaluation
from thinkml.figures import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

STYLES = ('-', '--', '-.', (0, (1, 1)))
GREY = '#555555'
PALE = '#bbbbbb'
MAX_NAMED = 10  # curves with a colour and a name; with more, only the worst have them
NUM_WORST = 3
_MAX_POINTS = 2000  # per curve


def new_axes(ax: 'Axes | None', width: float, height: float) -> 'Axes':
    """Returns the axes to draw into: ``ax``, or those of a new figure (sizes in inches)."""
    if ax is None:
        return new_figure(width, height).add_subplot()
    if not hasattr(ax, 'get_figure'):
        raise ConfigError(
            f'ax: got {type(ax).__name__}, expected axes to draw into (plt.subplots()[1]), or None '
            'for a new figure. To write a file, pass path=...'
        )
    return ax


def finish(ax: 'Axes', path: PathLike | None) -> 'Figure':
    """Returns the figure that was drawn into, and writes it to ``path`` if there is one."""
    figure = ax.figure.figure  # the complete figure, also for axes of a subfigure
    if path is not None:
        save_figure(figure, path)
    return figure


def style_axes(ax: 'Axes') -> None:
    """Draws a light grid in the background, and removes the frame."""
    ax.grid(color='#dddddd', linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)


def set_rate_axes(ax: 'Axes', **labels: str) -> None:
    """Sets up axes for two rates, each from 0 to 1."""
    style_axes(ax)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), **labels)


def add_legend(ax: 'Axes', **settings: Any) -> None:
    """Adds a legend in small print with an almost opaque frame."""
    ax.legend(**{'fontsize': 8, 'title_fontsize': 8, 'framealpha': 0.9, **settings})


def write_message(ax: 'Axes', text: str) -> None:
    """Writes a text in the middle of empty axes."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha='center', va='center', color=GREY)


def shorten(label: Any) -> str:
    """Returns the name of a class or label, cut if it is long."""
    text = str(label)
    if text.startswith('_'):  # matplotlib leaves such names out of legends
        text = f' {text}'
    text = text if len(text) <= 20 else f'{text[:18]}..'
    return text.replace('$', r'\$')  # a dollar sign begins a formula


def line_style(index: int) -> dict[str, Any]:
    """Returns the colour and style of one of several lines."""
    return {'color': COLOURS[index % len(COLOURS)], 'linestyle': STYLES[index % len(STYLES)]}


def class_or_label(evaluation: Evaluation) -> str:
    """Returns the noun for the columns of the evaluation: class or label."""
    return evaluation.task.type.nouns[0]


def sample_rows(weight: np.ndarray, most: int) -> np.ndarray:
    """Returns up to ``most`` rows, sampled in proportion to their weight with a fixed seed."""
    rows = np.flatnonzero(weight > 0)
    if len(rows) <= most:
        return rows
    # The largest keys of Efraimidis and Spirakis are a weighted sample without replacement.
    keys = np.log(np.random.default_rng(0).random(len(rows))) / weight[rows]
    return np.sort(rows[np.argpartition(-keys, most)[:most]])


def thin_points(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `_MAX_POINTS` points of a curve, evenly spread along its length."""
    if len(x) <= _MAX_POINTS:
        return x, y
    length = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    chosen = np.searchsorted(length, np.linspace(0, length[-1], _MAX_POINTS)).clip(max=len(x) - 1)
    return x[chosen], y[chosen]
