"""What writes a run's values somewhere: event files, a table, W&B, MLflow, the history."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from thinkml.checkpoint.disk import open_directory
from thinkml.core.processes import is_first_process
from thinkml.errors import warn_user
from thinkml.monitoring import CSVWriter, EventWriter, MlflowWriter, WandbWriter, Writer
from thinkml.training.run import Run
from thinkml.training.run_directory import new_directory, newest_directory


class Logger(Protocol):
    """Where a run's values go. `Logging` makes a callback of it."""

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        ...


@dataclasses.dataclass(unsafe_hash=True)
class TensorBoard:
    """Writes each epoch's values, the learning rate and the gradients' norm to event files.

    Attributes:
        directory: where to, each run into ``run-1``, ``run-2`` and so on; look at them with
            ``tensorboard --logdir logs``.
    """

    directory: str | Path = 'logs'

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        root = Path(self.directory).absolute()
        directory = (newest_directory(root) if run.resumed else None) or new_directory(root)
        open_directory(directory)  # an error now, not after the first epoch
        return EventWriter(directory, start_step=_recorded_steps(run))


@dataclasses.dataclass(unsafe_hash=True)
class CSVLogger:
    """Writes each epoch's values, the learning rate and the gradients' norm to a table.

    Attributes:
        path: of the file. A new run replaces it; one that is resumed goes on with it.
    """

    path: str | Path = 'logs/history.csv'

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        return CSVWriter(self.path, start_step=_recorded_steps(run))


@dataclasses.dataclass(unsafe_hash=True)
class WandB:
    """Sends each epoch's values and the settings to Weights & Biases.

    Attributes:
        project: where the run is listed; None is W&B's own default.
        settings: anything else for ``wandb.init``, such as ``{'mode': 'offline'}``.

    Raises:
        ConfigError: when training starts, if the package ``wandb`` is not installed.
    """

    project: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        return WandbWriter(self.project, **self.settings)


@dataclasses.dataclass(unsafe_hash=True)
class MLflow:
    """Sends each epoch's values and the settings to MLflow.

    Attributes:
        experiment: its name; None is MLflow's default.
        tracking_uri: a server or a local store; None is what MLflow is set to.

    Raises:
        ConfigError: when training starts, if the package ``mlflow`` is not installed.
    """

    experiment: str | None = None
    tracking_uri: str | None = None

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        return MlflowWriter(self.experiment, self.tracking_uri)


def _recorded_steps(run: Run) -> int:
    """Steps of the epochs that a run which goes on has recorded: what came later comes again."""
    return run.history.epoch_ends[-1] if run.history.epochs else 0


class Logging:
    """A `Logger` as a callback, of the first process."""

    records = ('grad_norm',)

    def __init__(self, logger: Logger):
        self.logger = logger

    def on_train_start(self, run: Run) -> None:
        self._writer = self.logger.open(run) if is_first_process() else None

    def on_epoch_end(self, run: Run) -> None:
        if self._writer is None:
            return
        rate = run.learning_rate
        values = {} if rate is None else {'learning_rate': rate}
        try:
            self._writer.write(run.step, run.history.last() | values)
        except OSError as error:
            warn_user(
                f'callbacks: {type(self.logger).__name__} could not write epoch {run.epoch} '
                f'({error}). The training goes on.'
            )

    def on_train_end(self, run: Run) -> None:
        if self._writer is None:
            return
        if run.history.epochs:
            self._writer.hyperparameters(run.settings, run.history.last())
        self._writer.close()


class LearningRateMonitor:
    """Records the learning rate of each epoch's last step as ``history['learning_rate']``.

    Warns:
        ThinkMLWarning: when training starts, if the optimizer does not tell its rate.
    """

    def on_train_start(self, run: Run) -> None:
        if run.learning_rate is None:
            warn_user(
                "callbacks: 'lr_monitor' records nothing, as the optimizer has its learning rate "
                'built in. Pass a name, a function learning_rate -> transformation, or one made '
                'with optax.inject_hyperparams.'
            )

    def on_epoch_end(self, run: Run) -> None:
        rate = run.learning_rate
        if rate is not None:
            run.history.add_to_epoch({'learning_rate': rate})
