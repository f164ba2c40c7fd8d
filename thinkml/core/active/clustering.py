"""Distances of many rows to few points, and what is built on them: greedy picks and k-means.

All of it is traced: it runs inside a compiled function. Rows are read a block at a time, so that
nothing of size rows x rows, or a second copy of the rows, is ever made. Distances are sums of
squared differences, never ``|x|^2 + |y|^2 - 2 x y``, of which float32 leaves little where points
are close: matrix products only decide which point is nearest.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Rows of a block that a draw first chooses among blocks, then within one.
DRAW_BLOCK = 1024
# Lloyd's steps end when no row changes its cluster, or after these.
_MAX_STEPS = 30
# Numbers of a block: what fits a CPU's first caches, and enough to keep an accelerator busy.
_DIFFERENCE_NUMBERS, _PRODUCT_NUMBERS, _ACCELERATOR_NUMBERS = 2**15, 2**18, 2**24


def squared_distances(rows: jax.Array, point: jax.Array) -> jax.Array:
    """``||x - point||^2`` of each row ``x``; ``[rows]``."""

    def step(first: jax.Array, distances: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(rows, first, size) - point
        return jax.lax.dynamic_update_slice(distances, _row_sums(block * block), (first,))

    size = _block_size(rows, rows.shape[1], _DIFFERENCE_NUMBERS)
    return _over_blocks(step, jnp.zeros(len(rows)), len(rows), size)


def nearest(
    rows: jax.Array, centers: jax.Array, num_centers: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Which of the centres is nearest to each row, and the squared distance to it.

    Args:
        rows: ``[rows, features]``.
        centers: ``[capacity, features]``; those from ``num_centers`` on are padding.
        num_centers: at least 1.

    Returns:
        int32 ``[rows]`` and float32 ``[rows]``.
    """
    is_center = jnp.arange(len(centers)) < num_centers
    origin = jnp.where(is_center[:, None], centers, 0).sum(0) / num_centers
    shifted = centers - origin
    lengths = jnp.where(is_center, jnp.square(shifted).sum(1), jnp.inf)

    def step(first: jax.Array, found: tuple[jax.Array, jax.Array]):
        block = jax.lax.dynamic_slice_in_dim(rows, first, size)
        products = jnp.matmul(block - origin, shifted.T, precision='highest')
        label = jnp.argmin(lengths - 2 * products, axis=1).astype(jnp.int32)
        distance = _row_sums(jnp.square(block - centers[label]))
        return tuple(
            jax.lax.dynamic_update_slice(whole, part, (first,))
            for whole, part in zip(found, (label, distance), strict=True)
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
    """Picks rows one after another by their squared distance to the nearest one picked before.

    Args:
        closest: ``[rows]``, the squared distances before the first pick; -1 for rows that can't be
            picked.
        first: the index of the first pick.
        choose: ``(pick, closest) -> index`` of the later ones; a row that was picked has -1.
        distances_to: ``index -> [rows]``, squared distances to a row.
        num_picks: at most the number of rows that can be picked.
        capacity: static, at least ``num_picks``.

    Returns:
        indices int32 ``[capacity]`` and the squared distances when picked ``[capacity]``; 0 from
        ``num_picks`` on.
    """

    def body(pick: jax.Array, carry):
        closest, indices, found = carry
        index = jax.lax.cond(pick == 0, lambda: first, lambda: choose(pick, closest))
        indices, found = indices.at[pick].set(index), found.at[pick].set(closest[index])
        closest = jnp.minimum(closest, distances_to(index)).at[index].set(-1)
        return closest, indices, found

    start = closest, jnp.zeros(capacity, jnp.int32), jnp.zeros(capacity)
    _, indices, found = jax.lax.fori_loop(0, num_picks, body, start)
    return indices, found


def draw(key: jax.Array, weights: jax.Array) -> jax.Array:
    """The index of a row drawn with a chance in proportion to its weight.

    By the Gumbel-max trick, first among blocks of 1,024 rows, then within one: two numbers for a
    thousand rows instead of one for each. A row of weight 0 is never drawn unless all are 0.

    Args:
        key: a PRNG key.
        weights: ``[rows]``, at least 0.
    """
    blocks = jnp.pad(weights, (0, -len(weights) % DRAW_BLOCK)).reshape(-1, DRAW_BLOCK)
    among, within = jax.random.split(key)
    block = _gumbel_max(among, blocks.sum(1))
    return block * DRAW_BLOCK + _gumbel_max(within, blocks[block])


def _gumbel_max(key: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.argmax(jnp.log(weights) + jax.random.gumbel(key, weights.shape))


def draw_far(key: jax.Array, closest: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """Draws by weight times squared distance, as k-means++ does; see `greedy` for ``closest``.

    Where all rows that are left lie on picked ones, each of them has the same chance.
    """
    chances = jnp.maximum(closest, 0) * weights
    return draw(key, jnp.where(jnp.any(chances > 0), chances, closest >= 0))


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        centers: ``[capacity, features]``.
        labels: the nearest centre of each row, int32 ``[rows]``.
        distances: the squared distance of each row to it, ``[rows]``.
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
    """Weighted k-means: seeded by k-means++, then Lloyd's steps until nothing changes, at most 30.

    A cluster that loses all its rows keeps its centre.

    Args:
        rows: ``[rows, features]``.
        weights: ``[rows]``, at least 0 and not all 0; 0 for rows that aren't valid.
        valid: bool ``[rows]``: the rows to cluster.
        num_clusters: at most the number of valid rows.
        capacity: static, at least ``num_clusters``.
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

    def goes_on(carry) -> jax.Array:
        step, _, _, changed = carry
        return (step < _MAX_STEPS) & changed

    def lloyd(carry):
        step, centers, before, _ = carry
        labels, _ = nearest(rows, centers, num_clusters)
        sums, totals = _sums_of_clusters(rows, weights, labels, capacity)
        means = sums / jnp.where(totals > 0, totals, 1)[:, None]
        centers = jnp.where(totals[:, None] > 0, means, centers)
        return step + 1, centers, labels, jnp.any((labels != before) & valid)

    start = jnp.int32(0), rows[indices], jnp.full(len(rows), -1, jnp.int32), jnp.bool_(True)
    _, centers, _, _ = jax.lax.while_loop(goes_on, lloyd, start)
    return Clusters(centers, *nearest(rows, centers, num_clusters))


def neighbor_distances(rows: jax.Array, valid: jax.Array, num_neighbors: int) -> jax.Array:
    """The distances of each row to the nearest other valid rows, nearest first.

    For few rows: all pairs are compared.

    Returns:
        ``[rows, num_neighbors]``; infinite where there are fewer.
    """
    shifted = rows - mean_of(rows, valid)
    lengths = jnp.square(shifted).sum(1)
    products = jnp.matmul(shifted, shifted.T, precision='highest')
    is_other = valid[None, :] & ~jnp.eye(len(rows), dtype=bool)
    away = jnp.where(is_other, lengths - 2 * products, jnp.inf)
    _, neighbors = jax.lax.top_k(-away, num_neighbors)

    def distances_to(neighbor: jax.Array) -> jax.Array:
        squared = _row_sums(jnp.square(rows - rows[neighbor]))
        found = jnp.take_along_axis(is_other, neighbor[:, None], axis=1)[:, 0]
        return jnp.where(found, jnp.sqrt(squared), jnp.inf)

    return jnp.sort(jax.lax.map(distances_to, neighbors.T), axis=0).T


def mean_of(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean of the valid rows, ``[features]``.

    In two passes, the second over what the first one left: a float32 sum of a million numbers that
    aren't centred has lost its last digits.
    """
    weights = valid.astype(jnp.float32)
    labels = jnp.zeros(len(rows), jnp.int32)
    total = jnp.maximum(weights.sum(), 1)
    about = _sums_of_clusters(rows, weights, labels, 1)[0][0] / total
    return about + _sums_of_clusters(rows, weights, labels, 1, about)[0][0] / total


# --- blocks of rows ---------------------------------------------------------------------------


def _block_size(rows: jax.Array, width: int, numbers: int) -> int:
    """Rows at a time: what is made of them is so many numbers wide each."""
    if jax.default_backend() != 'cpu':
        numbers = _ACCELERATOR_NUMBERS
    return max(1, min(len(rows), numbers // max(1, width)))


def _over_blocks(step: Callable, start, num_rows: int, size: int):
    """Folds ``step(first row, carry)`` over blocks; the last begins early enough to be full."""
    return jax.lax.fori_loop(
        0, -(-num_rows // size), lambda i, c: step(jnp.minimum(i * size, num_rows - size), c), start
    )


def _row_sums(values: jax.Array) -> jax.Array:
    # On a CPU, XLA adds up a row number by number, but multiplies matrices with vectors.
    if jax.default_backend() == 'cpu':
        return values @ jnp.ones(values.shape[1])
    return values.sum(1)


def _sums_of_clusters(
    rows: jax.Array,
    weights: jax.Array,
    labels: jax.Array,
    capacity: int,
    origin: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of each cluster's rows less ``origin``, and of their weights."""

    def step(first: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]):
        done, sums, totals = carry
        block, weight, label = (
            jax.lax.dynamic_slice_in_dim(array, first, size) for array in (rows, weights, labels)
        )
        # The last block begins within the one before.
        weight = jnp.where(first + jnp.arange(size) >= done, weight, 0)
        share = jax.nn.one_hot(label, capacity) * weight[:, None]
        sums += jnp.matmul(share.T, block - origin, precision='highest')
        return first + size, sums, totals + share.sum(0)

    size = _block_size(rows, rows.shape[1] + capacity, _PRODUCT_NUMBERS)
    start = jnp.int32(0), jnp.zeros((capacity, rows.shape[1])), jnp.zeros(capacity)
    _, sums, totals = _over_blocks(step, start, len(rows), size)
    return sums, totals
