"""Elements: the parts of a row that have one label each, such as tokens or pixels.

A row with one label is one element. Otherwise the labels are ``[rows, *element_shape]``. Batches of
short sequences may have fewer elements, so only the number of axes of a shape is used. Losses and
metrics are computed for elements, so their arrays have one axis ``[rows * elements]``.
"""

import functools
import math

import jax
import jax.numpy as jnp

from thinkml.core.objectives.losses import Dice, LossFn, decides

ElementShape = tuple[int, ...]

IGNORED = -1
"""The encoded label of an element that counts nowhere."""


def as_elements(array: jax.Array, shape: ElementShape) -> jax.Array:
    """Returns an array of rows, ``[rows, *shape, ...]``, as one of elements."""
    num_axes = 1 + len(shape)
    return array.reshape(math.prod(array.shape[:num_axes]), *array.shape[num_axes:])


def element_weights(weight: jax.Array, labels: jax.Array, shape: ElementShape) -> jax.Array:
    """Returns the weight of each element, ``[rows, *shape]``; 0 for those that are ignored.

    Args:
        weight: the weights of rows, ``[rows]``, or of elements.
        labels: encoded labels, ``[rows, *shape, ...]``.
        shape: the axes of the elements of a row.
    """
    if weight.ndim == 1:
        weight = weight.reshape(-1, *[1] * len(shape))
    weight = jnp.broadcast_to(weight, labels.shape[: 1 + len(shape)])
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return weight
    return jnp.where(labels.reshape(weight.shape) == IGNORED, 0, weight)


def weights_of(losses: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the weights of losses of elements, or of rows.

    Args:
        losses: ``[rows, *element_shape]`` or ``[rows]``.
        weight: the weights of elements, ``[rows, *element_shape]``. A row has the largest weight
            of its elements.
    """
    return weight if losses.ndim == weight.ndim else weight.max(axis=tuple(range(1, weight.ndim)))


@functools.lru_cache(maxsize=256)
def loss_of_elements(loss_fn: LossFn, shape: ElementShape) -> LossFn:
    """Returns a loss from `get_loss` for rows of elements.

    A loss of ThinkML is computed for each element. `Dice`, which sums over them, and custom losses
    get the arrays of the rows, in which ignored labels are -1.
    """
    if not shape or decides(loss_fn) is None or isinstance(loss_fn, Dice):
        return loss_fn

    def per_element(logits: jax.Array, labels: jax.Array) -> jax.Array:
        if jnp.issubdtype(labels.dtype, jnp.integer):
            labels = jnp.maximum(labels, 0)
        losses = loss_fn(as_elements(logits, shape), as_elements(labels, shape))
        return losses.reshape(labels.shape[: 1 + len(shape)])

    return per_element
