"""Writers of metrics: event files, a CSV table, Weights & Biases and MLflow.

All have the interface of `Writer` and do not depend on a trainer: a custom loop can use them too.
"""

import csv
import importlib
import importlib.util
import io
import numbers
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from thinkml.errors import ConfigError, is_whole
from thinkml.history import split_name
from thinkml.monitoring.event_file import EventFile
from thinkml.paths import local_directory, local_file


class Writer(Protocol):
    """The interface of a writer of a run's values.

    Example:
        >>> class Printer:
        ...     def write(self, step, values):
        ...         print(step, dict(values))
        ...
        ...     def hyperparameters(self, values, metrics):
        ...         print(dict(values), '->', dict(metrics))
        ...
        ...     def close(self): ...
        >>> writer: Writer = Printer()
        >>> writer.write(100, {'loss': 0.5})
        100 {'loss': 0.5}
    """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the values after ``step`` steps, with names as in the `History`."""
        ...

    def hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Records the hyperparameters of the run once, and the results by which to compare runs."""
        ...

    def close(self) -> None:
        """Writes the remaining values."""
        ...


class EventWriter:
    """A writer of event files, which TensorBoard draws as curves.

    As in Keras, training and validation are two runs, ``directory/train`` and
    ``directory/validation``, so that TensorBoard draws both in one chart: ``loss`` becomes the tag
    ``loss`` of the first run, ``val_loss`` the tag ``loss`` of the second. Several validation sets
    are a run each: ``val_shifted_loss`` is the tag ``loss`` of ``directory/validation_shifted``.

    Args:
        directory: the directory of one run; created if it does not exist.
        start_step: the steps done when this run begins: 0 for a new run, those of the checkpoint
            for a resumed one. TensorBoard then hides points of later steps that earlier runs left
            in the directory.
        run_id: the end of the files' names, which identifies the files of a run; None for a random
            one.

    Raises:
        ConfigError: if there is a file at the path or above it, or ``start_step`` is not a number
            of steps.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     writer = EventWriter(directory)
        ...     writer.write(100, {'loss': 0.7, 'val_loss': 0.8})
        ...     writer.hyperparameters({'batch_size': 32}, {'val_loss': 0.8})
        ...     writer.close()
    """

    def __init__(
        self, directory: str | os.PathLike[str], start_step: int = 0, run_id: str | None = None
    ) -> None:
        _check_start_step(start_step)
        self._directory = local_directory(directory)
        self._run_id = run_id or uuid.uuid4().hex[:8]
        self._start_step = self._last_step = int(start_step)
        self._runs: dict[str, EventFile] = {}

    def write(self, step: int, values: Mapping[str, float], wall_time: float | None = None) -> None:
        """Adds one point to the curve of each value; it is in the file when this returns.

        Args:
            step: steps done.
            values: the values by name.
            wall_time: the time of the values, in seconds since 1970; None for now.
        """
        from tensorboardX.summary import scalar

        points: dict[str, list[Any]] = {}
        for name, value in values.items():
            of_set, tag = split_name(name, values)
            run = {None: 'train', '': 'validation'}.get(of_set, f'validation_{of_set}')
            points.setdefault(run, []).append(scalar(tag, float(value)))
        for run, summaries in points.items():
            self._run(run).add(summaries, step, wall_time)
        self._last_step = step

    def hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Adds a row to the table of TensorBoard's HPARAMS tab.

        The row contains the hyperparameters, the latest value of every training curve, and the
        ``metrics``, which become ``results/<name>``. Values that are not numbers, text or bools
        are written as text.
        """
        from tensorboardX.summary import hparams, scalar

        # Only the summary with the values, the second of three: without a description of the
        # experiment, TensorBoard makes columns of all values in any run.
        row = hparams({name: _plain(value) for name, value in values.items()}, {})[1]
        results = [scalar(f'results/{name}', float(value)) for name, value in metrics.items()]
        self._run('train').add([row, *results], self._last_step, None)

    def close(self) -> None:
        """Closes the files; every value is already written."""
        for run in self._runs.values():
            run.close()

    def _run(self, name: str) -> EventFile:
        if name not in self._runs:
            self._runs[name] = EventFile(
                self._directory / name,
                purge_step=self._start_step + 1,
                suffix=f'.{time.time_ns():020}.{self._run_id}',
            )
        return self._runs[name]


class CSVWriter:
    """A writer of a CSV table, one row per call of `write`: ``step`` and a column for each name.

    A cell is empty if a value was not given, and ``nan`` or ``inf`` for these values. Each row is
    passed to the operating system when `write` returns. A new name adds a column to all rows. A run
    that was killed and resumed leaves the same table as an uninterrupted one.

    Args:
        path: the file; missing folders are created.
        start_step: the steps done when this run begins: 0 for a new run, those of the checkpoint
            for a resumed one. Rows of later steps, and a row cut off by a kill, are removed.

    Attributes:
        path: the file. Set it to the new path if the file was moved. If the file is missing, the
            next row writes the full table again.

    Raises:
        ConfigError: if the path is not that of such a table, or ``start_step`` is not a number of
            steps; in `write`, for a value called ``step``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory, 'run.csv')
        ...     writer = CSVWriter(path)
        ...     writer.write(100, {'loss': 0.5})
        ...     writer.write(200, {'loss': 0.25, 'val_loss': 0.375})
        ...     print(path.read_text().strip())
        step,loss,val_loss
        100,0.5,
        200,0.25,0.375
    """

    def __init__(self, path: str | os.PathLike[str], start_step: int = 0) -> None:
        _check_start_step(start_step)
        self.path = check_table(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._replace([row for row in read_rows(self.path) if int(row['step']) <= start_step])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one row."""
        if 'step' in values:
            raise ConfigError(
                "values: got one called 'step', which is the table's first column. Give it another "
                'name.'
            )
        row = {'step': str(int(step))} | {name: _cell(value) for name, value in values.items()}
        if row.keys() <= self._columns.keys() and self.path.exists():
            try:
                with self.path.open('a', encoding='utf-8', newline='') as file:
                    _table(file, self._columns).writerow(row)
            except OSError:
                self._columns = {}  # the row may be incomplete: the next call writes all rows again
                raise
            self._rows.append(row)
        else:
            self._replace([*self._rows, row])

    def hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Does nothing, since a table of steps can't hold them."""

    def close(self) -> None:
        """Does nothing, since every row is already written."""

    def _replace(self, rows: list[dict[str, str]]) -> None:
        """Writes the full table again, atomically: a kill meanwhile leaves the old one."""
        filled = (name for row in rows for name, cell in row.items() if cell)
        columns = dict.fromkeys(['step', *filled])
        new = self.path.with_name(f'{self.path.name}.new')
        with new.open('w', encoding='utf-8', newline='') as file:
            table = _table(file, columns)
            table.writeheader()
            table.writerows({name: row.get(name, '') for name in columns} for row in rows)
        os.replace(new, self.path)
        self._columns, self._rows = columns, rows  # only after the file has them


class WandbWriter:
    """A writer to Weights & Biases: a thin wrapper of its ``init``, ``log`` and ``finish``.

    If a run is active (the script called ``wandb.init``), values are written to it, and it stays
    open. In a resumed run, W&B ignores steps that it already has.

    Args:
        project: the project of the run. None for the default of W&B.
        settings: further arguments of ``wandb.init``, such as ``name``, ``dir``,
            ``mode='offline'``, and ``id`` with ``resume='allow'`` to resume a run.

    Attributes:
        is_ours: True if the run was started here, not by the script.

    Raises:
        ConfigError: if the package ``wandb`` is not installed.

    Example:
        >>> writer = WandbWriter('digits', mode='offline')  # doctest: +SKIP
        >>> writer.write(100, {'loss': 0.7, 'val_loss': 0.8})  # doctest: +SKIP
        >>> writer.close()  # doctest: +SKIP
    """

    def __init__(self, project: str | None = None, **settings: Any) -> None:
        wandb = _optional('wandb', 'WandbWriter')
        self.is_ours = wandb.run is None
        self._run = wandb.init(project=project, **settings) if self.is_ours else wandb.run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to the curve of each value."""
        self._run.log({name: float(value) for name, value in values.items()}, step=int(step))

    def hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Sets the run's config, and ``results/<name>`` in its summary for each metric."""
        self._run.config.update(dict(values), allow_val_change=True)
        self._run.summary.update({f'results/{n}': float(v) for n, v in metrics.items()})

    def close(self) -> None:
        """Sends the remaining values and ends the run, unless it was active before."""
        if self.is_ours:
            self._run.finish()


class MlflowWriter:
    """A writer to MLflow through its client, which does not change MLflow's global state.

    Without arguments, values are written to the active run if there is one (the script is inside
    ``with mlflow.start_run():``), and it stays open. ``mlflow.start_run(run_id=...)`` resumes an
    earlier run.

    Args:
        experiment: the name of the experiment, which is created if it does not exist. None for
            ``'Default'``.
        tracking_uri: a server or a local store, such as ``'sqlite:///runs.db'``. None for MLflow's
            current setting.

    Attributes:
        is_ours: True if the run was started here, not by the script.

    Raises:
        ConfigError: if the package ``mlflow`` is not installed.

    Example:
        >>> writer = MlflowWriter('digits', 'sqlite:///runs.db')  # doctest: +SKIP
        >>> writer.write(100, {'loss': 0.7, 'val_loss': 0.8})  # doctest: +SKIP
        >>> writer.close()  # doctest: +SKIP
    """

    def __init__(self, experiment: str | None = None, tracking_uri: str | None = None) -> None:
        mlflow = _optional('mlflow', 'MlflowWriter')
        self._client = mlflow.MlflowClient(tracking_uri)
        active = mlflow.active_run() if experiment is None and tracking_uri is None else None
        self.is_ours = active is None
        run = active or self._client.create_run(self._experiment_id(experiment or 'Default'))
        self._run_id = run.info.run_id
        self._last_step = 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to the curve of each value."""
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, float(value), step=int(step))
        self._last_step = int(step)

    def hyperparameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Sets the run's parameters, and adds ``results/<name>`` for each metric."""
        for name, value in values.items():
            self._client.log_param(self._run_id, name, value)
        self.write(self._last_step, {f'results/{name}': value for name, value in metrics.items()})

    def close(self) -> None:
        """Marks the run as finished, unless it was active before."""
        if self.is_ours:
            self._client.set_terminated(self._run_id)

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        return (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )


def _check_start_step(start_step: int) -> None:
    if not (is_whole(start_step) and start_step >= 0):
        raise ConfigError(
            f'start_step: got {start_step!r}, expected the whole number of steps done before this '
            'run, 0 for a new one.'
        )


def _plain(value: object) -> bool | float | str:
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, numbers.Real) else str(value)


def _cell(value: float) -> str:
    return str(int(value)) if isinstance(value, numbers.Integral) else str(float(value))


def _table(file: TextIO, columns: Iterable[str]) -> 'csv.DictWriter[str]':
    return csv.DictWriter(file, list(columns), lineterminator='\n')


def check_table(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a table that exists or can be created.

    Raises:
        ConfigError: if it is not the path of a file, see `local_file`, or not the table of a run.
    """
    found = local_file(path)
    read_rows(found)
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table without a cut-off last row; none if there is no file.

    Raises:
        ConfigError: if it is not the table of a run.
    """
    content = path.read_bytes() if path.exists() else b''
    if not content:
        return []
    lines = content[: content.rfind(b'\n') + 1].decode('utf-8-sig', errors='replace')
    reader = csv.DictReader(io.StringIO(lines, newline=''), restval='')
    rows = list(reader)
    is_table = (reader.fieldnames or [''])[0] == 'step'
    if not (is_table and all(row['step'].isdecimal() for row in rows)):
        raise ConfigError(
            f'path: got {str(path)!r}, an existing file that is not the table of a run, whose '
            "first column is 'step'. Choose another path, or remove the file."
        )
    return rows


def _optional(package: str, needed_by: str) -> Any:
    """Imports a package that ThinkML does not depend on."""
    spec = importlib.util.find_spec(package)
    # A folder of that name in the working directory, such as a folder of runs, can be imported too.
    if spec is None or spec.origin is None:
        raise ConfigError(
            f'{needed_by}: needs the package {package}, which is not installed. Install it: '
            f'pip install {package}.'
        )
    return importlib.import_module(package)
