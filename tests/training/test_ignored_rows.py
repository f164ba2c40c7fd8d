"""Rows whose one label is ignored count nowhere: results are those without these rows."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models_with_heads import DictModel
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.models import predict
from thinkml.training import ActiveLearner, ModelTrainer, Objective, TrainingConfig, TransferLearner

ROWS, CLASSES = 40, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 4)).astype(np.float32)
Y = (X[:, :CLASSES].argmax(axis=1) + (RNG.random(ROWS) < 0.2)) % CLASSES
COUNTS = RNG.random(ROWS) < 0.7
COUNTS[16:24] = False  # a batch of 8 in which no row counts
MARKED = np.where(COUNTS, Y, -100)
SETTINGS = {'epochs': 3, 'batch_size': ROWS, 'optimizer': 'sgd', 'learning_rate': 0.5}


def linear(outputs=CLASSES):
    return nnx.Linear(4, outputs, rngs=nnx.Rngs(0))


def train(x, y, *data, model=None, settings=None, **arguments):
    """Returns the model and the history of a training."""
    model = model or linear()
    trainer = ModelTrainer(TrainingConfig(**SETTINGS | (settings or {})))
    return model, trainer.train(model, x, y, *data, progress=False, **arguments)


def assert_same(found, expected):
    """Checks that the parameters and histories of two trainings are equal."""
    (model, history), (other, others) = found, expected
    parameters = (jax.device_get(nnx.to_pure_dict(nnx.state(m, nnx.Param))) for m in (model, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *parameters)
    assert list(history) == list(others)
    for name in history:
        np.testing.assert_allclose(history[name], others[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'class_weights': 'balanced', 'sample_weight': RNG.random(ROWS)},
        {'settings': {'accumulate_steps': 2, 'batch_size': ROWS // 2}},
    ],
)
def test_a_training_is_the_one_without_the_ignored_rows(arguments):
    weight = arguments.get('sample_weight')
    alone = arguments if weight is None else arguments | {'sample_weight': weight[COUNTS]}
    metrics = ['accuracy', 'roc_auc', 'log_loss']
    found = train(X, MARKED, X[::-1], MARKED[::-1], metrics=metrics, **arguments)
    rows = X[COUNTS], Y[COUNTS], X[::-1][COUNTS[::-1]], Y[::-1][COUNTS[::-1]]
    assert_same(found, train(*rows, metrics=metrics, **alone))


def test_held_out_rows_are_rows_that_count():
    groups = np.arange(ROWS) % 7
    for arguments in ({}, {'groups': groups}):
        settings = {'validation_split': 0.25}
        found = train(X, MARKED, settings=settings, **arguments)
        alone = {name: values[COUNTS] for name, values in arguments.items()}
        assert_same(found, train(X[COUNTS], Y[COUNTS], settings=settings, **alone))


@pytest.mark.parametrize('accumulate_steps', [1, 2])
def test_streams_leave_the_rows_out(accumulate_steps):
    """Of the five batches one has no row that counts; two of them make a step of 16 rows."""

    def batches(size):
        for first in range(0, ROWS, size):
            yield X[first : first + size], MARKED[first : first + size]

    steps = np.split(COUNTS, range(8 * accumulate_steps, ROWS, 8 * accumulate_steps))
    settings = {'batch_size': 8, 'accumulate_steps': accumulate_steps}
    found = train(lambda: batches(8), None, lambda: batches(8), settings=settings)
    # The same steps by hand.
    model, losses = linear(), []
    kernel, bias = (np.asarray(leaf[...], np.float64) for leaf in (model.kernel, model.bias))
    for _ in range(SETTINGS['epochs']):
        total = right = count = 0.0
        for step, counts in enumerate(steps):
            rows = np.flatnonzero(counts) + step * 8 * accumulate_steps
            if not len(rows):
                continue
            logits = X[rows] @ kernel + bias
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            total -= np.log(p[np.arange(len(rows)), Y[rows]]).sum()
            right, count = right + (p.argmax(axis=1) == Y[rows]).sum(), count + len(rows)
            gradient = (p - np.eye(CLASSES)[Y[rows]]) / len(rows)
            kernel -= SETTINGS['learning_rate'] * X[rows].T @ gradient
            bias -= SETTINGS['learning_rate'] * gradient.sum(axis=0)
        losses.append(total / count)
    trained, history = found
    np.testing.assert_allclose(trained.kernel[...], kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history['loss'], losses, rtol=1e-5)
    np.testing.assert_allclose(history['accuracy'][-1], right / count, rtol=1e-6)
    logits = X[COUNTS] @ kernel + bias
    expected = np.mean(logits.argmax(axis=1) == Y[COUNTS])
    np.testing.assert_allclose(history['val_accuracy'][-1], expected, rtol=1e-6)


def test_a_stream_in_which_no_row_counts_is_an_error():
    with pytest.raises(DataError, match=r'X_val: got weight 0 for every .*, or an ignored label'):
        train(X, Y, lambda: iter([(X, np.full(ROWS, -100))]))


@pytest.mark.parametrize('streamed', [False, True])
def test_a_head_ignores_its_own_rows(streamed):
    tags = np.where(RNG.random((ROWS, 5)) < 0.3, -100, 1 * (RNG.random((ROWS, 5)) < 0.5))
    labels = {'kind': MARKED, 'tags': tags}
    weights = {'kind': COUNTS * 1.0, 'tags': np.ones(ROWS)}
    arguments = {'metrics': {'kind': ['accuracy']}, 'class_weights': {'kind': {0: 2.0}}}

    def data(y, weight=None):
        if not streamed:
            return X, y, X, y
        return (lambda: iter([(X, y) if weight is None else (X, y, weight)]), None) * 2

    if streamed:
        expected = train(*data(labels | {'kind': Y}, weights), model=DictModel(), **arguments)
    else:
        weights = arguments | {'sample_weight': weights}
        expected = train(X, labels | {'kind': Y}, model=DictModel(), **weights)
    model, history = train(*data(labels), model=DictModel(), **arguments)
    losses = [name for name in expected[1] if not name.startswith('val_')]
    for name in losses:
        np.testing.assert_allclose(history[name], expected[1][name], rtol=1e-5, err_msg=name)
    right = predict(model, X)['kind'] == Y
    np.testing.assert_allclose(history['val_kind_accuracy'][-1], right[COUNTS].mean(), rtol=1e-6)
    evaluation = ModelEvaluator().evaluate(model, X, labels, confidence=None)['kind']
    np.testing.assert_allclose(evaluation['accuracy'], right[COUNTS].mean(), rtol=1e-6)


def test_another_label_can_be_ignored():
    other = np.where(COUNTS, Y, 255)
    found = train(X, other, ignore_label=255)
    assert_same(found, train(X, MARKED))
    model, _ = found
    assert record_of(model).task.ignore_label == 255
    evaluator = ModelEvaluator()
    evaluation, expected = (
        evaluator.evaluate(model, x, y) for x, y in ((X, other), (X[COUNTS], Y[COUNTS]))
    )
    assert evaluation.metrics == expected.metrics
    train(X, MARKED, model=model)
    assert record_of(model).task.ignored == -100


def test_nothing_compiles_again(count_compiles):
    train(X, Y, X, Y)
    assert count_compiles(train, X, MARKED, X, MARKED) == 0


def test_the_line_of_a_run_says_how_many_labels_are_ignored(capfd):
    ModelTrainer(TrainingConfig(**SETTINGS)).train(linear(), X, MARKED)
    says = f'multiclass, 3 classes (0, 1, 2), {(~COUNTS).sum()} of 40 labels ignored; '
    assert says in capfd.readouterr().err


def test_an_objective_sees_the_rows_with_the_label_minus_one():
    def loss(model, batch, key):
        return jax.nn.logsumexp(model(batch.x), axis=-1) * (batch.y < 0)

    model = linear()
    logits = np.asarray(model(X), np.float64)
    _, history = train(X, MARKED, model=model, loss_fn=Objective(loss), settings={'epochs': 1})
    expected = np.log(np.exp(logits).sum(axis=1))[~COUNTS].sum() / ROWS
    np.testing.assert_allclose(history['loss'], [expected], rtol=1e-5)


def test_labels_of_active_learning_may_be_ignored():
    """A row with the label -100 is not queried again, and models are trained without it."""
    learner = ActiveLearner(linear(), 'margin', config=TrainingConfig(**SETTINGS), query_size=5)
    learner.start(X[20:], X[:20], MARKED[:20])
    rows = learner.query()
    learner.teach(rows, np.where(np.arange(5) < 2, -100, Y[20:][rows]))
    learner.fit()
    assert not set(learner.query().tolist()) & set(rows.tolist())
    other = linear()
    known = np.append(MARKED[:20], np.where(np.arange(5) < 2, -100, Y[20:][rows]))
    x = np.concatenate([X[:20], X[20:][rows]])
    train(x[known != -100], known[known != -100], model=other)
    np.testing.assert_allclose(learner.model.kernel[...], other.kernel[...], rtol=1e-4, atol=1e-5)


def test_the_head_of_a_transfer_has_no_output_for_the_ignored_label():
    base = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)))
    learner = TransferLearner(base, config=TrainingConfig(**SETTINGS))
    model = learner.fine_tune(X_train=X, y_train=MARKED, progress=False)
    assert model(X).shape == (ROWS, CLASSES)


@pytest.mark.parametrize(
    ('y', 'arguments', 'kind', 'says'),
    [
        (np.full(ROWS, -100), {}, DataError, 'y_train: each label is -100'),
        (Y, {'X_val': X, 'y_val': np.full(ROWS, -100)}, DataError, 'y_val: each label is -100'),
        (Y, {'ignore_label': 7, 'loss_fn': 'mse'}, ConfigError, 'ignore_label: got 7 for regr'),
        (Y.astype(str), {'ignore_label': 1}, ConfigError, 'ignore_label: got 1 for multiclass'),
        (np.eye(3)[Y], {'ignore_label': 1}, ConfigError, 'ignore_label: got 1 for multiclass'),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_ignored(y, arguments, kind, says, count_compiles):
    model = linear(1 if 'loss_fn' in arguments else CLASSES)

    def refused():
        with pytest.raises(kind, match=says):
            train(X, y, model=model, **arguments)

    assert count_compiles(refused) == 0


def test_a_resumed_stream_is_the_same_run(tmp_path):
    """It stops within an epoch, behind the batch in which no row counts."""

    def batches():
        for first in range(0, ROWS, 8):
            yield X[first : first + 8], MARKED[first : first + 8]

    def run(folder, **settings):
        settings |= {'callbacks': ['checkpoint'], 'checkpoint_dir': str(tmp_path / folder)}
        return train(batches, None, settings=settings, resume=folder == 'b')

    model, history = run('a')
    run('b', max_steps=7)
    other, resumed = run('b')
    assert history.steps == resumed.steps == 12 and resumed.resumed_at == [7]
    np.testing.assert_array_equal(model.kernel[...], other.kernel[...])
    np.testing.assert_array_equal(history.step_loss, resumed.step_loss)
