"""Tests of each strategy against a NumPy version in float64 with the same random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkml.core.active import selection
from thinkml.core.active.acquisition import entropy
from thinkml.core.active.clustering import DRAW_BLOCK, kmeans, nearest, squared_distances
from thinkml.core.active.selection import (
    at_random,
    badge,
    diverse,
    highest,
    k_center_greedy,
    typiclust,
)
from thinkml.core.xla.jit import forget_programs
from thinkml.errors import ConfigError, DataError

KEY = jax.random.key(7)


def pool(num_rows=300, num_features=6, seed=0, offset=0.0):
    """Returns rows of a few clouds, and probabilities that are correlated with them."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(8, num_features)) * 3
    X = (means[rng.integers(0, 8, num_rows)] + rng.normal(size=(num_rows, num_features))) + offset
    exps = np.exp((X - offset) @ rng.normal(size=(num_features, 4)))
    return X.astype(np.float32), (exps / exps.sum(1, keepdims=True)).astype(np.float32)


def some_available(num_rows, seed=5):
    return np.random.default_rng(seed).random(num_rows) < 0.6


def labeled_rows(num_labeled, num_features=6):
    return np.random.default_rng(9).normal(size=(num_labeled, num_features)).astype(np.float32) * 3


CALLS = {
    'highest': lambda X, p, count, available: highest(entropy(p), count, available),
    'at_random': lambda X, p, count, available: at_random(len(X), count, KEY, available),
    'k_center_greedy': lambda X, p, count, available: k_center_greedy(X, count, None, available),
    'k_center_greedy, labeled': lambda X, p, count, available: k_center_greedy(
        X, count, labeled_rows(5, X.shape[1]), available
    ),
    'badge': lambda X, p, count, available: badge(p, X, count, KEY, available),
    'typiclust': lambda X, p, count, available: typiclust(X, count, KEY, None, available),
    'typiclust, labeled': lambda X, p, count, available: typiclust(
        X, count, KEY, labeled_rows(5, X.shape[1]), available
    ),
    'diverse': lambda X, p, count, available: diverse(entropy(p), X, count, KEY, available),
}
each_strategy = pytest.mark.parametrize('choose', CALLS.values(), ids=CALLS.keys())


# --- references -------------------------------------------------------------------------------


def squared(rows, point):
    return ((rows - point) ** 2).sum(1)


def reference_k_center(X, count, labeled, available):
    X = X.astype(np.float64)
    closest = np.full(len(X), np.inf)
    for row in () if labeled is None else labeled.astype(np.float64):
        closest = np.minimum(closest, squared(X, row))
    indices, scores = [], []
    for _ in range(min(count, available.sum())):
        if np.isinf(closest).all():
            away = squared(X, X[available].mean(0))
            index = np.where(available, away, np.inf).argmin()
        else:
            index = np.where(available, closest, -1).argmax()
        indices.append(index)
        scores.append(np.sqrt(closest[index]))
        closest = np.minimum(closest, squared(X, X[index]))
        available = available & (np.arange(len(X)) != index)
    return indices, scores


def reference_draw(key, weights):
    """Draws a block of rows first, then a row in it, with the same Gumbel numbers."""
    among, within = jax.random.split(key)
    blocks = np.pad(weights, (0, -len(weights) % DRAW_BLOCK)).reshape(-1, DRAW_BLOCK)
    with np.errstate(divide='ignore'):
        block = (
            np.log(blocks.sum(1)) + np.asarray(jax.random.gumbel(among, [len(blocks)]))
        ).argmax()
        row = (np.log(blocks[block]) + np.asarray(jax.random.gumbel(within, [DRAW_BLOCK]))).argmax()
    return block * DRAW_BLOCK + row


def reference_seeds(rows, first, count, key, available, weights):
    """Returns the rows that k-means++ starts from, and their squared distances when drawn."""
    closest, left = np.full(len(rows), np.inf), available.copy()
    indices, found = [], []
    for pick in range(min(count, available.sum())):
        index = first
        if pick:
            chances = np.where(left, closest * weights, 0)
            chances = chances if chances.any() else left.astype(float)
            index = reference_draw(jax.random.fold_in(key, pick), chances)
        indices.append(index)
        found.append(closest[index])
        closest = np.minimum(closest, squared(rows, rows[index]))
        left[index] = False
    return indices, found


def reference_badge(p, X, count, key, available):
    p, X = p.astype(np.float64), X.astype(np.float64)
    errors = p - np.eye(p.shape[1])[p.argmax(1)]
    gradients = (errors[:, :, None] * X[:, None, :]).reshape(len(X), -1)
    lengths = (gradients**2).sum(1)
    first = np.where(available, lengths, -1).argmax()
    indices, found = reference_seeds(gradients, first, count, key, available, 1.0)
    return indices, np.sqrt([lengths[first], *found[1:]])


def reference_kmeans(X, weights, valid, num_clusters, key):
    """Returns the centres from the same seeds; the steps after it are not random."""
    first = reference_draw(jax.random.fold_in(key, 0), weights)
    seeds, _ = reference_seeds(X, first, num_clusters, key, valid, weights)
    centers, before = X[seeds], None
    for _ in range(30):
        labels = np.stack([squared(X, center) for center in centers]).argmin(0)
        centers = np.stack([
            np.average(X[labels == k], axis=0, weights=weights[labels == k])
            if weights[labels == k].sum() else center
            for k, center in enumerate(centers)
        ])  # fmt: skip
        if before is not None and (labels == before)[valid].all():
            break
        before = labels
    return centers


def reference_typiclust(X, count, key, labeled, available):
    X = X.astype(np.float64)
    key, clusters_key = jax.random.split(key)
    num_labeled = 0 if labeled is None else len(labeled)
    num_clusters = min(num_labeled + count, 500, available.sum())
    rows = np.flatnonzero(available)
    # Padding has no effect, but the blocks of rows that are drawn from include it.
    padded = np.resize(rows, len(X))
    valid = np.arange(len(X)) < len(rows)
    centers = reference_kmeans(X[padded], valid.astype(float), valid, num_clusters, clusters_key)

    def nearest_center(points):
        return np.array([squared(centers, point).argmin() for point in points], int)

    labels = np.where(available, nearest_center(X), -1)
    counts = np.bincount(
        nearest_center(() if labeled is None else labeled.astype(float)), minlength=num_clusters
    )
    indices, scores = [], []
    while len(indices) < min(count, len(rows)):
        sizes = np.bincount(labels[labels >= 0], minlength=num_clusters)
        order = sorted(range(num_clusters), key=lambda c: (sizes[c] < 5, counts[c], -sizes[c]))
        for cluster in [c for c in order if sizes[c]][: min(count, len(rows)) - len(indices)]:
            members = np.flatnonzero(labels == cluster)
            typical = []
            for row in members:
                away = np.sort(np.sqrt(squared(X[members[members != row]], X[row])))
                near = away[: min(20, max(1, len(members) // 2))]
                typical.append(1 / (near.mean() + 1e-5) if len(near) else 0)
            best = int(np.argmax(typical))
            indices.append(members[best])
            scores.append(typical[best])
            labels[members[best]] = -1
            counts[cluster] += 1
    return indices, scores


def reference_diverse(scores, X, count, key, available, oversample=10):
    X = X.astype(np.float64)
    rows = np.flatnonzero(available)
    capacity = min(count * oversample, len(X))
    rows = rows[np.argsort(-scores[rows], kind='stable')][:capacity]
    if len(rows) <= count:
        return rows
    weights = scores[rows].astype(np.float64)
    weights = np.pad(weights - min(0, weights.min()), (0, capacity - len(rows)))
    padded, valid = np.resize(rows, capacity), np.arange(capacity) < len(rows)
    centers = reference_kmeans(X[padded], weights, valid, count, key)
    distances = np.stack([squared(X[rows], center) for center in centers])
    chosen = []
    for k in range(count):
        members = np.flatnonzero(distances.argmin(0) == k)
        if len(members):
            chosen.append(members[distances[k, members].argmin()])
    spare = [row for row in range(len(rows)) if row not in chosen]
    return rows[sorted(chosen + spare[: count - len(chosen)])]


# --- equal to the references ------------------------------------------------------------------


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('num_labeled', [None, 1, 12])
@pytest.mark.parametrize('offset', [0, 100])
def test_core_set_is_the_reference(masked, num_labeled, offset):
    X, _ = pool(offset=offset)
    available = some_available(len(X)) if masked else np.ones(len(X), bool)
    labeled = None if num_labeled is None else labeled_rows(num_labeled) + np.float32(offset)
    found = k_center_greedy(X, 40, labeled, available if masked else None)
    indices, scores = reference_k_center(X, 40, labeled, available)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    assert (np.diff(found.scores[1:]) <= 0).all()


def test_core_set_sees_small_distances_far_from_the_origin():
    # Clouds a million times wider apart than they are wide: |x|^2 + |y|^2 - 2xy sees only the gap.
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 1e3]) * 1e-3
    X = X.astype(np.float32) + np.float32([0, 0, 1])
    indices, scores = reference_k_center(X, 60, None, np.ones(100, bool))
    found = k_center_greedy(X, 60)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4)


@pytest.mark.parametrize('num_labeled', [1, 20])
def test_core_set_is_that_of_scikit_activeml(num_labeled):
    from skactiveml.pool import CoreSet  # imports torch, slowly

    X, _ = pool(150, seed=3)
    y = np.full(len(X), np.nan)
    is_labeled = np.arange(len(X)) < num_labeled
    y[is_labeled] = 0
    theirs = CoreSet(random_state=0).query(X.astype(np.float64), y, batch_size=20)
    ours = k_center_greedy(X, 20, X[is_labeled], ~is_labeled)
    assert ours.indices.tolist() == theirs.tolist()


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(  # within one block of draws, and several
    ('num_rows', 'count'), [(300, 10), (2500, 40)]
)
def test_badge_is_the_reference(masked, num_rows, count):
    X, p = pool(num_rows)
    available = some_available(len(X)) if masked else np.ones(len(X), bool)
    found = badge(p, X, count, KEY, available if masked else None)
    indices, scores = reference_badge(p, X, count, KEY, available)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('num_labeled', [None, 7])
def test_typiclust_is_the_reference(masked, num_labeled):
    X, _ = pool()
    available = some_available(len(X)) if masked else np.ones(len(X), bool)
    labeled = None if num_labeled is None else labeled_rows(num_labeled)
    found = typiclust(X, 10, KEY, labeled, available if masked else None)
    indices, scores = reference_typiclust(X, 10, KEY, labeled, available)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4)


def test_typiclust_goes_round_the_clusters_where_there_are_few(monkeypatch):
    X, _ = pool(40)
    monkeypatch.setattr(selection, '_MAX_CLUSTERS', 3)
    found = typiclust(X, 40, KEY)
    assert sorted(found.indices.tolist()) == list(range(40))


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shift', [0, -5])
def test_diverse_is_the_reference(masked, shift):
    X, p = pool()
    scores = entropy(p) + np.float32(shift)
    available = some_available(len(X)) if masked else np.ones(len(X), bool)
    found = diverse(scores, X, 10, KEY, available if masked else None)
    rows = reference_diverse(scores, X, 10, KEY, available)
    assert found.indices.tolist() == rows.tolist()
    np.testing.assert_array_equal(found.scores, scores[rows])


def test_diverse_without_a_choice_takes_the_highest():
    X, p = pool()
    found = diverse(entropy(p), X, 20, KEY, oversample=1)
    assert found.indices.tolist() == highest(entropy(p), 20).indices.tolist()


def test_highest_is_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 30, 500).astype(np.float32)
    available = some_available(500)
    order = np.argsort(np.where(available, -scores, np.inf), kind='stable')
    for count in (1, 7, 100, int(available.sum())):
        found = highest(scores, count, available)
        assert found.indices.tolist() == order[:count].tolist()
        assert found.scores.tolist() == scores[order[:count]].tolist()


def test_at_random_gives_each_row_the_same_chance():
    keys = jax.random.split(KEY, 1000)
    counts = np.zeros(5)
    for key in keys:
        counts[at_random(5, 2, key).indices] += 1
    # 400 expected of each; the standard deviation is 15.5.
    assert (abs(counts - 400) < 4 * 15.5).all()


# --- properties of all strategies -------------------------------------------------------------


@each_strategy
def test_results_are_plain(choose):
    X, p = pool()
    found = choose(X, p, 10, None)
    assert found.indices.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert found.indices.shape == found.scores.shape == (10,)
    assert len(set(found.indices.tolist())) == 10


@each_strategy
def test_the_same_key_chooses_the_same_rows(choose):
    X, p = pool()
    first, second = choose(X, p, 10, None), choose(jnp.asarray(X), jnp.asarray(p), 10, None)
    assert first.indices.tolist() == second.indices.tolist()
    assert first.scores.tolist() == second.scores.tolist()


@each_strategy
def test_only_available_rows_are_chosen(choose):
    X, p = pool()
    available = some_available(len(X))
    assert available[choose(X, p, 10, available).indices].all()


@each_strategy
@pytest.mark.parametrize('num_available', [0, 1, 6])
def test_a_pool_that_is_exhausted_gives_what_is_left(choose, num_available):
    X, p = pool()
    available = np.zeros(len(X), bool)
    available[10 * np.arange(num_available)] = True
    found = choose(X, p, 10, available)
    assert sorted(found.indices.tolist()) == np.flatnonzero(available).tolist()


@pytest.mark.parametrize(
    'choose',
    [
        pytest.param(choose, id=name, marks=[pytest.mark.slow] if 'labeled' in name else [])
        for name, choose in CALLS.items()
    ],
)
def test_more_rows_than_there_are_give_all(choose):
    X, p = pool(12)
    assert sorted(choose(X, p, 50, None).indices.tolist()) == list(range(12))


@each_strategy
def test_rows_that_are_all_the_same_are_chosen_once_each(choose):
    X, p = np.ones((300, 6), np.float32), np.full((300, 4), 1 / 4, np.float32)
    available = np.arange(300) % 25 == 3  # 12 rows
    found = choose(X, p, 10, available)
    assert len(set(found.indices.tolist())) == 10 and available[found.indices].all()


@each_strategy
def test_later_rounds_compile_nothing(choose, count_compiles):
    X, p = pool()
    available = np.ones(len(X), bool)
    available[choose(X, p, 10, available).indices] = False

    def rounds():
        for _ in range(3):
            available[choose(X, p, 10, available).indices] = False
        available[4:] = False
        choose(X, p, 10, available)

    assert count_compiles(rounds) == 0


@pytest.mark.parametrize(
    'choose', [k_center_greedy, lambda *args: typiclust(*args[:2], KEY, *args[2:])]
)
def test_more_labeled_rows_compile_nothing(choose, count_compiles):
    X, _ = pool()
    choose(X, 10, labeled_rows(5))
    assert count_compiles(choose, X, 10, labeled_rows(6)) == 0


@pytest.mark.parametrize('labeled', [None, labeled_rows(5)])
def test_core_set_follows_the_rows_where_they_go(labeled):
    X, _ = pool()
    order = np.random.default_rng(1).permutation(len(X))
    found, moved = k_center_greedy(X, 30, labeled), k_center_greedy(X[order], 30, labeled)
    assert order[moved.indices].tolist() == found.indices.tolist()
    assert moved.scores.tolist() == found.scores.tolist()


def test_highest_follows_the_rows_where_they_go():
    scores = entropy(pool()[1])
    order = np.random.default_rng(1).permutation(len(scores))
    assert (
        order[highest(scores[order], 30).indices].tolist() == highest(scores, 30).indices.tolist()
    )


def test_of_rows_that_are_the_same_the_first_is_chosen():
    X, p = pool(1500)
    twice, p = np.concatenate([X, X]), np.concatenate([p, p])
    assert (k_center_greedy(twice, 40).indices < 1500).all()
    assert (k_center_greedy(twice, 40, labeled_rows(5)).indices < 1500).all()
    assert badge(p, twice, 1, KEY).indices[0] < 1500
    assert highest([1.0, 2.0, 2.0, 2.0], 2).indices.tolist() == [1, 2]


def test_badge_tells_rows_apart_of_which_the_model_is_sure():
    rest = np.array([1e-32, 3e-30, 2e-30, 1e-36])
    p = np.stack([rest, 1 - rest], axis=1)
    found = badge(p, np.ones((4, 1)), 4, KEY)
    assert found.indices[0] == 1
    lengths = np.sqrt(2) * rest
    far = np.abs(lengths - lengths[:, None])
    expected = [
        far[row, found.indices[:pick]].min() for pick, row in enumerate(found.indices) if pick
    ]
    np.testing.assert_allclose(found.scores, [lengths[1], *expected], rtol=1e-5)


def test_badge_and_core_set_leave_rows_that_lie_on_chosen_ones_to_the_end():
    X, p = pool(20)
    X, p = np.repeat(X, 3, axis=0), np.repeat(p, 3, axis=0)
    for found in (k_center_greedy(X, 20), badge(p, X, 20, KEY)):
        assert sorted(found.indices // 3) == list(range(20))


# --- building blocks --------------------------------------------------------------------------


def test_distances_are_exact_across_blocks():
    X, _ = pool(5000, num_features=20)
    centers = X[[3, 777, 4999]]
    reference = np.stack([squared(X.astype(float), center.astype(float)) for center in centers])
    np.testing.assert_allclose(squared_distances(X, centers[1]), reference[1], rtol=1e-6)
    labels, distances = nearest(X, jnp.pad(centers, ((0, 5), (0, 0))), 3)
    assert np.array_equal(labels, reference.argmin(0))
    np.testing.assert_allclose(distances, reference.min(0), rtol=1e-6)
    assert distances[777] == 0


def test_kmeans_is_the_reference():
    X, _ = pool(2500)
    rng = np.random.default_rng(0)
    valid = some_available(len(X))
    weights = np.where(valid, rng.random(len(X)), 0).astype(np.float32)
    run = jax.jit(kmeans, static_argnums=4)
    found = run(X, weights, valid, 8, 16, KEY)
    centers = reference_kmeans(X.astype(float), weights.astype(float), valid, 8, KEY)
    np.testing.assert_allclose(found.centers[:8], centers, atol=1e-4)
    distances = np.stack([squared(X.astype(float), center) for center in centers])
    np.testing.assert_allclose(found.distances, distances.min(0), rtol=1e-3, atol=1e-3)


# --- errors -----------------------------------------------------------------------------------


@each_strategy
@pytest.mark.parametrize('count', [0, -1, 2.0, True, None])
def test_a_count_that_is_none_is_refused(choose, count):
    with pytest.raises(ConfigError, match=r'^count: got .* a whole number of at least 1'):
        choose(*pool(20), count, None)


@each_strategy
@pytest.mark.parametrize('available', [np.ones(19, bool), np.ones(20), np.arange(3)])
def test_a_mask_of_another_kind_is_refused(choose, available):
    with pytest.raises(DataError, match=r'^available: got .*expected bool of shape'):
        choose(*pool(20), 3, available)


@pytest.mark.parametrize('scores', [[0.1, np.nan], [[0.1]], ['a']])
def test_scores_that_rank_nothing_are_refused(scores):
    with pytest.raises(DataError, match=r'^scores: '):
        highest(scores, 1)


def test_a_score_that_is_nan_is_no_matter_where_the_row_is_not_available():
    assert highest([np.nan, 1.0], 1, np.array([False, True])).indices.tolist() == [1]


def test_features_and_labels_must_fit():
    X, p = pool(20)
    with pytest.raises(DataError, match=r'^labeled: got shape \(3, 5\), expected .* 6\]'):
        k_center_greedy(X, 3, labeled_rows(3, 5))
    with pytest.raises(DataError, match=r'^features: got shape \(20,\)'):
        k_center_greedy(X[:, 0], 3)
    with pytest.raises(DataError, match=r'^features: got 20 rows for 19 rows'):
        badge(p[:19], X, 3, KEY)
    with pytest.raises(DataError, match=r'^features: got 20 rows for 19 rows'):
        diverse(entropy(p)[:19], X, 3, KEY)
    with pytest.raises(ConfigError, match=r'^oversample: got 0'):
        diverse(entropy(p), X, 3, KEY, oversample=0)
    with pytest.raises(ConfigError, match=r'^num_rows: got 0'):
        at_random(0, 3, KEY)
    X[4, 2] = np.nan
    with pytest.raises(DataError, match=r'^features: got NaN or infinite'):
        typiclust(X, 3, KEY)


# --- last, since it forgets programs ---------------------------------------------------------


def test_typiclust_takes_samples_of_large_pools_and_clusters(monkeypatch):
    rng = np.random.default_rng(0)
    means = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    of_mean = rng.permutation(np.repeat(np.arange(4), [900, 700, 500, 300]))
    X = means[of_mean] + rng.normal(size=(2400, 2))
    monkeypatch.setattr(selection, '_MAX_ROWS', 64)
    monkeypatch.setattr(selection, '_MAX_MEMBERS', 32)
    forget_programs()
    found = typiclust(X, 4, KEY)
    assert of_mean[found.indices].tolist() == [0, 1, 2, 3]  # the largest first
    # The most typical of 32 rows is well inside its cloud.
    assert (np.linalg.norm(X - means[of_mean], axis=1)[found.indices] < 1).all()
    forget_programs()
