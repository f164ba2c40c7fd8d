"""Areas under the ROC and the precision-recall curve: exact, on the device, any number of classes.

One sort and int32 cumulative counts, so that ties count as they should and counts stay exact where
float32 ones would not (above 2**24). Rows outside the mask count nothing.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Keys = tuple[jax.Array, ...]


def roc_auc(
    scores: jax.Array, positive: jax.Array, mask: jax.Array, low: jax.Array | None = None
) -> jax.Array:
    """The area under the ROC curve of each column.

    It is the chance that a positive example scores above a negative one, ties counted half.

    Args:
        scores: ``[rows, columns]``, higher for positives.
        positive: bool ``[rows, columns]``.
        mask: bool ``[rows]``.
        low: ``[rows, columns]``, the rounding error that scores lack; None for none.

    Returns:
        ``[columns]``; NaN where there are no positives, no negatives, or a score is NaN.

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


def average_precision(
    scores: jax.Array, positive: jax.Array, mask: jax.Array, low: jax.Array | None = None
) -> jax.Array:
    """The average precision ``sum_i (recall_i - recall_{i-1}) precision_i`` of each column.

    Arguments as for `roc_auc`.

    Returns:
        ``[columns]``; 0 where there are no positives, NaN where a score is NaN.
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
    unranked = jnp.any(jnp.isnan(scores) & mask[:, None], axis=0)
    return jnp.where(unranked, jnp.nan, areas)


def _roc_area(keys: Keys, positive: jax.Array, mask: jax.Array) -> jax.Array:
    hits, misses, new_hits, new_misses = _counts_by_threshold(keys, positive, mask)
    height = (hits - new_hits / 2) / hits[-1]
    return _total(height * (new_misses / misses[-1]))


def _precision_area(keys: Keys, positive: jax.Array, mask: jax.Array) -> jax.Array:
    hits, misses, new_hits, _ = _counts_by_threshold(keys, positive, mask)
    precision = hits / jnp.maximum(hits + misses, 1)
    return _total(precision * (new_hits / jnp.maximum(hits[-1], 1)))


def _counts_by_threshold(
    keys: Keys, positive: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """True and false positives at each threshold, and how many of them are new there.

    Every row is one threshold, highest first; of tied rows only the last has something new. Rows
    outside the mask come last and have nothing new.
    """
    keys = tuple(jnp.where(mask, -key, jnp.inf) for key in keys)
    *sorted_keys, is_hit, is_miss = jax.lax.sort(
        (*keys, positive & mask, ~positive & mask), num_keys=len(keys)
    )
    hits, misses = (jnp.cumsum(which, dtype=jnp.int32) for which in (is_hit, is_miss))
    changes = functools.reduce(jnp.logical_or, [key[1:] != key[:-1] for key in sorted_keys])
    last_of_ties = jnp.append(changes, True)
    return hits, misses, _new(hits, last_of_ties), _new(misses, last_of_ties)


def _new(counts: jax.Array, last_of_ties: jax.Array) -> jax.Array:
    """How much cumulative counts rose since the threshold before; 0 within ties."""
    reached = jax.lax.cummax(jnp.where(last_of_ties, counts, 0))
    before = jnp.append(0, reached[:-1])
    return jnp.where(last_of_ties, counts - before, 0)


def _total(values: jax.Array) -> jax.Array:
    """The sum by halves: its rounding error grows with the logarithm of the length."""
    size = 1 << (len(values) - 1).bit_length()
    values = jnp.pad(values, (0, size - len(values)))
    while len(values) > 1:
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    return values[0]
