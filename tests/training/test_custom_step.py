"""Custom steps: training steps that users write, beside loops by hand."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm, mlp
from tests.models_with_steps import Gan, GanStep, gan_loss
from thinkml.core import ObjectiveBatch
from thinkml.core.train.batch_feed import epoch_order
from thinkml.data import capacity
from thinkml.errors import ConfigError
from thinkml.model_record import record_of
from thinkml.models import ModelManager, from_functions, from_linen, predict
from thinkml.training import (
    EarlyStopping,
    ModelTrainer,
    Objective,
    ReduceLROnPlateau,
    StepOutput,
    TensorBoard,
    TrainingConfig,
)
from thinkml.training.random_keys import run_keys

ROWS = 24
SETTINGS = {'epochs': 6, 'batch_size': ROWS}
X = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int32)
# Shared, so that trainings share the compiled step.
GAN_STEP = GanStep()


def train(model, step, y=None, settings=None, resume=False, X=X, **arguments):
    trainer = ModelTrainer(TrainingConfig(**SETTINGS | (settings or {})))
    history = trainer.train(model, X, y, step=step, progress=False, resume=resume, **arguments)
    return model, history


def arrays_of(model):
    return nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def gan_by_hand():
    graph, params = nnx.split(Gan(), nnx.Param)
    params, keys = nnx.to_pure_dict(params), run_keys(TrainingConfig().seed)
    states, losses = GAN_STEP.init(params), []

    @jax.jit
    def step(params, states, x, key):
        noise, batch = jax.random.normal(key, (ROWS, 3)), ObjectiveBatch(x, None, jnp.ones(ROWS))
        total = 0.0
        for part, tx in GAN_STEP.txs.items():

            def loss_of(own, part=part, params=params):
                return gan_loss(nnx.merge(graph, params | {part: own}), batch, noise, part)

            loss, grads = jax.value_and_grad(loss_of)(params[part])
            updates, state = tx.update(grads, states[part])
            params = params | {part: optax.apply_updates(params[part], updates)}
            states, total = states | {part: state}, total + loss
        return params, states, total

    for index in range(SETTINGS['epochs']):
        order = epoch_order(np.arange(ROWS), capacity(ROWS), keys.shuffle, index)
        key = jax.random.fold_in(keys.step, index)
        params, states, loss = step(params, states, X[order], key)
        losses.append(float(loss))
    return params, losses


def test_a_gan_with_two_optimizers_trains_as_a_loop_written_by_hand():
    model, history = train(Gan(), GAN_STEP)
    params, losses = gan_by_hand()
    np.testing.assert_allclose(history['loss'], losses, rtol=1e-6)
    compare = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(compare, arrays_of(model), params)
    total = np.add(history['d_loss'], history['g_loss'])
    np.testing.assert_allclose(history['loss'], total, rtol=1e-6)
    assert list(history) == ['loss', 'd_loss', 'g_loss']


def cross_entropy(state, batch):
    """ThinkML's step of a classification, with the optimizer of the settings."""

    def loss_of(params):
        logits, model_state = state.run(lambda model: model(batch.x), params)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
        return (batch.weight * losses).sum() / batch.weight.sum(), (logits, model_state)

    (loss, (logits, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    hits = (batch.weight * (logits.argmax(-1) == batch.y)).sum() / batch.weight.sum()
    state = state.apply_gradients(grads, model_state)
    return state, StepOutput(loss, {'hits': hits})


def test_a_step_with_the_settings_optimizer_is_the_one_of_a_usual_training():
    settings = {
        'batch_size': 10, 'optimizer': 'adamw', 'lr_schedule': 'cosine', 'gradient_clip_norm': 0.5,
        'ema_decay': 0.9,
    }  # fmt: skip
    make = functools.partial(DropoutBatchNorm, 6, 2)
    own, history = train(make(nnx.Rngs(0)), cross_entropy, LABELS, settings)
    usual, expected = train(make(nnx.Rngs(0)), None, LABELS, settings)
    compare = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(compare, arrays_of(own), arrays_of(usual))
    np.testing.assert_allclose(history['loss'], expected['loss'], rtol=1e-6)
    np.testing.assert_allclose(history['hits'], expected['accuracy'], rtol=1e-6)


def test_validation_has_the_loss_function_and_its_metrics():
    model, history = train(
        mlp(6, 2), cross_entropy, LABELS, X_val=X, y_val=LABELS, loss_fn='cross_entropy',
        metrics=['f1'], settings={'early_stopping': True},
    )  # fmt: skip
    assert list(history) == ['loss', 'hits', 'val_loss', 'val_accuracy', 'val_f1']
    assert history['val_accuracy'][-1] == pytest.approx(np.mean(predict(model, X) == LABELS))

    _, history = train(Gan(), GAN_STEP, X_val=X, loss_fn=Objective(realism))
    assert list(history) == ['loss', 'd_loss', 'g_loss', 'val_loss']


def test_several_validation_sets_beside_a_step_are_monitored_and_logged(tmp_path):
    """Their metrics are not those of training, from which sets are otherwise recognised."""
    sets = {'a': (X, LABELS), 'a_b': (X[:8], LABELS[:8])}
    stopping = EarlyStopping(monitor='val_a_b_accuracy', patience=2)
    settings = {'early_stopping': stopping, 'callbacks': [TensorBoard(tmp_path)]}
    _, history = train(
        mlp(6, 2), cross_entropy, LABELS, settings, X_val=sets, loss_fn='cross_entropy'
    )
    assert history.best_epoch == 1 + int(np.argmax(history['val_a_b_accuracy']))
    runs = {path.name for path in tmp_path.glob('*/*') if path.is_dir()}
    assert runs == {'train', 'validation_a', 'validation_a_b'}
    assert 'grad_norm' not in history  # which loggers record for other trainings


def realism(model, batch, key):
    return nnx.softplus(-model(batch.x))


def test_a_resumed_run_is_the_same_run(tmp_path):
    settings = {'epochs': 4, 'batch_size': 7, 'callbacks': ['checkpoint']}
    whole, history = train(
        Gan(), GAN_STEP, settings=settings | {'checkpoint_dir': str(tmp_path / 'a')}
    )
    part = settings | {'checkpoint_dir': str(tmp_path / 'b')}
    train(Gan(), GAN_STEP, settings=part | {'max_steps': 6})
    resumed, again = train(Gan(), GAN_STEP, settings=part, resume='continue')
    assert dict(history) == dict(again)
    assert_equal(arrays_of(whole), arrays_of(resumed))

    class Other(GanStep):
        def __call__(self, state, batch):
            state, output = super().__call__(state, batch)
            return state, output._replace(loss=2 * output.loss)

    Other.__qualname__ = 'GanStep'
    with pytest.raises(ConfigError, match='step: it has the name of the one in the checkpoint'):
        train(Gan(), Other(), settings=part | {'epochs': 6}, resume='continue')
    with pytest.raises(ConfigError, match='step'):
        train(Gan(), None, settings=part, resume='continue', loss_fn=Objective(realism))


def test_a_resumed_run_with_another_rate_has_the_same_step(tmp_path):
    settings = {'epochs': 1, 'checkpoint_dir': str(tmp_path), 'callbacks': ['checkpoint']}
    train(mlp(6, 2), cross_entropy, LABELS, settings)
    with pytest.raises(ConfigError, match=r'learning_rate: 0\.001 in .* 0\.1 now') as error:
        train(
            mlp(6, 2), cross_entropy, LABELS, settings | {'learning_rate': 0.1}, resume='continue'
        )
    assert 'step:' not in str(error.value)


def test_the_model_predicts_and_is_saved_with_its_optimizers(tmp_path):
    model, _ = train(Gan(), GAN_STEP)
    ModelManager().save_model(model, tmp_path / 'gan', include_optimizer=True)
    loaded = ModelManager().load_model(tmp_path / 'gan', include_optimizer=True)
    np.testing.assert_array_equal(predict(loaded, X), predict(model, X))
    before = record_of(loaded).optimizer['discriminator/0/mu/layers/0/kernel']
    assert np.abs(before).max() > 0
    train(loaded, GAN_STEP)  # continues with these moments
    train(model, GAN_STEP)
    after = [record_of(one).optimizer['discriminator/0/count'] for one in (loaded, model)]
    assert list(map(int, after)) == [12, 6]


@dataclasses.dataclass
class Mutable:
    """A function without a hash, since it has an ``__eq__`` and can be changed."""

    function: Any

    def __call__(self, *arguments):
        return self.function(*arguments)


@dataclasses.dataclass(frozen=True)
class WithArray:
    """A function whose hash fails."""

    function: Any
    array: Any = dataclasses.field(default_factory=lambda: np.ones(2))

    def __call__(self, *arguments):
        return self.function(*arguments)


def first_output(model, batch, key):
    return model(batch.x)[:, 0]


FUNCTIONS = {
    'step': cross_entropy,
    'objective': first_output,
    'loss': optax.softmax_cross_entropy_with_integer_labels,
}


@pytest.mark.parametrize('make', [Mutable, WithArray])
@pytest.mark.parametrize('kind', ['step', 'objective', 'loss'])
def test_objects_without_a_hash_are_compiled_once(kind, make, count_compiles):
    function = make(FUNCTIONS[kind])
    more = {
        'step': lambda: {'step': function},
        'objective': lambda: {'step': None, 'loss_fn': Objective(function)},
        'loss': lambda: {'step': None, 'loss_fn': function},
    }[kind]
    model = mlp(6, 2)
    assert count_compiles(lambda: train(model, y=LABELS, **more())) > 0
    assert count_compiles(lambda: train(model, y=LABELS, **more())) == 0


def test_linen_modules_and_functions_have_steps():
    def squared(state, batch):
        def loss_of(params):
            outputs, model_state = state.run(lambda model: model(batch.x), params)
            return jnp.mean(batch.weight * jnp.square(outputs - batch.y)), model_state

        (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return state.apply_gradients(grads, model_state), StepOutput(loss)

    class Coder(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))[:, 0]

    functions = from_functions(lambda key, x: jnp.zeros(6), lambda w, x: x @ w)
    for model in (from_linen(Coder()), functions):
        _, history = train(model, squared, X.sum(axis=1), settings={'learning_rate': 0.05})
        assert history['loss'][-1] < history['loss'][0]


def test_a_model_with_heads_has_a_step(capsys):
    class Heads(nnx.Module):
        def __init__(self):
            self.out = mlp(6, 2)

        def __call__(self, x):
            return {'kind': self.out(x), 'size': self.out(x)[:, 0]}

    def step(state, batch):
        def loss_of(params):
            outputs, model_state = state.run(lambda model: model(batch.x), params)
            losses = jnp.square(outputs['size'] - batch.y['size']) - outputs['kind'][:, 1]
            return jnp.mean(losses), model_state

        (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return state.apply_gradients(grads, model_state), StepOutput(loss)

    y = {'kind': LABELS, 'size': X[:, 0]}
    _, history = train(Heads(), step, y, {'callbacks': ['progress']})
    assert history['loss'][-1] < history['loss'][0]
    assert (
        'kind (binary, 2 classes (0, 1)), size (regression, 1 target);' in capsys.readouterr().err
    )


def test_a_batch_size_and_a_rate_are_found_for_a_step():
    trainer = ModelTrainer(TrainingConfig(**SETTINGS))
    assert trainer.find_batch_size(Gan(), X, step=GAN_STEP) == 16
    own, usual = (
        trainer.find_learning_rate(mlp(6, 2), X, LABELS, step=step)
        for step in (cross_entropy, None)
    )
    np.testing.assert_allclose(own.losses, usual.losses, rtol=1e-5)


def test_a_plan_has_the_state_of_the_steps_optimizers():
    plan = ModelTrainer(TrainingConfig(**SETTINGS)).plan(Gan(), X, step=GAN_STEP)
    moments = {array.name for array in plan.arrays if array.name.startswith('opt_state')}
    assert any('discriminator/0/mu' in name for name in moments)
    assert not any('generator/0/mu' in name for name in moments)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda state, batch: state, 'it returned StepState'),
        (lambda state, batch: (state, 1.0), r'it returned \(state, float\)'),
        (lambda state, batch: (1, StepOutput(1.0)), r'it returned \(int, StepOutput\)'),
        (lambda state, batch: (state, StepOutput(batch.weight)), 'the loss as float32 of shape'),
        (lambda state, batch: (state, StepOutput(1)), 'the loss as int'),
        (lambda state, batch: (state, batch.weight), r'it returned \(state, array\)'),
        (lambda state, batch: (state, StepOutput(jnp.zeros(()), [1])), 'metrics as a list'),
        (lambda state, batch: (state, StepOutput(jnp.zeros(()), {'a': batch.weight})), "'a' of sh"),
        (lambda state, batch: (state, StepOutput(jnp.zeros(()), {'a': None})), "'a' as NoneType"),
        (lambda state, batch: (state, StepOutput(jnp.zeros(()), {'loss': 1.0})), "called 'loss'"),
        (lambda state, batch: (state, StepOutput(jnp.zeros(()), {'val_a': 1.0})), "called 'val_a'"),
        (lambda state, batch: (state.replace(params={}), StepOutput(jnp.zeros(()))), 'as nothing'),
        (lambda state, batch: batch.y + 1, 'failed: TypeError'),
    ],
)
def test_other_results_are_refused_before_a_compile(make, message):
    model = Gan()
    before = arrays_of(model)
    with pytest.raises(ConfigError, match=message):
        train(model, make)
    assert_equal(before, arrays_of(model))


def test_what_does_not_go_with_a_step_is_refused():
    with pytest.raises(ConfigError, match='step: got 3, expected a function'):
        train(Gan(), 3)
    with pytest.raises(ConfigError, match='expected a function'):
        train(Gan(), GanStep)
    for settings in ({'optimizer': 'sgd'}, {'accumulate_steps': 2}, {'gradient_clip_norm': 1.0}):
        with pytest.raises(ConfigError, match=f'{next(iter(settings))}: got .* beside the step'):
            train(Gan(), GAN_STEP, settings=settings)
    with pytest.raises(ConfigError, match='callbacks: got ReduceLROnPlateau, but the optimizer'):
        train(Gan(), GAN_STEP, settings={'callbacks': [ReduceLROnPlateau()]})
    with pytest.raises(ConfigError, match='X_val: got rows to validate beside the step GanStep'):
        train(Gan(), GAN_STEP, X_val=X)
    with pytest.raises(ConfigError, match='validation_split: got rows to validate'):
        train(Gan(), GAN_STEP, settings={'validation_split': 0.25})
    with pytest.raises(ConfigError, match=r"metrics: got \['f1'\] beside the step"):
        train(Gan(), GAN_STEP, metrics=['f1'])
    with pytest.raises(ConfigError, match="metrics: got 'grad_norm' beside the step"):
        train(mlp(6, 2), cross_entropy, LABELS, loss_fn='cross_entropy', metrics=['grad_norm'])

    class Wrong(GanStep):
        def __call__(self, state, batch):
            return state.apply_gradients(state.params), StepOutput(jnp.zeros(()))

    with pytest.raises(ConfigError, match=r'it called state\.apply_gradients'):
        train(Gan(), Wrong())
