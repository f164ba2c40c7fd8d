"""The history of a training run: metrics by epoch, loss by step, and events."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from thinkml.errors import ConfigError, is_whole, unknown_name

if TYPE_CHECKING:
    import pandas

_T = TypeVar('_T')

# Values that depend on the machine differ in every run, so `History.__eq__` ignores them.
MACHINE_VALUES = frozenset(
    {
        'step_seconds', 'input_wait', 'examples_per_second', 'elements_per_second', 'mfu',
        'bytes_in_use', 'peak_bytes_in_use',
    }
)  # fmt: skip


def split_name(name: str, names: Collection[str]) -> tuple[str | None, str]:
    """Returns the validation set and the metric that a name in a history stands for.

    Args:
        name: the name.
        names: all names of the history.

    Returns:
        The set, None for a value of training and ``''`` for a set without a name; and the name of
        the same metric of training.

    Example:
        >>> names = ['loss', 'kind_loss', 'val_in_loss', 'val_in_kind_loss']
        >>> split_name('val_in_kind_loss', names), split_name('val_loss', ['loss', 'val_loss'])
        (('in', 'kind_loss'), ('', 'loss'))
    """
    rest = name.removeprefix('val_')
    if rest == name:
        return None, name
    # A set without a name is the only one, and each set has a loss.
    if rest not in names and 'val_loss' not in names:
        for metric in sorted(names, key=len, reverse=True):
            of_set = rest.removesuffix(f'_{metric}')
            # So metrics with similar names are not taken for a set.
            if of_set != rest and f'val_{of_set}_loss' in names:
                return of_set, metric
        # A custom step records other values than validation.
        losses = (column.removesuffix('_loss') for column in names if column.endswith('_loss'))
        sets = (column.removeprefix('val_') for column in losses if column.startswith('val_'))
        if found := [of_set for of_set in sets if rest.startswith(f'{of_set}_')]:
            of_set = max(found, key=len)
            return of_set, rest.removeprefix(f'{of_set}_')
    return '', rest


class History(Mapping[str, list[float]]):
    """The record of one training run, a mapping from metric names to their values by epoch.

    All lists have one value per epoch; a metric that was not measured in an epoch is NaN there.
    The training loop appends to it during the run. It can be read at any time, also from another
    thread.

    It is also a table with the epochs as rows, counted from 0 as in a list:

    - ``history[-1]`` is the last row, a dict; ``history[-3:]`` is a list of them;
    - ``history[:, 'val_loss']`` is a column, ``history[-1, 'val_loss']`` one value;
    - ``history[:, ('loss', 'val_loss')]`` is a list of pairs.

    Two histories are equal if they recorded the same numbers and events. Values that depend on the
    machine are not compared: the duration of the run, times, rates and memory that a callback
    recorded (``step_seconds``, ``mfu``, ``bytes_in_use`` and so on), and the steps at which the run
    was resumed.

    Attributes:
        epochs: the number of finished epochs. Epochs are numbered from 1.
        epoch_ends: the number of finished steps at the end of each epoch.
        best_epoch: the epoch with the best validation (or training) score; None while unknown.
        events: ``(epoch, text)`` for each other event: early stopping, an interrupt.
        resumed_at: the number of finished steps each time the run was resumed.
        interrupted: True if the run was stopped from outside.
        seconds: the duration of the run.

    Example:
        >>> import numpy as np
        >>> history = History()
        >>> history.add_steps(np.array([0.9, 0.7]))
        >>> history.add_epoch({'loss': 0.8, 'accuracy': 0.5})
        >>> history.add_steps(np.array([0.6, 0.4]))
        >>> history.add_epoch({'loss': 0.5, 'accuracy': 0.75})
        >>> history['loss']
        [0.8, 0.5]
        >>> history[-1]
        {'loss': 0.5, 'accuracy': 0.75}
        >>> history[:, ('loss', 'accuracy')]
        [(0.8, 0.5), (0.5, 0.75)]
        >>> history
        History(2 epochs, 4 steps; last epoch: loss=0.5, accuracy=0.75)
    """

    def __init__(self) -> None:
        # Other threads may read while the lists grow in place. `epoch_ends` is written last, so a
        # list may be one value ahead: only the first `epochs` values are valid. For a new name the
        # dict is replaced and not changed.
        self._metrics: dict[str, list[float]] = {}
        self._losses = np.empty(0, np.float32)  # may be longer than the `_steps` valid values
        self._steps = 0
        self.epoch_ends: list[int] = []
        self.best_epoch: int | None = None
        self.events: list[tuple[int, str]] = []
        self.resumed_at: list[int] = []
        self.interrupted = False
        self.seconds = 0.0

    @overload
    def __getitem__(self, key: str) -> list[float]: ...
    @overload
    def __getitem__(self, key: int) -> dict[str, float]: ...
    @overload
    def __getitem__(self, key: slice) -> list[dict[str, float]]: ...
    @overload
    def __getitem__(self, key: tuple[Any, Any]) -> Any: ...

    def __getitem__(self, key: Any) -> Any:
        epochs = self.epochs  # before the lists: a writer may append to them
        if isinstance(key, slice) or is_whole(key):
            key = key, None
        elif key is None:
            raise KeyError(unknown_name('history', key, self._metrics))
        rows, names = key if isinstance(key, tuple) and len(key) == 2 else (slice(None), key)
        if isinstance(names, str):
            return _select_rows(self._series(names), rows, epochs)
        if isinstance(names, tuple | list):
            columns = [_select_rows(self._series(name), rows, epochs) for name in names]
            return list(zip(*columns, strict=True)) if isinstance(rows, slice) else tuple(columns)
        if names is None:
            metrics = self._metrics
            selected = _select_rows(range(epochs), rows, epochs)
            if isinstance(rows, slice):
                return [{n: series[row] for n, series in metrics.items()} for row in selected]
            return {name: series[selected] for name, series in metrics.items()}
        raise KeyError(unknown_name('history', names, self._metrics))

    def _series(self, name: str) -> list[float]:
        if name not in self._metrics:
            raise KeyError(unknown_name('history', name, self._metrics))
        return self._metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)

    @property
    def epochs(self) -> int:
        """Returns the number of finished epochs."""
        return len(self.epoch_ends)

    @property
    def steps(self) -> int:
        """Returns the number of recorded steps."""
        return self._steps

    @property
    def step_loss(self) -> np.ndarray:
        """Returns the training loss of every step so far, float32 of shape ``(steps,)``."""
        steps = self._steps  # before the array: a writer may replace it by a longer one
        return self._losses[:steps].copy()

    def add_steps(self, losses: npt.ArrayLike) -> None:
        """Appends the losses of the latest steps, an array of shape ``(n,)``."""
        losses = np.asarray(losses, np.float32).reshape(-1)
        steps = self._steps + len(losses)
        if steps > len(self._losses):
            grown = np.empty(max(steps, 2 * len(self._losses)), np.float32)
            grown[: self._steps] = self._losses[: self._steps]
            self._losses = grown
        self._losses[self._steps : steps] = losses
        self._steps = steps

    def add_epoch(self, metrics: Mapping[str, float]) -> None:
        """Closes an epoch with its metrics. Call it after the epoch's last `add_steps`."""
        epochs = self.epochs
        values = {name: float(value) for name, value in metrics.items()}
        if new := [name for name in values if name not in self._metrics]:
            self._metrics = self._metrics | {name: [math.nan] * epochs for name in new}
        for name, series in self._metrics.items():
            series[epochs:] = [values.get(name, math.nan)]  # replaces an interrupted call's value
        self.epoch_ends.append(self._steps)

    def add_to_epoch(self, metrics: Mapping[str, float]) -> None:
        """Adds more values to the epoch that ended last."""
        for name, value in metrics.items():
            earlier = self._metrics.get(name, [math.nan] * self.epochs)[: self.epochs - 1]
            self._metrics = self._metrics | {name: [*earlier, float(value)]}

    def last(self) -> dict[str, float]:
        """Returns each metric's value in the last epoch; empty before the first one ended."""
        epochs = self.epochs
        return {name: values[epochs - 1] for name, values in self._metrics.items() if epochs}

    def copy(self) -> 'History':
        """Returns a consistent copy of the history, also while another thread appends to it."""
        copy = History()
        # The order matters: the best epoch must be one of the copied epochs, and all that is read
        # after `epoch_ends` is at least as long.
        copy.best_epoch = self.best_epoch
        copy.epoch_ends = list(self.epoch_ends)
        copy._metrics = {name: values[: copy.epochs] for name, values in self._metrics.items()}
        copy.add_steps(self.step_loss)
        copy.events, copy.interrupted = list(self.events), self.interrupted
        copy.resumed_at = list(self.resumed_at)
        copy.seconds = self.seconds
        return copy

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as values that strict JSON can hold: NaN becomes ``'nan'``."""
        # The shortest decimals of float32 take a third of the digits and are just as exact.
        losses = self.step_loss.astype(str).astype(float).tolist()
        return self.summary() | {'step_loss': [_encode(loss) for loss in losses]}

    def summary(self) -> dict[str, Any]:
        """Returns the same as `to_dict` without ``step_loss``, which grows with the run."""
        now = self.copy()
        return {
            'metrics': {name: [_encode(v) for v in values] for name, values in now.items()},
            'epoch_ends': [int(end) for end in now.epoch_ends],
            'best_epoch': None if now.best_epoch is None else int(now.best_epoch),
            'events': [[int(epoch), str(text)] for epoch, text in now.events],
            'resumed_at': [int(steps) for steps in now.resumed_at],
            'interrupted': bool(now.interrupted),
            'seconds': float(now.seconds),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], step_loss: np.ndarray | None = None) -> Self:
        """Returns the history that `to_dict` was called on. The dict may come from JSON.

        Args:
            values: the result of `to_dict`, or of `summary` if ``step_loss`` is passed.
            step_loss: the loss of every step, if ``values`` lacks it.

        Raises:
            ValueError: for values that `to_dict` does not return.

        Example:
            >>> history = History()
            >>> history.add_epoch({'loss': float('inf')})
            >>> History.from_dict(history.to_dict()) == history
            True
        """
        history = cls()
        expected = history.summary() if step_loss is not None else history.to_dict()
        _check(isinstance(values, dict), 'keys')
        defaults: dict[str, Any] = {'resumed_at': []}  # files of older versions lack it
        values = defaults | dict(values)
        _check(values.keys() == expected.keys(), 'keys')
        history.epoch_ends = list(_check_list(values['epoch_ends'], (int,), 'epoch_ends'))
        for name, series in _check_type(values['metrics'], dict, 'metrics').items():
            history._metrics[_check_type(name, str, 'metrics')] = _decode(series)
            _check(len(series) == history.epochs, f'metrics for {history.epochs} epochs')
        history.add_steps(_decode(values['step_loss']) if step_loss is None else step_loss)
        steps = [0, *history.epoch_ends, history.steps]
        _check(steps == sorted(steps), 'epoch_ends')
        if (best := values['best_epoch']) is not None:
            _check(1 <= _check_type(best, int, 'best_epoch') <= history.epochs, 'best_epoch')
            history.best_epoch = best
        for epoch, text in _check_list(values['events'], (list, tuple), 'events'):
            event = _check_type(epoch, int, 'events'), _check_type(text, str, 'events')
            history.events.append(event)
        history.resumed_at = list(_check_list(values['resumed_at'], (int,), 'resumed_at'))
        history.interrupted = _check_type(values['interrupted'], bool, 'interrupted')
        [history.seconds] = _decode([values['seconds']])
        return history

    def to_json(self) -> str:
        """Returns everything as strict JSON, with NaN as the text ``"nan"``."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Returns the history that `to_json` was called on.

        Raises:
            ValueError: for text that `to_json` does not return.

        Example:
            >>> history = History()
            >>> history.add_epoch({'loss': float('nan')})
            >>> History.from_json(history.to_json()) == history
            True
        """
        return cls.from_dict(json.loads(text))

    def to_pandas(self) -> 'pandas.DataFrame':
        """Returns the epochs as rows, numbered from 1, and the metrics as columns.

        Raises:
            ConfigError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigError(
                'to_pandas: needs the package pandas, which is not installed. Install it: '
                'pip install pandas.'
            ) from error
        now = self.copy()
        return pandas.DataFrame(
            dict(now), index=pandas.RangeIndex(1, now.epochs + 1, name='epoch'), dtype=float
        )

    def continues(self, earlier: 'History') -> bool:
        """Returns True if the losses agree in all steps that both have, as after a resume."""
        steps = min(self.steps, earlier.steps)
        same = np.array_equal(self.step_loss[:steps], earlier.step_loss[:steps], equal_nan=True)
        return steps > 0 and same

    def __eq__(self, other: object) -> bool:
        if isinstance(other, History):
            return self._values_to_compare() == other._values_to_compare()
        return super().__eq__(other)

    def _values_to_compare(self) -> dict[str, Any]:
        values = self.to_dict()
        metrics = {n: v for n, v in values['metrics'].items() if n not in MACHINE_VALUES}
        return values | {'metrics': metrics, 'resumed_at': None, 'seconds': None}

    def __repr__(self) -> str:
        size = f'{_count(self.epochs, "epoch")}, {_count(self.steps, "step")}'
        if self.seconds:
            size += f', {self.seconds:.3g} s'
        if self.interrupted:
            size += ', interrupted'
        parts = [size]
        if self.epochs:
            parts.append(f'last epoch: {_values(self.last())}')
        if self.best_epoch is not None:
            best = {name: values[self.best_epoch - 1] for name, values in self.items()}
            parts.append(f'best epoch {self.best_epoch}: {_values(best)}')
        return f'History({"; ".join(parts)})'


def _select_rows(values: Sequence[float], rows: Any, epochs: int) -> Any:
    """Returns one of a column's first ``epochs`` values, or a list of them for a slice."""
    if isinstance(rows, slice):
        return list(values[:epochs][rows])
    if not is_whole(rows):
        raise KeyError(
            f'history: got the rows {rows!r}, expected a number or a slice. Columns come second: '
            "history[:, ('loss', 'val_loss')]."
        )
    if not -epochs <= rows < epochs:
        raise IndexError(f'history: got the row {rows}, expected one of {epochs} epochs.')
    return values[rows % epochs]


def _values(metrics: Mapping[str, float]) -> str:
    return ', '.join(f'{name}={value:.4g}' for name, value in metrics.items())


def _check(condition: bool, key: str) -> None:
    if not condition:
        raise ValueError(f'its history has impossible {key}')


def _encode(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _check_type(value: object, kind: type[_T], key: str) -> _T:
    _check(type(value) is kind, key)
    return cast(_T, value)


def _check_list(values: Any, kinds: tuple[type, ...], key: str) -> list[Any]:
    _check(type(values) is list and all(type(value) in kinds for value in values), key)
    return values


def _decode(values: object) -> list[float]:
    numbers = _check_list(values, (int, float, str), 'numbers')
    _check(all(v in ('nan', 'inf', '-inf') for v in numbers if type(v) is str), 'numbers')
    return [float(v) for v in numbers]


def _count(number: int, noun: str) -> str:
    return f'{number:,} {noun}{"" if number == 1 else "s"}'
