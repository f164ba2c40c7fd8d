"""Ranking metrics: the areas under ROC and precision-recall curves.

Rows are sorted once. All values are then functions of the rows' weights; see
`thinkml.evaluation.metrics.class_counts`.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.objectives.confusion_counts import ratio, ratio_or_nan
from thinkml.core.xla.jit import Jit
from thinkml.core.xla.target import target_platform
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import tally
from thinkml.evaluation.ranking_scores import scores
from thinkml.typing import Array

# On a device, columns are computed in batches of about this many numbers.
_BATCH_NUMBERS = 2**22


class Rankings(NamedTuple):
    """Rows in the order of falling scores, for each column of scores: ``(columns, n)``.

    Attributes:
        order: the rows.
        label: the class of each row for multiclass; else 1 for positive rows and 0 for others.
        positive_label: ``(columns,)``, the label that counts as positive.
        first: the first position with the same score; None if all scores differ.
        last: the last position with the same score; None if all scores differ.
        classes: the indices of the classes, or 0 and 1.
        weightless: ``(columns,)``, True if there are no positive rows, or all have weight 0.
    """

    order: Array
    label: Array
    positive_label: Array
    first: Array
    last: Array
    classes: Array
    weightless: Array


def rankings(data: EvaluationData) -> Rankings:
    """Ranks the rows by the score of the positive class, of each class or of each label."""
    return _rankings(data, data.part(scores))


def rankings_by_probability(data: EvaluationData) -> Rankings:
    """Ranks the rows by probability, as thresholds of the probability do; see `rankings`."""
    if data.outputs is None:
        return data.part(rankings)
    assert data.probabilities is not None
    return _rankings(data, data.probabilities)


def _rankings(data: EvaluationData, values: np.ndarray) -> Rankings:
    columns = values[:, data.task_type.ranked].T
    if data.task_type.has_one_class:
        labels, classes = data.labels[None], np.arange(data.num_classes)
        positive_label = classes[data.task_type.ranked]
    else:
        labels, classes = (data.labels.T > 0.5).astype(np.int64), np.arange(2)
        positive_label = np.ones(len(columns), int)
    order, first, last, label = (np.empty(columns.shape, np.int32) for _ in range(4))
    columns = np.ascontiguousarray(columns)

    def rank(index: int) -> bool:
        ranked = _write_order(columns[index], order[index])
        label[index] = labels[index % len(labels)][order[index]]
        return _write_ties(ranked, first[index], last[index])

    # NumPy sorts and copies without the interpreter's lock, so columns use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        has_ties = any(list(threads.map(rank, range(len(columns)))))
    totals = np.stack([tally(column, data.weights, len(classes)) for column in labels])
    weightless = totals[np.arange(len(positive_label)) % len(labels), positive_label] == 0
    return Rankings(
        order=order,
        label=label,
        positive_label=positive_label,
        first=first if has_ties else None,
        last=last if has_ties else None,
        classes=classes,
        weightless=weightless,
    )


def _write_order(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Writes the rows by falling score into ``order``, and returns the scores in that order."""
    with np.errstate(over='ignore', under='ignore'):
        rounded = scores.astype(np.float32)
    if target_platform() == 'cpu':
        _write_packed_order(rounded, order)
    else:
        order[:] = _falling_order(jnp.asarray(rounded))
    ranked = scores[order]
    if (ranked[1:] > ranked[:-1]).any():  # scores that differ only beyond 32 bits
        order[:] = order[np.argsort(-ranked, kind='stable')]
        ranked = scores[order]
    return ranked


@Jit
def _falling_order(scores: jax.Array) -> jax.Array:
    # An accelerator sorts millions of keys with their rows in milliseconds.
    rows = jax.lax.iota(jnp.int32, len(scores))
    return jax.lax.sort((-scores, rows), num_keys=1, is_stable=True)[1]


def _write_packed_order(scores: np.ndarray, order: np.ndarray) -> None:
    # Sorts 64-bit numbers with the score in the upper bits and the row in the lower ones, which
    # takes a third of the time of an argsort.
    packed = np.empty(len(scores), np.uint64)
    row, key = packed.view(np.uint32).reshape(-1, 2).T
    row[:] = np.arange(len(scores), dtype=np.uint32)
    key[:] = (scores + np.float32(0)).view(np.uint32)  # without the sign of zero
    if scores.min() < 0:
        key[:] = np.where(key >> 31 == 1, ~key, key | np.uint32(1 << 31))
    np.invert(key, out=key)
    packed.sort()
    order[:] = row


def _write_ties(ranked: np.ndarray, first: np.ndarray, last: np.ndarray) -> bool:
    """Writes the first and last position of each score; returns True if there are ties."""
    changes = np.flatnonzero(ranked[1:] != ranked[:-1]).astype(np.int32) + 1
    begins = np.append(np.int32(0), changes)
    lengths = np.diff(begins, append=np.int32(len(ranked)))
    first[:] = np.repeat(begins, lengths)
    last[:] = first + np.repeat(lengths - 1, lengths)
    return len(begins) < len(ranked)


class _RankedWeights(NamedTuple):
    """The weights of positive and negative rows in the order of a ranking, and its ties."""

    positive: Array
    negative: Array
    first: Array
    last: Array

    def cumulate(self, values: Array) -> Array:
        """Returns the sum of the values down to each score."""
        sums = values.__array_namespace__().cumsum(values)
        return sums if self.last is None else sums[self.last]

    def positives_above(self) -> Array:
        """Returns the weight of positives above each row; those with the same score count half."""
        sums = self.positive.__array_namespace__().cumsum(self.positive)
        above = sums - self.positive
        if self.last is not None:
            above, sums = above[self.first], sums[self.last]
        return (above + sums) / 2


def _rank_weights(
    weight: Array,
    order: Array,
    label: Array,
    positive_label: Array,
    first: Array | None,
    last: Array | None,
) -> _RankedWeights:
    weight = weight[order]
    positive = weight * (label == positive_label)
    return _RankedWeights(positive=positive, negative=weight - positive, first=first, last=last)


def _each_ranking(
    function: Callable[[_RankedWeights, Array], Array], part: Rankings, weight: Array
) -> Array:
    """Returns ``function(ranked, label)`` of every column, stacked."""

    def apply(column: tuple[Any, ...]) -> Array:
        return function(_rank_weights(weight, *column), column[1])

    num_columns = len(part.positive_label)
    columns = (part.order, part.label, part.positive_label, part.first, part.last)
    if isinstance(weight, np.ndarray):
        return np.stack(
            [apply(tuple(c if c is None else c[i] for c in columns)) for i in range(num_columns)]
        )
    most = min(max(1, _BATCH_NUMBERS // len(weight)), num_columns)
    batch_size = next(n for n in range(most, 0, -1) if num_columns % n == 0)
    return jax.lax.map(apply, columns, batch_size=batch_size)


def roc_auc(part: Rankings, weight: Array) -> Array:
    """Returns the area under the ROC curve; the mean over classes or labels if there are several.

    Classes are taken one-vs-rest. The area is the probability that a positive example scores above
    a negative one; ties count half. It is NaN if a class has no examples or all of them.
    """
    return _each_ranking(_roc_area, part, weight).mean()


def resampled_roc_auc(part: Rankings, weight: Array) -> Array:
    """Returns the mean area over the classes that have positives and negatives in the resample."""
    return _mean_of_defined(_each_ranking(_roc_area, part, weight))


def _mean_of_defined(areas: Array) -> Array:
    xp = areas.__array_namespace__()
    defined = ~xp.isnan(areas)
    return ratio_or_nan(xp.where(defined, areas, 0).sum(), defined.sum())


def _roc_area(ranked: _RankedWeights, label: Array) -> Array:
    concordant = (ranked.negative * ranked.positives_above()).sum()
    return ratio_or_nan(concordant, ranked.positive.sum() * ranked.negative.sum())


def roc_auc_ovo(part: Rankings, weight: Array) -> Array:
    """Returns the mean over all pairs of classes of the area between the two alone.

    For each pair it is the mean of the areas by the scores of either class.

    Reference:
        Hand and Till, 2001, *A simple generalisation of the area under the ROC curve for multiple
        class classification problems*.
    """
    areas = _areas_of_pairs(part, weight)
    size = len(part.classes)
    return areas.__array_namespace__().where(np.eye(size), 0, areas).sum() / (size * (size - 1))


def resampled_roc_auc_ovo(part: Rankings, weight: Array) -> Array:
    """Returns the mean area over the pairs that have both classes in the resample."""
    areas = _areas_of_pairs(part, weight)
    xp = areas.__array_namespace__()
    return _mean_of_defined(xp.where(np.eye(len(part.classes)), xp.nan, areas))


def _areas_of_pairs(part: Rankings, weight: Array) -> Array:
    size = len(part.classes)

    def against_each(ranked: _RankedWeights, label: Array) -> Array:
        pairs = ranked.positive.sum() * tally(label, ranked.negative, size)
        concordant = tally(label, ranked.negative * ranked.positives_above(), size)
        return ratio_or_nan(concordant, pairs)

    return _each_ranking(against_each, part, weight)


def average_precision(part: Rankings, weight: Array) -> Array:
    """Returns the precision-recall area; the mean over classes or labels if there are several.

    Classes are taken one-vs-rest. The area is the sum of steps
    ``sum_i (recall_i - recall_{i-1}) precision_i``. It is 0 for a class without examples.
    """
    return _each_ranking(_precision_area, part, weight).mean()


def resampled_average_precision(part: Rankings, weight: Array) -> Array:
    """Returns the mean area over the classes that have examples in the resample.

    Classes whose examples have weight 0 in the data set count as well, with an area of 0.
    """
    areas = _each_ranking(_precision_area, part, weight)
    counted = (_each_ranking(_positives, part, weight) > 0) | part.weightless
    return ratio((areas * counted).sum(), counted.sum())


def _positives(ranked: _RankedWeights, label: Array) -> Array:
    return ranked.positive.sum()


def _precision_area(ranked: _RankedWeights, label: Array) -> Array:
    true_positives = ranked.cumulate(ranked.positive)
    false_positives = ranked.cumulate(ranked.negative)
    precision = ratio(true_positives, true_positives + false_positives)
    return ratio((ranked.positive * precision).sum(), ranked.positive.sum())


def step_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Returns the area under a precision-recall curve drawn as steps, its average precision."""
    return float(np.sum(np.diff(recall) * precision[1:]))
