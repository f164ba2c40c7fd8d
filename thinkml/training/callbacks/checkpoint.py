"""Checkpoint: when a run is saved, and how many checkpoints are kept."""

import dataclasses
from pathlib import Path

from thinkml.errors import ConfigError, is_number, is_whole, problems
from thinkml.paths import path_problem
from thinkml.training.callback import BuiltInCallback
from thinkml.training.metric_monitor import Mode, monitor_problems


@dataclasses.dataclass(unsafe_hash=True)
class Checkpoint(BuiltInCallback):
    """A callback that saves the state of a run, so that ``train(..., resume=True)`` continues it.

    Each run has its directory, ``run-1``, ``run-2`` and so on. It keeps the newest checkpoints, and
    the best of those that were saved at the end of an epoch or of the run. They are written in the
    background while training continues. Another one is written at the end of the run, when it is
    interrupted (Ctrl-C), and when the process is asked to end (SIGTERM).

    Attributes:
        directory: the directory; None for the config's ``checkpoint_dir``.
        keep: how many of the newest checkpoints are kept.
        every_epochs: epochs from one checkpoint to the next.
        every_steps: also after so many steps; None for no.
        every_minutes: also after so many minutes; None for no.
        monitor: the metric that tells the best checkpoint; None for ``'val_loss'``, the loss of the
            first of several validation sets, or ``'loss'`` without validation data.
        mode: ``'min'`` or ``'max'``; None for what suits the metric.

    Raises:
        ConfigError: for impossible settings.

    Example:
        >>> from thinkml.training import Checkpoint, TrainingConfig
        >>> config = TrainingConfig(callbacks=[Checkpoint('runs/digits', every_minutes=10)])
    """

    directory: str | Path | None = None
    keep: int = 2
    every_epochs: int = 1
    every_steps: int | None = None
    every_minutes: float | None = None
    monitor: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        found = [
            f'{name}: got {value!r}, expected a whole number of at least 1.'
            for name in ('keep', 'every_epochs', 'every_steps')
            if not (is_whole(value := getattr(self, name)) and value >= 1)
            and not (name == 'every_steps' and value is None)
        ]
        found += monitor_problems(self.monitor, self.mode)
        if self.directory is not None and (problem := path_problem(self.directory, 'directory')):
            found.append(problem)
        minutes = self.every_minutes
        if minutes is not None and not (is_number(minutes) and minutes > 0):
            found.append(f'every_minutes: got {minutes!r}, expected a number above 0.')
        if found:
            raise ConfigError(problems('Checkpoint can not be used:', found))
