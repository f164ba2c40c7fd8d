"""The recipes of tests/recipes.py on two devices."""

import functools

import jax
import numpy as np
import pytest

from tests.recipes import RECIPES, params_of
from thinkml.training import DistributedTrainer


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_does_not_depend_on_the_devices(name):
    model, history = RECIPES[name].train()
    on_two, again = RECIPES[name].train(functools.partial(DistributedTrainer, num_gpus=2))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for value in history:
        close(again[value], history[value])
    jax.tree.map(close, params_of(on_two), params_of(model))
