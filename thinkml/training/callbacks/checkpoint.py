"""Checkpoint: the settings of a run's checkpoints."""

import dataclasses
from pathlib import Path

from thinkml.errors import ConfigError, is_number, is_whole, problems
from thinkml.paths import path_problem
from thinkml.training.callback import BuiltInCallback
from thinkml.training.metric_monitor import Mode, monitor_problems


@dataclasses.dataclass(unsafe_hash=True)
class Checkpoint(BuiltInCallback):
    """Saves the whole state of a run, from which ``train(..., resume=True)`` goes on.

    Each run has a directory of its own, ``run-1``, ``run-2`` and so on, in which the newest
    checkpoints stay, and the best of those that were saved at the end of an epoch. They are written
    in the background while training goes on. One is written at the end of the run too, when it is
    interrupted (Ctrl-C), and when the process is told to end (SIGTERM).

    Attributes:
        directory: in place of the config's ``checkpoint_dir``; None for that.
        keep: how many of the newest stay.
        every_epochs: epochs from one checkpoint to the next.
        every_steps: besides, steps from one to the next; None for none.
        every_minutes: besides, minutes from one to the next; None for none.
        monitor: the metric that tells which is best; None is ``'val_loss'``, or ``'loss'`` without
            validation data.
        mode: ``'min'`` or ``'max'``; None is what the metric asks for.

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
