"""Selection of the rows of a pool to label next: by scores, at random, or for diversity.

Each function takes all rows of the pool and ``available``, a mask of those that may be chosen. So
the shapes are the same in every round and nothing is compiled again. The functions return ``count``
rows, or all available rows if there are fewer. Inputs may be NumPy or JAX arrays. The loops are
compiled and run on the device. Memory grows linearly with the rows of the pool.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

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

# TypiClust: the largest number of clusters, of rows that k-means runs on, and of rows of a cluster
# that are compared with each other.
_MAX_CLUSTERS, _MAX_ROWS, _MAX_MEMBERS = 500, 32_768, 512
_NUM_NEIGHBORS, _SMALL_CLUSTER = 20, 5


class Selection(NamedTuple):
    """The rows chosen for labelling, in the order of their choice.

    Attributes:
        indices: the indices of the pool's rows, int64 ``[count]``, all different.
        scores: the score that each row was chosen by, float32 ``[count]``; see the function that
            chose it.
    """

    indices: np.ndarray
    scores: np.ndarray


def highest(scores: ArrayLike, count: int, available: ArrayLike | None = None) -> Selection:
    """Chooses the rows with the highest scores, and the first ones among equal scores.

    Args:
        scores: numbers ``[rows]``, see `thinkml.core.active.acquisition`.
        count: the number of rows to choose.
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
        raise DataError(f'scores: got NaN at row {rows[np.isnan(ranked)][0]}, expected numbers.')
    if 0 < count < len(rows):  # drop the rows below the count-th score, so few are left to sort
        is_kept = ranked >= np.partition(ranked, -count)[-count]
        rows, ranked = rows[is_kept], ranked[is_kept]
    rows = rows[np.argsort(-ranked, kind='stable')[:count]]
    return Selection(rows.astype(np.int64), scores[rows].astype(np.float32))


def at_random(
    num_rows: int, count: int, key: jax.Array, available: ArrayLike | None = None
) -> Selection:
    """Chooses rows at random with equal probabilities.

    Args:
        num_rows: the number of rows in the pool.
        count: the number of rows to choose.
        key: a PRNG key.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows in random order. Their scores are the random numbers from 0 to 1 that they were
        chosen by.

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
    features: ArrayLike,
    count: int,
    labeled: ArrayLike | None = None,
    available: ArrayLike | None = None,
) -> Selection:
    """Chooses rows by core-set: repeatedly the row farthest from all labelled and chosen ones.

    So every row of the pool is near a labelled one: the largest remaining distance is at most twice
    that of the best possible choice.

    Args:
        features: ``[rows, features]``, such as the inputs of a model's last layer.
        count: the number of rows to choose.
        labeled: the features of the labelled rows, ``[labelled, features]``. If there are none, the
            first choice is the row nearest to the mean of the available rows.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows, and the distance of each to the nearest labelled or chosen row when it was chosen.
        The distances never increase. The first one is infinite if there were no labelled rows.

    Raises:
        DataError: for other shapes, or for values that are not finite.
        ConfigError: for another ``count``.

    Reference:
        Sener and Savarese, 2018, *Active learning for convolutional neural networks: a core-set
        approach* (the greedy variant); Gonzalez, 1985, *Clustering to minimize the maximum
        intercluster distance*.

    Example:
        >>> from thinkml.core import k_center_greedy
        >>> k_center_greedy([[0.0], [1.0], [5.0], [9.0]], 2, labeled=[[0.0]]).indices.tolist()
        [3, 2]
    """
    features = as_features(features)
    available = _as_mask(available, len(features))
    capacity, num_picks = _num_picks(count, available)
    labeled, num_labeled = _padded(labeled, features.shape[1])
    picks = _k_center_greedy(features, labeled, num_labeled, available, num_picks, capacity)
    return _selection(picks, num_picks)


def badge(
    probabilities: ArrayLike,
    features: ArrayLike,
    count: int,
    key: jax.Array,
    available: ArrayLike | None = None,
) -> Selection:
    """Chooses rows by BADGE: rows whose labels would change the model strongly and differently.

    Each row is represented by the gradient of its loss with respect to the weights of the last
    layer, with the most probable class as its label: ``g = (p - onehot(argmax p)) x h``. The first
    choice is the row with the longest gradient. Each later row is drawn with probability
    proportional to its squared distance to the nearest chosen one, like the centres of k-means++.
    Distances are computed from the two factors, so ``g``, with ``classes * features`` numbers per
    row, is never created.

    Args:
        probabilities: ``[rows, classes]``; each row adds up to 1.
        features: the inputs of the last layer, ``[rows, features]``.
        count: the number of rows to choose.
        key: a PRNG key.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows, and the distance of each to the nearest chosen one when it was chosen. For the
        first row it is the length of its gradient.

    Raises:
        DataError: for other shapes, or for values that are not probabilities.
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
    features: ArrayLike,
    count: int,
    key: jax.Array,
    labeled: ArrayLike | None = None,
    available: ArrayLike | None = None,
) -> Selection:
    """Chooses rows by TypiClust: the most typical row of each cluster without a label.

    The available rows are divided into as many clusters as there will be labels (500 at most).
    Clusters with the fewest labelled rows come first, and the largest among these. From each, it
    chooses the row with the smallest mean distance to its 20 nearest rows in the cluster. Clusters
    with fewer than 5 rows come last. The method is for few labels, when a model's predictions are
    still of little value.

    The work is bounded. K-means runs on at most 32,768 random rows, and all rows are then assigned
    to its centres. In a cluster with more than 512 rows, only 512 random ones are considered.

    Args:
        features: ``[rows, features]``, from a representation that was learned without the labels.
        count: the number of rows to choose.
        key: a PRNG key.
        labeled: the features of the labelled rows, ``[labelled, features]``; None for none.
        available: bool ``[rows]``; None for all.

    Returns:
        The rows, and the typicality of each: the inverse of the mean distance to its neighbours, 0
        for a row without neighbours.

    Raises:
        DataError: for other shapes, or for values that are not finite.
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
    labels, labeled_counts = _clusters(
        features, padded, len(sample), labeled, num_labeled, num_clusters, clusters_key, capacity
    )
    labels = np.where(available, labels, -1)
    return _most_typical(features, labels, np.asarray(labeled_counts), rank, count, num_picks)


def diverse(
    scores: ArrayLike,
    features: ArrayLike,
    count: int,
    key: jax.Array,
    available: ArrayLike | None = None,
    *,
    oversample: int = 10,
) -> Selection:
    """Chooses rows with high scores that differ from each other.

    The ``oversample * count`` rows with the highest scores are divided into ``count`` clusters by
    k-means, with the scores as weights. From each cluster it chooses the row nearest to the centre.

    Args:
        scores: numbers ``[rows]``, see `thinkml.core.active.acquisition`. If clustered rows have
            negative scores, the lowest one is subtracted from all to get the weights.
        features: ``[rows, features]``.
        count: the number of rows to choose.
        key: a PRNG key.
        available: bool ``[rows]``; None for all.
        oversample: the number of candidates per chosen row. With 1 there is no choice.

    Returns:
        The rows and their scores, highest first.

    Raises:
        DataError: for other shapes, or for values that are not finite.
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
        raise DataError(
            'scores: got infinite values, expected finite ones, which rows are weighted by.'
        )
    num_rows = len(best.indices)
    weights = best.scores - min(0, best.scores.min())
    weights = np.pad(weights if weights.any() else weights + 1, (0, capacity - num_rows))
    rows = np.resize(best.indices, capacity)
    chosen = np.asarray(_nearest_to_centers(features, rows, weights, num_rows, count, key))
    # Equal rows may leave a cluster empty. The best row not yet chosen replaces its row.
    order = np.argsort(~chosen[:num_rows], kind='stable')[:count]
    order.sort()
    return Selection(best.indices[order], best.scores[order])


# --- checks -----------------------------------------------------------------------------------


def _as_count(value: int, argument: str = 'count') -> int:
    if not (is_whole(value) and value >= 1):
        raise ConfigError(f'{argument}: got {value!r}, expected a whole number of at least 1.')
    return int(value)


def _as_mask(available: ArrayLike | None, num_rows: int) -> np.ndarray:
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
    """Returns the capacity of the result and the number of rows to choose."""
    count = min(_as_count(count), len(available))
    return count, min(count, int(available.sum()))


def _padded(labeled: ArrayLike | None, num_features: int) -> tuple[jax.Array, int]:
    """Returns the labelled rows' features, padded to a power of two, and their number.

    Because of the padding, most changes of the number compile nothing again.
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


def _selection(picks: tuple[jax.Array, jax.Array], num_picks: int) -> Selection:
    indices, squared = (np.asarray(array)[:num_picks] for array in picks)
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
    # The largest probability minus 1, computed from the others. The direct difference rounds to 0
    # for a confident model.
    errors = jnp.where(is_first, -others.sum(1, keepdims=True), others)
    # Scaled by a power of two, so that squares of small errors do not round to 0 and no error loses
    # precision.
    _, exponent = jnp.frexp(jnp.max(jnp.where(available[:, None], others, 0)))
    errors = jnp.ldexp(errors, -exponent)
    error_norms, feature_norms = (jnp.square(factor).sum(1) for factor in (errors, features))

    def distances_to(index: jax.Array) -> jax.Array:
        # ||g_i - g_j||^2 from the squared distances a, b of the two factors and their squared
        # norms. For rows that are near each other, all terms of the sum are small.
        a = squared_distances(errors, errors[index])
        b = squared_distances(features, features[index])
        sum_a, sum_b = error_norms + error_norms[index], feature_norms + feature_norms[index]
        difference = (error_norms - error_norms[index]) * (feature_norms - feature_norms[index])
        return jnp.maximum(0, (a * sum_b + b * sum_a - a * b + difference) / 2)

    length = error_norms * feature_norms
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
    """Returns the cluster of each row, and the number of labelled rows in each cluster."""
    valid = jnp.arange(len(sample)) < num_rows
    centers = kmeans(
        features[sample], valid.astype(jnp.float32), valid, num_clusters, capacity, key
    ).centers
    labels, _ = nearest(features, centers, num_clusters)
    labeled_clusters, _ = nearest(labeled, centers, num_clusters)
    counted = jnp.where(jnp.arange(len(labeled)) < num_labeled, labeled_clusters, capacity)
    return labels, jnp.zeros(capacity, jnp.int32).at[counted].add(1, mode='drop')


def _most_typical(features, labels, labeled_counts, rank, count, num_picks) -> Selection:
    """Chooses one row per cluster, fewest labels first, until there are ``num_picks`` rows."""
    labeled_counts, chosen, scores = labeled_counts.copy(), [], []
    num_slots, size = min(count, _MAX_CLUSTERS), min(_MAX_MEMBERS, len(labels))
    while len(chosen) < num_picks:
        sizes = np.bincount(labels[labels >= 0], minlength=len(labeled_counts))
        order = np.lexsort((-sizes, labeled_counts, sizes < _SMALL_CLUSTER))
        order = order[sizes[order] > 0][: min(num_slots, num_picks - len(chosen))]
        by_cluster = np.lexsort((rank, labels))
        ends = np.cumsum(sizes) + np.sum(labels < 0)
        members = [by_cluster[ends[c] - sizes[c] : ends[c]][:size] for c in order]
        table = np.zeros((num_slots, size), np.int32)
        for slot, rows in enumerate(members):
            table[slot, : len(rows)] = np.sort(rows)
        num_members = np.array([*map(len, members)] + [0] * (num_slots - len(members)), np.int32)
        best, typicality = (np.asarray(a) for a in _typicality(features, table, num_members))
        rows = table[np.arange(len(order)), best[: len(order)]]
        chosen.extend(rows)
        scores.extend(typicality[: len(order)])
        labels[rows] = -1
        labeled_counts[order] += 1
    return Selection(np.array(chosen, np.int64), np.array(scores, np.float32))


@Jit
def _typicality(features, table, num_members):
    """Returns the index of the most typical member of each cluster, and its typicality."""
    num_neighbors = min(_NUM_NEIGHBORS, table.shape[1])

    def most_typical(cluster):
        rows, num_rows = cluster
        valid = jnp.arange(len(rows)) < num_rows
        # At most half of the rows, so that in a small cluster inner rows are more typical.
        num_near = jnp.clip(num_rows // 2, 1, num_neighbors)
        is_near = jnp.arange(num_neighbors) < num_near
        distances = neighbor_distances(features[rows], valid, num_neighbors)
        mean = jnp.where(is_near, distances, 0).sum(1) / num_near
        typicality = jnp.where(valid, 1 / (mean + 1e-5), -1)
        best = jnp.argmax(typicality)
        return best, typicality[best]

    return jax.lax.map(most_typical, (table, num_members))


@functools.partial(Jit, static_argnames=('count',))
def _nearest_to_centers(features, rows, weights, num_rows, count, key):
    """Returns a mask ``[rows]``, True for the row of each cluster that is nearest to its centre."""
    index = jnp.arange(len(rows))
    valid = index < num_rows
    clusters = kmeans(features[rows], weights, valid, count, count, key)
    labels, distances = clusters.labels, jnp.where(valid, clusters.distances, jnp.inf)
    closest = jax.ops.segment_min(distances, labels, count)
    candidates = jnp.where(valid & (distances == closest[labels]), index, len(rows))
    return jax.ops.segment_min(candidates, labels, count)[labels] == index
