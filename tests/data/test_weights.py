import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from thinkml.data import class_weight_table, encode_targets, example_weights
from thinkml.errors import DataError
from thinkml.tasks import Task

TEXT = Task('multiclass', ('bird', 'cat', 'dog'), 3)
NUMBERS = Task('multiclass', (0, 1, 2), 3)
ONE_HOT = Task('multiclass', (0, 1, 2), 3, (3,))
BOOLS = Task('binary', (False, True), 1)
Y = np.random.default_rng(0).choice(3, size=200, p=[0.7, 0.25, 0.05]).astype(np.int32)


@pytest.mark.parametrize(
    ('task', 'weights'),
    [
        (TEXT, {'bird': 1.0, 'cat': 2.0, 'dog': 0.5}),
        (TEXT, {np.str_('cat'): 2}),
        (NUMBERS, {0: 0.1, 2: np.float64(3)}),
        (NUMBERS, {np.int64(1): 4}),
        (NUMBERS, {2.0: 4}),
        (ONE_HOT, {1: 0.0}),
        (BOOLS, {True: 5, np.False_: 2}),
        (BOOLS, {1: 5}),
    ],
)
def test_classes_weigh_as_in_scikit_learn_and_the_others_count_1(task, weights):
    encoded = Y.clip(max=len(task.classes) - 1)
    labels = np.asarray(task.classes)[encoded]
    full = {label: weights.get(label, 1.0) for label in task.classes}
    expected = compute_sample_weight(full, labels)
    got = example_weights(encoded, task, weights)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('task', [TEXT, NUMBERS, ONE_HOT])
@pytest.mark.parametrize('rows', [None, np.arange(0, 200, 3), np.flatnonzero(Y != 2)])
def test_balanced_is_that_of_scikit_learn(task, rows):
    used = Y if rows is None else Y[rows]
    present = np.unique(used)
    expected = compute_class_weight('balanced', classes=present, y=used)
    got = example_weights(Y, task, 'balanced', rows=rows)
    for label, weight in zip(present, expected, strict=True):
        np.testing.assert_allclose(got[label == Y], weight, rtol=1e-6)
    np.testing.assert_allclose(class_weight_table(used, task, 'balanced')[present], expected)


@pytest.mark.parametrize(
    'own', [(Y > 0) * 1.0, np.arange(200) % 4, np.linspace(0.1, 9, 200), np.full(200, 1e-42)]
)
def test_balanced_counts_rows_by_their_weights_as_scikit_learn_does(own):
    present = np.unique(Y[own > 0])
    used = own > 0
    expected = compute_class_weight('balanced', classes=present, y=Y[used], sample_weight=own[used])
    got = example_weights(Y, NUMBERS, 'balanced', own)
    by_hand = own * np.append(expected, [1] * (3 - len(present)))[np.searchsorted(present, Y)]
    np.testing.assert_allclose(got / got.sum(), by_hand / by_hand.sum(), rtol=1e-6)
    for label in present:
        np.testing.assert_allclose(got[label == Y].sum(), got.sum() / len(present), rtol=1e-6)


@pytest.mark.parametrize('scale', [1e-310, 1e-46, 1e-40, 1e-13, 1e13, 1e39, 1e300])
@pytest.mark.parametrize('class_weights', [None, 'balanced', {0: 3.0, 2: 0.1}])
def test_a_mean_does_not_depend_on_the_scale_of_its_weights(scale, class_weights):
    own = np.random.default_rng(1).uniform(0, 2, 200)
    expected = example_weights(Y, NUMBERS, class_weights, own).astype(np.float64)
    got = example_weights(Y, NUMBERS, class_weights, own * scale).astype(np.float64)
    np.testing.assert_allclose(got / got.sum(), expected / expected.sum(), rtol=2e-7)
    assert 1e-12 < got.max() < 1e13


@pytest.mark.parametrize('scale', [1e-40, 1e39])
def test_class_weights_have_no_scale_either(scale):
    weights = {0: scale, 1: 2 * scale, 2: 3 * scale}
    got = example_weights(Y, NUMBERS, weights).astype(np.float64)
    np.testing.assert_allclose(got / got.sum(), (Y + 1) / (Y + 1).sum(), rtol=1e-6)
    both = example_weights(Y, NUMBERS, weights, np.full(200, scale)).astype(np.float64)
    np.testing.assert_allclose(both / both.sum(), (Y + 1) / (Y + 1).sum(), rtol=1e-6)


def test_very_different_weights_are_kept_side_by_side():
    own = np.where(np.arange(200) % 2, 1.0, 1e-40)
    got = example_weights(Y, NUMBERS, None, own).astype(np.float64)
    np.testing.assert_allclose(got[0] / got[1], 1e-40, rtol=1e-6)
    assert got[0] > np.finfo(np.float32).tiny


def test_usual_weights_are_passed_on_as_they_are():
    own = np.random.default_rng(1).uniform(0, 2, 200) * 10.0 ** (np.arange(200) % 20 - 10)
    assert (example_weights(Y, NUMBERS, None, own) == own.astype(np.float32)).all()


def test_labels_go_the_way_of_the_targets():
    y = ['cat', 'dog', 'bird', 'cat']
    got = example_weights(encode_targets(y, TEXT), TEXT, {'cat': 3})
    assert got.tolist() == [3, 1, 1, 3]


def test_both_multiply_and_none_is_none():
    own = np.linspace(0, 2, 200)
    got = example_weights(Y, NUMBERS, {1: 3.0}, own)
    np.testing.assert_allclose(got, own * np.where(Y == 1, 3, 1), rtol=1e-6)
    assert example_weights(Y, NUMBERS) is None
    regression = Task('regression', None, 1)
    assert example_weights(own, regression, None, own[:, None]).shape == (200,)


ONES = np.ones(200)


@pytest.mark.parametrize(
    ('task', 'class_weights', 'sample_weight', 'says'),
    [
        (TEXT, {'cats': 2}, None, "class_weights: got the label 'cats', .* Did you mean 'cat'"),
        (NUMBERS, {'1': 2}, None, "class_weights: got the label '1', expected one of 0, 1, 2"),
        (NUMBERS, {3: 2}, None, 'class_weights: got the label 3'),
        (NUMBERS, {1: -2}, None, r'class_weights\[1\]: got -2, expected a finite number'),
        (NUMBERS, {1: np.nan}, None, r'class_weights\[1\]: got nan'),
        (NUMBERS, {1: 'x'}, None, r"class_weights\[1\]: got 'x'"),
        (NUMBERS, {0: 0, 1: 0, 2: 0}, None, 'class_weights: got weight 0 for every row'),
        (NUMBERS, 'balance', None, "class_weights: got 'balance', expected 'balanced' or a dict"),
        (NUMBERS, [1, 2, 3], None, r'class_weights: got \[1, 2, 3\], expected .*\{0: 2.0\}'),
        (Task('regression', None, 1), {0: 1}, None, 'class_weights: got them for regression'),
        (Task('multilabel', (0, 1), 2, (2,)), 'balanced', None, 'Pass sample_weight'),
        (NUMBERS, None, ONES[:5], r'sample_weight: got shape \(5,\), expected \(200,\)'),
        (NUMBERS, None, ONES * np.nan, 'sample_weight: got 200 NaN'),
        (NUMBERS, None, np.where(np.arange(200) == 7, -1, 1), 'sample_weight: got -1 at row 7'),
        (NUMBERS, None, ONES * 0, 'sample_weight: got weight 0 for every row'),
        (NUMBERS, None, ['a'] * 200, 'sample_weight: got dtype <U1'),
        (NUMBERS, {0: 0}, (Y == 0), 'class_weights, sample_weight: got weight 0'),
    ],
)
def test_weights_that_can_not_be_are_named(task, class_weights, sample_weight, says):
    with pytest.raises(DataError, match=says):
        example_weights(Y, task, class_weights, sample_weight)


def test_rows_that_are_all_left_out():
    with pytest.raises(DataError, match='weight 0 for every row to train on'):
        example_weights(Y, NUMBERS, None, np.arange(200) >= 100, rows=np.arange(100))
