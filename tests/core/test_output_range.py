"""Tests of the range of a model's outputs, and of the warnings for outputs that are not logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf, logsumexp

from thinkml.core.model.output_range import Range, misread_outputs, output_ranges
from thinkml.tasks import Task

BINARY = Task('binary', (0, 1), 1)
CLASSES = Task('multiclass', (0, 1, 2), 3)
LABELS = Task('multilabel', (0, 1, 2), 3, (3,))
REGRESSION = Task('regression', None, 1)
X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 10 ** np.linspace(-2, 2, 3)


def range_of(function):
    jaxpr = jax.make_jaxpr(function)(X).jaxpr
    return output_ranges(jaxpr, 1)[0]


def pair(x):
    p = jax.nn.sigmoid(x[:, 0])
    return jnp.stack([1 - p, p], axis=1)


def normalised(x):
    clipped = jnp.clip(jax.nn.softmax(x), 1e-7, 1.0)
    return clipped / (clipped.sum(axis=1, keepdims=True) + 1e-9)


def stable_sigmoid(x):
    return jnp.where(x >= 0, 1 / (1 + jnp.exp(-x)), jnp.exp(x) / (1 + jnp.exp(x)))


PROBABILITIES = {
    'sigmoid': jax.nn.sigmoid,
    'a column of a sigmoid': lambda x: jax.nn.sigmoid(x)[:, 0],
    'softmax': jax.nn.softmax,
    'a column of a softmax': lambda x: jax.nn.softmax(x)[:, 1],
    'clipped sigmoid': lambda x: jnp.clip(jax.nn.sigmoid(x), 1e-7, 1 - 1e-7),
    'clipped softmax': lambda x: jnp.maximum(jnp.minimum(jax.nn.softmax(x), 0.99), 0.01),
    'clipped': lambda x: jnp.clip(x, 0, 1),
    'clamped': lambda x: jax.lax.clamp(0.0, x, 1.0),
    'tanh, first moved': lambda x: 0.5 * (jnp.tanh(x / 2) + 1),
    'tanh, first halved': lambda x: jnp.tanh(x) / 2 + 0.5,
    'sigmoid by hand': lambda x: 1 / (1 + jnp.exp(-x)),
    'its other form': lambda x: jnp.exp(x) / (1 + jnp.exp(x)),
    'both forms': stable_sigmoid,
    'softmax by hand': lambda x: jnp.exp(x) / jnp.exp(x).sum(axis=1, keepdims=True),
    'of logarithms': lambda x: jnp.exp(jax.nn.log_softmax(x)),
    'of its own logarithms': lambda x: jnp.exp(x - logsumexp(x, axis=1, keepdims=True)),
    'of a logarithm': lambda x: jnp.exp(jax.nn.log_sigmoid(x)),
    'hard sigmoid': jax.nn.hard_sigmoid,
    'probit': lambda x: 0.5 * (1 + erf(x)),
    'arctangent': lambda x: jnp.arctan(x) / jnp.pi + 0.5,
    'complement': lambda x: 1 - jax.nn.sigmoid(x),
    'power': lambda x: jax.nn.sigmoid(x) ** 2,
    'product': lambda x: jax.nn.sigmoid(x) * jax.nn.softmax(x),
    'both classes': pair,
    'normalised': normalised,
    'mean of two': lambda x: jnp.stack([jax.nn.softmax(x), jax.nn.softmax(-x)]).mean(axis=0),
    'in bfloat16': lambda x: jax.nn.sigmoid(x.astype(jnp.bfloat16)).astype(jnp.float32),
    'recomputed': jax.checkpoint(jax.nn.sigmoid),
    'batched': jax.vmap(jax.nn.softmax),
    'masked softmax': lambda x: jax.nn.softmax(x, where=x > -5),
    'hard tanh': lambda x: (jax.nn.hard_tanh(x) + 1) / 2,
    'softsign': lambda x: (jax.nn.soft_sign(x) + 1) / 2,
    'its formula': lambda x: 0.5 * (x / (1 + jnp.abs(x))) + 0.5,
    'chosen by hand': lambda x: jnp.where(x > 1, 1, jnp.where(x < 0, 0, x)),
    'chosen the other way': lambda x: jnp.where(x <= 1, jnp.where(x >= 0, x, 0), 1),
    'rounded': lambda x: jnp.round(jax.nn.sigmoid(x)),
    'rounded by adding': lambda x: jnp.floor(jax.nn.sigmoid(x) + 0.5),
    'sign': lambda x: (jnp.sign(x) + 1) / 2,
    'any of several': lambda x: 1 - jnp.prod(1 - jax.nn.sigmoid(x), axis=1),
    'all so far': lambda x: jnp.cumprod(jax.nn.sigmoid(x), axis=1),
    'root': lambda x: jax.nn.sigmoid(x) ** 0.5,
    'powers of 2': lambda x: 1 / (1 + jnp.exp2(-x)),
    'without NaN': lambda x: jnp.nan_to_num(jax.nn.sigmoid(x)),
    'columns': lambda x: jax.nn.sigmoid(x)[:, jnp.array([2, 0])],
    'sorted': lambda x: jnp.sort(jax.nn.softmax(x), axis=1),
    'of squares': lambda x: x**2 / jnp.sum(x**2, axis=1, keepdims=True),
    'of a condition': lambda x: jax.lax.cond(x[0, 0] > 0, jax.nn.sigmoid, jax.nn.softmax, x),
}
OTHERS = {
    'nothing': lambda x: x,
    'scaled': lambda x: 20 * jax.nn.sigmoid(x),
    'moved': lambda x: jax.nn.sigmoid(x) - 0.5,
    'relu': jax.nn.relu,
    'gelu': jax.nn.gelu,
    'silu': jax.nn.silu,
    'elu': jax.nn.elu,
    'tanh': jnp.tanh,
    'log_softmax': jax.nn.log_softmax,
    'log_sigmoid': jax.nn.log_sigmoid,
    'softplus': jax.nn.softplus,
    'logit': lambda x: jnp.log(jax.nn.softmax(x) / (1 - jax.nn.softmax(x))),
    'cube': lambda x: x**3,
    'inverse square': lambda x: (1 + jnp.square(x)) ** -2 - jax.lax.rsqrt(1 + x**2),
    'quotient': lambda x: jnp.cos(x) / (2 + jnp.sin(x)) - jnp.sqrt(jnp.abs(x)),
    'ratios': lambda x: (jnp.exp(x)[:, :, None] / (jnp.exp(x) + 1e-9)[:, None, :])[:, 0],
    'ratio to the largest': lambda x: x / jnp.max(x, axis=1, keepdims=True),
    'ratio to some': lambda x: jnp.exp(x) / jnp.exp(x).sum(axis=1, keepdims=True, where=x < 1),
    'leaky relu': jax.nn.leaky_relu,
    'shrunk': lambda x: jnp.where(jnp.abs(x) > 1, x, 0),
    'conditions': lambda x: jax.lax.cond(x[0, 0] > 0, jax.nn.sigmoid, jnp.tanh, x),
    'one-hot': lambda x: jax.nn.one_hot(x.argmax(axis=1), 3),
    'a constant': lambda x: jnp.zeros((len(x), 3)),
    'choices of choices': lambda x: functools.reduce(
        lambda y, i: jnp.where(x > i, y, jnp.where(x > i / 2, y, y + 1)), range(40), x
    ),
    'in a loop': lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x + jax.nn.sigmoid(x), x),
}


@pytest.mark.parametrize('name', [*PROBABILITIES, *OTHERS])
def test_the_range_contains_all_values(name):
    function = (PROBABILITIES | OTHERS)[name]
    found, values = range_of(function), np.asarray(function(X), np.float64)
    # Formulas written by hand overflow to NaN for large numbers; a range does not cover NaN.
    assert found.low - 1e-5 <= np.nanmin(values) and np.nanmax(values) <= found.high + 1e-5
    assert found.are_probabilities == (name in PROBABILITIES)


def test_the_bounds_are_tight_where_that_is_easy():
    assert range_of(jnp.tanh) == Range(-1, 1)
    assert range_of(lambda x: 3 - 2 * jax.nn.sigmoid(x)) == Range(1, 3)
    assert range_of(lambda x: jnp.abs(jnp.clip(x, -2, 1))) == Range(0, 2)
    assert range_of(lambda x: jnp.clip(x, -2, 1) ** 2) == Range(0, 4)
    assert range_of(lambda x: 1 / jnp.clip(x, -4, -2)) == Range(-0.5, -0.25)
    assert range_of(lambda x: jax.nn.sigmoid(x).sum(axis=1)) == Range(0, 3)
    assert range_of(lambda x: jnp.where(x < 2, x, 2)).high == 2
    assert range_of(lambda x: x - x.max(axis=1, keepdims=True)).high == 0
    assert range_of(jax.nn.soft_sign) == range_of(jax.nn.hard_tanh) == Range(-1, 1)
    assert range_of(jax.nn.softplus).low == 0
    assert range_of(jax.nn.log_softmax).high == 0


@pytest.mark.parametrize(
    ('function', 'task', 'custom_loss', 'says'),
    [
        (jax.nn.sigmoid, BINARY, False, 'ends in a sigmoid, but the loss and the predictions'),
        (jax.nn.sigmoid, BINARY, True, 'ends in a sigmoid, but .* apply it in the loss'),
        (jax.nn.sigmoid, BINARY, None, 'ends in a sigmoid, but .* from the model.$'),
        (jax.nn.softmax, CLASSES, True, 'ends in a softmax'),
        (jnp.round, BINARY, True, None),
        (PROBABILITIES['rounded'], BINARY, True, 'its outputs are between 0 and 1'),
        (PROBABILITIES['hard tanh'], LABELS, None, 'its outputs are between 0 and 1'),
        (PROBABILITIES['clipped sigmoid'], LABELS, True, 'its outputs are between 0 and 1'),
        (pair, Task('binary', (0, 1), 2), True, 'its outputs are between 0 and 1'),
        (jax.nn.relu, BINARY, True, 'never below 0, .* each row is predicted as yes'),
        (OTHERS['scaled'], LABELS, False, 'never below 0'),
        (jax.nn.log_sigmoid, BINARY, True, 'never above 0, .* each row is predicted as no'),
        (jax.nn.relu, CLASSES, True, None),
        (jax.nn.log_softmax, CLASSES, True, None),
        (jax.nn.sigmoid, REGRESSION, True, None),
        (jnp.tanh, BINARY, True, None),
        (OTHERS['a constant'], BINARY, True, None),
        (OTHERS['nothing'], BINARY, True, None),
    ],
)
def test_outputs_that_are_not_logits_are_warned_of(function, task, custom_loss, says):
    found = misread_outputs(range_of(function), task, custom_loss)
    assert found is None if says is None else re.search(says, found)
