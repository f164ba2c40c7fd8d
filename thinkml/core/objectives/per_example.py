"""Classification metrics per example, as JAX functions of logits.

The definitions are those of `thinkml.evaluation.metrics.registry`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thinkml.core.objectives.accumulators import add
from thinkml.core.objectives.losses import is_softmax
from thinkml.task_types import TASK_TYPES, TaskKind


class ClassLogits(NamedTuple):
    """Logits and labels in the common form that all functions of this module take.

    Attributes:
        logits: ``[batch, classes]``, two classes for binary; ``[batch, labels, 2]`` (negative,
            positive) for multilabel.
        labels: the index along the last axis of the logits, int32 ``[batch]`` or
            ``[batch, labels]``.
    """

    logits: jax.Array
    labels: jax.Array

    @property
    def is_multilabel(self) -> bool:
        return self.logits.ndim == 3

    @property
    def predictions(self) -> jax.Array:
        """Returns the predicted indices, in the shape of the labels; of equal logits, the first."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def class_indices(labels: jax.Array, kind: TaskKind | None) -> jax.Array:
    """Returns the labels of a binary or multiclass task as int32 ``[batch]``; others unchanged.

    For class probabilities ``[batch, classes]``, such as those of mixed examples, it returns the
    most probable class.
    """
    if kind is None or not TASK_TYPES[kind].has_one_class:
        return labels
    if labels.ndim == 2 and labels.shape[1] > 1:
        return jnp.argmax(labels, axis=1).astype(jnp.int32)
    flat = labels.reshape(len(labels))
    return (flat > 0.5 if jnp.issubdtype(flat.dtype, jnp.floating) else flat).astype(jnp.int32)


def classify(logits: jax.Array, labels: jax.Array, kind: TaskKind | None = None) -> ClassLogits:
    """Converts the outputs of any classification task to the common form.

    Args:
        logits: ``[batch]``, ``[batch, 1]``, ``[batch, classes]`` or ``[batch, labels]``.
        labels: class indices ``[batch]``, or 0 and 1 for every label ``[batch, labels]``.
        kind: the kind of the task. None assumes a multilabel task if the labels have two axes.
    """
    labels = class_indices(labels, kind)
    if labels.ndim == 2 if kind is None else TASK_TYPES[kind].has_many_labels:
        logits = logits.reshape(len(logits), -1)
        return ClassLogits(
            _with_zero(logits), (labels.reshape(logits.shape) > 0.5).astype(jnp.int32)
        )
    if is_softmax(logits, labels):
        return ClassLogits(logits, labels)
    return ClassLogits(_with_zero(logits.reshape(labels.shape)), (labels > 0.5).astype(jnp.int32))


def _with_zero(logits: jax.Array) -> jax.Array:
    """Returns ``[0, logit]``, whose softmax is the sigmoid's ``[1 - p, p]``."""
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


# --- values per example -----------------------------------------------------------------------


def accuracy(outputs: ClassLogits) -> jax.Array:
    """Returns 1 for correct predictions, else 0, ``[batch]``.

    A multilabel prediction is correct if all its labels are.
    """
    correct = outputs.predictions == outputs.labels
    return correct.reshape(len(correct), -1).all(axis=1).astype(jnp.float32)


def top_accuracy(outputs: ClassLogits, k: int) -> jax.Array:
    """Returns 1 if the label is among the ``k`` largest logits, else 0, ``[batch]``.

    Among equal logits the earlier class ranks first, as for `accuracy`, which is ``k=1``.
    """
    true_logit = jnp.take_along_axis(outputs.logits, outputs.labels[:, None], axis=1)
    is_earlier = jnp.arange(outputs.logits.shape[1]) < outputs.labels[:, None]
    is_tie = outputs.logits == true_logit
    is_ahead = (outputs.logits > true_logit) | (is_tie & is_earlier)
    # No logit is greater than NaN, so without this a NaN would count as correct.
    is_number = ~jnp.isnan(true_logit[:, 0])
    return ((is_ahead.sum(axis=1) < k) & is_number).astype(jnp.float32)


def log_loss(outputs: ClassLogits) -> jax.Array:
    """Returns ``-ln p`` of the true label, in nats, ``[batch]``; the mean over several labels.

    Like cross-entropy, it is computed from the logits, so it has no upper limit.
    """
    log_p = jax.nn.log_softmax(outputs.logits)
    losses = -jnp.take_along_axis(log_p, outputs.labels[..., None], axis=-1)
    return losses.reshape(len(losses), -1).mean(axis=1)


def brier(outputs: ClassLogits) -> jax.Array:
    """Returns the squared error of the probabilities, ``[batch]``.

    It is ``(p - y)^2`` for binary, its sum over the classes for multiclass, and its mean over the
    labels for multilabel.

    Reference:
        Brier, 1950, *Verification of forecasts expressed in terms of probability*.
    """
    probabilities = jax.nn.softmax(outputs.logits)
    truth = jax.nn.one_hot(outputs.labels, outputs.logits.shape[-1], dtype=probabilities.dtype)
    squares = jnp.sum(jnp.square(probabilities - truth), axis=-1)
    # For two classes, both have the same error.
    squares = squares / 2 if outputs.logits.shape[-1] == 2 else squares
    return squares.reshape(len(squares), -1).mean(axis=1)


# --- inputs of the counts and rankings of an epoch --------------------------------------------


def truth_and_prediction(outputs: ClassLogits) -> tuple[jax.Array, jax.Array]:
    """Returns masks of each example's true and predicted classes (or labels).

    Both are bool ``[batch, classes]``.
    """
    if outputs.is_multilabel:
        return outputs.labels > 0, outputs.predictions > 0
    classes = jnp.arange(outputs.logits.shape[1])
    return outputs.labels[:, None] == classes, outputs.predictions[:, None] == classes


def one_vs_rest(outputs: ClassLogits) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array]:
    """Returns the binary rankings of a task: scores and true labels.

    A binary task ranks the class with index 1, a multiclass task every class against the others,
    and a multilabel task every label. The scores are logits, ``ln(p / (1 - p))``, because
    probabilities round to 1 from a logit of 17 on.

    Returns:
        The scores, as a float32 and its rounding error (None if there is none), and a mask that is
        True for positive rows. All are ``[batch, rankings]``.
    """
    logits = outputs.logits
    if outputs.is_multilabel:
        return (logits[..., 1], None), outputs.labels > 0
    positive, _ = truth_and_prediction(outputs)
    if logits.shape[1] == 2:
        return _difference(logits[:, 1:], logits[:, :1]), positive[:, 1:]
    return _rest_differences(logits), positive


def _difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    zero = jnp.zeros((), a.dtype)
    return add(a, zero, -b, zero)


def _rest_differences(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each logit minus the logarithm of the sum of the exponentials of the others.

    The sums are over sorted logits, so rows with the same logits in another order have the same
    scores.
    """
    descending = -jnp.sort(-logits, axis=1)
    first, second = descending[:, :1], descending[:, 1:2]
    is_first = logits == first
    below = jnp.sum(jnp.exp(descending[:, 1:] - second), axis=1, keepdims=True)
    total = jnp.sum(jnp.exp(descending - first), axis=1, keepdims=True)
    rest = jnp.where(is_first, below, total - jnp.exp(logits - first))
    high, low = _difference(logits, jnp.where(is_first, second, first))
    return add(high, low, -jnp.log(rest), jnp.zeros((), logits.dtype))
