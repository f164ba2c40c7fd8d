"""Tests of features before the last layer and of passes with dropout, for each kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm, SmallCNN, apply_mlp, init_mlp
from thinkml.core import WithDropout, WithFeatures, predict_outputs
from thinkml.errors import ModelTypeError
from thinkml.models import from_functions, from_linen

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def both(model, x, num_outputs):
    values = predict_outputs(WithFeatures(model), x)
    np.testing.assert_allclose(values[:, :num_outputs], predict_outputs(model, x), atol=1e-6)
    return values[:, num_outputs:]


def test_features_of_an_nnx_module_in_eval_mode():
    model = DropoutBatchNorm(6, 3, nnx.Rngs(0))
    model.train()
    features = both(model, X, 3)
    expected = nnx.clone(model)
    expected.eval()
    hidden = nnx.relu(expected.norm(expected.hidden(X)))
    np.testing.assert_allclose(features, hidden, atol=1e-6)


def test_features_of_images():
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    assert both(SmallCNN(nnx.Rngs(0)), images, 10).shape == (5, 128)


def test_features_of_a_linen_module_and_of_functions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.tanh(nn.Dense(8)(x)))

    variables = Net().init(jax.random.key(0), X[:1])
    first = variables['params']['Dense_1']  # made second
    np.testing.assert_allclose(
        both(from_linen(Net(), variables), X, 3),
        np.tanh(X @ first['kernel'] + first['bias']), atol=1e-5,
    )  # fmt: skip
    params = init_mlp(jax.random.key(0), X)
    np.testing.assert_allclose(
        both(from_functions(init_mlp, apply_mlp, params), X, 3),
        jax.nn.relu(X @ params['w1'] + params['b1']), atol=1e-5,
    )  # fmt: skip


class TwoHeads(nnx.Module):
    """A model whose output is the sum of two dense layers, so it has no last layer."""

    def __init__(self):
        self.one = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
        self.other = nnx.Linear(6, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.one(x) + self.other(jnp.tanh(x))


@pytest.mark.parametrize(
    'model', [nnx.Sequential(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), nnx.tanh), TwoHeads()]
)
def test_models_that_do_not_end_in_a_dense_layer_have_no_features(model):
    with pytest.raises(ModelTypeError, match='not those of a dense layer'):
        predict_outputs(WithFeatures(model), X)


def test_passes_differ_by_dropout_alone(count_compiles):
    model = DropoutBatchNorm(6, 3, nnx.Rngs(0))

    def draws(seed, x=X):
        values = predict_outputs(WithDropout(model, 300, jax.random.key(seed)), x)
        return values.reshape(len(x), 300, 3)

    values = draws(0)
    assert values.std(axis=1).min() > 0.01
    np.testing.assert_array_equal(draws(0), values)
    np.testing.assert_allclose(draws(0, X[:32])[:8], values[:8], atol=1e-5)  # no batch statistics
    model.eval()
    np.testing.assert_allclose(values.mean(axis=1), model(X), atol=0.25)
    assert count_compiles(draws, 1) == 0 and not np.array_equal(draws(1), values)


def test_models_without_dropout_and_linen_modules_with_batch_norm_have_no_passes():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))

    with pytest.raises(ModelTypeError, match='collections batch_stats'):
        predict_outputs(WithDropout(from_linen(Net()), 3, jax.random.key(0)), X)
    with pytest.raises(ModelTypeError, match='it has no dropout'):
        predict_outputs(WithDropout(TwoHeads(), 3, jax.random.key(0)), X)
