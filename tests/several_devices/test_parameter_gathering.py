"""Sharded parameters are gathered where they are used, with the results of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkml.core.parallel.parameter_gathering import _is_cheap, gathered_at_use
from thinkml.core.parallel.sharding import Layout, data_mesh

WIDTH = 256  # a square of it is large enough to be gathered in order, and twice
KEY = jax.random.key(0)


def weight(number, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, number), shape) / WIDTH**0.5


def square(*_):
    return {'w': weight(0, WIDTH, WIDTH), 'b': weight(1, WIDTH)}


def layers(params, x):
    x = jnp.tanh(x @ params['w'] + params['b'])
    return jnp.tanh(x @ params['w'].T)  # the same weight again, transposed


def in_half(params, x):
    half = params['w'].astype(jnp.bfloat16)
    return jax.lax.dot(x.astype(jnp.bfloat16), half).astype(jnp.float32) * params['b']


def scanned(params, x):
    def layer(x, w):
        return jnp.tanh(x @ w), (w**2).sum()

    stacked = jnp.stack([params['w'], params['w']]) if params['w'].ndim == 2 else params['w']
    x, squares = jax.lax.scan(layer, x, stacked)
    return x + squares.sum()


def recurrent(params, x):
    def step(carry, _):
        carry = jnp.tanh(carry @ params['w'] + x)
        return carry, carry.sum()

    return jax.lax.scan(step, x, length=3)[0]


def rematerialized(params, x):
    return jax.checkpoint(layers)(params, x)


@jax.custom_vjp
def doubled_gradient(w, x):
    return x @ w


doubled_gradient.defvjp(
    lambda w, x: (x @ w, (w, x)), lambda saved, g: (2 * saved[1].T @ g, g @ saved[0].T)
)


def with_its_own_gradient(params, x):
    return doubled_gradient(params['w'], x) + params['b']


def looked_up(params, x):
    return params['w'][jnp.argmax(x, axis=1)] + params['b']


def chosen(params, x):
    return jax.lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: x @ w.T, params['w'])


def stacked():
    return {'w': weight(0, 3, WIDTH, WIDTH), 'b': weight(1, WIDTH)}


CASES = [
    (layers, square), (in_half, square), (scanned, square), (scanned, stacked),
    (recurrent, square), (rematerialized, square), (with_its_own_gradient, square),
    (looked_up, square), (chosen, square),
]  # fmt: skip


@pytest.mark.parametrize('twice', [True, False])
@pytest.mark.parametrize(('function', 'make'), CASES)
def test_values_and_gradients_are_those_of_unsharded_parameters(function, make, twice):
    layout = Layout(data_mesh(jax.devices()[:4]), shards_state=True)
    params, x = make(), weight(2, 8, WIDTH)

    def forward(params, model_state, x):
        return function(params, x), model_state

    gathered = gathered_at_use(forward, layout, twice=twice)

    def loss(forward, params, x):
        return (forward(params, {'seen': jnp.ones(WIDTH)}, x)[0] ** 2).sum()

    expected = jax.jit(jax.value_and_grad(functools.partial(loss, forward)))(params, x)
    computed = jax.jit(jax.value_and_grad(functools.partial(loss, gathered)))(
        layout.put_state(params), layout.put_rows(x)
    )
    assert jax.tree.map(jnp.shape, computed) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max()),
        computed, expected,
    )  # fmt: skip
    assert not computed[1]['w'].sharding.is_fully_replicated


def test_what_a_forward_pass_returns_unchanged_stays_sharded():
    layout = Layout(data_mesh(jax.devices()[:4]), shards_state=True)
    model_state = layout.put_state({'frozen': weight(0, WIDTH, WIDTH), 'count': jnp.zeros((), int)})

    def forward(params, model_state, x):
        return x @ params['w'] @ model_state['frozen'], model_state | {
            'count': model_state['count'] + 1
        }

    gathered = jax.jit(gathered_at_use(forward, layout))
    _, after = gathered(layout.put_state(square()), model_state, weight(2, 8, WIDTH))
    assert after['frozen'].sharding == model_state['frozen'].sharding
    assert int(after['count']) == 1


def test_without_sharded_parameters_nothing_changes():
    def forward(params, model_state):
        return params, model_state

    assert gathered_at_use(forward, Layout()) is forward
    mirrored = Layout(data_mesh(jax.devices()[:4]))
    assert gathered_at_use(forward, mirrored) is forward


def test_what_a_branch_or_a_loop_computes_is_not_computed_again():
    def equation(function):
        (found,) = jax.make_jaxpr(function)(jnp.ones(3)).jaxpr.eqns[-1:]
        return found

    assert _is_cheap(equation(lambda x: x * x))
    assert not _is_cheap(equation(lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)))
    assert not _is_cheap(equation(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)))
