"""What training says of labels that are not what they seem."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import DataError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.models import predict, predict_proba
from thinkml.training import ModelTrainer, TrainingConfig

X = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=30)


def train(y, num_outputs, *, model=None, X_train=X, **arguments):
    settings = {'epochs': 1} | arguments.pop('settings', {})
    model = model or nnx.Linear(2, num_outputs, rngs=nnx.Rngs(0))
    trainer = ModelTrainer(TrainingConfig(**settings))
    trainer.train(model, X_train, y, progress=False, **arguments)
    return model, trainer.get_metrics()


def rows_of(*labels):
    return np.resize(np.array(labels), 30)


@pytest.mark.parametrize(
    ('labels', 'num_outputs', 'what'),
    [
        ((0.0, 1.0, -100.0), 1, '-100 is a number to predict'),
        ((0, 1, -1), 1, '-1 is a number to predict'),
        ((0, 1, 255), 1, '255 is a number to predict'),
        ((0, 1, 2, -1), 4, '-1 is a class'),
        ((0, 1, 255), 3, '255 is a class'),
        ((0.0, 1.0, 2.0, -1.0), 4, '-1 is a class'),
    ],
)
def test_numbers_that_mark_rows_without_a_label_are_warned_of(labels, num_outputs, what):
    fix = 'ignore_label=' if what.endswith('class') else '.* sample_weight 0'
    says = rf'y_train: {what} .*If {what.split()[0]} marks rows without a label.*{fix}'
    with pytest.warns(ThinkMLWarning, match=says):
        train(rows_of(*labels), num_outputs)


def test_rows_of_a_multilabel_task_without_a_label_are_warned_of():
    with pytest.warns(ThinkMLWarning, match='y_train: -1 is a number to predict'):
        train(np.stack([rows_of(0, 1, -1), rows_of(1, 0)], axis=1), 2)


@pytest.mark.parametrize(
    ('labels', 'num_outputs', 'loss_fn'),
    [
        ((-1, 1), 1, None),
        ((-1, 0, 1), 3, None),
        ((0, 255), 1, None),
        ((-1, 0, 1), 1, 'mse'),
        ((0, 1, 2, 5, -1), 1, None),
    ],
)
def test_other_labels_are_not(labels, num_outputs, loss_fn):
    train(rows_of(*labels), num_outputs, loss_fn=loss_fn)


def test_the_text_nan_is_warned_of():
    with pytest.warns(ThinkMLWarning, match="y_train: got the text 'nan' as a class"):
        train(np.array(['a', 'b', np.nan] * 10), 3)


@pytest.mark.parametrize(
    ('labels', 'says'),
    [
        ([True, 2], 'got bool .* int .* expected values of one kind, since True would become 1'),
        ([5, 2**63, 2**63 + 1], 'which NumPy converts to floats'),
        (np.array([5, 2**63, 2**63 + 1], np.uint64), 'expected them within int64. Convert labels'),
    ],
)
def test_labels_that_become_other_ones_are_refused(labels, says):
    y = [*labels] * (30 // len(labels)) if isinstance(labels, list) else np.resize(labels, 30)
    with pytest.raises(DataError, match=f'y_train: .*{says}'):
        train(y, len(labels))


def test_labels_beyond_the_floats_are_kept():
    model, _ = train(rows_of(5, 2**62, 2**62 + 1), 3)
    assert set(predict(model, X).tolist()) <= {5, 2**62, 2**62 + 1}


def test_labels_of_several_that_only_validation_has_are_named():
    y = np.stack([np.repeat([0, 1], [24, 6]), rows_of(0, 1)], axis=1)
    says = 'validation_split: the label 0 occurs in the validation data only'
    with pytest.warns(ThinkMLWarning, match=says):
        train(y, 2, settings={'validation_split': ('last', 0.2)})


@pytest.mark.parametrize(
    'arguments',
    [
        {'settings': {'validation_split': ('last', 0.2)}},
        {'settings': {'validation_split': 0.2}, 'groups': np.repeat([0, 1], [24, 6])},
        {'settings': {'validation_split': 0.9}},
    ],
)
def test_classes_that_only_validation_has_are_named(arguments):
    y = np.repeat(['old', 'new'], [24, 6])
    if arguments['settings']['validation_split'] == 0.9:
        y = np.repeat(['old', 'new'], [29, 1])
    says = "validation_split: the class 'new' occurs in the validation data only"
    with pytest.warns(ThinkMLWarning, match=says):
        train(y, 2, **arguments)


def test_classes_that_only_y_val_has_are_named():
    with pytest.warns(ThinkMLWarning, match='y_val: the classes 1, 2 occur in the validation data'):
        train(rows_of(0, 3), 4, X_val=X, y_val=rows_of(0, 1, 2, 3))


def test_targets_that_float32_does_not_hold_are_refused_and_their_difference_is_learned():
    zeros = nnx.initializers.zeros_init()
    model = nnx.Linear(2, 1, use_bias=False, kernel_init=zeros, rngs=nnx.Rngs(0))
    still = {'optimizer': 'sgd', 'learning_rate': 1e-30}
    targets = 1.7e9 + NOISE
    with pytest.raises(DataError, match=r'y_train: .*Subtract their mean'):
        train(targets, 1, model=model, settings=still)
    _, metrics = train(targets - 1.7e9, 1, model=model, settings=still, metrics=['r2'])
    assert metrics['loss'] == pytest.approx(np.mean(NOISE**2), rel=1e-5)
    assert metrics['r2'] == pytest.approx(1 - np.mean(NOISE**2) / NOISE.var(), abs=1e-5)


def test_a_model_that_returns_nan_predicts_no_class():
    model, _ = train(rows_of(0, 1), 2)
    model.bias[...] = model.bias[...].at[0].set(np.nan)
    for ask in (predict, predict_proba):
        with pytest.raises(DataError, match=re.escape('model: it returns NaN for 30 of 30 rows')):
            ask(model, X)


class Tokens(nnx.Module):
    """A model of ids, which it looks up in one of several ways."""

    def __init__(self, look_up, num_rows=5):
        rngs = nnx.Rngs(0)
        self.embed, self.head = nnx.Embed(num_rows, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.look_up = look_up

    def __call__(self, x):
        return self.head(self.look_up(self.embed, x).mean(axis=1))


LOOK_UPS = {
    'embed': lambda embed, x: embed(x),
    'index': lambda embed, x: embed.embedding[...][x],
    'column': lambda embed, x: embed(x[:, :1].astype(int)),
    'offset': lambda embed, x: embed(x + jnp.arange(2)),
    'again': lambda embed, x: jax.checkpoint(embed)(x),
}
IDS = np.random.default_rng(0).integers(4, size=(30, 2))


@pytest.mark.parametrize('name', LOOK_UPS)
def test_ids_beyond_an_embedding_are_refused_before_training(name):
    ids = IDS + 0.0 if name == 'column' else IDS.copy()
    train(rows_of(0, 1), 2, model=Tokens(LOOK_UPS[name]), X_train=ids)
    ids[7, 0] = 6
    says = r'X_train: got ids by which the model reads row 6 of a table of 5 rows, expected 0 to 4'
    with pytest.raises(DataError, match=says):
        train(rows_of(0, 1), 2, model=Tokens(LOOK_UPS[name]), X_train=ids)


def test_ids_beyond_an_embedding_are_refused_in_batches_and_validation_too():
    wrong, y, model = IDS + 4, rows_of(0, 1), Tokens(LOOK_UPS['embed'])
    with pytest.raises(DataError, match='X_val: got ids by which the model reads row 7'):
        train(y, 2, model=model, X_train=IDS, X_val=wrong, y_val=y)
    with pytest.raises(DataError, match='X_train: got ids by which the model reads row 7'):
        train(None, 2, model=model, X_train=lambda: iter([(wrong, y)]))
    with pytest.raises(DataError, match='reads row -8 of a table'):
        train(y, 2, model=model, X_train=IDS - 8)


def test_all_rows_in_memory_are_looked_at(monkeypatch):
    monkeypatch.setattr('thinkml.training.input_checks._BLOCK_ROWS', 8)
    for row in (0, 9, 29):
        ids = IDS.copy()
        ids[row, 1] = 5
        with pytest.raises(DataError, match='reads row 5 of a table'):
            train(rows_of(0, 1), 2, model=Tokens(LOOK_UPS['embed']), X_train=ids)


def test_ids_beyond_an_embedding_are_named_when_they_come_later():
    def batches():
        for ids in (IDS, IDS + 4):
            yield ids, rows_of(0, 1)

    model = Tokens(LOOK_UPS['embed'])
    trainer = ModelTrainer(TrainingConfig(epochs=1))
    with pytest.warns(ThinkMLWarning, match=r'diverged.* ids beyond the rows of an embedding'):
        trainer.train(model, batches, progress=False)


@pytest.mark.parametrize('name', LOOK_UPS)
def test_ids_beyond_an_embedding_are_refused_in_predictions_and_evaluations(name):
    ids = IDS + 0.0 if name == 'column' else IDS.copy()
    model, _ = train(rows_of(0, 1), 2, model=Tokens(LOOK_UPS[name]), X_train=ids)
    right, wrong = predict(model, ids), ids.copy()
    wrong[7, 0] = 6
    says = 'got ids by which the model reads row 6 of a table of 5 rows, expected 0 to 4'
    for ask in (predict, predict_proba):
        for X in (wrong, lambda: iter([ids, wrong])):
            with pytest.raises(DataError, match=f'X: {says}'):
                ask(model, X)
    with pytest.raises(DataError, match=f'X_test: {says}'):
        ModelEvaluator().evaluate(model, wrong, rows_of(0, 1))
    np.testing.assert_array_equal(predict(model, ids), right)


def test_ids_of_predictions_that_count_from_the_end_are_warned_of():
    model, _ = train(rows_of(0, 1), 2, model=Tokens(LOOK_UPS['index']), X_train=IDS)
    with pytest.warns(ThinkMLWarning, match='X: got ids by which the model reads row -2 of a'):
        predict(model, np.where(IDS == 3, -2, IDS))


def test_rows_from_the_beginning_to_the_end_of_a_file_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr('thinkml.training.input_checks._SOME_ROWS', 3)
    ids = IDS.copy()
    ids[-1, 0] = 6
    np.save(tmp_path / 'ids.npy', ids)
    stored = np.load(tmp_path / 'ids.npy', mmap_mode='r')
    with pytest.raises(DataError, match='X_train: got ids by which the model reads row 6'):
        train(rows_of(0, 1), 2, model=Tokens(LOOK_UPS['index']), X_train=stored)


@pytest.mark.parametrize('name', ['embed', 'index', 'column'])
def test_negative_ids_which_count_from_the_end_are_warned_of(name):
    ids = (IDS + 0.0 if name == 'column' else IDS.copy()) * 1
    ids[7, 0] = -1
    says = 'X_train: got ids by which the model reads row -1 of a table of 5 rows, which counts'
    with pytest.warns(ThinkMLWarning, match=says):
        train(rows_of(0, 1), 2, model=Tokens(LOOK_UPS[name]), X_train=ids)


def test_ids_that_a_model_clips_itself_are_taken():
    def clipped(embed, x):
        return jnp.take(embed.embedding[...], x, axis=0, mode='clip')

    model, _ = train(rows_of(0, 1), 2, model=Tokens(clipped), X_train=IDS + 4)
    assert predict(model, IDS + 9).shape == (30,)
