"""Auxiliary losses: values that a model sows, added to its loss."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests.recipes import LABELS, ROWS, Experts, X, params_of
from thinkml.core import CrossEntropy
from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.errors import ConfigError, ModelTypeError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.models import from_functions, from_linen, predict
from thinkml.training import EarlyStopping, ModelTrainer, Objective, TrainingConfig

Y = X.sum(axis=1)
SETTINGS = {'epochs': 2, 'batch_size': 8, 'optimizer': 'sgd', 'learning_rate': 0.05}
BALANCE, NONE = {'aux_losses': {'balance': 0.1}}, {'aux_losses': {}}
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)


class Sowing(nnx.Module):
    """A linear model that sows a number and a value of each row, in each of two layers."""

    def __init__(self, outputs=2):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([SowingLayer(rngs), SowingLayer(rngs)])
        self.out = nnx.Linear(6, outputs, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


class SowingLayer(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x):
        x = self.out(x)
        squares = (x**2).mean(axis=tuple(range(1, x.ndim)))
        self.sow(nnx.Intermediate, 'of_batch', squares.mean())
        self.sow(nnx.Intermediate, 'of_rows', squares)
        self.sow(nnx.Intermediate, 'features', x)
        self.sow(nnx.Intermediate, 'note', 'not a number')
        return x


def train(model, y=Y, X=X, settings=None, **more):
    config = TrainingConfig(**SETTINGS | (settings or {}))
    return model, ModelTrainer(config).train(model, X, y, progress=False, **more)


def same(one, other):
    jax.tree.map(close, params_of(one), params_of(other))


def squares_of(model, x):
    """The sum over the layers of what each row sows."""
    total = 0
    for layer in model.layers:
        x = layer.out(x)
        total = total + (x**2).mean(axis=tuple(range(1, x.ndim)))
    return model.out(x), total


def by_hand(model, batch, key):
    outputs, squares = squares_of(model, batch.x)
    losses = (outputs[:, 0] - batch.y) ** 2
    return losses + 0.1 * squares, {'of_rows': squares}


# --- values -----------------------------------------------------------------------------------


def squared(outputs, targets):
    return (outputs - targets) ** 2


def calling(model, batch, key):
    return jnp.square(model(batch.x)[:, 0] - batch.y)


@pytest.mark.parametrize(
    ('loss_fn', 'name'),
    [('mse', 'of_batch'), (squared, 'of_rows'), (Objective(calling), 'of_batch')],
)
def test_values_are_added_to_any_loss(loss_fn, name):
    """The batches divide the rows, so the mean over a batch is that of its rows."""
    model, history = train(Sowing(1), settings={'aux_losses': {name: 0.1}}, loss_fn=loss_fn)
    expected, by_objective = train(Sowing(1), loss_fn=Objective(by_hand), settings=NONE)
    same(model, expected)
    assert list(history) == ['loss', name]
    close(history['loss'], by_objective['loss'])
    close(history[name], by_objective['of_rows'])


@pytest.mark.parametrize('parts', [1, 2])
def test_values_of_rows_are_exact_means_under_weights(parts):
    weight = np.arange(ROWS) % 4
    settings = {'batch_size': 10 // parts, 'accumulate_steps': parts}
    more = {'settings': settings | {'aux_losses': {'of_rows': 0.1}}, 'sample_weight': weight}
    model, history = train(Sowing(1), **more)
    more = {'settings': {'batch_size': 10, 'aux_losses': {}}, 'sample_weight': weight}
    expected, by_objective = train(Sowing(1), loss_fn=Objective(by_hand), **more)
    same(model, expected)
    close(history['loss'], by_objective['loss'])
    close(history['of_rows'], by_objective['of_rows'])


def test_a_number_for_a_batch_is_the_mean_over_accumulated_batches():
    settings = {'batch_size': 4, 'accumulate_steps': 2, 'optimizer': 'sgd', 'epochs': 1}
    model, history = train(Experts(), settings=settings | BALANCE)

    def of_parts(model, batch, key):
        gates = jax.nn.softmax(model.gate(batch.x))
        losses = ((gates * model.experts(batch.x)).sum(axis=-1) - batch.y) ** 2
        halves = jnp.split(gates, [len(gates) // 2])
        balance = sum(3 * jnp.sum(half.mean(axis=0) ** 2) for half in halves) / 2
        return losses.mean() + 0.1 * balance, {'balance': balance}

    expected, by_objective = train(
        Experts(), loss_fn=Objective(of_parts, coupled=True), settings={'epochs': 1}
    )
    same(model, expected)
    close(history['loss'], by_objective['loss'])
    close(history['balance'], by_objective['balance'])


def test_linen_modules_sow_losses():
    class LinenExperts(nn.Module):
        @nn.compact
        def __call__(self, x):
            gates = jax.nn.softmax(nn.Dense(3, name='gate')(x))
            self.sow('losses', 'balance', 3 * jnp.sum(gates.mean(axis=0) ** 2))
            self.sow('intermediates', 'gates', gates)
            return (gates * nn.Dense(3, name='experts')(x)).sum(axis=-1)

    def variables():
        arrays = LinenExperts().init(jax.random.key(0), X)
        assert 'losses' in arrays  # `init` sows as well
        return arrays | {'params': params_of(Experts())}

    model, expected = from_linen(LinenExperts(), variables()), Experts()
    _, history = train(model, settings=BALANCE)
    _, of_nnx = train(expected, settings=BALANCE)
    close(history['balance'], of_nnx['balance'])
    close(history['loss'], of_nnx['loss'])
    jax.tree.map(close, model.variables, {'params': params_of(expected)})
    with pytest.warns(ThinkMLWarning, match="model: it sows 'balance', which"):
        train(from_linen(LinenExperts()))


def test_heads_tokens_chunks_and_computing_again():
    class Heads(Sowing):
        def __call__(self, x):
            return {'a': super().__call__(x)[:, 0], 'b': super().__call__(x)[:, 1]}

    settings = {'aux_losses': {'of_rows': 0.1}, 'epochs': 1}
    y = {'a': Y, 'b': -Y}
    model, history = train(Heads(), y, settings=settings)
    assert list(history)[-1] == 'of_rows'
    parts = history['a_loss'][0] + history['b_loss'][0]
    close(history['loss'][0], parts + 0.1 * history['of_rows'][0])

    tokens = np.repeat(X[:, None], 3, axis=1)
    labels = np.where(np.arange(3) < 2, LABELS[:, None], -100)
    loss_of = [None, CrossEntropy(chunk=4), None, None]
    variants = [{}, {}, {'remat': True}, {'batch_size': 4, 'accumulate_steps': 2}]
    runs = [
        train(Sowing(), labels, tokens, settings=settings | variant, loss_fn=loss_fn)
        for loss_fn, variant in zip(loss_of, variants, strict=True)
    ]

    def of_tokens(model, batch, key):
        logits, squares = squares_of(model, batch.x)
        scores = jax.nn.log_softmax(logits[:, :2])  # the third token has no label
        losses = -scores[jnp.arange(len(scores)), :, batch.y[:, 0]].mean(axis=1)
        return losses + 0.1 * squares, {'of_rows': squares}

    expected, by_objective = train(
        Sowing(), labels, tokens, settings=NONE | {'epochs': 1}, loss_fn=Objective(of_tokens)
    )
    for model, history in runs:
        same(model, expected)
        for name in by_objective:
            close(history[name], by_objective[name])


def test_low_rank_updates_keep_sown_values():
    model = Sowing()
    path = ('layers', 0, 'out', 'kernel')
    frozen = PartlyFrozen(model, {('out', 'kernel'): 1.0}, {path: 1}, rank=2)
    functional = frozen.functionalize(X, jax.random.key(0))
    arguments = (functional.params, functional.model_state, X)
    outputs, collected = functional.apply.collecting()(
        *arguments, key=jax.random.key(0), train=True
    )
    close(outputs, squares_of(model, X)[0])
    close(sum(collected.sown['of_rows']), squares_of(model, X)[1])
    _, state = functional.apply(*arguments, key=jax.random.key(0), train=True)
    jax.tree.map(np.testing.assert_array_equal, collected.model_state, state)


def test_frozen_parameters_keep_sown_values():
    frozen = {'optimizer': {'layers/0/.*': 'frozen', '.*': 'sgd'}}
    model, history = train(Sowing(1), settings=frozen | {'aux_losses': {'of_rows': 0.1}})
    expected, by_objective = train(Sowing(1), loss_fn=Objective(by_hand), settings=frozen | NONE)
    same(model, expected)
    close(history['of_rows'], by_objective['of_rows'])
    same(model.layers[0], Sowing(1).layers[0])


# --- models that sow --------------------------------------------------------------------------


class Silent(Experts):
    def sow(self, *args, **more):
        return False


def test_a_model_that_sows_trains_and_says_so_once(tmp_path):
    model, expected = Experts(), Silent()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        model(X)  # values sown by earlier calls don't matter
    settings = {'callbacks': ['checkpoint'], 'checkpoint_dir': str(tmp_path)}
    with pytest.warns(ThinkMLWarning, match='it sows') as told:
        _, history = train(model, settings=settings, X_val=X, y_val=Y)
    assert [str(one.message) for one in told] == [
        "model: it sows 'balance', which no loss contains. To add a value to the loss, pass "
        "TrainingConfig(aux_losses={'balance': 0.01}); to leave it out, aux_losses={}."
    ]
    _, of_expected = train(expected, X_val=X, y_val=Y)
    assert dict(history) == dict(of_expected)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), params_of(expected))


def test_values_that_are_sown_as_state_are_refused():
    class OtherCollection(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow('balances', 'balance', x.mean())
            return nn.Dense(1)(x)

    with pytest.raises(ModelTypeError, match=r"sows are not state if .* the collection 'losses'"):
        train(from_linen(OtherCollection()))


def test_only_values_that_can_be_added_are_mentioned():
    with pytest.warns(ThinkMLWarning, match="it sows 'of_batch', 'of_rows', which") as told:
        train(Sowing(1), settings={'fast_dev_run': True})
    assert 'features' not in str(told[0].message)


def test_predictions_and_validation_are_those_of_the_model():
    model, history = train(Experts(), settings=BALANCE, X_val=X, y_val=Y)
    assert list(history) == ['loss', 'balance', 'val_loss']
    evaluation = ModelEvaluator().evaluate(model, X, Y)
    assert history['val_loss'][-1] == pytest.approx(evaluation['rmse'] ** 2, rel=1e-6)
    gates = jax.nn.softmax(model.gate(X))
    close(predict(model, X), (gates * model.experts(X)).sum(axis=-1))
    assert nnx.state(model, nnx.Intermediate) == {}


def test_a_weight_of_0_records_alone():
    model, history = train(Experts(), settings={'aux_losses': {'balance': 0}})
    expected, without = train(Experts(), settings=NONE)
    same(model, expected)
    close(history['loss'], without['loss'])
    assert history['balance'][0] > 1


# --- errors -----------------------------------------------------------------------------------


class SowsOnce(nnx.Module):
    def __init__(self, name, value):
        self.name, self.value = name, value
        self.out = nnx.Linear(6, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        outputs = self.out(x)
        self.sow(nnx.Intermediate, self.name, self.value(outputs))
        return outputs


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('other', jnp.mean, "'balance', but in training mode the model sows 'other'. Sow"),
        ('balance', lambda y: y, r"sows 'balance' of shape \(rows, 1\), expected one number"),
        ('balance', lambda y: jnp.argmax(y), "sows 'balance' as int32, expected floats"),
        ('loss', jnp.mean, "aux_losses: the model sows 'loss', which is the name of something"),
        ('r2', jnp.mean, "aux_losses: the model sows 'r2', which is the name of something"),
        ('val_a', jnp.mean, "aux_losses: the model sows 'val_a', which is the name of something"),
    ],
)
def test_values_that_can_not_be_added_are_refused_before_a_compile(
    name, value, message, count_compiles
):
    weighted = 'balance' if name == 'other' else name
    model = SowsOnce(name, value)

    def refused():
        with pytest.raises(ConfigError, match=message):
            train(model, settings={'aux_losses': {weighted: 0.1}}, metrics=['r2'])

    refused()
    assert count_compiles(refused) == 0


def test_models_that_sow_nothing_are_refused():
    silent = from_functions(lambda key, x: jnp.zeros(6), lambda w, x: x @ w)
    for model in (silent, Silent()):
        with pytest.raises(ConfigError, match="'balance', but in training mode the model sows no"):
            train(model, settings=BALANCE)


@pytest.mark.parametrize(
    'weights', [0.1, ['balance'], {'balance': 'a'}, {'balance': True}, {1: 0.1}, {'a': np.nan}]
)
def test_weights_are_numbers_by_name(weights):
    with pytest.raises(ConfigError, match=r'aux_losses: got .* expected None or a dict of'):
        TrainingConfig(aux_losses=weights)


def test_a_resumed_run_has_the_same_weights(tmp_path):
    settings = {'callbacks': ['checkpoint'], 'checkpoint_dir': str(tmp_path)}
    train(Experts(), settings=settings | BALANCE)
    with pytest.raises(ConfigError, match=r'aux_losses: .*0\.1.* in the checkpoint, .*0\.2.* now'):
        train(
            Experts(), settings=settings | {'aux_losses': {'balance': 0.2}, 'epochs': 4},
            resume='continue',
        )  # fmt: skip


def test_a_value_of_training_is_not_monitored_in_validation():
    settings = BALANCE | {'early_stopping': EarlyStopping(monitor='val_balance')}
    with pytest.raises(ConfigError, match="monitor: got 'val_balance', but balance is a metric of"):
        train(Experts(), settings=settings, X_val=X, y_val=Y)
