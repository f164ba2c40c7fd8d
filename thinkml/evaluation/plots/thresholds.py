"""Threshold plot: precision, recall and F1 over the threshold."""

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
    add_legend,
    finish,
    line_style,
    new_axes,
    set_rate_axes,
    shorten,
    thin_points,
    write_message,
)
from thinkml.evaluation.plots.confidence_bands import bands, draw_band
from thinkml.evaluation.plots.curve_types import OVER_THRESHOLD
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.threshold_choice import (
    Threshold,
    best_index,
    check_uses_threshold,
    threshold_at,
)
from thinkml.evaluation.threshold_counts import (
    ThresholdCounts,
    all_threshold_counts,
    ranked_classes,
)
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
    """Draws precision, recall and F1 over the threshold; see `plot_threshold`."""
    check_uses_threshold(evaluation, 'plot_threshold')
    has_one_curve = evaluation.task.type.has_positive_class
    threshold = choice if isinstance(choice, Threshold) else None
    by_label = choice if isinstance(choice, Mapping) else {}
    if choice is not None and (threshold is None if has_one_curve else choice is not by_label):
        raise ConfigError(
            f'choice: got {type(choice).__name__}, expected the result of '
            f'choose_threshold(evaluation) for a {evaluation.task.kind} model.'
        )
    all_counts = all_threshold_counts(evaluation.scored, by_probability=True)
    counts_by_label = dict(zip(ranked_classes(evaluation), all_counts, strict=True))
    counts_by_label = {label: each for label, each in counts_by_label.items() if each.positives}
    ax = new_axes(ax, 5.6, 4.4)
    if has_one_curve:
        title = f'Thresholds of class {shorten(ranked_classes(evaluation)[0])}'
        set_rate_axes(ax, title=title, ylabel='rate')
    else:
        set_rate_axes(ax, title='Thresholds of each label', ylabel='F1')
    ax.set_xlabel('threshold: positive at or above this probability')
    if not counts_by_label:
        write_message(ax, 'no positive examples to draw a curve from')
    elif has_one_curve:
        _draw_rates(ax, evaluation, next(iter(counts_by_label.values())), threshold)
    else:
        _draw_labels(ax, counts_by_label, by_label)
    return finish(ax, path)


def _draw_rates(
    ax: 'Axes', evaluation: Evaluation, counts: ThresholdCounts, choice: Threshold | None
) -> None:
    name = 'best F1 here' if choice is None else f'chosen by {choice.objective}'
    chosen = threshold_at(counts, best_index(counts, 'f1', {}), 'f1') if choice is None else choice
    at = chosen.threshold
    ax.axvline(0.5, color=GREY, linewidth=1, linestyle=':', label='as predicted: 0.5')
    if np.isfinite(at):
        ax.axvline(at, color='black', linewidth=1, label=f'{name}: {at:.3g}')
    else:
        ax.plot([], [], color='black', linewidth=1, label=f'{name}: none positive')
    rate_bands = bands(evaluation, list(OVER_THRESHOLD.values()), by_probability=True)
    curves = zip(OVER_THRESHOLD.items(), rate_bands, COLOURS, strict=False)
    for (rate, curve_type), band, colour in curves:
        x, y = curve_type.points(counts)
        ax.plot(
            *_thin_points(x, y),
            color=colour,
            linestyle=_STYLES[rate],
            drawstyle=curve_type.drawstyle,
            linewidth=1.8,
            label=_NAMES[rate],
        )
        draw_band(ax, band, curve_type, colour, is_named=rate == 'f1')
        if np.isfinite(at):
            ax.plot(at, curve_type.at(np.array([at]), x, y), marker='o', color=colour, zorder=3)
    add_legend(ax, loc='best')


def _draw_labels(
    ax: 'Axes', counts_by_label: Mapping[Any, ThresholdCounts], choice: Mapping[Any, Threshold]
) -> None:
    curve_type = OVER_THRESHOLD['f1']
    best_f1 = {label: float(counts.f1.max()) for label, counts in counts_by_label.items()}
    named = list(counts_by_label)
    if len(counts_by_label) > MAX_NAMED:
        named = sorted(counts_by_label, key=best_f1.__getitem__)[:NUM_WORST]
        for counts in counts_by_label.values():
            points = _thin_points(*curve_type.points(counts))
            ax.plot(*points, color=PALE, linewidth=0.6, drawstyle=curve_type.drawstyle, zorder=1)
        ax.plot([], [], color=PALE, label=f'all {len(counts_by_label)}; the worst:')
    for index, label in enumerate(named):
        counts = counts_by_label[label]
        x, y = curve_type.points(counts)
        text = f'{shorten(label)} ({best_f1[label]:.3f})'
        style = line_style(index)
        ax.plot(
            *_thin_points(x, y), **style, linewidth=1.3, drawstyle=curve_type.drawstyle, label=text
        )
        best = best_index(counts, 'f1', {})
        at = choice[label].threshold if label in choice else counts.thresholds[best]
        if np.isfinite(at) and (label in choice or not choice):
            y_at = curve_type.at(np.array([at]), x, y)
            ax.plot(at, y_at, marker='o', color=style['color'], zorder=3)
    mark = 'chosen' if choice else 'best F1 here'
    ax.plot([], [], color=GREY, marker='o', linestyle='', label=mark)
    add_legend(ax, loc='best', title='label (best F1)')


def _thin_points(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns fewer points to draw, from threshold 0 on, where all rows are predicted positive."""
    return thin_points(np.append(0, x[:-1]), np.append(y[0], y[:-1]))
