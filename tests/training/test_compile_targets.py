"""Plans of shapes, and targets where no compiler for them is installed."""

import importlib.util

import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError, ModelTypeError
from thinkml.training import ModelTrainer


@pytest.mark.parametrize(
    ('target', 'compiler', 'extra'),
    [('h200:8', 'jax-cuda13-plugin', 'plan-gpu'), ('v5e:4x4', 'libtpu', 'plan-tpu')],
)
def test_a_compiler_that_is_missing_is_named_with_the_command(target, compiler, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=rf"needs {compiler}, .*pip install '\.\[{extra}\]'"):
        ModelTrainer().plan(model, np.zeros((8, 2)), np.arange(8) % 2, target=target)


def test_a_model_of_shapes_is_planned_and_not_trained():
    X, y = np.zeros((8, 2)), np.arange(8) % 2
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    shapes = nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert ModelTrainer().plan(shapes, X, y).parts == ModelTrainer().plan(model, X, y).parts
    with pytest.raises(ModelTypeError, match=r'only shapes.*trainer\.plan'):
        ModelTrainer().train(shapes, X, y)
