"""Callback: the base class of callbacks, and the names of those that ThinkML has."""

import copy
from typing import Any

HOOKS = ('on_train_start', 'on_chunk_end', 'on_epoch_end', 'on_train_end')

# The class of each name, by its path: these modules import configs, which check the names.
CALLBACKS = {
    'checkpoint': 'thinkml.training.callbacks.checkpoint:Checkpoint',
    'csv': 'thinkml.training.callbacks.loggers:CSVLogger',
    'device_stats': 'thinkml.training.callbacks.device_stats:DeviceStats',
    'early_stopping': 'thinkml.training.callbacks.early_stopping:EarlyStopping',
    'lr_monitor': 'thinkml.training.callbacks.loggers:LearningRateMonitor',
    'profiler': 'thinkml.training.callbacks.profiler:Profiler',
    'tensorboard': 'thinkml.training.callbacks.loggers:TensorBoard',
    'throughput': 'thinkml.training.callbacks.throughput:Throughput',
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

    A callback that has a state defines ``state_dict()``, which returns a pytree of arrays and
    numbers whose structure stays the same, and ``load_state_dict(state)``. The state goes into the
    checkpoints, and is loaded after ``on_train_start`` in a run that is resumed.

    Attributes:
        order: callbacks with a lower number are called first.
        records: names of training metrics that it needs in the history, such as ``'grad_norm'``.
            A custom step records its own values alone.
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


class BuiltInCallback(Callback):
    """A callback of ThinkML: each run has a copy, since one config may be used by several runs."""

    in_trial_runs = False

    def fresh(self) -> 'Callback':
        """Returns a copy."""
        return copy.copy(self)


def has_hooks(callback: Any) -> bool:
    """Returns True for an object with hooks, False for a plain function of the run."""
    return any(hasattr(callback, hook) for hook in HOOKS)


def hook_of(callback: Any, name: str) -> Any:
    """Returns a hook that a callback defines; None for those of `Callback`, which do nothing."""
    method = getattr(callback, name, None)
    is_default = getattr(method, '__func__', None) is getattr(Callback, name)
    return None if is_default else method
