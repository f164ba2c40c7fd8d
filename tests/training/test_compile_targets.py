"""Targets of a plan where no compiler for them is installed."""

import importlib.util

import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError
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
