"""Run: a training in progress."""

import dataclasses
from typing import Any

from thinkml.core import TrainState
from thinkml.monitoring import History
from thinkml.training.config import TrainingConfig


@dataclasses.dataclass
class Run:
    """A training run in progress: what callbacks see.

    Attributes:
        model: the user's object; its arrays are written back when the run ends.
        config: the settings.
        history: what was recorded so far.
        state: the current training state, on the device.
        metric_names: the names an epoch records.
        epoch: epochs finished.
        stop_reason: why the run is to end before its last epoch; None while it is not.
    """

    model: Any
    config: TrainingConfig
    history: History
    state: TrainState
    metric_names: tuple[str, ...]
    epoch: int = 0
    stop_reason: str | None = None

    def stop(self, reason: str) -> None:
        """Ends the run after this epoch and notes the reason in the history's events."""
        self.stop_reason = reason
        self.history.events.append((self.epoch, reason))
