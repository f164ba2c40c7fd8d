"""Loggers: callbacks that write metrics to TensorBoard, CSV, W&B, MLflow or the history."""

import contextlib
import dataclasses
import functools
import itertools
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from thinkml.checkpoint.filesystem import open_directory
from thinkml.core.parallel.multiprocess import is_first_process
from thinkml.errors import ConfigError, warn_user
from thinkml.monitoring import (
    CSVWriter,
    EventWriter,
    History,
    MlflowWriter,
    WandbWriter,
    Writer,
)
from thinkml.monitoring.writers import check_table, read_rows
from thinkml.paths import local_directory
from thinkml.training.callback import BuiltInCallback
from thinkml.training.run import Run
from thinkml.training.run_directory import RunTable, new_directory, newest_directory


class LoggerCallback(BuiltInCallback):
    """The base class of loggers, which write each epoch's values in the first process.

    Attributes:
        place: the file or directory that it writes, set by `check`; None for a service.
    """

    records = ('grad_norm',)
    place: Path | None = None

    def find_place(self) -> Path | None:
        """Returns the file or directory that it writes; None for a service.

        Raises:
            ConfigError: if it can't be written.
        """
        raise NotImplementedError

    def open(self, run: Run) -> Writer:
        """Returns a writer that starts at ``run.step`` steps."""
        raise NotImplementedError

    def check(self, metric_names: tuple[str, ...]) -> None:
        """Raises a `ConfigError` if its file or directory can't be written."""
        self.place = self.find_place()

    def on_train_start(self, run: Run) -> None:
        try:
            self._writer = self.open(run) if is_first_process() else None
        except OSError as error:
            raise ConfigError(
                f'callbacks: {type(self).__name__} can not write to its destination ({error}). '
                'Choose another path, or make this one writable and free some space.'
            ) from error

    def on_epoch_end(self, run: Run) -> None:
        if self._writer is not None:
            values = _with_rate(run.learning_rate, run.history.last())
            with self._failures(f'epoch {run.epoch}'):
                self._writer.write(run.step, values)

    def on_train_end(self, run: Run) -> None:
        if self._writer is None:
            return
        with self._failures('the results'):
            if run.history.epochs:
                self._writer.hyperparameters(run.settings, run.history.last())
        with self._failures('its last values'):
            self._writer.close()

    @contextlib.contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """Turns errors into warnings: training is worth more than its log."""
        try:
            yield
        except OSError as error:
            warn_user(
                f'callbacks: {type(self).__name__} could not write {what} ({error}). The '
                'model and the history are complete.'
            )


@dataclasses.dataclass(unsafe_hash=True)
class TensorBoard(LoggerCallback):
    """A logger that writes metrics, learning rate and gradient norm to TensorBoard event files.

    Attributes:
        directory: the directory of all runs, each in ``run-1``, ``run-2`` and so on; view them with
            ``tensorboard --logdir logs``. A resumed run continues its directory.
    """

    directory: str | Path = 'logs'

    def find_place(self) -> Path | None:
        """Returns the directory.

        Raises:
            ConfigError: if the path can't be a directory.
        """
        return local_directory(self.directory)

    def open(self, run: Run) -> Writer:
        """Returns a writer that starts at ``run.step`` steps."""
        root, key = local_directory(self.directory), f'directory {self.directory}'
        run_id = run.logs.setdefault('id', uuid.uuid4().hex)
        earlier = _earlier_epochs(run)
        directory = _directory_of_run(root, run.logs.get(key), run_id)
        if directory is None and earlier is None:
            directory = newest_directory(root)
        directory = directory or new_directory(root)
        run.logs[key] = directory.name
        open_directory(directory)  # raises an error now, not after the first epoch
        if earlier is None:
            return EventWriter(directory, run.history.epoch_ends[-1], run_id)
        writer = EventWriter(directory, run_id=run_id)
        for step, values, time in earlier:
            writer.write(step, values, time)
        return writer


def _directory_of_run(root: Path, name: str | None, run_id: str) -> Path | None:
    """Returns the directory with a run's event files, else the one of that name without files."""
    for path in root.glob(f'run-*/*/*.tfevents.*{run_id}'):
        return path.parents[1]
    if name is None or any((root / name).rglob('*.tfevents.*')):
        return None
    return root / name


@dataclasses.dataclass(unsafe_hash=True)
class CSVLogger(LoggerCallback):
    """A logger that writes metrics, learning rate and gradient norm to a CSV table.

    Attributes:
        path: the path of the file. A new run replaces it; the table of the run before is moved to
            ``history-1.csv``, the next one to ``history-2.csv`` and so on. A resumed run continues
            its table.
    """

    path: str | Path = 'logs/history.csv'

    def find_place(self) -> Path | None:
        """Returns the path of the table.

        Raises:
            ConfigError: if the file can't be a table, or is something else.
        """
        return check_table(self.path)

    def open(self, run: Run) -> Writer:
        """Returns a writer that starts at ``run.step`` steps."""
        path, key = check_table(self.path), f'path {self.path}'
        earlier = _earlier_epochs(run)
        is_own = functools.partial(_is_table_of, run.history) if run.resumed else None
        table = RunTable(path, run.logs.get(key), is_own)
        run.logs[key] = table.name
        if earlier is None:
            return _MovingTable(table, CSVWriter(table.path, run.history.epoch_ends[-1]))
        writer = CSVWriter(table.path)
        for step, values, _ in earlier:
            writer.write(step, values)
        return _MovingTable(table, writer)


def _is_table_of(history: History, path: Path) -> bool:
    """Returns True if the rows of a table match the epochs that a run has recorded."""
    losses = dict(zip(map(str, history.epoch_ends), history.get('loss', ()), strict=False))
    rows = read_rows(path)
    recorded = [row for row in rows if int(row['step']) <= max(history.epoch_ends, default=0)]
    if rows and losses and not recorded:
        return False
    return all(row.get('loss') == str(losses.get(row['step'])) for row in recorded)


class _MovingTable:
    """A writer of a run's table, which a later run may move."""

    def __init__(self, table: RunTable, writer: CSVWriter):
        self._table, self._writer = table, writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.path = self._table.path
        self._writer.write(step, values)

    def hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        self._writer.hyperparameters(values, metrics)

    def close(self) -> None:
        self._writer.close()
        if not read_rows(self._table.path):  # the run ended before its first epoch
            self._table.path.unlink(missing_ok=True)


@dataclasses.dataclass(unsafe_hash=True)
class WandB(LoggerCallback):
    """A logger that sends each epoch's values and the settings to Weights & Biases.

    Attributes:
        project: the project of the run; None for W&B's default.
        settings: further arguments of ``wandb.init``, such as ``{'mode': 'offline'}``.

    Raises:
        ConfigError: when training starts, if the package ``wandb`` is not installed.
    """

    project: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def find_place(self) -> None:
        """Returns None: W&B checks its arguments itself."""

    def open(self, run: Run) -> Writer:
        """Returns a writer that starts at ``run.step`` steps."""
        writer = WandbWriter(self.project, **self.settings)
        # A run that the user names continues in W&B, which has its epochs already.
        is_named = not self.settings.keys().isdisjoint(('id', 'resume'))
        return writer if is_named else _with_earlier(writer, run)


@dataclasses.dataclass(unsafe_hash=True)
class MLflow(LoggerCallback):
    """A logger that sends each epoch's values and the settings to MLflow.

    Attributes:
        experiment: the name of the experiment; None for MLflow's default.
        tracking_uri: a server or a local store; None for MLflow's present setting.

    Raises:
        ConfigError: when training starts, if the package ``mlflow`` is not installed.
    """

    experiment: str | None = None
    tracking_uri: str | None = None

    def find_place(self) -> None:
        """Returns None: MLflow checks its arguments itself."""

    def open(self, run: Run) -> Writer:
        """Returns a writer that starts at ``run.step`` steps."""
        return _with_earlier(MlflowWriter(self.experiment, self.tracking_uri), run)


def _with_earlier(writer: WandbWriter | MlflowWriter, run: Run) -> Writer:
    """Writes the recorded epochs of a resumed run to a service's run if that is new."""
    if writer.is_ours:
        for step, values, _ in _earlier_epochs(run) or ():
            writer.write(step, values)
    return writer


class _Epoch(NamedTuple):
    step: int
    values: dict[str, float]
    time: float


def _earlier_epochs(run: Run) -> list[_Epoch] | None:
    """Returns the values that loggers wrote for the recorded epochs of a resumed run.

    All of them are written again, which replaces values that were lost by a kill, a deletion or
    another run. None if a checkpoint of an older version does not hold them; then the files on disk
    are kept.
    """
    earlier = []
    for step, values, end in zip(
        run.history.epoch_ends, run.history[:], run.epoch_ends, strict=True
    ):
        if end is None:
            return None
        recorded = dict(itertools.islice(values.items(), end.num_metrics))
        earlier.append(_Epoch(step, _with_rate(end.learning_rate, recorded), end.time))
    return earlier


def _with_rate(rate: float | None, values: dict[str, float]) -> dict[str, float]:
    """Returns an epoch's values, with the learning rate unless the optimizer has its own."""
    return values if rate is None else values | {'learning_rate': rate}


class LearningRateMonitor(BuiltInCallback):
    """A callback that records each epoch's last learning rate as ``history['learning_rate']``.

    Warns:
        ThinkMLWarning: when training starts, if the optimizer does not expose its rate.
    """

    def on_train_start(self, run: Run) -> None:
        if run.learning_rate is None:
            warn_user(
                "callbacks: 'lr_monitor' records nothing, since the optimizer has its learning "
                'rate built in. Pass a name, a function learning_rate -> transformation, or one '
                'made with optax.inject_hyperparams.'
            )

    def on_epoch_end(self, run: Run) -> None:
        rate = run.learning_rate
        if rate is not None:
            run.history.add_to_epoch({'learning_rate': rate})
