"""Ranking metrics: exact areas under the ROC and the precision-recall curve, on the device.

They are computed from one sort and int32 cumulative counts, so ties are handled correctly and
counts are exact above 2**24, where float32 counts are not. Rows outside the mask are ignored.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Keys = tuple[jax.Array, ...]


def roc_auc(
    scores: jax.Array, positive: jax.Array, mask: jax.Array, low: jax.Array | None = None
) -> jax.Array:
    """Computes the area under the ROC curve of each column.

    It is the probability that a positive example has a higher score than a negative one, with ties
    counted half.

    Args:
        scores: ``[rows, columns]``, higher for positives.
        positive: bool ``[rows, columns]``, True for positives.
        mask: bool ``[rows]``, True for the rows that count.
        low: ``[rows, columns]``, the rounding error of the scores; None for none.

    Returns:
        ``[columns]``; NaN for columns without positives, without negatives, or with a NaN score.

    Reference:
        Fawcett, 2006, *An introduction to ROC analysis*.

    Example:
        >>> import jax.numpy as jnp
        >>> scores = jnp.array([[0.1], [0.4], [0.35], [0.8]])
        >>> positive = jnp.array([[False], [False], [True], [True]])
        >>> roc_auc(scores, positive, jnp.ones(4, bool)).tolist()
        [0.75]
    """
    return _each_column(_roc_area, scores, positive, mask, low)


NUM_BINS = 2048
# Beyond this logit, the scores of all rows are in the last bin.
_LARGEST_LOGIT = 16.0


def bins_of(logits: jax.Array) -> jax.Array:
    """Returns the bin of each logit, int32: bins of equal width from -16 to 16."""
    position = (logits / _LARGEST_LOGIT + 1) * (NUM_BINS / 2)
    return jnp.clip(position, 0, NUM_BINS - 1).astype(jnp.int32)


def binned_roc_auc(positives: jax.Array, negatives: jax.Array) -> jax.Array:
    """Computes the area under the ROC curve of each column from counts by bin of the score.

    Scores in one bin count as tied. With bins of 1/64 logit the area differs from the exact one in
    the third to fifth decimal.

    Args:
        positives: int32 ``[columns, bins]``, the number of positive rows in each bin.
        negatives: int32 ``[columns, bins]``, the number of negative ones.

    Returns:
        ``[columns]``; NaN for columns without positives or without negatives.

    Example:
        >>> import jax.numpy as jnp
        >>> binned_roc_auc(jnp.array([[0, 1, 1]]), jnp.array([[1, 1, 0]])).tolist()
        [0.875]
    """
    num_positive, num_negative = positives.sum(axis=1), negatives.sum(axis=1)
    share = positives / num_positive[:, None]
    below = (jnp.cumsum(negatives, axis=1) - negatives / 2) / num_negative[:, None]
    return (share * below).sum(axis=1)


def average_precision(
    scores: jax.Array, positive: jax.Array, mask: jax.Array, low: jax.Array | None = None
) -> jax.Array:
    """Computes the average precision of each column.

    It is ``sum_i (recall_i - recall_{i-1}) precision_i``. The arguments are those of `roc_auc`.

    Returns:
        ``[columns]``; 0 for columns without positives, NaN for columns with a NaN score.
    """
    return _each_column(_precision_area, scores, positive, mask, low)


def _each_column(
    area: Callable[..., jax.Array],
    scores: jax.Array,
    positive: jax.Array,
    mask: jax.Array,
    low: jax.Array | None,
) -> jax.Array:
    keys = (scores,) if low is None else (scores, low)
    areas = jax.vmap(area, in_axes=(1, 1, None))(keys, positive, mask)
    has_nan = jnp.any(jnp.isnan(scores) & mask[:, None], axis=0)
    return jnp.where(has_nan, jnp.nan, areas)


def _roc_area(keys: Keys, positive: jax.Array, mask: jax.Array) -> jax.Array:
    tp, fp, new_tp, new_fp = _counts_by_threshold(keys, positive, mask)
    height = (tp - new_tp / 2) / tp[-1]
    return _pairwise_sum(height * (new_fp / fp[-1]))


def _precision_area(keys: Keys, positive: jax.Array, mask: jax.Array) -> jax.Array:
    tp, fp, new_tp, _ = _counts_by_threshold(keys, positive, mask)
    precision = tp / jnp.maximum(tp + fp, 1)
    return _pairwise_sum(precision * (new_tp / jnp.maximum(tp[-1], 1)))


def _counts_by_threshold(
    keys: Keys, positive: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the true and false positives at each threshold, and the increases of both.

    Every row is one threshold, highest first. Among tied rows only the last one has an increase.
    Rows outside the mask come last and have none.
    """
    keys = tuple(jnp.where(mask, -key, jnp.inf) for key in keys)
    *sorted_keys, is_positive, is_negative = jax.lax.sort(
        (*keys, positive & mask, ~positive & mask), num_keys=len(keys)
    )
    tp, fp = (jnp.cumsum(flags, dtype=jnp.int32) for flags in (is_positive, is_negative))
    changes = functools.reduce(jnp.logical_or, [key[1:] != key[:-1] for key in sorted_keys])
    last_of_ties = jnp.append(changes, True)
    return tp, fp, _increases(tp, last_of_ties), _increases(fp, last_of_ties)


def _increases(counts: jax.Array, last_of_ties: jax.Array) -> jax.Array:
    """Returns the increase of cumulative counts since the previous threshold; 0 within ties."""
    latest = jax.lax.cummax(jnp.where(last_of_ties, counts, 0))
    before = jnp.append(0, latest[:-1])
    return jnp.where(last_of_ties, counts - before, 0)


def _pairwise_sum(values: jax.Array) -> jax.Array:
    """Adds by halves, so that the rounding error grows with the logarithm of the length."""
    size = 1 << (len(values) - 1).bit_length()
    values = jnp.pad(values, (0, size - len(values)))
    while len(values) > 1:
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    return values[0]
