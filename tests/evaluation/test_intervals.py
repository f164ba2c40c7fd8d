"""Confidence intervals: their coverage, the draws of rows, and the comparison of two models."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from thinkml.errors import ConfigError, DataError
from thinkml.evaluation import ModelEvaluator, compare
from thinkml.evaluation.bootstrap import (
    Resampling,
    make_units,
    percentiles,
    resample_values,
    shared_parts,
)
from thinkml.evaluation.confidence_intervals import metric_intervals, wilson
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.registry import get_metric

from .models import Shifted, known, logits_and_labels


def binary_case(n, seed, shift=1.2):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int32)
    positive = 1 / (1 + np.exp(-rng.normal(shift * (labels - 0.5), 1)))
    probabilities = np.stack([1 - positive, positive], axis=1).astype(np.float32)
    return EvaluationData(
        'binary', 2, labels, probabilities.argmax(axis=1).astype(np.int32), probabilities
    )


def metrics_of(*names, kind='binary'):
    return {name: get_metric(name, kind) for name in names}


def draw(resampling, num_rows):
    """Returns how often each row is drawn, ``(num_resamples, rows)``."""
    counts = lambda parts, weight: weight  # noqa: E731
    return resample_values((counts,), (), None, resampling, num_rows)[0]


# --- drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize('num_rows', [1, 7, 500, 70_000])
def test_each_resample_draws_as_many_rows_as_there_are(num_rows):
    counts = draw(Resampling(num_resamples=20), num_rows)
    assert counts.shape == (20, num_rows)
    assert (counts.sum(axis=1) == num_rows).all()
    if num_rows > 7:
        assert len(np.unique(counts, axis=0)) == 20


def test_rows_are_drawn_evenly():
    """Counts of a row are Poisson-like: their mean and variance over resamples are near 1."""
    counts = draw(Resampling(num_resamples=4000), 100)
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.08
    expected = scipy.stats.binom(100, 0.01).pmf(np.arange(5))
    frequencies = [(counts == k).mean() for k in range(5)]
    np.testing.assert_allclose(frequencies, expected, atol=0.005)


def test_groups_are_drawn_whole():
    groups = np.repeat(np.arange(25), 4)
    counts = draw(Resampling(num_resamples=50, groups=groups), 100).reshape(50, 25, 4)
    assert (counts == counts[:, :, :1]).all()
    assert (counts[:, :, 0].sum(axis=1) == 25).all()


def test_strata_keep_their_size():
    strata = np.random.default_rng(0).integers(3, size=90)
    counts = draw(Resampling(num_resamples=50, strata=strata), 90)
    for stratum in range(3):
        size = (strata == stratum).sum()
        assert (counts[:, strata == stratum].sum(axis=1) == size).all()


def test_groups_within_strata():
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 3))
    strata = groups % 2
    units = make_units(Resampling(groups=groups, strata=strata), 60)
    assert set(units.size) == {10}
    counts = draw(Resampling(num_resamples=10, groups=groups, strata=strata), 60)
    assert (counts[:, strata == 1].sum(axis=1) == 30).all()


def test_a_seed_gives_the_same_intervals_and_another_gives_others():
    case, metrics = binary_case(300, 0), metrics_of('f1')
    one, same, other = (
        metric_intervals(case, metrics, Resampling(seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same != other


# --- the values of resamples ------------------------------------------------------------------


def test_resampled_values_are_those_of_the_drawn_rows():
    case, settings = binary_case(200, 3), Resampling(num_resamples=8)
    metrics = metrics_of('accuracy', 'f1', 'roc_auc', 'average_precision', 'log_loss')
    values, parts = shared_parts(case, metrics)
    samples = dict(zip(metrics, resample_values(values, parts, None, settings, 200), strict=True))
    for index, counts in enumerate(draw(settings, 200)):
        rows = np.repeat(np.arange(200), counts.astype(int))
        y, p, predictions = case.labels[rows], case.probabilities[rows, 1], case.predictions[rows]
        expected = {
            'accuracy': sk.accuracy_score(y, predictions),
            'f1': sk.f1_score(y, predictions),
            'roc_auc': sk.roc_auc_score(y, p),
            'average_precision': sk.average_precision_score(y, p),
            'log_loss': sk.log_loss(y, p),
        }
        got = {name: sample[index] for name, sample in samples.items()}
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ('num_loops', 'atol'), [(300, 0.02), pytest.param(1500, 0.012, marks=pytest.mark.slow)]
)
def test_intervals_are_those_of_the_scikit_learn_loop(num_loops, atol):
    case, rng = binary_case(400, 5), np.random.default_rng(0)
    names = ('f1', 'roc_auc', 'mcc')
    found = metric_intervals(case, metrics_of(*names), Resampling(num_resamples=4000))
    loop = []
    for _ in range(num_loops):
        rows = rng.integers(400, size=400)
        y, predictions = case.labels[rows], case.predictions[rows]
        auc = sk.roc_auc_score(y, case.probabilities[rows, 1])
        loop.append((sk.f1_score(y, predictions), auc, sk.matthews_corrcoef(y, predictions)))
    expected = np.quantile(loop, [0.025, 0.975], axis=0).T
    np.testing.assert_allclose([found[name] for name in names], expected, atol=atol)


def test_wilson_equals_scipy():
    for count, total in ((0, 10), (9, 10), (10, 10), (123, 1000)):
        for confidence in (0.8, 0.95):
            expected = scipy.stats.binomtest(count, total).proportion_ci(confidence, 'wilson')
            np.testing.assert_allclose(wilson(count, total, confidence), expected, atol=1e-12)
    assert np.isnan(wilson(0, 0)).all()


def test_simple_proportions_have_wilsons_interval_and_weighted_ones_the_bootstraps():
    case, metrics = binary_case(300, 1), metrics_of('accuracy', 'recall')
    found = metric_intervals(case, metrics, Resampling())
    true_positives = (case.labels == case.predictions).sum()
    assert found['accuracy'] == pytest.approx(wilson(true_positives, 300))
    positives = case.labels == 1
    right = (case.predictions[positives] == 1).sum()
    assert found['recall'] == pytest.approx(wilson(right, positives.sum()))
    case = dataclasses.replace(case, weight=np.linspace(0.5, 1.5, 300))
    weighted = metric_intervals(case, metrics, Resampling())
    assert weighted['accuracy'] != found['accuracy']
    np.testing.assert_allclose(weighted['accuracy'], found['accuracy'], atol=0.02)


def test_undefined_resamples_are_left_out():
    samples = np.array([np.nan, 1.0, 2.0, 3.0, np.nan])
    np.testing.assert_allclose(percentiles(samples, 0.5), [1.5, 2.5])
    assert np.isnan(percentiles(np.full(3, np.nan), 0.5)).all()


def test_groups_that_agree_widen_the_interval():
    case, groups = binary_case(400, 2), np.repeat(np.arange(40), 10)
    labels = np.repeat(case.labels[::10], 10)  # ten copies of each row
    probabilities = np.repeat(case.probabilities[::10], 10, axis=0)
    case = EvaluationData(
        'binary', 2, labels, probabilities.argmax(axis=1).astype(np.int32), probabilities
    )
    widths = [
        np.diff(metric_intervals(case, metrics_of('f1'), Resampling(groups=g))['f1'])[0]
        for g in (None, groups)
    ]
    assert widths[1] > 2.5 * widths[0]  # the square root of ten, about


def perfect(kind, num_classes, rows_of_each):
    if kind == 'multilabel':
        rng = np.random.default_rng(0)
        labels = np.zeros((400, num_classes), np.float32)
        for column in labels.T:
            column[rng.choice(400, rows_of_each, replace=False)] = 1
        return EvaluationData(kind, num_classes, labels, labels, labels)
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), rows_of_each)
    return EvaluationData(
        kind, num_classes, labels, labels, np.eye(num_classes, dtype=np.float32)[labels]
    )


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel'])
def test_a_class_that_a_resample_lacks_does_not_count_in_it(kind):
    """A perfect model is perfect in every resample, however rare its classes are."""
    case = perfect(kind, 20, 2)
    names = ['roc_auc', 'average_precision', 'f1', 'precision', 'recall']
    names += ['roc_auc_ovo'] if kind == 'multiclass' else []
    found = metric_intervals(case, metrics_of(*names, kind=kind), Resampling(num_resamples=200))
    assert found == {name: (1.0, 1.0) for name in names}


@pytest.mark.parametrize('of_rare', [0.0, 1.0])
def test_intervals_over_rare_classes_contain_their_value(of_rare):
    """A resample lacks a third of the classes of one row, so that its mean is closer to the others.

    Without a correction, the interval of the recall would not contain the recall.
    """
    labels = np.append(np.arange(500) % 5, np.arange(5, 25)).astype(np.int32)
    is_right = np.append(np.arange(500) % 10 < (8 if of_rare else 9), np.full(20, of_rare > 0))
    case = EvaluationData('multiclass', 25, labels, np.where(is_right, labels, (labels + 1) % 5))
    names = ('recall', 'precision', 'f1_macro', 'balanced_accuracy', 'mean_iou')
    metrics = metrics_of(*names, kind='multiclass')
    for name, (low, high) in metric_intervals(case, metrics, Resampling()).items():
        assert 0 <= low < metrics[name].of(case) < high <= 1, name


def test_differences_over_rare_classes_lie_within_their_interval():
    labels = np.append(np.arange(500) % 5, np.arange(5, 25))
    x = np.arange(len(labels))[:, None]

    class Fixed:
        def __init__(self, predictions):
            self.predictions, self.classes_ = predictions, np.arange(25)

        def predict(self, x):
            return self.predictions[x[:, 0]]

    common = np.where(np.arange(520) % 9 == 0, (labels + 1) % 5, labels)
    evaluations = [
        ModelEvaluator().evaluate(Fixed(predictions), x, labels, metrics=['recall'])
        for predictions in (np.where(labels < 5, common, labels), labels * (labels < 5))
    ]
    found = compare(*evaluations).differences['recall']
    assert found.interval[0] < found.difference < found.interval[1]


def test_labels_of_one_row_are_not_independent():
    labels = np.repeat(np.random.default_rng(0).integers(2, size=(400, 1)), 20, axis=1)
    predictions = np.where(np.random.default_rng(1).random((400, 1)) < 0.2, 1 - labels, labels)
    case = EvaluationData('multilabel', 20, labels, predictions)
    metrics = metrics_of('precision_micro', 'precision_macro', kind='multilabel')
    micro, macro = metric_intervals(case, metrics, Resampling()).values()
    np.testing.assert_allclose(np.diff(micro), np.diff(macro), atol=1e-5)
    np.testing.assert_allclose(micro, macro, atol=0.01)


def test_data_sets_of_many_classes_share_a_program(monkeypatch):
    from thinkml.evaluation.bootstrap import _resample

    for seed in range(3):
        labels, predictions = np.random.default_rng(seed).integers(100, size=(2, 800))
        case = EvaluationData('multiclass', 100, labels, np.where(labels % 3, labels, predictions))
        metric_intervals(case, metrics_of('f1', kind='multiclass'), Resampling(num_resamples=4))
        monkeypatch.setattr(_resample, 'lower', None)  # the first one compiled it


@pytest.mark.slow
def test_95_percent_intervals_cover_the_truth_95_percent_of_the_time():
    truth_case, names = binary_case(2_000_000, 10_000), ('accuracy', 'f1', 'roc_auc')
    metrics = metrics_of(*names)
    truth = {name: metric.of(truth_case) for name, metric in metrics.items()}
    covered = dict.fromkeys(names, 0)
    simulations = 1000
    for seed in range(simulations):
        settings = Resampling(num_resamples=1000, seed=seed)
        found = metric_intervals(binary_case(500, seed), metrics, settings)
        for name, (low, high) in found.items():
            covered[name] += low <= truth[name] <= high
    coverage = {name: count / simulations for name, count in covered.items()}
    assert all(0.93 <= fraction <= 0.97 for fraction in coverage.values()), coverage


# --- in an evaluation -------------------------------------------------------------------------


def evaluated(kind='multiclass', **settings):
    logits, labels = logits_and_labels(200, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    return ModelEvaluator().evaluate(model, logits, labels, **settings)


def test_every_metric_has_an_interval_around_it():
    evaluation = evaluated(metrics=[
        'accuracy', 'balanced_accuracy', 'precision', 'f1_micro', 'mcc', 'kappa', 'specificity',
        'npv', 'roc_auc', 'roc_auc_ovo', 'average_precision', 'log_loss', 'brier', 'ece',
        'top_2_accuracy'])  # fmt: skip
    assert list(evaluation.confidence_intervals) == list(evaluation.metrics)
    for name, (low, high) in evaluation.confidence_intervals.items():
        assert low < high, name
        assert low <= evaluation[name] <= high, name
    for label, row in evaluation.per_class_intervals.items():
        for name, (low, high) in row.items():
            assert low <= evaluation.per_class[label][name] <= high


def test_no_confidence_no_intervals():
    evaluation = evaluated(confidence=None)
    assert evaluation.confidence_intervals == {} == evaluation.per_class_intervals


def test_intervals_shrink_with_the_confidence():
    wide, narrow = (evaluated(confidence=c).confidence_intervals['f1'] for c in (0.99, 0.5))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


# --- comparison -------------------------------------------------------------------------------


def pair(shift):
    logits, labels = logits_and_labels(400, 3)
    worse = logits + shift * np.random.default_rng(9).normal(size=logits.shape).astype(np.float32)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    evaluate = ModelEvaluator().evaluate
    return evaluate(model, logits, labels), evaluate(model, worse, labels)


def test_a_better_model_is_told_from_a_worse_one():
    a, b = pair(2.0)
    found = compare(a, b)
    for name, difference in found.differences.items():
        low, high = difference.interval
        assert low <= difference.difference <= high
        assert difference.p_value < 0.05, name
    assert found.mcnemar.p_value < 0.01
    right_a, right_b = (e.predictions == e.labels for e in (a, b))
    assert (found.mcnemar.only_a, found.mcnemar.only_b) == (
        (right_a & ~right_b).sum(), (right_b & ~right_a).sum())  # fmt: skip
    assert 'McNemar' in str(found) and 'accuracy' in str(found)


def test_a_model_does_not_differ_from_itself():
    a, b = pair(0.0)
    found = compare(a, b)
    for difference in found.differences.values():
        assert difference.difference == 0 and difference.interval == (0, 0)
        assert difference.p_value == 1
    assert found.mcnemar.p_value == 1


def test_pairing_narrows_the_interval_of_a_difference():
    a, b = pair(0.3)
    low, high = compare(a, b).differences['log_loss'].interval
    apart = sum(np.diff(e.confidence_intervals['log_loss'])[0] for e in (a, b))
    assert high - low < apart / 2


def test_groups_have_no_mcnemar():
    logits, labels = logits_and_labels(400, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    a, b = (
        ModelEvaluator().evaluate(model, x, labels, groups=np.arange(400) // 20)
        for x in (logits, -logits)
    )
    assert compare(a, b).mcnemar is None


def test_rows_of_other_weights_can_not_be_compared():
    logits, labels = logits_and_labels(400, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    a = ModelEvaluator().evaluate(model, logits, labels)
    b = ModelEvaluator().evaluate(model, logits, labels, sample_weight=np.arange(400))
    with pytest.raises(DataError, match='b: its rows have other weights than those of a'):
        compare(a, b)


def test_what_can_not_be_compared():
    a, _ = pair(1.0)
    other = evaluated()
    with pytest.raises(DataError, match='b: its labels are not those of a'):
        compare(a, other)
    with pytest.raises(ConfigError, match='b: got float, expected the result of evaluate'):
        compare(a, 0.5)
    with pytest.raises(ConfigError, match='a: it was evaluated with confidence=None'):
        compare(evaluated(confidence=None), other)
