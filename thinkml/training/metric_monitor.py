"""MetricMonitor: the best value of a metric over the epochs, for callbacks that react to it."""

import dataclasses
import math
from typing import Any, Literal

from thinkml.core import is_higher_better
from thinkml.core.objectives.metric_table import TRAINING_ONLY_METRICS
from thinkml.errors import ConfigError, is_number, is_whole, unknown_name
from thinkml.history import split_name
from thinkml.training.callback import BuiltInCallback
from thinkml.training.run import Run

Mode = Literal['min', 'max']


class MetricNames(tuple[str, ...]):
    """The names of the values that an epoch records.

    Attributes:
        heads: the names of the model's heads, which begin the names of their values.
    """

    heads: tuple[str, ...] = ()


@dataclasses.dataclass
class MetricMonitor:
    """The best value of a metric so far, and the last value that counts as an improvement.

    A metric that improves by less than ``min_delta`` in each epoch still has a best value: its
    last one.

    Attributes:
        name: the name of the metric in the history.
        mode: ``'min'`` or ``'max'``.
        min_delta: an improvement is larger than this.
        best: the best value; the worst possible value before the first epoch.
        epoch: the epoch of the best value; 0 before the first.
        reference: the value of the last improvement, from which the next one is measured.
        improved: the epoch of the last improvement; 0 before the first.
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
        """Records the value of the last epoch; returns True if it is the best so far."""
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
        """Returns its state, for checkpoints."""
        return {name: getattr(self, name) for name in ('best', 'epoch', 'reference', 'improved')}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state from `state_dict`; ignores other entries."""
        for name in self.state_dict():
            setattr(self, name, state[name])


def default_monitor(metric_names: tuple[str, ...]) -> str:
    """Returns the loss of the first validation set, or ``'loss'`` without validation data."""
    return next((name for name in metric_names if name.startswith('val_')), 'loss')


def monitor_for(
    monitor: str | None, mode: Mode | None, metric_names: tuple[str, ...], min_delta: float = 0.0
) -> MetricMonitor:
    """Returns the monitor of a metric, from the names that an epoch records.

    Raises:
        ConfigError: if the metric is not among them.
    """
    name = monitor or default_monitor(metric_names)
    training_name = split_name(name, metric_names)[1]
    validated = {
        split_name(other, metric_names)[1] for other in metric_names if other.startswith('val_')
    }
    of_step = training_name in TRAINING_ONLY_METRICS
    of_training = bool(validated) and training_name in {*metric_names} - validated
    if name not in metric_names and name != training_name and (of_step or of_training):
        how = f': metrics=[{training_name!r}]' if of_step else ''
        raise ConfigError(
            f'monitor: got {name!r}, but {training_name} is a metric of training steps, and '
            f'validation has none. Monitor {training_name!r}{how}.'
        )
    of_sets = [other for other in metric_names if split_name(other, metric_names)[0]]
    if name not in metric_names and training_name in metric_names and of_sets:
        same = [other for other in of_sets if split_name(other, metric_names)[1] == training_name]
        raise ConfigError(
            f'monitor: got {name!r}, but X_val has validation sets with names. Monitor one of '
            f'them: {" or ".join(map(repr, same))}.'
        )
    if name not in metric_names and training_name in metric_names:
        raise ConfigError(
            f'monitor: got {name!r}, but there is no validation data. Pass X_val and y_val, or '
            f'validation_split, or monitor {training_name!r}.'
        )
    if name not in metric_names:
        raise ConfigError(unknown_name('monitor', name, metric_names))
    higher = is_higher_better(training_name, getattr(metric_names, 'heads', ()))
    if mode is None and higher is None:
        raise ConfigError(
            f"mode: got None for {name!r}, a custom metric, expected 'min' if smaller values are "
            "better, or 'max' if larger ones are."
        )
    return MetricMonitor(name, mode or ('max' if higher else 'min'), min_delta)


def monitor_problems(monitor: object, mode: object) -> list[str]:
    """Returns a sentence for each problem with these settings."""
    found = []
    if not isinstance(monitor, str | None):
        found.append(f"monitor: got {monitor!r}, expected a metric's name, such as 'val_loss'.")
    if mode not in (None, 'min', 'max'):
        found.append(unknown_name('mode', mode, ('min', 'max')))
    return found


def improvement_problems(monitor: object, mode: object, min_delta: Any, patience: Any) -> list[str]:
    """Returns a sentence for each problem with these settings, ``patience`` included."""
    found = monitor_problems(monitor, mode)
    if not (is_number(min_delta) and min_delta >= 0):
        found.append(f'min_delta: got {min_delta!r}, expected a number of at least 0.')
    if not (is_whole(patience) and patience >= 1):
        found.append(
            f'patience: got {patience!r}, expected a whole number of epochs of at least 1, which '
            'acts on the first epoch without improvement.'
        )
    return found


class MonitoringCallback(BuiltInCallback):
    """The base class of callbacks that act on one metric, with these settings.

    Attributes:
        monitor: the name of the metric in the history; None for the default.
        mode: ``'min'`` or ``'max'``; None for the mode that suits the metric.
        min_delta: an improvement is larger than this.
    """

    monitor: str | None
    mode: Mode | None
    min_delta: float
    _monitor: MetricMonitor

    def monitor_among(self, metric_names: tuple[str, ...]) -> MetricMonitor:
        """Returns the monitor of the metric, from the names that an epoch records.

        Raises:
            ConfigError: if the metric is not among them.
        """
        return monitor_for(self.monitor, self.mode, metric_names, self.min_delta)

    @property
    def watched_name(self) -> str:
        """Returns the name of the metric, once a run has started."""
        return self._monitor.name

    def check(self, metric_names: tuple[str, ...]) -> None:
        """Raises a `ConfigError` if the metric is not recorded."""
        self.monitor_among(metric_names)
