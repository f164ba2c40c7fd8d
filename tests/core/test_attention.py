"""Each kernel of attention has the values and gradients of `jax.nn.dot_product_attention`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkml.core.model import attention
from thinkml.core.model.attention import dot_product_attention
from thinkml.core.xla.target import tracing_for


def arrays(rows, tokens, keys, heads=2, size=8):
    shapes = [(rows, tokens, heads, size), (rows, keys, heads, size), (rows, keys, heads, size)]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def values_and_gradients(attend, inputs):
    def loss(*inputs):
        outputs = attend(*inputs)
        return (outputs * jnp.sin(jnp.arange(outputs.size).reshape(outputs.shape))).sum(), outputs

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)


def assert_equal(attend, inputs, is_causal):
    expected = functools.partial(jax.nn.dot_product_attention, is_causal=is_causal)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        values_and_gradients(attend, inputs), values_and_gradients(expected, inputs),
    )  # fmt: skip


@pytest.mark.parametrize('is_causal', [False, True])
def test_on_a_cpu_it_is_that_of_jax(is_causal):
    attend = functools.partial(dot_product_attention, is_causal=is_causal)
    assert_equal(attend, arrays(2, 5, 5), is_causal)


@pytest.mark.parametrize(
    ('tokens', 'keys', 'is_causal'), [(5, 7, False), (5, 5, True), (4, 3, False)]
)
def test_odd_numbers_of_tokens_are_padded_for_cudnn(tokens, keys, is_causal, monkeypatch):
    given = []

    def record(query, key, value, **options):
        given.extend((query.shape[1], key.shape[1]))
        return jax.nn.dot_product_attention(query, key, value, **options)

    monkeypatch.setattr(attention, '_cudnn_attention', record)
    attend = functools.partial(attention._by_cudnn, is_causal=is_causal)
    assert_equal(attend, arrays(2, tokens, keys), is_causal)
    assert given and not any(count % 2 for count in given)


@pytest.mark.parametrize('is_causal', [False, True])
def test_the_kernel_of_a_tpu_has_the_same_values(is_causal):
    from jax.experimental.pallas import tpu as pltpu

    with pltpu.force_tpu_interpret_mode():
        attend = functools.partial(attention._by_tpu_kernel, is_causal=is_causal)
        assert_equal(attend, arrays(1, 512, 512, heads=1, size=128), is_causal)


class Device:
    platform = 'cuda'
    compute_capability = '9.0'


@pytest.mark.parametrize(
    ('dtype', 'size', 'capability', 'has_cudnn', 'is_used'),
    [
        (jnp.bfloat16, 64, '9.0', True, True),
        (jnp.float32, 64, '9.0', True, False),
        (jnp.bfloat16, 60, '9.0', True, False),
        (jnp.bfloat16, 256, '9.0', True, False),
        (jnp.bfloat16, 64, '7.5', True, False),
        (jnp.bfloat16, 64, 'gfx942', True, False),
        (jnp.bfloat16, 64, '9.0', False, False),
    ],
)
def test_cudnn_is_used_where_it_supports_the_arrays(
    dtype, size, capability, has_cudnn, is_used, monkeypatch
):
    monkeypatch.setattr(attention, '_has_cudnn', lambda: has_cudnn)
    calls = []
    monkeypatch.setattr(attention, '_by_cudnn', lambda query, *_: calls.append(1) or query)
    device = Device()
    device.compute_capability = capability
    x = jax.ShapeDtypeStruct((2, 4, 2, size), dtype)
    with tracing_for(device):
        jax.eval_shape(dot_product_attention, x, x, x)
    assert bool(calls) == is_used


def test_without_cudnn_programs_for_a_gpu_use_the_attention_of_xla(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('cuDNN is not detected.')

    monkeypatch.setattr(attention, '_cudnn_attention', fail)
    attention._has_cudnn.cache_clear()
    x = jax.ShapeDtypeStruct((2, 4, 2, 8), jnp.bfloat16)
    with tracing_for(Device()):
        assert jax.eval_shape(dot_product_attention, x, x, x).shape == x.shape
    attention._has_cudnn.cache_clear()
