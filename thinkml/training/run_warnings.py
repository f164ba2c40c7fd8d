"""Warnings about a run in progress that needs attention."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from thinkml.core import Feed, ResidentFeed
from thinkml.errors import warn_user
from thinkml.history import split_name
from thinkml.training.callbacks.early_stopping import EarlyStopping
from thinkml.training.metric_monitor import MonitoringCallback, default_monitor
from thinkml.training.run import Run
from thinkml.training.run_checkpoints import Checkpoints

_KEY = 'validation loss'
# The warning comes after this time, because the beginning of a run fills queues and caches.
_WAIT_AFTER_SECONDS = 30.0
_WAIT_FRACTION = 0.3
# Epochs after the best one. The last few of them must all be clearly worse.
_RISING_EPOCHS = 20
_RISEN_EPOCHS = 5


def warn_of_waiting(run: Run, feed: Feed) -> None:
    """Warns, once, of a run that spends much of its time waiting for data from the host."""
    if isinstance(feed, ResidentFeed):
        return
    fraction, seconds = run.times.input_share, run.times.seconds
    if run.waits or seconds < _WAIT_AFTER_SECONDS or not fraction >= _WAIT_FRACTION:
        return
    run.waits = True
    warn_user(
        f'The run waits for its input: the device was idle for {fraction:.0%} of the first '
        f'{seconds:.0f} s of training. Let more workers read (num_workers of a DataLoader), do '
        'less to each example on the host (augmentation= runs on the device), or keep the data '
        'decoded, in memory or in a memory-mapped file.'
    )


def warn_of_validation(run: Run) -> None:
    """Warns, once, of a validation loss that is not finite, or that rises for long.

    It becomes an event of the history, so that a resumed run does not repeat it.
    """
    names = tuple(run.history)
    losses = {name: of_set for name in names if (of_set := _set_of_loss(name, names)) is not None}
    if not losses or any(_KEY in text for _, text in run.history.events):
        return
    best, name = run.history.best_epoch, default_monitor(names)
    loss, val_loss = run.history[-1, ('loss', name)]
    broken = [one for one in losses if not math.isfinite(run.history[-1, one])]
    if broken and math.isfinite(loss):
        of_set = losses[broken[0]]
        event = f'{_KEY} is {run.history[-1, broken[0]]}'
        advice = (
            'while that of training is finite: look for NaN or very large values in '
            f'{f"X_val[{of_set!r}]" if of_set else "X_val and y_val"}, and for a logarithm, '
            'division or exponential in the model or the loss.'
        )
    elif best is not None and _has_risen(run, name, best):
        event = f'{_KEY} has risen since epoch {best}'
        advice = (
            f'from {run.history[best - 1, name]:.3g} to {val_loss:.3g}, while that of '
            'training falls: the model overfits. early_stopping=True stops in time and keeps the '
            'best parameters; more data, augmentation=, weight_decay= or a smaller model help.'
        )
    else:
        return
    run.history.events.append((run.epoch, event))
    warn_user(f'After epoch {run.epoch} the {event}, {advice}')


def _set_of_loss(name: str, names: Sequence[str]) -> str | None:
    """Returns the validation set whose loss this is; None if it is another value."""
    of_set, metric = split_name(name, names)
    return of_set if metric == 'loss' else None


def warn_of_weights(run: Run) -> None:
    """Warns, once, of an epoch whose rows all have weight 0, so that its loss is NaN."""
    event = 'training loss has no row that counts'
    # Steps of weight 0 have loss 0. If the loss function returns NaN, its steps are NaN, too.
    has_no_row = math.isnan(run.history[-1, 'loss']) and math.isfinite(run.history.step_loss[-1])
    if has_no_row and all(event != text for _, text in run.history.events):
        run.history.events.append((run.epoch, event))
        warn_user(
            f'After epoch {run.epoch} the training loss is NaN: all rows of its steps have weight '
            '0, and nothing was learned from them. Take more batches (limit_train_batches, '
            'max_steps, fast_dev_run), or leave these rows out of the data.'
        )


def warn_of_monitors(
    run: Run, checkpoints: Checkpoints | None, missing: Mapping[str | None, Sequence[Any]]
) -> None:
    """Warns of a monitored metric that was NaN at the end, so that it decided nothing.

    Args:
        run: a run that has ended.
        checkpoints: the checkpoints of the run; a metric tells the best of them, too.
        missing: the labels that no row has, by validation set, see `split_name`.
    """
    by_name: dict[str, list[str]] = {}
    watching = [c for c in run.callbacks if isinstance(c, MonitoringCallback)]
    for one in (*watching, *([] if checkpoints is None else [checkpoints])):
        by_name.setdefault(one.watched_name, []).append(type(one).__name__.removesuffix('s'))
    first_loss = default_monitor(run.metric_names)
    is_reported = any(_KEY in text for _, text in run.history.events)
    for name, watching in by_name.items():
        values = run.history[:, name] if name in run.history else []
        if not values or not math.isnan(values[-1]) or (is_reported and name == first_loss):
            continue
        of_set, _ = split_name(name, run.history)
        part = 'training' if of_set is None else f'validation {of_set}'.rstrip()
        labels = missing.get(of_set)
        cause = 'Watch another metric, or look at why this one is not defined.'
        if labels:
            shown = ', '.join(map(repr, labels[:5]))
            cause = (
                f'The {part} data has no row labelled {shown}, which some metrics need: add some, '
                'or watch another metric.'
            )
        warn_user(
            f'monitor: {name}, which {" and ".join(watching)} watched, was NaN in '
            f'{sum(map(math.isnan, values)):,} of {len(values):,} epochs, the last one included. '
            f'NaN is no improvement. {cause}'
        )


def _has_risen(run: Run, name: str, best: int) -> bool:
    """Returns True if the validation loss has been well above its best value for many epochs."""
    history = run.history
    if run.epoch - best < _RISING_EPOCHS or any(
        isinstance(callback, EarlyStopping) for callback in run.callbacks
    ):
        return False
    first, lowest = history[0, name], history[best - 1, name]
    risen = min(history[-_RISEN_EPOCHS:, name]) - lowest
    is_clear = risen > 0.2 * abs(lowest) and risen > 0.1 * (first - lowest)
    return is_clear and history[-1, 'loss'] < history[best - 1, 'loss']
