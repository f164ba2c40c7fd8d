"""Optimizers by name, as optax transformations whose learning rate is a traced value."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from thinkml.errors import ConfigError, unknown_name

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    'adabelief': lambda learning_rate: optax.adabelief(learning_rate),
    'adagrad': lambda learning_rate: optax.adagrad(learning_rate),
    'adam': lambda learning_rate: optax.adam(learning_rate),
    'adamax': lambda learning_rate: optax.adamax(learning_rate),
    'adamw': lambda learning_rate: optax.adamw(learning_rate),
    'lamb': lambda learning_rate: optax.lamb(learning_rate),
    'lion': lambda learning_rate: optax.lion(learning_rate),
    'momentum': lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
    'nadam': lambda learning_rate: optax.nadam(learning_rate),
    'radam': lambda learning_rate: optax.radam(learning_rate),
    'rmsprop': lambda learning_rate: optax.rmsprop(learning_rate),
    'sgd': lambda learning_rate: optax.sgd(learning_rate),
}


@functools.lru_cache(maxsize=64)
def make_optimizer(name: str) -> optax.GradientTransformation:
    """Returns the optax optimizer of that name, with optax's defaults.

    The learning rate is not part of the transformation but a number in its state, to be set with
    `set_learning_rate`: another rate needs no new compiled program. The same name returns the same
    object.

    Args:
        name: a key of ``OPTIMIZERS``; ``'momentum'`` is sgd with momentum 0.9.

    Raises:
        ConfigError: for an unknown name.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import make_optimizer, set_learning_rate
        >>> tx = make_optimizer('sgd')
        >>> state = set_learning_rate(tx.init(jnp.ones(2)), 0.5)
        >>> updates, state = tx.update(jnp.ones(2), state, jnp.ones(2))
        >>> updates.tolist()
        [-0.5, -0.5]
    """
    if name not in OPTIMIZERS:
        raise ConfigError(unknown_name('optimizer', name, OPTIMIZERS))
    return optax.inject_hyperparams(OPTIMIZERS[name])(learning_rate=0.0)


def set_learning_rate(opt_state: optax.OptState, learning_rate: float) -> optax.OptState:
    """Returns the optimizer state with another learning rate.

    Raises:
        ConfigError: if the optimizer is not from `make_optimizer` and has its own rate built in.
    """
    if 'learning_rate' not in getattr(opt_state, 'hyperparams', {}):
        raise ConfigError(
            'learning_rate: this optimizer has its own built in. Use make_optimizer(name), or wrap '
            'yours with optax.inject_hyperparams.'
        )
    return optax.tree.set(opt_state, learning_rate=jnp.asarray(learning_rate, jnp.float32))
