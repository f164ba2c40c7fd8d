"""Callback: the base class of callbacks, and the names of those that ThinkML has."""

import copy
from typing import Any

from thinkml.typing import PyTree

HOOKS = ('on_train_start', 'on_chunk_end', 'on_epoch_end', 'on_train_end')

# The class of each name, imported when a run uses it.
CALLBACKS = {
    'checkpoint': 'thinkml.training.callbacks.checkpoint:Checkpoint',
    'csv': 'thinkml.training.callbacks.loggers:CSVLogger',
    'device_stats': 'thinkml.training.callbacks.device_stats:DeviceStats',
    'early_stopping': 'thinkml.training.callbacks.early_stopping:EarlyStopping',
    'lr_monitor': 'thinkml.training.callbacks.loggers:LearningRateMonitor',
    'profiler': 'thinkml.training.callbacks.profiler:Profiler',
    'tensorboard': 'thinkml.training.callbacks.loggers:TensorBoard',
    'throughput': 'thinkml.training.callbacks.device_stats:Throughput',
}


class Callback:
    """A callback of a training run, whose hooks do nothing until a subclass defines them.

    A callback need not be a subclass: any object with some of the hooks will do, and a function of
    the run is called when an epoch ends.

    Hooks are called in the order of the config's list, those with a lower ``order`` first. When
    an epoch ends, ``on_chunk_end`` of all callbacks is called, then ``on_epoch_end``. Each hook
    gets the `Run`: its ``model``, ``config``, ``history``, ``state``, ``epoch`` and
    ``stop(reason)``. The state is on the device and donated to the next chunk: copy what you keep.
    To continue with another state, assign to ``run.state``, or change the arrays of ``run.model``.

    ``state_dict()`` returns a pytree of arrays and numbers, whose structure stays the same. It goes
    into the checkpoints. ``load_state_dict(state)`` is called after ``on_train_start`` in a
    run that is resumed. A subclass that has a state defines both.

    Attributes:
        order: callbacks with a lower number are called first.
        records: names of training metrics that it needs in the history, such as ``'grad_norm'``.
        in_trial_runs: False if a trial run (``fast_dev_run``) leaves it out, because it writes
            files or needs several epochs.

    Example:
        >>> from thinkml.training import Callback, TrainingConfig
        >>> class StopAt(Callback):
        ...     def on_epoch_end(self, run):
        ...         if run.history['loss'][-1] < 0.01:
        ...             run.stop('the loss is below 0.01')
        >>> config = TrainingConfig(callbacks=[StopAt()])
    """

    order: int = 0
    records: tuple[str, ...] = ()
    in_trial_runs: bool = True

    def fresh(self) -> 'Callback':
        """Returns the object that a new run uses: this one, unless a subclass makes a copy."""
        return self

    def check(self, metric_names: tuple[str, ...]) -> None:
        """Raises a `ConfigError` if it can not work in a run that records these metrics."""

    def on_train_start(self, run: Any) -> None:
        """Runs before the first step."""

    def on_chunk_end(self, run: Any) -> None:
        """Runs after each chunk of steps."""

    def on_epoch_end(self, run: Any) -> None:
        """Runs after each epoch, once its metrics are in the history."""

    def on_train_end(self, run: Any) -> None:
        """Runs at the end, also after an interruption or an error."""

    def state_dict(self) -> PyTree:
        """Returns what it remembers, for checkpoints."""
        return {}

    def load_state_dict(self, state: PyTree) -> None:
        """Continues from what `state_dict` returned."""


class BuiltInCallback(Callback):
    """A callback of ThinkML: each run has a copy, since one config may be used by several runs."""

    in_trial_runs = False

    def fresh(self) -> 'Callback':
        """Returns a copy."""
        return copy.copy(self)


def has_state(callback: Any) -> bool:
    """Returns True if a callback remembers something that goes into checkpoints."""
    method = getattr(type(callback), 'state_dict', None) or getattr(callback, 'state_dict', None)
    return method is not None and method is not Callback.state_dict


def has_hooks(callback: Any) -> bool:
    """Returns True for an object with hooks, False for a plain function of the run."""
    return any(hasattr(callback, hook) for hook in HOOKS)
