"""ReduceLROnPlateau: a callback that lowers the learning rate when a metric stops improving."""

import dataclasses
from typing import Any

from thinkml.core import scale_learning_rate
from thinkml.errors import ConfigError, is_number, is_whole, problems
from thinkml.training.metric_monitor import Mode, MonitoringCallback, improvement_problems
from thinkml.training.run import Run


@dataclasses.dataclass(unsafe_hash=True)
class ReduceLROnPlateau(MonitoringCallback):
    """A callback that lowers the learning rate when a metric stops improving.

    Attributes:
        monitor: a name in the history; None for ``'val_loss'``, the loss of the first of several
            validation sets, or ``'loss'`` without validation data.
        factor: the rate is multiplied by this number, between 0 and 1.
        patience: epochs without improvement before that.
        mode: ``'min'`` or ``'max'``; None for what suits the metric.
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
        found = improvement_problems(self.monitor, self.mode, self.min_delta, self.patience)
        if not (is_number(self.factor) and 0 < self.factor < 1):
            found.append(f'factor: got {self.factor!r}, expected a number between 0 and 1.')
        if not (is_whole(self.cooldown) and self.cooldown >= 0):
            found.append(f'cooldown: got {self.cooldown!r}, expected a whole number of epochs.')
        if not (is_number(self.min_rate) and self.min_rate >= 0):
            found.append(f'min_rate: got {self.min_rate!r}, expected a number of at least 0.')
        if found:
            raise ConfigError(problems('ReduceLROnPlateau can not be used:', found))

    def on_train_start(self, run: Run) -> None:
        self._monitor = self.monitor_among(run.metric_names)
        self._waited_since = 0
        try:
            scale_learning_rate(run.state.opt_state, 1.0)
        except ConfigError as error:
            raise ConfigError(
                'callbacks: got ReduceLROnPlateau, but the optimizer has its own learning rate, '
                'which it can not lower. Use an optimizer by name, or a function learning_rate -> '
                'transformation; a custom step then needs no init.'
            ) from error

    def on_epoch_end(self, run: Run) -> None:
        self._monitor.improves(run)
        self._waited_since = max(self._waited_since, self._monitor.improved)
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
        """Returns what it remembers, for checkpoints."""
        return self._monitor.state_dict() | {'waited_since': self._waited_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        self._monitor.load_state_dict(state)
        self._waited_since = state['waited_since']
