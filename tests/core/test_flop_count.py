"""The counted operations against those that XLA counts for the compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkml.core.xla.flop_count import count_flops, flops_by_dtype


def counted(fn, *args):
    return count_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def convolve(x, kernel, **options):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


CONVOLUTIONS = {
    'valid': {'window_strides': (1, 1), 'padding': 'VALID'},
    'same': {'window_strides': (1, 1), 'padding': 'SAME'},
    'strided': {'window_strides': (2, 2), 'padding': 'SAME'},
    'dilated': {'window_strides': (1, 1), 'padding': 'SAME', 'rhs_dilation': (2, 2)},
    'transposed': {'window_strides': (1, 1), 'padding': ((1, 2), (2, 1)), 'lhs_dilation': (2, 2)},
}


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_a_convolution_and_its_gradients_take_the_products_that_a_loop_over_positions_finds(name):
    x, kernel = jnp.ones((2, 6, 7, 3)), jnp.ones((3, 3, 3, 4))
    options = CONVOLUTIONS[name]

    def forward(x, kernel):
        return convolve(x, kernel, **options)

    # Each product of ones adds one to the sum of the outputs.
    products = float(forward(x, kernel).sum())
    assert counted(forward, x, kernel) == 2 * products
    both = jax.value_and_grad(lambda *arrays: forward(*arrays).sum(), argnums=(0, 1))
    assert counted(both, x, kernel) == 3 * 2 * products


@pytest.mark.parametrize('groups', ['feature_group_count', 'batch_group_count'])
def test_groups_take_part_of_the_products(groups):
    x, kernel = jnp.ones((4, 5, 5, 4)), jnp.ones((3, 3, 2 if groups[0] == 'f' else 4, 6))
    options = {'window_strides': (1, 1), 'padding': 'VALID', groups: 2}
    products = float(convolve(x, kernel, **options).sum())
    assert counted(lambda *a: convolve(*a, **options), x, kernel) == 2 * products


def test_products_of_a_network_and_its_gradient_are_those_that_xla_counts():
    w1, w2, x = np.ones((8, 16)), np.ones((16, 4)), np.ones((32, 8))

    def loss(w1, w2):
        return jnp.sum(jnp.tanh(x @ w1) @ w2)

    step = jax.value_and_grad(loss, argnums=(0, 1))
    expected = 2 * 32 * (2 * 8 * 16 + 3 * 16 * 4)  # no gradient of x
    assert counted(step, w1, w2) == expected
    xla = jax.jit(step).lower(w1, w2).compile().cost_analysis()['flops']
    assert expected <= xla <= 1.2 * expected  # it counts the other operations as well


def test_loops_count_their_iterations_and_conditions_their_largest_branch():
    x = jnp.ones((3, 3))

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    def chosen(x):
        return jax.lax.cond(x.sum() > 0, lambda: x @ x, lambda: x)

    assert counted(scanned, x) == 5 * counted(jnp.matmul, x, x) == 5 * 54
    assert counted(chosen, x) == 54
    assert counted(jax.jit(lambda x: jax.checkpoint(jnp.matmul)(x, x)), x) == 54


@pytest.mark.parametrize('scanned', [False, True])
def test_what_a_gradient_computes_again_does_not_count(scanned):
    layers = np.ones((5, 3, 3)), np.ones((5, 3, 1))
    params, x = {'layers': layers, 'out': np.ones((3, 2))}, np.ones((4, 3))

    def block(x, layer):
        w, v = layer
        h = jnp.tanh(jnp.tanh(x @ w) @ w)
        return h, {'of h': (h @ w).sum(), 'of x': (jnp.tanh(x) @ v).sum()}

    def loss(block, params, x):
        if scanned:
            h, aux = jax.lax.scan(block, x, params['layers'])
        else:
            h, aux = block(x, jax.tree.map(lambda leaf: leaf[0], params['layers']))
        return (h @ params['out']).sum() + aux['of h'].sum() + aux['of x'].sum()

    again = jax.checkpoint(block, prevent_cse=not scanned)
    whole = jax.checkpoint(loss, static_argnums=0)
    plain = counted(jax.value_and_grad(functools.partial(loss, block)), params, x)
    assert counted(jax.value_and_grad(functools.partial(loss, again)), params, x) == plain
    assert counted(jax.value_and_grad(functools.partial(whole, block)), params, x) == plain
    assert counted(jax.value_and_grad(functools.partial(whole, again)), params, x) == plain


def test_products_are_counted_in_the_dtype_of_their_factors():
    wide, narrow = jnp.ones((3, 3)), jnp.ones((3, 3), jnp.bfloat16)

    def mixed(wide, narrow):
        both = jax.lax.dot(narrow, narrow, preferred_element_type=jnp.float32)
        return jax.lax.scan(lambda carry, _: (carry @ wide, None), both, length=2)[0]

    jaxpr = jax.make_jaxpr(mixed)(wide, narrow).jaxpr
    assert flops_by_dtype(jaxpr) == {'bfloat16': 54, 'float32': 2 * 54}
