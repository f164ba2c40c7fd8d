"""The picture of a training: loss and metrics over epochs or steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thinkml.figures import new_figure
from thinkml.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training_figure(
    runs: Sequence[History], metrics: Sequence[str] | None = None, interval: int | None = None
) -> 'Figure':
    """Draws the training runs of one model, one after another on the same axis.

    Training is solid, validation dashed, the best epoch a dotted line. Values that are not finite
    are left out.

    Args:
        runs: the histories, oldest first.
        metrics: names to draw, each with its ``val_`` counterpart. None draws all.
        interval: steps per point of the training loss, each point their mean, over an axis of
            steps. None draws one point per epoch over an axis of epochs.

    Returns:
        A `matplotlib.figure.Figure` with a panel for the loss and one for all other metrics; only
        one of them where there is nothing to show in the other.

    Example:
        >>> history = History()
        >>> history.add_epoch({'loss': 0.8, 'val_loss': 0.9, 'accuracy': 0.5})
        >>> [axes.get_ylabel() for axes in training_figure([history]).axes]
        ['loss', 'accuracy']
    """
    runs = [run.copy() for run in runs]  # one moment of what another thread may be writing
    by_steps = interval is not None and any(run.steps for run in runs)
    recorded = dict.fromkeys(['loss'] if by_steps else [])
    recorded |= dict.fromkeys(name for run in runs for name in run)
    shown = [n for n in recorded if metrics is None or n in metrics or _base(n) in metrics]
    shown = shown or list(metrics or ('loss', 'metric'))
    is_loss = [_base(name) == 'loss' for name in shown]
    panels = [
        [name for name, in_loss in zip(shown, is_loss, strict=True) if in_loss == panel]
        for panel in (True, False)
        if panel in is_loss
    ]
    figure = new_figure(5.5 * len(panels), 4)
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, names, runs, interval if by_steps else None)
    return figure


def _draw_panel(
    axes: 'Axes', names: list[str], runs: Sequence[History], interval: int | None
) -> None:
    from matplotlib.ticker import MaxNLocator

    bases = list(dict.fromkeys(map(_base, names)))
    names = sorted(names, key=lambda name: bases.index(_base(name)))  # accuracy, val_accuracy, f1
    start = 0
    for run in runs:
        ends = np.arange(1, run.epochs + 1) if interval is None else np.array(run.epoch_ends, int)
        for name in names:
            if name == 'loss' and interval is not None:
                x, y = _block_means(run.step_loss, interval)
            elif name in run:
                x, y = ends, np.array(run[name])
            else:
                continue
            finite = np.isfinite(y)
            axes.plot(
                start + x[finite],
                y[finite],
                color=f'C{bases.index(_base(name))}',
                linestyle='-' if name == _base(name) else '--',
                marker=None if finite.sum() > 30 else '.' if name == _base(name) else 'x',
                label=name,
            )
        if run.best_epoch is not None and run.best_epoch <= run.epochs:
            axes.axvline(
                start + ends[run.best_epoch - 1], color='0.4', linestyle=':', label='best epoch'
            )
        start += run.epochs if interval is None else run.steps
        if run is not runs[-1]:
            border = start + 0.5 if interval is None else start
            axes.axvline(border, color='0.85', linewidth=3, zorder=0)
    axes.set_xlabel('epoch' if interval is None else 'step')
    axes.set_ylabel(bases[0] if len(bases) == 1 else 'metric')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    # One entry per name: several runs draw the same names.
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend(handles.values(), handles.keys())
        axes.grid(alpha=0.3)
    else:
        axes.text(0.5, 0.5, 'no data yet', transform=axes.transAxes, ha='center', va='center')
        axes.set(xticks=[], yticks=[])


def _base(name: str) -> str:
    return name.removeprefix('val_')


def _block_means(losses: np.ndarray, interval: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of consecutive blocks of ``interval`` losses, at the blocks' ends."""
    starts = np.arange(0, len(losses), interval)
    ends = np.minimum(starts + interval, len(losses))
    if not len(losses):
        return ends, losses
    return ends, np.add.reduceat(losses.astype(float), starts) / (ends - starts)
