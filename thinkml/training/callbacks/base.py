"""Callbacks: what may be done at the start, after a chunk of steps, after an epoch, at the end."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from thinkml.core.xla.jit import holding_programs
from thinkml.errors import ConfigError
from thinkml.training.callbacks.checkpoint import Checkpoint
from thinkml.training.callbacks.device_stats import DeviceStats, Throughput
from thinkml.training.callbacks.early_stopping import EarlyStopping
from thinkml.training.callbacks.loggers import (
    CSVLogger,
    LearningRateMonitor,
    LoggerCallback,
    MLflow,
    TensorBoard,
    WandB,
)
from thinkml.training.callbacks.profiler import Profiler
from thinkml.training.callbacks.reduce_lr import ReduceLROnPlateau
from thinkml.training.config_validation import HOOKS
from thinkml.training.run import Run


class Callback(Protocol):
    """The hooks of a callback object; it may have any of them.

    They are called in the order of the config's list, but ``'throughput'`` and ``'device_stats'``
    come first, so that all others find what these recorded. Where an epoch ends, ``on_chunk_end``
    of all is called and then ``on_epoch_end``. Each gets the `Run`: its ``model``, ``config``,
    ``history``, ``state`` and ``epoch``, and ``run.stop(reason)``. The state is on the device and
    donated to the next chunk: copy what you keep, and assign to ``run.state`` to go on with another
    one; or change the arrays of ``run.model``.

    What an object remembers goes into the checkpoints if it has ``state_dict()``, a pytree of
    arrays and numbers whose structure stays the same, and ``load_state_dict(state)``, which is
    called after ``on_train_start`` in a run that is resumed.
    """

    def on_train_start(self, run: Run) -> None: ...

    def on_chunk_end(self, run: Run) -> None: ...

    def on_epoch_end(self, run: Run) -> None: ...

    def on_train_end(self, run: Run) -> None: ...


# 'progress' is none of them: the bar is the trainer's own.
BY_NAME: dict[str, type] = {
    'checkpoint': Checkpoint,
    'csv': CSVLogger,
    'device_stats': DeviceStats,
    'early_stopping': EarlyStopping,
    'lr_monitor': LearningRateMonitor,
    'profiler': Profiler,
    'tensorboard': TensorBoard,
    'throughput': Throughput,
}
_LOGGERS = (TensorBoard, CSVLogger, WandB, MLflow)
_RECORDERS = (DeviceStats, Throughput)
OWN = (*BY_NAME.values(), ReduceLROnPlateau, WandB, MLflow)


def make_callbacks(
    callbacks: Sequence[Any], early_stopping: Any, lr_schedule: Any
) -> tuple[list[Any], Checkpoint | None]:
    """The callbacks of a run, from names, objects and functions, as ordered; and its `Checkpoint`.

    Raises:
        ConfigError: for two `Checkpoint` objects.
    """
    if early_stopping is True:
        callbacks = (*callbacks, 'early_stopping')
    elif early_stopping is not False:
        callbacks = (*callbacks, early_stopping)
    if lr_schedule == 'reduce_on_plateau':
        callbacks = (*callbacks, ReduceLROnPlateau())
    # What is given twice (early_stopping=True and callbacks=['early_stopping']) is meant once, and
    # an object says in detail what its name says.
    kinds = {type(item) for item in callbacks}
    given = {
        item if isinstance(item, str) else id(item): item
        for item in callbacks
        if not isinstance(item, str) or (item in BY_NAME and BY_NAME[item] not in kinds)
    }
    made = [_fresh(item) for item in given.values()]
    checkpoints = [item for item in made if isinstance(item, Checkpoint)]
    if len(checkpoints) > 1:
        raise ConfigError(
            f'callbacks: got {len(checkpoints)} Checkpoints, expected one: a run is resumed from '
            'one place.'
        )
    made = [item for item in made if not isinstance(item, Checkpoint)]
    made = [LoggerCallback(item) if isinstance(item, _LOGGERS) else item for item in made]
    made.sort(key=lambda item: not isinstance(item, _RECORDERS))
    return made, checkpoints[0] if checkpoints else None


def _fresh(item: Any) -> Any:
    """One for this run: a config may be used by several at once, and ours remember things."""
    if isinstance(item, str):
        return BY_NAME[item]()
    return copy.copy(item) if isinstance(item, OWN) else item


def check_callbacks(callbacks: list[Any], metric_names: tuple[str, ...]) -> None:
    """Raises a `ConfigError` if one of ours can't watch or write what it is to."""
    places = set()
    for callback in callbacks:
        if isinstance(callback, EarlyStopping | ReduceLROnPlateau | LoggerCallback | Profiler):
            callback.check(metric_names)
        if isinstance(callback, LoggerCallback) and callback.place is not None:
            kind = type(callback.logger).__name__
            if (kind, callback.place) in places:
                raise ConfigError(
                    f'callbacks: got two {kind} objects that write to {callback.place}, expected '
                    'one. Leave one out, or give it another place.'
                )
            places.add((kind, callback.place))


def recorded_for(callbacks: list[Any]) -> tuple[str, ...]:
    """The metrics that callbacks want recorded."""
    return tuple(dict.fromkeys(name for item in callbacks for name in getattr(item, 'records', ())))


@contextlib.contextmanager
def started(callbacks: list[Any], run: Run) -> Iterator[None]:
    """Starts the callbacks, and ends those that were started whatever happens in between."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            _call(callback, 'on_train_start', run)
            stack.callback(_call, callback, 'on_train_end', run)
        yield


def after_chunk(callbacks: list[Any], run: Run) -> None:
    """Tells the callbacks that a chunk of steps was done."""
    for callback in callbacks:
        _call(callback, 'on_chunk_end', run)


def after_epoch(callbacks: list[Any], run: Run) -> None:
    """Tells the callbacks that an epoch has ended; plain functions are called with the run."""
    for callback in callbacks:
        if any(hasattr(callback, hook) for hook in HOOKS):
            _call(callback, 'on_epoch_end', run)
        else:
            with holding_programs(False):
                callback(run)
            run.take_changes()


def _call(callback: Any, hook: str, run: Run) -> None:
    method = getattr(callback, hook, None)
    if method is not None:
        with holding_programs(False):
            method(run)
        run.take_changes()
