"""What every threshold gives."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkml.errors import ConfigError
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
    rates,
    say,
    short,
    thinned,
)
from thinkml.evaluation.plots.confidence_bands import bands, draw_band
from thinkml.evaluation.plots.curve_types import OVER_THRESHOLD
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_choice import (
    Threshold,
    best_rung,
    check_decided_by_threshold,
    threshold_at,
)
from thinkml.evaluation.threshold_counts import ThresholdCounts, all_ladders, named_columns
from thinkml.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {'precision': '--', 'recall': '-.', 'f1': '-'}
_NAMES = {'precision': 'precision', 'recall': 'recall', 'f1': 'F1'}


def threshold_curves(
    evaluation: Evaluation,
    path: PathLike | None = None,
    ax: 'Axes | None' = None,
    choice: Threshold | Mapping[Any, Threshold] | None = None,
) -> 'Figure':
    """Draws precision, recall and F1 over the threshold, see `plot_threshold`."""
    check_decided_by_threshold(evaluation, 'plot_threshold')
    is_binary = evaluation.task.kind == 'binary'
    one = choice if isinstance(choice, Threshold) else None
    several = choice if isinstance(choice, Mapping) else {}
    if choice is not None and (one is None if is_binary else choice is not several):
        raise ConfigError(
            f'choice: got {type(choice).__name__}, expected what choose_threshold(evaluation) '
            f'returns for a {evaluation.task.kind} model.'
        )
    found = all_ladders(evaluation.scored, by_probability=True)
    ladders = dict(zip(named_columns(evaluation), found, strict=True))
    ladders = {label: each for label, each in ladders.items() if each.positives}
    ax = new_axes(ax, 5.6, 4.4)
    if is_binary:
        title = f'Thresholds of class {short(named_columns(evaluation)[0])}'
        rates(ax, title=title, ylabel='rate')
    else:
        rates(ax, title='Thresholds of each label', ylabel='F1')
    ax.set_xlabel('positive from this probability on')
    if not ladders:
        say(ax, 'no positive examples to draw a curve from')
    elif is_binary:
        _draw_rates(ax, evaluation, next(iter(ladders.values())), one)
    else:
        _draw_labels(ax, ladders, several)
    return finish(ax, path)


def _draw_rates(
    ax: 'Axes', evaluation: Evaluation, ladder: ThresholdCounts, choice: Threshold | None
) -> None:
    name = 'best F1 here' if choice is None else f'chosen by {choice.objective}'
    chosen = threshold_at(ladder, best_rung(ladder, 'f1', {}), 'f1') if choice is None else choice
    at = chosen.threshold
    ax.axvline(0.5, color=GREY, linewidth=1, linestyle=':', label='as predicted: 0.5')
    if np.isfinite(at):
        ax.axvline(at, color='black', linewidth=1, label=f'{name}: {at:.3g}')
    else:
        ax.plot([], [], color='black', linewidth=1, label=f'{name}: none positive')
    found = bands(evaluation, list(OVER_THRESHOLD.values()), by_probability=True)
    for (rate, kind), band, colour in zip(OVER_THRESHOLD.items(), found, COLOURS, strict=False):
        x, y = kind.points(ladder)
        ax.plot(
            *_thinned(x, y), color=colour, linestyle=_STYLES[rate], drawstyle=kind.drawstyle,
            linewidth=1.8, label=_NAMES[rate],
        )  # fmt: skip
        draw_band(ax, band, kind, colour, is_named=rate == 'f1')
        if np.isfinite(at):
            ax.plot(at, kind.at(np.array([at]), x, y), marker='o', color=colour, zorder=3)
    legend(ax, loc='best')


def _draw_labels(
    ax: 'Axes', ladders: Mapping[Any, ThresholdCounts], choice: Mapping[Any, Threshold]
) -> None:
    kind = OVER_THRESHOLD['f1']
    best = {label: float(each.f1.max()) for label, each in ladders.items()}
    named = list(ladders)
    if len(ladders) > MAX_NAMED:
        named = sorted(ladders, key=best.__getitem__)[:NUM_WORST]
        for each in ladders.values():
            points = _thinned(*kind.points(each))
            ax.plot(*points, color=PALE, linewidth=0.6, drawstyle=kind.drawstyle, zorder=1)
        ax.plot([], [], color=PALE, label=f'all {len(ladders)}; the worst:')
    for index, label in enumerate(named):
        x, y = kind.points(ladders[label])
        text = f'{short(label)} ({best[label]:.3f})'
        style = look(index)
        ax.plot(*_thinned(x, y), **style, linewidth=1.3, drawstyle=kind.drawstyle, label=text)
        rung = best_rung(ladders[label], 'f1', {})
        at = choice[label].threshold if label in choice else ladders[label].thresholds[rung]
        if np.isfinite(at) and (label in choice or not choice):
            ax.plot(at, kind.at(np.array([at]), x, y), marker='o', color=style['color'], zorder=3)
    mark = 'chosen' if choice else 'best F1 here'
    ax.plot([], [], color=GREY, marker='o', linestyle='', label=mark)
    legend(ax, loc='best', title='label (best F1)')


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Few enough points to draw, from the threshold 0 on, where all are called positive."""
    return thinned(np.append(0, x[:-1]), np.append(y[0], y[:-1]))
