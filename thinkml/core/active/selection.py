"""Which rows of a pool to label next: by scores, at random, or spread out.

Each takes all rows of the pool and ``available``, a mask of those that may be chosen, so that
shapes stay as they are from round to round and nothing is compiled anew; ``count`` rows come back,
or all that are available where they are fewer. Arrays may be NumPy's or JAX's; the loops are
compiled and run on the device, and memory grows with the rows of the pool, never with their square.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.active.acquisition import as_features, as_probabilities
from thinkml.core.active.clustering import (
    draw_far,
    greedy,
    kmeans,
    mean_of,
    nearest,
    neighbor_distances,
    squared_distances,
)
from thinkml.core.xla.jit import Jit
from thinkml.errors import ConfigError, DataError, is_whole

# TypiClust: so many clusters at most, found on so many rows; rows of a cluster that are compared.
_MAX_CLUSTERS, _MAX_ROWS, _MAX_MEMBERS = 500, 32_768, 512
_NUM_NEIGHBORS, _SMALL_CLUSTER = 20, 5


class Selection(NamedTuple):
    """Rows chosen to be labelled, in the order they were chosen.

    Attributes:
        indices: into the pool's rows, int64 ``[count]``, no two the same.
        scores: what each was chosen by, float32 ``[count]``; see the function that chose.
    """

    indices: np.ndarray
    scores: np.ndarray


def highest(scores: Any, count: int, available: Any = None) -> Selection:
    """Chooses the rows with the highest scores; of equal ones the first.

    Args:
        scores: numbers ``[rows]``, see `thinkml.core.active.acquisition`.
        count: how many rows.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows and their scores, highest first.

    Raises:
        DataError: for other shapes, or a score that is NaN.
        ConfigError: for another ``count``.

    Example:
        >>> import numpy as np
        >>> from thinkml.core import highest
        >>> highest([0.1, 0.9, 0.9, 0.4], 2).indices.tolist()
        [1, 2]
        >>> highest([0.1, 0.9, 0.9, 0.4], 2, np.array([True, False, True, True])).indices.tolist()
        [2, 3]
    """
    scores = np.asarray(scores)
    if scores.ndim != 1 or scores.dtype.kind not in 'fiub':
        raise DataError(
            f'scores: got {scores.dtype} of shape {scores.shape}, expected numbers [rows].'
        )
    rows = np.flatnonzero(_as_mask(available, len(scores)))
    count = min(_as_count(count), len(rows))
    ranked = scores[rows].astype(np.promote_types(scores.dtype, np.float32), copy=False)
    if np.isnan(ranked).any():
        raise DataError(f'scores: NaN at row {rows[np.isnan(ranked)][0]}, expected numbers.')
    if 0 < count < len(rows):  # all that reach the last place: what is left to sort is little
        reach = ranked >= np.partition(ranked, -count)[-count]
        rows, ranked = rows[reach], ranked[reach]
    rows = rows[np.argsort(-ranked, kind='stable')[:count]]
    return Selection(rows.astype(np.int64), scores[rows].astype(np.float32))


def at_random(num_rows: int, count: int, key: jax.Array, available: Any = None) -> Selection:
    """Chooses rows at random, each with the same chance.

    Args:
        num_rows: rows of the pool.
        count: how many rows.
        key: a PRNG key.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows in random order, and the numbers from 0 to 1 that decided.

    Raises:
        DataError: for a mask of another shape.
        ConfigError: for another ``num_rows`` or ``count``.

    Example:
        >>> import jax
        >>> from thinkml.core import at_random
        >>> sorted(at_random(4, 4, jax.random.key(0)).indices.tolist())
        [0, 1, 2, 3]
    """
    num_rows = _as_count(num_rows, 'num_rows')
    return highest(jax.random.uniform(key, (num_rows,)), count, available)


def k_center_greedy(
    features: Any, count: int, labeled: Any = None, available: Any = None
) -> Selection:
    """Core-set: chooses the row farthest from all labelled and chosen ones, again and again.

    So every row of the pool has a labelled one near it: the largest distance left is at most twice
    that of the best choice possible.

    Args:
        features: ``[rows, features]``, such as the inputs of a model's last layer.
        count: how many rows.
        labeled: features of the labelled rows ``[labelled, features]``. Without any, the first row
            is that nearest to the mean of those available.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows, and the distance of each to the nearest labelled or chosen row when it was chosen:
        it never rises, and is infinite for a first one with nothing to be far from.

    Raises:
        DataError: for other shapes, or what isn't finite.
        ConfigError: for another ``count``.

    Reference:
        Sener and Savarese, 2018, *Active learning for convolutional neural networks: a core-set
        approach* (the greedy one); Gonzalez, 1985, *Clustering to minimize the maximum intercluster
        distance*.

    Example:
        >>> from thinkml.core import k_center_greedy
        >>> k_center_greedy([[0.0], [1.0], [5.0], [9.0]], 2, labeled=[[0.0]]).indices.tolist()
        [3, 2]
    """
    features = as_features(features)
    available = _as_mask(available, len(features))
    capacity, num_picks = _num_picks(count, available)
    labeled, num_labeled = _padded(labeled, features.shape[1])
    found = _k_center_greedy(features, labeled, num_labeled, available, num_picks, capacity)
    return _selection(found, num_picks)


def badge(
    probabilities: Any, features: Any, count: int, key: jax.Array, available: Any = None
) -> Selection:
    """BADGE: chooses rows whose labels would change the model much, each in another direction.

    A row stands for the gradient of its loss with respect to the weights of the last layer if the
    likeliest class were its label: ``g = (p - onehot(argmax p)) x h``. The first row is that with
    the longest gradient; each further one is drawn with a chance in proportion to its squared
    distance to the nearest chosen, as k-means++ seeds its centres. Distances are computed from the
    two factors, so that ``g``, of ``classes * features`` numbers a row, is never made.

    Args:
        probabilities: ``[rows, classes]``; each row adds up to 1.
        features: what the last layer gets, ``[rows, features]``.
        count: how many rows.
        key: a PRNG key.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows, and the distance of each to the nearest chosen one when it was chosen; for the
        first one the length of its gradient.

    Raises:
        DataError: for other shapes, or what are no probabilities.
        ConfigError: for another ``count``.

    Reference:
        Ash et al., 2020, *Deep batch active learning by diverse, uncertain gradient lower bounds*.

    Example:
        >>> import jax
        >>> from thinkml.core import badge
        >>> probabilities, features = [[0.5, 0.5], [1.0, 0.0], [0.4, 0.6]], [[1.0], [9.0], [-3.0]]
        >>> badge(probabilities, features, 1, jax.random.key(0)).indices.tolist()
        [2]
    """
    probabilities = as_probabilities(probabilities)
    features = as_features(features, num_rows=len(probabilities))
    available = _as_mask(available, len(features))
    capacity, num_picks = _num_picks(count, available)
    picks, squared, exponent = _badge(probabilities, features, available, key, num_picks, capacity)
    chosen = _selection((picks, squared), num_picks)
    return chosen._replace(scores=np.ldexp(chosen.scores, np.asarray(exponent)))


def typiclust(
    features: Any, count: int, key: jax.Array, labeled: Any = None, available: Any = None
) -> Selection:
    """TypiClust: chooses the most typical row of each cluster that has no label yet.

    The available rows are clustered into as many clusters as there will be labels (500 at most).
    Those with the fewest labelled rows come first, of these the largest; of each the row is chosen
    whose 20 nearest rows in the cluster are nearest. Clusters of fewer than 5 rows come last. It is
    made for few labels, where what a model says is worth little yet.

    The work is bounded: k-means runs on at most 32,768 rows drawn at random (all rows are then
    assigned to its centres), and of a cluster of more than 512 rows so many drawn at random stand
    for all.

    Args:
        features: ``[rows, features]`` of a representation that didn't need the labels.
        count: how many rows.
        key: a PRNG key.
        labeled: features of the labelled rows ``[labelled, features]``; None for none.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows, and how typical each is: the inverse of the mean distance to its neighbours; 0 for
        a row without any.

    Raises:
        DataError: for other shapes, or what isn't finite.
        ConfigError: for another ``count``.

    Reference:
        Hacohen, Dekel and Weinshall, 2022, *Active learning on a budget: opposite strategies suit
        high and low budgets*.

    Example:
        >>> import jax, numpy as np
        >>> from thinkml.core import typiclust
        >>> features = np.array([0, 1, 2, 3, 4, 50, 51, 52, 53, 54, 55, 56])[:, None]
        >>> typiclust(features, 2, jax.random.key(0)).indices.tolist()
        [6, 1]
    """
    features = as_features(features)
    available = _as_mask(available, len(features))
    count, num_picks = _num_picks(count, available)
    labeled, num_labeled = _padded(labeled, features.shape[1])
    if num_picks == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    key, clusters_key = jax.random.split(key)
    rank = np.asarray(jax.random.uniform(key, (len(features),)))
    sample = highest(rank, _MAX_ROWS, available).indices
    num_clusters = min(num_labeled + num_picks, _MAX_CLUSTERS, len(sample))
    capacity = min(_power_of_two(num_labeled + count), _MAX_CLUSTERS)
    padded = np.resize(np.sort(sample), min(_MAX_ROWS, len(features)))
    labels, num_labeled_of = _clusters(
        features, padded, len(sample), labeled, num_labeled, num_clusters, clusters_key, capacity
    )
    labels = np.where(available, labels, -1)
    return _most_typical(features, labels, np.asarray(num_labeled_of), rank, count, num_picks)


def diverse(
    scores: Any,
    features: Any,
    count: int,
    key: jax.Array,
    available: Any = None,
    *,
    oversample: int = 10,
) -> Selection:
    """Chooses rows with high scores that are unlike each other.

    The ``oversample * count`` rows with the highest scores are clustered into ``count`` clusters by
    k-means, each row weighted by its score; of each cluster the row nearest to the centre is
    chosen.

    Args:
        scores: numbers ``[rows]``, see `thinkml.core.active.acquisition`. Where some that are
            clustered are negative, weights are counted from the lowest of these.
        features: ``[rows, features]``.
        count: how many rows.
        key: a PRNG key.
        available: bool ``[rows]``; None for all.
        oversample: how many rows there are to choose from for each that is chosen; 1 leaves no
            choice.

    Returns:
        The rows and their scores, highest first.

    Raises:
        DataError: for other shapes, or what isn't finite.
        ConfigError: for another ``count`` or ``oversample``.

    Reference:
        Zhdanov, 2019, *Diverse mini-batch active learning*.

    Example:
        >>> import jax
        >>> from thinkml.core import diverse
        >>> scores, features = [0.9, 0.8, 0.7, 0.1], [[1.0], [1.1], [5.0], [9.0]]
        >>> diverse(scores, features, 2, jax.random.key(0), oversample=2).indices.tolist()
        [0, 2]
    """
    features = as_features(features, num_rows=len(np.asarray(scores)))
    count = _as_count(count)
    capacity = min(count * _as_count(oversample, 'oversample'), len(features))
    best = highest(scores, capacity, available)
    if len(best.indices) <= count:
        return best
    if not np.isfinite(best.scores).all():
        raise DataError('scores: infinite values, expected finite ones: rows are weighted by them.')
    num_rows = len(best.indices)
    weights = best.scores - min(0, best.scores.min())
    weights = np.pad(weights if weights.any() else weights + 1, (0, capacity - num_rows))
    rows = np.resize(best.indices, capacity)
    chosen = np.asarray(_nearest_to_centers(features, rows, weights, num_rows, count, key))
    # A cluster may have lost its rows, where they lie on each other; the best take its place.
    order = np.argsort(~chosen[:num_rows], kind='stable')[:count]
    order.sort()
    return Selection(best.indices[order], best.scores[order])


# --- checks -----------------------------------------------------------------------------------


def _as_count(value: Any, argument: str = 'count') -> int:
    if not (is_whole(value) and value >= 1):
        raise ConfigError(f'{argument}: got {value!r}, expected a whole number of at least 1.')
    return int(value)


def _as_mask(available: Any, num_rows: int) -> np.ndarray:
    if available is None:
        return np.ones(num_rows, bool)
    available = np.asarray(available)
    if available.dtype != bool or available.shape != (num_rows,):
        raise DataError(
            f'available: got {available.dtype} of shape {available.shape}, expected bool of shape '
            f'({num_rows},), True for the rows that may be chosen.'
        )
    return available


def _num_picks(count: int, available: np.ndarray) -> tuple[int, int]:
    """The number of rows to make room for, and that to choose."""
    count = min(_as_count(count), len(available))
    return count, min(count, int(available.sum()))


def _padded(labeled: Any, num_features: int) -> tuple[jax.Array, int]:
    """The labelled rows' features, filled up with zeros to a power of two, and how many there are.

    So a growing number of them doesn't compile anew.
    """
    rows = np.zeros((0, num_features)) if labeled is None else np.asarray(labeled)
    if rows.ndim != 2 or rows.shape[1] != num_features:
        raise DataError(
            f'labeled: got shape {rows.shape}, expected [labelled rows, {num_features}], with the '
            "pool's features."
        )
    padding = _power_of_two(len(rows)) - len(rows)
    return as_features(np.pad(rows, ((0, padding), (0, 0))), 'labeled'), len(rows)


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _selection(found: tuple[jax.Array, jax.Array], num_picks: int) -> Selection:
    indices, squared = (np.asarray(array)[:num_picks] for array in found)
    return Selection(indices.astype(np.int64), np.sqrt(squared))


# --- compiled ---------------------------------------------------------------------------------


@functools.partial(Jit, static_argnames=('capacity',))
def _k_center_greedy(features, labeled, num_labeled, available, num_picks, capacity):
    def far_from_labeled():
        closest = jnp.where(available, nearest(features, labeled, num_labeled)[1], -1)
        return closest, jnp.argmax(closest)

    def near_the_mean():
        away = squared_distances(features, mean_of(features, available))
        return jnp.where(available, jnp.inf, -1), jnp.argmin(jnp.where(available, away, jnp.inf))

    closest, first = jax.lax.cond(num_labeled > 0, far_from_labeled, near_the_mean)
    return greedy(
        closest,
        first,
        lambda pick, closest: jnp.argmax(closest),
        lambda index: squared_distances(features, features[index]),
        num_picks,
        capacity,
    )


@functools.partial(Jit, static_argnames=('capacity',))
def _badge(probabilities, features, available, key, num_picks, capacity):
    is_first = jax.nn.one_hot(probabilities.argmax(1), probabilities.shape[1], dtype=bool)
    others = jnp.where(is_first, 0, probabilities)
    # The largest less 1, from the others: it rounds to 0 where a model is sure.
    errors = jnp.where(is_first, -others.sum(1, keepdims=True), others)
    # A power of two, so that squares of the smallest don't round to 0, and others keep their bits.
    _, exponent = jnp.frexp(jnp.max(jnp.where(available[:, None], others, 0)))
    errors = jnp.ldexp(errors, -exponent)
    of_errors, of_features = (jnp.square(factor).sum(1) for factor in (errors, features))

    def distances_to(index: jax.Array) -> jax.Array:
        # With a, b the squared distances of the factors, ||a||^2 and ||h||^2 as above:
        # ||g_i - g_j||^2, where near rows leave only products of small numbers to add up.
        a = squared_distances(errors, errors[index])
        b = squared_distances(features, features[index])
        sum_a, sum_b = of_errors + of_errors[index], of_features + of_features[index]
        difference = (of_errors - of_errors[index]) * (of_features - of_features[index])
        return jnp.maximum(0, (a * sum_b + b * sum_a - a * b + difference) / 2)

    length = of_errors * of_features
    first = jnp.argmax(jnp.where(available, length, -1))
    indices, squared = greedy(
        jnp.where(available, jnp.inf, -1),
        first,
        lambda pick, closest: draw_far(jax.random.fold_in(key, pick), closest),
        distances_to,
        num_picks,
        capacity,
    )
    return indices, squared.at[0].set(length[first]), exponent


@functools.partial(Jit, static_argnames=('capacity',))
def _clusters(features, sample, num_rows, labeled, num_labeled, num_clusters, key, capacity):
    """The cluster of each row, and how many of the labelled rows each has."""
    valid = jnp.arange(len(sample)) < num_rows
    found = kmeans(features[sample], valid.astype(jnp.float32), valid, num_clusters, capacity, key)
    labels, _ = nearest(features, found.centers, num_clusters)
    of_labeled, _ = nearest(labeled, found.centers, num_clusters)
    counted = jnp.where(jnp.arange(len(labeled)) < num_labeled, of_labeled, capacity)
    return labels, jnp.zeros(capacity, jnp.int32).at[counted].add(1, mode='drop')


def _most_typical(features, labels, num_labeled_of, rank, count, num_picks) -> Selection:
    """Goes through the clusters, fewest labels first, until there are ``num_picks`` rows."""
    num_labeled_of, chosen, scores = num_labeled_of.copy(), [], []
    num_slots, size = min(count, _MAX_CLUSTERS), min(_MAX_MEMBERS, len(labels))
    while len(chosen) < num_picks:
        sizes = np.bincount(labels[labels >= 0], minlength=len(num_labeled_of))
        order = np.lexsort((-sizes, num_labeled_of, sizes < _SMALL_CLUSTER))
        order = order[sizes[order] > 0][: min(num_slots, num_picks - len(chosen))]
        by_cluster = np.lexsort((rank, labels))
        ends = np.cumsum(sizes) + np.sum(labels < 0)
        members = [by_cluster[ends[c] - sizes[c] : ends[c]][:size] for c in order]
        table = np.zeros((num_slots, size), np.int32)
        for slot, rows in enumerate(members):
            table[slot, : len(rows)] = np.sort(rows)
        num_members = np.array([*map(len, members)] + [0] * (num_slots - len(members)), np.int32)
        place, typical = (np.asarray(a) for a in _typicality(features, table, num_members))
        rows = table[np.arange(len(order)), place[: len(order)]]
        chosen.extend(rows)
        scores.extend(typical[: len(order)])
        labels[rows] = -1
        num_labeled_of[order] += 1
    return Selection(np.array(chosen, np.int64), np.array(scores, np.float32))


@Jit
def _typicality(features, table, num_members):
    """The place of the most typical of each cluster's members, and how typical it is."""
    num_neighbors = min(_NUM_NEIGHBORS, table.shape[1])

    def of_cluster(arguments):
        rows, number = arguments
        valid = jnp.arange(len(rows)) < number
        # At most half of the rows, so that a small cluster has an inside.
        num_near = jnp.clip(number // 2, 1, num_neighbors)
        is_near = jnp.arange(num_neighbors) < num_near
        away = neighbor_distances(features[rows], valid, num_neighbors)
        mean = jnp.where(is_near, away, 0).sum(1) / num_near
        typical = jnp.where(valid, 1 / (mean + 1e-5), -1)
        place = jnp.argmax(typical)
        return place, typical[place]

    return jax.lax.map(of_cluster, (table, num_members))


@functools.partial(Jit, static_argnames=('count',))
def _nearest_to_centers(features, rows, weights, num_rows, count, key):
    """Whether each row is the nearest of its cluster to the centre; bool ``[rows]``."""
    valid = jnp.arange(len(rows)) < num_rows
    found = kmeans(features[rows], weights, valid, count, count, key)
    distances = jnp.where(valid, found.distances, jnp.inf)
    closest = jax.ops.segment_min(distances, found.labels, count)
    places = jnp.where(
        valid & (distances == closest[found.labels]), jnp.arange(len(rows)), len(rows)
    )
    return jax.ops.segment_min(places, found.labels, count)[found.labels] == jnp.arange(len(rows))
