"""The state a train step carries."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct

from thinkml.core.parallel.sharding import Layout, pin_state, put_global
from thinkml.core.train.optimizers import set_hyperparams
from thinkml.core.xla.jit import Jit


class Ema(struct.PyTreeNode):
    """A moving average of the parameters: ``decay * average + (1 - decay) * params``.

    The decay warms up, so that the average holds nothing of the initial parameters and little of
    the first steps, however short the run is: after ``t`` earlier steps it is
    ``min(decay, t / (t + 9))``. The average is thus one of about the last tenth of the steps, until
    that is longer than what ``decay`` remembers: 0.999 is reached after 9,000 steps.

    The average of bfloat16 and float16 parameters is float32. In their precision it would stand
    still: what a step adds to it is less than half of its last digit.

    Attributes:
        params: the average.
        decay: float32 scalar between 0 and 1, which the warm-up leads to.

    Reference:
        Polyak and Juditsky, 1992, *Acceleration of stochastic approximation by averaging*. Shamir
        and Zhang, 2013, *Stochastic gradient descent for non-smooth optimization* (the warm-up,
        polynomial-decay averaging).
    """

    params: Any
    decay: jax.Array

    @classmethod
    def of(cls, params: Any, decay: float) -> Self:
        """Returns the average before the first step."""

        def start(leaf: jax.Array) -> jax.Array:
            return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32))  # a copy

        return cls(jax.tree.map(start, params), jnp.asarray(decay, jnp.float32))

    def update(self, params: Any, step: jax.Array) -> Self:
        """Returns the average after a step to ``params``, with ``step`` steps before that one."""
        decay = jnp.minimum(self.decay, step / (step + 9))

        def move(average: jax.Array, value: jax.Array) -> jax.Array:
            return average + ((1 - decay) * (value - average)).astype(average.dtype)

        return self.replace(params=jax.tree.map(move, self.params, params))


class TrainState(struct.PyTreeNode):
    """Everything a training step reads and returns, as one pytree.

    Attributes:
        step: int32 scalar, steps taken so far.
        params: the trainable arrays.
        model_state: arrays the model updates without gradients (BatchNorm statistics).
        opt_state: the optimizer's state, learning rate included.
        key: PRNG key of the run; step ``i`` draws from ``fold_in(key, i)``.
        ema: an average of the parameters over the steps; None for none.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    key: jax.Array
    ema: Ema | None = None

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and keep: the average where there is one."""
        if self.ema is None:
            return self.params

        def as_param(average: jax.Array, param: jax.Array) -> jax.Array:
            return average if average.dtype == param.dtype else average.astype(param.dtype)

        return jax.tree.map(as_param, self.ema.params, self.params)


def init_state(
    params: Any,
    model_state: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    learning_rate: float | None = None,
    *,
    ema_decay: float | None = None,
    layout: Layout | None = None,
    **hyperparams: float | None,
) -> TrainState:
    """Creates the state before the first step, from copies of the given arrays.

    The copies may be donated to compiled programs while the user's arrays stay valid.

    Args:
        params: the trainable arrays.
        model_state: the other arrays.
        tx: the optimizer.
        key: PRNG key of the run.
        learning_rate: for an optimizer from `make_optimizer`, which holds it in its state; None
            for one that was built with its own.
        ema_decay: of the parameters' moving average, see `Ema`; None keeps none.
        layout: where the state is to be, on several devices; None for one.
        **hyperparams: the optimizer's other numbers, see `set_hyperparams`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from thinkml.core import init_state
        >>> state = init_state({'w': jnp.ones(3)}, {}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """
    hyperparams = {'learning_rate': learning_rate} | hyperparams
    if layout is not None:
        arrays = (params, model_state, key)
        params, model_state, key = jax.tree.map(put_global, arrays, layout.state_sharding(arrays))
    return _init_state(tx.init, layout, params, model_state, key, hyperparams, ema_decay)


def _init(
    init_optimizer: Any,
    layout: Layout | None,
    params: Any,
    model_state: Any,
    key: jax.Array,
    hyperparams: dict[str, float | None],
    ema_decay: float | None,
) -> TrainState:
    # jnp.copy because a jitted function hands unchanged inputs back as the same buffers.
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
