"""What training records equals scikit-learn's on the same predictions."""

import numpy as np
import pytest
from clu import metrics as clu_metrics
from flax import struct
from sklearn import metrics as sk

from tests.models_for_tests import mlp
from thinkml.models import predict, predict_proba
from thinkml.training import ModelTrainer, TrainingConfig

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
