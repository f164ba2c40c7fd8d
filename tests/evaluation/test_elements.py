"""Evaluations of rows with a label for each element."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import metrics as sklearn_metrics

from tests.training.test_elements import CASES, SIDE, train, words
from thinkml.errors import ConfigError, DataError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.confidence_intervals import metric_intervals
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.registry import get_metric
from thinkml.evaluation.scored_elements import draw_rows
from thinkml.models import predict, predict_proba


def evaluated(case, **more):
    make, data, *_ = CASES[case]
    model, _ = train(make, data)
    x, y = data()
    return model, x, y, ModelEvaluator().evaluate(model, x, y, **more)


def test_metrics_count_the_tokens_that_are_not_ignored():
    model, x, y, found = evaluated('tokens')
    counts = y != -100
    truth, predicted = y[counts], predict(model, x)[counts]
    expected = {
        'accuracy': sklearn_metrics.accuracy_score(truth, predicted),
        'f1_macro': sklearn_metrics.f1_score(truth, predicted, average='macro'),
        'log_loss': sklearn_metrics.log_loss(truth, predict_proba(model, x)[counts]),
    }
    for name, value in expected.items():
        metric = ModelEvaluator().evaluate(model, x, y, metrics=[name])[name]
        np.testing.assert_allclose(metric, value, rtol=1e-6)
    assert found.predictions.shape == y.shape and found.num_rows == len(y)
    assert found.confusion_matrix.sum() == counts.sum()
    assert sum(row['support'] for row in found.per_class.values()) == counts.sum()


def test_pixels_and_forecasts():
    model, x, y, found = evaluated('pixels')
    np.testing.assert_allclose(found['accuracy'], (predict(model, x) == y).mean())
    assert found.confusion_matrix.sum() == len(y) * SIDE * SIDE
    model, x, y, found = evaluated('forecast')
    errors = (predict(model, x) - y).reshape(-1, 2)
    np.testing.assert_allclose(found['mae'], np.abs(errors).mean(), rtol=1e-5)
    r2 = sklearn_metrics.r2_score(y.reshape(-1, 2), predict(model, x).reshape(-1, 2))
    np.testing.assert_allclose(found['r2'], r2, rtol=1e-5)


def test_metrics_of_pixels_and_tokens_are_those_of_scikit_learn():
    make, data, *_ = CASES['pixels']
    names = ['iou', 'iou_micro', 'iou_weighted', 'mean_iou', 'dice', 'perplexity', 'bits_per_token']
    settings = {'epochs': 3, 'learning_rate': 1e-9}
    model, history = train(make, data, settings=settings, metrics=names)
    x, y = data()
    truth, predicted = y.reshape(-1), predict(model, x).reshape(-1)
    loss = sklearn_metrics.log_loss(truth, predict_proba(model, x).reshape(-1, 3))

    def jaccard(average):
        return sklearn_metrics.jaccard_score(truth, predicted, average=average)

    expected = {
        'iou': jaccard('macro'), 'iou_micro': jaccard('micro'),
        'iou_weighted': jaccard('weighted'), 'mean_iou': jaccard('macro'),
        'dice': sklearn_metrics.f1_score(truth, predicted, average='macro'),
        'perplexity': np.exp(loss), 'bits_per_token': loss / np.log(2),
    }  # fmt: skip
    found = ModelEvaluator().evaluate(model, x, y, metrics=names)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
        np.testing.assert_allclose(history[name][-1], value, rtol=1e-5)
        low, high = found.confidence_intervals[name]
        assert low <= found[name] <= high


def test_the_iou_of_a_binary_mask_is_that_of_its_class():
    model = nnx.Conv(1, 1, (1, 1), rngs=nnx.Rngs(0))
    x, y = CASES['pixels'][1]()
    train(lambda: model, lambda: (x, y > 0), settings={'epochs': 2})
    found = ModelEvaluator().evaluate(model, x, y > 0, metrics=['iou', 'mean_iou'])
    truth, predicted = (y > 0).reshape(-1), predict(model, x).reshape(-1)
    np.testing.assert_allclose(found['iou'], sklearn_metrics.jaccard_score(truth, predicted))
    of_both = sklearn_metrics.jaccard_score(truth, predicted, average='macro')
    np.testing.assert_allclose(found['mean_iou'], of_both)


def test_the_iou_of_each_class_is_that_of_scikit_learn():
    make, data, *_ = CASES['pixels']
    (x, y), labels = data(), ['far', 'near', 'sky']
    y, names = np.asarray(labels)[y], [f'iou_{label}' for label in labels]
    model, history = train(
        make, lambda: (x, y), settings={'epochs': 1, 'learning_rate': 1e-9}, metrics=names
    )
    truth, predicted = y.reshape(-1), predict(model, x).reshape(-1)
    scores = sklearn_metrics.jaccard_score(truth, predicted, average=None)
    np.testing.assert_allclose([history[name][0] for name in names], scores, rtol=1e-6)
    weight = np.random.default_rng(0).random(len(y))
    found = ModelEvaluator().evaluate(
        model, x, y, metrics=names, sample_weight=weight, slices={'first': weight > 0.5}
    )
    scores = sklearn_metrics.jaccard_score(
        truth, predicted, average=None, sample_weight=np.repeat(weight, SIDE * SIDE)
    )
    np.testing.assert_allclose([found[name] for name in names], scores, rtol=1e-6)
    of_table = [found.per_class[label]['iou'] for label in labels]
    np.testing.assert_allclose(of_table, scores, rtol=1e-6)
    again = pickle.loads(pickle.dumps(found))
    assert again.confidence_intervals == found.confidence_intervals
    for name in names:
        low, high = found.confidence_intervals[name]
        assert low < found[name] < high
    assert names[0] in str(ModelEvaluator().generate_report(found))
    for metric in ('iou_tree', 'iou_0'):
        expected = f"metrics: got '{metric}', which is no class; expected one of iou_far, iou_near"
        with pytest.raises(ConfigError, match=expected):
            ModelEvaluator().evaluate(model, x, y, metrics=[metric])
        with pytest.raises(ConfigError, match=expected):
            train(make, lambda: (x, y), metrics=[metric])


def test_the_iou_of_a_class_that_does_not_occur_is_0_with_a_warning():
    model, _ = train(*CASES['pixels'][:2], settings={'epochs': 1})
    x, y = CASES['pixels'][1]()
    predicted = predict(model, x)
    weight = np.where((y == 2) | (predicted == 2), 0, 1)
    with pytest.warns(ThinkMLWarning, match='iou_2: neither examples nor predictions of the class'):
        found = ModelEvaluator().evaluate(model, x, y, metrics=['iou_2'], sample_weight=weight)
    assert found['iou_2'] == 0 and np.isnan(found.confidence_intervals['iou_2']).all()
    with pytest.raises(ConfigError, match="got 'iou_1', but the task is regression"):
        evaluated('forecast', metrics=['iou_1'])


def test_weights_slices_and_strata():
    weight = np.random.default_rng(1).random(len(words()[0]))
    model, x, y, found = evaluated('tokens', sample_weight=weight, slices={'first': weight > 0.5})
    counts = y != -100
    right, of_tokens = (predict(model, x) == y), np.broadcast_to(weight[:, None], y.shape)
    expected = np.average(right[counts], weights=of_tokens[counts])
    np.testing.assert_allclose(found['accuracy'], expected)
    inside = counts & (weight > 0.5)[:, None]
    expected = np.average(right[inside], weights=of_tokens[inside])
    np.testing.assert_allclose(found.slices['first'].metrics['accuracy'], expected)
    of_elements = ModelEvaluator().evaluate(model, x, y, sample_weight=of_tokens)
    np.testing.assert_allclose(of_elements['accuracy'], found['accuracy'])
    with pytest.raises(ConfigError, match='names the stratum of each row'):
        ModelEvaluator().evaluate(model, x, y, stratify=True)


def test_slices_of_elements_by_their_class_and_by_a_mask():
    long = np.random.default_rng(2).random(words()[1].shape) > 0.4
    slices = {'tag': words()[1], 'long': long}
    model, x, y, found = evaluated('tokens', metrics=['accuracy'], slices=slices, min_support=1)
    right, counts = predict(model, x) == y, y != -100
    for label in found.task.classes:
        part = found.slices[f'tag = {label}']
        np.testing.assert_allclose(part.metrics['accuracy'], right[y == label].mean())
        assert part.num_rows == (y == label).any(axis=1).sum()
        low, high = part.confidence_intervals['accuracy']
        assert low <= part.metrics['accuracy'] <= high
    assert not found.slices['tag = -100'].is_supported
    inside = counts & long
    np.testing.assert_allclose(found.slices['long'].metrics['accuracy'], right[inside].mean())
    with pytest.raises(DataError, match=r"'long' has shape .* for each element"):
        evaluated('tokens', slices={'long': long[:, 1:]})


def test_a_row_matches_exactly_if_all_tokens_that_count_are_right():
    rng = np.random.default_rng(1)
    weight = rng.random(len(words()[0]))
    model, x, y, found = evaluated(
        'tokens', metrics=['exact_match'], sample_weight=weight, slices={'first': weight > 0.5},
    )  # fmt: skip
    x, y = x.copy(), y.copy()
    matches = ((predict(model, x) == y) | (y == -100)).all(axis=1)
    assert 0 < matches.mean() < 1
    np.testing.assert_allclose(found['exact_match'], np.average(matches, weights=weight))
    first = weight > 0.5
    expected = np.average(matches[first], weights=weight[first])
    np.testing.assert_allclose(found.slices['first'].metrics['exact_match'], expected)
    low, high = found.confidence_intervals['exact_match']
    assert 0 <= low < found['exact_match'] < high <= 1
    # A token without weight does not count, and a row has the largest weight of its tokens.
    of_tokens = weight[:, None] * rng.integers(0, 2, y.shape)
    of_tokens[0] = 0
    of_tokens[1:, 0] = weight[1:]
    matches = ((predict(model, x) == y) | (of_tokens == 0) | (y == -100)).all(axis=1)
    found = ModelEvaluator().evaluate(model, x, y, metrics=['exact_match'], sample_weight=of_tokens)
    expected = np.average(matches, weights=of_tokens.max(axis=1))
    np.testing.assert_allclose(found['exact_match'], expected)


def test_rows_of_one_label_match_exactly_where_they_are_accurate():
    labels, predictions = np.random.default_rng(0).integers(0, 3, (2, 50))
    data = EvaluationData('multiclass', 3, labels, predictions)
    metrics = {name: get_metric(name, 'multiclass') for name in ('accuracy', 'exact_match')}
    assert metrics['exact_match'].of(data) == metrics['accuracy'].of(data)
    intervals = metric_intervals(data, metrics, Resampling())
    assert intervals['exact_match'] == intervals['accuracy']


def test_a_report_names_the_elements():
    *_, found = evaluated('tokens')
    report = ModelEvaluator().generate_report(found)
    text = str(report)
    assert 'for each of 6 elements' in text
    assert 'resamples of rows with all their elements' in text
    errors = report.to_dict()['errors']['rows']
    for error in errors:
        place = error['row'], int(error['element'])
        assert str(found.labels[place]) == error['true'] != error['predicted']
        assert str(found.predictions[place]) == error['predicted']


def test_all_elements_ignored_or_without_weight_is_an_error():
    make, data, *_ = CASES['tokens']
    model, _ = train(make, data, settings={'epochs': 1})
    x, y = data()
    with pytest.raises(DataError, match='each element is ignored'):
        ModelEvaluator().evaluate(model, x, np.full_like(y, -100))
    with pytest.raises(DataError, match='each element is ignored or has weight 0'):
        ModelEvaluator().evaluate(model, x, y, sample_weight=(y == -100).astype(float))


def test_slices_count_rows():
    *_, y, found = evaluated('tokens', slices={'all': np.ones(len(words()[0]), bool)})
    assert found.slices['all'].num_rows == len(y)


def simulated(rng, rows=60, tokens=12):
    """Rows in which a token is right with a probability that differs from row to row."""
    probability = rng.beta(0.5, 0.5, rows)
    return rng.random((rows, tokens)) < probability[:, None]


def interval(right, by_rows):
    labels = np.ones(right.size, np.int64)
    data = EvaluationData('binary', 2, labels, right.reshape(-1).astype(np.int64))
    rows = np.repeat(np.arange(len(right)), right.shape[1])
    resampling = Resampling(num_resamples=300)
    resampling = draw_rows(resampling, rows) if by_rows else resampling
    return metric_intervals(data, {'accuracy': get_metric('accuracy', 'binary')}, resampling)[
        'accuracy'
    ]


@pytest.mark.slow
def test_intervals_by_rows_cover_where_those_by_elements_do_not():
    rng, covered = np.random.default_rng(0), {True: 0, False: 0}
    for _ in range(600):
        right = simulated(rng)
        for by_rows in covered:
            low, high = interval(right, by_rows)
            covered[by_rows] += low <= 0.5 <= high
    assert 0.93 <= covered[True] / 600 <= 0.97
    assert covered[False] / 600 < 0.7


def test_a_model_that_was_not_trained_here_is_evaluated():
    class Tagged(nnx.Module):
        def __call__(self, x):
            return jnp.stack([x, -x], -1)

    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    found = ModelEvaluator().evaluate(Tagged(), x, (x < 0).astype(int))
    assert found['accuracy'] == 1
