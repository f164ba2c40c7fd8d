"""Callbacks of a run: made from a config, checked, and called."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from thinkml.core.xla.jit import holding_programs
from thinkml.errors import ConfigError
from thinkml.training.callback import CALLBACKS, Callback, has_hooks, hook_of
from thinkml.training.callbacks.checkpoint import Checkpoint
from thinkml.training.callbacks.loggers import LoggerCallback
from thinkml.training.callbacks.reduce_lr import ReduceLROnPlateau
from thinkml.training.config import TrainingConfig
from thinkml.training.run import Run


def make_callbacks(config: TrainingConfig) -> tuple[list[Any], Checkpoint | None]:
    """Returns the callbacks that a config names, in the order of their calls, and its `Checkpoint`.

    Raises:
        ConfigError: for two `Checkpoint` objects.
    """
    callbacks: list[Any] = list(config.callbacks)
    if config.early_stopping is not False:
        is_default = config.early_stopping is True
        callbacks.append('early_stopping' if is_default else config.early_stopping)
    if config.lr_schedule == 'reduce_on_plateau':
        callbacks.append(ReduceLROnPlateau())
    made = [_for_run(item) for item in _without_repeats(callbacks)]
    checkpoints = [item for item in made if isinstance(item, Checkpoint)]
    if len(checkpoints) > 1:
        raise ConfigError(
            f'callbacks: got {len(checkpoints)} Checkpoints, expected one: a run is resumed from '
            'one place.'
        )
    made = [item for item in made if not isinstance(item, Checkpoint)]
    made.sort(key=lambda item: item.order if isinstance(item, Callback) else 0)
    return made, checkpoints[0] if checkpoints else None


def _without_repeats(callbacks: list[Any]) -> list[Any]:
    """Returns each callback once, and leaves out names that an object of the class stands for.

    ``early_stopping=True`` beside ``callbacks=['early_stopping']`` means one callback.
    """
    kinds = {type(item) for item in callbacks}
    found: dict[Any, Any] = {}
    for item in callbacks:
        if not isinstance(item, str):
            found[id(item)] = item
        elif item in CALLBACKS and _class(CALLBACKS[item]) not in kinds:
            found[item] = item
    return list(found.values())


def _class(path: str) -> type[Callback]:
    module, _, name = path.partition(':')
    return getattr(importlib.import_module(module), name)


def _for_run(item: Any) -> Any:
    if isinstance(item, str):
        return _class(CALLBACKS[item])()
    return item.fresh() if isinstance(item, Callback) else item


def check_callbacks(callbacks: list[Any], metric_names: tuple[str, ...]) -> None:
    """Raises a `ConfigError` if a callback can not watch or write what it is made for."""
    for callback in callbacks:
        if isinstance(callback, Callback):
            callback.check(metric_names)
    places = set()
    for callback in callbacks:
        if isinstance(callback, LoggerCallback) and callback.place is not None:
            kind = type(callback).__name__
            if (kind, callback.place) in places:
                raise ConfigError(
                    f'callbacks: got two {kind} objects that write to {callback.place}, expected '
                    'one. Leave one out, or give it another place.'
                )
            places.add((kind, callback.place))


def metrics_recorded_for(callbacks: list[Any]) -> tuple[str, ...]:
    """Returns the names of the training metrics that callbacks need in the history."""
    return tuple(dict.fromkeys(name for item in callbacks for name in getattr(item, 'records', ())))


@contextlib.contextmanager
def started(callbacks: list[Any], run: Run) -> Iterator[None]:
    """Starts the callbacks, and ends those that were started, also after an error."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            _call(callback, 'on_train_start', run)
            stack.callback(_call, callback, 'on_train_end', run)
        yield


def after_chunk(callbacks: list[Any], run: Run) -> None:
    """Calls ``on_chunk_end`` of each callback."""
    for callback in callbacks:
        _call(callback, 'on_chunk_end', run)


def after_epoch(callbacks: list[Any], run: Run) -> None:
    """Calls ``on_epoch_end`` of each callback, and plain functions with the run."""
    for callback in callbacks:
        if has_hooks(callback):
            _call(callback, 'on_epoch_end', run)
        else:
            with holding_programs(False):
                callback(run)
            run.take_changes()


def _call(callback: Any, hook: str, run: Run) -> None:
    method = hook_of(callback, hook)
    if method is None:
        return
    with holding_programs(False):
        method(run)
    run.take_changes()
