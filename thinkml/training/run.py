"""Run: a training in progress."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from clu.metrics import Collection

from thinkml.core import Chunk, DeviceData, Position, TrainState, get_learning_rate
from thinkml.core.model.adapters import arrays_in, no_arrays
from thinkml.core.objectives.elements import ElementShape
from thinkml.core.parallel.sharding import Layout, put_like
from thinkml.core.train.hyperparameters import set_hyperparams
from thinkml.core.train.step import EvalStep, TrainStep
from thinkml.core.xla.jit import Jit
from thinkml.errors import ConfigError, is_number
from thinkml.monitoring import History
from thinkml.training.config import TrainingConfig
from thinkml.training.parameter_groups import follows_rate
from thinkml.typing import PyTree

# A run keeps copies of its state, because the state is donated to the next chunk.
copy_arrays = Jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _copied_like(new: PyTree, old: PyTree) -> PyTree:
    """Returns copies of arrays, with the dtypes and shardings of others.

    Raises:
        ConfigError: if structure or shapes differ.
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
        eval_step: the evaluation step, see `thinkml.core.make_eval_step`; None for no validation.
        eval_metrics: the metrics of validation.
        layout: the placement of arrays on the devices.
        loop_length: the steps of a call on a GPU, see `thinkml.core.train_chunks`.
        model_step: the training step on one device, without what saves memory. It is not compiled;
            the operations of the model are counted in it.
        element_shapes: the axes of a row that have a label each, by head; None for a model with one
            output. Outputs with one label per row are left out.
    """

    train_step: TrainStep
    metrics: type[Collection]
    eval_step: EvalStep | None
    eval_metrics: type[Collection]
    layout: Layout
    loop_length: int
    model_step: TrainStep
    element_shapes: dict[str | None, ElementShape]


class Validation(NamedTuple):
    """The evaluation of one set after each epoch.

    Attributes:
        read: returns the data, in one piece or in several.
        batch_size: rows at a time.
        capacity: the number of rows, filler rows included; None if it is unknown.
    """

    read: Callable[[], DeviceData | Iterable[DeviceData]]
    batch_size: int
    capacity: int | None


class Times(NamedTuple):
    """The time that some steps took, without validation, checkpoints and callbacks.

    Attributes:
        steps: the number of steps.
        step_seconds: the time that the device computed.
        input_seconds: the time that it waited for data.
        examples: the number of examples in these steps.
    """

    steps: int = 0
    step_seconds: float = 0.0
    input_seconds: float = 0.0
    examples: int = 0

    @property
    def seconds(self) -> float:
        """Returns the sum of both times."""
        return self.step_seconds + self.input_seconds

    @property
    def input_share(self) -> float:
        """Returns the fraction of the time that was spent waiting; NaN if no time passed."""
        return self.input_seconds / self.seconds if self.seconds else math.nan

    def plus(self, further: 'Times') -> 'Times':
        """Returns the times with those of further steps."""
        return Times(
            steps=self.steps + further.steps,
            step_seconds=self.step_seconds + further.step_seconds,
            input_seconds=self.input_seconds + further.input_seconds,
            examples=self.examples + further.examples,
        )

    def since(self, earlier: 'Times') -> 'Times':
        """Returns the times without those of earlier steps."""
        return Times(
            steps=self.steps - earlier.steps,
            step_seconds=self.step_seconds - earlier.step_seconds,
            input_seconds=self.input_seconds - earlier.input_seconds,
            examples=self.examples - earlier.examples,
        )


class EpochEnd(NamedTuple):
    """The end of an epoch: what a logger needs beside the history.

    Attributes:
        learning_rate: the rate of the epoch's last step; None for an optimizer that keeps its own.
        time: seconds since 1970.
        num_metrics: the number of names in the history at that time.
    """

    learning_rate: float | None
    time: float
    num_metrics: int


# Schedules that do not change the rate.
_UNSCHEDULED = ('constant', 'reduce_on_plateau')


@dataclasses.dataclass(repr=False)
class Run:
    """A training run in progress, as callbacks see it.

    Attributes:
        user_model: the user's object, with the arrays from before the run until ``model`` is read.
        write: writes parameters and model state into it.
        config: the settings.
        history: what was recorded so far.
        state: the current training state, on the device.
        program: the functions that the run compiles.
        metric_names: the names that an epoch records.
        callbacks: the callbacks of the run, in the order of their calls.
        settings: the settings as plain values: those of the config, the loss, the data.
        functions: the digests of the user's functions, see `function_digests`.
        epoch: the number of finished epochs; with ``config.validate_every``, of validations.
        position: where the next chunk begins.
        stop_reason: why the run ends before its last epoch; None while it continues.
        is_early_stopped: True if early stopping is that reason.
        continued_at: epochs that were finished when a run that had been stopped was continued.
        best_val_loss: the lowest validation loss so far, that of ``history.best_epoch``; of
            several validation sets the first counts.
        best_arrays: parameters and model state to end with instead of the last ones; None for
            the last.
        resumed: True if it continues from a checkpoint.
        epoch_ends: one for each epoch; None for epochs from a checkpoint that did not keep them.
        logs: the names of the directories and tables that loggers write for this run, by the
            place that the loggers were given.
        kept: a copy of the state before the steps in progress, to return to if they fail; None
            if none is kept.
        compiled: True after the first dispatch, which compiles.
        times: the time that the later steps in this process took.
        chunk: the last steps, as they were dispatched; None before the first ones.
        waits: True once a warning has said that the run waits for its data.
        read: returns the arrays that are in the user's object, see `FunctionalModel`.
        shown: the arrays that were there when the object was last shown, or the run began.
        is_shown: True if a callback has read ``model``.
        is_checked: True if the object was checked since then to be the same model.
    """

    user_model: Any
    write: Callable[[Any, Any], None]
    config: TrainingConfig
    history: History
    state: TrainState
    program: Program
    metric_names: tuple[str, ...]
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    functions: dict[str, str] = dataclasses.field(default_factory=dict)
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
    chunk: Chunk | None = None
    waits: bool = False
    read: Callable[[], tuple[Any, Any] | None] = no_arrays
    shown: list[Any] = dataclasses.field(default_factory=list)
    is_shown: bool = False
    is_checked: bool = True

    def __repr__(self) -> str:
        return f'Run(epoch={self.epoch}, step={self.step}, stop_reason={self.stop_reason!r})'

    @property
    def model(self) -> Any:
        """Returns the user's object, with copies of the current parameters, in eval mode.

        In ``on_train_end``, the parameters are those that the training ends with. Training
        continues with arrays that a callback changes in it; another change is a `ConfigError`.
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
        """Continues with the arrays that a callback has put into the object.

        Raises:
            ConfigError: if they can not be trained.
        """
        if not self.is_shown or (self.is_checked and not self.is_changed):
            return
        is_changed, self.is_checked = self.is_changed, True
        self.shown = arrays_in(self.user_model)
        try:
            found = self.read()
        except ConfigError:
            if is_changed:  # the object may lack a place for the trained arrays
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
        params, model_state = arrays = _copied_like(found, self._arrays)
        if self.best_arrays is not None:
            self.best_arrays = arrays
        else:
            self.state = self.state.replace(params=params, model_state=model_state)

    @property
    def step(self) -> int:
        """Returns the number of steps done."""
        return self.history.steps

    @property
    def learning_rate(self) -> float | None:
        """Returns the rate of the last step; None for an optimizer that keeps its own.

        Assign to it to change the rate of the following steps. A rate that follows a schedule, or
        that an optimizer keeps, can not be assigned, which is a `ConfigError`.
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
                "which sets it in each step. Use lr_schedule='constant', or a function "
                'step -> rate as learning_rate.'
            )
        if isinstance(config.optimizer, Mapping) and not follows_rate(config.optimizer):
            raise ConfigError(
                f'learning_rate: got {rate!r} from a callback, but no pattern of the optimizer '
                'follows the learning rate of the config. Leave it out for one pattern.'
            )
        held = getattr(self.state.opt_state, 'hyperparams', {})
        # The new rate replaces what ReduceLROnPlateau has made of the old one.
        scale = {name: 1.0 for name in held if name == 'learning_rate_scale'}
        opt_state = set_hyperparams(self.state.opt_state, learning_rate=float(rate), **scale)
        self.state = self.state.replace(opt_state=opt_state)

    def stop(self, reason: str) -> None:
        """Ends the run after this chunk of steps, and adds the reason to the history's events."""
        self.stop_reason = reason
        self.history.events.append((self.epoch, reason))
