"""Class counts: predictions by class, for any weights of the rows.

A *part* is the data that a metric needs, derived once from labels and predictions. A metric's
value is a function of a part and the rows' weights. Both are NumPy arrays, or JAX arrays inside a
compiled function. The bootstrap computes the same value under many weights.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from thinkml.core.objectives.confusion_counts import Counts, occurring, ratio
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.score_summary import MOST_SCORE_BYTES
from thinkml.typing import Array

_MAX_CELLS = 4096
_BLOCK = 2**20


class Pairs(NamedTuple):
    """Rows by their pair of true and predicted class.

    Attributes:
        pair: ``(n,)``, the pair of classes of each row.
        truth: ``(pairs,)``, the true class of each pair.
        prediction: ``(pairs,)``, the predicted class of each pair.
        classes: ``(classes,)``, the indices of the classes.
        occurs: ``(classes,)``, True for classes among the labels or predictions, whatever the
            weights of these rows.
        full_counts: the counts of all rows with the weights of the data set.
    """

    pair: Array
    truth: Array
    prediction: Array
    classes: Array
    occurs: Array = None
    full_counts: Any = None


class Labels(NamedTuple):
    """Labels that each row has, is predicted to have, and both, 0 or 1, ``(n, k)``.

    See `Pairs` for the other fields.
    """

    truth: Array
    prediction: Array
    both: Array
    occurs: Array = None
    full_counts: Any = None


def class_part(data: EvaluationData) -> Pairs | Labels:
    """Returns the part that metrics of class counts need."""
    part = _part(data)
    weighted = class_counts(part, data.weights)
    unweighted = weighted if data.weight is None else class_counts(part, np.ones(len(data)))
    return part._replace(occurs=occurring(unweighted, data.kind), full_counts=weighted)


def _part(data: EvaluationData) -> Pairs | Labels:
    if data.task_type.has_many_labels:
        truth, prediction = data.labels > 0.5, data.predictions > 0.5
        return Labels(*(a.astype(np.float32) for a in (truth, prediction, truth & prediction)))
    k = data.num_classes
    cells = data.labels.astype(np.int64) * k + data.predictions
    if k * k <= _MAX_CELLS:
        pairs = np.arange(k * k)
    else:
        pairs, cells = np.unique(cells, return_inverse=True)
        # Padded to a power of two with pairs that no row has, so that data sets share a program.
        pairs = np.pad(pairs, (0, (1 << (len(pairs) - 1).bit_length()) - len(pairs)))
    return Pairs(pair=cells, truth=pairs // k, prediction=pairs % k, classes=np.arange(k))


def tally(groups: Array, weight: Array, size: int) -> Array:
    """Returns the sum of the weights in each of ``size`` groups."""
    if isinstance(weight, np.ndarray):
        return np.bincount(groups, weight, size)
    # Blocks are summed separately, since adding 1 to a float32 of 2**24 has no effect.
    num_blocks = -(-len(weight) // _BLOCK)
    index = groups if num_blocks == 1 else groups + size * (jnp.arange(len(weight)) // _BLOCK)
    sums = jnp.zeros(size * num_blocks, weight.dtype).at[index].add(weight)
    return sums.reshape(num_blocks, size).sum(axis=0)


def class_counts(part: Pairs | Labels, weight: Array) -> Counts:
    """Returns the counts that precision, recall and F1 are computed from."""
    if isinstance(part, Labels):
        return Counts(
            true_positives=weight @ part.both,
            predicted=weight @ part.prediction,
            actual=weight @ part.truth,
            total=weight.sum(),
        )
    pair_counts = tally(part.pair, weight, len(part.truth))
    k = len(part.classes)
    return Counts(
        true_positives=tally(part.truth, pair_counts * (part.truth == part.prediction), k),
        predicted=tally(part.prediction, pair_counts, k),
        actual=tally(part.truth, pair_counts, k),
        total=weight.sum(),
    )


def confusion_matrix(data: EvaluationData) -> np.ndarray | None:
    """Returns the number (or weight) of rows by true and predicted class.

    Returns:
        ``(classes, classes)``, true classes in rows, predicted in columns. For multilabel one
        matrix ``[[tn, fp], [fn, tp]]`` per label, ``(k, 2, 2)``. Integers, unless rows are
        weighted. None if it would take more than 1 GiB, as for the words of a language.
    """
    part = data.part(class_part)
    if isinstance(part, Labels):
        true_positives, predicted, actual, total = class_counts(part, data.weights)
        neither = total - predicted - actual + true_positives
        matrix = np.stack(
            [neither, predicted - true_positives, actual - true_positives, true_positives], 1
        ).reshape(-1, 2, 2)
    elif 8 * data.num_classes**2 > MOST_SCORE_BYTES:
        return None
    else:
        matrix = np.zeros((data.num_classes,) * 2)
        pair_counts = tally(part.pair, data.weights, len(part.truth))
        np.add.at(matrix, (part.truth, part.prediction), pair_counts)
    return matrix if data.weight is not None else np.round(matrix).astype(np.int64)


def per_class_f1(part: Pairs | Labels, weight: Array) -> Array:
    """Returns the F1 of each class, ``(classes,)``."""
    counts = class_counts(part, weight)
    return ratio(2 * counts.true_positives, counts.predicted + counts.actual)
