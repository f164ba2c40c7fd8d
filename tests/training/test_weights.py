"""Class weights and sample weights through the trainer."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.errors import DataError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.training import ModelTrainer, TrainingConfig

# One step of plain gradient descent on all rows: what is learned is the weighted mean gradient.
ONE_STEP = {'optimizer': 'sgd', 'learning_rate': 0.5, 'batch_size': 1000, 'epochs': 1}


def rows(num_rows=60):
    X = np.random.default_rng(0).normal(size=(num_rows, 4)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)


def train(X, y, *, outputs=3, metrics=None, model=None, **arguments):
    config = {name: arguments.pop(name) for name in list(arguments) if name in ALL_SETTINGS}
    model = model or mlp(4, outputs)
    trainer = ModelTrainer(TrainingConfig(**ONE_STEP | config))
    history = trainer.train(model, X, y, metrics=metrics, progress=False, **arguments)
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))), history


ALL_SETTINGS = TrainingConfig.__dataclass_fields__


def assert_close(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_class_weight_of_two_is_having_its_rows_twice():
    X, y = rows()
    twice = y == 1
    weighted, history = train(X, y, class_weights={1: 2.0})
    doubled, expected = train(np.concatenate([X, X[twice]]), np.concatenate([y, y[twice]]))
    assert_close(weighted, doubled)
    assert history['loss'][0] == pytest.approx(expected['loss'][0], rel=1e-6)


def test_a_sample_weight_of_zero_is_leaving_the_row_out():
    X, y = rows()
    kept = np.arange(60) % 3 > 0
    assert_close(train(X, y, sample_weight=kept)[0], train(X[kept], y[kept])[0])


def test_both_multiply_and_the_loss_is_the_weighted_mean():
    X, y = rows()
    own = np.random.default_rng(1).uniform(0.5, 2, 60)
    weight = own * np.array([1.0, 3.0, 0.5])[y]
    both, history = train(X, y, class_weights={1: 3, 2: 0.5}, sample_weight=own)
    assert_close(both, train(X, y, sample_weight=weight)[0])
    losses = optax.softmax_cross_entropy_with_integer_labels(mlp(4, 3)(X), y)
    assert history['loss'][0] == pytest.approx(np.average(losses, weights=weight), rel=1e-5)
    accuracy = np.mean(np.argmax(mlp(4, 3)(X), axis=1) == y)
    assert history['accuracy'][0] == pytest.approx(accuracy), 'metrics count each row once'


def test_balanced_weighs_each_class_the_same():
    X, y = rows()
    counts = np.bincount(y)
    by_hand = {label: 60 / (3 * count) for label, count in enumerate(counts)}
    balanced, _ = train(X, y, class_weights='balanced')
    assert_close(balanced, train(X, y, class_weights=by_hand)[0])


@pytest.mark.parametrize(
    ('labels', 'key'),
    [
        (lambda y: np.where(y == 1, 'ill', 'healthy'), 'ill'),
        (lambda y: y == 1, True),
        (lambda y: y == 1, np.True_),
        (lambda y: (y == 1).astype(int), np.int64(1)),
        (lambda y: np.eye(2, dtype=int)[(y == 1).astype(int)], 1),
    ],
)
def test_labels_of_every_kind_are_keys(labels, key):
    X, y = rows()
    expected, _ = train(X, (y == 1).astype(int), outputs=2, sample_weight=1 + (y == 1))
    # Text is sorted: 'healthy' comes before 'ill', as 0 before 1.
    assert_close(train(X, labels(y), outputs=2, class_weights={key: 2})[0], expected)


def test_balanced_counts_no_rows_of_weight_0():
    X, y = rows()
    kept = (y != 1) | (np.arange(60) % 3 == 0)
    weighed, _ = train(X, y, class_weights='balanced', sample_weight=kept)
    assert_close(weighed, train(X[kept], y[kept], class_weights='balanced')[0])


@pytest.mark.parametrize('scale', [1e-40, 1e39])
def test_weights_of_any_scale_give_the_same_mean(scale):
    X, y = rows()
    own = np.random.default_rng(1).uniform(0.5, 2, 60)
    settings = {'validation_split': 0.25, 'batch_size': 15, 'epochs': 2}
    expected, plain = train(X, y, sample_weight=own, **settings)
    got, history = train(X, y, sample_weight=own * scale, **settings)
    assert_close(got, expected)
    for name in ('loss', 'val_loss'):
        np.testing.assert_allclose(history[name], plain[name], rtol=1e-5)


def test_rows_held_out_that_all_weigh_0_have_no_mean(count_compiles):
    X, y = rows()

    def attempt():
        with pytest.raises(DataError, match='sample_weight: got weight 0 for each of the 12 rows'):
            train(X, y, sample_weight=np.arange(60) < 48, validation_split='last')

    assert count_compiles(attempt) == 0
    _, some = train(X, y, sample_weight=np.arange(60) < 50, validation_split='last')
    assert np.isfinite(some['val_loss'][0])


def weighted_batches(weight):
    X, y = rows()

    def batches():
        for first in range(0, 60, 20):
            part = slice(first, first + 20)
            yield X[part], y[part], weight[part]

    return batches


@pytest.mark.parametrize('scale', [1e-40, 1e39])
def test_weights_of_batches_have_no_scale_either(scale):
    own = np.random.default_rng(1).uniform(0.5, 2, 60)
    ends = []
    for weight in (own, own * scale):
        source = weighted_batches(weight)
        params, history = train(source, None, X_val=source, class_weights={1: 2.0})
        ends.append([*params, history['loss'], history['val_loss']])
    assert_close(*ends)


@pytest.mark.parametrize(
    ('train_weight', 'val_weight', 'says'),
    [
        (np.zeros(60), np.ones(60), 'X_train: got weight 0 for every example'),
        (np.ones(60), np.zeros(60), 'X_val: got weight 0 for every example'),
        (np.where(np.arange(60) < 20, 1, 1e-40), np.ones(60), 'X_train, batch 2: got weights of'),
    ],
)
def test_weights_of_batches_that_have_no_mean(train_weight, val_weight, says):
    with pytest.raises(DataError, match=says):
        train(weighted_batches(train_weight), None, X_val=weighted_batches(val_weight))


@pytest.mark.parametrize(
    ('settings', 'losses'),
    [({'fast_dev_run': True}, 1), ({'limit_train_batches': 1, 'epochs': 3}, 3)],
)
def test_a_loss_of_rows_of_weight_0_alone_is_explained_once(settings, losses):
    weight = np.arange(60) >= 20
    with pytest.warns(ThinkMLWarning, match='all rows of its steps have weight 0') as caught:
        _, history = train(weighted_batches(weight), None, **settings)
    assert len(caught) == 1 and np.isnan(history['loss']).tolist() == [True] * losses
    with pytest.warns(ThinkMLWarning, match='all rows of its steps have weight 0'):
        train(*rows(), class_weights={0: 0, 1: 0}, batch_size=1, limit_train_batches=1)


def test_a_quick_run_validates_on_a_batch_that_counts():
    weight = np.arange(60) >= 20
    _, history = train(*rows(), X_val=weighted_batches(weight), fast_dev_run=True)
    X, y = rows()
    _, expected = train(X, y, X_val=X[20:40], y_val=y[20:40], fast_dev_run=True)
    assert history['val_loss'] == pytest.approx(expected['val_loss'], rel=1e-6)


def test_an_evaluation_of_batches_weighs_as_the_validation_does():
    own = np.random.default_rng(1).uniform(0, 2, 60)
    X, y = rows()
    model = mlp(4, 3)
    _, history = train(X, y, X_val=weighted_batches(own), model=model)
    names = ['log_loss', 'accuracy', 'f1']
    evaluate = functools.partial(ModelEvaluator().evaluate, model, metrics=names, confidence=None)
    of_batches = evaluate(weighted_batches(own)).metrics
    assert of_batches['log_loss'] == pytest.approx(history['val_loss'][0], rel=1e-5)
    expected = evaluate(X, y, sample_weight=own).metrics
    assert of_batches == pytest.approx(expected, rel=1e-6)
    as_dicts = [
        {'x': x, 'label': labels, 'sample_weight': weight}
        for x, labels, weight in weighted_batches(own)()
    ]
    assert evaluate(iter(as_dicts)).metrics == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('scale', [1e-300, 1e-40, 1e39, 1e300])
def test_an_evaluation_does_not_depend_on_the_scale_of_weights(scale):
    X, y = rows()
    own = np.random.default_rng(1).uniform(0, 2, 60)
    evaluate = functools.partial(
        ModelEvaluator().evaluate, mlp(4, 1), metrics=['roc_auc', 'log_loss'], num_resamples=20
    )
    usual = evaluate(X, y > 0, sample_weight=own)
    for found in (
        evaluate(X, y > 0, sample_weight=own * scale),
        evaluate([(X, y > 0, own * scale)].__iter__),
    ):
        assert found.metrics == pytest.approx(usual.metrics, rel=1e-6)
        for name, interval in usual.confidence_intervals.items():
            assert found.confidence_intervals[name] == pytest.approx(interval, rel=1e-6)


def test_an_evaluation_has_weights_from_one_place():
    evaluate = functools.partial(ModelEvaluator().evaluate, mlp(4, 3))
    with pytest.raises(DataError, match='sample_weight: got one beside batches'):
        evaluate(weighted_batches(np.ones(60)), sample_weight=np.ones(60))
    with pytest.raises(DataError, match='X_test: got weight 0 for every row'):
        evaluate(weighted_batches(np.zeros(60)))


def test_accumulation_weighs_as_one_batch():
    X, y = rows(64)
    settings = {'epochs': 2, 'class_weights': {0: 0.2, 2: 5.0}}
    whole, _ = train(X, y, batch_size=32, **settings)
    parts, _ = train(X, y, batch_size=8, accumulate_steps=4, **settings)
    assert_close(whole, parts)


def test_validation_has_sample_weights_but_no_class_weights():
    X, y = rows(200)
    own = np.random.default_rng(1).uniform(0.1, 2, 200)
    settings = {'validation_split': 0.25, 'learning_rate': 1e-30}
    _, plain = train(X, y, **settings)
    _, by_class = train(X, y, class_weights={1: 9.0}, **settings)
    assert by_class['val_loss'] == pytest.approx(plain['val_loss'], rel=1e-6)
    assert by_class['loss'] != pytest.approx(plain['loss'], rel=1e-3)
    _, by_row = train(X, y, sample_weight=own, class_weights={1: 9.0}, **settings)
    assert by_row['val_loss'] != pytest.approx(plain['val_loss'], rel=1e-3)
    assert by_row['val_accuracy'] == plain['val_accuracy']


def test_other_weights_compile_nothing(count_compiles):
    X, y = rows()
    model = mlp(4, 3)
    train(X, y, class_weights='balanced', model=model)
    assert count_compiles(train, X, y, class_weights={1: 2.0}, model=model) == 0
    assert count_compiles(train, X, y, sample_weight=np.ones(60), model=model) == 0


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'class_weights': {'1': 2.0}}, "got the label '1'"),
        ({'class_weights': {3: 2.0}}, 'got the label 3'),
        ({'class_weights': {1: -2.0}}, 'at least 0'),
        ({'class_weights': {1: float('nan')}}, 'finite'),
        ({'class_weights': {0: 0, 1: 0, 2: 0}}, 'weight 0 for every row'),
        ({'class_weights': [1, 2, 1]}, 'expected'),
        ({'class_weights': 'balance'}, "'balanced'"),
        ({'sample_weight': np.ones(59)}, r'expected \(60,\)'),
        ({'sample_weight': -np.ones(60)}, 'at least'),
        ({'sample_weight': np.full(60, np.nan)}, 'NaN'),
    ],
)
def test_weights_that_make_no_sense(arguments, says, count_compiles):
    X, y = rows()

    def attempt():
        with pytest.raises(DataError, match=says):
            train(X, y, **arguments)

    assert count_compiles(attempt) == 0


def test_regression_has_no_classes_to_weigh():
    X, _ = rows()
    with pytest.raises(DataError, match='class_weights'):
        train(X, X[:, 0], outputs=1, class_weights='balanced')
