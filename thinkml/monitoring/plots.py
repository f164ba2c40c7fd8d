"""Training plots: loss, metrics and other recorded values, over epochs or steps.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish. Training is solid
and validation dashed, so that a print without colours is readable too.

Reference:
    Okabe and Ito, 2008, *Color universal design*.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thinkml.figures import COLOURS, new_figure
from thinkml.history import History, split_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ('o', 's', '^', 'D', 'v', 'P')
_BEST, _EVENT = COLOURS[2], '0.4'
# Values on another scale than metrics, and the panel in which each is drawn.
_PANELS = {
    'loss': 'loss',
    'learning_rate': 'learning_rate',
    'grad_norm': 'grad_norm',
    'update_ratio': 'update_ratio',
    'step_seconds': 'step_seconds',
    'input_wait': 'input_wait',
    'examples_per_second': 'examples_per_second',
    'elements_per_second': 'elements_per_second',
    'mfu': 'mfu',
    'bytes_in_use': 'device memory',
    'peak_bytes_in_use': 'device memory',
}
_LABEL_LENGTH = 20
# The lines of validation sets, in their order.
_DASHES = ('--', ':', '-.', (0, (3, 1, 1, 1, 1, 1)))


def training_figure(
    runs: Sequence[History], metrics: Sequence[str] | None = None, interval: int | None = None
) -> 'Figure':
    """Draws the training runs of one model, one after another on the same axis.

    Training is solid, validation dashed; further validation sets have other dashes. The best epoch
    is a dotted line with a star on each validation curve. An event is a thin line with a few words:
    early stopping, a loss that is not finite, a lowered learning rate, a resumed run. Values that
    are not finite are left out.

    Args:
        runs: the histories, oldest first.
        metrics: names to draw, each with its ``val_`` counterparts. None draws all.
        interval: steps per point of the training loss, over an axis of steps; each point is the
            mean of these steps. None draws one point per epoch over an axis of epochs.

    Returns:
        a `matplotlib.figure.Figure` with a panel for the loss, one for metrics, and one for each
        other recorded value. Empty panels are left out.

    Example:
        >>> history = History()
        >>> history.add_epoch({'loss': 0.8, 'val_loss': 0.9, 'accuracy': 0.5})
        >>> [axes.get_ylabel() for axes in training_figure([history]).axes]
        ['loss', 'accuracy']
    """
    runs = [run.copy() for run in runs]  # a snapshot, since another thread may be writing
    by_steps = interval is not None and any(run.steps for run in runs)
    recorded = dict.fromkeys(['loss'] if by_steps else [])
    recorded |= dict.fromkeys(name for run in runs for name in run)
    split = {name: split_name(name, recorded) for name in recorded}
    shown = [n for n in recorded if metrics is None or n in metrics or split[n][1] in metrics]
    shown = shown or list(metrics or ('loss', 'metric'))
    panels: dict[str, dict[str, tuple[str | None, str]]] = {}
    for name in shown:
        parts = split.get(name, (None, name))
        panels.setdefault(_panel(parts[1]), {})[name] = parts
    order = ['loss', 'metric', *_PANELS.values()]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(5.5 * columns, 4.2 if rows == 1 else 3.2 * rows)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for index, panel in enumerate(sorted(panels, key=order.index)):
        axes = all_axes[index]
        _draw_panel(axes, panels[panel], runs, interval if by_steps else None)
        if axes.get_legend_handles_labels()[0]:
            _draw_events(axes, runs, interval if by_steps else None, with_labels=index < columns)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    return figure


def _draw_panel(
    axes: 'Axes',
    parts: dict[str, tuple[str | None, str]],
    runs: Sequence[History],
    interval: int | None,
) -> None:
    """Draws the curves of a panel; ``parts`` has the validation set and the metric of each name."""
    bases = list(dict.fromkeys(base for _, base in parts.values()))
    names = sorted(parts, key=lambda name: bases.index(parts[name][1]))  # accuracy, val_accuracy
    sets = list(dict.fromkeys(of_set for of_set, _ in parts.values() if of_set is not None))
    styles = {None: '-'} | {of_set: _DASHES[i % len(_DASHES)] for i, of_set in enumerate(sets)}
    with_markers = [  # if there are few points, or several metrics to distinguish
        name
        for name in names
        if len(bases) > 1 or all(len(_points(run, name, interval)[0]) <= 30 for run in runs)
    ]
    for run, start in zip(runs, _starts(runs, interval), strict=True):
        for name in names:
            x, y = _points(run, name, interval)
            if len(x):
                of_set, base = parts[name]
                kind, style = bases.index(base), styles[of_set]
                _draw_curve(axes, name, start + x, y, kind, style, name in with_markers)
        if _panel(bases[0]) in ('loss', 'metric'):
            _mark_best(axes, run, parts, start, interval)
        if start:
            border = start + 0.5 if interval is None else start
            axes.axvline(border, color='0.85', linewidth=3, zorder=0)
    axes.set_xlabel('epoch' if interval is None else 'step')
    axes.set_ylabel(bases[0] if len(bases) == 1 else _panel(bases[0]))
    if axes.get_legend_handles_labels()[0]:
        _format_panel(axes, _panel(bases[0]))
    else:
        _explain_empty(axes, names, runs)


def _draw_curve(
    axes: 'Axes',
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    kind: int,
    style: Any,
    with_markers: bool,
) -> None:
    finite = np.isfinite(y)
    axes.plot(
        x[finite],
        y[finite],
        color=COLOURS[kind % len(COLOURS)],
        linestyle=style,
        marker=_MARKERS[kind % len(_MARKERS)] if with_markers else None,
        markevery=max(1, finite.sum() // 15),
        markersize=4,
        markerfacecolor=None if style == '-' else 'white',
        label=name,
    )


def _format_panel(axes: 'Axes', panel: str) -> None:
    """Sets the ticks, the grid and the legend of a panel."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    units = {
        'step_seconds': EngFormatter('s'),
        'input_wait': PercentFormatter(1),
        'examples_per_second': EngFormatter(),
        'elements_per_second': EngFormatter(),
        'mfu': PercentFormatter(1),
        'device memory': EngFormatter('B'),
    }
    if panel in units:
        axes.yaxis.set_major_formatter(units[panel])
    if panel not in ('loss', 'metric'):  # the others are amounts, whose axis begins at 0
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    # One entry per name: several runs draw the same names.
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if len(handles) > 1 or panel in ('loss', 'metric'):
        axes.legend(handles.values(), handles.keys(), framealpha=0.9)


def _explain_empty(axes: 'Axes', names: list[str], runs: Sequence[History]) -> None:
    if any(run.epochs for run in runs):
        reason = f'{", ".join(names)}: not recorded'
    else:
        reason = 'no epoch has ended yet' if any(run.steps for run in runs) else 'no data yet'
    events = [_label(text) for run in runs for _, text in run.events]
    text = '\n'.join([reason, *events])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha='center', va='center')
    axes.set(xticks=[], yticks=[])


def _starts(runs: Sequence[History], interval: int | None) -> list[int]:
    """Returns the position on the axis where each run begins."""
    lengths = [run.epochs if interval is None else run.steps for run in runs]
    return [sum(lengths[:index]) for index in range(len(runs))]


def _points(run: History, name: str, interval: int | None) -> tuple[np.ndarray, np.ndarray]:
    if name == 'loss' and interval is not None:
        return _block_means(run.step_loss, interval)
    if name not in run:
        return np.empty(0), np.empty(0)
    return _ends(run, interval), np.array(run[name])


def _ends(run: History, interval: int | None) -> np.ndarray:
    """Returns the positions on the axis where the epochs end."""
    return np.arange(1, run.epochs + 1) if interval is None else np.array(run.epoch_ends, int)


def _mark_best(
    axes: 'Axes',
    run: History,
    parts: dict[str, tuple[str | None, str]],
    start: int,
    interval: int | None,
) -> None:
    if run.best_epoch is None or run.best_epoch > run.epochs or run.keys().isdisjoint(parts):
        return
    position = start + _ends(run, interval)[run.best_epoch - 1]
    axes.axvline(position, color=_BEST, linestyle=':', linewidth=1.5, label='best epoch')
    for name, (of_set, _) in parts.items():
        if of_set is not None and name in run:
            value = run[run.best_epoch - 1, name]
            axes.scatter(position, value, s=80, marker='*', color=_BEST, zorder=3)


def _draw_events(
    axes: 'Axes', runs: Sequence[History], interval: int | None, with_labels: bool
) -> None:
    """Draws a thin line for each event, with a label above the panel if there is space for it."""
    labels: dict[float, list[str]] = {}
    for run, start in zip(runs, _starts(runs, interval), strict=True):
        for position, label in _events(run, interval):
            labels.setdefault(start + position, []).append(label)
    first, last = axes.get_xlim()
    labelled = math.inf
    for position in sorted(labels, reverse=True):  # the end of the last run always has a label
        axes.axvline(position, color=_EVENT, linewidth=0.6, zorder=1)
        if with_labels and labelled - position >= (last - first) / 20:
            axes.annotate(
                ', '.join(dict.fromkeys(labels[position])),
                (position, 1), (-3, 3), ha='left', va='bottom',
                xycoords=axes.get_xaxis_transform(), textcoords='offset points',
                rotation=35, rotation_mode='anchor', fontsize=8, color=_EVENT,
            )  # fmt: skip
            labelled = position


def _events(run: History, interval: int | None) -> list[tuple[float, str]]:
    """Returns the events of a run, each as a position on the axis and a label."""
    steps = np.array([0, *run.epoch_ends])
    positions = np.arange(len(steps)) if interval is None else steps
    found = []
    for epoch, text in run.events:
        # An event that ends a run is after its last step, which may be within an epoch.
        ends_run = epoch >= run.epochs and not text.startswith(_AFTER_EPOCHS)
        is_by_steps = ends_run and interval is not None
        position = run.steps if is_by_steps else positions[min(epoch, run.epochs)]
        found.append((float(position), _label(text)))
    for step in run.resumed_at:
        position = step if interval is not None else np.interp(step, steps, positions)
        found.append((float(position), 'resumed'))
    return found


# The label of an event, by the beginning of its text.
_LABELS = {
    'the loss is': 'diverged',
    'the gradient is not finite': 'diverged',
    'learning rate lowered': 'rate lowered',
    'validation loss has risen': 'val_loss rises',
    'validation loss is': 'val_loss not finite',
    'max_time is over': 'time is over',
}
_AFTER_EPOCHS = ('learning rate lowered', 'validation loss')


def _label(text: str) -> str:
    labels = [label for begin, label in _LABELS.items() if text.startswith(begin)]
    text = labels[0] if labels else text.partition(':')[0]
    return text if len(text) <= _LABEL_LENGTH else f'{text[: _LABEL_LENGTH - 1]}…'


def _panel(metric: str) -> str:
    # A head's loss is on the scale of the loss.
    is_loss = metric.endswith('_loss') and metric != 'log_loss'
    return _PANELS.get(metric, 'loss' if is_loss else 'metric')


def _block_means(losses: np.ndarray, interval: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of consecutive blocks of ``interval`` losses, and the mean of each."""
    starts = np.arange(0, len(losses), interval)
    ends = np.minimum(starts + interval, len(losses))
    if not len(losses):
        return ends, losses
    return ends, np.add.reduceat(losses.astype(float), starts) / (ends - starts)
