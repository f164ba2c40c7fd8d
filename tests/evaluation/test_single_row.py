"""With a single row that counts, explained variance and intervals are undefined."""

import dataclasses

import numpy as np
import pytest

from thinkml.errors import ThinkMLWarning
from thinkml.evaluation import ModelEvaluator, compare
from thinkml.evaluation.bootstrap import Resampling, can_vary
from thinkml.evaluation.plots.confidence_bands import bands
from thinkml.evaluation.plots.curve_types import GAIN

from . import make_evaluations
from .models import Shifted, known

NAMES = ['r2', 'explained_variance', 'mse', 'mae', 'median_absolute_error']
UNDEFINED = ('r2', 'explained_variance')
X = np.array([[1.0], [2.0], [4.0], [8.0]], np.float32)
Y = np.array([1.5, 2.0, 3.0, 9.0])


def evaluate(X, y, *, shift=0.0, metrics=NAMES, **settings):
    model = known(Shifted(shift), 'regression', None, 1)
    return ModelEvaluator().evaluate(model, X, y, metrics, num_resamples=100, **settings)


def is_nan(interval):
    return bool(np.isnan(interval).all())


def test_explained_variance_of_one_row_is_undefined():
    with pytest.warns(ThinkMLWarning) as caught:
        evaluation = evaluate(X[:1], Y[:1])
    for name in UNDEFINED:
        assert np.isnan(evaluation[name])
        assert f'{name}: NaN, since it is not defined for a single row.' in evaluation.warnings
    assert len(caught) == 2
    assert evaluation['mse'] == 0.25
    assert all(map(is_nan, evaluation.confidence_intervals.values()))


def test_all_weight_on_one_row():
    with pytest.warns(ThinkMLWarning, match='NaN, since it is not defined'):
        evaluation = evaluate(X, Y, sample_weight=[0, 0, 0, 2])
    assert all(np.isnan(evaluation[name]) for name in UNDEFINED)
    assert evaluation['mse'] == 1
    assert all(map(is_nan, evaluation.confidence_intervals.values()))


def test_all_weight_but_what_float32_rounds_to_0_on_one_row():
    evaluation = evaluate(X, Y, metrics=['mse'], sample_weight=[1e-60, 0, 0, 1])
    assert is_nan(evaluation.confidence_intervals['mse'])


def test_what_two_rows_give_together_alone_has_no_interval():
    evaluation = evaluate(X[:2], Y[:2])
    assert all(is_nan(evaluation.confidence_intervals[name]) for name in UNDEFINED)
    assert evaluation.confidence_intervals['mse'] == (0.0, 0.25)
    in_groups = evaluate(X, Y, groups=[0, 0, 1, 1])
    assert not any(map(is_nan, in_groups.confidence_intervals.values()))
    binary = ModelEvaluator().evaluate(
        known(Shifted(), 'binary', (0, 1), 1), X[:2] - 1, np.array([0, 1]), ['roc_auc', 'log_loss']
    )
    assert is_nan(binary.confidence_intervals['roc_auc'])
    assert not is_nan(binary.confidence_intervals['log_loss'])
    other = evaluate(X[:2], Y[:2], shift=3.0)
    found = compare(evaluation, other).differences
    assert is_nan(found['r2'].interval) and np.isnan(found['r2'].p_value)
    assert not is_nan(found['mse'].interval)


def test_a_slice_of_one_row():
    with pytest.warns(ThinkMLWarning, match="slice 'last': .*: NaN, since"):
        evaluation = evaluate(X, Y, slices={'last': X[:, 0] > 4}, min_support=1)
    found = evaluation.slices['last']
    assert all(np.isnan(found.metrics[name]) for name in UNDEFINED)
    assert found.metrics['mse'] == 1
    assert all(map(is_nan, found.confidence_intervals.values()))
    low, high = evaluation.confidence_intervals['mse']
    assert low < evaluation['mse'] < high


def test_a_resample_without_a_row_of_the_slice_is_left_out():
    rng = np.random.default_rng(0)
    labels, p = np.arange(8) % 2, np.float32(rng.uniform(0.2, 0.8, size=8))
    mask = np.arange(8) < 2
    model = known(Shifted(), 'binary', (0, 1), 1)
    logits = np.log(p / (1 - p))[:, None]
    evaluation = ModelEvaluator().evaluate(
        model, logits, labels, ['f1_macro', 'ece', 'mcc'], slices={'two': mask}, min_support=1
    )
    found = evaluation.slices['two']
    predictions = (p > 0.5).astype(int)[:2]
    one_each = [
        float(predictions[0] == 0),
        float(predictions[1] == 1),
    ]  # the F1 of either row alone
    low, high = found.confidence_intervals['f1_macro']
    assert min(*one_each, found.metrics['f1_macro']) <= low <= high
    assert not is_nan(found.confidence_intervals['ece'])
    assert not np.isnan(found.confidence_intervals['ece']).any()


def test_one_row_of_two_models():
    with pytest.warns(ThinkMLWarning):
        a, b = evaluate(X[:1], Y[:1]), evaluate(X[:1], Y[:1], shift=3.0)
    for difference in compare(a, b).differences.values():
        assert is_nan(difference.interval) and np.isnan(difference.p_value)
    assert compare(a, b).differences['mse'].difference == 0.25 - 2.5**2
    assert 'nan .. nan' in str(compare(a, b))


def test_one_row_of_a_classifier():
    evaluation = make_evaluations.classification(
        n=1, metrics=['accuracy', 'log_loss', 'brier', 'f1']
    )
    low, high = evaluation.confidence_intervals['accuracy']  # Wilson's, which one row has
    assert low < high
    for name in ('log_loss', 'brier', 'f1'):
        assert is_nan(evaluation.confidence_intervals[name])
    assert all(is_nan(row['f1']) for row in evaluation.per_class_intervals.values())
    weighted = make_evaluations.classification(
        n=5, metrics=['accuracy', 'log_loss'], weight=np.array([0.5, 0, 0, 0, 0])
    )
    assert all(map(is_nan, weighted.confidence_intervals.values()))


def test_a_curve_of_one_row_has_no_band():
    evaluation = make_evaluations.binary([1], [0.7])
    assert bands(evaluation, [GAIN]) == [None]
    two = make_evaluations.binary([1, 0], [0.7, 0.2])
    assert bands(two, [GAIN]) != [None]
    weighted = dataclasses.replace(two.scored, weight=np.array([1.0, 0.0]))
    assert bands(dataclasses.replace(two, scored=weighted), [GAIN]) == [None]


@pytest.mark.parametrize(
    ('settings', 'weight', 'expected'),
    [
        ({}, None, True),
        ({}, [0, 0, 3, 0], False),
        ({}, [0, 1, 3, 0], True),
        ({'groups': [0, 0, 1, 1]}, None, True),
        ({'groups': [0, 0, 1, 1]}, [1, 2, 0, 0], False),
        ({'strata': [0, 1, 2, 3]}, None, False),
        ({'strata': [0, 1, 1, 2]}, None, True),
        ({'strata': [0, 1, 1, 2]}, [1, 0, 0, 1], False),
        ({'groups': [0, 0, 1, 1], 'strata': [0, 0, 1, 1]}, None, False),
    ],
)
def test_resamples_differ_where_two_units_count_and_can_be_drawn(settings, weight, expected):
    settings = {name: np.array(values) for name, values in settings.items()}
    weight = None if weight is None else np.array(weight, float)
    assert can_vary(Resampling(**settings), weight, 4) is expected


def test_a_report_of_one_row_says_what_is_undefined(tmp_path):
    with pytest.warns(ThinkMLWarning):
        evaluation = evaluate(X[:1], Y[:1])
    report = ModelEvaluator().generate_report(evaluation)
    assert 'explained_variance: NaN, since it is not defined for a single row.' in str(report)
    for form in ('html', 'md', 'json', 'txt'):
        report.save(tmp_path / f'report.{form}')
