import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from tests.models_for_tests import Recurrent, Tied, apply_mlp, init_mlp
from thinkml.core.model.adapters import from_functions, from_linen
from thinkml.core.model.functional import check_trainable, functionalize, outputs_of
from thinkml.core.model.mixed_precision import cast_floats, get_compute_dtype
from thinkml.errors import ConfigError

pytestmark = pytest.mark.compiled  # they read the precision of compiled operations

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
BYTES = np.random.default_rng(0).integers(0, 256, size=(4, 6, 6, 1), dtype=np.uint8)
TOKENS = np.arange(20, dtype=np.int32).reshape(4, 5) % 7
LABELS = np.array([0, 1, 2, 0])
ROWS = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)


class Images(nnx.Module):
    """A model with one of each layer that multiplies or has statistics."""

    def __init__(self, rngs, dropout_rate=0.1):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.batch_norm = nnx.BatchNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 8, dropout_rate=dropout_rate, decode=False, rngs=rngs
        )
        self.layer_norm = nnx.LayerNorm(8, rngs=rngs)
        self.out = nnx.Sequential(
            nnx.Linear(8, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs)
        )

    def __call__(self, x):
        x = nnx.relu(self.batch_norm(self.conv(x / 4)))
        x = x.reshape(len(x), -1, 8)
        return self.out(self.layer_norm(x + self.attention(x)).mean(axis=1))


class Texts(nnx.Module):
    """A model that shares its embedding with its output."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, x):
        return self.embed.attend(self.norm(self.embed(x)).mean(axis=1))[:, :3]


class Block(nn.Module):
    inner: nn.Module

    def setup(self):
        self.dense = nn.Dense(8)

    def __call__(self, x):
        return x + self.inner(self.dense(x))


class LinenImages(nn.Module):
    """The same layers in Linen, with submodules created in every possible way."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (3, 3))(x / 4)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x.reshape(len(x), -1, 8)
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x, x))
        x = Block(nn.Dense(8))(x)
        x = nn.remat(nn.Dense)(8)(x)
        return nn.Dense(3)(x.mean(axis=1))


class LinenRecurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x[..., None]
        for cell in (nn.GRUCell, nn.SimpleCell):
            x = nn.RNN(cell(4))(x)
        return nn.Dense(3)(x[:, -1])


MODELS = {
    'nnx': (lambda: Images(nnx.Rngs(0)), IMAGES),
    'nnx bytes': (lambda: Images(nnx.Rngs(0)), BYTES),
    'nnx tokens': (lambda: Texts(nnx.Rngs(0)), TOKENS),
    'nnx recurrent': (lambda: Recurrent(3, nnx.Rngs(0)), ROWS),
    'nnx tied': (lambda: Tied(5, 3, nnx.Rngs(0)), ROWS),
    'linen': (lambda: from_linen(LinenImages()), IMAGES),
    'linen recurrent': (lambda: from_linen(LinenRecurrent()), ROWS),
    'functions': (lambda: from_functions(init_mlp, apply_mlp), ROWS),
}


@pytest.fixture(scope='module', params=MODELS)
def model_and_x(request):
    make, x = MODELS[request.param]
    model = make()
    functional = functionalize(model, x, KEY)
    functional.write(functional.params, functional.model_state)  # Linen parameters are made once
    return model, x


def make_loss(functional, x, train=True):
    def loss(params):
        outputs, model_state = functional.apply(
            params, functional.model_state, x, key=KEY, train=train
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, LABELS)
        return losses.mean(), (outputs, model_state)

    return loss


def products(jaxpr):
    """Returns the operand dtypes of all matrix products and convolutions, nested ones too."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
            found.append(tuple(str(operand.aval.dtype) for operand in eqn.invars))
        is_program = lambda value: isinstance(value, ClosedJaxpr | Jaxpr)  # noqa: E731
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(value):
                found += products(getattr(value, 'jaxpr', value))
    return found


def products_of_a_step(model, x, dtype):
    functional = functionalize(model, x, KEY, dtype)
    grad = jax.grad(make_loss(functional, x), has_aux=True)
    return products(jax.make_jaxpr(grad)(functional.params).jaxpr)


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def test_every_product_of_a_step_is_in_bfloat16(model_and_x):
    model, x = model_and_x
    assert set(products_of_a_step(model, x, None)) == {('float32', 'float32')}
    assert set(products_of_a_step(model, x, jnp.bfloat16)) == {('bfloat16', 'bfloat16')}


def test_attention_without_dropout_keeps_the_gradient_of_its_logits():
    found = products_of_a_step(Images(nnx.Rngs(0), dropout_rate=0.0), IMAGES, jnp.bfloat16)
    # jax.nn computes the softmax in float32, so the gradient of the logits is float32 too.
    assert found.count(('float32', 'bfloat16')) == 2
    assert set(found) == {('bfloat16', 'bfloat16'), ('float32', 'bfloat16')}


def test_all_results_are_float32_and_close_to_a_step_in_float32(model_and_x):
    model, x = model_and_x
    results = []
    for dtype in (None, jnp.bfloat16):
        functional = functionalize(model, x, KEY, dtype)
        assert dtypes((functional.params, functional.model_state)) <= {'float32'}
        grad = jax.jit(jax.value_and_grad(make_loss(functional, x), has_aux=True))
        results.append(jax.device_get(grad(functional.params)))
        assert dtypes(results[-1]) == {'float32'}
    ((one, (_, state)), grads), ((two, (_, state_bf16)), grads_bf16) = results
    np.testing.assert_allclose(one, two, rtol=0.03)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.1), state, state_bf16)
    assert one != two
    exact, rounded = (np.concatenate([g.ravel() for g in jax.tree.leaves(each)])
                      for each in (grads, grads_bf16))  # fmt: skip
    assert np.linalg.norm(exact - rounded) < 0.1 * np.linalg.norm(exact)


def test_outputs_are_float32_in_evaluation_too(model_and_x):
    model, x = model_and_x
    check_trainable(model, x, outputs_of(model, x), compute_dtype=jnp.bfloat16)
    functional = functionalize(model, x, KEY, jnp.bfloat16)
    loss = make_loss(functional, x, train=False)
    _, (outputs, model_state) = jax.eval_shape(loss, functional.params)
    assert (outputs.shape, outputs.dtype) == ((4, 3), jnp.float32)
    assert dtypes(model_state) <= {'float32'}


def test_equal_structure_and_dtype_share_a_program_others_do_not(model_and_x):
    model, x = model_and_x
    one, two = (functionalize(model, x, KEY, jnp.bfloat16).apply for _ in range(2))
    plain = functionalize(model, x, KEY).apply
    assert one == two and hash(one) == hash(two)
    assert one != plain and plain == functionalize(model, x, KEY, None).apply


def test_the_users_nnx_model_stays_float32():
    model = Images(nnx.Rngs(0))
    before = nnx.graphdef(model)
    functional = functionalize(model, IMAGES, KEY, jnp.bfloat16)
    assert nnx.graphdef(model) == before and model.conv.dtype is None
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, functional.params)
    functional.write(params, functional.model_state)
    np.testing.assert_array_equal(model.out.layers[0].bias[...], np.ones(8))
    assert model.conv.dtype is None
    model.eval()
    assert jax.eval_shape(lambda x: model(x), IMAGES).dtype == jnp.float32


def test_the_users_linen_modules_are_not_changed():
    dense = nn.Dense(3)
    block = nn.Sequential([Block(nn.Dense(8)), dense])
    model = from_linen(block)
    x = np.ones((2, 8), np.float32)
    functional = functionalize(model, x, KEY, jnp.bfloat16)
    jax.eval_shape(lambda x: functional.apply(functional.params, {}, x, key=None, train=False), x)
    assert dense.dtype is None and block.layers[1] is dense
    outputs = jax.eval_shape(lambda x: block.apply({'params': functional.params}, x), x)
    assert outputs.dtype == jnp.float32


@pytest.mark.parametrize(
    'model',
    [
        nnx.Linear(5, 3, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        from_linen(nn.Dense(3, dtype=jnp.float32)),
    ],
    ids=['nnx', 'linen'],
)
def test_a_layer_with_an_explicit_dtype_keeps_it(model):
    assert set(products_of_a_step(model, ROWS, jnp.bfloat16)) == {('float32', 'float32')}


def test_only_floats_are_cast():
    tree = {'x': jnp.ones(2), 'ids': jnp.arange(2), 'pixels': jnp.zeros(2, jnp.uint8), 'key': KEY}
    cast = cast_floats(tree, jnp.bfloat16)
    assert cast['x'].dtype == jnp.bfloat16
    assert all(cast[name].dtype == tree[name].dtype for name in ('ids', 'pixels', 'key'))


def test_names():
    assert get_compute_dtype('float32') is None
    assert get_compute_dtype('bf16') is get_compute_dtype('bfloat16') is jnp.bfloat16
    with pytest.raises(ConfigError, match=r"precision: got 'fp16', expected .*loss scaling"):
        get_compute_dtype('fp16')
    with pytest.raises(ConfigError, match=r"precision: got 'bf61', .*Did you mean 'bf16'"):
        get_compute_dtype('bf61')
    with pytest.raises(ConfigError, match='precision: got 16'):
        get_compute_dtype(16)
