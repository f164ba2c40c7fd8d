"""Optax transformations that need the loss, and optimizers by the paths of parameters."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.errors import ConfigError
from thinkml.training import ModelTrainer, TrainingConfig

ROWS = 24
SETTINGS = {'epochs': 6, 'batch_size': ROWS}  # one batch is all rows: their order plays no part
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
Y = X[:, :3].argmax(1)


def train(model=None, X=X, Y=Y, **settings):
    """Trains a model, and returns it with its history."""
    model = mlp(4, 3, hidden=8) if model is None else model
    config = TrainingConfig(**SETTINGS | settings)
    return model, ModelTrainer(config).train(model, X, Y, progress=False)


def params_of(model):
    return jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def by_hand(tx, num_steps=SETTINGS['epochs'], takes_loss=False):
    """Returns the parameters and the losses of a loop written by hand."""
    graph, params = nnx.split(mlp(4, 3, hidden=8), nnx.Param)
    params = nnx.to_pure_dict(params)
    state, losses = tx.init(params), []

    @jax.jit
    def step(params, state):
        def loss_of(params):
            logits = nnx.merge(graph, params)(X)
            return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        more = {'value': loss} if takes_loss else {}
        updates, state = tx.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(num_steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, losses


def assert_close(a, b, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), a, b)


# --- transformations that need more than gradients ---------------------------------------------


@pytest.mark.parametrize(
    'tx',
    [
        optax.chain(optax.sgd(0.3), optax.contrib.reduce_on_plateau(factor=0.1, patience=1)),
        optax.polyak_sgd(max_learning_rate=0.5),
    ],
    ids=['plateau', 'polyak'],
)
def test_a_transformation_that_needs_the_loss_gets_it(tx):
    model, history = train(optimizer=tx)
    params, losses = by_hand(tx, takes_loss=True)
    np.testing.assert_allclose(history['loss'], losses, atol=1e-6)
    assert_close(params_of(model), params)


@pytest.mark.parametrize(
    ('optimizer', 'missing'),
    [
        (optax.lbfgs(), "'value' and 'grad' and 'value_fn'"),
        (optax.lbfgs, "'value' and 'grad' and 'value_fn'"),
        (optax.chain(optax.polyak_sgd(), optax.scale_by_zoom_linesearch(5)), "'grad' and 'value_"),
        (optax.masked(optax.lbfgs(), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
         "'value_fn'"),
    ],
    ids=['lbfgs', 'function', 'chain', 'masked'],
)  # fmt: skip
def test_a_line_search_is_refused_by_the_config(optimizer, missing):
    with pytest.raises(ConfigError, match=rf'(?s)optimizer: its update needs .*{missing}.*linesea'):
        TrainingConfig(optimizer=optimizer)


@pytest.mark.parametrize(
    ('tx', 'says'),
    [
        # The masks fit this model alone, so that the config can not know of the first.
        (lambda mask: optax.masked(optax.lbfgs(), mask), "its update needs 'value' and 'grad'"),
        (lambda mask: optax.masked(optax.sgd(0.1), {'layers': mask}), 'failed with ValueError'),
        (lambda mask: optax.contrib.sophia(0.1), 'obj_fn must be provided'),
    ],
    ids=['lbfgs', 'another mask', 'no function'],
)
def test_what_fails_for_the_parameters_is_told_before_a_compile(tx, says, count_compiles):
    model = mlp(4, 3, hidden=8)
    mask = jax.tree.map(lambda _: True, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    config = TrainingConfig(optimizer=tx(mask), **SETTINGS)

    def refused():
        with pytest.raises(ConfigError, match=f'^optimizer: .*{says}'):
            ModelTrainer(config).train(model, X, Y, progress=False)

    assert count_compiles(refused) == 0


def test_a_transformation_that_takes_no_further_arguments_gets_none():
    sharpness_aware = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01))
    model, _ = train(optimizer=sharpness_aware)
    assert_close(params_of(model), by_hand(sharpness_aware)[0])
