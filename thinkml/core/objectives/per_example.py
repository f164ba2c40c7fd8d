"""What classification metrics are made of: values per example.

Definitions are those of `thinkml.evaluation.metrics.registry`, here as JAX functions of logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thinkml.core.objectives.accumulators import add
from thinkml.core.objectives.losses import is_softmax
from thinkml.model_record import TaskKind


class ClassLogits(NamedTuple):
    """Logits and labels in the one form all functions here take.

    Attributes:
        logits: ``[batch, classes]``, two for binary; ``[batch, labels, 2]`` (no, yes) for
            multilabel.
        labels: index along the last axis of the logits, int32 ``[batch]`` or ``[batch, labels]``.
    """

    logits: jax.Array
    labels: jax.Array

    @property
    def is_multilabel(self) -> bool:
        return self.logits.ndim == 3

    @property
    def predictions(self) -> jax.Array:
        """Shaped as the labels; of equal logits the first."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def class_indices(labels: jax.Array, kind: TaskKind | None) -> jax.Array:
    """Labels of a binary or multiclass task as int32 ``[batch]``; others as they are.

    Of shares ``[batch, classes]``, as mixed examples have, the class with the largest one counts.
    """
    if kind not in ('binary', 'multiclass'):
        return labels
    if labels.ndim == 2 and labels.shape[1] > 1:
        return jnp.argmax(labels, axis=1).astype(jnp.int32)
    flat = labels.reshape(len(labels))
    return (flat > 0.5 if jnp.issubdtype(flat.dtype, jnp.floating) else flat).astype(jnp.int32)


def classify(logits: jax.Array, labels: jax.Array, kind: TaskKind | None = None) -> ClassLogits:
    """Brings the outputs of any classification task into one form.

    Args:
        logits: ``[batch]``, ``[batch, 1]``, ``[batch, classes]`` or ``[batch, labels]``.
        labels: class indices ``[batch]``, or 0 and 1 for every label ``[batch, labels]``.
        kind: None tells a multilabel task by its labels' two axes.
    """
    labels = class_indices(labels, kind)
    if kind == 'multilabel' or (kind is None and labels.ndim == 2):
        logits = logits.reshape(len(logits), -1)
        return ClassLogits(
            _with_zero(logits), (labels.reshape(logits.shape) > 0.5).astype(jnp.int32)
        )
    if is_softmax(logits, labels):
        return ClassLogits(logits, labels)
    return ClassLogits(_with_zero(logits.reshape(labels.shape)), (labels > 0.5).astype(jnp.int32))


def _with_zero(logits: jax.Array) -> jax.Array:
    """The softmax of ``[0, logit]`` is the sigmoid's ``[1 - p, p]``."""
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


# --- values per example -----------------------------------------------------------------------


def accuracy(outputs: ClassLogits) -> jax.Array:
    """1 where the prediction is right, ``[batch]``; for multilabel, right in every label."""
    right = outputs.predictions == outputs.labels
    return right.reshape(len(right), -1).all(axis=1).astype(jnp.float32)


def top_accuracy(outputs: ClassLogits, k: int) -> jax.Array:
    """1 where the label is among the ``k`` largest logits, ``[batch]``.

    Of equal logits the earlier class is the larger, as for `accuracy`, which is ``k=1``.
    """
    own = jnp.take_along_axis(outputs.logits, outputs.labels[:, None], axis=1)
    earlier = jnp.arange(outputs.logits.shape[1]) < outputs.labels[:, None]
    ahead = (outputs.logits > own) | ((outputs.logits == own) & earlier)
    # A NaN is larger than nothing: without this it would be right.
    return ((ahead.sum(axis=1) < k) & ~jnp.isnan(own[:, 0])).astype(jnp.float32)


def log_loss(outputs: ClassLogits) -> jax.Array:
    """``-ln p`` of what is true, in nats, ``[batch]``; for multilabel, the mean over the labels.

    It is computed from the logits, so that it has no largest value, as cross-entropy has none.
    """
    log_p = jax.nn.log_softmax(outputs.logits)
    losses = -jnp.take_along_axis(log_p, outputs.labels[..., None], axis=-1)
    return losses.reshape(len(losses), -1).mean(axis=1)


def brier(outputs: ClassLogits) -> jax.Array:
    """The squared error of the probabilities, ``[batch]``.

    ``(p - y)^2`` for binary; its sum over the classes for multiclass; its mean over the labels
    for multilabel.

    Reference:
        Brier, 1950, *Verification of forecasts expressed in terms of probability*.
    """
    shares = jax.nn.softmax(outputs.logits)
    truth = jax.nn.one_hot(outputs.labels, outputs.logits.shape[-1], dtype=shares.dtype)
    squares = jnp.sum(jnp.square(shares - truth), axis=-1)
    squares = squares / 2 if outputs.logits.shape[-1] == 2 else squares  # both say the same
    return squares.reshape(len(squares), -1).mean(axis=1)


# --- what a whole epoch's counts and rankings are made from -----------------------------------


def truth_and_prediction(outputs: ClassLogits) -> tuple[jax.Array, jax.Array]:
    """Which classes (or labels) each example has and was predicted, bool ``[batch, classes]``."""
    if outputs.is_multilabel:
        return outputs.labels > 0, outputs.predictions > 0
    classes = jnp.arange(outputs.logits.shape[1])
    return outputs.labels[:, None] == classes, outputs.predictions[:, None] == classes


def one_vs_rest(outputs: ClassLogits) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array]:
    """Returns the rankings a task consists of: scores, and whether positive.

    Binary: the class with index 1; multiclass: every class against the others; multilabel: every
    label. Scores are logits, ``ln(p / (1 - p))``: probabilities round to 1 from a logit of 17 on.

    Returns:
        The scores, each a float32 and the rounding error it lacks (None where scores lack none),
        and whether rows are positive: all ``[batch, rankings]``.
    """
    logits = outputs.logits
    if outputs.is_multilabel:
        return (logits[..., 1], None), outputs.labels > 0
    positive, _ = truth_and_prediction(outputs)
    if logits.shape[1] == 2:
        return _difference(logits[:, 1:], logits[:, :1]), positive[:, 1:]
    return _against_the_rest(logits), positive


def _difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    zero = jnp.zeros((), a.dtype)
    return add(a, zero, -b, zero)


def _against_the_rest(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each logit minus the logarithm of the sum of the exponentials of the others.

    Sums are over sorted logits: rows with the same logits in another order have the same scores.
    """
    falling = -jnp.sort(-logits, axis=1)
    first, second = falling[:, :1], falling[:, 1:2]
    is_first = logits == first
    below = jnp.sum(jnp.exp(falling[:, 1:] - second), axis=1, keepdims=True)
    total = jnp.sum(jnp.exp(falling - first), axis=1, keepdims=True)
    rest = jnp.where(is_first, below, total - jnp.exp(logits - first))
    high, low = _difference(logits, jnp.where(is_first, second, first))
    return add(high, low, -jnp.log(rest), jnp.zeros((), logits.dtype))
