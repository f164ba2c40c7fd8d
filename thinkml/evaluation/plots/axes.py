"""What all plots share: colours, axes, names.

Colours are Okabe and Ito's, told apart by the colour-blind; line styles and markers tell them
apart in black and white. Nothing here needs a display or changes matplotlib's global state.
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
MAX_NAMED = 10  # curves told apart; of more only the worst are
NUM_WORST = 3
_MAX_POINTS = 2000  # drawn per curve


def new_axes(ax: 'Axes | None', width: float, height: float) -> 'Axes':
    """The axes to draw into: those given, or those of a new figure (sizes in inches)."""
    if ax is None:
        return new_figure(width, height).add_subplot()
    if not hasattr(ax, 'get_figure'):
        raise ConfigError(
            f'ax: got {type(ax).__name__}, expected axes to draw into (plt.subplots()[1]), or None '
            'for a new figure. A file is path=...'
        )
    return ax


def finish(ax: 'Axes', path: PathLike | None) -> 'Figure':
    """The figure that was drawn into, written to ``path`` where there is one."""
    figure = ax.figure.figure  # of a subfigure, the whole
    if path is not None:
        save_figure(figure, path)
    return figure


def calm(ax: 'Axes') -> None:
    """A light grid behind what is drawn, and no frame."""
    ax.grid(color='#dddddd', linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)


def rates(ax: 'Axes', **labels: str) -> None:
    """Makes the axes those of two rates, each from 0 to 1."""
    calm(ax)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), **labels)


def legend(ax: 'Axes', **settings: Any) -> None:
    """A legend in small print, its frame almost opaque."""
    ax.legend(**{'fontsize': 8, 'title_fontsize': 8, 'framealpha': 0.9, **settings})


def say(ax: 'Axes', text: str) -> None:
    """Writes in the middle of empty axes."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha='center', va='center', color=GREY)


def short(label: Any) -> str:
    """The name of a class or label, cut where it is long."""
    text = str(label)
    if text.startswith('_'):  # which matplotlib leaves out of legends
        text = f' {text}'
    text = text if len(text) <= 20 else f'{text[:18]}..'
    return text.replace('$', r'\$')  # which begins a formula


def look(index: int) -> dict[str, Any]:
    """The colour and style of one line of several."""
    return {'color': COLOURS[index % len(COLOURS)], 'linestyle': STYLES[index % len(STYLES)]}


def noun(evaluation: Evaluation) -> str:
    """What the evaluation has several of."""
    return 'label' if evaluation.task.kind == 'multilabel' else 'class'


def drawn_rows(weight: np.ndarray, most: int) -> np.ndarray:
    """Up to ``most`` rows to draw, by chance in proportion to their weight, always the same."""
    rows = np.flatnonzero(weight > 0)
    if len(rows) <= most:
        return rows
    # The keys of Efraimidis and Spirakis: the largest are a weighted sample without replacement.
    keys = np.log(np.random.default_rng(0).random(len(rows))) / weight[rows]
    return np.sort(rows[np.argpartition(-keys, most)[:most]])


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points of a curve, evenly spread along its length."""
    if len(x) <= _MAX_POINTS:
        return x, y
    length = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    chosen = np.searchsorted(length, np.linspace(0, length[-1], _MAX_POINTS)).clip(max=len(x) - 1)
    return x[chosen], y[chosen]
