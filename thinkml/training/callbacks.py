"""What may be done after each epoch: stop early, keep checkpoints, write event files."""

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from thinkml.checkpoint import Checkpointer
from thinkml.errors import ConfigError, ThinkMLWarning, is_number, is_whole, problems, unknown_name
from thinkml.monitoring import EventWriter
from thinkml.training.config import HOOKS
from thinkml.training.run import Run, copy_arrays


class Callback(Protocol):
    """The hooks of a callback object; it may have any of them.

    Each gets the `Run`: its ``model``, ``config``, ``history``, ``state`` and ``epoch``, and
    ``run.stop(reason)``. The state is on the device and donated to the next chunk: copy what you
    keep.
    """

    def on_train_start(self, run: Run) -> None: ...

    def on_epoch_end(self, run: Run) -> None: ...

    def on_train_end(self, run: Run) -> None: ...


@dataclasses.dataclass(unsafe_hash=True)
class EarlyStopping:
    """Stops when a metric has stopped improving, and puts the best epoch's parameters back.

    Attributes:
        monitor: a name in the history; None is ``'val_loss'``, or ``'loss'`` with a warning where
            there is no validation data.
        mode: ``'min'`` or ``'max'``; None is ``'max'`` for accuracy and ``'min'`` otherwise.
        min_delta: an improvement must be larger than this.
        patience: epochs without improvement before stopping.
        restore_best: put the best epoch's parameters back at the end.

    Raises:
        ConfigError: for impossible settings.

    Example:
        >>> from thinkml.training import EarlyStopping, TrainingConfig
        >>> stopping = EarlyStopping(monitor='val_accuracy', patience=5)
        >>> config = TrainingConfig(early_stopping=stopping)
    """

    monitor: str | None = None
    mode: Literal['min', 'max'] | None = None
    min_delta: float = 0.0
    patience: int = 10
    restore_best: bool = True

    def __post_init__(self) -> None:
        found = []
        if self.mode not in (None, 'min', 'max'):
            found.append(unknown_name('mode', self.mode, ('min', 'max')))
        if not (is_number(self.min_delta) and self.min_delta >= 0):
            found.append(f'min_delta: got {self.min_delta!r}, expected a number of at least 0.')
        if not (is_whole(self.patience) and self.patience >= 1):
            found.append(f'patience: got {self.patience!r}, expected a whole number of epochs.')
        if found:
            raise ConfigError(problems('EarlyStopping can not be used:', found))

    def _monitored(self, metric_names: tuple[str, ...]) -> str:
        """The name to watch among those an epoch records; a `ConfigError` if it is not there."""
        name = self.monitor or ('val_loss' if 'val_loss' in metric_names else 'loss')
        if name not in metric_names:
            raise ConfigError(unknown_name('monitor', name, metric_names))
        return name

    def on_train_start(self, run: Run) -> None:
        self._name = self._monitored(run.metric_names)
        if self.monitor is None and self._name == 'loss':
            warnings.warn(
                'early_stopping: there is no validation data, so it watches the training loss, '
                'which does not notice overfitting. Pass X_val and y_val, or validation_split.',
                ThinkMLWarning,
                stacklevel=2,
            )
        self._sign = -1 if self.mode == 'max' or (not self.mode and 'accuracy' in self._name) else 1
        self._best = math.inf
        self._best_epoch = 0
        self._best_arrays: Any = None

    def on_epoch_end(self, run: Run) -> None:
        score = self._sign * run.history.last()[self._name]
        if score < self._best - self.min_delta:
            self._best, self._best_epoch = score, run.epoch
            if self.restore_best:
                self._best_arrays = copy_arrays((run.state.params, run.state.model_state))
        elif run.epoch - self._best_epoch >= self.patience:
            run.stop(f'early stopping: {self._name} has not improved for {self.patience} epochs')

    def on_train_end(self, run: Run) -> None:
        if self._best_arrays is None:
            return
        run.history.best_epoch = self._best_epoch
        params, model_state = self._best_arrays
        run.state = run.state.replace(params=params, model_state=model_state)
        self._best_arrays = None


@dataclasses.dataclass(unsafe_hash=True)
class Checkpoint:
    """Saves the training state after each epoch with Orbax.

    Attributes:
        directory: where to; made if needed. The checkpoints of an earlier run there give way.
        keep: how many of the newest checkpoints stay.
    """

    directory: str | Path = 'checkpoints'
    keep: int = 2

    def on_train_start(self, run: Run) -> None:
        self._checkpointer = Checkpointer(self.directory, keep=self.keep)

    def on_epoch_end(self, run: Run) -> None:
        metadata = {'epoch': run.epoch, 'metrics': run.history.last()}
        self._checkpointer.save(int(run.state.step), run.state, metadata)

    def on_train_end(self, run: Run) -> None:
        self._checkpointer.close()


@dataclasses.dataclass(unsafe_hash=True)
class TensorBoard:
    """Writes the history's values after each epoch to event files.

    Attributes:
        directory: where to; look at it with ``tensorboard --logdir logs``.
    """

    directory: str | Path = 'logs'

    def on_train_start(self, run: Run) -> None:
        self._writer = EventWriter(self.directory)

    def on_epoch_end(self, run: Run) -> None:
        self._writer.write(run.history.steps, run.history.last())

    def on_train_end(self, run: Run) -> None:
        self._writer.close()


BY_NAME: dict[str, type] = {
    'checkpoint': Checkpoint,
    'early_stopping': EarlyStopping,
    'tensorboard': TensorBoard,
}
OWN = tuple(BY_NAME.values())


def make_callbacks(
    callbacks: Sequence[Any], early_stopping: Any, metric_names: tuple[str, ...]
) -> list[Any]:
    """The callback objects of a run, from names, objects and functions.

    Raises:
        ConfigError: if early stopping is to watch what is not recorded.
    """
    if early_stopping is True:
        callbacks = (*callbacks, 'early_stopping')
    elif early_stopping is not False:
        callbacks = (*callbacks, early_stopping)
    # What is given twice (early_stopping=True and callbacks=['early_stopping']) is meant once.
    names = dict.fromkeys(callback for callback in callbacks if isinstance(callback, str))
    objects = {id(item): item for item in callbacks if not isinstance(item, str)}.values()
    # Copies: a config may be used by several runs at once, and these remember things during one.
    objects = [copy.copy(item) if isinstance(item, OWN) else item for item in objects]
    made = [*(BY_NAME[name]() for name in names), *objects]
    for callback in made:
        if isinstance(callback, EarlyStopping):
            callback._monitored(metric_names)
    return made


@contextlib.contextmanager
def started(callbacks: list[Any], run: Run) -> Iterator[None]:
    """Starts the callbacks, and ends those that were started whatever happens in between."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            _call(callback, 'on_train_start', run)
            stack.callback(_call, callback, 'on_train_end', run)
        yield


def after_epoch(callbacks: list[Any], run: Run) -> None:
    """Tells the callbacks that an epoch has ended; plain functions are called with the run."""
    for callback in callbacks:
        if any(hasattr(callback, hook) for hook in HOOKS):
            _call(callback, 'on_epoch_end', run)
        else:
            callback(run)


def _call(callback: Any, hook: str, run: Run) -> None:
    method = getattr(callback, hook, None)
    if method is not None:
        method(run)
