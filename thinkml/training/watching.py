"""What watches a metric from epoch to epoch: EarlyStopping and ReduceLROnPlateau."""

import dataclasses
import math
from typing import Any, Literal

from thinkml.core import is_higher_better, scale_learning_rate
from thinkml.core.objectives.metric_names import TRAINING_ONLY_METRICS
from thinkml.errors import (
    ConfigError,
    is_number,
    is_whole,
    problems,
    unknown_name,
    warn_user,
)
from thinkml.training.run import Run, copy_arrays

Mode = Literal['min', 'max']


@dataclasses.dataclass
class Watched:
    """The best value of a metric so far, and the last value that counts as an improvement.

    A metric that gains less than ``min_delta`` in each epoch still has a best value, its last one.

    Attributes:
        name: of the metric in the history.
        mode: ``'min'`` or ``'max'``.
        min_delta: an improvement is larger than this.
        best: the best value; the worst possible before the first.
        epoch: the epoch it came in; 0 before the first.
        reference: the value of the last improvement, which the next one is measured from.
        improved: the epoch it came in; 0 before the first.
    """

    name: str
    mode: Mode
    min_delta: float = 0.0
    best: float = math.nan
    epoch: int = 0
    reference: float = math.nan
    improved: int = 0

    def __post_init__(self) -> None:
        self.best = self.reference = math.inf if self.mode == 'min' else -math.inf

    def improves(self, run: Run) -> bool:
        """Notes the value of the last epoch; returns True if it is the best so far."""
        value = run.history.last()[self.name]
        if self._gain(value, self.reference) > self.min_delta:
            self.reference, self.improved = value, run.epoch
        if not self._gain(value, self.best) > 0:
            return False
        self.best, self.epoch = value, run.epoch
        return True

    def _gain(self, value: float, before: float) -> float:
        return before - value if self.mode == 'min' else value - before

    def state_dict(self) -> dict[str, float]:
        """Returns what it remembers, for checkpoints."""
        return {name: getattr(self, name) for name in ('best', 'epoch', 'reference', 'improved')}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned; ignores what else is there."""
        for name in self.state_dict():
            setattr(self, name, state[name])


def watched(
    monitor: str | None, mode: Mode | None, metric_names: tuple[str, ...], min_delta: float = 0.0
) -> Watched:
    """What is to be watched among the names that an epoch records.

    Raises:
        ConfigError: if it is not among them.
    """
    name = monitor or ('val_loss' if 'val_loss' in metric_names else 'loss')
    of_training = name.removeprefix('val_')
    if name not in metric_names and name != of_training and of_training in TRAINING_ONLY_METRICS:
        raise ConfigError(
            f'monitor: got {name!r}, but {of_training} is of the steps of training, and validation '
            f'takes none. Watch {of_training!r}, and ask for it: metrics=[{of_training!r}].'
        )
    if name not in metric_names and of_training in metric_names:
        raise ConfigError(
            f'monitor: got {name!r}, but there is no validation data. Pass X_val and y_val, or '
            f'validation_split, or watch {of_training!r}.'
        )
    if name not in metric_names:
        raise ConfigError(unknown_name('monitor', name, metric_names))
    higher = is_higher_better(name)
    if mode is None and higher is None:
        raise ConfigError(
            f"mode: got None for {name!r}, a metric of your own, expected 'min' or 'max': whether "
            'smaller or larger values are better.'
        )
    return Watched(name, mode or ('max' if higher else 'min'), min_delta)


def watch_problems(monitor: Any, mode: Any) -> list[str]:
    """All that is wrong with these settings, a sentence each."""
    found = []
    if not isinstance(monitor, str | None):
        found.append(f"monitor: got {monitor!r}, expected a metric's name, such as 'val_loss'.")
    if mode not in (None, 'min', 'max'):
        found.append(unknown_name('mode', mode, ('min', 'max')))
    return found


def monitor_problems(monitor: Any, mode: Any, min_delta: Any, patience: Any) -> list[str]:
    """The same, with what an improvement is and how long to wait for one."""
    found = watch_problems(monitor, mode)
    if not (is_number(min_delta) and min_delta >= 0):
        found.append(f'min_delta: got {min_delta!r}, expected a number of at least 0.')
    if not (is_whole(patience) and patience >= 1):
        found.append(
            f'patience: got {patience!r}, expected a whole number of epochs of at least 1, which '
            'acts on the first epoch without improvement.'
        )
    return found


@dataclasses.dataclass(unsafe_hash=True)
class EarlyStopping:
    """Stops when a metric has stopped improving, and puts the best epoch's parameters back.

    Attributes:
        monitor: a name in the history; None is ``'val_loss'``, or ``'loss'`` with a warning where
            there is no validation data.
        mode: ``'min'`` or ``'max'``; None is what the metric asks for: ``'max'`` for accuracy,
            ``'min'`` for losses and errors.
        min_delta: an improvement, which ``patience`` waits for, is larger than this. The best epoch
            is that of the best value, however little it gained.
        patience: epochs without improvement before stopping.
        start_from_epoch: epochs to wait before anything is watched. A run that ends within them
            has no best epoch and keeps the last parameters.
        restore_best: put the best epoch's parameters back at the end.

    Raises:
        ConfigError: for impossible settings.

    Example:
        >>> from thinkml.training import EarlyStopping, TrainingConfig
        >>> stopping = EarlyStopping(monitor='val_accuracy', patience=5)
        >>> config = TrainingConfig(early_stopping=stopping)
    """

    monitor: str | None = None
    mode: Mode | None = None
    min_delta: float = 0.0
    patience: int = 10
    start_from_epoch: int = 0
    restore_best: bool = True

    def __post_init__(self) -> None:
        found = monitor_problems(self.monitor, self.mode, self.min_delta, self.patience)
        if not isinstance(self.restore_best, bool):
            found.append(f'restore_best: got {self.restore_best!r}, expected True or False.')
        if not (is_whole(self.start_from_epoch) and self.start_from_epoch >= 0):
            found.append(
                f'start_from_epoch: got {self.start_from_epoch!r}, expected a whole number of '
                'epochs, 0 for all.'
            )
        if found:
            raise ConfigError(problems('EarlyStopping can not be used:', found))

    @property
    def watched_name(self) -> str:
        """The name of the metric that is watched, once a run has started."""
        return self._watched.name

    def check(self, metric_names: tuple[str, ...]) -> None:
        """Raises a `ConfigError` if what it is to watch is not recorded."""
        watched(self.monitor, self.mode, metric_names)

    def on_train_start(self, run: Run) -> None:
        self._watched = watched(self.monitor, self.mode, run.metric_names, self.min_delta)
        if self.monitor is None and self._watched.name == 'loss':
            warn_user(
                'early_stopping: there is no validation data, so it watches the training loss, '
                'which does not notice overfitting. Pass X_val and y_val, or validation_split.'
            )
        self._best_arrays: Any = None
        self._keep(run)

    def on_epoch_end(self, run: Run) -> None:
        if run.epoch <= self.start_from_epoch:
            return
        if self._watched.improves(run):
            self._keep(run)
        since = max(self._watched.improved, run.continued_at)
        if run.epoch - max(since, self.start_from_epoch) >= self.patience:
            name = self._watched.name
            why = ', it is NaN' if math.isnan(run.history.last()[name]) else ''
            run.is_early_stopped = run.stop_reason is None
            run.stop(f'early stopping: {name} has not improved for {self.patience} epochs{why}')

    def on_train_end(self, run: Run) -> None:
        if self.restore_best and self._watched.epoch:
            run.history.best_epoch = self._watched.epoch
            run.best_arrays = self._best_arrays
        elif self.restore_best and run.best_arrays is None:
            run.history.best_epoch = None  # that of the lowest val_loss, which was not watched
        self._best_arrays = None

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for checkpoints."""
        return self._watched.state_dict() | {'arrays': self._best_arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self._watched.load_state_dict(state)
        self._best_arrays = state['arrays']

    def _keep(self, run: Run) -> None:
        self._best_arrays = None  # first, so that there are never two
        if self.restore_best:
            self._best_arrays = copy_arrays((run.state.eval_params, run.state.model_state))


@dataclasses.dataclass(unsafe_hash=True)
class ReduceLROnPlateau:
    """Lowers the learning rate when a metric has stopped improving.

    Attributes:
        monitor: a name in the history; None is ``'val_loss'``, or ``'loss'`` without validation
            data.
        factor: what the rate is multiplied by, between 0 and 1.
        patience: epochs without improvement before that.
        mode: ``'min'`` or ``'max'``; None is what the metric asks for.
        min_delta: an improvement is larger than this.
        cooldown: epochs to wait after each time.
        min_rate: the rate is not lowered below this.

    Raises:
        ConfigError: for impossible settings; when training starts, if the optimizer has its own
            learning rate.

    Example:
        >>> from thinkml.training import ReduceLROnPlateau, TrainingConfig
        >>> config = TrainingConfig(callbacks=[ReduceLROnPlateau(factor=0.5, patience=3)])
    """

    monitor: str | None = None
    factor: float = 0.1
    patience: int = 10
    mode: Mode | None = None
    min_delta: float = 1e-4
    cooldown: int = 0
    min_rate: float = 0.0

    def __post_init__(self) -> None:
        found = monitor_problems(self.monitor, self.mode, self.min_delta, self.patience)
        if not (is_number(self.factor) and 0 < self.factor < 1):
            found.append(f'factor: got {self.factor!r}, expected a number between 0 and 1.')
        if not (is_whole(self.cooldown) and self.cooldown >= 0):
            found.append(f'cooldown: got {self.cooldown!r}, expected a whole number of epochs.')
        if not (is_number(self.min_rate) and self.min_rate >= 0):
            found.append(f'min_rate: got {self.min_rate!r}, expected a number of at least 0.')
        if found:
            raise ConfigError(problems('ReduceLROnPlateau can not be used:', found))

    @property
    def watched_name(self) -> str:
        """The name of the metric that is watched, once a run has started."""
        return self._watched.name

    def check(self, metric_names: tuple[str, ...]) -> None:
        """Raises a `ConfigError` if what it is to watch is not recorded."""
        watched(self.monitor, self.mode, metric_names)

    def on_train_start(self, run: Run) -> None:
        self._watched = watched(self.monitor, self.mode, run.metric_names, self.min_delta)
        self._waited_since = 0
        scale_learning_rate(run.state.opt_state, 1.0)  # raises where there is no rate to lower

    def on_epoch_end(self, run: Run) -> None:
        self._watched.improves(run)
        self._waited_since = max(self._waited_since, self._watched.improved)
        if run.epoch - self._waited_since < self.patience:
            return
        rate = run.learning_rate or 0.0
        factor = max(self.factor, self.min_rate / rate) if rate else 1.0
        if factor < 1:
            opt_state = scale_learning_rate(run.state.opt_state, factor)
            run.state = run.state.replace(opt_state=opt_state)
            run.history.events.append((run.epoch, f'learning rate lowered to {rate * factor:.3g}'))
        self._waited_since = run.epoch + self.cooldown

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for checkpoints."""
        return self._watched.state_dict() | {'waited_since': self._waited_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self._watched.load_state_dict(state)
        self._waited_since = state['waited_since']
