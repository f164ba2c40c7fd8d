"""Optimizers by name: optax transformations with traced hyperparameters in their state."""

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from thinkml.core.model.parameter_paths import check_patterns, first_matches
from thinkml.core.objectives.hashable import is_hashable
from thinkml.core.train.hyperparameters import (
    GROUP_DECAYS,
    GROUP_RATES,
    STEPS,
    Number,
    set_hyperparams,
    with_hyperparams,
)
from thinkml.core.train.schedules import SCHEDULES, Schedule
from thinkml.errors import ConfigError, unknown_name
from thinkml.typing import PyTree

OptimizerFn = Callable[[Any], optax.GradientTransformation]
ScheduleFn = Callable[[Any], Any]
Optimizer = str | optax.GradientTransformation | OptimizerFn


# --- weight decay -----------------------------------------------------------------------------


def decay_mask(params: PyTree) -> PyTree:
    """Returns a pytree of bools, True for each parameter that weight decay applies to.

    It applies to arrays of rank 2 or more, embeddings included. It does not apply to arrays of rank
    0 and 1 (biases, scales of norms), nor to arrays of any rank named ``bias``, ``scale``,
    ``..._bias`` or ``..._scale``: the biases of attention heads are matrices.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.train.optimizers import decay_mask
        >>> decay_mask({'kernel': jnp.ones((3, 2)), 'bias': jnp.ones(2)})
        {'bias': False, 'kernel': True}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ndim(leaf) >= 2 and not _is_bias_or_scale(path), params
    )


def _is_bias_or_scale(path: tuple[Any, ...]) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return name.rsplit('_', 1)[-1] in ('bias', 'scale')


@dataclasses.dataclass(frozen=True)
class _NamedOptimizer:
    """An optimizer with decoupled weight decay: ``with_numbers(learning_rate, weight_decay)``."""

    with_numbers: Callable[[Any, Any], optax.GradientTransformation]
    weight_decay: float

    @property
    def defaults(self) -> dict[str, Any]:
        """Returns the hyperparameters."""
        return {'weight_decay': self.weight_decay}

    def make(self, rate: Any, hyperparams: dict[str, Any]) -> optax.GradientTransformation:
        """Returns the transformation with a learning rate."""
        return self.with_numbers(rate, hyperparams['weight_decay'])


def _with_builtin_decay(
    optimizer: Callable[..., optax.GradientTransformation],
    weight_decay: float,
    mask: str = 'mask',
) -> _NamedOptimizer:
    """Wraps an optax optimizer that applies weight decay in its own update."""
    return _NamedOptimizer(
        lambda rate, decay: optimizer(rate, weight_decay=decay, **{mask: decay_mask}), weight_decay
    )


def _with_added_decay(optimizer: OptimizerFn) -> _NamedOptimizer:
    """Wraps any other optimizer: subtracts ``learning_rate * weight_decay * params`` as well."""
    return _NamedOptimizer(
        lambda rate, decay: optax.chain(
            optimizer(rate), optax.add_decayed_weights(-rate * decay, mask=decay_mask)
        ),
        0.0,
    )


# --- names ------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, _NamedOptimizer] = {
    'adabelief': _with_added_decay(optax.adabelief),
    'adadelta': _with_added_decay(optax.adadelta),
    'adafactor': _with_added_decay(optax.adafactor),
    'adagrad': _with_added_decay(optax.adagrad),
    'adam': _with_added_decay(optax.adam),
    'adamax': _with_added_decay(optax.adamax),
    'adamaxw': _with_builtin_decay(optax.adamaxw, 1e-4),
    'adamw': _with_builtin_decay(optax.adamw, 1e-4),
    'adan': _with_builtin_decay(optax.adan, 0.0),
    'amsgrad': _with_added_decay(optax.amsgrad),
    'lamb': _with_builtin_decay(optax.lamb, 0.0),
    'lars': _with_builtin_decay(optax.lars, 0.0, mask='weight_decay_mask'),
    'lion': _with_builtin_decay(optax.lion, 1e-3),
    'momentum': _with_added_decay(functools.partial(optax.sgd, momentum=0.9)),
    'muon': _with_added_decay(optax.contrib.muon),
    'nadam': _with_added_decay(optax.nadam),
    'nadamw': _with_builtin_decay(optax.nadamw, 1e-4),
    'nesterov': _with_added_decay(functools.partial(optax.sgd, momentum=0.9, nesterov=True)),
    'novograd': _with_added_decay(optax.novograd),
    'radam': _with_added_decay(optax.radam),
    'rmsprop': _with_added_decay(optax.rmsprop),
    'sgd': _with_added_decay(optax.sgd),
    'yogi': _with_added_decay(optax.yogi),
}


def make_optimizer(
    optimizer: Optimizer | Mapping[str, Optimizer] = 'adam',
    *,
    schedule: str | ScheduleFn = 'constant',
    clip_gradients: bool = False,
) -> optax.GradientTransformation:
    """Returns an optax transformation with its hyperparameters in its state.

    Update ``t`` of ``params``, counted from 0, is the optimizer's update at the rate

        ``learning_rate * learning_rate_scale * schedule(t)``

    plus ``- rate * weight_decay * params`` for the parameters that `decay_mask` selects. The
    hyperparameters (``learning_rate``, ``weight_decay``, ``gradient_clip_norm``, ``total_steps``,
    ``warmup_steps``) belong to the state and not to the transformation, see `set_hyperparams`. So
    new values do not need a new compiled program. Equal arguments return the same object.

    Args:
        optimizer: one of these:

            - A key of ``OPTIMIZERS``, with optax's defaults. ``'momentum'`` is sgd with momentum
              0.9, ``'nesterov'`` the same with Nesterov momentum. ``'muon'`` updates matrices with
              Muon and all other parameters with Adam.
            - A function ``learning_rate -> transformation``, such as `optax.lion` or
              ``functools.partial(optax.sgd, momentum=0.8)``. It receives a traced rate. Define it
              once, because programs are compiled for the object. Weight decay that it applies
              itself is added to ``weight_decay``.
            - An optax transformation, which keeps its built-in rate and decay.
            - A dict of these by pattern. A parameter gets the optimizer of the first pattern, a
              regular expression, that matches its whole path, such as ``'layers/0/kernel'``.
        schedule: one of these:

            - A key of ``SCHEDULES``: a multiplier of the peak rate. All but ``'constant'`` need
              ``total_steps``. ``'cosine'`` and ``'linear'`` fall to 0 at the last step,
              ``'exponential'`` to 1 %. ``'warmup_cosine'`` rises from 0 to the peak over 5 % of the
              steps, then falls like ``'cosine'``. ``'one_cycle'`` rises from 1/25 over 30 % of the
              steps, then falls to 1/250,000, both along a cosine. With ``warmup_steps`` any of
              them warms up over that many steps.
            - A function ``t -> learning rate``, such as optax's schedules.
        clip_gradients: True to scale gradients whose global norm is above ``gradient_clip_norm``
            down to that norm, before anything else.

    Raises:
        ConfigError: for an unknown name or a value of another kind; for a schedule together with an
            optax transformation, which has a built-in rate; for an optimizer with a line search;
            when it is initialised, for patterns that do not fit the parameters.

    Divergence from optax: biases and norms are not decayed. The default decays are optax's (adamw,
    adamaxw, nadamw 1e-4, lion 1e-3, all others 0). Decay is always decoupled, also where optax adds
    it to the gradients (adadelta, novograd) or omits the learning rate (adafactor). In lamb and
    lars the trust ratio scales it, too.

    Reference:
        Loshchilov and Hutter, 2019, *Decoupled weight decay regularization*. You et al., 2020,
        *Large batch optimization for deep learning* (lamb). Smith and Topin, 2018,
        *Super-convergence* (one-cycle).

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import make_optimizer, set_hyperparams
        >>> tx = make_optimizer('sgd', schedule='linear')
        >>> params = jnp.ones(2)
        >>> state = set_hyperparams(tx.init(params), learning_rate=0.5, total_steps=10)
        >>> updates, state = tx.update(jnp.ones(2), state, params)
        >>> updates.tolist()
        [-0.5, -0.5]
        >>> updates, state = tx.update(jnp.ones(2), state, params)
        >>> [round(update, 4) for update in updates.tolist()]
        [-0.45, -0.45]
    """
    _check_hashable('schedule', schedule)
    if isinstance(schedule, str) and schedule not in SCHEDULES:
        raise ConfigError(unknown_name('schedule', schedule, SCHEDULES))
    if isinstance(optimizer, Mapping):
        check_patterns(optimizer)
        groups = [(pattern, _resolve_any(value)) for pattern, value in optimizer.items()]
        resolved = _partition(tuple(groups))
    else:
        resolved = _resolve_any(optimizer)
    if isinstance(resolved, optax.GradientTransformation):
        if schedule != 'constant':
            raise ConfigError(
                f'schedule: got {schedule!r} with an optax transformation, which has a built-in '
                'learning rate. Build the transformation with the schedule, or pass a function of '
                'the learning rate, such as functools.partial(optax.sgd, momentum=0.8).'
            )
        return _clipped(resolved) if clip_gradients else resolved
    return _scheduled(resolved, _resolve_schedule(schedule), clip_gradients)


def _check_hashable(argument: str, value: Any) -> None:
    if not is_hashable(value):
        raise ConfigError(
            f'{argument}: got a {type(value).__name__} without a hash, expected a hashable '
            'object, since compiled programs are looked up by it. Write a function, or a '
            'class with @dataclass(frozen=True).'
        )


def _resolve_any(optimizer: Any) -> '_NamedOptimizer | optax.GradientTransformation':
    _check_hashable('optimizer', optimizer)
    if isinstance(optimizer, optax.GradientTransformation):
        _check_arguments(optimizer)
        return optimizer
    return _resolve(optimizer)


@functools.lru_cache(maxsize=64)
def _resolve(optimizer: str | OptimizerFn) -> _NamedOptimizer:
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ConfigError(unknown_name('optimizer', optimizer, OPTIMIZERS))
        return OPTIMIZERS[optimizer]
    expected = 'a name, an optax transformation or a function learning_rate -> transformation'
    if not callable(optimizer):
        raise ConfigError(f'optimizer: got {optimizer!r}, expected {expected}.')
    try:
        result = optimizer(0.1)
    except Exception as error:
        raise ConfigError(
            f'optimizer: called with a learning rate, {optimizer!r} failed with '
            f'{type(error).__name__}: {error} Expected {expected}.'
        ) from error
    if not isinstance(result, optax.GradientTransformation):
        raise ConfigError(
            f'optimizer: called with a learning rate, {optimizer!r} returned a '
            f'{type(result).__name__}, expected an optax transformation.'
        )
    _check_arguments(result)
    return _with_added_decay(optimizer)


def _resolve_schedule(schedule: str | ScheduleFn) -> Schedule | ScheduleFn:
    if isinstance(schedule, str):
        return SCHEDULES[schedule]
    if not callable(schedule):
        raise ConfigError(
            f'schedule: got {schedule!r}, expected a name or a function step -> learning rate.'
        )
    try:
        rate = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise ConfigError(
            f'schedule: called with a traced step, it failed with {type(error).__name__}: {error}\n'
            'It is compiled with the training step: use jnp.where for if, and jnp for math.'
        ) from error
    shape = getattr(rate, 'shape', ())
    if shape != ():
        raise ConfigError(
            f'schedule: it returned shape {shape} for a step, expected one number, the learning '
            'rate.'
        )
    return schedule


# --- arguments of an update ---------------------------------------------------------------------


def update_with_loss(
    tx: optax.GradientTransformation,
    grads: PyTree,
    opt_state: PyTree,
    params: PyTree,
    loss: jax.Array,
) -> tuple[PyTree, PyTree]:
    """Returns the updates and the new state of an optimizer.

    An optimizer that needs ``value``, such as `optax.polyak_sgd`, gets the loss. Others are called
    without it, since some of optax's take no further arguments.
    """
    try:
        return tx.update(grads, opt_state, params)
    except TypeError as error:
        if _missing_arguments(error) != ['value']:
            raise
    return tx.update(grads, opt_state, params, value=loss)  # pyright: ignore[reportCallIssue]


def _missing_arguments(error: TypeError) -> list[str]:
    """Returns the names of the arguments that a call lacked; none for another error."""
    missing = re.search(r'missing \d+ required .*arguments?: (.*)', str(error))
    return [] if missing is None else re.findall(r"'(\w+)'", missing[1])


def check_update(
    tx: optax.GradientTransformation, params: PyTree, **hyperparams: Number | None
) -> None:
    """Traces an update.

    Args:
        tx: the optimizer.
        params: the parameters, or their shapes.
        **hyperparams: the optimizer's hyperparameters, see `set_hyperparams`.

    Raises:
        ConfigError: if the update fails, for instance because the optimizer has a line search.
    """

    def update(params: PyTree, loss: jax.Array) -> PyTree:
        opt_state = set_hyperparams(tx.init(params), **hyperparams)
        return update_with_loss(tx, params, opt_state, params, loss)

    try:
        jax.eval_shape(update, params, jax.ShapeDtypeStruct((), jnp.float32))
    except ConfigError:
        raise
    except Exception as error:
        missing = _missing_arguments(error) if isinstance(error, TypeError) else []
        if missing:
            raise ConfigError(
                f'optimizer: its update needs {" and ".join(map(repr, missing))}, but a training '
                'step computes the loss and the gradients of its batch once, and a line search '
                'computes them several times. Use an optimizer without a line search: '
                "optax.lbfgs(0.1, linesearch=None), 'adam' or another name."
            ) from error
        raise ConfigError(
            f'optimizer: its update of the parameters of this model failed with '
            f'{type(error).__name__}: {error}'
        ) from error


@functools.lru_cache(maxsize=64)
def _check_arguments(tx: optax.GradientTransformation) -> None:
    """Raises a `ConfigError` for an optimizer with a line search."""
    try:
        check_update(tx, {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)})
    except ConfigError as error:
        # Other errors may be those of a mask for the parameters of the user's model.
        if isinstance(error.__cause__, TypeError) and _missing_arguments(error.__cause__):
            raise


# --- transformations with hyperparameters ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Partition:
    """Optimizers by pattern, at least one of which gets its learning rate."""

    groups: tuple[tuple[str, _NamedOptimizer | optax.GradientTransformation], ...]

    @property
    def defaults(self) -> dict[str, Any]:
        """Returns the hyperparameters; a negative one stands for a shared or default one."""
        rates = [-1.0 if isinstance(tx, _NamedOptimizer) else 0.0 for _, tx in self.groups]
        return {'weight_decay': -1.0, GROUP_RATES: rates, GROUP_DECAYS: [-1.0] * len(rates)}

    def make(self, rates: Any, hyperparams: dict[str, Any]) -> optax.GradientTransformation:
        """Returns the transformation with a learning rate for each group."""

        def decay_of(number: int, named: _NamedOptimizer) -> jax.Array:
            shared, own = hyperparams['weight_decay'], hyperparams[GROUP_DECAYS][number]
            shared = jnp.where(shared < 0, named.weight_decay, shared)
            return jnp.where(own < 0, shared, own)

        made: dict[Hashable, optax.GradientTransformation] = {
            number: tx.with_numbers(rates[number], decay_of(number, tx))
            if isinstance(tx, _NamedOptimizer)
            else tx
            for number, (_, tx) in enumerate(self.groups)
        }
        return optax.partition(made, self.numbers)

    def numbers(self, params: PyTree) -> PyTree:
        """Returns the number of each parameter's group."""
        return first_matches([pattern for pattern, _ in self.groups], params)


@functools.lru_cache(maxsize=64)
def _partition(
    groups: tuple[tuple[str, _NamedOptimizer | optax.GradientTransformation], ...],
) -> _Partition | optax.GradientTransformation:
    """Returns optimizers by pattern; an optax transformation if none of them gets its rate."""
    partition = _Partition(groups)
    if any(isinstance(tx, _NamedOptimizer) for _, tx in groups):
        return partition
    return partition.make((), {})


@functools.lru_cache(maxsize=64)
def _scheduled(
    optimizer: _NamedOptimizer | _Partition, schedule: Schedule | ScheduleFn, clip_gradients: bool
) -> optax.GradientTransformation:
    def learning_rate(step: jax.Array, hyperparams: dict[str, Any]) -> jax.Array:
        own = hyperparams.get(GROUP_RATES)

        def by_group(shared: jax.Array) -> jax.Array:
            return shared if own is None else jnp.where(own < 0, shared, own)

        if isinstance(schedule, Schedule):
            steps = (hyperparams[name] for name in STEPS)
            rate = by_group(hyperparams['learning_rate']) * schedule(step, *steps)
        else:
            rate = by_group(jnp.asarray(schedule(step), jnp.float32))
        return rate * hyperparams['learning_rate_scale']

    def make(rate: Any, hyperparams: dict[str, Any]) -> optax.GradientTransformation:
        tx = optimizer.make(rate, hyperparams)
        return _with_clipping(tx, hyperparams) if clip_gradients else tx

    defaults = {'learning_rate_scale': 1.0, **optimizer.defaults}
    if isinstance(schedule, Schedule):
        defaults |= {'learning_rate': 0.001, **STEPS}
    if schedule is SCHEDULES['constant']:
        defaults |= {'total_steps': 0}  # it does not depend on the number of steps
    if clip_gradients:
        defaults |= {'gradient_clip_norm': None}
    return with_hyperparams(defaults, learning_rate, make)


@functools.lru_cache(maxsize=64)
def _clipped(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return with_hyperparams(
        {'gradient_clip_norm': None},
        lambda step, hyperparams: None,
        lambda rate, hyperparams: _with_clipping(tx, hyperparams),
    )


def _with_clipping(
    tx: optax.GradientTransformation, hyperparams: dict[str, Any]
) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(hyperparams['gradient_clip_norm']), tx)
