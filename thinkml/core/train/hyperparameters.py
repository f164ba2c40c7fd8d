"""Hyperparameters of optimizers: numbers in the state of an optax transformation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from thinkml.core.parallel.sharding import put_like
from thinkml.errors import ConfigError, unknown_name
from thinkml.typing import PyTree

# The integer hyperparameters. Negative warm-up steps mean the schedule's default fraction.
STEPS = {'total_steps': None, 'warmup_steps': -1}
# The hyperparameters with a value for each parameter group.
GROUP_RATES, GROUP_DECAYS = 'group_learning_rates', 'group_weight_decays'


class OptimizerState(NamedTuple):
    """The state of an optimizer from `make_optimizer`; it contains only arrays.

    Attributes:
        step: int32 scalar, the number of updates so far.
        last_rate: the learning rate of the last update, 0 before the first; None for an optax
            transformation with a built-in rate.
        hyperparams: the values that `set_hyperparams` sets. Those that must be set before the first
            update are None until then.
        inner_state: the state of the optax transformations.
    """

    step: jax.Array
    last_rate: jax.Array | None
    hyperparams: dict[str, jax.Array | None]
    inner_state: optax.OptState


Number = float | Sequence[float]


def with_hyperparams(
    defaults: dict[str, Number | None],
    learning_rate: Callable[[jax.Array, dict[str, Any]], jax.Array | None],
    make: Callable[[Any, dict[str, Any]], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Returns a transformation that calls ``make`` in every update with the state's values.

    Args:
        defaults: the hyperparameters, see `OptimizerState`.
        learning_rate: a function ``(step, hyperparams)``. It returns the rate, or the rate of each
            parameter group, or None for transformations with a built-in rate.
        make: a function ``(rate, hyperparams)`` that returns the transformation.
    """

    def init(params: PyTree) -> OptimizerState:
        hyperparams = {
            name: None if value is None else jnp.array(value, _dtype(name))
            for name, value in defaults.items()
        }
        start, groups = jnp.float32(0.001), hyperparams.get(GROUP_RATES)
        start = start if groups is None else jnp.broadcast_to(start, groups.shape)
        inner = make(start, hyperparams)
        rate = None if 'learning_rate_scale' not in defaults else jnp.zeros((), jnp.float32)
        return OptimizerState(
            step=jnp.zeros((), jnp.int32),
            last_rate=rate,
            hyperparams=hyperparams,
            inner_state=inner.init(params),
        )

    def update(
        updates: PyTree, state: OptimizerState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, OptimizerState]:
        _check_all_set(state.hyperparams)
        rate = learning_rate(state.step, state.hyperparams)
        inner = optax.with_extra_args_support(make(rate, state.hyperparams))
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        last = _rate_to_show(rate, state.hyperparams)
        return updates, state._replace(step=state.step + 1, last_rate=last, inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _rate_to_show(rate: Any, hyperparams: dict[str, Any]) -> jax.Array | None:
    """Returns the rate of the first parameter group that has the shared one, or else any."""
    own = hyperparams.get(GROUP_RATES)
    return rate if own is None else rate[jnp.argmax(jnp.where(own < 0, 2, own > 0))]


def _dtype(name: str) -> DTypeLike:
    return jnp.int32 if name in STEPS else jnp.float32


def _check_all_set(hyperparams: dict[str, Any]) -> None:
    missing = [name for name, value in hyperparams.items() if value is None]
    if missing:
        raise ConfigError(
            f'{missing[0]}: not set, and this optimizer needs it. Before the first step, call '
            f'opt_state = set_hyperparams(opt_state, {missing[0]}=...).'
        )


_MISSING_REASONS = {
    'learning_rate': 'this optimizer has its own built in. Use make_optimizer(name), or wrap '
    'yours with optax.inject_hyperparams.',
    'learning_rate_scale': 'this optimizer has its learning rate built in. Use '
    'make_optimizer(name), or make_optimizer(function of the learning rate).',
    'weight_decay': 'this optimizer has its own, or none, built in. Use make_optimizer(name), or '
    'make_optimizer(function of the learning rate).',
    'gradient_clip_norm': 'this optimizer does not clip gradients. Use '
    'make_optimizer(..., clip_gradients=True).',
    'total_steps': 'this optimizer does not use one of the schedules in SCHEDULES. Use '
    "make_optimizer(name, schedule='cosine').",
    GROUP_RATES: 'this optimizer has no parameter groups. Use make_optimizer({pattern: name}).',
    GROUP_DECAYS: 'this optimizer has no parameter groups. Use make_optimizer({pattern: name}).',
    'warmup_steps': 'this optimizer does not use one of the schedules in SCHEDULES. Use '
    "make_optimizer(name, schedule='warmup_cosine').",
}


def set_hyperparams(opt_state: PyTree, **numbers: Number | None) -> PyTree:
    """Returns the optimizer state with new hyperparameters.

    Args:
        opt_state: the state of an optimizer from `make_optimizer`, or of one made with
            `optax.inject_hyperparams`.
        **numbers: the new values; None keeps the present one. `make_optimizer` has these:

            - ``learning_rate``: the peak rate, 0.001 if never set.
            - ``weight_decay``: 0 for none; if never set, the optimizer's default, see
              `make_optimizer`.
            - ``gradient_clip_norm``: with ``clip_gradients=True``; must be set.
            - ``total_steps``: the number of steps until the schedule ends; must be set except for
              ``'constant'``.
            - ``warmup_steps``: if never set, the schedule's default fraction of the steps.
            - ``learning_rate_scale``: see `scale_learning_rate`.
            - ``group_learning_rates`` and ``group_weight_decays``: for an optimizer by pattern, a
              number for each pattern, in their order. A negative one stands for
              ``learning_rate`` or ``weight_decay``, which is the default.

    Raises:
        ConfigError: for a hyperparameter that the optimizer's state does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import make_optimizer, set_hyperparams
        >>> state = make_optimizer('adamw').init(jnp.ones(2))
        >>> state = set_hyperparams(state, learning_rate=0.01, weight_decay=None)
        >>> float(state.hyperparams['weight_decay'])
        9.999...e-05
    """
    hyperparams = getattr(opt_state, 'hyperparams', {})
    values = {name: value for name, value in numbers.items() if value is not None}
    for name in values:
        if name not in hyperparams and name not in _MISSING_REASONS:
            raise ConfigError(unknown_name('hyperparams', name, [*_MISSING_REASONS, *hyperparams]))
        if name not in hyperparams:
            raise ConfigError(f'{name}: {_MISSING_REASONS[name]}')
    changed = {name: _like(hyperparams[name], value, name) for name, value in values.items()}
    return opt_state._replace(hyperparams=hyperparams | changed) if changed else opt_state


def _like(old: jax.Array | None, value: Number, name: str) -> jax.Array:
    """Returns a new array, never the caller's, with the old one's dtype and shape.

    The old one has an axis more if it holds the values of several states.
    """
    if old is None:
        return jnp.array(value, _dtype(name))
    array = jnp.broadcast_to(jnp.asarray(value), jnp.shape(old))
    return put_like(jnp.array(array, jnp.result_type(old)), old)


def set_learning_rate(opt_state: PyTree, learning_rate: float) -> PyTree:
    """Returns the optimizer state with another (peak) learning rate; see `set_hyperparams`.

    Raises:
        ConfigError: if the optimizer has a built-in learning rate.
    """
    return set_hyperparams(opt_state, learning_rate=learning_rate)


def scale_learning_rate(opt_state: PyTree, factor: float) -> PyTree:
    """Returns the optimizer state with the rate of every later update multiplied by ``factor``.

    It multiplies ``learning_rate_scale``, so the schedule keeps its shape, and the factors of
    repeated calls multiply. The call does not wait for the device.

    Raises:
        ConfigError: if the optimizer has a built-in learning rate.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import make_optimizer, scale_learning_rate
        >>> state = make_optimizer('adam').init(jnp.ones(2))
        >>> state = scale_learning_rate(scale_learning_rate(state, 0.5), 0.5)
        >>> float(state.hyperparams['learning_rate_scale'])
        0.25
    """
    hyperparams = getattr(opt_state, 'hyperparams', {})
    if 'learning_rate_scale' not in hyperparams:
        raise ConfigError(f'learning_rate_scale: {_MISSING_REASONS["learning_rate_scale"]}')
    scale = hyperparams['learning_rate_scale'] * factor
    return opt_state._replace(hyperparams=hyperparams | {'learning_rate_scale': scale})


def get_learning_rate(opt_state: PyTree) -> jax.Array | None:
    """Returns the learning rate of the last update, including schedule and scale, on the device.

    It is 0 before the first update, and None for an optimizer with a built-in rate.
    """
    if isinstance(opt_state, OptimizerState):
        return opt_state.last_rate
    return getattr(opt_state, 'hyperparams', {}).get('learning_rate')
