"""What a ranking by score gives: the areas under ROC and precision-recall curves.

Rows are sorted once. From then on everything is a function of the rows' weights, see
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
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import tally
from thinkml.evaluation.ranking_scores import scores

# On a device, columns side by side come to about so many numbers.
_SIDE_BY_SIDE = 2**22


class Rankings(NamedTuple):
    """Rows in the order of falling scores, for each column of scores: ``(columns, n)``.

    Attributes:
        order: the rows.
        rival: the class each has, of multiclass; else whether it is positive, 0 or 1.
        own: ``(columns,)``, which of these counts as positive.
        first: where the rows begin that have the same score; None where no two have.
        last: where they end.
        classes: the indices of the classes, or 0 and 1.
        weightless: ``(columns,)``, whether the positive rows weigh nothing, or there are none.
    """

    order: Any
    rival: Any
    own: Any
    first: Any
    last: Any
    classes: Any
    weightless: Any


def rankings(scored: EvaluationData) -> Rankings:
    """Ranks the rows by the score of the positive class, of each class or of each label."""
    return _rankings(scored, scored.part(scores))


def rankings_by_probability(scored: EvaluationData) -> Rankings:
    """Ranks the rows by probabilities, as thresholds of these do; see `rankings`."""
    if scored.outputs is None:
        return scored.part(rankings)
    assert scored.probabilities is not None
    return _rankings(scored, scored.probabilities)


def _rankings(scored: EvaluationData, values: np.ndarray) -> Rankings:
    if scored.kind == 'multiclass':
        columns, rivals = values.T, scored.labels[None]
        own, classes = np.arange(len(columns)), np.arange(scored.num_classes)
    elif scored.kind == 'binary':
        columns, rivals = values[:, 1][None], scored.labels[None]
        own, classes = np.ones(1, int), np.arange(2)
    else:
        columns, rivals = values.T, (scored.labels.T > 0.5).astype(np.int64)
        own, classes = np.ones(len(columns), int), np.arange(2)
    order, first, last, rival = (np.empty(columns.shape, np.int32) for _ in range(4))
    columns = np.ascontiguousarray(columns)

    def rank(index: int) -> bool:
        ranked = _write_order(columns[index], order[index])
        rival[index] = rivals[index % len(rivals)][order[index]]
        return _write_ties(ranked, first[index], last[index])

    # NumPy sorts and copies without the interpreter's lock: columns on as many cores as there are.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        has_ties = any(list(threads.map(rank, range(len(columns)))))
    ties = (first, last) if has_ties else (None, None)
    weighed = np.stack([tally(column, scored.weights, len(classes)) for column in rivals])
    weightless = weighed[np.arange(len(own)) % len(rivals), own] == 0
    return Rankings(order, rival, own, *ties, classes, weightless)


def _write_order(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Notes the rows by falling score, and returns the scores in that order."""
    with np.errstate(over='ignore', under='ignore'):
        rounded = scores.astype(np.float32)
    if jax.default_backend() == 'cpu':
        _write_packed_order(rounded, order)
    else:
        order[:] = _falling(jnp.asarray(rounded))
    ranked = scores[order]
    if (ranked[1:] > ranked[:-1]).any():  # all digits count, and devices have 32 bits
        order[:] = order[np.argsort(-ranked, kind='stable')]
        ranked = scores[order]
    return ranked


@Jit
def _falling(scores: jax.Array) -> jax.Array:
    # One sort of keys and rows takes an accelerator milliseconds for millions.
    rows = jax.lax.iota(jnp.int32, len(scores))
    return jax.lax.sort((-scores, rows), num_keys=1, is_stable=True)[1]


def _write_packed_order(scores: np.ndarray, order: np.ndarray) -> None:
    # Sorting 64-bit numbers, each a score's bits above its row, takes a third of an argsort.
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
    """Notes for each place the first and the last one of the same score; whether any are."""
    changes = np.flatnonzero(ranked[1:] != ranked[:-1]).astype(np.int32) + 1
    begins = np.append(np.int32(0), changes)
    lengths = np.diff(begins, append=np.int32(len(ranked)))
    first[:] = np.repeat(begins, lengths)
    last[:] = first + np.repeat(lengths - 1, lengths)
    return len(begins) < len(ranked)


class _Ranked(NamedTuple):
    """One ranking: the weights of positives and of all others, and where scores are the same."""

    positive: Any
    negative: Any
    first: Any
    last: Any

    def through(self, values: Any) -> Any:
        """The sum of the values down to each score."""
        sums = values.__array_namespace__().cumsum(values)
        return sums if self.last is None else sums[self.last]

    def lost(self) -> Any:
        """What positives score above each row, and half of those that score the same."""
        sums = self.positive.__array_namespace__().cumsum(self.positive)
        above = sums - self.positive
        if self.last is not None:
            above, sums = above[self.first], sums[self.last]
        return (above + sums) / 2


def _ranked(weight: Any, order: Any, rival: Any, own: Any, first: Any, last: Any) -> _Ranked:
    weight = weight[order]
    positive = weight * (rival == own)
    return _Ranked(positive, weight - positive, first, last)


def _each_ranking(function: Callable[..., Any], part: Rankings, weight: Any) -> Any:
    """``function(ranked, rival)`` of every column, stacked."""

    def of_column(column: tuple[Any, ...]) -> Any:
        return function(_ranked(weight, *column), column[1])

    columns = (part.order, part.rival, part.own, part.first, part.last)
    if isinstance(weight, np.ndarray):
        count = range(len(part.own))
        return np.stack(
            [of_column(tuple(c if c is None else c[i] for c in columns)) for i in count]
        )
    most = max(1, _SIDE_BY_SIDE // len(weight))
    batch_size = next(n for n in range(min(most, len(part.own)), 0, -1) if len(part.own) % n == 0)
    return jax.lax.map(of_column, columns, batch_size=batch_size)


def roc_auc(part: Rankings, weight: Any) -> Any:
    """The area under the ROC curve; the mean over classes (one-vs-rest) or labels, if several.

    It is the chance that a positive example scores above a negative one, ties counted half. NaN
    where a class has no examples or all of them.
    """
    return _each_ranking(_roc_area, part, weight).mean()


def roc_auc_of_some(part: Rankings, weight: Any) -> Any:
    """The same over the classes that these weights leave with and without examples."""
    return _mean_of_defined(_each_ranking(_roc_area, part, weight))


def _mean_of_defined(areas: Any) -> Any:
    xp = areas.__array_namespace__()
    defined = ~xp.isnan(areas)
    return ratio_or_nan(xp.where(defined, areas, 0).sum(), defined.sum())


def _roc_area(ranked: _Ranked, rival: Any) -> Any:
    lost = (ranked.negative * ranked.lost()).sum()
    return ratio_or_nan(lost, ranked.positive.sum() * ranked.negative.sum())


def roc_auc_ovo(part: Rankings, weight: Any) -> Any:
    """The mean over all pairs of classes of the area between the two alone.

    Of each pair it is the mean of the areas by the scores of the one and of the other.

    Reference:
        Hand and Till, 2001, *A simple generalisation of the area under the ROC curve for multiple
        class classification problems*.
    """
    areas = _areas_of_pairs(part, weight)
    size = len(part.classes)
    return areas.__array_namespace__().where(np.eye(size), 0, areas).sum() / (size * (size - 1))


def roc_auc_ovo_of_some(part: Rankings, weight: Any) -> Any:
    """The same over the pairs of which these weights leave both classes."""
    areas = _areas_of_pairs(part, weight)
    xp = areas.__array_namespace__()
    return _mean_of_defined(xp.where(np.eye(len(part.classes)), xp.nan, areas))


def _areas_of_pairs(part: Rankings, weight: Any) -> Any:
    size = len(part.classes)

    def against_each(ranked: _Ranked, rival: Any) -> Any:
        pairs = ranked.positive.sum() * tally(rival, ranked.negative, size)
        return ratio_or_nan(tally(rival, ranked.negative * ranked.lost(), size), pairs)

    return _each_ranking(against_each, part, weight)


def average_precision(part: Rankings, weight: Any) -> Any:
    """The precision-recall curve's area; the mean over classes (one-vs-rest) or labels, if several.

    The area is the sum of steps ``sum_i (recall_i - recall_{i-1}) precision_i``. A class without
    examples has 0.
    """
    return _each_ranking(_precision_area, part, weight).mean()


def average_precision_of_some(part: Rankings, weight: Any) -> Any:
    """The same over the classes that these weights leave with examples, or that never weigh."""
    areas = _each_ranking(_precision_area, part, weight)
    counted = (_each_ranking(_positives, part, weight) > 0) | part.weightless
    return ratio((areas * counted).sum(), counted.sum())


def _positives(ranked: _Ranked, rival: Any) -> Any:
    return ranked.positive.sum()


def _precision_area(ranked: _Ranked, rival: Any) -> Any:
    true_positives, false_positives = (
        ranked.through(ranked.positive),
        ranked.through(ranked.negative),
    )
    precision = ratio(true_positives, true_positives + false_positives)
    return ratio((ranked.positive * precision).sum(), ranked.positive.sum())


def step_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under a precision-recall curve drawn as steps, its average precision."""
    return float(np.sum(np.diff(recall) * precision[1:]))
