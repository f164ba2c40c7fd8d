"""EarlyStopping: a callback that ends a run when a metric has stopped improving."""

import dataclasses
import math
from typing import Any

from thinkml.errors import ConfigError, is_whole, problems, warn_user
from thinkml.training.metric_monitor import Mode, MonitoringCallback, improvement_problems
from thinkml.training.run import Run, copy_arrays


@dataclasses.dataclass(unsafe_hash=True)
class EarlyStopping(MonitoringCallback):
    """A callback that ends a run when a metric stops improving, and restores the best parameters.

    Attributes:
        monitor: a name in the history; None for ``'val_loss'``, the loss of the first of several
            validation sets, or for ``'loss'``, with a warning, if there is no validation data.
        mode: ``'min'`` or ``'max'``; None for what suits the metric: ``'max'`` for accuracy,
            ``'min'`` for losses and errors.
        min_delta: an improvement, which ``patience`` waits for, is larger than this. The best epoch
            has the best value, however small its improvement.
        patience: epochs without improvement before stopping.
        start_from_epoch: epochs before the metric is monitored. A run that ends within them
            has no best epoch and keeps the last parameters.
        restore_best: True restores the parameters of the best epoch at the end.

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
        found = improvement_problems(self.monitor, self.mode, self.min_delta, self.patience)
        if not isinstance(self.restore_best, bool):
            found.append(f'restore_best: got {self.restore_best!r}, expected True or False.')
        if not (is_whole(self.start_from_epoch) and self.start_from_epoch >= 0):
            found.append(
                f'start_from_epoch: got {self.start_from_epoch!r}, expected a whole number of '
                'epochs, 0 for all.'
            )
        if found:
            raise ConfigError(problems('EarlyStopping can not be used:', found))

    def on_train_start(self, run: Run) -> None:
        self._monitor = self.monitor_among(run.metric_names)
        if self.monitor is None and self._monitor.name == 'loss':
            warn_user(
                'early_stopping: there is no validation data, so it watches the training loss, '
                'which does not notice overfitting. Pass X_val and y_val, or validation_split.'
            )
        self._best_arrays: Any = None
        self._keep(run)

    def on_epoch_end(self, run: Run) -> None:
        if run.epoch <= self.start_from_epoch:
            return
        if self._monitor.improves(run):
            self._keep(run)
        since = max(self._monitor.improved, run.continued_at)
        if run.epoch - max(since, self.start_from_epoch) >= self.patience:
            name = self._monitor.name
            why = ', it is NaN' if math.isnan(run.history.last()[name]) else ''
            run.is_early_stopped = run.stop_reason is None
            run.stop(f'early stopping: {name} has not improved for {self.patience} epochs{why}')

    def on_train_end(self, run: Run) -> None:
        if self.restore_best and self._monitor.epoch:
            run.history.best_epoch = self._monitor.epoch
            run.best_arrays = self._best_arrays
        elif self.restore_best and run.best_arrays is None:
            run.history.best_epoch = (
                None  # it would be that of the lowest val_loss, which was not monitored
            )
        self._best_arrays = None

    def state_dict(self) -> dict[str, Any]:
        """Returns what it remembers, for checkpoints."""
        return self._monitor.state_dict() | {'arrays': self._best_arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        self._monitor.load_state_dict(state)
        self._best_arrays = state['arrays']

    def _keep(self, run: Run) -> None:
        self._best_arrays = None  # first, so that there are never two copies
        if self.restore_best:
            self._best_arrays = copy_arrays((run.state.eval_params, run.state.model_state))
