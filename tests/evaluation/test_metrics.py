"""Every metric equals scikit-learn's, and warns where scikit-learn warns."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.exceptions import UndefinedMetricWarning

from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import confusion_matrix, tally
from thinkml.evaluation.metrics.registry import (
    METRICS,
    check_fit,
    check_metrics,
    default_metrics,
    get_metric,
    metrics_for,
    ranking,
)

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
    'weightless',
)
NUMBERED = {
    'multiclass': ('top_2_accuracy', 'top_3_accuracy'),
    'regression': ('pinball_0.1', 'pinball_.75'),
}


def make_case(kind, variant, *, weighted=False, seed=0, n=300):
    rng = np.random.default_rng(seed)
    n = 1 if variant == 'single' else n
    weight = rng.integers(1, 4, n) * 0.25 if weighted else None
    if kind == 'regression':
        labels, predictions = make_regression_case(rng, variant, n)
        targets = 1 if labels.ndim == 1 else labels.shape[1]
        if weighted and variant == 'weightless':
            weight[:] = np.arange(n) == 7  # one row alone
        return EvaluationData(kind, targets, labels, predictions, weight=weight)
    k = 2 if kind == 'binary' else CLASSES
    if kind == 'multilabel':
        frequencies = np.array([0.02, 0.1, 0.3, 0.5]) if variant == 'imbalanced' else 0.4
        labels = (rng.random((n, k)) < frequencies).astype(np.float32)
        probabilities = 1 / (1 + np.exp(-(2 * labels - 1) - rng.normal(size=(n, k))))
        if variant in ('missing', 'one_class'):
            labels[:, -1] = 0 if variant == 'missing' else 1
        if variant == 'never_predicted':
            probabilities[:, 1] *= 0.4
    else:
        frequencies = np.geomspace(1, 50, k) if variant == 'imbalanced' else np.ones(k)
        labels = rng.choice(k, n, p=frequencies / frequencies.sum()).astype(np.int32)
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
        predictions = (probabilities > 0.5).astype(np.float32)
    else:
        predictions = probabilities.argmax(axis=1).astype(np.int32)
    if weighted and variant == 'weightless':  # all rows with the last class, true or predicted
        last = (labels[:, -1] == 1) if kind == 'multilabel' else labels == k - 1
        weight[last | (predictions == k - 1 if kind != 'multilabel' else last)] = 0
    return EvaluationData(kind, k, labels, predictions, probabilities, weight=weight)


def make_regression_case(rng, variant, n):
    shape = (n, 3) if variant in ('plain', 'imbalanced', 'missing') else (n,)
    targets = rng.normal(size=shape) * 50 + 2000
    if variant in ('missing', 'one_class'):
        targets[..., -1] = 2048  # its mean is exact; otherwise scikit-learn's R2 is noise
    if variant == 'never_predicted':
        targets[:] = 7
    exact = variant == 'perfect'
    predictions = targets if exact else targets + rng.normal(size=shape) * 20
    return targets, predictions.astype(np.float64 if exact else np.float32)


# --- scikit-learn's values --------------------------------------------------------------------


def reference(name, case):
    """Returns scikit-learn's value, or that from its confusion matrices if it has no function."""
    if name in ('top_k_accuracy', 'top_2_accuracy', 'top_3_accuracy'):
        k = {'k': 5}.get(name[4]) or int(name[4])
        ranked = np.argsort(-case.probabilities, axis=1, kind='stable')[:, :k]
        return np.average((ranked == case.labels[:, None]).any(axis=1), weights=case.weight)
    if case.kind == 'regression':
        return reference_of_numbers(name, case)
    if name in ('roc_auc', 'roc_auc_ovo', 'average_precision'):
        return reference_of_ranking(name, case)
    if name in ('perplexity', 'bits_per_token'):
        loss = reference_of_probabilities('log_loss', case)
        return np.exp(loss) if name == 'perplexity' else loss / np.log(2)
    if name in ('log_loss', 'brier', 'ece', 'ece_adaptive') or name.startswith('calibration'):
        return reference_of_probabilities(name, case)
    return reference_of_predictions(name, case)


def reference_of_predictions(name, case):
    name = {'mean_iou': 'iou_macro', 'dice': 'f1', 'exact_match': 'accuracy'}.get(name, name)
    labels, predictions, weight = case.labels, case.predictions, {'sample_weight': case.weight}
    fraction, _, how = name.rpartition('_') if name.count('_') else (name, '', '')
    how = how or ('binary' if case.kind == 'binary' else 'macro')
    match fraction:
        case 'accuracy':
            return sk.accuracy_score(labels, predictions, **weight)
        case 'balanced':
            if case.kind == 'multilabel':
                pairs = zip(labels.T, predictions.T, strict=True)
                return np.mean([sk.balanced_accuracy_score(*pair, **weight) for pair in pairs])
            return sk.balanced_accuracy_score(labels, predictions, **weight)
        case 'mcc':
            return sk.matthews_corrcoef(labels, predictions, **weight)
        case 'kappa':
            return sk.cohen_kappa_score(labels, predictions, **weight)
        case 'precision' | 'recall' | 'f1' | 'iou':
            score = getattr(sk, 'jaccard_score' if fraction == 'iou' else f'{fraction}_score')
            return score(labels, predictions, average=how, **weight)
    return reference_of_negatives(fraction, how, case)


def reference_of_negatives(fraction, how, case):
    present = None
    if case.kind != 'multilabel':
        present = np.union1d(case.labels, case.predictions)
        present = np.array([0, 1]) if how == 'binary' else present
    cells = sk.multilabel_confusion_matrix(
        case.labels, case.predictions, labels=present, sample_weight=case.weight
    )
    tn, fp, fn = cells[:, 0, 0], cells[:, 0, 1], cells[:, 1, 0]
    below = fp if fraction == 'specificity' else fn
    support = cells[:, 1].sum(axis=1)
    if how == 'micro':
        tn, below = tn.sum(keepdims=True), below.sum(keepdims=True)
    ratios = np.divide(tn, tn + below, out=np.zeros(len(tn)), where=tn + below > 0)
    if how == 'binary':
        return ratios[1]
    return np.average(ratios, weights=support) if how == 'weighted' else ratios.mean()


def reference_of_ranking(name, case):
    labels, scores, weight = case.labels, case.probabilities, case.weight
    if name == 'roc_auc_ovo':
        areas = []
        for a in range(CLASSES):
            for b in range(a):
                rows = np.isin(labels, (a, b))
                if len(np.unique(labels[rows])) < 2:
                    return np.nan
                row_weight = None if weight is None else weight[rows]
                areas += [
                    sk.roc_auc_score(labels[rows] == c, scores[rows, c], sample_weight=row_weight)
                    for c in (a, b)
                ]
        return np.mean(areas)
    if case.kind == 'binary':
        labels, scores = labels == 1, scores[:, 1]
    elif case.kind == 'multiclass':
        labels = np.eye(CLASSES, dtype=int)[labels]
    score = sk.roc_auc_score if name == 'roc_auc' else sk.average_precision_score
    return score(labels, scores, sample_weight=weight)


def columns_of(case):
    """Returns confidences and whether they were right."""
    if case.kind == 'binary':
        return [(case.probabilities[:, 1], case.labels == 1)]
    if case.kind == 'multiclass':
        return [(case.probabilities.max(axis=1), case.labels == case.predictions)]
    return list(zip(case.probabilities.T, case.labels.T > 0.5, strict=True))


def reference_of_probabilities(name, case):
    labels, probabilities, weight = case.labels, case.probabilities, {'sample_weight': case.weight}
    match name:
        case 'log_loss':
            if case.kind == 'multilabel':
                pairs = zip(labels.T, probabilities.T, strict=True)
                return np.mean([sk.log_loss(*p, labels=[0, 1], **weight) for p in pairs])
            return sk.log_loss(
                labels, probabilities, labels=range(probabilities.shape[1]), **weight
            )
        case 'brier':
            if case.kind == 'multilabel':
                pairs = zip(labels.T, probabilities.T, strict=True)
                return np.mean([np.average((y - p) ** 2, weights=case.weight) for y, p in pairs])
            if case.kind == 'binary':
                return np.average((labels - probabilities[:, 1]) ** 2, weights=case.weight)
            squares = ((np.eye(CLASSES)[labels] - probabilities) ** 2).sum(axis=1)
            return np.average(squares, weights=case.weight)
        case 'ece' | 'ece_adaptive':
            return np.mean([reference_ece(name, *pair, case.weight) for pair in columns_of(case)])
    lines = [reference_line(*pair, case.weight) for pair in columns_of(case)]
    return np.mean(lines, axis=0)[int(name == 'calibration_slope')]


def reference_ece(name, confidence, right, weight):
    edges = np.linspace(0, 1, 16)
    if name == 'ece_adaptive':
        edges = np.percentile(confidence, edges * 100)
    # as scikit-learn's calibration_curve bins
    bins = np.searchsorted(edges[1:-1], confidence)
    weight = np.ones(len(right)) if weight is None else weight
    total = 0
    for index in np.unique(bins):
        rows = bins == index
        total += abs((weight * (confidence - right.astype(float)))[rows].sum())
    return total / weight.sum()


def reference_line(confidence, right, weight):
    """Returns a logistic regression fitted by a general optimizer."""
    eps = np.finfo(np.float32).eps
    x = scipy.special.logit(np.clip(confidence, eps, 1 - eps).astype(float))
    y, weight = right * 1.0, np.ones(len(right)) if weight is None else weight

    def loss(line):
        z = line[0] + line[1] * x
        return weight @ (np.logaddexp(0, z) - y * z)

    return scipy.optimize.minimize(loss, [0.0, 1.0], tol=1e-12).x


def reference_of_numbers(name, case):
    labels, predictions, weight = case.labels, case.predictions, {'sample_weight': case.weight}
    if name.startswith('pinball'):
        alpha = float(name.split('_')[1])
        return sk.mean_pinball_loss(labels, predictions, alpha=alpha, **weight)
    if name == 'max_error':
        return np.mean(np.abs(labels - predictions)[case.weights > 0].max(axis=0))
    functions = {
        'mse': sk.mean_squared_error,
        'rmse': sk.root_mean_squared_error,
        'mae': sk.mean_absolute_error,
        'r2': sk.r2_score,
        'explained_variance': sk.explained_variance_score,
        'median_absolute_error': sk.median_absolute_error,
        'mape': sk.mean_absolute_percentage_error,
    }
    if name in ('r2', 'explained_variance') and (case.weights > 0).sum() == 1:
        # scikit-learn returns 0 or 1 for a row among others with weight 0, without a warning.
        warnings.warn('one row', UndefinedMetricWarning, stacklevel=1)
        return np.nan
    return functions[name](labels, predictions, **weight)


# The warning of scikit-learn for an undefined value; its other warnings (a single label in a
# confusion matrix) are not about the value.
UNDEFINED = ('No positive class found', 'y_pred contains classes not in y_true')


def is_about_undefined(warning):
    return issubclass(warning.category, UndefinedMetricWarning) or str(warning.message).startswith(
        UNDEFINED
    )


def names_of(kind):
    left_out = ('interval_coverage', 'interval_width', 'psnr', 'ssim')
    return [*(n for n in METRICS[kind] if n not in left_out), *NUMBERED.get(kind, ())]


@pytest.mark.parametrize('weighted', [False, True], ids=['plain', 'weighted'])
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('kind', KINDS)
def test_every_metric_equals_scikit_learn(kind, variant, weighted):
    case = make_case(kind, variant, weighted=weighted)
    for name in names_of(kind):
        metric = get_metric(name, kind)
        got = metric.of(case)
        if name.startswith('calibration') and np.isnan(got):
            assert metric.undefined(case.part(metric.part), case.weights).startswith('NaN, since')
            continue
        with warnings.catch_warnings(record=True) as theirs:
            warnings.simplefilter('always')
            expected = reference(name, case)
        loose = name.startswith('calibration') and 1e-3
        assert type(got) is float
        np.testing.assert_allclose(
            got, expected, rtol=loose or 1e-6, atol=loose or 1e-7, err_msg=name
        )
        undefined = metric.undefined and metric.undefined(case.part(metric.part), case.weights)
        if is_told_by_scikit_learn(name):
            assert bool(undefined) == any(map(is_about_undefined, theirs)), (name, undefined)


def is_told_by_scikit_learn(name):
    ours = ('specificity', 'npv', 'calibration', 'kappa', 'roc_auc_ovo')
    return not name.startswith(ours) and not name.endswith('_micro')


def test_calibration_bins_are_those_of_scikit_learn():
    case = make_case('binary', 'plain')
    truth, mean = calibration_curve(case.labels, case.probabilities[:, 1], n_bins=15)
    bins = np.searchsorted(np.linspace(0, 1, 16)[1:-1], case.probabilities[:, 1])
    count = np.unique(bins, return_counts=True)[1]
    expected = np.average(abs(truth - mean), weights=count)
    assert METRICS['binary']['ece'].of(case) == pytest.approx(expected, rel=1e-6)


def test_multiclass_auc_equals_both_kinds_of_scikit_learn():
    case = make_case('multiclass', 'ties')
    for name, how in {'roc_auc': 'ovr', 'roc_auc_ovo': 'ovo'}.items():
        expected = sk.roc_auc_score(case.labels, case.probabilities, multi_class=how)
        assert METRICS['multiclass'][name].of(case) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_order_of_rows_changes_nothing(kind):
    case = make_case(kind, 'ties', weighted=True)
    shuffled = case.take(np.random.default_rng(1).permutation(len(case)))
    for name in names_of(kind):
        metric = get_metric(name, kind)
        assert metric.of(shuffled) == pytest.approx(metric.of(case), rel=1e-9), name


@pytest.mark.parametrize('kind', KINDS)
def test_a_weight_of_two_is_a_row_twice_and_of_zero_none(kind):
    case = make_case(kind, 'ties')
    weight = np.random.default_rng(2).integers(0, 3, len(case)).astype(float)
    weighed = dataclasses.replace(case, weight=weight)
    repeated = case.take(np.repeat(np.arange(len(case)), weight.astype(int)))
    for name in names_of(kind):
        metric = get_metric(name, kind)
        if name == 'ece_adaptive':  # its bins are quantiles of all rows
            continue
        assert metric.of(weighed) == pytest.approx(metric.of(repeated), rel=1e-6), name


def check_device(kind, names):
    case = make_case(kind, 'ties', weighted=True)
    metrics = {name: get_metric(name, kind) for name in names}
    parts = {name: case.part(metric.part) for name, metric in metrics.items()}

    @jax.jit
    def compute(parts, weight):
        return {name: metric.value(parts[name], weight) for name, metric in metrics.items()}

    got = compute(jax.tree.map(jax.numpy.asarray, parts), case.weights.astype(np.float32))
    for name, metric in metrics.items():
        assert float(got[name]) == pytest.approx(metric.of(case), rel=2e-4, abs=1e-5), name


@pytest.mark.parametrize('kind', KINDS)
def test_the_device_computes_the_same(kind):
    """The function that the bootstrap compiles has the same value as on the host."""
    names = names_of(kind)
    if kind != 'regression':  # XLA takes seconds for the lines
        names = [name for name in names if not name.startswith('calibration')]
        names += ['calibration_slope'] if kind == 'binary' else []
    check_device(kind, names)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['binary', 'multilabel'])
def test_the_device_fits_the_same_lines(kind):
    check_device(kind, [name for name in names_of(kind) if name.startswith('calibration')])


@pytest.mark.parametrize('num_rows', [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_very_many_rows(dtype, num_rows):
    rng = np.random.default_rng(0)
    labels = (rng.random(num_rows) < 0.01).astype(np.int32)
    positive = np.clip(rng.normal(0.3 + 0.2 * labels, 0.1), 0, 1).round(3).astype(dtype)
    probabilities = np.stack([1 - positive, positive], axis=1)
    case = EvaluationData(
        'binary', 2, labels, probabilities.argmax(axis=1).astype(np.int32), probabilities
    )
    for name in ('accuracy', 'f1', 'mcc', 'roc_auc', 'average_precision', 'log_loss', 'brier'):
        got, expected = METRICS['binary'][name].of(case), reference(name, case)
        np.testing.assert_allclose(got, expected, rtol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_every_metric_of_very_many_rows(kind):
    case = make_case(kind, 'ties', weighted=True, n=200_000)
    for name in names_of(kind):
        if not name.startswith('calibration'):  # the reference is an optimizer, which is too slow
            got = get_metric(name, kind).of(case)
            np.testing.assert_allclose(got, reference(name, case), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('num_classes', [3, 300])
def test_many_classes(num_classes):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(num_classes, size=(2, 2000))
    case = EvaluationData(
        'multiclass', num_classes, labels, np.where(labels % 2, labels, predictions)
    )
    expected = sk.confusion_matrix(labels, case.predictions, labels=range(num_classes))
    np.testing.assert_array_equal(confusion_matrix(case), expected)
    for name in ('f1', 'precision_weighted', 'recall_micro', 'mcc', 'kappa', 'balanced_accuracy'):
        got = METRICS['multiclass'][name].of(case)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert got == pytest.approx(reference(name, case), rel=1e-9), name


def test_mcc_of_one_predicted_class_is_0_for_all_weights():
    rng = np.random.default_rng(0)
    for _ in range(50):  # the sum of the predicted frequencies rounds to below, at or above 1
        labels, weight = rng.integers(CLASSES, size=30), rng.random(30)
        case = EvaluationData('multiclass', CLASSES, labels, np.zeros(30, int), weight=weight)
        np.testing.assert_allclose(METRICS['multiclass']['mcc'].of(case), 0, atol=1e-7)


def test_scores_below_zero_are_ranked_too():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(2, size=500), rng.normal(size=500).astype(np.float32).round(1)
    case = EvaluationData('binary', 2, labels, labels, np.stack([-scores, scores], axis=1))
    assert METRICS['binary']['roc_auc'].of(case) == pytest.approx(sk.roc_auc_score(labels, scores))


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('variant', ['plain', 'missing', 'single'])
def test_confusion_matrix_equals_scikit_learn(variant, weighted):
    case = make_case('multiclass', variant, weighted=weighted)
    weight = {'sample_weight': case.weight}
    expected = sk.confusion_matrix(case.labels, case.predictions, labels=range(CLASSES), **weight)
    np.testing.assert_array_equal(confusion_matrix(case), expected)

    case = make_case('multilabel', variant, weighted=weighted)
    expected = sk.multilabel_confusion_matrix(case.labels, case.predictions, **weight)
    np.testing.assert_array_equal(confusion_matrix(case), expected)


def interval_case(bounds):
    y = np.array([1.0, 2.0, 3.0, 4.0])
    return EvaluationData('regression', 2, np.stack([y, y], 1), np.array(bounds))


def test_interval_metrics():
    case = interval_case([[0.0, 2.0], [2.0, 3.0], [3.5, 5.0], [1.0, 3.0]])
    values = {n: get_metric(n, 'regression').of(case) for n in (
        'interval_coverage', 'interval_width', 'interval_score_0.8')}  # fmt: skip
    # outside by 0, 0, 0.5 and 1, each 2 / 0.2 = 10 times
    expected = {
        'interval_coverage': 0.5, 'interval_width': 1.625, 'interval_score_0.8': 1.625 + 15 / 4
    }  # fmt: skip
    assert values == pytest.approx(expected)


def test_interval_metrics_need_bounds():
    y = np.arange(4.0)
    for labels, predictions in ((y, y), (np.stack([y, -y], 1), np.zeros((4, 2)))):
        with pytest.raises(ConfigError, match='the lower bound first and the upper bound last'):
            METRICS['regression']['interval_width'].of(
                EvaluationData('regression', 1, labels, predictions)
            )


def test_what_is_undefined_is_said_with_how_many():
    case = make_case('multiclass', 'never_predicted')
    recall = METRICS['multiclass']['recall']
    message = recall.undefined(case.part(recall.part), case.weights)
    assert message == 'no examples of 1 of 4 classes; set to 0 there.'


def test_defaults():
    classification = ['accuracy', 'precision', 'recall', 'f1', 'roc_auc', 'log_loss']
    for kind in ('binary', 'multiclass', 'multilabel'):
        assert default_metrics(kind) == classification
    assert default_metrics('regression') == ['rmse', 'mae', 'r2']
    assert 'mcc' in metrics_for('binary') and 'f1_macro' not in metrics_for('binary')


@pytest.mark.parametrize(
    ('metrics', 'kind', 'message'),
    [
        (['acuracy'], None, "Did you mean 'accuracy'"),
        (['f1', 'auc'], None, "metrics: got 'auc'.*Did you mean 'roc_auc'"),
        (['acuracy', 'recal'], None, "(?s)'acuracy'.*'recal'"),
        ('f1', None, r"metrics: got the string 'f1', expected a list: \['f1'\]"),
        (['rmse'], 'binary', "metrics: got 'rmse', but the task is binary; expected .*accuracy"),
        (['mae', 'f1'], 'regression', "got 'f1', but the task is regression; expected .*rmse"),
        (['top_3_accuracy'], 'binary', "got 'top_3_accuracy', but the task is binary"),
        ([3], None, 'metrics: got 3'),
    ],
)
def test_metrics_that_cannot_be_computed(metrics, kind, message):
    with pytest.raises(ConfigError, match=message):
        names = check_metrics(metrics)
        check_fit(names, kind)


def test_counts_on_a_device_go_on_where_float32_has_no_next_whole_number():
    num_rows = 2**24 + 2**20
    ones, group = jax.numpy.ones(num_rows), jax.numpy.zeros(num_rows, int)
    assert float(tally(group, ones, 2)[0]) == num_rows


# --- sorting on a device ----------------------------------------------------------------------


def test_rows_are_ranked_alike_on_the_host_and_on_a_device():
    scores = np.round(np.random.default_rng(0).normal(size=5000), 2).astype(np.float32)
    scores[:3] = 0, -0.0, 0
    host = np.empty(len(scores), np.int32)
    ranking._write_packed_order(scores, host)
    np.testing.assert_array_equal(host, np.argsort(-scores, kind='stable'))
    np.testing.assert_array_equal(host, ranking._falling_order(scores))


@pytest.mark.parametrize('kind', ['binary', 'multiclass', 'multilabel'])
def test_what_a_device_has_sorted_gives_the_same_areas(kind, monkeypatch):
    case = make_case(kind, 'ties', weighted=True)
    names = [name for name in names_of(kind) if name.startswith(('roc_auc', 'average_pre'))]
    expected = {name: get_metric(name, kind).of(case) for name in names}
    sorted_there = []
    falling = ranking._falling_order
    monkeypatch.setattr(ranking, '_falling_order', lambda s: sorted_there.append(s) or falling(s))
    monkeypatch.setattr(ranking, 'target_platform', lambda: 'gpu')
    again = case.take(np.s_[:])
    assert {name: get_metric(name, kind).of(again) for name in names} == expected
    assert len(sorted_there) == (1 if kind == 'binary' else CLASSES)


def test_columns_ranked_in_turn_have_the_value_of_all_at_once(monkeypatch):
    data = make_case('multiclass', 'ties')
    metric = get_metric('roc_auc', 'multiclass')
    part, weight = data.part(metric.part), jax.numpy.ones(len(data))
    together = metric.value(part, weight)
    monkeypatch.setattr(ranking, '_BATCH_NUMBERS', 1)
    assert float(together) == pytest.approx(float(metric.value(part, weight)), rel=1e-6)
    assert float(together) == pytest.approx(metric.of(data), rel=1e-5)
