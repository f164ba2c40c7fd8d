"""Heads: the outputs of a model that have targets and a loss each."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from thinkml.core.objectives.elements import (
    ElementShape,
    as_elements,
    element_weights,
    loss_of_elements,
    weights_of,
)
from thinkml.core.objectives.losses import LossFn
from thinkml.typing import PyTree

Totals = dict[int, jax.Array]
"""The sum of the weights of a batch, by the number of axes of the losses."""


class Head(NamedTuple):
    """An output of a model, and its loss.

    Attributes:
        loss_fn: the loss ``(logits, labels) -> [batch]``, see `get_loss`.
        element_shape: the axes of a row that have a label each, such as ``(tokens,)``.
        loss_weight: the factor of this loss in the sum over the heads.
    """

    loss_fn: LossFn
    element_shape: ElementShape = ()
    loss_weight: float = 1.0

    def losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of each row, ``[batch]``, or of each element."""
        return loss_of_elements(self.loss_fn, self.element_shape)(logits, labels)

    def logits(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns outputs in float32; ``[batch, 1]`` becomes ``[batch]`` if the labels have it.

        Otherwise a loss written as ``(logits - labels) ** 2`` would silently broadcast to
        ``[batch, batch]``.
        """
        if labels.ndim == 1 + len(self.element_shape) and outputs.shape == (*labels.shape, 1):
            outputs = outputs[..., 0]
        return outputs.astype(jnp.float32)

    def element_weights(self, weight: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the weights of rows, or those of elements if rows have elements."""
        if not self.element_shape:
            return weight
        return element_weights(weight, labels, self.element_shape)

    def totals(self, weight: jax.Array) -> Totals:
        """Returns the sums of the weights, for the means of losses of elements and of rows."""
        totals = {weight.ndim: jnp.sum(weight)}
        if weight.ndim > 1:
            totals[1] = jnp.sum(weight.max(axis=tuple(range(1, weight.ndim))))
        # A batch of weight 0 has gradient 0, not NaN.
        return {ndim: jnp.where(total > 0, total, 1) for ndim, total in totals.items()}

    def mean(self, losses: jax.Array, weight: jax.Array, totals: Totals) -> jax.Array:
        """Returns the sum of the weighted losses, divided by their total weight."""
        return jnp.sum(weights_of(losses, weight) * losses) / totals[losses.ndim]

    def metric_inputs(
        self,
        logits: jax.Array,
        labels: jax.Array,
        losses: jax.Array,
        weight: jax.Array,
        mask: jax.Array,
    ) -> dict[str, Any]:
        """Returns the keywords of a metric, with one axis for rows and their elements."""
        weight, shape = weights_of(losses, weight), self.element_shape
        elements = labels.shape[1 : 1 + len(shape)]  # fewer in batches of short sequences
        if shape:
            logits, labels, mask = (as_elements(array, shape) for array in (logits, labels, mask))
            losses, weight = losses.reshape(-1), weight.reshape(-1)
        return {
            'logits': logits, 'labels': labels, 'losses': losses, 'weight': weight, 'mask': mask,
            'element_shape': elements,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OneOutput:
    """The loss of a model that returns one array.

    Attributes:
        head: the array's loss.
    """

    head: Head

    def map(self, function: Callable[..., Any], *trees: PyTree) -> Any:
        """Returns ``function(head, *trees)``."""
        return function(self.head, *trees)

    def total(self, means: Any) -> Any:
        """Returns the loss of a batch, from the mean of its losses."""
        return means

    def masks(self, mask: Any, weight: Any) -> Any:
        """Returns the weight of each example in metrics other than the loss."""
        del weight  # weights change what is learned, not what is true
        return mask


@dataclasses.dataclass(frozen=True)
class HeadLosses:
    """The losses of a model with several heads, whose weighted sum is the loss of a batch.

    The loss of a head is ``sum(weight * loss) / sum(weight)`` over the elements that have a target.

    Attributes:
        heads: the heads by name, as pairs. The names of a tuple of outputs are their positions.

    Example:
        >>> from thinkml.core import get_loss
        >>> from thinkml.core.objectives.heads import Head, HeadLosses
        >>> losses = HeadLosses((
        ...     ('kind', Head(get_loss('cross_entropy'))),
        ...     ('price', Head(get_loss('mse'), loss_weight=0.1)),
        ... ))
        >>> list(losses.names)
        ['kind', 'price']
    """

    heads: tuple[tuple[str, Head], ...]

    @property
    def names(self) -> Iterator[str]:
        """Yields the names of the heads."""
        return (name for name, _ in self.heads)

    def map(self, function: Callable[..., Any], *trees: PyTree) -> dict[str, Any]:
        """Returns ``function(head, *parts)`` for each head, by name.

        Args:
            function: called with a head and its parts of the trees.
            trees: dicts, or tuples of outputs; an array is a part of each head.
        """
        return {
            name: function(head, *(part_of(tree, name) for tree in trees))
            for name, head in self.heads
        }

    def total(self, means: dict[str, jax.Array]) -> jax.Array:
        """Returns the weighted sum of the heads' losses."""
        return weighted_sum([(head.loss_weight, means[name]) for name, head in self.heads])

    def masks(self, mask: PyTree, weight: PyTree) -> dict[str, jax.Array]:
        """Returns the weight of each example in a head's metrics: 0 without a target."""
        return self.map(lambda head, m, w: jnp.where(w > 0, m, 0), mask, weight)


def weighted_sum(terms: list[tuple[float, jax.Array]]) -> jax.Array:
    """Returns the sum of values, each times its weight."""
    first, *others = (weight * value for weight, value in terms)
    for other in others:
        first = first + other
    return first


def named_outputs(outputs: PyTree) -> dict[str, Any] | None:
    """Returns a model's outputs by name; None if they are one array.

    The names of a NamedTuple are its fields, and those of a tuple or list its positions.
    """
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if hasattr(outputs, '_asdict'):
        return outputs._asdict()
    if isinstance(outputs, tuple | list):
        return {str(position): part for position, part in enumerate(outputs)}
    return None


@dataclasses.dataclass(frozen=True)
class Selection:
    """A function that keeps some of a model's outputs, by name.

    Attributes:
        names: the names to keep.
    """

    names: tuple[str, ...]

    def __call__(self, outputs: PyTree) -> dict[str, Any]:
        return {name: part_of(outputs, name) for name in self.names}


def part_of(tree: PyTree, name: str | None) -> Any:
    """Returns a head's part of a tree; the tree itself if it is an array or None."""
    parts = named_outputs(tree)
    return tree if parts is None or name is None else parts[name]


def as_heads(loss_fn: Any, element_shape: ElementShape) -> OneOutput | HeadLosses:
    """Returns the heads of a step's loss."""
    return loss_fn if isinstance(loss_fn, HeadLosses) else OneOutput(Head(loss_fn, element_shape))
