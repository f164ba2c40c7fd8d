"""Score summaries: the values of each example that metrics need, in place of all its scores.

The scores of a language model are a number for each token and word. A summary of them is computed
on the device, batch by batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.model.adapters import FunctionalModel
from thinkml.core.model.forward import RowSource, inference_batch_size
from thinkml.core.model.functional import functionalize
from thinkml.core.model.mixed_precision import DType
from thinkml.core.objectives.heads import part_of
from thinkml.tasks import Task
from thinkml.typing import Model, PyTree

MOST_SCORE_BYTES = 2**30
"""The float32 scores of a data set are kept up to this size."""

# The outputs of a batch take about this size, and the values computed from them a small multiple.
_BATCH_BYTES = 2**25


class ScoreSummary(NamedTuple):
    """The values of each example that metrics of one class per example need, ``(n,)``.

    Attributes:
        prediction: the class with the largest output; of equal ones, the first.
        logit: ``ln(p / (1 - p))`` of that class.
        log_loss: ``-ln p`` of the true class.
        rank: the number of classes that are more probable than the true one; of equal ones, the
            earlier classes.
        squares: the sum of the squared probabilities.
        is_finite: True if all outputs are finite.
    """

    prediction: Any
    logit: Any
    log_loss: Any
    rank: Any
    squares: Any
    is_finite: Any

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> 'ScoreSummary':
        """Returns a summary of ``function`` of each array."""
        return ScoreSummary(*map(function, self))

    @property
    def confidence(self) -> np.ndarray:
        """Returns the probability of the predicted class, float64."""
        return np.exp(-np.logaddexp(0, -self.logit.astype(np.float64)))

    @property
    def true_probability(self) -> np.ndarray:
        """Returns the probability of the true class, float64."""
        return np.exp(-self.log_loss.astype(np.float64))


def summarize(outputs: jax.Array, labels: jax.Array) -> ScoreSummary:
    """Returns the summary of outputs ``[..., classes]`` with class indices ``[...]``.

    Ignored labels, -1, have values without a meaning.
    """
    labels = jnp.maximum(labels.astype(jnp.int32), 0)[..., None]
    classes = jnp.arange(outputs.shape[-1])
    true = jnp.take_along_axis(outputs, labels, axis=-1)
    first = outputs.max(axis=-1, keepdims=True)
    # On a CPU, XLA compares one number at a time for an argmax, and many for a minimum.
    prediction = jnp.where(outputs == first, classes, classes[-1]).min(axis=-1).astype(jnp.int32)
    others = jnp.where(classes == prediction[..., None], -jnp.inf, outputs)
    # Relative to the largest of the others, so that the logit is finite even if p rounds to 1.
    second = others.max(axis=-1, keepdims=True)
    ratios = jnp.exp(others - second)
    logit = (first - second)[..., 0] - jnp.log(ratios.sum(axis=-1))
    less_than_first = jnp.exp(2 * (second - first)[..., 0])
    is_ahead = (outputs > true) | ((outputs == true) & (classes < labels))
    return ScoreSummary(
        prediction=prediction,
        logit=logit,
        log_loss=(first - true)[..., 0] + jax.nn.softplus(-logit),
        rank=is_ahead.sum(axis=-1, dtype=jnp.int32),
        squares=(1 + less_than_first * jnp.square(ratios).sum(axis=-1))
        * jnp.square(jax.nn.sigmoid(logit)),
        is_finite=jnp.isfinite(outputs).all(axis=-1),
    )


def summary_of_constant(probabilities: np.ndarray, labels: np.ndarray) -> ScoreSummary:
    """Returns the summary of a model that predicts the same probabilities for each example."""
    eps = np.finfo(np.float64).eps
    p = np.clip(probabilities, eps, 1 - eps)
    prediction, rank = probabilities.argmax(), np.empty(len(p), np.int32)
    rank[np.argsort(-probabilities, kind='stable')] = np.arange(len(p))
    whole = np.ones(len(labels))
    return ScoreSummary(
        prediction=np.full(len(labels), prediction, np.int32),
        logit=whole * (np.log(p[prediction]) - np.log1p(-p[prediction])),
        log_loss=-np.log(p[labels]),
        rank=rank[labels],
        squares=whole * np.square(probabilities).sum(),
        is_finite=whole > 0,
    )


def score_bytes(task: Task, num_rows: int) -> int:
    """Returns the size of a model's outputs in float32."""
    return 4 * num_rows * task.num_elements * task.num_outputs


def is_summarized(task: Task, num_rows: int) -> bool:
    """Returns True if the scores of a data set are too large to be kept."""
    has_top_class = task.type.has_one_class and not task.type.has_threshold
    return has_top_class and score_bytes(task, num_rows) > MOST_SCORE_BYTES


def summary_batch_size(tasks: Mapping[Any, Task], x: PyTree) -> int:
    """Returns the batch size of a forward pass whose outputs are summarized, a power of two.

    Args:
        tasks: the tasks of the heads.
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
    """
    row_bytes = sum(score_bytes(task, 1) for task in tasks.values())
    most = max(1, _BATCH_BYTES // row_bytes)
    return min(inference_batch_size(x), 2 ** (most.bit_length() - 1))


@dataclasses.dataclass(frozen=True)
class Summaries:
    """A function of outputs and encoded labels that returns summaries, and other heads' outputs.

    Attributes:
        heads: the names of the heads that are evaluated; empty for a model with one output.
        summarized: those whose outputs are summarized.
    """

    heads: tuple[str, ...]
    summarized: tuple[str, ...]

    def __call__(self, outputs_and_labels: PyTree) -> PyTree:
        outputs, labels = outputs_and_labels
        if not self.heads:
            return summarize(outputs, labels)
        parts = {name: part_of(outputs, name) for name in self.heads}
        return parts | {name: summarize(parts[name], labels[name]) for name in self.summarized}


class WithLabels:
    """A model that takes inputs and labels, and returns its outputs and the labels.

    Args:
        model: see `thinkml.core.functionalize`.
    """

    def __init__(self, model: Model):
        self.model = model

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """Returns the model as a `FunctionalModel`, see `thinkml.core.functionalize`."""
        functional = functionalize(self.model, x[0], key, compute_dtype)
        return dataclasses.replace(functional, apply=_WithLabels(functional.apply))


@dataclasses.dataclass(frozen=True)
class _WithLabels:
    apply: Any

    def __call__(self, params, model_state, x, *, key, train):
        inputs, labels = x
        outputs, state = self.apply(params, model_state, inputs, key=key, train=train)
        return (outputs, labels), state


@dataclasses.dataclass(frozen=True)
class LabeledRows:
    """Inputs and labels that are read row by row; see `thinkml.core.model.forward.RowSource`.

    Attributes:
        rows: the inputs.
        labels: encoded labels, an array or a dict of arrays.
    """

    rows: RowSource
    labels: PyTree

    @property
    def spec(self) -> PyTree:
        labels = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, y.dtype), self.labels)
        return self.rows.spec, labels

    def take(self, indices: np.ndarray) -> PyTree:
        """Reads the rows at these indices, and their labels."""
        return self.rows.take(indices), jax.tree.map(lambda y: y[indices], self.labels)
