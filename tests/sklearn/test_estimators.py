"""The estimators in scikit-learn's tools, beside ModelTrainer and scikit-learn's own estimators."""

import importlib
import inspect
import io
import pickle
import signal
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from flax import nnx
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from thinkml.errors import ConfigError, DataError
from thinkml.models import create, predict_proba
from thinkml.sklearn import ThinkMLClassifier, ThinkMLRegressor
from thinkml.training import EarlyStopping, ModelTrainer, TrainingConfig

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
y = np.array(['a', 'b', 'c'])[X[:, :3].argmax(axis=1)]
SETTINGS = {'epochs': 4, 'learning_rate': 0.05, 'random_state': 3}
SMALL = {**SETTINGS, 'model__hidden': (8,)}


def make_linear(in_features, num_classes, *, scale=1.0, rngs):
    init = nnx.initializers.constant(scale)
    return nnx.Linear(in_features, num_classes, kernel_init=init, rngs=rngs)


@pytest.fixture(scope='module')
def fitted():
    return ThinkMLClassifier('mlp', **SMALL).fit(X, y)


# One of its checks compares trainings with weights and with repeated rows to 1e-7. The gradients of
# float32 differ by about as much, and Lion takes their signs alone.
@pytest.mark.compiled
@pytest.mark.parametrize('estimator', [ThinkMLClassifier, ThinkMLRegressor])
def test_scikit_learns_checks_pass(estimator):
    small = estimator(
        model__hidden=(8,), batch_size=512, epochs=40, learning_rate=0.02, optimizer='lion'
    )
    results = check_estimator(small, on_skip=None, on_fail=None)
    failed = {one['check_name']: one['exception'] for one in results if one['status'] != 'passed'}
    # Skipped unless an environment variable is set before SciPy is imported.
    failed.pop('check_array_api_input', None)
    assert failed == {}
    assert len(results) > 50


def test_the_parameters_are_the_settings_of_a_training():
    config = dict(inspect.signature(TrainingConfig).parameters)
    config['random_state'] = config.pop('seed').replace(name='random_state', default=None)
    for estimator, others in (
        (ThinkMLClassifier, {'class_weight'}),
        (ThinkMLRegressor, set()),
    ):
        found = inspect.signature(estimator).parameters
        assert found.keys() - config.keys() - others == {
            'model', 'loss_fn', 'warm_start', 'progress'
        }  # fmt: skip
        assert {n: found[n].default for n in config} == {n: p.default for n, p in config.items()}
        assert estimator().get_params() == {n: p.default for n, p in found.items()}


def test_a_fit_is_that_of_the_trainer(fitted):
    model = create('mlp', 3, in_features=4, hidden=(8,), seed=3)
    config = TrainingConfig(epochs=4, learning_rate=0.05, seed=3)
    history = ModelTrainer(config).train(model, X, y, progress=False)
    assert np.array_equal(fitted.history_.step_loss, history.step_loss)
    assert np.array_equal(fitted.predict_proba(X), predict_proba(model, X))
    assert fitted.classes_.tolist() == ['a', 'b', 'c']
    assert fitted.predict(X).tolist() == [
        'abc'[index] for index in fitted.decision_function(X).argmax(axis=1)
    ]


def test_a_search_compiles_nothing_after_the_first_fit(fitted, count_compiles):
    pipeline = make_pipeline(StandardScaler(), ThinkMLClassifier(**SMALL, weight_decay=0.0))
    grid = {
        'thinkmlclassifier__learning_rate': [0.01, 0.05],
        'thinkmlclassifier__weight_decay': [0.0, 0.1],
        'thinkmlclassifier__random_state': [0, 1],
    }
    search = GridSearchCV(pipeline, grid, cv=3)
    pipeline.fit(X, y).predict(X[:20])
    rows = np.arange(61)  # folds of 40 and 41 rows, tests of 20 and 21
    assert count_compiles(search.fit, X[rows], y[rows]) == 0
    assert len({*search.cv_results_['mean_test_score']}) > 1
    best = search.best_estimator_[-1]
    assert best.learning_rate == search.best_params_['thinkmlclassifier__learning_rate']


def test_a_search_tries_arguments_of_the_model():
    search = GridSearchCV(
        ThinkMLClassifier(make_linear, **SETTINGS), {'model__scale': [0.0, 0.5]}, cv=2, refit=False
    )
    search.fit(X, y)
    assert search.cv_results_['param_model__scale'].tolist() == [0.0, 0.5]
    classifier = clone(search.estimator).set_params(model__scale=2.0, epochs=1)
    assert clone(classifier).get_params() == classifier.get_params()
    assert classifier.get_params()['model__scale'] == 2.0
    assert 'model__scale' not in search.estimator.get_params()
    assert 'model__scale=2.0' in repr(classifier)


def test_a_model_is_the_start_of_every_fit_and_stays_as_it_is():
    model = make_linear(4, 3, rngs=nnx.Rngs(0))
    before = np.array(model.kernel[...])
    classifier = ThinkMLClassifier(model, **SETTINGS).fit(X, y)
    first = classifier.predict_proba(X)
    copied = clone(classifier)
    assert np.array_equal(model.kernel[...], before)
    assert np.array_equal(copied.model.kernel[...], before)
    assert classifier.model is model and copied.model is not model
    for again in (classifier, copied):
        assert np.array_equal(again.fit(X, y).predict_proba(X), first)
    assert not np.array_equal(classifier.model_.kernel[...], before)
    assert ModelTrainer(TrainingConfig(epochs=1)).train(model, X, y, progress=False).epochs == 1
    other = ThinkMLClassifier(model, **SETTINGS).fit(X, np.char.upper(y))  # and no warning
    assert other.classes_.tolist() == ['A', 'B', 'C']


@pytest.mark.compiled
def test_a_prediction_does_not_depend_on_the_rows_beside_it():
    regressor = ThinkMLRegressor('mlp', **SETTINGS).fit(X, X[:, 0])
    alone = np.concatenate([regressor.predict(row) for row in np.split(X, 64)])
    assert np.array_equal(alone, regressor.predict(X))


def test_the_random_state_is_the_seed(fitted):
    probabilities = fitted.predict_proba(X)
    for state, is_same in ((np.int64(3), True), (4, False), (None, False)):
        other = clone(fitted).set_params(random_state=state).fit(X, y)
        assert np.array_equal(other.predict_proba(X), probabilities) == is_same
    drawn = [
        clone(fitted).set_params(random_state=np.random.RandomState(7)).fit(X, y).predict_proba(X)
        for _ in range(2)
    ]
    assert np.array_equal(*drawn)


# All rows are one batch, so a pass is one step whatever the order of the rows.
FULL_BATCH = {**SMALL, 'batch_size': 64}


def test_partial_fits_are_the_steps_of_one_fit_even_through_pickles():
    whole = ThinkMLClassifier(**FULL_BATCH).fit(X, y)
    parts = ThinkMLClassifier(**FULL_BATCH, early_stopping=True, validation_split=0.5)
    for call in range(4):
        classes = None if call else ['a', 'b', 'c']
        parts = pickle.loads(pickle.dumps(parts.partial_fit(X, y, classes=classes)))
        assert parts.history_.epochs == 1
    np.testing.assert_allclose(parts.predict_proba(X), whole.predict_proba(X), atol=1e-5)
    parts.partial_fit(X[y == 'a'], y[y == 'a'])
    assert parts.classes_.tolist() == ['a', 'b', 'c']


def test_a_warm_start_continues_with_the_weights_alone():
    warm = ThinkMLClassifier(**SMALL, warm_start=True).fit(X, y)
    model = warm.model_
    warm.fit(X, y)
    expected = create('mlp', 3, in_features=4, hidden=(8,), seed=3)
    for seed in (3, 4):  # another order of the rows than in the first fit
        config = TrainingConfig(epochs=4, learning_rate=0.05, seed=seed)
        ModelTrainer(config).train(expected, X, y, progress=False)
    assert warm.model_ is model
    assert np.array_equal(warm.predict_proba(X), predict_proba(expected, X))


def test_a_pickle_holds_a_model_file_and_no_arrays_of_the_model(fitted, tmp_path):
    named = []

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            named.append(module.split('.')[0])
            return super().find_class(module, name)

    read = Reader(io.BytesIO(pickle.dumps(fitted))).load()
    assert {*named} <= {'thinkml', 'numpy', 'builtins'}
    joblib.dump(fitted, tmp_path / 'classifier.joblib')
    for one in (read, joblib.load(tmp_path / 'classifier.joblib')):
        assert np.array_equal(one.predict_proba(X), fitted.predict_proba(X))
        assert one.history_ == fitted.history_
        assert one.get_params() == fitted.get_params()
    model = make_linear(4, 3, rngs=nnx.Rngs(0))
    unfitted = pickle.loads(pickle.dumps(ThinkMLClassifier(model)))
    assert np.array_equal(unfitted.model.kernel[...], model.kernel[...])


def test_weights_are_routed_and_count_as_class_weights_do(fitted):
    weight = np.where(y == 'a', 5.0, 1.0)
    weighted = clone(fitted).fit(X, y, sample_weight=weight)
    by_class = clone(fitted).set_params(class_weight={'a': 5.0}).fit(X, y)
    assert np.array_equal(weighted.predict_proba(X), by_class.predict_proba(X))
    assert not np.array_equal(weighted.predict_proba(X), fitted.predict_proba(X))
    with sklearn.config_context(enable_metadata_routing=True):
        routed = clone(fitted).set_fit_request(sample_weight=True)
        routed.set_score_request(sample_weight=True)
        scaler = StandardScaler(with_mean=False, with_std=False).set_fit_request(
            sample_weight=False
        )
        pipeline = make_pipeline(scaler, routed)
        search = GridSearchCV(pipeline, {}, cv=2).fit(X, y, sample_weight=weight)
    assert np.array_equal(search.predict_proba(X), weighted.predict_proba(X))


def test_tools_of_scikit_learn_take_the_estimators(fitted):
    calibrated = CalibratedClassifierCV(clone(fitted), cv=2).fit(X, y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1)
    stacked = StackingClassifier(
        [('thinkml', clone(fitted))], final_estimator=LogisticRegression(), cv=2
    ).fit(X, y)
    assert stacked.transform(X).shape == (64, 3)
    importance = permutation_importance(fitted, X, y, n_repeats=2, random_state=0)
    assert importance.importances_mean.argmin() == 3  # the column that the labels do not depend on
    assert fitted._repr_html_()


def test_frames_sparse_rows_and_images(fitted):
    frame = pd.DataFrame(X, columns=['p', 'q', 'r', 's'])
    named = clone(fitted).fit(frame, y)
    assert named.feature_names_in_.tolist() == ['p', 'q', 'r', 's']
    assert np.array_equal(named.predict_proba(frame), fitted.predict_proba(X))
    with pytest.raises(ValueError, match='feature names'):
        named.predict(frame.rename(columns={'p': 't'}))
    of_sparse = clone(fitted).fit(sparse.csr_array(X), y)
    assert np.array_equal(of_sparse.predict_proba(sparse.csr_array(X)), fitted.predict_proba(X))
    images = clone(fitted).fit(X.reshape(64, 2, 2), y)
    assert np.array_equal(images.predict_proba(X.reshape(64, 2, 2)), fitted.predict_proba(X))


def test_one_logit_decides_two_classes():
    classifier = ThinkMLClassifier(nnx.Linear(4, 1, rngs=nnx.Rngs(0)), **SETTINGS).fit(X, y == 'a')
    logits = classifier.decision_function(X)
    np.testing.assert_allclose(classifier.predict_proba(X)[:, 1], 1 / (1 + np.exp(-logits)), 1e-5)
    assert np.array_equal(classifier.predict(X), logits > 0)


def test_several_labels_and_several_targets():
    labels = (X[:, :2] > 0).astype(int)
    classifier = ThinkMLClassifier(make_linear, **SETTINGS, model__scale=0.0)
    classifier.set_params(epochs=40).fit(X, labels)
    assert classifier.score(X, labels) > 0.9
    assert classifier.classes_.tolist() == [0, 1]
    assert classifier.predict_proba(X).shape == classifier.decision_function(X).shape == (64, 2)
    targets = X @ np.arange(8.0).reshape(4, 2) + [1, 2]
    regressor = ThinkMLRegressor(make_linear, optimizer='sgd', batch_size=64, epochs=200)
    regressor.set_params(learning_rate=0.2, random_state=0).fit(X, targets)
    expected = LinearRegression().fit(X, targets).predict(X)
    np.testing.assert_allclose(regressor.predict(X), expected, atol=1e-3)
    column = regressor.set_params(epochs=1).fit(X, targets[:, 0])
    assert column.predict(X).shape == (64,)


def test_early_stopping_and_the_validation_split_are_passed_on(fitted):
    classifier = clone(fitted).set_params(
        epochs=50, learning_rate=1e-9, validation_split=0.25, loss_fn='focal',
        early_stopping=EarlyStopping(patience=1, min_delta=1.0),
    )  # fmt: skip
    history = classifier.fit(X, y).history_
    assert 1 < history.epochs < 50
    assert {'loss', 'val_loss', 'accuracy'} <= {*history.last()}


def test_an_interrupt_ends_a_search_and_keeps_what_was_learned(fitted):
    seen = []

    def interrupt(run):
        seen.append(run.epoch)
        signal.raise_signal(signal.SIGINT)

    classifier = clone(fitted).set_params(callbacks=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(classifier, {'learning_rate': [0.01, 0.1]}, cv=2).fit(X, y)
    assert seen == [1]
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(X, y)
    assert classifier.history_.epochs == 1
    assert classifier.predict(X).shape == (64,)


def test_a_larger_data_set_is_not_copied(fitted, monkeypatch):
    monkeypatch.setattr('thinkml.sklearn.estimator._MAX_PADDED_BYTES', 0)
    plain = clone(fitted).fit(X[:50], y[:50])
    config = TrainingConfig(epochs=4, learning_rate=0.05, seed=3)
    model = create('mlp', 3, in_features=4, hidden=(8,), seed=3)
    ModelTrainer(config).train(model, X[:50], y[:50], progress=False)
    assert np.array_equal(plain.predict_proba(X), predict_proba(model, X))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'model': 'mpl'}, r"model: got 'mpl'.*Did you mean 'mlp'"),
        ({'model': 3}, 'model: got 3, expected the name of an architecture'),
        ({'model__width': 3}, "model: got 'model__width', expected one of .*model__hidden"),
        ({'model': 'cnn', 'model__in_features': 3}, "got 'model__in_features'"),
        ({'model': lambda size, rngs: None}, 'model__size: got nothing, expected a value'),
        ({'model': lambda rngs: None}, 'model: the factory returned a NoneType'),
        ({'model': 'mlp', 'model__num_classes': 2}, 'it returns 2 outputs, but y has 3 cl'),
        ({'model': nnx.Linear(4, 3, rngs=nnx.Rngs(0)), 'model__a': 1}, 'model__a: got it beside'),
        ({'random_state': -1}, 'random_state: got -1, expected a whole number'),
        ({'epochs': 0, 'learning_rate': -1.0}, r'(?s)epochs: got 0.*learning_rate: got -1'),
        ({'warm_start': 'yes'}, 'warm_start: got'),
    ],
)
def test_impossible_settings_are_named_before_a_compile(settings, message, count_compiles):
    classifier = ThinkMLClassifier(**settings)

    def fit():
        with pytest.raises(ConfigError, match=message):
            classifier.fit(X, y)

    assert count_compiles(fit) == 0
    with pytest.raises(NotFittedError):
        classifier.predict(X)


def test_unknown_names_are_refused_at_once():
    for name, fix in (
        ('learnign_rate', "Did you mean 'learning_rate'"), ('seed', 'Here it is random_state'),
        ('max_iter', 'Here it is epochs'), ('lr', 'Here it is learning_rate'),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f'{name}: unknown parameter. {fix}'):
            ThinkMLClassifier(**{name: 1})
        with pytest.raises(ValueError, match=name):
            ThinkMLRegressor().set_params(**{name: 1})


def test_unusable_labels_are_named(fitted):
    continued = clone(fitted).partial_fit(X, y)
    for fit, message in (
        (lambda: clone(fitted).fit(X, np.full(64, 'a')), "y: got one class, 'a'"),
        (lambda: continued.partial_fit(X, np.full(64, 'd')), r"y: got the labels \['d'\]"),
        (lambda: continued.partial_fit(X, y, classes=['a', 'd']), r"classes: got \['a', 'd'\]"),
        (lambda: clone(fitted).fit(X, np.tile(np.arange(64)[:, None] % 3, 2)), 'y: got 2 columns'),
    ):
        with pytest.raises(DataError, match=message):
            fit()


def test_scikit_learn_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.utils.validation', None)
    monkeypatch.delitem(sys.modules, 'thinkml.sklearn')
    with pytest.raises(ImportError, match=r"Install it with pip install 'scikit-learn>=1\.6'"):
        importlib.import_module('thinkml.sklearn')
