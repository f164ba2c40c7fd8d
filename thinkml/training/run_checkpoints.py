"""Checkpoints of a run: when they are saved, what they contain, and how a run resumes from one."""

import copy
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from thinkml.checkpoint import Checkpointer, filesystem, has_checkpoints, is_checkpoint
from thinkml.core import Position
from thinkml.core.parallel.multiprocess import all_gather, broadcast_number, broadcast_result
from thinkml.errors import (
    CheckpointError,
    ConfigError,
    warn_user,
)
from thinkml.model_record import record_of
from thinkml.monitoring import History
from thinkml.paths import local_directory
from thinkml.training.callback_states import states_of
from thinkml.training.callbacks.checkpoint import Checkpoint
from thinkml.training.metric_monitor import MetricMonitor, monitor_for
from thinkml.training.run import EpochEnd, Run
from thinkml.training.run_directory import is_lost, new_directory, newest_directory
from thinkml.training.same_run import monitored_metrics


class Checkpoints:
    """The checkpoints of one run.

    Args:
        settings: when checkpoints are saved and how many are kept.
        directory: the directory of all runs, or of the run to resume, if the settings name none.
        resume: True continues with the newest run there.
        metric_names: the names that an epoch records.

    Raises:
        CheckpointError: if nothing can be written there, another process trains the run, or there
            are checkpoints to resume from and none is sound.
        ConfigError: if the metric that tells the best is not recorded, or a new run would begin in
            the directory of another one.
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
        """Returns the directory of this run, locked against other processes that train the run."""
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
        except OSError:  # `Checkpointer` raises an error for it that says more
            return root / 'run-1'
        return directory

    def close(self) -> None:
        """Releases the lock of the run's directory."""
        filesystem.unlock(self._lock)
        self._lock = None

    @property
    def directory(self) -> Path:
        """Returns the directory of this run's checkpoints."""
        return self._checkpointer.directory

    @property
    def border_every(self) -> int | None:
        """Returns the number of steps after which a dispatch must end."""
        return self._settings.every_steps

    @property
    def saved(self) -> dict[str, Any] | None:
        """Returns the metadata of the checkpoint to resume from; None if a new run begins."""
        return None if self._found is None else self._found[1]

    @property
    def monitor(self) -> MetricMonitor:
        """Returns the monitor of the metric that tells the best checkpoint."""
        return self._best

    def check_space(self, state: Any) -> None:
        """Raises a `CheckpointError` if the disk has too little space for a state like this."""
        leaves = [leaf for leaf in jax.tree.leaves(state) if hasattr(leaf, 'nbytes')]
        self._checkpointer.check_space(sum(leaf.nbytes for leaf in leaves))

    def restore(self, run: Run, empty_metrics: Any) -> dict[str, list[Any]]:
        """Restores a run from its newest sound checkpoint, if there is one.

        Args:
            run: the run before its first step.
            empty_metrics: an epoch's metrics before the first step.

        Returns:
            The states of the callbacks, for `load_states`; empty without a checkpoint.

        Raises:
            CheckpointError: if the model or the optimizer have other arrays than the saved ones.
        """
        if self._found is None:
            return {}
        step, saved = self._found
        template = {
            'state': run.state,
            'metrics': empty_metrics if saved.get('is_in_period', saved['step'] > 0) else None,
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
        """Returns the name of the metric that tells the best checkpoint."""
        return self._best.name

    def save_if_due(self, run: Run) -> None:
        """Saves the run if a checkpoint is due."""
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
        """Saves the run, unless this step is saved already.

        A failure becomes a warning: training continues, and the next checkpoint is tried.
        """
        self.wait()  # before anything else, so that an earlier failure does not end this save
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

    def mark_if_best(self, run: Run) -> None:
        """Makes the last checkpoint the best one if the epoch that ended after it is the best.

        The checkpoint itself keeps the earlier best value: a run that is resumed from it continues
        the epoch, and its best checkpoint is that of a run that was never stopped.
        """
        self.wait()
        if run.step == self._saved_step and self._best.improves(run):
            try:
                self._checkpointer.mark_best(run.step)
            except CheckpointError as error:
                warn_user(str(error))

    def wait(self) -> None:
        """Waits until everything is written."""
        failure = None
        try:
            self._checkpointer.wait()
        except CheckpointError as error:
            failure = error
        # The same in all processes, since it decides whether a step is saved again.
        failed = [process for process, code in enumerate(all_gather(failure is not None)) if code]
        if failed:
            self._failed(failure or CheckpointError(f'process {failed[0]} could not save.'))

    def end_of(self, run: Run) -> str:
        """Returns where a run that ends now is saved, for a message."""
        self.wait()
        if run.step == self._saved_step:
            return f'saved after {run.step:,} steps; resume=True continues from {self.directory}'
        return f'not saved after {run.step:,} steps; older checkpoints may be in {self.directory}'

    def _metadata_of(self, run: Run) -> dict[str, Any]:
        return {
            'callbacks': {
                name: [[leaf.shape, leaf.dtype.name] for leaf in leaves]
                for name, leaves in states_of(run.callbacks).items()
            },
            'epoch': run.position.epoch,
            'step': run.position.step,
            'source': run.position.source,
            'is_in_period': run.position.metrics is not None,
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
            'functions': run.functions,
            'watched': monitored_metrics(run.callbacks, self._best, self._metric_names),
        }

    def _described(self, run: Run) -> Any:
        """Returns the model's task and inputs, which its weights are loaded with."""
        from thinkml.models.serialization.json_values import encode  # imports all of thinkml.models

        record = record_of(run.user_model)
        known = {'task': record.task, 'input_spec': record.input_spec}
        values = {name: None if part is None else part.to_dict() for name, part in known.items()}
        return encode(values, ('record',))

    def _failed(self, error: CheckpointError) -> None:
        # A step and a best value that are not on disk must not count as saved.
        self._saved_step, self._best = -1, self._best_before
        warn_user(f'{error} The training continues; what it learns is in memory.')


def _directory_to_resume(root: Path, resume: bool) -> Path | None:
    """Returns the run that ``checkpoint_dir`` names, or the newest in it; None for a new run."""
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
    return run.history.epoch_ends[-1:] == [run.step]


def _arrays_of(run: Run) -> dict[str, Any]:
    return {
        'state': run.state,
        'metrics': run.position.metrics,
        'step_loss': run.history.step_loss,
        'callbacks': states_of(run.callbacks),
    }
