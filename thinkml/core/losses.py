"""Losses per example, and the weighted mean that reduces them.

A loss here is ``loss_fn(logits, labels) -> [batch]``. The reduction is always
``sum(weight * loss) / sum(weight)``, so that padding (weight 0) and uneven batches are exact.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import optax

from thinkml.errors import ConfigError, unknown_name

LossFn = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy: ``-log softmax(logits)[label]``.

    Args:
        logits: ``[batch, classes]``.
        labels: class indices ``[batch]``.

    Returns:
        ``[batch]``, in nats.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy, averaged over the labels of an example.

    Args:
        logits: ``[batch]`` or ``[batch, 1]`` for binary, ``[batch, labels]`` for multilabel.
        labels: 0 or 1, ``[batch]`` or ``[batch, labels]``.

    Returns:
        ``[batch]``, in nats.
    """
    labels = labels.astype(logits.dtype)
    return _per_example(optax.sigmoid_binary_cross_entropy(logits.reshape(labels.shape), labels))


def mse(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error, averaged over the targets of an example; ``[batch]``."""
    return _per_example(jnp.square(predictions.reshape(targets.shape) - targets))


def mae(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Absolute error, averaged over the targets of an example; ``[batch]``."""
    return _per_example(jnp.abs(predictions.reshape(targets.shape) - targets))


def huber(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Huber's loss with ``delta=1``, averaged over the targets of an example; ``[batch]``.

    Reference:
        Huber, 1964, *Robust estimation of a location parameter*.
    """
    return _per_example(optax.huber_loss(predictions.reshape(targets.shape), targets))


def _per_example(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


CLASSIFICATION_LOSSES: dict[str, LossFn] = {
    'cross_entropy': cross_entropy,
    'binary_cross_entropy': binary_cross_entropy,
}
REGRESSION_LOSSES: dict[str, LossFn] = {'mse': mse, 'mae': mae, 'huber': huber}


def get_loss(loss_fn: str | LossFn) -> LossFn:
    """Returns the per-example loss for a name or a callable.

    A callable ``(logits, labels)`` may return a value per example (or several, which are averaged)
    or a scalar; a scalar loss is evaluated example by example (`jax.vmap` over batches of one), so
    that weights and padding stay exact. A loss that couples the examples of a batch can't be
    written that way: return a value per example instead.

    Programs are compiled for the function given: define it once, not anew for each training.

    Raises:
        ConfigError: for an unknown name.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import get_loss
        >>> get_loss('mse')(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).tolist()
        [0.0, 4.0]
        >>> mean_squared = get_loss(lambda p, t: jnp.mean((p - t) ** 2))
        >>> mean_squared(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).tolist()
        [0.0, 4.0]
    """
    if not isinstance(loss_fn, str):
        return _as_per_example(loss_fn if isinstance(loss_fn, Hashable) else _Unhashable(loss_fn))
    known = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
    if loss_fn not in known:
        raise ConfigError(unknown_name('loss_fn', loss_fn, known))
    return known[loss_fn]


@dataclasses.dataclass(frozen=True, eq=False)
class _Unhashable:
    """A loss that is an object with ``==`` but without a hash, told apart by identity instead."""

    loss_fn: LossFn

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return self.loss_fn(logits, labels)


@functools.lru_cache(maxsize=256)
def _as_per_example(loss_fn: LossFn) -> LossFn:
    if loss_fn in CLASSIFICATION_LOSSES.values() or loss_fn in REGRESSION_LOSSES.values():
        return loss_fn

    def per_example(logits: jax.Array, labels: jax.Array) -> jax.Array:
        shape = getattr(jax.eval_shape(loss_fn, logits, labels), 'shape', None)
        if shape == ():
            return jax.vmap(lambda row, label: loss_fn(row[None], label[None]))(logits, labels)
        if shape not in (labels.shape, labels.shape[:1]):
            raise ConfigError(
                f'loss_fn: it returned {"no array" if shape is None else f"shape {shape}"} for '
                f'logits {logits.shape} and labels {labels.shape}, expected a scalar or one value '
                'per example or label.'
            )
        return _per_example(loss_fn(logits, labels))

    return per_example


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """``sum(weight * values) / sum(weight)`` for ``[batch]`` arrays."""
    return jnp.sum(weight * values) / jnp.sum(weight)
