"""Changes of run.model in callbacks, and of models in other threads."""

import threading

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from tests.models_for_tests import DropoutBatchNorm, apply_mlp, init_mlp, mlp
from thinkml.errors import ConfigError, ThinkMLWarning
from thinkml.models import ModelManager, from_functions, from_linen, predict
from thinkml.training import (
    ActiveLearner,
    DistributedTrainer,
    EarlyStopping,
    ModelTrainer,
    TrainingConfig,
    TransferLearner,
)

pytestmark = pytest.mark.compiled

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
STILL = {'optimizer': 'sgd', 'learning_rate': 1e-30, 'epochs': 2}


def train(model, *callbacks, trainer=ModelTrainer, y=Y, **settings):
    config = TrainingConfig(**STILL | {'callbacks': callbacks} | settings)
    return trainer(config).train(model, X, y, progress=False)


class Changes:
    """Calls a function with ``run.model`` in one of the hooks, once."""

    def __init__(self, change, hook='on_epoch_end'):
        self.change, self.hook, self.seen = change, hook, []

    def on_train_start(self, run):
        self.at('on_train_start', run)

    def on_chunk_end(self, run):
        self.at('on_chunk_end', run)

    def on_epoch_end(self, run):
        self.at('on_epoch_end', run)

    def on_train_end(self, run):
        self.at('on_train_end', run)

    def at(self, hook, run):
        if hook == self.hook and self.change is not None:
            self.change(run.model)
            self.change = None
            self.seen = [np.asarray(leaf).copy() for leaf in arrays(run.model)]


def arrays(model):
    if isinstance(model, nnx.Module):
        return [v[...] for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    held = model.variables['params'] if hasattr(model, 'variables') else model.params
    return list(held.values())


def fill_nnx(model):
    model.out.kernel[...] = jnp.full_like(model.out.kernel[...], 7)
    model.norm.mean[...] = jnp.full_like(model.norm.mean[...], 9)


@pytest.mark.parametrize('hook', ['on_train_start', 'on_chunk_end', 'on_epoch_end', 'on_train_end'])
def test_arrays_that_a_callback_changes_are_trained_on(hook):
    changes = Changes(fill_nnx, hook)
    model = DropoutBatchNorm(4, 2, nnx.Rngs(0))
    history = train(model, changes)
    assert (model.out.kernel[...] == 7).all()
    # The statistics are updated from there, by a tenth in each of the steps that follow.
    assert (np.abs(model.norm.mean[...]) > (9 * 0.99**4 - 1 if hook == 'on_train_end' else 4)).all()
    if hook == 'on_train_start':
        # Equal logits, of some tens in float32.
        np.testing.assert_allclose(history['loss'], np.log(2), rtol=1e-5)


@pytest.mark.parametrize('trainer', [ModelTrainer, DistributedTrainer])
def test_a_change_in_the_middle_trains_as_a_second_training_from_there(trainer):
    def halve(model):
        model.layers[2].kernel[...] *= 0.5

    settings = {'learning_rate': 0.1, 'batch_size': 60}
    changed = mlp(4, 2)
    train(changed, Changes(halve), trainer=trainer, **settings)
    twin = mlp(4, 2)
    train(twin, trainer=trainer, **settings | {'epochs': 1})
    halve(twin)
    train(twin, trainer=trainer, **settings | {'epochs': 1})
    for got, expected in zip(arrays(changed), arrays(twin), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_linen_models_and_functions_take_changes_too():
    def zero(model):
        if hasattr(model, 'variables'):
            model.variables = {'params': {n: v * 0 for n, v in model.variables['params'].items()}}
        else:
            model.params = {name: value * 0 for name, value in model.params.items()}

    for model in (from_linen(linen.Dense(2)), from_functions(init_mlp, apply_mlp)):
        y = Y if hasattr(model, 'variables') else np.arange(60) % 3
        train(model, Changes(zero), y=y)
        assert all(abs(leaf).max() < 1e-20 for leaf in arrays(model))


def test_a_change_is_kept_by_early_stopping_and_by_a_model_that_is_kept_for_later():
    kept = []

    def later(run):
        if run.epoch == 1:
            kept.append(run.model)
        else:
            fill_nnx(kept[0])

    model = DropoutBatchNorm(4, 2, nnx.Rngs(0))
    train(model, later)
    assert (model.out.kernel[...] == 7).all()
    model = DropoutBatchNorm(4, 2, nnx.Rngs(0))
    stopping = EarlyStopping('loss', patience=1)
    train(model, Changes(fill_nnx, 'on_train_end'), early_stopping=stopping, epochs=5)
    assert (model.out.kernel[...] == 7).all()


def set_rate(model):
    model.dropout.rate = 0.1


def replace_layer(model):
    model.out = nnx.Linear(16, 2, use_bias=False, rngs=nnx.Rngs(1))


def other_shape(model):
    model.out.bias = nnx.Param(jnp.zeros(5))


@pytest.mark.parametrize(
    ('change', 'settings'),
    [
        (set_rate, {}),
        (replace_layer, {}),
        (other_shape, {}),
        (fill_nnx, {'ema_decay': 0.9}),
    ],
)
def test_what_can_not_be_taken_over_is_refused(change, settings):
    with pytest.raises(ConfigError, match='model: '):
        train(DropoutBatchNorm(4, 2, nnx.Rngs(0)), Changes(change), **settings)


def test_looking_at_the_model_and_switching_it_changes_nothing():
    def look(model):
        predict(model, X)
        model.train()
        model(X[:2])  # draws dropout and moves statistics, which are put back below
        model.eval()

    model, twin = mlp(4, 2), mlp(4, 2)
    train(model, Changes(look), learning_rate=0.1)
    train(twin, learning_rate=0.1)
    for got, expected in zip(arrays(model), arrays(twin), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_another_object_is_no_model_of_the_run():
    def replace(run):
        run.model = mlp(4, 2)

    with pytest.raises(ConfigError, match=r'model: got another .*nnx\.update\(run\.model'):
        train(mlp(4, 2), replace)


def test_a_change_not_through_run_model_is_warned_of():
    model = DropoutBatchNorm(4, 2, nnx.Rngs(0))
    with pytest.warns(ThinkMLWarning, match='not through run.model'):
        train(model, lambda run: fill_nnx(model))


@pytest.mark.parametrize('optimizer', ['sgd', optax.inject_hyperparams(optax.sgd)(1e-30)])
def test_a_rate_that_a_callback_assigns_is_that_of_the_next_steps(optimizer):
    def assign(run):
        run.learning_rate = 0.1

    rate = 1e-30 if optimizer == 'sgd' else 0.001  # the default, beside an optimizer's own
    settings = {'batch_size': 60, 'optimizer': optimizer, 'learning_rate': rate}
    changed, twin = mlp(4, 2), mlp(4, 2)
    history = train(changed, assign, 'lr_monitor', **settings)
    train(twin, optimizer='sgd', learning_rate=0.1, epochs=1, batch_size=60)
    for got, expected in zip(arrays(changed), arrays(twin), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert history['learning_rate'][1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ('settings', 'rate'),
    [
        ({'lr_schedule': 'cosine'}, 0.1),
        ({'learning_rate': lambda step: 1e-30}, 0.1),
        ({'optimizer': optax.sgd(1e-30), 'learning_rate': 0.001}, 0.1),
        ({}, -1),
    ],
)
def test_a_rate_that_can_not_be_assigned_is_refused(settings, rate):
    def assign(run):
        run.learning_rate = rate

    with pytest.raises(ConfigError, match='learning_rate: '):
        train(mlp(4, 2), assign, **settings)


# --- one training at a time ---------------------------------------------------------------------


class Waits:
    """Lets another thread act while a model is trained."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    def on_epoch_end(self, run):
        if run.epoch == 1:
            self.begun.set()
            assert self.go_on.wait(60)


def learner_of(model):
    learner = ActiveLearner(model)
    learner.start(X[20:], X[:20], Y[:20])
    return learner


def with_a_shared_layer(model):
    return nnx.Sequential(model.hidden, nnx.Linear(16, 2, rngs=nnx.Rngs(1)))


SECOND = {
    'train': lambda model, path: train(model),
    'distributed': lambda model, path: train(model, trainer=DistributedTrainer),
    'shared layers': lambda model, path: train(with_a_shared_layer(model)),
    'fine_tune': lambda model, path: TransferLearner(model).fine_tune(
        model, X, Y, role='model', progress=False
    ),
    'active': lambda model, path: learner_of(model).fit(),
    'load into': lambda model, path: ModelManager().load_model(path, into=model),
}  # fmt: skip


@pytest.fixture(scope='module')
def trained_by_a_thread(tmp_path_factory):
    model, waits = DropoutBatchNorm(4, 2, nnx.Rngs(0)), Waits()
    path = tmp_path_factory.mktemp('saved') / 'model'
    ModelManager().save_model(model, path)
    thread = threading.Thread(
        target=train, args=(model, waits), kwargs={'learning_rate': 0.1}, name='first'
    )
    thread.start()
    assert waits.begun.wait(60)
    yield model, path
    waits.go_on.set()
    thread.join()
    twin = DropoutBatchNorm(4, 2, nnx.Rngs(0))
    train(twin, learning_rate=0.1)
    for got, expected in zip(arrays(model), arrays(twin), strict=True):
        np.testing.assert_array_equal(got, expected)
    train(model)  # it is free again


@pytest.mark.parametrize('way', SECOND)
def test_a_second_training_of_a_model_is_refused(way, trained_by_a_thread):
    model, path = trained_by_a_thread
    with pytest.raises(ConfigError, match=r"model: it, or a layer of it, .* the thread 'first'"):
        SECOND[way](model, path)


def test_a_copy_can_be_trained_and_predicts_meanwhile(trained_by_a_thread):
    model, _ = trained_by_a_thread
    train(nnx.clone(model))
    assert predict(model, X).shape == (60,)


def test_a_training_within_a_training_of_the_same_model_is_refused():
    model = mlp(4, 2)
    with pytest.raises(ConfigError, match='is being trained'):
        train(model, lambda run: train(run.model))
    train(model)
    train(model, lambda run: train(mlp(4, 2)))


def test_threads_share_a_trainer():
    trainer = ModelTrainer(TrainingConfig(**STILL | {'learning_rate': 0.1}))
    models, alone = [mlp(4, 2, seed=seed) for seed in range(3)], []
    threads = [
        threading.Thread(target=trainer.train, args=(model, X, Y), kwargs={'progress': False})
        for model in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, model in enumerate(models):
        alone = mlp(4, 2, seed=seed)
        train(alone, learning_rate=0.1)
        for got, expected in zip(arrays(model), arrays(alone), strict=True):
            np.testing.assert_array_equal(got, expected)
