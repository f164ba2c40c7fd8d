"""The training state: parameters, model state, optimizer state and their moving average."""

from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import optax
from flax import struct

from thinkml.core.parallel.sharding import ONE_DEVICE, Layout, pin_state
from thinkml.core.train.hyperparameters import Number, set_hyperparams
from thinkml.core.xla.jit import Jit
from thinkml.typing import PyTree


class Ema(struct.PyTreeNode):
    """A moving average of the parameters: ``decay * average + (1 - decay) * params``.

    The decay warms up: after ``t`` earlier steps it is ``min(decay, t / (t + 9))``. So even in a
    short run the average contains nothing of the initial parameters and little of the first steps.
    It averages about the last tenth of the steps, until that is longer than the memory of
    ``decay``: 0.999 is reached after 9,000 steps.

    The average of bfloat16 and float16 parameters is float32. In their precision it would not
    change, because a step adds less than half of the last digit.

    Attributes:
        params: the average.
        decay: float32 scalar between 0 and 1, the decay after the warm-up.

    Reference:
        Polyak and Juditsky, 1992, *Acceleration of stochastic approximation by averaging*. Shamir
        and Zhang, 2013, *Stochastic gradient descent for non-smooth optimization* (the warm-up,
        polynomial-decay averaging).
    """

    params: PyTree
    decay: jax.Array

    @classmethod
    def of(cls, params: PyTree, decay: float) -> Self:
        """Returns the average before the first step."""

        def start(leaf: jax.Array) -> jax.Array:
            return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32))  # a copy

        return cls(jax.tree.map(start, params), jnp.asarray(decay, jnp.float32))

    def update(self, params: PyTree, step: jax.Array) -> Self:
        """Returns the average after the step to ``params``, which ``step`` steps preceded."""
        decay = jnp.minimum(self.decay, step / (step + 9))

        def move(average: jax.Array, value: jax.Array) -> jax.Array:
            return average + ((1 - decay) * (value - average)).astype(average.dtype)

        return self.replace(params=jax.tree.map(move, self.params, params))


class TrainState(struct.PyTreeNode):
    """Everything that a training step reads and returns, as one pytree.

    Attributes:
        step: int32 scalar, the number of steps so far.
        params: the trainable arrays.
        model_state: the arrays that the model updates without gradients (BatchNorm statistics).
        opt_state: the optimizer's state, including the learning rate.
        key: the PRNG key of the run; step ``i`` draws from ``fold_in(key, i)``.
        ema: the moving average of the parameters; None for none.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: jax.Array
    ema: Ema | None = None

    @property
    def eval_params(self) -> PyTree:
        """Returns the parameters to evaluate and save: the moving average if there is one."""
        if self.ema is None:
            return self.params

        def as_param(average: jax.Array, param: jax.Array) -> jax.Array:
            return average if average.dtype == param.dtype else average.astype(param.dtype)

        return jax.tree.map(as_param, self.ema.params, self.params)

    def after_step(self, params: PyTree, model_state: PyTree, opt_state: PyTree) -> Self:
        """Returns the state after a step to these arrays, with the moving average updated."""
        return self.replace(
            step=self.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=None if self.ema is None else self.ema.update(params, self.step),
        )


def init_state(
    params: PyTree,
    model_state: PyTree,
    tx: optax.GradientTransformation,
    key: jax.Array,
    learning_rate: float | None = None,
    *,
    ema_decay: float | None = None,
    layout: Layout = ONE_DEVICE,
    **hyperparams: Number | None,
) -> TrainState:
    """Creates the state before the first step, from copies of the given arrays.

    The copies may be donated to compiled programs while the user's arrays remain valid.

    Args:
        params: the trainable arrays.
        model_state: the other arrays.
        tx: the optimizer.
        key: the PRNG key of the run.
        learning_rate: the rate for an optimizer from `make_optimizer`, which stores it in its
            state; None for an optimizer with a built-in rate.
        ema_decay: the decay of the parameters' moving average, see `Ema`; None for no average.
        layout: the layout of the state on several devices; `ONE_DEVICE` for the default device.
        **hyperparams: the optimizer's other hyperparameters, see `set_hyperparams`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from thinkml.core import init_state
        >>> state = init_state({'w': jnp.ones(3)}, {}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """
    numbers: dict[str, Number | None] = {'learning_rate': learning_rate, **hyperparams}
    params, model_state, key = layout.put_state((params, model_state, key))
    return _init_state(tx.init, layout, params, model_state, key, numbers, ema_decay)


def _init(
    init_optimizer: Callable[[PyTree], PyTree],
    layout: Layout,
    params: PyTree,
    model_state: PyTree,
    key: jax.Array,
    hyperparams: dict[str, Number | None],
    ema_decay: float | None,
) -> TrainState:
    # jnp.copy because a jitted function returns unchanged inputs as the same buffers.
    params, model_state, key = jax.tree.map(jnp.copy, (params, model_state, key))
    opt_state = init_optimizer(params)
    if any(value is not None for value in hyperparams.values()):
        opt_state = set_hyperparams(opt_state, **hyperparams)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        key=key,
        ema=None if ema_decay is None else Ema.of(params, ema_decay),
    )
    return pin_state(layout, state)


_init_state = Jit(_init, static_argnums=(0, 1))
