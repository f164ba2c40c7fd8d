"""`ModelEvaluator.evaluate` on models, compared with scikit-learn on the same outputs."""

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
import sklearn.metrics as sk
from flax import nnx
from sklearn.datasets import load_breast_cancer

from tests.processes import simulating
from thinkml.core import predict_outputs
from thinkml.core.model.adapters import from_functions, from_linen
from thinkml.errors import ConfigError, DataError, ModelTypeError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator, compare, external_models, model_outputs
from thinkml.evaluation.metrics.registry import metrics_for
from thinkml.models import ModelManager

from .models import Shifted, known, logits_and_labels

REPOSITORY = Path(__file__).parents[2]


def softmax(logits):
    probabilities = np.exp(logits.astype(np.float64))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def test_multiclass_with_text_labels():
    logits, labels = logits_and_labels(500, 3)
    classes = np.array(['ant', 'bee', 'cat'])
    y_test = classes[labels]
    model = known(Shifted(), 'multiclass', tuple(classes.tolist()), 3)

    evaluation = ModelEvaluator().evaluate(model=model, X_test=logits, y_test=y_test)

    predictions = classes[logits.argmax(axis=1)]
    np.testing.assert_array_equal(evaluation.predictions, predictions)
    np.testing.assert_allclose(evaluation.probabilities, softmax(logits), rtol=1e-5)
    np.testing.assert_array_equal(evaluation.labels, y_test)
    np.testing.assert_array_equal(
        evaluation.confusion_matrix, sk.confusion_matrix(y_test, predictions)
    )
    assert evaluation.task.kind == 'multiclass'
    assert evaluation.metrics == pytest.approx(
        {
            'accuracy': sk.accuracy_score(y_test, predictions),
            'precision': sk.precision_score(y_test, predictions, average='macro'),
            'recall': sk.recall_score(y_test, predictions, average='macro'),
            'f1': sk.f1_score(y_test, predictions, average='macro'),
            'roc_auc': sk.roc_auc_score(y_test, softmax(logits), multi_class='ovr'),
            'log_loss': sk.log_loss(y_test, softmax(logits)),
        },
        rel=1e-6,
    )
    assert all(type(value) is float for value in evaluation.metrics.values())
    assert evaluation['f1'] == evaluation.metrics['f1']

    expected = sk.classification_report(y_test, predictions, output_dict=True)
    for label, row in evaluation.per_class.items():
        assert row['f1'] == pytest.approx(expected[label]['f1-score'])
        for name in ('precision', 'recall', 'support'):
            assert row[name] == pytest.approx(expected[label][name])
        assert type(row['support']) is int


@pytest.mark.parametrize('num_outputs', [1, 2])
def test_binary_positive_class_is_the_larger_label(num_outputs):
    logits, labels = logits_and_labels(200, 2)
    if num_outputs == 1:
        logits = logits[:, 1:] - logits[:, :1]
    y_test = np.where(labels == 1, 7, 3)
    model = known(Shifted(), 'binary', (3, 7), num_outputs)

    evaluation = ModelEvaluator().evaluate(
        model, logits, y_test, metrics=['accuracy', 'precision', 'recall', 'f1', 'roc_auc']
    )

    score = logits[:, -1] - (logits[:, 0] if num_outputs == 2 else 0)
    predictions = np.where(score > 0, 7, 3)
    np.testing.assert_array_equal(evaluation.predictions, predictions)
    assert list(evaluation.metrics) == ['accuracy', 'precision', 'recall', 'f1', 'roc_auc']
    assert evaluation['precision'] == pytest.approx(
        sk.precision_score(y_test, predictions, pos_label=7)
    )
    assert evaluation['recall'] == pytest.approx(sk.recall_score(y_test, predictions, pos_label=7))
    assert evaluation['roc_auc'] == pytest.approx(sk.roc_auc_score(y_test, score), rel=1e-6)
    assert set(evaluation.per_class) == {3, 7}


def test_one_hot_labels_are_evaluated_as_their_classes():
    logits, labels = logits_and_labels(50, 4)
    one_hot = known(Shifted(), 'multiclass', (0, 1, 2, 3), 4, (4,))
    plain = known(Shifted(), 'multiclass', (0, 1, 2, 3), 4)
    got = ModelEvaluator().evaluate(one_hot, logits, np.eye(4)[labels])
    expected = ModelEvaluator().evaluate(plain, logits, labels)
    assert got.metrics == expected.metrics
    np.testing.assert_array_equal(got.predictions.argmax(axis=1), expected.predictions)


def test_multilabel():
    rng = np.random.default_rng(0)
    y_test = rng.integers(2, size=(100, 3))
    logits = (2 * y_test - 1 + rng.normal(size=(100, 3))).astype(np.float32)
    evaluation = ModelEvaluator().evaluate(Shifted(), logits, y_test)  # the task is inferred
    assert evaluation.task.kind == 'multilabel'
    assert evaluation['accuracy'] == pytest.approx(sk.accuracy_score(y_test, logits > 0))
    assert evaluation['f1'] == pytest.approx(sk.f1_score(y_test, logits > 0, average='macro'))
    assert evaluation['roc_auc'] == pytest.approx(sk.roc_auc_score(y_test, logits), rel=1e-6)
    np.testing.assert_array_equal(
        evaluation.confusion_matrix, sk.multilabel_confusion_matrix(y_test, logits > 0)
    )
    assert evaluation.per_class[2]['support'] == y_test[:, 2].sum()


@pytest.mark.parametrize('shape', [(), (1,), (2,)])
def test_regression_keeps_the_precision_of_the_targets(shape):
    rng = np.random.default_rng(0)
    predicted = rng.normal(2000, 1, size=(40, *(shape or (1,)))).astype(np.float32)
    y_test = (predicted + rng.normal(0, 1e-3, size=predicted.shape)).reshape(40, *shape)
    evaluation = ModelEvaluator().evaluate(Shifted(), predicted, y_test)
    flat = predicted.astype(np.float64).reshape(y_test.shape)
    assert evaluation.metrics == pytest.approx(
        {
            'rmse': sk.root_mean_squared_error(y_test, flat),
            'mae': sk.mean_absolute_error(y_test, flat),
            'r2': sk.r2_score(y_test, flat),
        },
        rel=1e-6,
    )
    assert evaluation.predictions.shape == y_test.shape
    assert evaluation.per_class is evaluation.confusion_matrix is evaluation.probabilities is None


def test_a_single_row():
    logits, _ = logits_and_labels(1, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    y_test = logits.argmax(axis=1)
    with pytest.warns(ThinkMLWarning, match='roc_auc: NaN'):
        evaluation = ModelEvaluator().evaluate(model, logits, y_test)
    assert evaluation['accuracy'] == evaluation['f1'] == 1.0
    assert np.isnan(evaluation['roc_auc'])
    assert 'roc_auc=nan' in repr(evaluation)


def test_number_of_rows_changes_no_prediction():
    logits, labels = logits_and_labels(2500, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    whole = ModelEvaluator().evaluate(model, logits, labels)
    part = ModelEvaluator().evaluate(model, logits[:777], labels[:777])
    np.testing.assert_array_equal(whole.probabilities[:777], part.probabilities)
    assert part['accuracy'] == sk.accuracy_score(labels[:777], logits[:777].argmax(axis=1))


class Regularized(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.dropout(self.norm(x)))


def test_the_model_and_its_mode_stay_as_they_were():
    model = Regularized(nnx.Rngs(0))
    model.train()
    rng = np.random.default_rng(0)
    X, y = rng.normal(3, 2, size=(60, 4)), np.arange(60) % 2
    before = nnx.to_pure_dict(nnx.state(nnx.clone(model), nnx.Not(nnx.RngKey)))

    first = ModelEvaluator().evaluate(model, X, y)

    after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not model.dropout.deterministic
    assert not model.norm.use_running_average
    # It was computed in eval mode: no dropout, and statistics of training, not of this data.
    np.testing.assert_array_equal(
        first.probabilities, ModelEvaluator().evaluate(model, X, y).probabilities
    )
    model.eval()
    logits = np.asarray(model(jnp.asarray(X, jnp.float32)))
    np.testing.assert_allclose(first.probabilities, softmax(logits), rtol=1e-5)


def test_linen_and_function_models_score_the_same():
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    kernel = np.linspace(-1, 1, 30, dtype=np.float32)[:, None]
    linen = from_linen(nn.Dense(1, use_bias=False), {'params': {'kernel': jnp.asarray(kernel)}})
    functions = from_functions(lambda key, x: None, lambda w, x: x @ w, params=kernel)
    metrics = [ModelEvaluator().evaluate(model, X, y).metrics for model in (linen, functions)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6)
    score = (X @ kernel)[:, 0]
    assert metrics[0]['roc_auc'] == pytest.approx(sk.roc_auc_score(y, score), abs=1e-4)
    assert metrics[0]['f1'] == pytest.approx(sk.f1_score(y, score > 0))


def test_a_loaded_model_scores_the_same(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    labels = np.array(['ant', 'bee', 'cat'])[X[:, :3].argmax(axis=1)]
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    known(model, 'multiclass', ('ant', 'bee', 'cat'), 3)
    ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(tmp_path / 'model')
    first, again = (ModelEvaluator().evaluate(m, X, labels) for m in (model, loaded))
    assert first.metrics == again.metrics and again.task.classes == ('ant', 'bee', 'cat')


def test_unfit_metrics_are_refused_before_predicting(monkeypatch):
    def fail(*_):
        raise AssertionError('it predicted')

    monkeypatch.setattr(model_outputs, 'predict_outputs', fail)
    logits, labels = logits_and_labels(10, 3)
    evaluate = ModelEvaluator().evaluate
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        evaluate(Shifted(), logits, labels, metrics=['acuracy'])
    with pytest.raises(ConfigError, match="got 'rmse', but the task is multiclass"):
        evaluate(Shifted(), logits, labels, metrics=['accuracy', 'rmse'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda X, y: (X[:-1], y), 'X_test.*y_test'),
        (lambda X, y: (X[:, :2], y), 'X_test|y_test'),
        (lambda X, y: (np.where(X[3, 1] == X, np.nan, X), y), 'X_test: got 1 NaN'),
        (lambda X, y: (X, np.where(y == 0, 9, y)), r'y_test: .*\[9\]'),
        (lambda X, y: (X[:0], y[:0]), 'X_test: got an empty array'),
        (lambda X, y: (X, None), 'y_test'),
    ],
)
def test_data_that_does_not_fit(change, message):
    logits, labels = logits_and_labels(10, 3)
    model = known(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), 'multiclass', (0, 1, 2), 3)
    X_test, y_test = change(logits, labels)
    with pytest.raises(DataError, match=message):
        ModelEvaluator().evaluate(model, X_test, y_test)


def test_a_diverged_model_is_named_as_such():
    logits, labels = logits_and_labels(10, 3)
    with pytest.raises(DataError, match='model: it returns NaN or infinite values for 10 of 10'):
        ModelEvaluator().evaluate(Shifted(np.nan), logits, labels)


def test_what_is_no_model():
    with pytest.raises(ModelTypeError, match='model: got'):
        ModelEvaluator().evaluate(object(), np.ones((2, 2)), [0, 1])


@pytest.mark.parametrize(
    ('metrics', 'message'),
    [
        ('f1', r"metrics: got the string 'f1', expected a list: \['f1'\]"),
        ((name for name in ['f1']), 'metrics: got generator, expected a list of names'),
        ({'f1': 1}, 'metrics: got int, expected a list'),
        (3, 'metrics: got int, expected a list'),
        ([['f1']], r"metrics: got \['f1'\], expected one of"),
        (['f1', 3, None], r'(?s)metrics: got 3, .*metrics: got None, '),
    ],
)
def test_metrics_are_a_list_of_names(metrics, message):
    logits, labels = logits_and_labels(20, 2)
    with pytest.raises(ConfigError, match=message):
        ModelEvaluator().evaluate(Shifted(), logits, labels, metrics=metrics)


@pytest.mark.parametrize('kind', [list, tuple, set, frozenset])
def test_metrics_may_be_a_list_a_tuple_or_a_set(kind):
    logits, labels = logits_and_labels(20, 2)
    metrics = kind(['accuracy', 'recall', 'f1'])
    evaluation = ModelEvaluator().evaluate(Shifted(), logits, labels, metrics=metrics)
    assert list(evaluation.metrics) == ['accuracy', 'recall', 'f1']


@pytest.mark.parametrize('value', [None, {'f1': 1.0}, 'report'])
def test_a_report_of_anything_else_is_refused(value):
    with pytest.raises(
        ConfigError, match=f'evaluation: got {type(value).__name__}, expected the result'
    ):
        ModelEvaluator().generate_report(value)


def test_warnings_of_metrics_name_the_line_that_called():
    logits, _ = logits_and_labels(1, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    for call in (ModelEvaluator().evaluate, ModelEvaluator().analyze_performance):
        with pytest.warns(ThinkMLWarning) as caught:
            call(model, logits, logits.argmax(axis=1))
        found = {str(warning.message).split(':')[0] for warning in caught}
        assert {warning.filename for warning in caught} == {__file__}
        assert 'roc_auc' in found
    assert {'recall', 'average_precision'} & found


def test_repr_tells_task_rows_and_metrics():
    logits, labels = logits_and_labels(10, 3)
    evaluation = ModelEvaluator().evaluate(Shifted(), logits, labels, metrics=['accuracy'])
    accuracy = f'{evaluation["accuracy"]:.4f}'
    expected = f'Evaluation(multiclass, 3 classes (0, 1, 2), 10 rows: accuracy={accuracy})'
    assert repr(evaluation) == str(evaluation) == expected


# --- models of other libraries ----------------------------------------------------------------


@pytest.mark.parametrize('name', ['binary', 'text', 'multiclass', 'multilabel', 'regression'])
def test_models_of_scikit_learn(name):
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    number = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)
    y = {
        'binary': number.clip(max=1), 'text': np.array(['a', 'b', 'c'])[number],
        'multiclass': number, 'multilabel': (X[:, :3] > 0).astype(int), 'regression': X[:, 0],
    }[name]  # fmt: skip
    kind = RandomForestRegressor if name == 'regression' else RandomForestClassifier
    model = kind(5, max_depth=3, random_state=0).fit(X, y)
    evaluation = ModelEvaluator().evaluate(model, X, y)
    predictions = model.predict(X)
    if name == 'regression':
        assert evaluation['r2'] == pytest.approx(sk.r2_score(y, predictions))
        return
    average = 'binary' if name == 'binary' else 'macro'
    assert evaluation['f1'] == pytest.approx(sk.f1_score(y, predictions, average=average))
    assert evaluation['accuracy'] == pytest.approx(sk.accuracy_score(y, predictions))
    probabilities = model.predict_proba(X)
    if name == 'multilabel':
        probabilities = np.stack([column[:, 1] for column in probabilities], axis=1)
    elif name == 'binary':
        probabilities = probabilities[:, 1]
    expected = sk.roc_auc_score(y, probabilities, multi_class='ovr')
    assert evaluation['roc_auc'] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(evaluation.predictions, predictions)


def test_a_regressor_of_whole_numbers_is_one():
    from sklearn.linear_model import LinearRegression

    X = np.random.default_rng(0).normal(size=(60, 3))
    y = np.round(10 * X[:, 0]).astype(int)
    model = LinearRegression().fit(X, y)
    evaluation = ModelEvaluator().evaluate(model, X, y)
    assert evaluation.metrics == pytest.approx({
        'rmse': sk.root_mean_squared_error(y, model.predict(X)),
        'mae': sk.mean_absolute_error(y, model.predict(X)), 'r2': model.score(X, y),
    })  # fmt: skip


def test_a_model_that_only_predicts():
    class Sign:
        def predict(self, X):
            return (X[:, 0] > 0).astype(int)

    X, y = np.array([[-1.0], [2.0], [3.0]]), np.array([0, 1, 0])
    evaluation = ModelEvaluator().evaluate(Sign(), X, y)
    assert evaluation['accuracy'] == pytest.approx(2 / 3) and 'roc_auc' not in evaluation.metrics
    with pytest.raises(ConfigError, match="'roc_auc' need probabilities, but the model has no"):
        ModelEvaluator().evaluate(Sign(), X, y, metrics=['accuracy', 'roc_auc'])


class Predicts:
    """A model of another library that returns the predictions it was made with."""

    def __init__(self, predictions, probabilities=None, classes=None):
        self.predictions = np.asarray(predictions)
        if probabilities is not None:
            self.predict_proba = lambda X: np.asarray(probabilities)[X]
        if classes is not None:
            self.classes_ = np.asarray(classes)

    def predict(self, X):
        return self.predictions[X]


class Short(Predicts):
    """A model that leaves out the last row."""

    def predict(self, X):
        return super().predict(X)[:-1]


def test_models_of_many_labels_that_say_so_with_classes_of_one_axis():
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    X = np.random.default_rng(0).normal(size=(120, 3))
    Y = (X[:, :2] + 0.5 * X[:, 1:] > 0).astype(int)
    model = OneVsRestClassifier(LogisticRegression()).fit(X, Y)
    evaluation = ModelEvaluator().evaluate(model, X, Y)
    assert evaluation.task.kind == 'multilabel'
    assert evaluation['f1'] == pytest.approx(sk.f1_score(Y, model.predict(X), average='macro'))
    assert evaluation['roc_auc'] == pytest.approx(sk.roc_auc_score(Y, model.predict_proba(X)))
    assert evaluation.versions['sklearn'] == sklearn.__version__
    assert len(evaluation.data_fingerprint['sha256']) == 64


def test_classes_in_another_order_are_sorted():
    y = np.array(['yes', 'no', 'yes', 'yes'])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]])
    predictions = np.where(probabilities[:, 0] > 0.5, 'yes', 'no')
    rows = np.arange(4)
    one = ModelEvaluator().evaluate(Predicts(predictions, probabilities, ['yes', 'no']), rows, y)
    other = ModelEvaluator().evaluate(
        Predicts(predictions, probabilities[:, ::-1], ['no', 'yes']), rows, y
    )
    assert one.task.classes == ('no', 'yes') and one.metrics == other.metrics
    assert one['precision'] == sk.precision_score(y, predictions, pos_label='yes')


@pytest.mark.parametrize('kind', ['list', 'frame', 'sparse'])
def test_rows_of_other_libraries_come_in_parts_too(kind, monkeypatch):
    pandas, sparse = pytest.importorskip('pandas'), pytest.importorskip('scipy.sparse')
    sizes = []

    class Sees(Predicts):
        def predict(self, X):
            sizes.append(X.shape[0] if hasattr(X, 'shape') else len(X))
            values = X.toarray() if kind == 'sparse' else np.asarray(X)
            return (values[:, 0] > 0).astype(int)

    X = np.random.default_rng(0).normal(size=(10, 2))
    given = {'list': X.tolist(), 'frame': pandas.DataFrame(X), 'sparse': sparse.csr_matrix(X)}
    monkeypatch.setattr(external_models, '_BATCH_ROWS', 4)
    evaluation = ModelEvaluator().evaluate(Sees([]), given[kind], (X[:, 0] > 0).astype(int))
    assert evaluation['accuracy'] == 1 and sizes == [4, 4, 2]


def test_a_label_that_training_never_saw_has_probability_zero():
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(80, 3)), rng.integers(2, size=(80, 3))
    Y[:, 2] = 0
    model = RandomForestClassifier(5, random_state=0).fit(X, Y)
    evaluation = ModelEvaluator().evaluate(model, X, Y, metrics=['brier'])
    assert (evaluation.probabilities[:, 2] == 0).all()


def test_regression_keeps_all_digits():
    rng = np.random.default_rng(0)
    y = 1.7e9 + rng.normal(size=200) * 3600
    predictions = y + rng.normal(size=200)
    evaluation = ModelEvaluator().evaluate(Predicts(predictions), np.arange(200), y)
    assert evaluation['rmse'] == pytest.approx(sk.root_mean_squared_error(y, predictions), rel=1e-9)


def test_classes_are_those_of_labels_and_predictions():
    evaluation = ModelEvaluator().evaluate(Predicts([0, 1, 1]), np.arange(3), np.ones(3, int))
    assert evaluation.task.classes == (0, 1)
    assert evaluation['accuracy'] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ('model', 'y', 'error', 'message'),
    [
        (Predicts([0.2, 0.7, 0.9]), [0, 1, 1], DataError, 'predict returned floating-point'),
        (
            Predicts([0, 1, 2], classes=[0, 1, 2]), np.eye(3), DataError,
            r'y_test: got shape \(3, 3\).*y_test.argmax',
        ),
        (
            Predicts([0, 1, 1], np.full((3, 2), 3.0)), [0, 1, 1], DataError,
            'predict_proba returned values from 3 to 3, expected probabilities',
        ),
        (
            Predicts([0, 1, 1], np.full((3, 2), 0.9)), [0, 1, 1], DataError,
            'predict_proba returned rows that sum to 1.8, expected 1',
        ),
        (
            Predicts([[0, 1, 1]] * 3, classes=[0, 1]), [0, 1, 1], DataError,
            'predictions: got shape|predict',
        ),
        (Short([0, 1, 1]), [0, 1, 1], DataError, 'model: predict returned 2 rows for 3 of X_test'),
        (Predicts, [0, 1, 1], ModelTypeError, 'model: got the class Predicts'),
    ],
)  # fmt: skip
def test_models_of_other_libraries_that_do_not_fit(model, y, error, message):
    with pytest.raises(error, match=message):
        ModelEvaluator().evaluate(model, np.arange(3), y)


@pytest.mark.parametrize('kind', ['classes', 'numbers', 'labels', 'probabilities', 'library'])
def test_an_evaluation_does_not_change_with_the_arrays_of_its_caller(kind):
    labels = np.array([0, 1, 1, 0])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    model, X, y = {
        'classes': (known(Shifted(), 'binary', (0, 1), 2), probabilities, labels),
        'numbers': (
            known(Shifted(), 'regression', None, 1),
            probabilities[:, 0],
            probabilities[:, 1].copy(),
        ),
        'labels': (
            known(Shifted(), 'multilabel', (0, 1), 2, (2,)),
            probabilities,
            np.eye(2)[labels],
        ),
        'probabilities': (Predicts(labels.copy(), probabilities, [0, 1]), slice(None), labels),
        'library': (Predicts(probabilities[:, 0]), slice(None), probabilities[:, 1].copy()),
    }[kind]
    if isinstance(X, slice):  # the model's own arrays, which `X` takes as they are
        model.predict = lambda X: model.predictions
        model.predict_proba = lambda X: probabilities
        X = np.arange(4)
    evaluation = ModelEvaluator().evaluate(model, X.astype(np.float32), y)
    arrays = ('labels', 'encoded_labels', 'predictions', 'probabilities')
    before = {name: np.copy(getattr(evaluation, name)) for name in arrays}
    for array in (y, probabilities, getattr(model, 'predictions', y)):
        array[...] = 0
    for name in arrays:
        np.testing.assert_array_equal(getattr(evaluation, name), before[name])


@pytest.mark.parametrize('second', [[1, 1], [np.nan, np.nan], [None, 'b']])
def test_text_labels_of_batches_stay_apart_from_others(second):
    model = known(Shifted(), 'binary', ('a', 'b'), 2)
    parts = [np.array(['a', 'b']), np.array(second, object)]
    if second[0] == 1:
        parts[1] = np.array(second)

    def batches():
        yield from ((np.zeros((2, 2), np.float32), part) for part in parts)

    with pytest.raises(DataError, match=r'X_test, labels: got (text mixed|. missing)'):
        ModelEvaluator().evaluate(model, batches)


# --- weights, custom metrics, slices, several data sets ---------------------------------------


def case_of_three(n=300):
    logits, labels = logits_and_labels(n, 3)
    return known(Shifted(), 'multiclass', (0, 1, 2), 3), logits, labels


def margin(logits, labels):
    """A custom metric."""
    return logits.max(axis=1) - np.sort(logits, axis=1)[:, -2]


def test_sample_weights_are_those_of_scikit_learn():
    model, logits, labels = case_of_three()
    weight = np.random.default_rng(3).random(300)
    evaluation = ModelEvaluator().evaluate(model, logits, labels, sample_weight=weight)
    predictions = logits.argmax(axis=1)
    expected = {
        'accuracy': sk.accuracy_score(labels, predictions, sample_weight=weight),
        'f1': sk.f1_score(labels, predictions, average='macro', sample_weight=weight),
        'roc_auc': sk.roc_auc_score(
            labels, softmax(logits), multi_class='ovr', sample_weight=weight
        ),
        'log_loss': sk.log_loss(labels, softmax(logits), sample_weight=weight),
    }
    got = {name: evaluation[name] for name in expected}
    assert got == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        evaluation.confusion_matrix, sk.confusion_matrix(labels, predictions, sample_weight=weight)
    )


def test_metrics_of_ones_own():
    from clu.metrics import Accuracy

    def largest(logits, labels):
        return logits.max()

    model, logits, labels = case_of_three()
    evaluation = ModelEvaluator().evaluate(
        model, logits, labels, metrics=['f1', margin, largest, Accuracy]
    )
    assert list(evaluation.metrics) == ['f1', 'margin', 'largest', 'accuracy']
    assert evaluation['margin'] == pytest.approx(margin(logits, labels).mean(), rel=1e-6)
    assert evaluation['largest'] == pytest.approx(logits.max())
    assert evaluation['accuracy'] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert set(evaluation.confidence_intervals) == {'f1', 'margin'}
    with pytest.warns(ThinkMLWarning, match='largest: it returned one number for all rows, so '):
        ModelEvaluator().evaluate(
            model, logits, labels, metrics=[margin, largest], sample_weight=np.ones(300)
        )


def squared(predictions, targets):
    return (predictions - targets) ** 2


@pytest.mark.parametrize('form', ['rows', 'column'])
def test_metrics_of_ones_own_get_rows_without_an_axis_of_one(form):
    X = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    y = X + np.float32(0.5) * (np.arange(40) % 2)[:, None]
    y = y[:, 0] if form == 'rows' else y
    first = np.arange(40) % 2 == 0
    model = known(Shifted(), 'regression', None, 1, y.shape[1:])
    evaluation, other = (
        ModelEvaluator().evaluate(
            each, X, y, [squared, 'mse'], slices={'first': first}, min_support=1
        )
        for each in (model, known(Shifted(1.0), 'regression', None, 1, y.shape[1:]))
    )
    assert evaluation['squared'] == pytest.approx(0.125)
    assert evaluation.slices['first'].metrics['squared'] == 0
    assert evaluation.confidence_intervals['squared'] == pytest.approx(
        evaluation.confidence_intervals['mse']
    )
    found = compare(evaluation, other).differences
    assert found['squared'].difference == pytest.approx(found['mse'].difference)


def test_what_training_refuses_of_a_metric_of_ones_own_evaluation_refuses_too():
    from clu.metrics import Accuracy

    def two_a_row(logits, labels):
        return np.stack([logits, logits], axis=1)

    def a_column(logits, labels):
        return logits[:, None]

    def an_array_of_one(logits, labels):
        return logits[:1]

    def nothing(logits, labels):
        pass

    X, y = np.ones((4, 1), np.float32), np.array([0, 1, 1, 1])
    model = known(Shifted(), 'binary', (0, 1), 1)
    for function in (two_a_row, a_column, an_array_of_one, nothing):
        with pytest.raises(ConfigError, match=f"metrics: '{function.__name__}' returned "):
            ModelEvaluator().evaluate(model, X, y, [function])
    # With one logit it would take the only output for class 0.
    with pytest.raises(ConfigError, match=r"metrics: 'accuracy' failed for logits \(4,\)"):
        ModelEvaluator().evaluate(model, X, y, [Accuracy])


@pytest.mark.parametrize('settings', [{'groups': 0}, {'stratify': 0}, {'slices': {'site': 0}}])
def test_the_text_nan_in_groups_and_slices_is_warned_of(settings):
    model, logits, labels = case_of_three()
    site = np.array(['a', 'b', np.nan] * 100)
    given = {name: {'site': site} if name == 'slices' else site for name in settings}
    with pytest.warns(ThinkMLWarning, match=r"got the text 'nan' as a (group|slice), which NumPy"):
        ModelEvaluator().evaluate(model, logits, labels, **given)


def test_batches_whose_labels_differ_in_form_are_refused():
    X, y = np.ones((4, 1), np.float32), np.array([0, 1, 1, 1])
    batches = iter([(X[:2], y[:2]), (X[2:], y[2:, None])])
    with pytest.raises(DataError, match=r'^X_test, labels: got shape \(2,\) .* and \(2, 1\)'):
        ModelEvaluator().evaluate(known(Shifted(), 'binary', (0, 1), 1), batches)


def test_an_error_of_a_metric_of_ones_own_says_whose_it_is():
    def fails(logits, labels):
        raise KeyError('x')

    X, y = np.ones((4, 1), np.float32), np.array([0, 1, 1, 1])
    with pytest.raises(KeyError) as caught:
        ModelEvaluator().evaluate(known(Shifted(), 'binary', (0, 1), 1), X, y, [fails])
    assert caught.value.__notes__ == ["Raised by the metric 'fails'."]


def test_slices_are_evaluations_of_their_rows():
    model, logits, labels = case_of_three()
    site = np.array(['A', 'B', 'C'])[np.arange(300) % 3]
    slices = {'site': site, 'first': np.arange(300) < 200, 'few': np.arange(300) < 5}
    evaluate = ModelEvaluator().evaluate
    evaluation = evaluate(model, logits, labels, slices=slices)
    assert list(evaluation.slices) == ['site = A', 'site = B', 'site = C', 'first', 'few']
    for name, rows in {'site = B': site == 'B', 'first': slices['first']}.items():
        alone, found = evaluate(model, logits[rows], labels[rows]), evaluation.slices[name]
        assert found.metrics == pytest.approx(alone.metrics, rel=1e-6)
        assert found.num_rows == rows.sum() and found.is_supported
        assert found.gaps['f1'] == pytest.approx(alone['f1'] - evaluation['f1'])
        for metric, (low, high) in found.confidence_intervals.items():
            assert low <= found.metrics[metric] <= high
            assert low == pytest.approx(alone.confidence_intervals[metric][0], abs=0.06)
    few = evaluation.slices['few']
    assert not few.is_supported and few.num_rows == 5 and few.metrics == {}


@pytest.mark.filterwarnings('ignore::thinkml.errors.ThinkMLWarning')
@pytest.mark.parametrize('weighted', [False, True])
def test_every_metric_of_a_slice_is_that_of_its_rows(weighted):
    model, logits, labels = case_of_three()
    first = np.random.default_rng(0).random(300) < 0.4
    weight = np.random.default_rng(1).integers(3, size=300) * 0.5 * (labels != 2)
    if not weighted:
        weight = np.ones(300)
    settings = {'metrics': [*metrics_for('multiclass'), margin], 'confidence': None}
    whole = ModelEvaluator().evaluate(
        model, logits, labels, sample_weight=weight, slices={'first': first}, **settings
    )
    alone = ModelEvaluator().evaluate(
        model, logits[first], labels[first], sample_weight=weight[first], **settings
    )
    assert whole.slices['first'].metrics == pytest.approx(alone.metrics, rel=1e-9, nan_ok=True)
    assert set(alone.metrics) >= {'ece_adaptive', 'margin', 'roc_auc_ovo'}


def test_several_data_sets():
    model, logits, labels = case_of_three()
    halves = {'test': (logits[:200], labels[:200]), 'site B': (logits[200:], labels[200:])}
    weights = {'site B': np.linspace(0.1, 1, 100)}
    found = ModelEvaluator().evaluate(model, halves, sample_weight=weights)
    assert list(found) == ['test', 'site B'] == [one.name for one in found.values()]
    alone = ModelEvaluator().evaluate(model, *halves['site B'], sample_weight=weights['site B'])
    assert found['site B'].metrics == alone.metrics
    assert found['test'].metrics == ModelEvaluator().evaluate(model, *halves['test']).metrics


def test_what_is_undefined_in_a_slice_is_said():
    model, logits, labels = case_of_three()
    slices = {'zeros': labels == 0, 'ones': labels == 1, 'all': labels >= 0}
    with pytest.warns(ThinkMLWarning, match="slices 'zeros', 'ones': roc_auc: NaN"):
        evaluation = ModelEvaluator().evaluate(
            model, logits, labels, ['accuracy', 'roc_auc'], slices=slices
        )
    assert len(evaluation.warnings) == 1


def test_a_slice_needs_rows_that_count():
    model, logits, labels = case_of_three()
    first = np.arange(300) < 50
    evaluation = ModelEvaluator().evaluate(
        model, logits, labels, sample_weight=np.where(first, 0.0, 2.0),
        slices={'first': first, 'others': ~first}, min_support=1,
    )  # fmt: skip
    assert not evaluation.slices['first'].is_supported
    assert evaluation.slices['others'].gaps == dict.fromkeys(evaluation.metrics, 0)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_the_scale_of_weights_changes_no_interval(scale):
    model, logits, labels = case_of_three()
    weight = np.random.default_rng(3).random(300)
    one, other = (
        ModelEvaluator().evaluate(model, logits, labels, sample_weight=w, num_resamples=50)
        for w in (weight, weight * scale)
    )
    for name, interval in one.confidence_intervals.items():
        assert other.confidence_intervals[name] == pytest.approx(interval, rel=1e-5)


def test_an_evaluation_is_a_mapping_of_its_metrics_and_survives_other_processes():
    model, logits, labels = case_of_three()
    evaluation = ModelEvaluator().evaluate(model, logits, labels, metrics=['f1', 'mcc', margin])
    assert list(evaluation) == ['f1', 'mcc', 'margin'] and 'f1' in evaluation
    again = pickle.loads(pickle.dumps(evaluation))
    assert again.metrics == evaluation.metrics
    assert again.confidence_intervals == evaluation.confidence_intervals
    assert compare(again, evaluation).differences['margin'].difference == 0


def test_several_data_sets_that_do_not_fit():
    model, logits, labels = case_of_three()
    sets = {'test': (logits, labels)}
    with pytest.raises(DataError, match='y_test: got a ndarray beside several data sets'):
        ModelEvaluator().evaluate(model, sets, labels)
    with pytest.raises(ConfigError, match="slices: got a dict of 'old' beside several data sets"):
        ModelEvaluator().evaluate(model, sets, slices={'old': labels > 0})
    with pytest.raises(
        DataError, match="X_test: got a dict of 'test' with tuples that are not pairs, expected"
    ):
        ModelEvaluator().evaluate(model, {'test': (logits, labels, labels)})
    with pytest.warns(ThinkMLWarning, match='test: roc_auc: NaN'):
        ModelEvaluator().evaluate(model, {'test': [logits, labels * 0]}, metrics=['roc_auc'])


def test_undefined_values_are_warned_of_and_recorded():
    model, logits, _ = case_of_three()
    with pytest.warns(ThinkMLWarning) as caught:
        evaluation = ModelEvaluator().evaluate(model, logits, np.zeros(300, int))
    assert evaluation.warnings == tuple(str(warning.message) for warning in caught)
    assert any(text.startswith('roc_auc: NaN, since') for text in evaluation.warnings)
    assert all(warning.filename == __file__ for warning in caught)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'confidence': 95}, ConfigError, 'confidence: got 95, expected a fraction such as 0.95'),
        ({'num_resamples': 1}, ConfigError, 'num_resamples: got 1'),
        ({'min_support': 0}, ConfigError, 'min_support: got 0'),
        ({'slices': ['a']}, ConfigError, 'slices: got list, expected a dict'),
        ({'slices': {'a': np.ones(3)}}, DataError, r"slices: 'a' has shape \(3,\)"),
        ({'slices': {'a': abs}}, DataError, "slices: 'a': got a builtin_function"),
        ({'slices': {'a': [[1], [1, 2]]}}, DataError, "'a': got a list that is not an array"),
        ({'seed': 2**70}, ConfigError, 'seed: got 1180591620717411303424'),
        ({'slices': {'a': np.arange(300)}}, DataError, "slices: 'a' has 300 different values"),
        ({'sample_weight': np.ones(3)}, DataError, r'sample_weight: got shape \(3,\)'),
        ({'sample_weight': -np.ones(300)}, DataError, 'sample_weight: got -1.0 at row 0'),
        ({'sample_weight': np.full(300, np.inf)}, DataError, 'sample_weight: got 0 NaN and 300'),
        ({'sample_weight': ['1'] * 300}, DataError, 'sample_weight: got dtype <U1'),
        ({'sample_weight': np.zeros(300)}, DataError, 'sample_weight: got weight 0 for every row'),
        ({'groups': np.arange(4)}, DataError, 'groups: got shape'),
        ({'groups': np.zeros(300)}, DataError, 'groups: got one group of all rows'),
        ({'groups': [1.0, np.nan, 2.0] * 100}, DataError, 'groups: got 100 missing values of 300'),
        ({'slices': {'a': np.array([True, None, False] * 100)}}, DataError, 'got 100 missing'),
        ({'groups': ['x', np.nan, 'y'] * 100}, DataError, 'groups: got 100 missing .* at row 1'),
        ({'groups': [1, '1', 2] * 100}, DataError, r"groups: got text .* str \('1' at row 1\)"),
        ({'groups': np.array(['2026', 'NaT'] * 150, 'M8[Y]')}, DataError, 'got 150 missing'),
        ({'stratify': ['x', None, 'y'] * 100}, DataError, 'stratify: got 100 missing'),
        ({'stratify': ['x', 7, 'y'] * 100}, DataError, r'stratify: got text .*\(7 at row 1\)'),
        ({'slices': {'a': ['x', np.nan, 'y'] * 100}}, DataError, "slices: 'a': got 100 missing"),
        ({'slices': {'a': [1, '1', 2] * 100}}, DataError, "slices: 'a': got text mixed with other"),
        ({'slices': {'a = 0': np.ones(300, bool), 'a': np.zeros(300, int)}}, DataError, "'a = 0'"),
        ({'metrics': [lambda a, b: 0.0, lambda a, b: 1.0]}, ConfigError, "two called 'lambda'"),
        ({'groups': np.arange(300) // 30, 'stratify': True}, DataError, 'stratify: got groups'),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(settings, error, message):
    with pytest.raises(error, match=message):
        ModelEvaluator().evaluate(*case_of_three(), **settings)


@pytest.mark.parametrize('devices', [3, pytest.param(8, marks=pytest.mark.slow)])
def test_predictions_are_sharded_over_the_devices(devices, tmp_path):
    script = f"""
import numpy as np, jax
from flax import nnx
from thinkml.core import predict_outputs
assert len(jax.devices()) == {devices}
seen = set()
class Seen(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    def __call__(self, x):
        jax.debug.inspect_array_sharding(x, callback=lambda s: seen.add(s.num_devices))
        return self.layer(x)
X = np.random.default_rng(0).normal(size=(2501, 5)).astype(np.float32)
np.save({str(tmp_path / 'many.npy')!r}, predict_outputs(Seen(), X))
assert seen == {{{devices}}}, seen
"""
    environment = os.environ | simulating(devices)
    subprocess.run([sys.executable, '-c', script], check=True, env=environment, cwd=REPOSITORY)
    X = np.random.default_rng(0).normal(size=(2501, 5)).astype(np.float32)

    class Alone(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(5, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.layer(x)

    expected = predict_outputs(Alone(), X)
    np.testing.assert_allclose(np.load(tmp_path / 'many.npy'), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('batch_size', [1, 7, 300, 1000])
def test_the_batch_size_changes_nothing(batch_size, monkeypatch):
    model, logits, labels = case_of_three()
    expected = ModelEvaluator().evaluate(model, logits, labels).metrics
    in_batches = functools.partial(predict_outputs, batch_size=batch_size)
    monkeypatch.setattr(model_outputs, 'predict_outputs', in_batches)
    assert ModelEvaluator().evaluate(model, logits, labels).metrics == expected
