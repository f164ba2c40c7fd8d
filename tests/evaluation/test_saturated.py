"""Saturated probabilities: rows are ranked by logits where probabilities round to 0 or 1."""

import matplotlib.figure
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics as sk

from thinkml.evaluation import ModelEvaluator, compare
from thinkml.evaluation.report.largest_errors import errors
from thinkml.evaluation.threshold_choice import choose_threshold
from thinkml.evaluation.threshold_counts import all_threshold_counts
from thinkml.models import predict_proba

from .models import Shifted, known

LOGITS = np.arange(21, 27, dtype=np.float32)
LABELS = np.array([0, 1, 0, 1, 1, 1])
CASES = [('binary', 1), ('binary', 2), ('multiclass', 3), ('multiclass', 6), ('multilabel', 3)]


def evaluate(outputs, labels, kind, metrics, **settings):
    """Evaluates a model that returns these outputs."""
    k = outputs.shape[1]
    classes, shape = tuple(range(max(2, k))), (k,) if kind == 'multilabel' else ()
    model = known(Shifted(), kind, classes, k, shape)
    return ModelEvaluator().evaluate(model, outputs, labels, metrics, num_resamples=50, **settings)


def case(kind, k, *, scale=30, shift=0, n=80, seed=0):
    """Returns outputs whose probabilities are 0 or 1 in any float, and labels they often miss."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(n, k))
    noisy = outputs + rng.normal(size=outputs.shape)
    if kind == 'multilabel':
        labels = (noisy > 0).astype(np.int64)
    else:
        labels = (noisy[:, 0] > 0).astype(np.int64) if k == 1 else noisy.argmax(axis=1)
    return (outputs * scale + shift).astype(np.float32), labels


def logits_of(outputs, kind):
    """Returns the logit of each class or label against the others, in float64."""
    z = outputs.astype(np.float64)
    if kind == 'multilabel':
        return z
    z = np.concatenate([0 * z, z], axis=1) if z.shape[1] == 1 else z
    others = [np.delete(z, index, axis=1) for index in range(z.shape[1])]
    return z - np.stack([scipy.special.logsumexp(each, axis=1) for each in others], axis=1)


def columns_of(outputs, labels, kind):
    """Returns which rows are positive, and the logits that rank them."""
    logits = logits_of(outputs, kind)
    if kind == 'multilabel':
        return list(zip(labels.T, logits.T, strict=True))
    classes = [1] if kind == 'binary' else range(logits.shape[1])
    return [(labels == index, logits[:, index]) for index in classes]


def log_loss(outputs, labels, kind):
    logits = logits_of(outputs, kind)
    if kind == 'multilabel':
        return np.logaddexp(0, np.where(labels > 0, -logits, logits)).mean()
    return np.logaddexp(0, -logits[np.arange(len(labels)), labels]).mean()


def test_the_areas_of_six_saturated_rows():
    evaluation = evaluate(LOGITS[:, None], LABELS, 'binary', ['roc_auc', 'average_precision'])
    assert evaluation['roc_auc'] == pytest.approx(7 / 8)
    assert evaluation['average_precision'] == pytest.approx(0.95)
    low, high = evaluation.confidence_intervals['roc_auc']
    assert low < 7 / 8 < high


@pytest.mark.parametrize('shift', [0, 500])
@pytest.mark.parametrize(('kind', 'k'), CASES)
def test_areas_and_log_loss_are_those_of_the_logits(kind, k, shift):
    outputs, labels = case(kind, k, shift=shift if k > 1 and kind != 'multilabel' else 0)
    columns = columns_of(outputs, labels, kind)
    evaluation = evaluate(outputs, labels, kind, ['roc_auc', 'average_precision', 'log_loss'])
    expected = {
        'roc_auc': np.mean([sk.roc_auc_score(*column) for column in columns]),
        'average_precision': np.mean([sk.average_precision_score(*column) for column in columns]),
        'log_loss': log_loss(outputs, labels, kind),
    }
    assert expected['log_loss'] > 2
    assert evaluation.metrics == pytest.approx(expected, rel=1e-9)


def test_digits_that_float32_lacks_rank_two_logits_and_more():
    near = np.float32(0.3) + np.float32(2**-25) * np.arange(8, dtype=np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1, 1, 1])
    outputs = np.stack([-near, 64 + 0 * near], axis=1)  # differ by less than float32 shows at 64
    evaluation = evaluate(outputs, labels, 'binary', ['roc_auc'])
    expected = sk.roc_auc_score(labels, outputs[:, 1].astype(np.float64) - outputs[:, 0])
    assert evaluation['roc_auc'] == expected != 0.5


def test_rows_with_the_same_outputs_in_another_order_are_tied():
    rng = np.random.default_rng(0)
    outputs = rng.permuted(np.tile(np.float32([7, 1, 3, 3, 0]), (40, 1)), axis=1)
    labels = rng.integers(5, size=40)
    evaluation = evaluate(outputs, labels, 'multiclass', ['roc_auc'])
    columns = [(labels == index, outputs[:, index]) for index in range(5)]
    expected = np.mean([sk.roc_auc_score(*column) for column in columns])
    assert evaluation['roc_auc'] == pytest.approx(expected, rel=1e-12)


def test_one_class_against_another():
    outputs, labels = case('multiclass', 3)
    logits, areas = logits_of(outputs, 'multiclass'), []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        rows = np.isin(labels, (a, b))
        areas += [sk.roc_auc_score(labels[rows] == c, logits[rows, c]) for c in (a, b)]
    evaluation = evaluate(outputs, labels, 'multiclass', ['roc_auc_ovo'])
    assert evaluation['roc_auc_ovo'] == pytest.approx(np.mean(areas), rel=1e-9)


def test_the_most_probable_classes_are_those_of_the_largest_logits():
    outputs, labels = case('multiclass', 6, scale=200)
    evaluation = evaluate(outputs, labels, 'multiclass', ['top_2_accuracy', 'top_3_accuracy'])
    for k in (2, 3):
        expected = sk.top_k_accuracy_score(labels, outputs, k=k, labels=range(6))
        assert evaluation[f'top_{k}_accuracy'] == expected


@pytest.mark.parametrize(('kind', 'k'), [('binary', 1), ('binary', 2), ('multilabel', 2)])
def test_the_calibration_slope_is_that_of_the_logits(kind, k):
    outputs, labels = case(kind, k, n=300)
    lines = []
    for truth, x in columns_of(outputs, labels, kind):

        def loss(line, x=x, truth=truth):
            z = line[0] + line[1] * x
            return np.sum(np.logaddexp(0, z) - truth * z)

        lines.append(scipy.optimize.minimize(loss, [0.0, 0.1], tol=1e-12).x)
    names = ['calibration_intercept', 'calibration_slope']
    evaluation = evaluate(outputs, labels, kind, names)
    found = [evaluation[name] for name in names]
    assert found == pytest.approx(np.mean(lines, axis=0), rel=1e-3)
    low, high = evaluation.confidence_intervals['calibration_slope']
    assert 0 < low < found[1] < high


def test_adaptive_bins_hold_as_many_rows_each():
    logits = np.append(np.linspace(1, 3, 65), np.linspace(40, 80, 85)).astype(np.float32)
    labels = (np.arange(150) < 140).astype(np.int64)  # the most confident are wrong
    evaluation = evaluate(logits[:, None], labels, 'binary', ['ece_adaptive'])
    bins = np.arange(150) // 10  # the logits rise
    gaps = scipy.special.expit(logits.astype(np.float64)) - labels
    expected = np.abs(np.bincount(bins, gaps)).sum() / 150
    assert evaluation['ece_adaptive'] == pytest.approx(expected)


def curve(figure: matplotlib.figure.Figure):
    """Returns the points of the model's curve, which is the line with the most points."""
    lines = [line.get_xydata() for line in figure.axes[0].get_lines()]
    return max(lines, key=len)


def test_curves_pass_through_every_logit():
    outputs, labels = case('binary', 1)
    analysis = ModelEvaluator().analyze_performance(
        known(Shifted(), 'binary', (0, 1), 1), outputs, labels, num_resamples=50
    )
    fpr, tpr, _ = sk.roc_curve(labels, outputs[:, 0], drop_intermediate=False)
    np.testing.assert_allclose(curve(analysis.plot_roc_curve()), np.stack([fpr, tpr], axis=1))
    precision, recall, _ = sk.precision_recall_curve(labels, outputs[:, 0])
    drawn = curve(analysis.plot_precision_recall_curve())
    rows = np.stack([recall, precision], axis=1)[::-1]
    np.testing.assert_allclose(drawn, rows)
    falling = labels[np.argsort(-outputs[:, 0])]
    gained = np.append(0, np.cumsum(falling) / labels.sum())
    drawn = curve(analysis.plot_gain())
    np.testing.assert_allclose(drawn, np.stack([np.arange(81) / 80, gained], axis=1))
    [counts] = all_threshold_counts(analysis.evaluation.scored)
    assert len(counts.thresholds) == 81


def test_thresholds_are_probabilities_that_rows_reach():
    model = known(Shifted(), 'binary', (0, 1), 1)
    evaluation = ModelEvaluator().evaluate(model, LOGITS[:, None], LABELS)
    chosen = choose_threshold(evaluation)
    assert chosen.f1 == pytest.approx(8 / 9)
    assert (
        (predict_proba(model, LOGITS[:, None])[:, 1] >= chosen.threshold) == (LOGITS >= 22)
    ).all()
    # For logits of at least 37, the probability is 1 in float64 too: no threshold separates them.
    beyond = np.float32([-1, 0, 50, 51, 52, 53])
    evaluation = ModelEvaluator().evaluate(model, beyond[:, None], np.array([0, 0, 0, 1, 1, 1]))
    chosen = choose_threshold(evaluation)
    assert (chosen.threshold, chosen.precision, chosen.recall) == (1.0, 0.75, 1.0)
    assert evaluation['roc_auc'] == 1.0


def test_log_loss_is_the_loss():
    for outputs, kind in (
        ([[50.0], [-50.0]], 'binary'),
        ([[50.0, 0, 0], [0, 0, 50]], 'multiclass'),
    ):
        labels = np.array([0, 1]) if kind == 'binary' else np.array([1, 0])
        evaluation = evaluate(np.float32(outputs), labels, kind, ['log_loss'])
        assert evaluation['log_loss'] == pytest.approx(50)
    outputs, labels = np.float32([[50, -50], [-50, 50]]), np.array([[0, 1], [1, 0]])
    assert evaluate(outputs, labels, 'multilabel', ['log_loss'])['log_loss'] == pytest.approx(50)


def test_the_surest_errors_come_first():
    outputs = np.float32([[40], [45], [42], [60], [-1]])
    evaluation = evaluate(outputs, np.array([0, 0, 0, 1, 0]), 'binary', ['accuracy'])
    assert [row['row'] for row in errors(evaluation)['rows']] == [1, 2, 0]
    outputs, labels = np.float32([[40, -45], [50, 42]]), np.array([[0, 1], [0, 1]])
    evaluation = evaluate(outputs, labels, 'multilabel', ['accuracy'])
    assert [row['row'] for row in errors(evaluation)['rows']] == [1, 0, 0]


def test_two_saturated_models_are_told_apart():
    a, labels = case('binary', 1, scale=60)
    b = (a + np.random.default_rng(1).normal(size=a.shape) * 60).astype(np.float32)
    one, other = (evaluate(each, labels, 'binary', ['roc_auc']) for each in (a, b))
    difference = compare(one, other).differences['roc_auc'].difference
    expected = sk.roc_auc_score(labels, a[:, 0]) - sk.roc_auc_score(labels, b[:, 0])
    assert difference == pytest.approx(expected, rel=1e-9)


class Probable:
    """A model of another library, which returns only probabilities."""

    classes_ = np.array([0, 1])

    def predict(self, X):
        return (X[:, 0] > 0.5).astype(int)

    def predict_proba(self, X):
        return np.stack([1 - X[:, 0], X[:, 0]], axis=1)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_models_of_other_libraries_rank_by_probabilities(dtype):
    X = np.array([[0.1], [0.3], [0.3], [0.7], [1.0], [1.0]], dtype)
    evaluation = ModelEvaluator().evaluate(
        Probable(), X, LABELS, ['roc_auc', 'average_precision', 'log_loss']
    )
    p = Probable().predict_proba(X)
    assert evaluation['roc_auc'] == sk.roc_auc_score(LABELS, X[:, 0])
    assert evaluation['average_precision'] == sk.average_precision_score(LABELS, X[:, 0])
    assert evaluation['log_loss'] == pytest.approx(sk.log_loss(LABELS, p), rel=1e-6)
