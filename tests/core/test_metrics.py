import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics as sk
from clu import metrics as clu_metrics
from flax import struct

from thinkml.core.objectives.metric_table import (
    TRAINING_ONLY_METRICS,
    check_metric,
    is_higher_better,
    metric_name,
    metric_names,
)
from thinkml.core.objectives.streaming_metrics import compute, make_metrics
from thinkml.errors import ConfigError

NAMES = {
    # Binary and multilabel tasks have all metrics of classification but top-k.
    'classification': metric_names('binary', in_training=True, in_evaluation=True),
    # Images have tests of their own.
    'regression': tuple(
        name
        for name in metric_names('regression', in_training=True, in_evaluation=True)
        if name not in ('psnr', 'ssim')
    ),
}
AVERAGES = ('macro', 'micro', 'weighted')


def outputs(kind, num_rows, num_outputs, seed=0, *, ties=False):
    """Returns random logits and encoded labels that are correlated."""
    rng = np.random.default_rng(seed)
    width = () if num_outputs == 1 else (num_outputs,)
    logits = rng.normal(size=(num_rows, *width)).astype(np.float32)
    if ties:
        logits = logits[rng.integers(0, 12, num_rows)]
    if kind == 'regression':
        return logits, (logits + rng.normal(size=logits.shape)).astype(np.float32)
    noisy = logits + rng.normal(size=logits.shape)
    if kind == 'multilabel' or num_outputs == 1:
        return logits, (noisy > 0).astype(np.float32 if kind == 'multilabel' else np.int32)
    return logits, noisy.argmax(1).astype(np.int32)


def step(logits, labels, mask=None, weight=None, losses=None, **more):
    rows = len(labels)
    return {
        'logits': jnp.asarray(logits), 'labels': jnp.asarray(labels),
        'losses': jnp.asarray(np.zeros(rows, np.float32) if losses is None else losses),
        'weight': jnp.asarray(np.ones(rows, np.float32) if weight is None else weight),
        'mask': None if mask is None else jnp.asarray(mask, jnp.float32), **more,
    }  # fmt: skip


def batches(logits, labels, cuts, batch_size=None):
    """Splits rows at ``cuts``; with a batch size, each batch is padded with meaningless rows."""
    for part_logits, part_labels in zip(
        np.split(logits, cuts), np.split(labels, cuts), strict=True
    ):
        rows = len(part_labels)
        extra = (batch_size or rows) - rows
        if batch_size:
            part_logits = np.concatenate([part_logits, 9 * np.ones((extra, *logits.shape[1:]))])
            part_labels = np.concatenate([part_labels, labels[:1].repeat(extra, 0)])
        yield step(part_logits.astype(np.float32), part_labels, np.arange(rows + extra) < rows)


@functools.partial(jax.jit, static_argnums=0)
def of_batch(metrics, keywords):
    return metrics.single_from_model_output(**keywords)


@jax.jit
def merge(totals, batch):
    return totals.merge(batch)


def over_epoch(metrics, steps):
    return compute(functools.reduce(merge, (of_batch(metrics, s) for s in steps), metrics.empty()))


def probabilities(logits, kind):
    logits = logits.astype(np.float64)
    if kind == 'multilabel' or logits.ndim == 1:
        p = 1 / (1 + np.exp(-logits))
        return p if kind == 'multilabel' else np.stack([1 - p, p], 1)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def log_loss(logits, labels, kind):
    """Computes scikit-learn's log loss, except that probabilities are not clipped."""
    logits = logits.astype(np.float64)
    if kind == 'multilabel' or logits.ndim == 1:
        return np.mean(np.logaddexp(0, np.where(labels > 0, -logits, logits)))
    return -np.mean(scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels])


def by_scikit_learn(logits, labels, kind):
    """Returns every classification metric, computed by scikit-learn."""
    p = probabilities(logits, kind)
    if kind == 'multilabel':
        guess = (logits > 0).astype(int)
    else:
        guess = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)
    scores = {
        'precision': functools.partial(sk.precision_score, zero_division=0),
        'recall': functools.partial(sk.recall_score, zero_division=0),
        'f1': functools.partial(sk.f1_score, zero_division=0),
        'iou': functools.partial(sk.jaccard_score, zero_division=0),
    }
    default = 'binary' if kind == 'binary' else 'macro'
    expected = {name: score(labels, guess, average=default) for name, score in scores.items()}
    for name, score in scores.items():
        expected |= {f'{name}_{how}': score(labels, guess, average=how) for how in AVERAGES}
    expected |= {'mean_iou': expected['iou_macro'], 'dice': expected['f1']}
    columns = {'binary': [1], 'multiclass': range(p.shape[1]), 'multilabel': range(p.shape[1])}
    rankings = [
        (labels[:, c] if kind == 'multilabel' else labels == c, p[:, c]) for c in columns[kind]
    ]
    is_defined = all(0 < np.sum(positive) < len(labels) for positive, _ in rankings)
    two = [(labels[:, c], guess[:, c]) for c in range(p.shape[1])] if labels.ndim == 2 else []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # warnings of missing classes
        expected |= {
            'accuracy': sk.accuracy_score(labels, guess),
            'balanced_accuracy': np.mean([sk.balanced_accuracy_score(*column) for column in two])
            if two
            else sk.balanced_accuracy_score(labels, guess),
            'roc_auc': np.mean([sk.roc_auc_score(*r) for r in rankings]) if is_defined else np.nan,
            'average_precision': np.mean([sk.average_precision_score(*r) for r in rankings]),
        }
    expected['exact_match'] = expected['accuracy']  # rows of one label
    expected['log_loss'] = log_loss(logits, labels, kind)
    expected['perplexity'] = np.exp(expected['log_loss'])
    expected['bits_per_token'] = expected['log_loss'] / np.log(2)
    if kind == 'multilabel':
        expected['brier'] = np.mean((p - labels) ** 2)
    else:
        given = p[:, 1] if kind == 'binary' else p
        # brier_score_loss requires both classes in the labels, unless they are passed
        expected['brier'] = sk.brier_score_loss(labels, given, labels=range(p.shape[1]))
    return expected


def assert_equal(got, expected, rel=1e-6):
    assert got.keys() - {'loss'} == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=rel, abs=rel, nan_ok=True), name


CASES = [('binary', 1), ('binary', 2), ('multiclass', 3), ('multilabel', 4)]
MORE_CASES = [('multiclass', 7), ('multilabel', 2)]
each_case = pytest.mark.parametrize(
    ('kind', 'num_outputs'),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)],
)


def every_metric(kind, num_outputs):
    """Returns one collection for many tests, which share its programs: four batches of 40 rows."""
    names = NAMES['regression' if kind == 'regression' else 'classification']
    return make_metrics(names, kind=kind, num_outputs=num_outputs, capacity=4 * 40)


@each_case
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_classification_metrics_are_those_of_scikit_learn(kind, num_outputs, ties, seed):
    logits, labels = outputs(kind, 60, num_outputs, seed, ties=ties)
    metrics = every_metric(kind, num_outputs)
    got = over_epoch(metrics, batches(logits, labels, [1, 9, 37], batch_size=40))
    assert_equal(got, by_scikit_learn(logits, labels, kind))


@each_case
def test_classes_that_are_missing_or_never_predicted(kind, num_outputs):
    logits, labels = outputs(kind, 40, num_outputs)
    if kind == 'multilabel':
        labels[:, 0] = 0
        logits[:, 1] = -1
    else:
        labels[labels == 1] = 0
        if num_outputs > 2:
            logits[:, 2] = -50
    got = over_epoch(every_metric(kind, num_outputs), batches(logits, labels, [], batch_size=40))
    expected = by_scikit_learn(logits, labels, kind)
    assert np.isnan(expected['roc_auc'])
    assert_equal(got, expected)


@each_case
def test_the_iou_of_each_class(kind, num_outputs):
    logits, labels = outputs(kind, 60, num_outputs)
    classes = 'abcdefg'[: max(2, num_outputs)]
    if kind == 'multilabel':
        labels[:, 0], logits[:, 0], guess = 0, -1, logits > 0
    else:
        guess = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)
    names = tuple(f'iou_{label}' for label in classes)
    metrics = make_metrics(names, kind=kind, num_outputs=num_outputs, classes=classes)
    got = over_epoch(metrics, batches(logits, labels, [1, 9, 37], batch_size=40))
    scores = sk.jaccard_score(labels, guess, average=None, zero_division=0)
    assert_equal(got, dict(zip(names, scores, strict=True)))


def test_labels_without_a_single_positive():
    logits, labels = outputs('multilabel', 20, 4)
    metrics = every_metric('multilabel', 4)
    got = over_epoch(metrics, batches(logits - 99, 0 * labels, [], batch_size=40))
    expected = by_scikit_learn(logits - 99, 0 * labels, 'multilabel')
    del expected['roc_auc'], got['roc_auc']
    assert_equal(got, expected)


def test_metrics_are_those_of_the_evaluation():
    from thinkml.evaluation import METRICS
    from thinkml.evaluation.evaluation_data import EvaluationData

    for kind, num_outputs in (*CASES, ('regression', 1), ('regression', 3)):
        logits, labels = outputs(kind, 60, num_outputs, seed=5)
        is_regression = kind == 'regression'
        p = None if is_regression else probabilities(logits, kind)
        if is_regression:
            guess = logits
        else:
            guess = (logits > 0).astype(np.int32) if kind == 'multilabel' else p.argmax(1)
        metrics = every_metric(kind, num_outputs)
        got = over_epoch(metrics, batches(logits, labels, [1, 9, 37], batch_size=40))
        data = EvaluationData(kind, max(2, num_outputs), labels, guess, p, logits)
        names = NAMES['regression' if is_regression else 'classification']
        expected = {name: METRICS[kind][name].of(data) for name in names}
        assert_equal(got, expected)


@pytest.mark.parametrize('k', [1, 2, 5])
def test_top_k_accuracy(k):
    logits, labels = outputs('multiclass', 50, 8)
    name = 'top_k_accuracy' if k == 5 else f'top_{k}_accuracy'
    got = over_epoch(make_metrics((name,)), batches(logits, labels, [13], batch_size=40))
    expected = sk.top_k_accuracy_score(labels, logits, k=k, labels=range(8))
    assert got[name] == pytest.approx(expected, rel=1e-6)


def test_of_equal_logits_the_first_counts():
    logits, labels = outputs('multiclass', 50, 4)
    logits = np.round(logits)
    metrics = make_metrics(('accuracy', 'top_1_accuracy'))
    got = compute(of_batch(metrics, step(logits, labels)))
    assert (
        got['accuracy'] == got['top_1_accuracy'] == np.float32((logits.argmax(1) == labels).mean())
    )


@pytest.mark.parametrize('num_outputs', [1, 3])
@pytest.mark.parametrize('mean', [0.0, 1e4])
@pytest.mark.parametrize('cuts', [[], [1, 2, 3], range(2, 200, 3)])
def test_regression_metrics_are_those_of_scikit_learn(num_outputs, mean, cuts):
    predictions, targets = outputs('regression', 200, num_outputs)
    predictions, targets = predictions + np.float32(mean), targets + np.float32(mean)
    metrics = make_metrics(NAMES['regression'], kind='regression', num_outputs=num_outputs)
    got = over_epoch(metrics, batches(predictions, targets, list(cuts), batch_size=200))
    predictions, targets = predictions.astype(np.float64), targets.astype(np.float64)
    expected = {
        'mse': sk.mean_squared_error(targets, predictions),
        'mae': sk.mean_absolute_error(targets, predictions),
        'rmse': sk.root_mean_squared_error(targets, predictions),
        'r2': sk.r2_score(targets, predictions),
    }
    assert_equal(got, expected)


@pytest.mark.parametrize(
    ('predictions', 'targets', 'expected'),
    [([1, 2], [3, 3], 0.0), ([3, 3], [3, 3], 1.0), ([1], [1], np.nan)],
)
def test_r2_of_constant_targets_and_of_one_row(predictions, targets, expected):
    metrics = make_metrics(('r2',), num_outputs=1)
    keywords = step(np.float32(predictions), np.float32(targets))
    got = compute(of_batch(metrics, keywords))
    assert got['r2'] == pytest.approx(expected, nan_ok=True)


def test_sums_have_the_names_that_checkpoints_have():
    metrics = make_metrics(['recall'], kind='multiclass', num_outputs=3)
    paths = jax.tree_util.tree_leaves_with_path(metrics.empty())
    names = {jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in paths}
    counts = ('num_examples', 'hits', 'predicted', 'actual')
    assert {f'_class_counts/{name}' for name in counts} <= names


def test_collections_of_other_metrics_have_another_structure():
    """A jitted function would confuse them, see `streaming_metrics._register_pytree`."""
    names = [('mse',), ('mae',), ('mae', 'mse'), ('mse', 'mae'), ()]
    made = [make_metrics(each, kind='regression', num_outputs=1) for each in names]
    structures = [jax.tree.structure(metrics.empty()) for metrics in made]
    for index, structure in enumerate(structures):
        assert [structure == other for other in structures] == [
            other == index for other in range(len(structures))
        ]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(made[0].empty())]
    assert any(path.startswith('.loss') for path in paths)


# --- weights and masks ------------------------------------------------------------------------


def test_only_the_loss_is_weighted():
    logits, labels = outputs('multiclass', 30, 3)
    rng = np.random.default_rng(1)
    weight, losses = rng.uniform(size=(2, 30)).astype(np.float32)
    mask = np.arange(30) < 25
    metrics = make_metrics(('accuracy', 'f1'), kind='multiclass', num_outputs=3)
    got = compute(of_batch(metrics, step(logits, labels, mask, weight * mask, losses)))
    assert got['loss'] == pytest.approx(np.average(losses[:25], weights=weight[:25]), rel=1e-6)
    guess = logits.argmax(1)[:25]
    assert got['accuracy'] == pytest.approx(sk.accuracy_score(labels[:25], guess))
    assert got['f1'] == pytest.approx(sk.f1_score(labels[:25], guess, average='macro'))


def test_without_a_mask_rows_of_weight_0_are_left_out():
    logits, labels = outputs('multiclass', 30, 3)
    weight = np.where(np.arange(30) < 20, 0.3, 0).astype(np.float32)
    metrics = make_metrics(('accuracy',))
    got = compute(of_batch(metrics, step(logits, labels, weight=weight)))
    assert got['accuracy'] == pytest.approx((logits.argmax(1) == labels)[:20].mean())


def test_what_fills_up_may_be_nan():
    logits, labels = outputs('binary', 40, 1)
    logits[8:] = np.nan
    mask = (np.arange(40) < 8).astype(np.float32)
    losses = np.where(mask, np.float32(1), np.float32(np.nan))
    got = over_epoch(every_metric('binary', 1), [step(logits, labels, mask, mask, losses)])
    assert got.pop('loss') == 1
    assert_equal(got, by_scikit_learn(logits[:8], labels[:8], 'binary'))


def test_an_infinite_loss_stays_infinite():
    metrics = make_metrics()
    logits, labels = outputs('binary', 4, 1)
    steps = [step(logits, labels, losses=np.float32([1, value, 1, 1])) for value in (1, np.inf, 1)]
    assert over_epoch(metrics, steps) == {'loss': np.inf}


def test_shares_of_classes_count_as_the_largest():
    logits, labels = outputs('multiclass', 30, 4)
    shares = np.float32(0.7 * np.eye(4)[labels] + 0.3 * np.eye(4)[labels[::-1]])
    metrics = make_metrics(
        ('accuracy', 'f1', 'log_loss', 'roc_auc'), kind='multiclass', num_outputs=4, capacity=30
    )
    hard = compute(of_batch(metrics, step(logits, labels)))
    assert compute(of_batch(metrics, step(logits, shares))) == hard


# --- merging ----------------------------------------------------------------------------------

ALL = (*NAMES['classification'], 'top_2_accuracy')


@pytest.mark.parametrize(
    'cuts',
    [
        [],
        list(range(1, 30)),
        *(pytest.param(cuts, marks=pytest.mark.slow) for cuts in ([1], [10, 20], [3, 4, 29])),
    ],
)
def test_any_cut_of_an_epoch_gives_the_same(cuts):
    logits, labels = outputs('multiclass', 30, 3)
    metrics = make_metrics(ALL, kind='multiclass', num_outputs=3, capacity=30)
    whole = compute(of_batch(metrics, step(logits, labels)))
    parts = [of_batch(metrics, s) for s in batches(logits, labels, cuts)]
    assert compute(functools.reduce(merge, parts)) == pytest.approx(whole)
    assert compute(functools.reduce(merge, parts, metrics.empty())) == pytest.approx(whole)
    # halves of an epoch, each merged into a separate empty collection
    half = len(parts) // 2
    halves = [
        functools.reduce(merge, some, metrics.empty()) for some in (parts[:half], parts[half:])
    ]
    together = merge(merge(*halves), metrics.empty())
    assert compute(together) == pytest.approx(whole)


@pytest.mark.parametrize('capacity', [5, 8, 29])
def test_more_rows_than_the_capacity_give_nan(capacity):
    logits, labels = outputs('binary', 30, 1)

    def own(logits, labels):
        return np.mean(logits)

    metrics = make_metrics(
        ('roc_auc', 'accuracy', own), kind='binary', num_outputs=1, capacity=capacity
    )
    got = over_epoch(metrics, batches(logits, labels, [10, 20]))
    assert np.isnan(got['roc_auc']) and np.isnan(got['own'])
    assert got['accuracy'] == pytest.approx(((logits > 0) == labels).mean())


def test_inside_a_compiled_loop_with_donated_state():
    logits, labels = outputs('multiclass', 64, 3)
    metrics = make_metrics(ALL, kind='multiclass', num_outputs=3, capacity=64)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(totals, first, last):
        def body(index, totals):
            rows = index * 8 + jnp.arange(8)
            batch = step(jnp.asarray(logits)[rows], jnp.asarray(labels)[rows])
            return totals.merge(metrics.single_from_model_output(**batch))

        return jax.lax.fori_loop(first, last, body, totals)

    totals = metrics.empty()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(totals)]
    assert len(set(pointers)) == len(pointers)
    got = compute(run(run(totals, 0, 3), 3, 8))
    assert_equal(
        {name: got[name] for name in NAMES['classification']},
        by_scikit_learn(logits, labels, 'multiclass'),
    )


def test_many_collections_at_once_under_vmap():
    pairs = [outputs('multiclass', 40, 3, seed) for seed in range(3)]
    metrics = make_metrics(ALL, kind='multiclass', num_outputs=3, capacity=40)
    regression = make_metrics(('r2', 'rmse'), num_outputs=3)

    def epoch(metrics, logits, labels):
        totals = metrics.empty()
        for rows in (slice(0, 20), slice(20, 40)):
            batch = step(logits[rows], labels[rows])
            totals = totals.merge(metrics.single_from_model_output(**batch))
        return totals.compute()

    logits, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    for metrics, labels in ((metrics, labels), (regression, 2 * logits + 1)):  # noqa: B020
        run = jax.jit(functools.partial(epoch, metrics))
        together = jax.device_get(jax.jit(jax.vmap(run))(logits, labels))
        for index in range(3):
            alone = run(logits[index], labels[index])
            for name, value in alone.items():
                assert float(together[name][index]) == pytest.approx(float(value), rel=1e-6)


def test_two_million_small_batches_lose_nothing():
    metrics = make_metrics(('accuracy', 'recall'), kind='binary', num_outputs=1)

    def body(index, totals):
        # Each third batch is correct in one of its two rows, the others in both.
        logits = jnp.array([jnp.where(index % 3 == 0, -1.0, 1.0), 1.0])
        return totals.merge(
            metrics.single_from_model_output(
                logits=logits, labels=jnp.array([1, 1]), losses=jnp.full(2, 0.1),
                weight=jnp.full(2, 0.3),
            )
        )  # fmt: skip

    totals = jax.jit(lambda: jax.lax.fori_loop(0, 2_000_001, body, metrics.empty()))()
    right = 4_000_002 - 666_667
    counts = totals._class_counts
    assert (int(counts.hits[1]), int(counts.num_examples)) == (right, 4_000_002)
    assert totals.accuracy.sums.sum(axis=0).tolist() == [right, 4_000_002]
    got = compute(totals)
    assert got['accuracy'] == got['recall'] == np.float32(right / 4_000_002)
    assert got['loss'] == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize(  # more pairs than float32 can count
    'num_rows', [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)]
)
def test_areas_of_very_many_scores(num_rows):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, num_rows).astype(np.int32)
    logits = np.float32(rng.normal(size=num_rows) + 0.3 * labels)
    metrics = make_metrics(
        ('roc_auc', 'average_precision'), kind='binary', num_outputs=1, capacity=num_rows + 9
    )
    got = compute(metrics.empty().merge(of_batch(metrics, step(logits, labels))))
    assert got['roc_auc'] == pytest.approx(sk.roc_auc_score(labels, logits), rel=1e-6)
    expected = sk.average_precision_score(labels, logits)
    assert got['average_precision'] == pytest.approx(expected, rel=1e-6)


def test_a_nan_among_the_scores_is_seen():
    logits, labels = outputs('binary', 20, 1)
    logits[3] = np.nan
    names = ('roc_auc', 'average_precision')
    metrics = make_metrics(names, kind='binary', num_outputs=1, capacity=20)
    got = compute(of_batch(metrics, step(logits, labels)))
    assert np.isnan(got['roc_auc']) and np.isnan(got['average_precision'])


def logits_against_the_rest(logits, kind):
    """Returns each class's logit in float64, which never rounds to 0 or 1 like probabilities."""
    z = logits.astype(np.float64)
    if kind == 'multilabel':
        return z
    z = np.stack([0 * z, z], axis=1) if z.ndim == 1 else z
    others = [np.delete(z, index, axis=1) for index in range(z.shape[1])]
    return z - np.stack([scipy.special.logsumexp(each, axis=1) for each in others], axis=1)


@each_case
@pytest.mark.parametrize(('scale', 'shift'), [(50, 0), (1, 500), (1e4, 0)])
def test_areas_and_log_loss_of_saturated_logits(kind, num_outputs, scale, shift):
    logits, labels = outputs(kind, 60, num_outputs, seed=3)
    logits = (logits * scale + shift).astype(np.float32)
    metrics = every_metric(kind, num_outputs)
    got = over_epoch(metrics, batches(logits, labels, [1, 9, 37], batch_size=40))
    scores = logits_against_the_rest(logits, kind)
    columns = [1] if kind == 'binary' else range(scores.shape[1])
    rankings = [
        (labels[:, c] if kind == 'multilabel' else labels == c, scores[:, c]) for c in columns
    ]
    expected = {
        'roc_auc': np.mean([sk.roc_auc_score(*each) for each in rankings]),
        'average_precision': np.mean([sk.average_precision_score(*each) for each in rankings]),
        'log_loss': log_loss(logits, labels, kind),
    }
    assert_equal({name: got[name] for name in expected}, expected)


def test_two_logits_rank_by_digits_that_their_difference_lacks_in_float32():
    near = np.float32(0.3) + np.float32(2**-25) * np.arange(8, dtype=np.float32)
    logits = np.stack([-near, np.full(8, 64, np.float32)], axis=1)
    labels = np.array([0, 1, 0, 1, 0, 1, 1, 1], np.int32)
    assert len(np.unique(logits[:, 1] - logits[:, 0])) == 1
    metrics = make_metrics(('roc_auc',), kind='binary', num_outputs=2, capacity=8)
    got = compute(of_batch(metrics, step(logits, labels)))
    assert got['roc_auc'] == pytest.approx(sk.roc_auc_score(labels, near))


def test_classes_rank_alike_where_the_other_logits_come_in_another_order():
    rng = np.random.default_rng(0)
    logits = rng.permuted(np.tile(np.float32([7, 1, 3, 3, 0]), (40, 1)), axis=1)
    labels = rng.integers(5, size=40).astype(np.int32)
    metrics = make_metrics(('roc_auc',), kind='multiclass', num_outputs=5, capacity=40)
    got = compute(of_batch(metrics, step(logits, labels)))
    expected = np.mean([sk.roc_auc_score(labels == c, logits[:, c]) for c in range(5)])
    assert got['roc_auc'] == pytest.approx(expected)


# --- gradient norm and update ratio -----------------------------------------------------------


def norm(tree):
    return np.sqrt(sum((leaf**2).sum() for leaf in tree.values()))


def test_grad_norm_is_the_mean_over_the_steps():
    logits, labels = outputs('binary', 4, 1)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float32)
    grads = [
        {'w': np.full(3, scale), 'b': scale, 'k': scale * kernel}
        for scale in np.float32([1, 4, 10])
    ]
    steps = [step(logits, labels, grads=tree) for tree in grads]
    got = over_epoch(make_metrics(('grad_norm',)), steps)
    assert got['grad_norm'] == pytest.approx(np.mean([norm(tree) for tree in grads]))
    assert 'grad_norm' in TRAINING_ONLY_METRICS
    with pytest.raises(ConfigError, match='only training has'):
        over_epoch(make_metrics(('grad_norm',)), [step(logits, labels)])


def test_update_ratio_is_the_mean_over_the_steps_that_have_one():
    rng = np.random.default_rng(0)
    logits, labels = outputs('binary', 4, 1)

    def tree(scale):
        return {'w': rng.normal(size=(3, 2)) * scale, 'b': rng.normal(size=2) * scale}

    pairs = [
        (tree(scale), tree(0.01)) for scale in (1.0, 3.0, 0.0)
    ]  # the ratio of the last is undefined
    steps = [
        step(logits, labels, params=jax.tree.map(jnp.asarray, params),
             updates=jax.tree.map(jnp.asarray, updates))
        for params, updates in pairs
    ]  # fmt: skip
    norms = [[norm(tree) for tree in pair] for pair in pairs[:2]]
    expected = np.mean([update / size for size, update in norms])
    got = over_epoch(make_metrics(('update_ratio',)), steps)
    assert got['update_ratio'] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ConfigError, match="'update_ratio' got no gradients, which only training"):
        over_epoch(make_metrics(('update_ratio',)), [step(logits, labels)])


# --- custom metrics ---------------------------------------------------------------------------


def margin(logits, labels):
    return logits.max(axis=1) - logits.min(axis=1)


def largest_logit(logits, labels):
    return jnp.max(logits)


def kappa(logits, labels):
    return sk.cohen_kappa_score(labels, logits.argmax(1))


@struct.dataclass
class MeanLogit(clu_metrics.Average.from_fun(lambda logits, **_: logits.mean(axis=1))):
    pass


def test_own_metrics_of_every_kind():
    logits, labels = outputs('multiclass', 50, 3)
    metrics = make_metrics(
        (margin, largest_logit, kappa, clu_metrics.Accuracy, MeanLogit, 'roc_auc'),
        kind='multiclass', num_outputs=3, capacity=120,
    )  # fmt: skip
    got = over_epoch(metrics, batches(logits, labels, [7, 30], batch_size=40))
    assert list(got) == [
        'loss', 'margin', 'largest_logit', 'kappa', 'accuracy', 'mean_logit', 'roc_auc',
    ]  # fmt: skip
    expected = by_scikit_learn(logits, labels, 'multiclass')
    assert got['margin'] == pytest.approx(np.mean(logits.max(1) - logits.min(1)))
    assert got['largest_logit'] == logits.max()  # padding has logits of 9
    assert got['kappa'] == pytest.approx(sk.cohen_kappa_score(labels, logits.argmax(1)))
    assert got['accuracy'] == pytest.approx(expected['accuracy'])
    assert got['mean_logit'] == pytest.approx(logits.mean(), rel=1e-5)
    assert got['roc_auc'] == pytest.approx(expected['roc_auc'])


def test_a_function_that_numpy_computes_per_example_is_averaged():
    def margin(logits, labels):
        return np.sort(logits, axis=1)[:, -1] - np.asarray(logits).min(axis=1)

    logits, labels = outputs('multiclass', 20, 3)
    metrics = make_metrics((margin,), kind='multiclass', num_outputs=3, capacity=20)
    got = compute(of_batch(metrics, step(logits, labels)))
    assert got['margin'] == pytest.approx(np.mean(logits.max(1) - logits.min(1)))


@pytest.mark.parametrize('kind', ['binary', 'multilabel', 'regression'])
def test_own_metrics_get_logits_and_labels_as_the_loss_does(kind):
    num_outputs = 1 if kind == 'binary' else 3
    seen = []

    def shapes(logits, labels):
        seen.append((logits.shape, labels.shape, labels.dtype.kind))
        return jnp.sum(logits)

    logits, labels = outputs(kind, 10, num_outputs)
    metrics = make_metrics((shapes,), kind=kind, num_outputs=num_outputs, capacity=10)
    got = compute(of_batch(metrics, step(logits, labels)))
    assert got['shapes'] == pytest.approx(logits.sum(), rel=1e-5)
    assert seen[-1] == (logits.shape, labels.shape, labels.dtype.kind)


def two_a_row(logits, labels):
    return jnp.stack([logits, logits], axis=1)


def two_a_row_of_numpy(logits, labels):
    return np.stack([np.asarray(logits), np.asarray(logits)], axis=1)


def an_array_of_one(logits, labels):
    return np.asarray(logits)[:1]


def nothing_of_numpy(logits, labels):
    np.asarray(logits)


@pytest.mark.parametrize(
    'function', [two_a_row, two_a_row_of_numpy, an_array_of_one, nothing_of_numpy]
)
def test_what_an_own_metric_returns_is_a_number_or_one_for_each_row(function):
    logits, labels = outputs('regression', 10, 1)
    with pytest.raises(ConfigError, match=f"metrics: '{function.__name__}' returned "):
        metrics = make_metrics((function,), kind='regression', num_outputs=1, capacity=10)
        compute(of_batch(metrics, step(logits, labels)))


def test_an_error_of_an_own_metric_says_whose_it_is():
    def fails(logits, labels):
        np.asarray(logits)
        raise KeyError('oh')

    logits, labels = outputs('binary', 10, 1)
    metrics = make_metrics((fails,), kind='binary', num_outputs=1, capacity=10)
    with pytest.raises(KeyError) as caught:
        compute(of_batch(metrics, step(logits, labels)))
    assert "'fails'" in caught.value.__notes__[0]


def test_a_collection_of_clu_is_computed_too():
    plain = clu_metrics.Collection.create(zebra=clu_metrics.Accuracy, ape=MeanLogit)
    logits, labels = outputs('multiclass', 20, 3)
    got = compute(
        plain.single_from_model_output(logits=jnp.array(logits), labels=jnp.array(labels))
    )
    assert list(got) == ['zebra', 'ape']
    assert got['zebra'] == pytest.approx((logits.argmax(1) == labels).mean())


def test_a_collection_gives_values_for_clu_writers():
    logits, labels = outputs('multiclass', 20, 3)
    totals = make_metrics(('f1', 'recall'), kind='multiclass', num_outputs=3)
    values = of_batch(totals, step(logits, labels)).compute_values()
    expected = by_scikit_learn(logits, labels, 'multiclass')
    assert float(values['f1'].value) == pytest.approx(expected['f1'])


# --- names and errors -------------------------------------------------------------------------


def test_the_same_arguments_return_the_same_class():
    assert make_metrics(['f1'], kind='binary', num_outputs=1) is make_metrics(
        ('f1',), kind='binary', num_outputs=1
    )
    # a capacity that no metric needs changes nothing, and takes no memory
    assert make_metrics(('accuracy',), capacity=10**9) is make_metrics(('accuracy',))
    assert make_metrics((margin,)) is make_metrics((margin,))


def not_a_pytree():
    class Mine(clu_metrics.Average):
        pass

    return Mine


SIZE = {'kind': 'multiclass', 'num_outputs': 3, 'capacity': 9}


@pytest.mark.parametrize(
    ('metrics', 'arguments', 'says'),
    [
        (('f2',), {}, "got 'f2', expected one of"),
        (('acuracy',), {}, "Did you mean 'accuracy'"),
        (('r2',), {'kind': 'binary'}, 'The task is binary'),
        (('f1',), {'kind': 'regression'}, 'The task is regression'),
        (('top_2_accuracy',), {'kind': 'binary'}, 'no top 2'),
        (('top_k_accuracy',), SIZE, 'always 1'),
        (('top_0_accuracy',), SIZE, "got 'top_0_accuracy'"),
        (('f1',), {}, 'kind: got None(.|\n)*num_outputs: got None'),
        (('r2',), {}, 'num_outputs: got None'),
        (('roc_auc',), {'kind': 'binary', 'num_outputs': 1}, 'capacity: got None'),
        ((kappa,), {'kind': 'multiclass', 'num_outputs': 3}, 'capacity: got None'),
        (('accuracy',), {'kind': 'ranking'}, "kind: got 'ranking'"),
        (('accuracy',), {'num_outputs': 0}, 'num_outputs: got 0'),
        (('accuracy',), {'capacity': 1.5}, 'capacity: got 1.5'),
        (('accuracy', 'accuracy'), {}, "two called 'accuracy'"),
        (('accuracy', clu_metrics.Accuracy), {}, "two called 'accuracy'"),
        ((lambda a, b: a, lambda a, b: b), {}, "two called 'lambda'"),
        ((3,), {}, 'got 3, expected a name'),
        ((dict,), {}, "got <class 'dict'>"),
        ((clu_metrics.CollectingMetric,), {}, 'collects on the host'),
        ((not_a_pytree(),), {}, 'flax.struct.dataclass'),
        ((lambda a, b: a @ a,), SIZE, "'lambda' failed for logits"),
        ((lambda a, b: a.T,), SIZE, r'returned shape \(3, rows\)'),
        ((lambda a, b: None,), SIZE, 'returned no array'),
        (('f2', 'f3'), {}, "'f2'(.|\n)*'f3'"),
    ],
)
def test_metrics_that_are_impossible(metrics, arguments, says):
    with pytest.raises(ConfigError, match=says):
        make_metrics(metrics, **arguments)


def test_a_metric_called_loss():
    def loss(logits, labels):
        return logits

    with pytest.raises(ConfigError, match="two called 'loss'"):
        make_metrics((loss,))


def test_one_number_without_room_for_the_epoch():
    logits, labels = outputs('multiclass', 20, 3)
    with pytest.raises(ConfigError, match='needs the whole epoch'):
        make_metrics((largest_logit,)).single_from_model_output(**step(logits, labels))


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel'])
def test_a_top_k_that_says_nothing_is_told_when_shapes_are_known(kind):
    logits, labels = outputs(kind, 20, 3)
    with pytest.raises(ConfigError, match='top'):
        make_metrics(('top_k_accuracy',)).single_from_model_output(**step(logits, labels))


def test_a_metric_that_is_no_number():
    @struct.dataclass
    class Vector(MeanLogit):
        def compute(self):
            return jnp.zeros(3)

    logits, labels = outputs('multiclass', 20, 3)
    totals = make_metrics((Vector,)).single_from_model_output(**step(logits, labels))
    with pytest.raises(ConfigError, match=r"'vector' returned an array of shape \(3,\)"):
        compute(totals)


def test_every_name_can_be_made_and_says_which_way_is_better():
    lower = {
        'log_loss',
        'perplexity',
        'bits_per_token',
        'brier',
        'mse',
        'mae',
        'rmse',
        *TRAINING_ONLY_METRICS,
    }
    for kind in ('multiclass', 'regression'):
        names = metric_names(kind, in_training=True)
        make_metrics(names, kind=kind, num_outputs=9, capacity=8)
        for name in names:
            assert check_metric(name, kind, 9) is None
            assert is_higher_better(name) is is_higher_better(f'val_{name}') is (name not in lower)
    assert is_higher_better('val_top_3_accuracy') is True
    assert is_higher_better('loss') is False
    assert is_higher_better('val_margin') is None
    # Metrics of evaluation alone have a direction too, unless the best value is in between.
    assert is_higher_better('val_mcc') is True
    assert is_higher_better('val_pinball_0.9') is False
    assert is_higher_better('val_calibration_slope') is None


def test_names_of_own_metrics():
    partial = functools.partial(margin)
    assert [metric_name(m) for m in (margin, partial, MeanLogit, clu_metrics.Accuracy)] == [
        'margin', 'margin', 'mean_logit', 'accuracy',
    ]  # fmt: skip


@pytest.mark.parametrize('metric', [sk.r2_score, functools.partial(sk.fbeta_score, beta=2)])
def test_functions_of_scikit_learn_take_their_arguments_the_other_way_round(metric):
    with pytest.raises(ConfigError, match=r"scikit-learn's (r2|fbeta)_score, which takes \(labels"):
        make_metrics((metric,), kind='regression', num_outputs=1, capacity=8)


# --- counts of scores by bin -------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'num_outputs'), [('binary', 1), ('binary', 2), ('multiclass', 3), ('multilabel', 3)]
)
def test_the_binned_roc_auc_is_near_the_exact_one(kind, num_outputs):
    rng = np.random.default_rng(0)
    rows = 4000
    if kind == 'multilabel':
        labels = rng.integers(0, 2, (rows, num_outputs)).astype(np.float32)
        logits = labels * 1.5 + rng.normal(size=labels.shape) * 3
    else:
        labels = rng.integers(0, max(2, num_outputs), rows)
        logits = rng.normal(size=(rows, num_outputs)) * 3
        signal = labels[:, None] if num_outputs == 1 else np.eye(num_outputs)[labels]
        logits = (logits + 1.5 * signal).reshape((rows,) if num_outputs == 1 else (rows, -1))
    metrics = make_metrics(
        ('roc_auc', 'roc_auc_binned'), kind=kind, num_outputs=num_outputs, capacity=rows
    )
    mask = np.arange(rows) % 7 > 0
    parts = [
        metrics.single_from_model_output(
            logits=jnp.asarray(logits[part], jnp.float32), labels=jnp.asarray(labels[part]),
            losses=jnp.zeros(rows // 2), weight=jnp.ones(rows // 2), mask=jnp.asarray(mask[part]),
        )
        for part in (slice(rows // 2), slice(rows // 2, None))
    ]  # fmt: skip
    got = compute(parts[0].merge(parts[1]))
    assert got['roc_auc_binned'] == pytest.approx(got['roc_auc'], abs=1e-4)
    assert 0.6 < got['roc_auc'] < 0.9
