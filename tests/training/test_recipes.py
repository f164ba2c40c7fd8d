"""Six recipes are short, train as a loop written by hand, and resume with the same bits.

`tests/several_devices/test_recipes.py` trains them on two devices.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.recipes import RECIPES, ROWS, SETTINGS, X, losses_by_hand, params_of
from thinkml.core import ObjectiveBatch
from thinkml.core.train.batch_feed import epoch_order
from thinkml.core.train.scoring import _OBJECTIVE
from thinkml.data import capacity
from thinkml.training import TrainingConfig
from thinkml.training.random_keys import run_keys

EPOCHS, BATCH = SETTINGS['epochs'], SETTINGS['batch_size']
each_recipe = pytest.mark.parametrize('name', RECIPES)


@functools.cache
def trained(name):
    return RECIPES[name].train()


@each_recipe
def test_a_recipe_takes_no_more_than_15_lines(name):
    lines = [
        line
        for code in RECIPES[name].code
        for line in inspect.getsource(code).splitlines()
        if line.strip()
    ]
    assert 1 < len(lines) + 1 <= 15  # and the line that trains


def by_hand(recipe):
    """Trains in a loop of plain JAX; returns the parameters, and the values of each epoch."""
    graph, params = nnx.split(recipe.make(), nnx.Param)
    params, tx = nnx.to_pure_dict(params), optax.sgd(SETTINGS['learning_rate'])
    state, history, keys = tx.init(params), [], run_keys(TrainingConfig().seed)

    @jax.jit
    def step(params, state, batch, key):
        def loss_of(params):
            return losses_by_hand(recipe, nnx.merge(graph, params), batch, key)

        (loss, values), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, {'loss': loss, **values}

    for epoch in range(EPOCHS):
        order = epoch_order(np.arange(ROWS), capacity(ROWS), keys.shuffle, epoch)
        for first in range(0, ROWS, BATCH):
            rows = order[first : first + BATCH]
            index = (epoch * ROWS + first) // BATCH
            key = jax.random.fold_in(jax.random.fold_in(keys.step, index), _OBJECTIVE)
            y = None if recipe.y is None else recipe.y[rows]
            batch = ObjectiveBatch(X[rows], y, jnp.ones(BATCH))
            params, state, values = step(params, state, batch, key)
            history.append(values)
    of_epochs = {
        name: np.reshape([values[name] for values in history], (EPOCHS, -1)).mean(axis=1)
        for name in history[0]
    }
    return params, of_epochs


@each_recipe
def test_it_trains_as_a_loop_written_by_hand(name):
    model, history = trained(name)
    params, expected = by_hand(RECIPES[name])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    assert list(history) == ['loss', *RECIPES[name].values]
    for value in history:
        close(history[value], expected[value])
    jax.tree.map(close, params_of(model), params)
    assert history['loss'][-1] < history['loss'][0]


@each_recipe
def test_a_resumed_run_is_the_same_run(name, tmp_path):
    model, history = trained(name)
    settings = {'callbacks': ['checkpoint'], 'checkpoint_dir': str(tmp_path)}
    RECIPES[name].train(settings=settings | {'max_steps': 4})  # within the second epoch
    resumed, again = RECIPES[name].train(settings=settings, resume='continue')
    assert dict(again) == dict(history)
    jax.tree.map(np.testing.assert_array_equal, params_of(resumed), params_of(model))
