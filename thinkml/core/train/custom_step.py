"""Custom steps: training steps that the user writes, for the same loop as ThinkML's."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu.metrics import Collection
from flax import struct

from thinkml.core.model.adapters import ApplyFn
from thinkml.core.objectives.hashable import hashable
from thinkml.core.objectives.model_objective import ObjectiveBatch
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout, pin_state, replicate, split_rows
from thinkml.core.train.state import TrainState
from thinkml.core.train.step import AUGMENT, AugmentFn, Batch, StepOutput, TrainStep
from thinkml.core.xla.cpu_convolutions import fast_convolutions
from thinkml.core.xla.target import tracing_for
from thinkml.errors import ConfigError
from thinkml.typing import PyTree

CustomStep = Callable[..., tuple['StepState', StepOutput]]
"""A function ``(state, batch) -> (state, StepOutput)`` of a `StepState` and an `ObjectiveBatch`."""


@dataclasses.dataclass(frozen=True)
class CheckedStep:
    """A custom step that was traced.

    Attributes:
        function: the user's function.
        values: the names of the values that it returns.
        has_labels: False if the data has no labels.
    """

    function: CustomStep = dataclasses.field(compare=False)
    values: tuple[str, ...]
    has_labels: bool
    _key: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, '_key', hashable(self.function))


def step_name(step: Any) -> str:
    """Returns the name of a custom step."""
    return getattr(step, '__qualname__', type(step).__qualname__)


def has_init(step: Any) -> bool:
    """Returns True for a step that makes the state of its optimizers itself."""
    return callable(getattr(step, 'init', None))


class StepState(struct.PyTreeNode):
    """The state that a custom step reads, and returns with other arrays.

    Attributes:
        params: the trainable arrays, as nested dicts by the names of the model's attributes.
        model_state: the arrays that the model updates without gradients (BatchNorm statistics).
        opt_state: the optimizer's state, or the result of the step's ``init(params)``.
        step: int32 scalar, the number of steps so far.
        key: the PRNG key of this step.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    step: jax.Array
    key: jax.Array
    _apply: Any = struct.field(pytree_node=False)
    _tx: Any = struct.field(pytree_node=False)

    def run(
        self, function: Callable[[Any], PyTree], params: PyTree = None, *, key: Any = None
    ) -> tuple[PyTree, PyTree]:
        """Returns the result of ``function(model)`` and the model state after it.

        The model is the user's object in training mode with arrays in it: an NNX module, a bound
        Linen module, or the ``apply`` of `from_functions`.

        Args:
            function: a function of the model, which may call any of its methods.
            params: the parameters, with respect to which gradients may be taken; None for those of
                the state.
            key: the key of the model's random draws (dropout); None for that of the state.
        """
        params = self.params if params is None else params
        key = self.key if key is None else key
        return self._apply.run(params, self.model_state, function, key=key, train=True)

    def apply_gradients(
        self, gradients: PyTree, model_state: PyTree = None, *, loss: Any = None
    ) -> Self:
        """Returns the state after an update by the optimizer of the settings.

        Args:
            gradients: a gradient for each array of ``params``.
            model_state: the model state after the step; None for the one before.
            loss: the loss, for optimizers that need it.
        """
        more = {} if loss is None else {'value': loss}
        tx = optax.with_extra_args_support(self._tx)
        updates, opt_state = tx.update(gradients, self.opt_state, self.params, **more)
        return self.replace(
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            model_state=self.model_state if model_state is None else model_state,
        )


def step_state(
    state: TrainState, key: jax.Array, apply: ApplyFn, tx: optax.GradientTransformation
) -> StepState:
    """Returns what a custom step gets of a training state."""
    return StepState(
        params=state.params,
        model_state=state.model_state,
        opt_state=state.opt_state,
        step=state.step,
        key=key,
        _apply=apply,
        _tx=tx,
    )


@functools.lru_cache(maxsize=64)
def make_custom_step(
    apply: ApplyFn,
    step: CheckedStep,
    tx: optax.GradientTransformation,
    metrics: type[Collection],
    *,
    augment: AugmentFn | None = None,
    layout: Layout = ONE_DEVICE,
) -> TrainStep:
    """Returns the pure ``train_step(state, batch) -> (state, StepOutput)`` of a user's function.

    The step counts steps, keeps the moving average of the parameters, and records the function's
    loss and values as means over the rows of an epoch. The compiler places the computation on
    several devices, from the placement of the state and of the rows.

    Args:
        apply: the model's forward pass, from `functionalize`.
        step: the user's step.
        tx: the optimizer, see `StepState.apply_gradients`.
        metrics: a CLU collection class of the values, from `make_objective_metrics`.
        augment: a function ``(key, x, y) -> (x, y)``, applied to the batch.
        layout: the layout of the arrays.
    """

    @tracing_for(layout.device, layout.mesh)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
        key = jax.random.fold_in(state.key, state.step)
        batch = split_rows(layout, batch)
        x, y = batch.x, batch.y
        if augment is not None:
            x, y = augment(jax.random.fold_in(key, AUGMENT), x, y)

        def run(state: TrainState, key: jax.Array, batch: ObjectiveBatch) -> Any:
            after, output = step.function(step_state(state, key, apply, tx), batch)
            arrays = after.params, after.model_state, after.opt_state
            return *arrays, output.loss, values_of(output)

        given = ObjectiveBatch(x, y if step.has_labels else None, batch.weight)
        run = fast_convolutions(run)
        params, model_state, opt_state, loss, values = run(state, key, given)
        after = state.after_step(params, model_state, opt_state)
        collected = _collected(metrics, loss, values, batch)
        return pin_state(layout, after), replicate(layout, StepOutput(loss, collected))

    return train_step


def _collected(
    metrics: type[Collection], loss: jax.Array, values: dict[str, jax.Array], batch: Batch
) -> Collection:
    """Returns the loss and the values of a batch, each of its rows counting once."""
    counted = [
        (mask != 0).reshape(len(mask), -1).any(axis=1)
        for mask in jax.tree.leaves(batch.weight if batch.mask is None else batch.mask)
    ]
    weight = functools.reduce(jnp.logical_or, counted).astype(jnp.float32)
    of_rows = {
        name: jnp.broadcast_to(jax.lax.stop_gradient(value), weight.shape)
        for name, value in values.items()
    }
    return metrics.single_from_model_output(
        losses=jnp.broadcast_to(loss, weight.shape), values=of_rows, labels=batch.y,
        weight=weight, mask=weight, grads=None, params=None, updates=None,
    )  # fmt: skip


def values_of(output: StepOutput) -> dict[str, jax.Array]:
    """Returns the values that a custom step returned to be recorded, as float32 numbers.

    Raises:
        ConfigError: for values that are no dict of numbers.
    """
    values: Any = {} if output.metrics is None else output.metrics
    if not isinstance(values, dict) or not all(isinstance(name, str) and name for name in values):
        raise ConfigError(
            f'step: it returned StepOutput.metrics as a {type(values).__name__}, expected a dict '
            "of numbers by names, for instance {'penalty': penalty}."
        )
    for name, value in values.items():
        is_number = isinstance(value, jax.Array | np.ndarray | np.generic | int | float)
        if not is_number or jnp.shape(value) != ():
            got = f'of shape {jnp.shape(value)}' if is_number else f'as {type(value).__name__}'
            raise ConfigError(
                f'step: it returned {name!r} {got} in StepOutput.metrics, expected one number for '
                'the batch. Return the mean of an array over the rows.'
            )
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
