"""Counts of hits and misses by class, for any weights of the rows.

A *part* is what metrics need of the labels and predictions, prepared once; a metric's value is a
function of a part and the rows' weights. Both are NumPy arrays, or JAX arrays inside a compiled
function: the bootstrap is nothing but the same value under many weights.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from thinkml.core.objectives.confusion_counts import Counts, occurring, ratio
from thinkml.evaluation.evaluation_data import EvaluationData

_MAX_CELLS = 4096
_BLOCK = 2**20


class Pairs(NamedTuple):
    """Rows by what is true and what was predicted.

    Attributes:
        pair: ``(n,)``, the pair of classes of each row.
        truth: ``(pairs,)``, its true class.
        guess: ``(pairs,)``, the one predicted.
        classes: ``(classes,)``, their indices.
        occurs: ``(classes,)``, whether any row has or was predicted it, whatever these rows weigh.
        whole: the counts of all rows under their own weights.
    """

    pair: Any
    truth: Any
    guess: Any
    classes: Any
    occurs: Any = None
    whole: Any = None


class Labels(NamedTuple):
    """Which labels each row has, was predicted and both, 0 or 1, ``(n, k)``; see `Pairs`."""

    truth: Any
    guess: Any
    both: Any
    occurs: Any = None
    whole: Any = None


def class_part(scored: EvaluationData) -> Pairs | Labels:
    """What counts by class are made of."""
    part = _part(scored)
    whole = class_counts(part, scored.weights)
    rows = whole if scored.weight is None else class_counts(part, np.ones(len(scored)))
    return part._replace(occurs=occurring(rows, scored.kind), whole=whole)


def _part(scored: EvaluationData) -> Pairs | Labels:
    if scored.kind == 'multilabel':
        truth, guess = scored.labels > 0.5, scored.predictions > 0.5
        return Labels(*(a.astype(np.float32) for a in (truth, guess, truth & guess)))
    k = scored.num_classes
    cells = scored.labels.astype(np.int64) * k + scored.predictions
    if k * k <= _MAX_CELLS:
        found = np.arange(k * k)
    else:
        found, cells = np.unique(cells, return_inverse=True)
        # Up to a power of two, with pairs that no row has, so that data sets share a program.
        found = np.pad(found, (0, (1 << (len(found) - 1).bit_length()) - len(found)))
    return Pairs(cells, found // k, found % k, np.arange(k))


def tally(groups: Any, weight: Any, size: int) -> Any:
    """The sum of the weights in each of ``size`` groups."""
    if isinstance(weight, np.ndarray):
        return np.bincount(groups, weight, size)
    # Each block by itself: one more is lost on a float32 of 2**24.
    num_blocks = -(-len(weight) // _BLOCK)
    place = groups if num_blocks == 1 else groups + size * (jnp.arange(len(weight)) // _BLOCK)
    sums = jnp.zeros(size * num_blocks, weight.dtype).at[place].add(weight)
    return sums.reshape(num_blocks, size).sum(axis=0)


def class_counts(part: Pairs | Labels, weight: Any) -> Counts:
    """Counts what precision, recall and F1 are made of."""
    if isinstance(part, Labels):
        return Counts(weight @ part.both, weight @ part.guess, weight @ part.truth, weight.sum())
    found = tally(part.pair, weight, len(part.truth))
    k = len(part.classes)
    true_positives = tally(part.truth, found * (part.truth == part.guess), k)
    return Counts(
        true_positives, tally(part.guess, found, k), tally(part.truth, found, k), weight.sum()
    )


def confusion_matrix(scored: EvaluationData) -> np.ndarray:
    """Counts rows by true and predicted class.

    Returns:
        ``(classes, classes)``, true classes in rows, predicted in columns. For multilabel one
        matrix ``[[tn, fp], [fn, tp]]`` per label, ``(k, 2, 2)``. Integers, unless rows are
        weighted.
    """
    part = scored.part(class_part)
    if isinstance(part, Labels):
        true_positives, predicted, actual, total = class_counts(part, scored.weights)
        neither = total - predicted - actual + true_positives
        matrix = np.stack(
            [neither, predicted - true_positives, actual - true_positives, true_positives], 1
        ).reshape(-1, 2, 2)
    else:
        matrix = np.zeros((scored.num_classes,) * 2)
        found = tally(part.pair, scored.weights, len(part.truth))
        np.add.at(matrix, (part.truth, part.guess), found)
    return matrix if scored.weight is not None else np.round(matrix).astype(np.int64)


def per_class_f1(part: Pairs | Labels, weight: Any) -> Any:
    """The F1 of each class, ``(classes,)``."""
    counts = class_counts(part, weight)
    return ratio(2 * counts.true_positives, counts.predicted + counts.actual)
