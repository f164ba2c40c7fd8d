import os
import signal
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import (
    Attention,
    DropoutBatchNorm,
    Recurrent,
    SmallCNN,
    Tied,
    WithFlag,
    apply_mlp,
    init_mlp,
    mlp,
)
from thinkml.errors import ConfigError, DataError, ModelTypeError, NotTrainedError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.models import from_functions, from_linen, predict, predict_proba
from thinkml.training import EarlyStopping, ModelTrainer, TrainingConfig
from thinkml.training.signals import catch_signals

pytestmark = pytest.mark.compiled


def train(model, X, y, *args, loss_fn=None, metrics=None, **settings):
    trainer = ModelTrainer(TrainingConfig(**settings))
    return trainer.train(model, X, y, *args, loss_fn=loss_fn, metrics=metrics, progress=False)


def params_of(model):
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def blobs(num_rows=120, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, num_classes, num_rows)
    centres = rng.normal(size=(num_classes, 4)) * 3
    return (centres[y] + rng.normal(size=(num_rows, 4))).astype(np.float32), y


def test_digits_with_the_default_config(digits):
    X_train, X_test, y_train, y_test = digits
    model = mlp(64, 10, hidden=64)
    trainer = ModelTrainer()
    history = trainer.train(model, X_train, y_train, X_test, y_test)
    assert (predict(model, X_test) == y_test).mean() >= 0.95
    assert set(history) == {'loss', 'accuracy', 'val_loss', 'val_accuracy'}
    assert all(len(history[name]) == 100 for name in history)
    assert history.step_loss.shape == (100 * 45,)
    metrics = trainer.get_metrics()
    assert metrics == {name: values[-1] for name, values in history.items()}
    assert all(type(value) is float for value in metrics.values())


def test_the_last_validation_equals_predictions_afterwards(digits):
    X_train, X_test, y_train, y_test = digits
    model = DropoutBatchNorm(64, 10, nnx.Rngs(0))
    history = train(model, X_train, y_train, X_test, y_test, epochs=3)
    right = predict(model, X_test) == y_test
    probability = predict_proba(model, X_test)[np.arange(len(y_test)), y_test]
    assert history['val_accuracy'][-1] == pytest.approx(right.mean(), rel=1e-6)
    assert history['val_loss'][-1] == pytest.approx(-np.log(probability).mean(), rel=1e-5)


@pytest.mark.parametrize(
    'make',
    [
        lambda: DropoutBatchNorm(4, 3, nnx.Rngs(0)),
        lambda: Recurrent(3, nnx.Rngs(0)),
        lambda: Attention(3, nnx.Rngs(0)),
        lambda: Tied(4, 3, nnx.Rngs(0)),
        lambda: WithFlag(4, 3, nnx.Rngs(0)),
        lambda: from_linen(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])),
        lambda: from_functions(init_mlp, apply_mlp),
    ],
    ids=['dropout-batchnorm', 'lstm', 'attention', 'tied', 'flag', 'linen', 'functions'],
)
def test_every_kind_of_model_learns_in_place(make):
    X, y = blobs()
    model = make()
    history = train(model, X, y, epochs=30, learning_rate=0.02)
    assert history['loss'][-1] < 0.6 * history['loss'][0]
    assert (predict(model, X) == y).mean() > 0.85
    if isinstance(model, nnx.Module):
        for _, module in nnx.iter_modules(model):
            assert getattr(module, 'deterministic', None) is not False
            assert getattr(module, 'use_running_average', None) is not False


def test_nnx_linen_and_functions_give_the_same_losses_from_the_same_weights():
    X, y = blobs()
    params = jax.device_get(init_mlp(jax.random.key(3), X))
    model = mlp(4, 3)
    for layer, number in ((model.layers[0], 1), (model.layers[2], 2)):
        layer.kernel[...] = params[f'w{number}']
        layer.bias[...] = params[f'b{number}']
    variables = {
        'params': {
            'layers_0': {'kernel': params['w1'], 'bias': params['b1']},
            'layers_2': {'kernel': params['w2'], 'bias': params['b2']},
        }
    }
    linen = from_linen(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)]), variables)
    functions = from_functions(init_mlp, apply_mlp, params)
    one, *others = (
        train(m, X, y, epochs=3, batch_size=16, validation_split=0.2)
        for m in (model, linen, functions)
    )
    for other in others:
        np.testing.assert_allclose(other.step_loss, one.step_loss, rtol=1e-5)
        np.testing.assert_allclose(other['val_loss'], one['val_loss'], rtol=1e-5)


def test_random_numbers_are_of_the_kind_that_is_set_when_a_run_begins():
    kinds = []

    class NotesKind:
        def on_train_start(self, run):
            kinds.append(str(jax.random.key_impl(run.state.key)))

    X, y = blobs(20)
    for kind in ('threefry2x32', 'rbg'):
        with jax.default_prng_impl(kind):
            train(mlp(4, 3), X, y, epochs=1, callbacks=[NotesKind()])
    assert kinds == ['threefry2x32', 'rbg']


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    X, y = blobs()

    def run(seed):
        model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
        history = train(model, X, y, epochs=3, seed=seed, validation_split=0.25)
        return history, params_of(model)

    (one, one_params), (same, same_params), (other, _) = run(5), run(5), run(6)
    assert dict(one) == dict(same)
    np.testing.assert_array_equal(one.step_loss, same.step_loss)
    jax.tree.map(np.testing.assert_array_equal, one_params, same_params)
    assert (one.step_loss != other.step_loss).any()


def test_nothing_recompiles_but_for_new_shapes(count_compiles):
    X, y = blobs(700)

    def run(rows=slice(None), **settings):
        model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
        settings = {'epochs': 1, 'validation_split': 0.2, 'early_stopping': True} | settings
        train(model, X[rows], y[rows], **settings)

    run(epochs=2)
    assert count_compiles(run) == 0
    assert count_compiles(run, epochs=4) == 0
    assert count_compiles(run, learning_rate=0.1) == 0
    assert count_compiles(run, seed=9) == 0
    assert count_compiles(run, slice(1, 700)) == 0, 'a fold one row shorter'
    assert count_compiles(run, validation_split=0.3) == 0
    assert count_compiles(run, batch_size=16) > 0, 'else the count itself is broken'


@pytest.mark.parametrize('outputs', [1, 2])
def test_binary_with_one_or_two_logits_and_text_labels(outputs, breast_cancer):
    X_train, X_test, y_train, y_test = breast_cancer
    names = np.array(['malignant', 'benign'])
    model = mlp(30, outputs)
    history = train(model, X_train, names[y_train], X_test, names[y_test], epochs=20)
    assert record_of(model).task.classes == ('benign', 'malignant')
    assert history['val_accuracy'][-1] > 0.93
    assert (predict(model, X_test) == names[y_test]).mean() == pytest.approx(
        history['val_accuracy'][-1]
    )
    assert predict_proba(model, X_test).shape == (len(X_test), 2)
    malignant = predict_proba(model, X_test)[:, 1] > 0.5
    np.testing.assert_array_equal(malignant, predict(model, X_test) == 'malignant')


def test_one_hot_and_index_labels_are_the_same_training():
    X, y = blobs()
    by_index, by_row = mlp(4, 3), mlp(4, 3)
    one = train(by_index, X, y, epochs=2)
    two = train(by_row, X, np.eye(3)[y], epochs=2)
    np.testing.assert_array_equal(one.step_loss, two.step_loss)
    np.testing.assert_array_equal(predict(by_row, X).argmax(1), predict(by_index, X))


def test_multilabel():
    X, _ = blobs()
    y = np.stack([X[:, 0] > 0, X[:, 1] > 0, X[:, 0] > X[:, 1]], axis=1).astype(int)
    model = mlp(4, 3)
    history = train(model, X, y, epochs=60, learning_rate=0.02)
    assert record_of(model).task.kind == 'multilabel'
    np.testing.assert_array_equal(predict(model, X).shape, y.shape)
    assert history['accuracy'][-1] > 0.9
    assert (predict(model, X) == y).all(axis=1).mean() > 0.9


@pytest.mark.parametrize('shape', [(-1,), (-1, 1)])
def test_regression_in_the_shape_of_the_targets(shape):
    X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    y = (X[:, 0] - 2 * X[:, 1] + 0.5).reshape(shape)
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    history = train(model, X, y, epochs=200, learning_rate=0.02, metrics=['mae'])
    assert set(history) == {'loss', 'mae'}
    np.testing.assert_allclose(predict(model, X), y, atol=0.01)
    np.testing.assert_allclose(model.kernel[...][:2, 0], [1, -2], atol=0.01)


def test_a_custom_loss_may_be_a_scalar_or_a_value_per_example():
    X, y = blobs(50)

    def scalar(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    losses = [
        train(mlp(4, 3), X, y, epochs=2, batch_size=16, loss_fn=loss_fn).step_loss
        for loss_fn in (
            None, 'cross_entropy', scalar, optax.softmax_cross_entropy_with_integer_labels,
        )
    ]  # fmt: skip
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-5)


def test_a_scalar_loss_never_broadcasts_predictions_against_targets():
    X, _ = blobs(50)
    y = X[:, 0] * 2
    one = train(mlp(4, 1), X, y, epochs=2, loss_fn=lambda p, t: ((p - t) ** 2).mean())
    np.testing.assert_allclose(one.step_loss, train(mlp(4, 1), X, y, epochs=2).step_loss, rtol=1e-5)


def test_early_stopping_puts_the_best_epoch_back():
    X, y = blobs(60)
    X_val, y_val = blobs(60, seed=1)  # other centres: validation gets worse quickly
    model = mlp(4, 3)
    history = train(
        model, X, y, X_val, y_val, epochs=100, early_stopping=EarlyStopping(patience=3),
        learning_rate=0.05,
    )  # fmt: skip
    best = int(np.argmin(history['val_loss']))
    unstopped = train(mlp(4, 3), X, y, X_val, y_val, epochs=20, learning_rate=0.05)
    assert unstopped.best_epoch == int(np.argmin(unstopped['val_loss'])) + 1
    assert history.epochs == best + 1 + 3 < 100
    assert history.best_epoch == best + 1
    assert 'early stopping' in history.events[-1][1]
    probability = predict_proba(model, X_val)[np.arange(60), y_val]
    assert -np.log(probability).mean() == pytest.approx(history['val_loss'][best], rel=1e-4)


def test_early_stopping_without_validation_warns_and_watches_the_loss():
    X, y = blobs(60)
    with pytest.warns(ThinkMLWarning, match='watches the training loss'):
        train(mlp(4, 3), X, y, epochs=2, early_stopping=True)


def test_an_unknown_monitor_is_an_error_before_anything_compiles(count_compiles):
    X, y = blobs(60)
    model = mlp(4, 3)
    before = params_of(model)

    def call():
        with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
            train(model, X, y, epochs=2, early_stopping=EarlyStopping(monitor='acuracy'))

    assert count_compiles(call) == 0
    jax.tree.map(np.testing.assert_array_equal, before, params_of(model))


def test_validation_split_holds_rows_out():
    X, y = blobs(100)
    history = train(mlp(4, 3), X, y, epochs=2, batch_size=10, validation_split=0.2)
    assert history.steps == 2 * 8
    assert {'val_loss', 'val_accuracy'} <= set(history)


def test_callbacks_see_the_run_and_may_stop_it():
    X, y = blobs(60)
    seen = []

    class Recorder:
        def on_train_start(self, run):
            seen.append(('start', run.epoch))

        def on_train_end(self, run):
            seen.append(('end', run.epoch))

    def after_epoch(run):
        seen.append((run.epoch, run.history['loss'][-1]))
        if run.epoch == 3:
            run.stop('seen enough')

    history = train(mlp(4, 3), X, y, epochs=9, callbacks=[Recorder(), after_epoch])
    assert seen[0] == ('start', 0) and seen[-1] == ('end', 3)
    assert seen[1:-1] == list(zip([1, 2, 3], history['loss'], strict=True))
    assert history.events == [(3, 'seen enough')]


def test_callbacks_see_the_model_as_trained_so_far():
    X, y = blobs()
    seen = []

    def look(run):
        seen.append((predict(run.model, X) == y).mean())

    model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    train(model, X, y, epochs=8, learning_rate=0.02, callbacks=[look])
    assert len(set(seen)) > 1 and seen[-1] == (predict(model, X) == y).mean()
    twin = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    train(twin, X, y, epochs=8, learning_rate=0.02)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), params_of(twin))


def test_a_run_that_fails_before_its_first_step_is_not_recorded():
    class Fails:
        def on_train_start(self, run):
            raise RuntimeError('no disk')

    X, y = blobs()
    model = mlp(4, 3)
    with pytest.raises(RuntimeError, match='no disk'):
        train(model, X, y, callbacks=[Fails()])
    assert record_of(model).task is None and record_of(model).runs == []


def test_a_model_that_returns_probabilities_is_told():
    X, y = blobs()
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.softmax)
    with pytest.warns(ThinkMLWarning, match='ends in a softmax'):
        train(model, X, y, epochs=1)


def loss_on_probabilities(p, y):
    p = jnp.clip(p.reshape(len(y), -1), 1e-6, 1 - 1e-6)
    if p.shape[1] > 1:
        return -jnp.log(p[jnp.arange(len(y)), y])
    return -(y * jnp.log(p[:, 0]) + (1 - y) * jnp.log(1 - p[:, 0]))


@pytest.mark.parametrize(
    ('outputs', 'activation'),
    [
        (1, nnx.sigmoid),
        (1, lambda x: jnp.clip(nnx.sigmoid(x), 1e-6, 1 - 1e-6)),
        (1, lambda x: 0.5 * (1 + jnp.tanh(x / 2))),
        (2, nnx.softmax),
    ],
)
@pytest.mark.parametrize('kind', ['nnx', 'functions'])
def test_probabilities_are_told_beside_a_custom_loss_and_in_an_evaluation(
    outputs, activation, kind
):
    X, y = blobs()
    model = nnx.Sequential(nnx.Linear(4, outputs, rngs=nnx.Rngs(0)), activation)
    if kind == 'functions':
        kernel = np.asarray(model.layers[0].kernel[...])
        model = from_functions(lambda key, x: {'w': kernel}, lambda p, x: activation(x @ p['w']))
    with pytest.warns(ThinkMLWarning, match=r'model: it(s| ends).*expect logits'):
        ModelEvaluator().evaluate(model, X, y % 2, metrics=['accuracy'], confidence=None)
    with pytest.warns(ThinkMLWarning, match='model: it.*apply it in the loss'):
        train(model, X, y % 2, epochs=1, loss_fn=loss_on_probabilities)


def test_a_custom_loss_on_logits_is_told_nothing():
    X, y = blobs()
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    ModelEvaluator().evaluate(model, X, y % 2, metrics=['accuracy'], confidence=None)
    train(model, X, y % 2, epochs=1, loss_fn=lambda z, y: loss_on_probabilities(nnx.sigmoid(z), y))


def test_a_single_class_is_told():
    X, y = blobs()
    with pytest.warns(ThinkMLWarning, match='got only one class') as caught:
        train(mlp(4, 3), X[y == 1], y[y == 1], epochs=1)
    assert [warning.filename for warning in caught] == [__file__]


def test_ctrl_c_keeps_what_was_learned():
    X, y = blobs(60)
    model = mlp(4, 3)
    before = params_of(model)

    def interrupt(run):
        if run.epoch == 2:
            raise KeyboardInterrupt

    history = train(model, X, y, epochs=9, callbacks=[interrupt])
    assert history.interrupted and history.epochs == 2
    twin = mlp(4, 3)
    train(twin, X, y, epochs=2)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), params_of(twin))
    assert (before[0] != params_of(model)[0]).any()


INTERRUPTED = """
import os, signal, threading
import numpy as np
from tests.models_for_tests import mlp
from thinkml.models import predict
from thinkml.training import ModelTrainer, TrainingConfig

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
y = (X[:, 0] > 0).astype(int)
for delay in (0.0, 0.05, 0.11, 0.17, 0.23, 0.31):
    def send(run, delay=delay):
        if run.epoch == 1:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
    model = mlp(4, 2)
    config = TrainingConfig(epochs=100_000, callbacks=[send])
    history = ModelTrainer(config).train(model, X, y, progress=False)
    assert history.interrupted and history.epochs < 100_000
    accuracy = (predict(model, X) == y).mean()
    assert abs(accuracy - history['accuracy'][-1]) < 0.1, (accuracy, history)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print('kept')
"""


def test_a_real_sigint_at_any_moment_keeps_what_was_learned():
    root = Path(__file__).parents[2]
    environment = os.environ | {'PYTHONPATH': str(root)}
    done = subprocess.run(
        [sys.executable, '-c', INTERRUPTED], env=environment, capture_output=True, text=True
    )
    assert done.stdout == 'kept\n', done.stderr


def test_a_second_ctrl_c_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt), catch_signals(terminate=True) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.interrupted and not signals.terminated
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_that_diverges_stops_with_a_warning():
    X, _ = blobs()
    with pytest.warns(ThinkMLWarning, match='training has diverged'):
        history = train(mlp(4, 1), X * 1e4, X[:, 0] * 1e6, optimizer='sgd', learning_rate=1e3)
    assert history.epochs < 100 and 'diverged' in history.events[-1][1]


def test_validation_of_another_dtype_is_converted_only_where_nothing_is_lost():
    X, y = blobs()
    as_int = np.round(X * 5).astype(int)
    one = train(mlp(4, 3), as_int.astype(float), y, as_int, y, epochs=2)
    two = train(mlp(4, 3), as_int.astype(float), y, as_int.astype(float), y, epochs=2)
    assert one['val_loss'] == two['val_loss']
    with pytest.raises(DataError, match='X_val: got float32, expected int32'):
        train(mlp(4, 3), as_int, y, X, y)


def test_new_classes_of_a_trained_model_are_told():
    X, y = blobs()
    model = mlp(4, 3)
    train(model, X, np.array(['a', 'b', 'c'])[y], epochs=1)
    train(model, X[y < 2], np.array(['a', 'b', 'c'])[y[y < 2]], epochs=1)
    assert record_of(model).task.classes == ('a', 'b', 'c')
    with pytest.warns(ThinkMLWarning, match='outputs change their meaning'):
        train(model, X, np.array(['a', 'b', 'z'])[y], epochs=1)
    assert record_of(model).task.classes == ('a', 'b', 'z')


def test_one_config_may_be_used_by_runs_inside_each_other():
    X, y = blobs(60)
    stopping = EarlyStopping(patience=3)
    other = blobs(60, seed=1)

    def inner(run):
        if run.epoch == 2:
            train(mlp(4, 3, seed=1), X, y, *other, epochs=1, early_stopping=stopping)

    settings = {'epochs': 100, 'learning_rate': 0.05, 'early_stopping': stopping}
    alone = train(mlp(4, 3), X, y, *other, **settings)
    nested = train(mlp(4, 3), X, y, *other, **settings, callbacks=[inner, stopping])
    assert dict(nested) == dict(alone) and nested.events == alone.events


def test_stopping_before_the_first_epoch():
    class Never:
        def on_train_start(self, run):
            run.stop('not today')

    X, y = blobs()
    assert train(mlp(4, 3), X, y, callbacks=[Never()]).steps == 0


def test_steps_per_dispatch_changes_nothing():
    X, y = blobs()
    one, two = (train(mlp(4, 3), X, y, epochs=2, steps_per_dispatch=n) for n in (None, 3))
    np.testing.assert_array_equal(one.step_loss, two.step_loss)


def test_numpy_numbers_in_the_config_are_plain_in_the_record():
    X, y = blobs()
    model = mlp(4, 3)
    train(model, X, y, epochs=np.int64(1), learning_rate=np.float32(0.5))
    assert record_of(model).config['learning_rate'] == 0.5


def test_uint8_images(digits):
    X_train, X_test, y_train, y_test = digits
    as_images = [np.round(X * 16).astype(np.uint8).reshape(-1, 8, 8, 1) for X in (X_train, X_test)]
    model = SmallCNN(nnx.Rngs(0))
    history = train(model, as_images[0], y_train, as_images[1], y_test, epochs=8)
    assert record_of(model).input_spec.arrays.dtype == 'uint8'
    assert history['val_accuracy'][-1] > 0.9
    assert (predict(model, as_images[1]) == y_test).mean() > 0.9


class TrainsOtherwise(nnx.Module):
    """Goes wrong in training mode only."""

    def __init__(self, how, rngs):
        self.how = how
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)
        self.seen = nnx.BatchStat(jnp.zeros(3))

    def __call__(self, x):
        training = not self.norm.use_running_average
        if training and self.how == 'fails':
            raise RuntimeError('no training today')
        if training and self.how == 'state':
            self.seen.set_value(jnp.zeros(7))
        return self.out(x)[:, : 2 if training and self.how == 'outputs' else 3]


@pytest.mark.parametrize(
    ('how', 'says'),
    [
        ('fails', 'called in training mode, it fails with RuntimeError: no training today'),
        ('outputs', r'returns float32\[rows, 2\] in training mode and \(rows, 3\)'),
        ('state', 'turns its state from'),
    ],
)
def test_a_model_that_cannot_be_trained_is_told_before_any_compile(how, says, count_compiles):
    X, y = blobs()
    model = TrainsOtherwise(how, nnx.Rngs(0))

    def call():
        with pytest.raises(ModelTypeError, match=says):
            train(model, X, y)

    assert count_compiles(call) == 0


def test_functions_with_integer_parameters_are_told():
    X, y = blobs()
    model = from_functions(
        lambda key, x: {'n': 3, 'w': jnp.ones((4, 3))}, lambda params, x: x @ params['w']
    )
    with pytest.raises(ModelTypeError, match=r"parameter \['n'\] is int32"):
        train(model, X, y)


def test_the_record_says_what_was_inferred(capsys):
    X, y = blobs()
    model = mlp(4, 3)
    ModelTrainer(TrainingConfig(epochs=1, validation_split=0.25)).train(model, X, y)
    shown = capsys.readouterr().err
    assert 'multiclass, 3 classes (0, 1, 2); 90 rows of 4 float32, 30 for validation' in shown
    record = record_of(model)
    assert str(record.input_spec) == '4 float32'
    assert record.config['loss_fn'] == 'cross_entropy'
    assert record.data_fingerprint['rows'] == 120
    assert len(record.runs) == 1 and record.runs[0].epochs == 1


BAD_CALLS = {
    'length mismatch': (lambda X, y: (X, y[:-1]), 'X_train with 120 rows and y_train with 119'),
    'empty': (lambda X, y: (X[:0], y[:0]), 'X_train: got an empty array'),
    'NaN in X': (lambda X, y: (np.where(X > 3, np.nan, X), y), 'X_train: got .* NaN'),
    'infinite y': (lambda X, y: (X, np.where(y == 1, np.inf, y)), 'y_train: got .* infinite'),
    'object X': (lambda X, y: (X.astype(object).astype(str).astype(object), y), 'X_train: .*str'),
    'wrong features': (lambda X, y: (X[:, :3], y), r'X_train: got rows of \(3,\)'),
    'unknown labels': (lambda X, y: (X, np.arange(120)), 'y_train: got 120 different labels'),
    'y missing': (lambda X, y: (X, None), 'y_train: got None'),
    'one side of validation': (lambda X, y: (X, y, X), 'y_val: got None together with X_val'),
    'other validation shape': (lambda X, y: (X, y, X[:, :2], y), 'X_val: got rows of shape'),
    'new validation label': (lambda X, y: (X, y, X, y + 5), 'y_val: got labels the model was'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_CALLS)
def test_bad_input_never_starts_a_compile_and_leaves_the_model(name, count_compiles):
    arguments, says = BAD_CALLS[name]
    X, y = blobs()
    model = mlp(4, 3)
    before = params_of(model)

    def call():
        with pytest.raises(DataError, match=says):
            train(model, *arguments(X, y))

    assert count_compiles(call) == 0
    jax.tree.map(np.testing.assert_array_equal, before, params_of(model))
    assert record_of(model).task is None and not record_of(model).runs


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'loss_fn': 'cross_entropi'}, "Did you mean 'cross_entropy'"),
        ({'loss_fn': 'binary_cross_entropy'}, "expected 'cross_entropy'"),
        ({'loss_fn': 3}, 'loss_fn: got 3'),
        ({'loss_fn': ['mse']}, r"loss_fn: got \['mse'\]"),
        ({'metrics': [['accuracy']]}, 'expected a name'),
        ({'loss_fn': lambda logits: logits}, 'it failed for logits'),
        ({'loss_fn': lambda logits, labels: (logits, labels)}, 'it returned no array'),
        ({'loss_fn': lambda p, t: p[:, :1] - t}, r'returned shape \(rows, rows\)'),
        ({'loss_fn': lambda p, t: p}, r'returned shape \(rows, 3\)'),
        ({'metrics': ['acuracy']}, "Did you mean 'accuracy'"),
        ({'metrics': ['mae']}, 'The task is multiclass'),
        ({'metrics': 'accuracy'}, 'expected a list'),
    ],
)
def test_losses_and_metrics_that_do_not_fit(arguments, says):
    X, y = blobs()
    with pytest.raises(ConfigError, match=says):
        train(mlp(4, 3), X, y, **arguments)


def test_a_bare_linen_module_is_told_how():
    X, y = blobs()
    with pytest.raises(ModelTypeError, match=r'thinkml.models.from_linen\(module\)'):
        train(nn.Dense(3), X, y)


def test_asking_too_early():
    with pytest.raises(NotTrainedError, match='Call train'):
        ModelTrainer().get_metrics()
    with pytest.raises(NotTrainedError, match='Train it with ModelTrainer'):
        predict(mlp(4, 3), np.ones((1, 4)))
    with pytest.raises(ConfigError, match='config: got dict'):
        ModelTrainer({'epochs': 3})
