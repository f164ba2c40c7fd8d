"""Run: a training in progress."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from clu.metrics import Collection

from thinkml.core import DeviceData, Position, TrainState, get_learning_rate
from thinkml.core.model.adapters import arrays_in, no_arrays
from thinkml.core.parallel.sharding import Layout, put_like
from thinkml.core.train.optimizers import set_hyperparams
from thinkml.core.train.step import EvalStep, TrainStep
from thinkml.core.xla.jit import Jit
from thinkml.errors import ConfigError, is_number
from thinkml.monitoring import History
from thinkml.training.config import TrainingConfig

# What a run keeps of its state must be copied: the state is donated to the next chunk.
copy_arrays = Jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _taken(new: Any, old: Any) -> Any:
    """Copies of arrays, in the place of others.

    Raises:
        ConfigError: if they have another structure or other shapes.
    """
    shapes = (jax.tree.map(jnp.shape, tree) for tree in (new, old))
    if operator.ne(*shapes):
        raise ConfigError(
            'model: a callback has put arrays of other shapes or names into run.model, or changed '
            'one whose low-rank update is trained. Put in arrays like those that were there, or '
            'assign to run.state.'
        )
    arrays = jax.tree.map(lambda array, like: jnp.asarray(array, like.dtype), new, old)
    return jax.tree.map(put_like, copy_arrays(arrays), old)


class Program(NamedTuple):
    """The functions that a run compiles, the metric collections they fill, and the devices.

    Attributes:
        train_step: the training step, see `thinkml.core.make_train_step`.
        metrics: the metrics of training.
        eval_step: the evaluation step, see `thinkml.core.make_eval_step`.
        eval_metrics: the metrics of validation.
        layout: the placement of arrays on the devices.
    """

    train_step: TrainStep
    metrics: type[Collection]
    eval_step: EvalStep
    eval_metrics: type[Collection]
    layout: Layout | None


class Validation(NamedTuple):
    """What is evaluated after each epoch.

    Attributes:
        read: returns the data, in one piece or in several.
        batch_size: rows at a time.
        capacity: the number of rows, filler rows included; None if it is unknown.
    """

    read: Callable[[], DeviceData | Iterable[DeviceData]]
    batch_size: int
    capacity: int | None


class Times(NamedTuple):
    """Where the time of some steps went; validation, checkpoints and callbacks are not in it.

    Attributes:
        steps: how many.
        step_seconds: how long the device took for them.
        input_seconds: how long it waited for their data, at rest.
    """

    steps: int = 0
    step_seconds: float = 0.0
    input_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.step_seconds + self.input_seconds

    @property
    def input_share(self) -> float:
        """The share of the time that was waited; NaN of no time."""
        return self.input_seconds / self.seconds if self.seconds else math.nan

    def plus(self, steps: int, step_seconds: float, input_seconds: float) -> 'Times':
        """With further steps."""
        return Times(
            self.steps + steps,
            self.step_seconds + step_seconds,
            self.input_seconds + input_seconds,
        )

    def since(self, earlier: 'Times') -> 'Times':
        """Without those that were there earlier."""
        steps, step_seconds, input_seconds = earlier
        return self.plus(-steps, -step_seconds, -input_seconds)


class EpochEnd(NamedTuple):
    """The end of an epoch, as a logger saw it beside the history.

    Attributes:
        learning_rate: of the epoch's last step; None for an optimizer that keeps its own.
        time: seconds since 1970.
        num_metrics: how many of the history's names there were.
    """

    learning_rate: float | None
    time: float
    num_metrics: int


# Schedules that leave the rate as it is set.
_UNSCHEDULED = ('constant', 'reduce_on_plateau')


@dataclasses.dataclass(repr=False)
class Run:
    """A training run in progress: what callbacks see.

    Attributes:
        user_model: the user's object as it was before the run, until ``model`` is asked for.
        write: puts parameters and model state into it.
        config: the settings.
        history: what was recorded so far.
        state: the current training state, on the device.
        metric_names: the names an epoch records.
        callbacks: those with hooks.
        settings: of the run, as plain values: those of the config, the loss, the data.
        epoch: epochs finished.
        position: where the next chunk begins.
        stop_reason: why the run is to end before its last epoch; None while it is not.
        is_early_stopped: whether early stopping is that reason.
        continued_at: epochs that were finished when a run that had been stopped was continued.
        best_val_loss: the lowest so far, that of ``history.best_epoch``.
        best_arrays: parameters and model state to end with instead of the last ones; None for
            the last.
        resumed: whether it goes on from a checkpoint.
        epoch_ends: one for each epoch; None for those of a checkpoint that did not keep them yet.
        logs: the names of the directories and tables that loggers write for this run, by what the
            loggers were given.
        kept: a copy of the state before the steps in progress, to go back to if they fail; None
            where none is kept.
        compiled: whether a first dispatch is done.
        times: of the steps in this process after that one, which compiles.
        waits: whether a warning has said that the run waits for its data.
        read: returns the arrays that are in the user's object, see `FunctionalModel`.
        shown: those that were there when the object was last shown or the run began.
        is_shown: whether a callback has asked for ``model``.
        is_checked: whether the object is still the model it was since then.
    """

    user_model: Any
    write: Callable[[Any, Any], None]
    config: TrainingConfig
    history: History
    state: TrainState
    metric_names: tuple[str, ...]
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    epoch: int = 0
    position: Position = Position()  # noqa: RUF009 (immutable)
    stop_reason: str | None = None
    is_early_stopped: bool = False
    continued_at: int = 0
    best_val_loss: float = math.inf
    best_arrays: tuple[Any, Any] | None = None
    resumed: bool = False
    epoch_ends: list[EpochEnd | None] = dataclasses.field(default_factory=list)
    logs: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: TrainState | None = None
    compiled: bool = False
    times: Times = Times()  # noqa: RUF009 (immutable)
    waits: bool = False
    read: Callable[[], tuple[Any, Any] | None] = no_arrays
    shown: list[Any] = dataclasses.field(default_factory=list)
    is_shown: bool = False
    is_checked: bool = True

    def __repr__(self) -> str:
        return f'Run(epoch={self.epoch}, step={self.step}, stop_reason={self.stop_reason!r})'

    @property
    def model(self) -> Any:
        """The user's object, with copies of the parameters as they are now, in eval mode.

        In ``on_train_end``, those that the training ends with. Arrays that a callback changes in it
        are trained on; another change is a `ConfigError`.
        """
        self.take_changes()
        self.write(*copy_arrays(self._arrays))
        self.shown, self.is_shown, self.is_checked = arrays_in(self.user_model), True, False
        return self.user_model

    @model.setter
    def model(self, model: Any) -> None:
        raise ConfigError(
            f'model: got another {type(model).__name__} for run.model, but a run trains one object '
            'to its end. Put the arrays into that one: flax.nnx.update(run.model, '
            'flax.nnx.state(other)).'
        )

    @property
    def _arrays(self) -> tuple[Any, Any]:
        return self.best_arrays or (self.state.eval_params, self.state.model_state)

    @property
    def is_changed(self) -> bool:
        """Returns True if the user's object has other arrays than it was shown with."""
        now = arrays_in(self.user_model)
        same = (new is old for new, old in zip(now, self.shown, strict=False))
        return len(now) != len(self.shown) or not all(same)

    def take_changes(self) -> None:
        """Continues with the arrays that a callback has put into the object it was shown.

        Raises:
            ConfigError: if it can't.
        """
        if not self.is_shown or (self.is_checked and not self.is_changed):
            return
        is_changed, self.is_checked = self.is_changed, True
        self.shown = arrays_in(self.user_model)
        try:
            found = self.read()
        except ConfigError:
            if is_changed:  # the object may have no place for what was trained
                self.write = lambda params, model_state: None
            raise
        if not is_changed or found is None:
            return
        if self.state.ema is not None and self.best_arrays is None:
            raise ConfigError(
                'model: a callback has changed run.model, which has the moving average of the '
                'parameters (ema_decay). Change what is trained: run.state = run.state.replace('
                'params=...).'
            )
        params, model_state = arrays = _taken(found, self._arrays)
        if self.best_arrays is not None:
            self.best_arrays = arrays
        else:
            self.state = self.state.replace(params=params, model_state=model_state)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.history.steps

    @property
    def learning_rate(self) -> float | None:
        """The rate of the last step; None for an optimizer that keeps its own.

        Assign to it for the steps that follow. A rate that follows a schedule, and one that an
        optimizer keeps, can't be assigned, which is a `ConfigError`.
        """
        rate = get_learning_rate(self.state.opt_state)
        return None if rate is None else float(rate)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        if not (is_number(rate) and rate > 0):
            raise ConfigError(f'learning_rate: got {rate!r}, expected a number above 0.')
        config = self.config
        if callable(config.learning_rate) or config.lr_schedule not in _UNSCHEDULED:
            raise ConfigError(
                f'learning_rate: got {rate!r} from a callback, but the rate follows a schedule, '
                "which gives it again in each step. Use lr_schedule='constant', or a function "
                'step -> rate as learning_rate.'
            )
        held = getattr(self.state.opt_state, 'hyperparams', {})
        # What ReduceLROnPlateau has multiplied it by so far is in the new rate.
        scale = {name: 1.0 for name in held if name == 'learning_rate_scale'}
        opt_state = set_hyperparams(self.state.opt_state, learning_rate=float(rate), **scale)
        self.state = self.state.replace(opt_state=opt_state)

    def stop(self, reason: str) -> None:
        """Ends the run with this chunk of steps and notes the reason in the history's events."""
        self.stop_reason = reason
        self.history.events.append((self.epoch, reason))
