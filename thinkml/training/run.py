"""Run: a training in progress."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thinkml.core import TrainState
from thinkml.monitoring import History
from thinkml.training.config import TrainingConfig

# What a run keeps of its state must be copied: the state is donated to the next chunk.
copy_arrays = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@dataclasses.dataclass
class Run:
    """A training run in progress: what callbacks see.

    Attributes:
        user_model: the user's object as it was before the run, until ``model`` is asked for.
        write: puts parameters and model state into it.
        config: the settings.
        history: what was recorded so far.
        state: the current training state, on the device.
        metric_names: the names an epoch records.
        epoch: epochs finished.
        stop_reason: why the run is to end before its last epoch; None while it is not.
        best_val_loss: the lowest so far, that of ``history.best_epoch``.
    """

    user_model: Any
    write: Callable[[Any, Any], None]
    config: TrainingConfig
    history: History
    state: TrainState
    metric_names: tuple[str, ...]
    epoch: int = 0
    stop_reason: str | None = None
    best_val_loss: float = math.inf

    @property
    def model(self) -> Any:
        """The user's object, with copies of the parameters as they are now, in eval mode."""
        self.write(*copy_arrays((self.state.params, self.state.model_state)))
        return self.user_model

    def stop(self, reason: str) -> None:
        """Ends the run after this epoch and notes the reason in the history's events."""
        self.stop_reason = reason
        self.history.events.append((self.epoch, reason))
