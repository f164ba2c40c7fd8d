"""What writes a run's values somewhere: event files, a table, W&B, MLflow, the history."""

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
    """The base of loggers: callbacks that write each epoch's values, in the first process.

    Attributes:
        place: the file or directory that it writes, once it is checked; None for a service.
    """

    records = ('grad_norm',)
    place: Path | None = None

    def find_place(self) -> Path | None:
        """Returns the file or directory that it will write; None for a service.

        Raises:
            ConfigError: if nothing can be written there.
        """
        raise NotImplementedError

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        raise NotImplementedError

    def check(self, metric_names: tuple[str, ...]) -> None:
        """Raises a `ConfigError` if nothing can be written where it is to write."""
        self.place = self.find_place()

    def on_train_start(self, run: Run) -> None:
        try:
            self._writer = self.open(run) if is_first_process() else None
        except OSError as error:
            raise ConfigError(
                f'callbacks: {type(self).__name__} can not write where it is to ({error}). '
                'Choose another place, or make it writable and free some space.'
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
        """Makes a warning of an error: a training is worth more than its log."""
        try:
            yield
        except OSError as error:
            warn_user(
                f'callbacks: {type(self).__name__} could not write {what} ({error}). The '
                'model and the history are whole.'
            )


@dataclasses.dataclass(unsafe_hash=True)
class TensorBoard(LoggerCallback):
    """Writes each epoch's values, the learning rate and the gradients' norm to event files.

    Attributes:
        directory: where to, each run into ``run-1``, ``run-2`` and so on; look at them with
            ``tensorboard --logdir logs``. A run that is resumed continues its own.
    """

    directory: str | Path = 'logs'

    def find_place(self) -> Path | None:
        """Returns the directory.

        Raises:
            ConfigError: if it can't be one.
        """
        return local_directory(self.directory)

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        root, known = local_directory(self.directory), f'directory {self.directory}'
        run_id = run.logs.setdefault('id', uuid.uuid4().hex)
        earlier = _earlier_epochs(run)
        directory = _directory_of_run(root, run.logs.get(known), run_id)
        if directory is None and earlier is None:
            directory = newest_directory(root)
        directory = directory or new_directory(root)
        run.logs[known] = directory.name
        open_directory(directory)  # an error now, not after the first epoch
        if earlier is None:
            return EventWriter(directory, run.history.epoch_ends[-1], run_id)
        writer = EventWriter(directory, run_id=run_id)
        for step, values, time in earlier:
            writer.write(step, values, time)
        return writer


def _directory_of_run(root: Path, name: str | None, run_id: str) -> Path | None:
    """Returns the directory with a run's event files, else the one of its name if it has none."""
    for path in root.glob(f'run-*/*/*.tfevents.*{run_id}'):
        return path.parents[1]
    if name is None or any((root / name).rglob('*.tfevents.*')):
        return None
    return root / name


@dataclasses.dataclass(unsafe_hash=True)
class CSVLogger(LoggerCallback):
    """Writes each epoch's values, the learning rate and the gradients' norm to a table.

    Attributes:
        path: of the file. A new run takes its place; the table of the run before stays beside it,
            as ``history-1.csv``, the one after that as ``history-2.csv`` and so on. A run that is
            resumed continues its own table.
    """

    path: str | Path = 'logs/history.csv'

    def find_place(self) -> Path | None:
        """Returns the path of the table.

        Raises:
            ConfigError: if the file can't be a table, or is something else.
        """
        return check_table(self.path)

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        path, known = check_table(self.path), f'path {self.path}'
        earlier = _earlier_epochs(run)
        is_own = functools.partial(_is_table_of, run.history) if run.resumed else None
        table = RunTable(path, run.logs.get(known), is_own)
        run.logs[known] = table.name
        if earlier is None:
            return _MovingTable(table, CSVWriter(table.path, run.history.epoch_ends[-1]))
        writer = CSVWriter(table.path)
        for step, values, _ in earlier:
            writer.write(step, values)
        return _MovingTable(table, writer)


def _is_table_of(history: History, path: Path) -> bool:
    """Returns True if the rows of a table are those of a run, as far as it has recorded any."""
    losses = dict(zip(map(str, history.epoch_ends), history.get('loss', ()), strict=False))
    rows = read_rows(path)
    known = [row for row in rows if int(row['step']) <= max(history.epoch_ends, default=0)]
    if rows and losses and not known:
        return False
    return all(row.get('loss') == str(losses.get(row['step'])) for row in known)


class _MovingTable:
    """Writes to a run's table, which a later run moves."""

    def __init__(self, table: RunTable, writer: CSVWriter):
        self._table, self._writer = table, writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.path = self._table.path
        self._writer.write(step, values)

    def hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        self._writer.hyperparameters(values, metrics)

    def close(self) -> None:
        self._writer.close()
        if not read_rows(self._table.path):  # the run ended before its first epoch did
            self._table.path.unlink(missing_ok=True)


@dataclasses.dataclass(unsafe_hash=True)
class WandB(LoggerCallback):
    """Sends each epoch's values and the settings to Weights & Biases.

    Attributes:
        project: where the run is listed; None is W&B's own default.
        settings: anything else for ``wandb.init``, such as ``{'mode': 'offline'}``.

    Raises:
        ConfigError: when training starts, if the package ``wandb`` is not installed.
    """

    project: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def find_place(self) -> None:
        """Returns None: W&B says itself what it can't take."""

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        writer = WandbWriter(self.project, **self.settings)
        # A run that is named continues there, with the epochs that it has.
        is_named = not self.settings.keys().isdisjoint(('id', 'resume'))
        return writer if is_named else _with_earlier(writer, run)


@dataclasses.dataclass(unsafe_hash=True)
class MLflow(LoggerCallback):
    """Sends each epoch's values and the settings to MLflow.

    Attributes:
        experiment: its name; None is MLflow's default.
        tracking_uri: a server or a local store; None is what MLflow is set to.

    Raises:
        ConfigError: when training starts, if the package ``mlflow`` is not installed.
    """

    experiment: str | None = None
    tracking_uri: str | None = None

    def find_place(self) -> None:
        """Returns None: MLflow says itself what it can't take."""

    def open(self, run: Run) -> Writer:
        """Opens the writer, at ``run.step`` steps."""
        return _with_earlier(MlflowWriter(self.experiment, self.tracking_uri), run)


def _with_earlier(writer: WandbWriter | MlflowWriter, run: Run) -> Writer:
    """Writes the epochs that a resumed run has recorded to a service's run, if that is new."""
    if writer.is_ours:
        for step, values, _ in _earlier_epochs(run) or ():
            writer.write(step, values)
    return writer


class _Epoch(NamedTuple):
    step: int
    values: dict[str, float]
    time: float


def _earlier_epochs(run: Run) -> list[_Epoch] | None:
    """Returns what loggers were given for the epochs that a resumed run has recorded.

    All of it is written again, which makes up for what a kill, a deletion or another run took. None
    where an older checkpoint does not hold it; then what is on disk is kept.
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
    """An epoch's values, with the learning rate unless the optimizer keeps its own."""
    return values if rate is None else values | {'learning_rate': rate}


class LearningRateMonitor(BuiltInCallback):
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
