"""Every metric equals scikit-learn's, and warns where scikit-learn warns."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

from thinkml.errors import ConfigError, ThinkMLWarning
from thinkml.evaluation.metrics import (
    METRICS,
    check_fit,
    check_metrics,
    class_counts,
    compute_metrics,
    confusion_matrix,
    default_metrics,
    metrics_for,
    r2,
)
from thinkml.evaluation.ranking import precision_recall_curve, roc_curve

CLASSES = 4
KINDS = ('binary', 'multiclass', 'multilabel', 'regression')
VARIANTS = (
    'plain',
    'ties',
    'imbalanced',
    'perfect',
    'missing',
    'never_predicted',
    'one_class',
    'single',
)


def make_case(kind, variant, seed=0):
    """Encoded labels, encoded predictions, probabilities."""
    rng = np.random.default_rng(seed)
    n = 1 if variant == 'single' else 300
    if kind == 'regression':
        return make_regression_case(rng, variant, n)
    k = 2 if kind == 'binary' else CLASSES
    if kind == 'multilabel':
        shares = np.array([0.02, 0.1, 0.3, 0.5]) if variant == 'imbalanced' else 0.4
        labels = (rng.random((n, k)) < shares).astype(np.float32)
        probabilities = 1 / (1 + np.exp(-(2 * labels - 1) - rng.normal(size=(n, k))))
        if variant in ('missing', 'one_class'):
            labels[:, -1] = 0 if variant == 'missing' else 1
        if variant == 'never_predicted':
            probabilities[:, 1] *= 0.4
    else:
        shares = np.geomspace(1, 50, k) if variant == 'imbalanced' else np.ones(k)
        labels = rng.choice(k, n, p=shares / shares.sum()).astype(np.int32)
        if variant == 'missing':
            labels[labels == k - 1] = 0
        if variant == 'one_class':
            labels[:] = k - 1
        scores = np.exp(1.5 * np.eye(k)[labels] + rng.normal(size=(n, k)))
        if variant == 'never_predicted':
            scores[:, -1] = 1e-3
            labels[labels == 1] = 0
        probabilities = scores / scores.sum(axis=1, keepdims=True)
    if variant == 'perfect':
        probabilities = labels.copy() if kind == 'multilabel' else np.eye(k)[labels]
    if variant == 'ties':
        probabilities = (np.round(probabilities * 4) + 0.3) / 5
        if kind != 'multilabel':
            probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities = probabilities.astype(np.float32)
    if kind == 'multilabel':
        return labels, (probabilities > 0.5).astype(np.float32), probabilities
    return labels, probabilities.argmax(axis=1).astype(np.int32), probabilities


def make_regression_case(rng, variant, n):
    shape = (n, 3) if variant in ('plain', 'imbalanced', 'missing') else (n,)
    targets = rng.normal(size=shape) * 50 + 2000
    if variant in ('missing', 'one_class'):
        targets[..., -1] = targets.flat[0]
    if variant == 'never_predicted':
        targets[:] = 7
    exact = variant == 'perfect'
    predictions = targets if exact else targets + rng.normal(size=shape) * 20
    return targets, predictions.astype(np.float64 if exact else np.float32), None


def reference(name, labels, predictions, probabilities, kind):
    """What scikit-learn says."""
    mean = {'average': 'binary' if kind == 'binary' else 'macro'}
    match name:
        case 'accuracy':
            return sk.accuracy_score(labels, predictions)
        case 'balanced_accuracy':
            if kind == 'multilabel':
                pairs = zip(labels.T, predictions.T, strict=True)
                return np.mean([sk.balanced_accuracy_score(*pair) for pair in pairs])
            return sk.balanced_accuracy_score(labels, predictions)
        case 'precision':
            return sk.precision_score(labels, predictions, **mean)
        case 'recall':
            return sk.recall_score(labels, predictions, **mean)
        case 'f1':
            return sk.f1_score(labels, predictions, **mean)
        case 'roc_auc' | 'average_precision':
            if kind == 'binary':
                labels, probabilities = labels == 1, probabilities[:, 1]
            elif kind == 'multiclass':
                labels = np.eye(CLASSES, dtype=int)[labels]
            score = sk.roc_auc_score if name == 'roc_auc' else sk.average_precision_score
            return score(labels, probabilities)
        case 'log_loss':
            if kind == 'multilabel':
                pairs = zip(labels.T, probabilities.T, strict=True)
                return np.mean([sk.log_loss(*pair, labels=[0, 1]) for pair in pairs])
            return sk.log_loss(labels, probabilities, labels=range(probabilities.shape[1]))
        case 'mse':
            return sk.mean_squared_error(labels, predictions)
        case 'rmse':
            return sk.root_mean_squared_error(labels, predictions)
        case 'mae':
            return sk.mean_absolute_error(labels, predictions)
        case 'r2':
            return sk.r2_score(labels, predictions)


# What scikit-learn issues where a value is undefined; it warns of other things too (a single
# label in a confusion matrix), which are not about the value.
UNDEFINED = ('No positive class found', 'y_pred contains classes not in y_true')


def is_about_undefined(warning):
    return issubclass(warning.category, UndefinedMetricWarning) or str(warning.message).startswith(
        UNDEFINED
    )


CASES = [
    (kind, variant, name) for kind in KINDS for variant in VARIANTS for name in metrics_for(kind)
]


@pytest.mark.parametrize(('kind', 'variant', 'name'), CASES)
def test_equals_scikit_learn(kind, variant, name):
    labels, predictions, probabilities = make_case(kind, variant)
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter('always')
        expected = reference(name, labels, predictions, probabilities, kind)
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter('always')
        got = compute_metrics([name], labels, predictions, probabilities, kind)[name]

    assert type(got) is float
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    assert all(warning.category is ThinkMLWarning for warning in ours)
    assert all(str(warning.message).startswith(f'{name}: ') for warning in ours)
    assert bool(ours) == any(map(is_about_undefined, theirs)), [str(w.message) for w in theirs]


def test_multiclass_auc_equals_the_one_vs_rest_of_scikit_learn():
    labels, _, probabilities = make_case('multiclass', 'ties')
    expected = sk.roc_auc_score(labels, probabilities, multi_class='ovr', average='macro')
    got = METRICS['roc_auc'].function(labels, probabilities, 'multiclass')
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_order_of_rows_changes_nothing(kind):
    labels, predictions, probabilities = make_case(kind, 'ties')
    order = np.random.default_rng(1).permutation(len(labels))
    names = metrics_for(kind)
    shuffled = compute_metrics(
        names,
        labels[order],
        predictions[order],
        None if probabilities is None else probabilities[order],
        kind,
    )
    expected = compute_metrics(names, labels, predictions, probabilities, kind)
    assert shuffled == pytest.approx(expected, rel=1e-12)


def test_binary_with_many_rows_of_few_scores():
    rng = np.random.default_rng(0)
    labels = (rng.random(200_000) < 0.01).astype(np.int32)
    positive = np.clip(rng.normal(0.3 + 0.2 * labels, 0.1), 0, 1).round(3).astype(np.float32)
    probabilities = np.stack([1 - positive, positive], axis=1)
    for name in ('roc_auc', 'average_precision', 'log_loss'):
        got = METRICS[name].function(labels, probabilities, 'binary')
        expected = reference(name, labels, None, probabilities, 'binary')
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('variant', ['plain', 'ties'])
def test_curves_equal_scikit_learn(variant):
    labels, _, probabilities = make_case('binary', variant)
    positive, scores = labels == 1, probabilities[:, 1]

    expected = sk.roc_curve(positive, scores, drop_intermediate=False)
    for ours, theirs in zip(roc_curve(positive, scores), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)

    precision, recall, thresholds = sk.precision_recall_curve(positive, scores)
    got = precision_recall_curve(positive, scores)
    np.testing.assert_allclose(got[0], precision[::-1], rtol=1e-7)
    np.testing.assert_allclose(got[1], recall[::-1], rtol=1e-7)
    np.testing.assert_array_equal(got[2][1:], thresholds[::-1])


@pytest.mark.parametrize('variant', ['plain', 'missing', 'single'])
def test_confusion_matrix_equals_scikit_learn(variant):
    labels, predictions, _ = make_case('multiclass', variant)
    expected = sk.confusion_matrix(labels, predictions, labels=range(CLASSES))
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, CLASSES), expected)

    labels, predictions, _ = make_case('multilabel', variant)
    expected = sk.multilabel_confusion_matrix(labels, predictions)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, CLASSES), expected)


def test_class_counts_agree_with_the_confusion_matrix():
    labels, predictions, _ = make_case('multiclass', 'imbalanced')
    matrix = confusion_matrix(labels, predictions, CLASSES)
    counts = class_counts(labels, predictions, CLASSES)
    np.testing.assert_array_equal(counts.hits, np.diag(matrix))
    np.testing.assert_array_equal(counts.predicted, matrix.sum(axis=0))
    np.testing.assert_array_equal(counts.actual, matrix.sum(axis=1))


def test_probabilities_of_zero_have_a_finite_log_loss():
    labels = np.array([0, 1], np.int32)
    probabilities = np.array([[0, 1], [1, 0]], np.float32)
    expected = -np.log(np.finfo(np.float32).eps)
    got = METRICS['log_loss'].function(labels, probabilities, 'binary')
    assert got == pytest.approx(expected, rel=1e-6)


def test_r2_of_a_constant_target():
    constant = np.full(5, 3.0)
    assert r2(constant, constant) == 1.0
    assert r2(constant, constant + 1) == 0.0


def test_warnings_say_how_many_classes():
    labels, predictions, _ = make_case('multiclass', 'never_predicted')
    message = 'recall: no examples of 1 of 4 classes; set to 0 there.'
    with pytest.warns(ThinkMLWarning) as caught:
        METRICS['recall'].function(labels, predictions, 'multiclass')
    assert [str(warning.message) for warning in caught] == [message]


def test_defaults():
    classification = ['accuracy', 'precision', 'recall', 'f1', 'roc_auc', 'log_loss']
    for kind in ('binary', 'multiclass', 'multilabel'):
        assert default_metrics(kind) == classification
    assert default_metrics('regression') == ['rmse', 'mae', 'r2']


@pytest.mark.parametrize(
    ('metrics', 'kind', 'message'),
    [
        (['acuracy'], None, "Did you mean 'accuracy'"),
        (['f1', 'auc'], None, "metrics: got 'auc'.*Did you mean 'roc_auc'"),
        (['acuracy', 'recal'], None, "(?s)'acuracy'.*'recal'"),
        ('f1', None, r"metrics: got the string 'f1', expected a list: \['f1'\]"),
        (['rmse'], 'binary', "metrics: got 'rmse', but the task is binary; expected .*accuracy"),
        (['mae', 'f1'], 'regression', "got 'f1', but the task is regression; expected .*rmse"),
        ([3], None, 'metrics: got 3'),
    ],
)
def test_metrics_that_cannot_be_computed(metrics, kind, message):
    with pytest.raises(ConfigError, match=message):
        names = check_metrics(metrics)
        check_fit(names, kind)
