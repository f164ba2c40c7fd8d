import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.core.test_loop import prepare, problem
from tests.models_for_tests import Attention, DropoutBatchNorm, Recurrent, mlp
from thinkml.core import Batch
from thinkml.core.xla.rematerialization import computed_bytes, rematerialized

pytestmark = pytest.mark.compiled  # they read the memory that XLA plans


class Deep(nnx.Module):
    def __init__(self, num_layers=12, width=64):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(num_layers))
        self.out = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.gelu(layer(x))
        return self.out(x)


class Encoder(nnx.Module):
    def __init__(self, num_layers=3, width=32):
        rngs = nnx.Rngs(0)
        self.attention = nnx.List(
            nnx.MultiHeadAttention(
                num_heads=4, in_features=width, dropout_rate=0.1, decode=False, rngs=rngs
            )
            for _ in range(num_layers)
        )
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2 * num_layers))
        self.up = nnx.List(nnx.Linear(width, 4 * width, rngs=rngs) for _ in range(num_layers))
        self.down = nnx.List(nnx.Linear(4 * width, width, rngs=rngs) for _ in range(num_layers))
        self.out = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        for layer, attention in enumerate(self.attention):
            x = x + attention(self.norms[2 * layer](x))
            x = x + self.down[layer](nnx.gelu(self.up[layer](self.norms[2 * layer + 1](x))))
        return self.out(x.mean(1))


def step_of(model, x, **options):
    step, state = prepare(model, x, optimizer='sgd', **options)
    return jax.jit(step), state


def batch_of(x):
    return Batch(jnp.asarray(x), jnp.arange(len(x)) % 3, jnp.ones(len(x)))


MODELS = [
    mlp(4, 3),
    DropoutBatchNorm(4, 3, nnx.Rngs(0)),
    Attention(3, nnx.Rngs(0)),
    Recurrent(3, nnx.Rngs(0)),
]


@pytest.mark.parametrize(
    ('model', 'parts'),
    [
        (MODELS[1], 1),
        *((model, 4) for model in MODELS),
        *(pytest.param(MODELS[index], 1, marks=pytest.mark.slow) for index in (0, 2, 3)),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_steps_are_the_same(model, parts):
    x, _ = problem(32)
    states, losses = [], []
    for remat in (False, True):
        step, state = step_of(model, x, remat=remat, accumulate_steps=parts)
        for _ in range(3):
            state, output = step(state, batch_of(x))
        states.append(jax.tree.map(np.asarray, (state.params, state.model_state)))
        losses.append(float(output.loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *states)


@pytest.mark.parametrize(
    ('model', 'shape', 'fraction'),
    [(Deep(), (512, 64), 0.6), (Encoder(), (64, 32, 32), 0.6)],
    ids=['deep MLP', 'transformer'],
)
def test_a_step_takes_less_memory(model, shape, fraction):
    x = np.zeros(shape, np.float32)
    sizes = []
    for remat in (False, True):
        step, state = step_of(model, x, remat=remat)
        sizes.append(step.lower(state, batch_of(x)).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < fraction * sizes[0]


def test_a_program_of_one_operation_is_not_cut():
    double = rematerialized(lambda x: {'twice': 2 * x, 'itself': x, 'one': 1.0})
    outputs = double(jnp.arange(3.0))
    assert outputs['one'] == 1.0 and np.array_equal(outputs['twice'], [0, 2, 4])
    assert rematerialized(lambda x: x)(jnp.ones(2)).shape == (2,)


def test_computed_bytes_counts_all_results():
    def computed(fn, *args):
        return computed_bytes(jax.make_jaxpr(fn)(*args).jaxpr)

    assert computed(lambda x: jnp.sin(x) * 2, jnp.ones(10)) == 80
    assert computed(lambda x: jax.lax.map(jnp.sin, x), jnp.ones((10, 4))) == 160


def test_arrays_that_do_not_depend_on_the_rows_are_not_counted_for_them():
    def forward(key, x):
        w = jax.jit(lambda key: jax.random.normal(key, (8, 64)).astype(jnp.bfloat16))(key)
        return jnp.tanh(x @ w.astype(jnp.float32))

    jaxpr = jax.make_jaxpr(forward)(jax.random.key(0), jnp.ones((13, 8))).jaxpr
    assert computed_bytes(jaxpr, 13) == 2 * 13 * 64 * 4
    assert computed_bytes(jaxpr) > 2 * 13 * 64 * 4
