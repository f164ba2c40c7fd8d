"""What may be done after each epoch: stop early, keep checkpoints, write event files."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import jax.numpy as jnp

from thinkml.checkpoint import Checkpointer
from thinkml.errors import ConfigError, ThinkMLWarning, unknown_name
from thinkml.monitoring import EventWriter

if TYPE_CHECKING:
    from thinkml.training.fit import Run


class Callback(Protocol):
    """The hooks of a callback object; it may have any of them.

    Each gets the `Run`: its ``model``, ``config``, ``history``, ``state`` and ``epoch``, and
    ``run.stop(reason)``. The state is on the device and donated to the next chunk: copy what you
    keep.
    """

    def on_train_start(self, run: 'Run') -> None: ...

    def on_epoch_end(self, run: 'Run') -> None: ...

    def on_train_end(self, run: 'Run') -> None: ...


@dataclasses.dataclass
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
        >>> config = TrainingConfig(early_stopping=EarlyStopping(monitor='val_accuracy', patience=5))
    """

    monitor: str | None = None
    mode: Literal['min', 'max'] | None = None
    min_delta: float = 0.0
    patience: int = 10
    restore_best: bool = True

    def __post_init__(self) -> None:
        if self.mode not in (None, 'min', 'max'):
            raise ConfigError(unknown_name('mode', self.mode, ('min', 'max')))
        if self.min_delta < 0:
            raise ConfigError(f'min_delta: got {self.min_delta}, expected a number of at least 0.')
        if self.patience < 1:
            raise ConfigError(f'patience: got {self.patience}, expected at least 1 epoch.')

    def on_train_start(self, run: 'Run') -> None:
        self._name = self._monitored(run)
        self._sign = -1 if self.mode == 'max' or (not self.mode and 'accuracy' in self._name) else 1
        self._best = math.inf
        self._best_epoch = 0
        self._best_arrays: Any = None

    def _monitored(self, run: 'Run') -> str:
        if self.monitor is None:
            if 'val_loss' in run.metric_names:
                return 'val_loss'
            warnings.warn(
                'early_stopping: there is no validation data, so it watches the training loss, '
                'which does not notice overfitting. Pass X_val and y_val, or validation_split.',
                ThinkMLWarning,
                stacklevel=2,
            )
            return 'loss'
        if self.monitor not in run.metric_names:
            raise ConfigError(unknown_name('monitor', self.monitor, run.metric_names))
        return self.monitor

    def on_epoch_end(self, run: 'Run') -> None:
        score = self._sign * run.history.last()[self._name]
        if score < self._best - self.min_delta:
            self._best, self._best_epoch = score, run.epoch
            if self.restore_best:
                self._best_arrays = _copy((run.state.params, run.state.model_state))
        elif run.epoch - self._best_epoch >= self.patience:
            run.stop(f'early stopping: {self._name} has not improved for {self.patience} epochs')

    def on_train_end(self, run: 'Run') -> None:
        if self._best_arrays is None:
            return
        run.history.best_epoch = self._best_epoch
        params, model_state = self._best_arrays
        run.state = run.state.replace(params=params, model_state=model_state)
        self._best_arrays = None


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@dataclasses.dataclass
class Checkpoint:
    """Saves the training state after each epoch with Orbax.

    Attributes:
        directory: where to; made if needed. Each training run replaces what an earlier one left.
        keep: how many of the newest checkpoints stay.
    """

    directory: str | Path = 'checkpoints'
    keep: int = 2

    def on_train_start(self, run: 'Run') -> None:
        self._checkpointer = Checkpointer(self.directory, keep=self.keep)

    def on_epoch_end(self, run: 'Run') -> None:
        metadata = {'epoch': run.epoch, 'metrics': run.history.last()}
        self._checkpointer.save(int(run.state.step), run.state, metadata)

    def on_train_end(self, run: 'Run') -> None:
        self._checkpointer.close()


@dataclasses.dataclass
class TensorBoard:
    """Writes the history's values after each epoch to event files.

    Attributes:
        directory: where to; look at it with ``tensorboard --logdir logs``.
    """

    directory: str | Path = 'logs'

    def on_train_start(self, run: 'Run') -> None:
        self._writer = EventWriter(self.directory)

    def on_epoch_end(self, run: 'Run') -> None:
        self._writer.write(run.history.steps, run.history.last())

    def on_train_end(self, run: 'Run') -> None:
        self._writer.close()


BY_NAME: dict[str, Callable[[], Any]] = {
    'checkpoint': Checkpoint,
    'early_stopping': EarlyStopping,
    'tensorboard': TensorBoard,
}
HOOKS = ('on_train_start', 'on_epoch_end', 'on_train_end')


def make_callbacks(callbacks: tuple[Any, ...], early_stopping: Any) -> list[Any]:
    """The callback objects of a run, from names, objects and functions."""
    if early_stopping is True:
        callbacks = (*callbacks, 'early_stopping')
    elif early_stopping is not False:
        callbacks = (*callbacks, early_stopping)
    # A name given twice (early_stopping=True and callbacks=['early_stopping']) is meant once.
    unique = [c for i, c in enumerate(callbacks) if not isinstance(c, str) or c not in callbacks[:i]]
    return [BY_NAME[callback]() if isinstance(callback, str) else callback for callback in unique]


def call_hook(callbacks: list[Any], hook: str, run: 'Run') -> None:
    """Calls one hook of every callback that has it; a plain function is an ``on_epoch_end``."""
    for callback in callbacks:
        method = getattr(callback, hook, None)
        if method is not None:
            method(run)
        elif hook == 'on_epoch_end' and not any(hasattr(callback, name) for name in HOOKS):
            callback(run)
