"""The state a train step carries."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from thinkml.core.optimizers import set_learning_rate


class TrainState(struct.PyTreeNode):
    """Everything a training step reads and returns, as one pytree.

    Attributes:
        step: int32 scalar, steps taken so far.
        params: the trainable arrays.
        model_state: arrays the model updates without gradients (BatchNorm statistics).
        opt_state: the optimizer's state, learning rate included.
        key: PRNG key of the run; step ``i`` draws from ``fold_in(key, i)``.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    key: jax.Array


def init_state(
    params: Any,
    model_state: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    learning_rate: float | None = None,
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

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from thinkml.core import init_state
        >>> state = init_state({'w': jnp.ones(3)}, {}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """
    return _init_state(tx.init, params, model_state, key, learning_rate)


def _init(
    init_optimizer: Any, params: Any, model_state: Any, key: jax.Array, learning_rate: float | None
) -> TrainState:
    # jnp.copy because a jitted function hands unchanged inputs back as the same buffers.
    params, model_state, key = jax.tree.map(jnp.copy, (params, model_state, key))
    opt_state = init_optimizer(params)
    if learning_rate is not None:
        opt_state = set_learning_rate(opt_state, learning_rate)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        key=key,
    )


_init_state = jax.jit(_init, static_argnums=0)
