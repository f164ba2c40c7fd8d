"""Cross-validation beside scikit-learn's folds and single trainings."""

import functools

import jax
import numpy as np
import pandas as pd
import pytest
from flax import linen as nn
from flax import nnx
from scipy import stats
from sklearn.metrics import f1_score
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)

from tests.models_for_tests import mlp
from thinkml.errors import ConfigError, DataError
from thinkml.models import from_linen, predict, predict_proba
from thinkml.optimization import cross_validate
from thinkml.training import ModelTrainer, TrainingConfig

ROWS = 60
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
y = X[:, :3].argmax(axis=1)
NAMES = np.array(['ant', 'bee', 'cat'])[y]
CONFIG = TrainingConfig(epochs=8, batch_size=16, learning_rate=0.05, seed=3)
SCORING = ('accuracy', 'f1')


def make_model(rngs, hidden=8):
    return nnx.Sequential(
        nnx.Linear(4, hidden, rngs=rngs), nnx.relu, nnx.Linear(hidden, 3, rngs=rngs)
    )


def validate(X=X, y=y, config=CONFIG, make=make_model, **settings):
    settings = {'folds': 3, 'scoring': SCORING, 'progress': False} | settings
    return cross_validate(make, X, y, config, **settings)


@functools.cache
def result():
    return validate(keep_models=True)


def test_each_fold_is_a_training_of_its_own():
    splits = StratifiedKFold(3, shuffle=True, random_state=3).split(X, y)
    for fold, (train, test) in zip(result().folds, splits, strict=True):
        np.testing.assert_array_equal(fold.train_rows, train)
        np.testing.assert_array_equal(fold.test_rows, test)
        model = make_model(nnx.Rngs(3))
        history = ModelTrainer(CONFIG).train(model, X[train], y[train], progress=False)
        np.testing.assert_allclose(fold.history['loss'], history['loss'], rtol=1e-5)
        predicted = predict(model, X[test])
        np.testing.assert_array_equal(fold.predictions, predicted)
        assert fold.metrics['accuracy'] == pytest.approx(np.mean(predicted == y[test]))
        assert fold.metrics['f1'] == pytest.approx(f1_score(y[test], predicted, average='macro'))


def test_rows_with_an_ignored_label_are_predicted_but_not_scored():
    marked = np.where(np.arange(ROWS) % 4 == 0, -100, y)
    found = validate(y=marked, keep_models=True)
    for fold, model in zip(found.folds, found.models, strict=True):
        counts = marked[fold.test_rows] != -100
        right = predict(model, X[fold.test_rows]) == y[fold.test_rows]
        assert fold.metrics['accuracy'] == pytest.approx(right[counts].mean())
        expected = predict_proba(model, X[fold.test_rows])
        np.testing.assert_allclose(found.probabilities[fold.test_rows], expected, rtol=1e-6)


def test_each_row_is_predicted_by_a_model_that_was_not_trained_on_it():
    found = result()
    for fold, model in zip(found.folds, found.models, strict=True):
        np.testing.assert_array_equal(
            found.predictions[fold.test_rows], predict(model, X[fold.test_rows])
        )
    np.testing.assert_array_equal(found.probabilities.argmax(axis=1), found.predictions)
    assert found.metrics['accuracy'] == pytest.approx(np.mean(found.predictions == y))


def test_folds_seeds_and_numbers_compile_nothing_again(count_compiles):
    result()
    config = TrainingConfig(epochs=8, batch_size=16, learning_rate=0.01, seed=7)
    assert count_compiles(validate, config=config) == 0


def test_the_interval_is_that_of_the_corrected_t_test():
    values = np.array([fold.metrics['accuracy'] for fold in result().folds])
    error = np.sqrt((1 / 3 + 20 / 40) * values.var(ddof=1))
    expected = stats.t.interval(0.9, 2, loc=values.mean(), scale=error)
    assert result().interval('accuracy', 0.9) == pytest.approx(expected)


def test_two_settings_are_compared_on_the_same_folds():
    other = validate(config=TrainingConfig(epochs=1, batch_size=16, seed=3))
    found = result().compare(other)['accuracy']
    a, b = (np.array([f.metrics['accuracy'] for f in r.folds]) for r in (result(), other))
    error = np.sqrt((1 / 3 + 20 / 40) * (a - b).var(ddof=1))
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p_value == pytest.approx(2 * stats.t.sf(found.difference / error, 2))
    assert found.interval[0] < found.difference < found.interval[1]
    with pytest.raises(DataError, match='other: its folds have other rows'):
        result().compare(validate(folds=4))


@pytest.mark.parametrize(
    ('settings', 'splitter'),
    [
        ({'stratify': False}, KFold(3, shuffle=True, random_state=3)),
        ({'time': True}, TimeSeriesSplit(3)),
        ({'folds': ShuffleSplit(2, test_size=0.25, random_state=0)}, None),
        ({'folds': list(KFold(3).split(X))}, KFold(3)),
        (
            {'groups': np.arange(ROWS) % 7, 'stratify': False},
            GroupKFold(3, shuffle=True, random_state=3),
        ),
    ],
    ids=['rows', 'time', 'shuffled', 'given', 'groups'],
)
def test_folds_are_those_of_scikit_learn(settings, splitter):
    found = validate(config=TrainingConfig(epochs=1, batch_size=16, seed=3), **settings)
    expected = (splitter or settings['folds']).split(X, y, settings.get('groups'))
    for fold, (train, test) in zip(found.folds, expected, strict=True):
        np.testing.assert_array_equal(fold.train_rows, np.sort(train))
        np.testing.assert_array_equal(fold.test_rows, np.sort(test))


def test_repetitions_have_other_folds_and_seeds():
    found = validate(repeats=2)
    assert len(found.folds) == 6 and found.predictions.shape == (2, ROWS)
    np.testing.assert_array_equal(found.predictions[0], result().predictions)
    assert not np.array_equal(found.folds[0].test_rows, found.folds[3].test_rows)
    assert found.to_pandas().shape == (6, 2 + len(SCORING))


def test_text_labels_frames_and_numbers():
    frame = pd.DataFrame(X, columns=['a', 'b', 'c', 'd'])
    found = validate(frame, NAMES, keep_models=True)
    np.testing.assert_array_equal(
        found.predictions, np.array(['ant', 'bee', 'cat'])[result().predictions]
    )
    first = found.folds[0]
    np.testing.assert_array_equal(predict(first.model, frame)[first.test_rows], first.predictions)
    numbers = validate(
        y=X.sum(axis=1), make=lambda rngs: nnx.Linear(4, 1, rngs=rngs), scoring=['r2']
    )
    assert numbers.probabilities is None and numbers.metrics['r2'] > 0.5
    assert numbers.predictions.shape == (ROWS,)


def test_other_models_and_arguments_of_train():
    start = make_model(nnx.Rngs(5))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(start)))
    validate(make=start, loss_fn='focal', class_weights='balanced', sample_weight=np.ones(ROWS))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(start)))
    validate(make=lambda: from_linen(nn.Dense(3)))
    assert validate(make='mlp').metrics['accuracy'] > 0.5
    wide = validate(model_parameters={'hidden': 16}, keep_models=True)
    assert wide.models[0].layers[0].kernel.shape == (4, 16)


def test_it_prints_as_a_table(capsys):
    lines = str(result()).splitlines()
    assert lines[0] == 'multiclass, 3 classes (0, 1, 2); 60 rows, 3 folds'
    assert [line.split()[0] for line in lines[1:]] == ['metric', *SCORING]
    validate(progress=True, config=TrainingConfig(epochs=1))
    assert '3/3' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'folds': 1}, ConfigError, 'folds: got 1 for 60 rows'),
        ({'folds': 'k'}, ConfigError, "folds: got 'k', expected a number"),
        ({'folds': [(np.arange(9), np.arange(8, 20))]}, DataError, 'tests row 8'),
        ({'folds': [(np.arange(9), np.array([60]))]}, DataError, 'rows 60 to 60 for test'),
        ({'folds': [np.arange(9)]}, DataError, 'fold 1 is a ndarray'),
        ({'folds': []}, DataError, 'got no folds'),
        ({'folds': KFold(3), 'repeats': 2}, ConfigError, 'repeats: got 2 beside folds'),
        ({'repeats': 0}, ConfigError, 'repeats: got 0'),
        ({'time': True, 'repeats': 2}, ConfigError, 'time: got True beside repeats'),
        ({'groups': [1, 2]}, DataError, r'groups: got shape \(2,\)'),
        ({'y': y[:50]}, DataError, 'X with 60 rows and y with 50 rows'),
        ({'make': 3}, ConfigError, 'model: got 3'),
        ({'make': lambda: 3}, ConfigError, 'model: the factory returned a int'),
        ({'make': mlp(4, 3), 'model_parameters': {'a': 1}}, ConfigError, 'a: got it beside a'),
        ({'loss': 'mse'}, ConfigError, "arguments: got 'loss', .* Did you mean 'loss_fn'"),
        ({'scoring': ['f2']}, ConfigError, "scoring: got 'f2'"),
    ],
)
def test_wrong_input_is_named_before_a_training(settings, error, message, count_compiles):
    def refused():
        with pytest.raises(error, match=message):
            validate(**settings)

    assert count_compiles(refused) == 0


def test_rows_that_are_not_tested_equally_often_have_no_common_predictions():
    found = validate(time=True, config=TrainingConfig(epochs=1))
    with pytest.raises(DataError, match='predictions: row 0 is in 0 tests'):
        _ = found.predictions
    with pytest.raises(ConfigError, match='models: none were kept'):
        _ = found.models
    with pytest.raises(ConfigError, match="metric: got 'nothing'"):
        found.interval('nothing')
