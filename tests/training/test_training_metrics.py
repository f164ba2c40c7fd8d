"""What training records equals scikit-learn's on the same predictions."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from clu import metrics as clu_metrics
from flax import nnx, struct
from sklearn import metrics as sk

from tests.models_for_tests import mlp
from thinkml.errors import ConfigError
from thinkml.evaluation import ModelEvaluator
from thinkml.models import predict, predict_proba
from thinkml.training import ModelTrainer, TrainingConfig, program

pytestmark = pytest.mark.compiled

# Nothing is learned, so that an epoch's metrics are those of the predictions afterwards.
STILL = {'optimizer': 'sgd', 'learning_rate': 1e-30, 'batch_size': 32, 'epochs': 1}


def rows(seed, num_rows=203):
    return np.random.default_rng(seed).normal(size=(num_rows, 4)).astype(np.float32)


def train(model, y_of, metrics, **config):
    """The last epoch's metrics, and the validation rows they are of."""
    X, X_val = rows(0), rows(1, 77)
    trainer = ModelTrainer(TrainingConfig(**STILL | config))
    trainer.train(model, X, y_of(X), X_val, y_of(X_val), metrics=metrics, progress=False)
    return trainer.get_metrics(), ((X, y_of(X), ''), (X_val, y_of(X_val), 'val_'))


def three_classes(X):
    return (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)


def two_classes(X):
    return np.where(X[:, 0] + X[:, 1] > 0, 'yes', 'no')


def three_labels(X):
    return (X[:, :3] > 0.3).astype(int)


@pytest.mark.parametrize('outputs', [1, 2])
def test_binary(outputs):
    names = ['f1', 'precision', 'recall', 'roc_auc', 'average_precision', 'log_loss', 'brier',
             'balanced_accuracy', 'f1_macro']  # fmt: skip
    model = mlp(4, outputs)
    found, parts = train(model, two_classes, names)
    for X, y, prefix in parts:
        guess, share = predict(model, X), predict_proba(model, X)[:, 1]
        expected = {
            'accuracy': sk.accuracy_score(y, guess),
            'f1': sk.f1_score(y, guess, pos_label='yes'),
            'precision': sk.precision_score(y, guess, pos_label='yes'),
            'recall': sk.recall_score(y, guess, pos_label='yes'),
            'roc_auc': sk.roc_auc_score(y == 'yes', share),
            'average_precision': sk.average_precision_score(y == 'yes', share),
            'log_loss': sk.log_loss(y == 'yes', share),
            'brier': sk.brier_score_loss(y == 'yes', share),
            'balanced_accuracy': sk.balanced_accuracy_score(y, guess),
            'f1_macro': sk.f1_score(y, guess, average='macro'),
        }
        for name, value in expected.items():
            assert found[prefix + name] == pytest.approx(value, abs=1e-6), prefix + name


def test_multiclass():
    names = ['f1', 'f1_micro', 'f1_weighted', 'precision', 'recall', 'roc_auc', 'log_loss',
             'average_precision', 'balanced_accuracy', 'top_2_accuracy']  # fmt: skip
    model = mlp(4, 3)
    found, parts = train(model, three_classes, names)
    for X, y, prefix in parts:
        guess, shares = predict(model, X), predict_proba(model, X)
        expected = {
            'f1': sk.f1_score(y, guess, average='macro'),
            'f1_micro': sk.f1_score(y, guess, average='micro'),
            'f1_weighted': sk.f1_score(y, guess, average='weighted'),
            'precision': sk.precision_score(y, guess, average='macro'),
            'recall': sk.recall_score(y, guess, average='macro'),
            'roc_auc': sk.roc_auc_score(y, shares, multi_class='ovr'),
            'average_precision': sk.average_precision_score(np.eye(3)[y], shares),
            'log_loss': sk.log_loss(y, shares),
            'balanced_accuracy': sk.balanced_accuracy_score(y, guess),
            'top_2_accuracy': sk.top_k_accuracy_score(y, shares, k=2),
        }
        for name, value in expected.items():
            assert found[prefix + name] == pytest.approx(value, abs=1e-6), prefix + name


def test_multilabel():
    model = mlp(4, 3)
    found, parts = train(model, three_labels, ['f1', 'roc_auc', 'average_precision'])
    for X, y, prefix in parts:
        guess, shares = predict(model, X), predict_proba(model, X)
        expected = {
            'accuracy': sk.accuracy_score(y, guess),
            'f1': sk.f1_score(y, guess, average='macro'),
            'roc_auc': sk.roc_auc_score(y, shares),
            'average_precision': sk.average_precision_score(y, shares),
        }
        for name, value in expected.items():
            assert found[prefix + name] == pytest.approx(value, abs=1e-6), prefix + name


def as_they_are(num_outputs):
    """A model that returns its inputs."""
    model = nnx.Linear(num_outputs, num_outputs, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = jnp.eye(num_outputs)
    return model


def test_six_saturated_rows():
    X, y = np.arange(21, 27, dtype=np.float32)[:, None], np.array([0, 1, 0, 1, 1, 1])
    trainer = ModelTrainer(TrainingConfig(**STILL))
    trainer.train(as_they_are(1), X, y, metrics=['roc_auc', 'average_precision'], progress=False)
    found = trainer.get_metrics()
    assert found['roc_auc'] == pytest.approx(7 / 8)
    assert found['average_precision'] == pytest.approx(0.95)


@pytest.mark.parametrize('kind', ['binary', 'multiclass', 'multilabel'])
def test_training_and_evaluation_agree_on_saturated_logits(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 2 if kind == 'binary' else 3)).astype(np.float32)
    noisy = X + rng.normal(size=X.shape)
    y = (noisy > 0).astype(int) if kind == 'multilabel' else noisy.argmax(axis=1)
    names, model = ['roc_auc', 'average_precision', 'log_loss'], as_they_are(X.shape[1])
    trainer = ModelTrainer(TrainingConfig(**STILL))
    trainer.train(model, 40 * X, y, 40 * X, y, metrics=names, progress=False)
    found, evaluation = trainer.get_metrics(), ModelEvaluator().evaluate(model, 40 * X, y, names)
    for prefix in ('', 'val_'):
        assert found[f'{prefix}log_loss'] == pytest.approx(found[f'{prefix}loss'], rel=1e-6)
        assert found[f'{prefix}log_loss'] > 3
        recorded = {name: found[prefix + name] for name in names}
        assert recorded == pytest.approx(evaluation.metrics, rel=1e-6)


class OneNumber(nnx.Module):
    """A model that returns its input without an axis."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return x[:, 0] * self.scale[...]


def squared(predictions, targets):
    return (predictions - targets) ** 2


def right(logits, labels):
    return (logits > 0) == (labels > 0)


@pytest.mark.parametrize('make_model', [OneNumber, lambda: as_they_are(1)])
@pytest.mark.parametrize('form', ['rows', 'column', 'frame'])
def test_functions_get_the_same_shapes_in_training_and_evaluation(make_model, form):
    X = np.array([[0.0], [1.0], [2.0], [3.5]], np.float32)
    y = {'rows': X[:, 0], 'column': X, 'frame': pd.DataFrame({'y': X[:, 0]})}[form]
    model, trainer = make_model(), ModelTrainer(TrainingConfig(**STILL))
    trainer.train(model, X, y, metrics=[squared], progress=False)
    evaluation = ModelEvaluator().evaluate(model, X, y, [squared, 'mse'])
    assert trainer.get_metrics()['squared'] == evaluation['squared'] == evaluation['mse'] == 0


def test_the_accuracy_of_one_logit_is_that_of_its_rows():
    X, y = np.array([[-2.0], [1.0], [2.0], [3.5]], np.float32), np.array([0, 1, 0, 1])
    model, trainer = as_they_are(1), ModelTrainer(TrainingConfig(**STILL))
    trainer.train(model, X, y, metrics=[right], progress=False)
    assert trainer.get_metrics()['right'] == trainer.get_metrics()['accuracy'] == 0.75
    assert ModelEvaluator().evaluate(model, X, y, [right])['right'] == 0.75


def test_regression():
    def far_from_zero(X):
        return (1e3 + X @ np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0], [1.0, 1.0]])).astype('f4')

    model = mlp(4, 2)
    found, parts = train(model, far_from_zero, ['mse', 'mae', 'rmse', 'r2'])
    for X, y, prefix in parts:
        y, guess = y.astype(np.float64), predict(model, X).astype(np.float64)
        expected = {
            'mse': sk.mean_squared_error(y, guess),
            'mae': sk.mean_absolute_error(y, guess),
            'rmse': sk.root_mean_squared_error(y, guess),
            'r2': sk.r2_score(y, guess),
        }
        for name, value in expected.items():
            assert found[prefix + name] == pytest.approx(value, rel=1e-6), prefix + name


@struct.dataclass
class MeanLoss(clu_metrics.Average.from_output('losses')):
    """A metric of CLU's making."""


def test_metrics_of_ones_own():
    def distance(logits, labels):
        return abs(logits.argmax(axis=1) - labels)

    def kappa(logits, labels):
        return sk.cohen_kappa_score(labels, logits.argmax(axis=1), weights='linear')

    model = mlp(4, 3)
    found, parts = train(model, three_classes, [distance, kappa, MeanLoss])
    for X, y, prefix in parts:
        guess = predict(model, X)
        assert found[f'{prefix}distance'] == pytest.approx(np.abs(guess - y).mean())
        expected = sk.cohen_kappa_score(y, guess, weights='linear')
        assert found[f'{prefix}kappa'] == pytest.approx(expected)
        assert found[f'{prefix}mean_loss'] == pytest.approx(found[f'{prefix}loss'], rel=1e-6)


def test_the_f1_of_an_epoch_is_not_the_mean_of_its_batches():
    model = mlp(4, 3)
    small, _ = train(model, three_classes, ['f1', 'roc_auc'], batch_size=5)
    large, _ = train(model, three_classes, ['f1', 'roc_auc'], batch_size=203)
    assert small == pytest.approx(large, rel=1e-5)


def test_metrics_of_accumulated_steps_are_those_of_the_epoch():
    model = mlp(4, 3)
    plain, _ = train(model, three_classes, ['f1', 'roc_auc', 'log_loss'])
    parts, _ = train(model, three_classes, ['f1', 'roc_auc', 'log_loss'], accumulate_steps=3)
    assert parts == pytest.approx(plain, rel=1e-5)


def test_scores_beyond_a_bound_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(program, '_MOST_SCORE_BYTES', 400)
    model, x, y = nnx.Linear(2, 1, rngs=nnx.Rngs(0)), np.eye(2)[[0, 1] * 30], [0, 1] * 30
    trainer = ModelTrainer(TrainingConfig(epochs=1, validation_split=0))
    before = model.kernel.get_value()
    for name, instead in {
        'roc_auc': "Record 'roc_auc_binned'",
        'average_precision': "'f1'",
    }.items():
        with pytest.raises(ConfigError, match=rf"'{name}' keeps the scores of 64 rows.*{instead}"):
            trainer.train(model, x, y, metrics=[name], progress=False)
    assert (model.kernel.get_value() == before).all()
    history = trainer.train(model, x, y, x, y, metrics=['roc_auc_binned'], progress=False)
    assert 0 <= history['val_roc_auc_binned'][0] <= 1


def test_quantiles_contain_as_many_targets_as_they_say():
    x = rows(0, 600)
    noise = np.random.default_rng(1).normal(size=600).astype(np.float32)
    y = np.stack([x.sum(1) + noise] * 3, axis=1)
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    config = TrainingConfig(epochs=40, batch_size=100, learning_rate=0.05, validation_split=0)
    ModelTrainer(config).train(model, x, y, loss_fn='quantile', progress=False)
    below = (y[:, 0] < predict(model, x).T).mean(axis=1)
    np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=0.03)
