"""Clustering: distances of many rows to few points, greedy selection and k-means.

All functions are traced, inside a compiled function. They read rows one block at a time, so they
never create an array of size rows x rows or a second copy of the rows. Distances are sums of
squared differences and not ``|x|^2 + |y|^2 - 2 x y``, which loses its precision in float32 if
points are close. Matrix products only determine which point is nearest.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thinkml.core.xla.target import target_platform

# The number of rows in a block: `draw` first draws a block, then a row in it.
DRAW_BLOCK = 1024
# Lloyd's algorithm ends when no row changes its cluster, or after this number of steps.
_MAX_STEPS = 30
# The number of values in a block: small enough for a CPU's first caches, and large enough to keep
# an accelerator busy.
_DIFFERENCE_NUMBERS, _PRODUCT_NUMBERS, _ACCELERATOR_NUMBERS = 2**15, 2**18, 2**24


def squared_distances(rows: jax.Array, point: jax.Array) -> jax.Array:
    """Computes ``||x - point||^2`` for each row ``x``; ``[rows]``."""

    def step(first: jax.Array, distances: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(rows, first, size) - point
        return jax.lax.dynamic_update_slice(distances, _row_sums(block * block), (first,))

    size = _block_size(rows, rows.shape[1], _DIFFERENCE_NUMBERS)
    return _over_blocks(step, jnp.zeros(len(rows)), len(rows), size)


def nearest(
    rows: jax.Array, centers: jax.Array, num_centers: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Returns the index of the centre nearest to each row, and the squared distance to it.

    Args:
        rows: ``[rows, features]``.
        centers: ``[capacity, features]``; those from ``num_centers`` on are padding.
        num_centers: the number of centres, at least 1.

    Returns:
        int32 ``[rows]`` and float32 ``[rows]``.
    """
    is_center = jnp.arange(len(centers)) < num_centers
    origin = jnp.where(is_center[:, None], centers, 0).sum(0) / num_centers
    shifted = centers - origin
    lengths = jnp.where(is_center, jnp.square(shifted).sum(1), jnp.inf)

    def step(first: jax.Array, results: tuple[jax.Array, jax.Array]):
        block = jax.lax.dynamic_slice_in_dim(rows, first, size)
        products = jnp.matmul(block - origin, shifted.T, precision='highest')
        label = jnp.argmin(lengths - 2 * products, axis=1).astype(jnp.int32)
        distance = _row_sums(jnp.square(block - centers[label]))
        return tuple(
            jax.lax.dynamic_update_slice(result, part, (first,))
            for result, part in zip(results, (label, distance), strict=True)
        )

    size = _block_size(rows, rows.shape[1] + len(centers), _PRODUCT_NUMBERS)
    start = jnp.zeros(len(rows), jnp.int32), jnp.zeros(len(rows))
    return _over_blocks(step, start, len(rows), size)


def greedy(
    closest: jax.Array,
    first: jax.Array,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    distances_to: Callable[[jax.Array], jax.Array],
    num_picks: jax.Array | int,
    capacity: int,
) -> tuple[jax.Array, jax.Array]:
    """Picks rows one after another by their squared distance to the nearest earlier pick.

    Args:
        closest: ``[rows]``, the squared distances before the first pick; -1 for rows that can't be
            picked.
        first: the index of the first pick.
        choose: a function ``(pick, closest) -> index`` for each later pick. In ``closest``, picked
            rows have -1.
        distances_to: a function ``index -> [rows]``, the squared distances to a row.
        num_picks: the number of picks, at most the number of rows that can be picked.
        capacity: the length of the results, static, at least ``num_picks``.

    Returns:
        The indices, int32 ``[capacity]``, and the squared distance of each row when it was picked,
        ``[capacity]``. Both are 0 from ``num_picks`` on.
    """

    def body(pick: jax.Array, carry):
        closest, indices, distances = carry
        index = jax.lax.cond(pick == 0, lambda: first, lambda: choose(pick, closest))
        indices, distances = indices.at[pick].set(index), distances.at[pick].set(closest[index])
        closest = jnp.minimum(closest, distances_to(index)).at[index].set(-1)
        return closest, indices, distances

    start = closest, jnp.zeros(capacity, jnp.int32), jnp.zeros(capacity)
    _, indices, distances = jax.lax.fori_loop(0, num_picks, body, start)
    return indices, distances


def draw(key: jax.Array, weights: jax.Array) -> jax.Array:
    """Draws the index of a row with probability proportional to its weight.

    It uses the Gumbel-max trick, first for a block of 1,024 rows, then for a row in it. So it draws
    about two numbers per thousand rows instead of one per row. A row of weight 0 is never drawn
    unless all weights are 0.

    Args:
        key: a PRNG key.
        weights: ``[rows]``, at least 0.
    """
    blocks = jnp.pad(weights, (0, -len(weights) % DRAW_BLOCK)).reshape(-1, DRAW_BLOCK)
    block_key, row_key = jax.random.split(key)
    block = _gumbel_max(block_key, blocks.sum(1))
    return block * DRAW_BLOCK + _gumbel_max(row_key, blocks[block])


def _gumbel_max(key: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.argmax(jnp.log(weights) + jax.random.gumbel(key, weights.shape))


def draw_far(key: jax.Array, closest: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """Draws by weight times squared distance, like k-means++; see `greedy` for ``closest``.

    If all remaining rows are equal to picked ones, they have equal probabilities.
    """
    scores = jnp.maximum(closest, 0) * weights
    return draw(key, jnp.where(jnp.any(scores > 0), scores, closest >= 0))


class Clusters(NamedTuple):
    """The result of k-means.

    Attributes:
        centers: the centres, ``[capacity, features]``.
        labels: the index of each row's nearest centre, int32 ``[rows]``.
        distances: the squared distance of each row to that centre, ``[rows]``.
    """

    centers: jax.Array
    labels: jax.Array
    distances: jax.Array


def kmeans(
    rows: jax.Array,
    weights: jax.Array,
    valid: jax.Array,
    num_clusters: jax.Array | int,
    capacity: int,
    key: jax.Array,
) -> Clusters:
    """Runs weighted k-means: seeding by k-means++, then Lloyd's algorithm, at most 30 steps.

    It stops earlier if no label changes. A cluster that loses all its rows keeps its centre.

    Args:
        rows: ``[rows, features]``.
        weights: ``[rows]``, at least 0 and not all 0; 0 for rows that are not valid.
        valid: bool ``[rows]``, True for the rows to cluster.
        num_clusters: the number of clusters, at most the number of valid rows.
        capacity: the number of centres in the result, static, at least ``num_clusters``.
        key: a PRNG key.

    Reference:
        Arthur and Vassilvitskii, 2007, *k-means++: the advantages of careful seeding*.
    """
    first = draw(jax.random.fold_in(key, 0), weights)
    indices, _ = greedy(
        jnp.where(valid, jnp.inf, -1),
        first,
        lambda pick, closest: draw_far(jax.random.fold_in(key, pick), closest, weights),
        lambda index: squared_distances(rows, rows[index]),
        num_clusters,
        capacity,
    )

    def should_continue(carry) -> jax.Array:
        step, _, _, changed = carry
        return (step < _MAX_STEPS) & changed

    def lloyd(carry):
        step, centers, before, _ = carry
        labels, _ = nearest(rows, centers, num_clusters)
        sums, totals = _cluster_sums(rows, weights, labels, capacity)
        means = sums / jnp.where(totals > 0, totals, 1)[:, None]
        centers = jnp.where(totals[:, None] > 0, means, centers)
        return step + 1, centers, labels, jnp.any((labels != before) & valid)

    start = jnp.int32(0), rows[indices], jnp.full(len(rows), -1, jnp.int32), jnp.bool_(True)
    _, centers, _, _ = jax.lax.while_loop(should_continue, lloyd, start)
    return Clusters(centers, *nearest(rows, centers, num_clusters))


def neighbor_distances(rows: jax.Array, valid: jax.Array, num_neighbors: int) -> jax.Array:
    """Computes the distances of each row to its nearest other valid rows, nearest first.

    It compares all pairs, so use it for few rows.

    Returns:
        ``[rows, num_neighbors]``; infinite for missing neighbours.
    """
    shifted = rows - mean_of(rows, valid)
    lengths = jnp.square(shifted).sum(1)
    products = jnp.matmul(shifted, shifted.T, precision='highest')
    is_other = valid[None, :] & ~jnp.eye(len(rows), dtype=bool)
    away = jnp.where(is_other, lengths - 2 * products, jnp.inf)
    _, neighbors = jax.lax.top_k(-away, num_neighbors)

    def distances_to(neighbor: jax.Array) -> jax.Array:
        squared = _row_sums(jnp.square(rows - rows[neighbor]))
        is_neighbor = jnp.take_along_axis(is_other, neighbor[:, None], axis=1)[:, 0]
        return jnp.where(is_neighbor, jnp.sqrt(squared), jnp.inf)

    return jnp.sort(jax.lax.map(distances_to, neighbors.T), axis=0).T


def mean_of(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Computes the mean of the valid rows, ``[features]``.

    A second pass adds the mean deviation of the rows from the first result. A float32 sum of a
    million numbers that are not centred would be imprecise.
    """
    weights = valid.astype(jnp.float32)
    labels = jnp.zeros(len(rows), jnp.int32)
    total = jnp.maximum(weights.sum(), 1)
    first_mean = _cluster_sums(rows, weights, labels, 1)[0][0] / total
    return first_mean + _cluster_sums(rows, weights, labels, 1, first_mean)[0][0] / total


# --- blocks of rows ---------------------------------------------------------------------------


def _block_size(rows: jax.Array, width: int, numbers: int) -> int:
    """Returns the rows of a block of at most ``numbers`` values, with ``width`` values per row."""
    if target_platform() != 'cpu':
        numbers = _ACCELERATOR_NUMBERS
    return max(1, min(len(rows), numbers // max(1, width)))


def _over_blocks(step: Callable, start, num_rows: int, size: int):
    """Folds ``step(first row, carry)`` over blocks; the last one starts early enough to be full."""
    return jax.lax.fori_loop(
        0, -(-num_rows // size), lambda i, c: step(jnp.minimum(i * size, num_rows - size), c), start
    )


def _row_sums(values: jax.Array) -> jax.Array:
    # On a CPU, XLA adds the numbers of a row one by one; a product with a vector is faster.
    if target_platform() == 'cpu':
        return values @ jnp.ones(values.shape[1])
    return values.sum(1)


def _cluster_sums(
    rows: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    capacity: int,
    origin: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sums of each cluster's rows minus ``origin``, and of their weights."""

    def step(first: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]):
        done, sums, totals = carry
        block, weight, label = (
            jax.lax.dynamic_slice_in_dim(array, first, size) for array in (rows, weights, labels)
        )
        # The last block overlaps the one before it, and those rows are counted already.
        weight = jnp.where(first + jnp.arange(size) >= done, weight, 0)
        membership = jax.nn.one_hot(label, capacity) * weight[:, None]
        sums += jnp.matmul(membership.T, block - origin, precision='highest')
        return first + size, sums, totals + membership.sum(0)

    size = _block_size(rows, rows.shape[1] + capacity, _PRODUCT_NUMBERS)
    start = jnp.int32(0), jnp.zeros((capacity, rows.shape[1])), jnp.zeros(capacity)
    _, sums, totals = _over_blocks(step, start, len(rows), size)
    return sums, totals
