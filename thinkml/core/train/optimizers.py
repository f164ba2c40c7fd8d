"""Optimizers by name, as optax transformations whose numbers are traced values in their state."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from thinkml.core.parallel.sharding import put_like
from thinkml.core.train.schedules import SCHEDULES, Schedule
from thinkml.errors import ConfigError, unknown_name

PyTree = Any
OptimizerFn = Callable[[Any], optax.GradientTransformation]
ScheduleFn = Callable[[Any], Any]


class OptimizerState(NamedTuple):
    """The state of an optimizer from `make_optimizer`: arrays only.

    Attributes:
        step: int32 scalar, updates made so far.
        last_rate: the learning rate of the last update, 0 before the first; None for an optax
            transformation that has its own.
        hyperparams: the numbers `set_hyperparams` sets, those it must set before the first update
            being None until then.
        inner_state: of the optax transformations.
    """

    step: jax.Array
    last_rate: jax.Array | None
    hyperparams: dict[str, jax.Array | None]
    inner_state: optax.OptState


# --- weight decay -----------------------------------------------------------------------------


def decay_mask(params: PyTree) -> PyTree:
    """Returns which parameters weight decay is for: True for each that is a matrix or more.

    Left out are arrays of rank 0 and 1 (biases, scales of norms) and those named ``bias`` or
    ``scale``, or ``..._bias`` or ``..._scale``, at any rank: the biases of attention heads are
    matrices. Embeddings are decayed.

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
class _Named:
    """An optimizer with decoupled weight decay: ``make(learning_rate, weight_decay)``."""

    make: Callable[[Any, Any], optax.GradientTransformation]
    weight_decay: float


def _decaying(optimizer: Callable[..., Any], weight_decay: float, mask: str = 'mask') -> _Named:
    """Of an optax optimizer that decays by itself, within its own update."""
    return _Named(
        lambda rate, decay: optimizer(rate, weight_decay=decay, **{mask: decay_mask}), weight_decay
    )


def _decayed(optimizer: OptimizerFn) -> _Named:
    """Of one that does not: ``learning_rate * weight_decay * params`` comes off beside it."""
    return _Named(
        lambda rate, decay: optax.chain(
            optimizer(rate), optax.add_decayed_weights(-rate * decay, mask=decay_mask)
        ),
        0.0,
    )


# --- names ------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, _Named] = {
    'adabelief': _decayed(optax.adabelief),
    'adadelta': _decayed(optax.adadelta),
    'adafactor': _decayed(optax.adafactor),
    'adagrad': _decayed(optax.adagrad),
    'adam': _decayed(optax.adam),
    'adamax': _decayed(optax.adamax),
    'adamaxw': _decaying(optax.adamaxw, 1e-4),
    'adamw': _decaying(optax.adamw, 1e-4),
    'adan': _decaying(optax.adan, 0.0),
    'amsgrad': _decayed(optax.amsgrad),
    'lamb': _decaying(optax.lamb, 0.0),
    'lars': _decaying(optax.lars, 0.0, mask='weight_decay_mask'),
    'lion': _decaying(optax.lion, 1e-3),
    'momentum': _decayed(functools.partial(optax.sgd, momentum=0.9)),
    'muon': _decayed(optax.contrib.muon),
    'nadam': _decayed(optax.nadam),
    'nadamw': _decaying(optax.nadamw, 1e-4),
    'nesterov': _decayed(functools.partial(optax.sgd, momentum=0.9, nesterov=True)),
    'novograd': _decayed(optax.novograd),
    'radam': _decayed(optax.radam),
    'rmsprop': _decayed(optax.rmsprop),
    'sgd': _decayed(optax.sgd),
    'yogi': _decayed(optax.yogi),
}


def make_optimizer(
    optimizer: str | optax.GradientTransformation | OptimizerFn = 'adam',
    *,
    schedule: str | ScheduleFn = 'constant',
    clip_gradients: bool = False,
) -> optax.GradientTransformation:
    """Returns an optax transformation whose numbers are set in its state.

    The update of ``params`` at update ``t``, counted from 0, is that of the optimizer at the rate

        ``learning_rate * learning_rate_scale * schedule(t)``

    together with ``- rate * weight_decay * params`` where `decay_mask` says so. The numbers
    (``learning_rate``, ``weight_decay``, ``gradient_clip_norm``, ``total_steps``,
    ``warmup_steps``) are not part of the transformation but of its state, see `set_hyperparams`:
    others need no new compiled program. Equal arguments return the same object.

    Args:
        optimizer: one of three:

            - a key of ``OPTIMIZERS``, with optax's defaults. ``'momentum'`` is sgd with momentum
              0.9, ``'nesterov'`` the same with Nesterov's. ``'muon'`` updates matrices, and by
              Adam all else.
            - a function ``learning_rate -> transformation``, such as `optax.lion` or
              ``functools.partial(optax.sgd, momentum=0.8)``. It gets a traced rate. Define it
              once: programs are compiled for the object. What it decays by itself comes on top of
              ``weight_decay``.
            - an optax transformation, used as it is, with its own rate and decay.
        schedule: one of two:

            - a key of ``SCHEDULES``: a multiplier of the peak rate that needs ``total_steps``
              (not ``'constant'``) and takes ``warmup_steps``. ``'constant'``; ``'cosine'``,
              ``'linear'``: to 0 at the last step; ``'exponential'``: to 1 % there;
              ``'warmup_cosine'``: from 0 up to the peak over 5 % of the steps, then as cosine;
              ``'one_cycle'``: from 1/25 up over 30 % of the steps, then down to 1/250,000, both
              along a cosine. With ``warmup_steps`` each has its warm-up over so many steps.
            - a function ``t -> learning rate``, such as optax's schedules.
        clip_gradients: scales gradients whose global norm is above ``gradient_clip_norm`` down to
            that norm, before anything else.

    Raises:
        ConfigError: for an unknown name, or what is none of these; for a schedule beside an optax
            transformation, which has its own rate.

    Divergence from optax: biases and norms are not decayed. The defaults of those that decay are
    optax's (adamw, adamaxw, nadamw 1e-4, lion 1e-3, all others 0). Decay is decoupled everywhere,
    also where optax adds it to the gradients (adadelta, novograd) or leaves out the learning rate
    (adafactor). In lamb and lars it is part of what the trust ratio scales.

    Reference:
        Loshchilov and Hutter, 2019, *Decoupled weight decay regularization*. You et al., 2020,
        *Large batch optimization for deep learning* (lamb). Smith and Topin, 2018,
        *Super-convergence* (one-cycle).

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.train.optimizers import make_optimizer, set_hyperparams
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
    for argument, value in (('optimizer', optimizer), ('schedule', schedule)):
        if not isinstance(value, Hashable):
            raise ConfigError(
                f'{argument}: got a {type(value).__name__} without a hash, which compiled programs '
                'are found by. Write a function, or a class with @dataclass(frozen=True).'
            )
    if isinstance(schedule, str) and schedule not in SCHEDULES:
        raise ConfigError(unknown_name('schedule', schedule, SCHEDULES))
    if isinstance(optimizer, optax.GradientTransformation):
        if schedule != 'constant':
            raise ConfigError(
                f'schedule: got {schedule!r} beside an optax transformation, which has its own '
                'learning rate. Give it the schedule, or pass a function of the learning rate, '
                'such as functools.partial(optax.sgd, momentum=0.8).'
            )
        return _clipped(optimizer) if clip_gradients else optimizer
    return _scheduled(_resolve(optimizer), _resolve_schedule(schedule), clip_gradients)


@functools.lru_cache(maxsize=64)
def _resolve(optimizer: str | OptimizerFn) -> _Named:
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ConfigError(unknown_name('optimizer', optimizer, OPTIMIZERS))
        return OPTIMIZERS[optimizer]
    expected = 'a name, an optax transformation or a function learning_rate -> transformation'
    if not callable(optimizer):
        raise ConfigError(f'optimizer: got {optimizer!r}, expected {expected}.')
    try:
        made = optimizer(0.1)
    except Exception as error:
        raise ConfigError(
            f'optimizer: called with a learning rate, {optimizer!r} failed with '
            f'{type(error).__name__}: {error} Expected {expected}.'
        ) from error
    if not isinstance(made, optax.GradientTransformation):
        raise ConfigError(
            f'optimizer: called with a learning rate, {optimizer!r} returned a '
            f'{type(made).__name__}, expected an optax transformation.'
        )
    return _decayed(optimizer)


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


# --- numbers in the state ---------------------------------------------------------------------

# The whole numbers. Below 0 steps of warm-up are the schedule's own share.
_STEPS = {'total_steps': None, 'warmup_steps': -1}


@functools.lru_cache(maxsize=64)
def _scheduled(
    named: _Named, schedule: Schedule | ScheduleFn, clip_gradients: bool
) -> optax.GradientTransformation:
    def learning_rate(step: jax.Array, hyperparams: dict[str, Any]) -> jax.Array:
        if isinstance(schedule, Schedule):
            steps = (hyperparams[name] for name in _STEPS)
            rate = hyperparams['learning_rate'] * schedule(step, *steps)
        else:
            rate = jnp.asarray(schedule(step), jnp.float32)
        return rate * hyperparams['learning_rate_scale']

    def make(rate: Any, hyperparams: dict[str, Any]) -> optax.GradientTransformation:
        tx = named.make(rate, hyperparams['weight_decay'])
        return _behind_clipping(tx, hyperparams) if clip_gradients else tx

    numbers: dict[str, float | None] = {
        'learning_rate_scale': 1.0,
        'weight_decay': named.weight_decay,
    }
    if isinstance(schedule, Schedule):
        numbers |= {'learning_rate': 0.001, **_STEPS}
    if schedule is SCHEDULES['constant']:
        numbers |= {'total_steps': 0}  # it has no end that would have to be known
    if clip_gradients:
        numbers |= {'gradient_clip_norm': None}
    return _traced(numbers, learning_rate, make)


@functools.lru_cache(maxsize=64)
def _clipped(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return _traced(
        {'gradient_clip_norm': None},
        lambda step, hyperparams: None,
        lambda rate, hyperparams: _behind_clipping(tx, hyperparams),
    )


def _behind_clipping(
    tx: optax.GradientTransformation, hyperparams: dict[str, Any]
) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(hyperparams['gradient_clip_norm']), tx)


def _traced(
    numbers: dict[str, float | None],
    learning_rate: Callable[[jax.Array, dict[str, Any]], jax.Array | None],
    make: Callable[[Any, dict[str, Any]], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """The transformation that is made anew in every update, from the numbers in its state."""

    def init(params: PyTree) -> OptimizerState:
        hyperparams = {
            name: None if value is None else jnp.array(value, _dtype(name))
            for name, value in numbers.items()
        }
        inner = make(jnp.float32(0.001), hyperparams)
        rate = None if 'learning_rate_scale' not in numbers else jnp.zeros((), jnp.float32)
        return OptimizerState(jnp.zeros((), jnp.int32), rate, hyperparams, inner.init(params))

    def update(
        updates: PyTree, state: OptimizerState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, OptimizerState]:
        _check_all_set(state.hyperparams)
        rate = learning_rate(state.step, state.hyperparams)
        inner = optax.with_extra_args_support(make(rate, state.hyperparams))
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        step = state.step + 1
        return updates, OptimizerState(step, rate, state.hyperparams, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _dtype(name: str) -> Any:
    return jnp.int32 if name in _STEPS else jnp.float32


def _check_all_set(hyperparams: dict[str, Any]) -> None:
    missing = [name for name, value in hyperparams.items() if value is None]
    if missing:
        raise ConfigError(
            f'{missing[0]}: not set, and this optimizer needs it. Before the first step, call '
            f'opt_state = set_hyperparams(opt_state, {missing[0]}=...).'
        )


_WHY_MISSING = {
    'learning_rate': 'this optimizer has its own built in. Use make_optimizer(name), or wrap '
    'yours with optax.inject_hyperparams.',
    'learning_rate_scale': 'this optimizer has its learning rate built in. Use '
    'make_optimizer(name), or make_optimizer(function of the learning rate).',
    'weight_decay': 'this optimizer has its own, or none, built in. Use make_optimizer(name), or '
    'make_optimizer(function of the learning rate).',
    'gradient_clip_norm': 'this optimizer does not clip gradients. Use '
    'make_optimizer(..., clip_gradients=True).',
    'total_steps': 'this optimizer follows no schedule of ours. Use make_optimizer(name, '
    "schedule='cosine').",
    'warmup_steps': 'this optimizer follows no schedule of ours. Use make_optimizer(name, '
    "schedule='warmup_cosine').",
}


def set_hyperparams(opt_state: Any, **numbers: float | None) -> Any:
    """Returns the optimizer state with other numbers.

    Args:
        opt_state: of an optimizer from `make_optimizer`, or of one made with
            `optax.inject_hyperparams`.
        **numbers: None leaves a number as it is. Of `make_optimizer`:

            - ``learning_rate``: the peak rate, 0.001 if never set.
            - ``weight_decay``: 0 for none; if never set, the optimizer's own, see
              `make_optimizer`.
            - ``gradient_clip_norm``: with ``clip_gradients=True``; must be set.
            - ``total_steps``: until the schedule ends; must be set, but for ``'constant'``.
            - ``warmup_steps``: if never set, the schedule's own share of the steps.
            - ``learning_rate_scale``: see `scale_learning_rate`.

    Raises:
        ConfigError: for a number the optimizer's state doesn't hold.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.train.optimizers import make_optimizer, set_hyperparams
        >>> state = make_optimizer('adamw').init(jnp.ones(2))
        >>> state = set_hyperparams(state, learning_rate=0.01, weight_decay=None)
        >>> float(state.hyperparams['weight_decay'])
        9.999...e-05
    """
    held = getattr(opt_state, 'hyperparams', {})
    numbers = {name: value for name, value in numbers.items() if value is not None}
    for name in numbers:
        if name not in held and name not in _WHY_MISSING:
            raise ConfigError(unknown_name('hyperparams', name, [*_WHY_MISSING, *held]))
        if name not in held:
            raise ConfigError(f'{name}: {_WHY_MISSING[name]}')
    changed = {name: _like(held[name], value, name) for name, value in numbers.items()}
    return opt_state._replace(hyperparams=held | changed) if changed else opt_state


def _like(old: Any, value: Any, name: str) -> jax.Array:
    """A new array, never the caller's, of the old one's dtype and shape (of many states)."""
    if old is None:
        return jnp.array(value, _dtype(name))
    value = jnp.broadcast_to(jnp.asarray(value), jnp.shape(old))
    return put_like(jnp.array(value, jnp.result_type(old)), old)


def set_learning_rate(opt_state: Any, learning_rate: float) -> Any:
    """Returns the optimizer state with another (peak) learning rate; see `set_hyperparams`.

    Raises:
        ConfigError: if the optimizer has its own built in.
    """
    return set_hyperparams(opt_state, learning_rate=learning_rate)


def scale_learning_rate(opt_state: Any, factor: float) -> Any:
    """Returns the optimizer state with the rate of every later update times ``factor``.

    It multiplies ``learning_rate_scale``, so the schedule keeps its shape, and factors of
    repeated calls multiply. Nothing waits for the device.

    Raises:
        ConfigError: if the optimizer has its own rate built in.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.train.optimizers import make_optimizer, scale_learning_rate
        >>> state = make_optimizer('adam').init(jnp.ones(2))
        >>> state = scale_learning_rate(scale_learning_rate(state, 0.5), 0.5)
        >>> float(state.hyperparams['learning_rate_scale'])
        0.25
    """
    held = getattr(opt_state, 'hyperparams', {})
    if 'learning_rate_scale' not in held:
        raise ConfigError(f'learning_rate_scale: {_WHY_MISSING["learning_rate_scale"]}')
    return opt_state._replace(
        hyperparams=held | {'learning_rate_scale': held['learning_rate_scale'] * factor}
    )


def get_learning_rate(opt_state: Any) -> jax.Array | None:
    """Returns the learning rate of the last update, schedule and scale included, on the device.

    0 before the first update; None for an optimizer that has its own built in.
    """
    if isinstance(opt_state, OptimizerState):
        return opt_state.last_rate
    return getattr(opt_state, 'hyperparams', {}).get('learning_rate')
