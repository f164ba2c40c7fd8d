"""Checkpoints of a run: when they are due, what is in them, and how a run continues from one."""

import copy
import time
from pathlib import Path
from typing import Any, TypeGuard

import jax
import numpy as np

from thinkml.checkpoint import Checkpointer, filesystem, has_checkpoints, is_checkpoint
from thinkml.core import Position
from thinkml.core.parallel.multiprocess import all_gather, broadcast_number, broadcast_result
from thinkml.errors import (
    CheckpointError,
    ConfigError,
    problems,
    warn_user,
)
from thinkml.model_record import record_of
from thinkml.monitoring import History
from thinkml.paths import local_directory
from thinkml.training.callback import has_state
from thinkml.training.callbacks.checkpoint import Checkpoint
from thinkml.training.function_digests import changed_functions
from thinkml.training.metric_monitor import MonitoringCallback, monitor_for
from thinkml.training.run import EpochEnd, Run
from thinkml.training.run_directory import is_lost, new_directory, newest_directory


class Checkpoints:
    """The checkpoints of one run.

    Args:
        settings: when they are due and how many stay.
        directory: of all runs, or of the one to resume, where the settings name none.
        resume: whether to go on with the newest run there.
        metric_names: the names an epoch records.

    Raises:
        CheckpointError: if nothing can be written there, another process trains the run, or there
            are checkpoints to resume from and none is sound.
        ConfigError: if the metric that tells the best is not recorded, or the directory is that of
            one run and a new one is to begin.
    """

    def __init__(
        self,
        settings: Checkpoint,
        directory: str | Path,
        resume: bool,
        metric_names: tuple[str, ...],
    ):
        self._settings = settings
        self._metric_names = metric_names
        self._best = self._best_before = monitor_for(settings.monitor, settings.mode, metric_names)
        try:
            root = (
                local_directory(directory, 'checkpoint_dir')
                if settings.directory is None
                else local_directory(settings.directory)
            )
        except ConfigError as error:  # there is a file
            raise CheckpointError(str(error)) from error
        self._lock: int | None = None
        directory = broadcast_result(lambda: str(self._claimed(root, resume)))
        try:
            self._checkpointer = Checkpointer(directory, keep=settings.keep)
            found = self._checkpointer.latest_sound() if resume else None
        except BaseException:
            self.close()
            raise
        self._found = None if found is None else (found, self._checkpointer.metadata(found))
        self._saved_step = -1
        self._saved_at = time.monotonic()

    def _claimed(self, root: Path, resume: bool) -> Path:
        """The directory of this run, locked, so that no other process trains the same run."""
        try:
            directory = _directory_to_resume(root, resume)
            if directory is not None:
                self._lock = filesystem.lock(directory)
                if self._lock is not None:
                    return directory
                if has_checkpoints(directory):
                    raise CheckpointError(
                        f'resume: the run in {directory} is being trained by another process or '
                        'thread. Wait until it has ended, or begin a new run with resume=False.'
                    )
            directory = new_directory(root)
            self._lock = filesystem.lock(directory)
        except CheckpointError:
            raise
        except OSError:  # the same place can not be opened, which `Checkpointer` words
            return root / 'run-1'
        return directory

    def close(self) -> None:
        """Lets other processes train the run."""
        filesystem.unlock(self._lock)
        self._lock = None

    @property
    def directory(self) -> Path:
        """Where this run's checkpoints are."""
        return self._checkpointer.directory

    @property
    def border_every(self) -> int | None:
        """Steps after which a dispatch must end."""
        return self._settings.every_steps

    @property
    def resumed_settings(self) -> dict[str, Any] | None:
        """The `Run.settings` of the run to go on with; None where a run begins."""
        return None if self._found is None else self._found[1]['settings']

    def check_same_run(
        self,
        settings: dict[str, Any],
        callbacks: list[Any],
        functions: dict[str, str],
        *,
        fixed_length: bool,
    ) -> None:
        """Compares a run with the one it is to go on with, if there is one.

        Args:
            settings: of the run, see `Run`.
            callbacks: of the run.
            functions: from `function_digests`.
            fixed_length: whether the learning rate depends on how long the run is.

        Raises:
            ConfigError: if they are different runs; names each difference.
        """
        self._functions = functions
        self._watched = self._watched_by(callbacks)
        if self._found is None:
            return
        _, saved = self._found
        found = _differences(saved['settings'], settings, fixed_length)
        found += changed_functions(saved.get('functions', {}), functions)
        found += _changed_monitors(saved.get('watched', {}), self._watched)
        before, now = sorted(saved['callbacks']), sorted(_stateful(callbacks))
        if before != now:
            found.append(
                f'callbacks: those with a state are {_listed(before)} in the checkpoint, '
                f'{_listed(now)} now.'
            )
        if found:
            headline = (
                f'resume: the run in {self.directory} is another one. Train with what it was begun '
                'with, pass the directory of the run you mean as checkpoint_dir, or begin a new '
                'run with resume=False:'
            )
            raise ConfigError(problems(headline, found))

    def _watched_by(self, callbacks: list[Any]) -> dict[str, str]:
        """The metric each of ours watches, and the mode, by the name of the callback."""
        watching = {
            name: callback.monitor_among(self._metric_names)
            for name, callback in _stateful(callbacks).items()
            if isinstance(callback, MonitoringCallback)
        }
        watching['Checkpoint'] = self._best
        return {name: f'{metric.name} ({metric.mode})' for name, metric in watching.items()}

    def check_space(self, state: Any) -> None:
        """Raises a `CheckpointError` if the disk has no room for a state like this."""
        leaves = [leaf for leaf in jax.tree.leaves(state) if hasattr(leaf, 'nbytes')]
        self._checkpointer.check_space(sum(leaf.nbytes for leaf in leaves))

    def restore(self, run: Run, empty_metrics: Any) -> dict[str, list[Any]]:
        """Puts a run to where its newest sound checkpoint is, if it has any.

        Args:
            run: as it is before its first step.
            empty_metrics: an epoch's metrics before anything was measured.

        Returns:
            what `load_states` takes; empty where there is no checkpoint.

        Raises:
            CheckpointError: if the model or the optimizer have other arrays than the saved ones.
        """
        if self._found is None:
            return {}
        step, saved = self._found
        template = {
            'state': run.state,
            'metrics': empty_metrics if saved['step'] else None,
            'step_loss': np.zeros(saved['steps'], np.float32),
            'callbacks': {
                name: [np.empty(shape, dtype) for shape, dtype in leaves]
                for name, leaves in saved['callbacks'].items()
            },
        }
        try:
            arrays, _ = self._checkpointer.restore(step, template)
        except CheckpointError as error:
            raise CheckpointError(
                f'resume: step {step} in {self.directory} does not fit this model and optimizer. '
                f'Make them as they were, or begin a new run with resume=False. {error}'
            ) from error
        run.state = arrays['state']
        run.position = Position(saved['epoch'], saved['step'], arrays['metrics'], saved['source'])
        run.history = History.from_dict(saved['history'], arrays['step_loss'])
        run.epoch, run.best_val_loss = run.history.epochs, saved['best_val_loss']
        run.stop_reason, run.resumed = saved['stop_reason'], True
        run.continued_at = saved.get('continued_at', 0)
        ends = saved.get('epoch_ends', [None] * run.epoch)  # older checkpoints have none
        run.epoch_ends = [None if end is None else EpochEnd(*end) for end in ends]
        run.logs = saved.get('logs', {})
        self._best.best, self._best.epoch = saved['best'], saved['best_epoch']
        self._saved_step = step
        return arrays['callbacks']

    @property
    def watched_name(self) -> str:
        """The name of the metric that tells the best."""
        return self._best.name

    def save_if_due(self, run: Run) -> None:
        """Saves the run if it is time to."""
        settings = self._settings
        minutes = (time.monotonic() - self._saved_at) / 60
        if (
            (_ends_epoch(run) and run.epoch % settings.every_epochs == 0)
            or (settings.every_steps is not None and run.step % settings.every_steps == 0)
            or (
                settings.every_minutes is not None
                and broadcast_number(minutes >= settings.every_minutes)
            )
        ):
            self.save(run)

    def save(self, run: Run) -> None:
        """Saves the run, unless that step is saved already.

        A failure is a warning: training goes on, and the next checkpoint is tried.
        """
        self.wait()  # first: if the one before has failed, this one must not fail with it
        if run.step == self._saved_step:
            return
        self._best_before = copy.copy(self._best)
        best = _ends_epoch(run) and self._best.improves(run)
        self._saved_at = time.monotonic()
        self._saved_step = run.step
        try:
            self._checkpointer.save(run.step, _arrays_of(run), self._metadata_of(run), best=best)
        except CheckpointError as error:
            self._failed(error)

    def wait(self) -> None:
        """Waits for what is being written."""
        failure = None
        try:
            self._checkpointer.wait()
        except CheckpointError as error:
            failure = error
        # In all processes alike: each decides by it whether a step is still to be saved.
        failed = [process for process, code in enumerate(all_gather(failure is not None)) if code]
        if failed:
            self._failed(failure or CheckpointError(f'process {failed[0]} could not save.'))

    def end_of(self, run: Run) -> str:
        """Says where a run that ends now is saved, after it was."""
        self.wait()
        if run.step == self._saved_step:
            return f'saved after {run.step:,} steps; resume=True goes on from {self.directory}'
        return f'not saved after {run.step:,} steps; older checkpoints may be in {self.directory}'

    def _metadata_of(self, run: Run) -> dict[str, Any]:
        return {
            'callbacks': {
                name: [[leaf.shape, leaf.dtype.name] for leaf in leaves]
                for name, leaves in _states_of(run.callbacks).items()
            },
            'epoch': run.position.epoch,
            'step': run.position.step,
            'source': run.position.source,
            'steps': run.step,
            'history': run.history.summary(),
            'best_val_loss': run.best_val_loss,
            'stop_reason': run.stop_reason,
            'best': self._best.best,
            'best_epoch': self._best.epoch,
            'settings': run.settings,
            'continued_at': run.continued_at,
            'model': self._described(run),
            'epoch_ends': run.epoch_ends,
            'logs': run.logs,
            'functions': self._functions,
            'watched': self._watched,
        }

    def _described(self, run: Run) -> Any:
        """Returns the model's task and inputs, which its weights are loaded with."""
        from thinkml.models.serialization.json_values import encode  # imports all of thinkml.models

        record = record_of(run.user_model)
        known = {'task': record.task, 'input_spec': record.input_spec}
        values = {name: None if part is None else part.to_dict() for name, part in known.items()}
        return encode(values, ('record',))

    def _failed(self, error: CheckpointError) -> None:
        # Neither a step nor a best that is not on disk may keep the next one from it.
        self._saved_step, self._best = -1, self._best_before
        warn_user(f'{error} The training goes on; what it learns is in memory.')


def _directory_to_resume(root: Path, resume: bool) -> Path | None:
    """The run that ``checkpoint_dir`` names, or the newest one in it; None to begin a new one."""
    if is_checkpoint(root):
        raise ConfigError(
            f'checkpoint_dir: {root} is one checkpoint of a run. Pass the directory of the run, '
            f'{root.parent}, or that of all runs.'
        )
    if resume and is_lost(root, has_checkpoints):
        newest = newest_directory(root.parent, has_checkpoints)
        raise ConfigError(
            f'checkpoint_dir: there is no run in {root}. Pass the directory of one that exists, '
            f'such as {newest}, or that of all runs, {root.parent}.'
        )
    if not has_checkpoints(root):
        return newest_directory(root, has_checkpoints) if resume else None
    if not resume:
        raise ConfigError(
            f'checkpoint_dir: {root} is the directory of one run, which resume=True continues. For '
            f'a new run pass the directory of all runs, such as {root.parent}.'
        )
    return root


def _ends_epoch(run: Run) -> bool:
    return run.position.step == 0


def load_states(callbacks: list[Any], saved: dict[str, list[Any]]) -> None:
    """Gives callbacks back what they remembered, after they were started.

    Args:
        callbacks: of the run.
        saved: from `Checkpoints.restore`, of the same callbacks; empty for nothing.

    Raises:
        ConfigError: if a state has another structure than the saved one, or can't be saved.
    """
    now = _states_of(callbacks)  # so that what can't be saved is told before the first step
    for name, leaves in saved.items():
        if len(now[name]) != len(leaves):
            raise ConfigError(
                f'callbacks: the state_dict() of {name} has {len(now[name])} values, expected '
                f'{len(leaves)} as in the checkpoint: its structure must stay the same.'
            )
        callback = _stateful(callbacks)[name]
        before, structure = jax.tree.flatten(callback.state_dict())
        restored = [_as_before(*pair) for pair in zip(before, leaves, strict=True)]
        callback.load_state_dict(jax.tree.unflatten(structure, restored))


def _stateful(callbacks: list[Any]) -> dict[str, Any]:
    """The callbacks whose state goes into the checkpoints, by a name that each run gives them."""
    found: dict[str, Any] = {}
    for callback in callbacks:
        if has_state(callback):
            name = type(callback).__name__
            count = sum(known.split(' ')[0] == name for known in found)
            found[f'{name} {count + 1}' if count else name] = callback
    return found


def _states_of(callbacks: list[Any]) -> dict[str, list[Any]]:
    """The leaves of their states: the structure is known to them alone."""
    return {
        name: [_as_array(name, leaf) for leaf in jax.tree.leaves(callback.state_dict())]
        for name, callback in _stateful(callbacks).items()
    }


def _arrays_of(run: Run) -> dict[str, Any]:
    return {
        'state': run.state,
        'metrics': run.position.metrics,
        'step_loss': run.history.step_loss,
        'callbacks': _states_of(run.callbacks),
    }


def _as_array(name: str, value: Any) -> Any:
    """Python's numbers with all their digits, which JAX would cut, and keys as numbers."""
    if isinstance(value, bool | int | float):
        return np.asarray(value)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise ConfigError(
            f'callbacks: the state_dict() of {name} holds a {type(value).__name__}, expected '
            'arrays and numbers.'
        )
    return jax.random.key_data(value) if _is_key(value) else value


def _as_before(before: Any, restored: Any) -> Any:
    if isinstance(before, bool | int | float | np.generic):
        return type(before)(restored)
    if _is_key(before):
        return jax.random.wrap_key_data(restored, impl=jax.random.key_impl(before))
    return restored


def _is_key(value: Any) -> TypeGuard[jax.Array]:
    return isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)


# What may be another in the run that goes on.
MAY_CHANGE = (
    'callbacks',
    'checkpoint_dir',
    'device_data_bytes',
    'epochs',
    'max_steps',
    'max_time',
    'on_nan',
    'remat',
    'steps_per_dispatch',
)
_LENGTH = ('epochs', 'max_steps')


def _differences(saved: dict[str, Any], now: dict[str, Any], fixed_length: bool) -> list[str]:
    """What two runs differ in and must not, a sentence each."""
    free = [name for name in MAY_CHANGE if not (fixed_length and name in _LENGTH)]
    saved, now = _flat(saved), _flat(now)
    different = [
        name
        for name in saved | now
        if name not in free and (name in saved, saved.get(name)) != (name in now, now.get(name))
    ]
    return [_difference(name, saved, now) for name in different]


def _difference(name: str, saved: dict[str, Any], now: dict[str, Any]) -> str:
    why = ''
    if name in _LENGTH:
        why = f', which lr_schedule={now["lr_schedule"]!r} depends on'
    elif name.endswith('.sha256'):
        why = ': other values, another order or other weights'
    return f'{name}: {saved.get(name)!r} in the checkpoint, {now.get(name)!r} now{why}.'


def _changed_monitors(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names callbacks that would compare a metric with the best of another, a sentence each."""
    return [
        f'callbacks: {name} watched {saved[name]} in the checkpoint, {now[name]} now: the best '
        'value so far is of another metric.'
        for name in saved.keys() & now.keys()
        if saved[name] != now[name]
    ]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Each value by its name, those in a dict by both names."""
    return {
        f'{name}.{part}' if part else name: value
        for name, values in settings.items()
        for part, value in (values.items() if isinstance(values, dict) else [('', values)])
    }


def _listed(names: list[str]) -> str:
    return ', '.join(names) or 'none'
