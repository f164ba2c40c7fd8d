import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.extend.core import JaxprEqn, jaxprs_in_params

from thinkml.core import functionalize, get_loss, make_eval_step, make_metrics, predict_outputs
from thinkml.core.train.loop import evaluate
from thinkml.core.xla import cpu_convolutions, jit
from thinkml.core.xla.cpu_convolutions import compiler_options, fast_convolutions
from thinkml.core.xla.target import tracing_for
from thinkml.data import place

pytestmark = pytest.mark.compiled  # they compile the rewritten programs


def equations(jaxpr) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def primitives_of(fn, *args) -> list[str]:
    return [eqn.primitive.name for eqn in equations(jax.make_jaxpr(fn)(*args).jaxpr)]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def run(fn, *args, **options):
    """Runs ``jax.jit(fn)(*args)``, compiled without optimization: it is tiny and runs once."""
    options |= {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
    return jax.jit(fn, compiler_options=options)(*args)


def assert_same(fn, *args, rtol=1e-5):
    """Asserts that the rewritten function gives the original values, and was rewritten."""
    fast = fast_convolutions(fn)
    assert str(jax.make_jaxpr(fast)(*args)) != str(jax.make_jaxpr(fn)(*args))
    expected, got = run(fn, *args), run(fast, *args, **compiler_options())
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def gradients_of(forward):
    """Returns ``forward`` with gradients of a sum that weights every output differently."""

    def loss(*args):
        out = forward(*args)
        return jnp.vdot(out, jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

    return lambda *args: jax.value_and_grad(loss, argnums=tuple(range(len(args))))(*args)


@dataclasses.dataclass
class Conv:
    image: tuple[int, ...] = (3, 9, 8, 16)
    kernel: tuple[int, ...] = (3, 3, 16, 16)
    strides: tuple[int, ...] = (1, 1)
    padding: str | tuple = 'SAME'
    lhs_dilation: tuple[int, ...] | None = None
    rhs_dilation: tuple[int, ...] | None = None
    layout: tuple[str, str, str] = ('NHWC', 'HWIO', 'NHWC')
    feature_groups: int = 1
    batch_groups: int = 1

    def __call__(self, image, kernel):
        return lax.conv_general_dilated(
            image, kernel, self.strides, self.padding, self.lhs_dilation, self.rhs_dilation,
            self.layout, self.feature_groups, self.batch_groups,
        )  # fmt: skip


CONVOLUTIONS = {
    'plain': Conv(),
    'two channels': Conv(image=(3, 9, 8, 2), kernel=(3, 3, 2, 16)),
    'pointwise': Conv(kernel=(1, 1, 16, 3)),
    'few channels': Conv(image=(3, 9, 8, 5), kernel=(3, 3, 5, 16)),
    'few features': Conv(kernel=(3, 3, 16, 7)),
    'large kernel': Conv(image=(2, 8, 9, 16), kernel=(7, 8, 16, 16), padding='VALID'),
    'valid': Conv(padding='VALID'),
    'asymmetric padding': Conv(padding=((0, 2), (3, 1))),
    'negative padding': Conv(padding=((-1, 0), (1, -2))),
    'strides': Conv(strides=(2, 3)),
    'strides, pointwise': Conv(strides=(2, 2), kernel=(1, 1, 16, 4)),
    'strides, valid': Conv(strides=(2, 2), padding='VALID'),
    'strides, one channel': Conv(image=(3, 9, 8, 1), kernel=(5, 5, 1, 16), strides=(2, 2)),
    'rhs dilation': Conv(rhs_dilation=(2, 3)),
    'rhs dilation, strides': Conv(rhs_dilation=(2, 1), strides=(2, 2)),
    'lhs dilation': Conv(lhs_dilation=(2, 1), padding=((1, 1), (1, 1))),
    'even kernel': Conv(kernel=(2, 4, 16, 16)),
    'feature groups': Conv(kernel=(3, 3, 4, 16), feature_groups=4),
    'depthwise': Conv(kernel=(3, 3, 1, 32), feature_groups=16),
    'batch groups': Conv(image=(4, 6, 6, 16), batch_groups=2),
    'NCHW': Conv(image=(3, 16, 9, 8), kernel=(16, 16, 3, 3), layout=('NCHW', 'OIHW', 'NCHW')),
    'mixed layouts': Conv(
        image=(9, 3, 8, 16), kernel=(3, 16, 3, 20), layout=('HNWC', 'HIWO', 'CWNH')
    ),
    'batch last': Conv(
        image=(16, 9, 8, 3), kernel=(16, 3, 3, 16), layout=('CHWN', 'IHWO', 'CHWN')
    ),
    '1-D': Conv((4, 17, 16), (5, 16, 16), (1,), layout=('NWC', 'WIO', 'NWC')),
    '1-D, strides': Conv((4, 17, 16), (5, 16, 16), (2,), layout=('NWC', 'WIO', 'NWC')),
    '3-D': Conv((2, 3, 4, 3, 16), (2, 2, 1, 16, 16), (1, 1, 1), layout=('NDHWC', 'DHWIO', 'NDHWC')),
    'strides, asymmetric padding': Conv(strides=(2, 3), padding=((0, 3), (2, 1))),
    'strides, negative padding': Conv(strides=(2, 2), padding=((-1, 0), (1, -2))),
    'strides larger than the kernel': Conv(strides=(3, 4), kernel=(2, 1, 16, 4)),
    'depthwise, one feature each': Conv(kernel=(3, 3, 1, 16), feature_groups=16),
    'depthwise, dilation, padding': Conv(
        kernel=(3, 2, 1, 16), feature_groups=16, rhs_dilation=(2, 3), padding=((2, -1), (-1, 3))
    ),
    'depthwise, large kernel': Conv(
        image=(2, 8, 9, 4), kernel=(7, 8, 1, 4), feature_groups=4, padding='VALID'
    ),
    'depthwise, transposed': Conv(
        kernel=(3, 3, 1, 16), feature_groups=16, lhs_dilation=(2, 1), padding=((1, 1), (1, 1))
    ),
    'depthwise, NCHW': Conv(
        image=(3, 6, 9, 8), kernel=(6, 1, 3, 3), layout=('NCHW', 'OIHW', 'NCHW'),
        feature_groups=6, strides=(1, 2),
    ),
    'depthwise, 1-D': Conv(
        (4, 17, 6), (5, 1, 12), (2,), layout=('NWC', 'WIO', 'NWC'), feature_groups=6
    ),
    'strides, depthwise': Conv(kernel=(3, 3, 1, 32), feature_groups=16, strides=(2, 2)),
    'transposed': Conv(lhs_dilation=(2, 3), padding=((2, 1), (0, 3)), kernel=(4, 3, 16, 5)),
    'transposed, cut': Conv(lhs_dilation=(2, 2), padding=((-2, 1), (0, -3))),
    'transposed, dilated': Conv(
        lhs_dilation=(2, 2), rhs_dilation=(2, 1), padding=((1, 1), (2, 0))
    ),
    'one place': Conv(image=(3, 3, 4, 16), kernel=(3, 4, 16, 5), padding='VALID'),
    'one place, strides, dilation': Conv(
        image=(3, 6, 8, 16), kernel=(3, 2, 16, 5), strides=(4, 9), rhs_dilation=(2, 5),
        padding=((-1, 0), (2, -1)),
    ),
    '3-D, strides': Conv(
        (2, 4, 7, 5, 6), (2, 3, 3, 6, 4), (1, 2, 2), layout=('NDHWC', 'DHWIO', 'NDHWC')
    ),
}  # fmt: skip


@pytest.mark.parametrize('conv', CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_and_their_gradients_stay_the_same(conv):
    assert_same(gradients_of(conv), normal(0, *conv.image), normal(1, *conv.kernel))


@pytest.mark.parametrize('padding', [((-1, 1), (0, 0)), ((0, 2), (-2, 3)), ((-1, 2), (2, -1))])
def test_negative_padding_in_front_cuts_the_image(padding):
    """With positive padding at the back, XLA:CPU reads outside the image."""

    def cut_and_padded(image, kernel):
        widths = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
        return Conv(padding='VALID')(lax.pad(image, 0.0, widths), kernel)

    operands = normal(0, 3, 9, 8, 4), normal(1, 2, 3, 4, 5)
    expected = run(gradients_of(cut_and_padded), *operands)
    got = run(fast_convolutions(gradients_of(Conv(padding=padding))), *operands)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_padding_that_removes_the_whole_image_is_left_to_xla():
    conv = Conv(image=(2, 3, 3, 4), kernel=(2, 2, 4, 5), padding=((-3, 4), (0, 0)))
    assert_unchanged(conv, normal(0, *conv.image), normal(1, *conv.kernel))


def rewritten(conv: Conv, operand: int) -> list[JaxprEqn]:
    """Returns the rewritten gradient of a convolution by its image (0) or its kernel (1)."""

    def gradient(*operands):
        def by_operand(x):
            return conv(*operands[:operand], x, *operands[operand + 1 :])

        out, vjp = jax.vjp(by_operand, operands[operand])
        return vjp(out)

    operands = normal(0, *conv.image), jnp.ones(conv.kernel)
    return list(equations(jax.make_jaxpr(fast_convolutions(gradient))(*operands).jaxpr))


def named(eqns: list[JaxprEqn], name: str) -> list[JaxprEqn]:
    return [eqn for eqn in eqns if eqn.primitive.name == name]


@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
def test_the_weight_gradient_of_a_pointwise_kernel_is_one_product(strides):
    eqns = rewritten(Conv(kernel=(1, 1, 16, 3), strides=strides), 1)
    assert len(named(eqns, 'dot_general')) == 1
    assert not named(rewritten(Conv(), 1), 'dot_general')


def test_the_gradient_of_the_image_leaves_out_the_zeros_of_strides():
    convolutions = named(rewritten(Conv(strides=(2, 2)), 0), 'conv_general_dilated')
    assert {eqn.params['lhs_dilation'] for eqn in convolutions} == {(1, 1)}
    taps = [eqn.invars[1].aval.shape[:2] for eqn in convolutions]
    assert sorted(taps) == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3)]  # the last is the forward pass


def test_depthwise_convolutions_and_their_gradients_are_sums():
    conv = Conv(kernel=(3, 3, 1, 16), feature_groups=16, strides=(2, 2))
    for operand in (0, 1):
        assert not named(rewritten(conv, operand), 'conv_general_dilated')


def test_many_phases_are_left_to_xla():
    eqns = named(rewritten(Conv(strides=(4, 5), kernel=(5, 5, 16, 3)), 0), 'conv_general_dilated')
    assert {eqn.params['lhs_dilation'] for eqn in eqns} == {(1, 1), (4, 5)}


POOLS = {
    '2x2': ((4, 6, 8, 3), (2, 2), (2, 2), 'VALID'),
    '3x2': ((4, 6, 8, 3), (3, 2), (3, 2), 'SAME'),
    'left over': ((4, 7, 9, 3), (2, 2), (2, 2), 'VALID'),
    'padded': ((4, 7, 9, 3), (2, 2), (2, 2), 'SAME'),
    'padded, explicit': ((4, 7, 9, 3), (2, 3), (2, 3), ((0, 3), (0, 1))),
    '1-D': ((4, 9, 3), (3,), (3,), 'VALID'),
    '3-D': ((2, 4, 4, 6, 3), (2, 2, 3), (2, 2, 3), 'VALID'),
    'overlapping': ((4, 7, 9, 3), (3, 3), (2, 2), 'SAME'),
    'overlapping, every element': ((4, 7, 9, 3), (2, 3), (1, 1), 'VALID'),
    'gaps': ((4, 7, 9, 3), (2, 2), (3, 3), 'VALID'),
    'padded in front': ((4, 7, 9, 3), (2, 2), (2, 2), ((1, 0), (1, 0))),
}


def with_ties(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(-1, 2, shape), jnp.float32)


@pytest.mark.parametrize('pool', POOLS.values(), ids=POOLS)
def test_max_pool_sends_the_gradient_to_the_first_maximum(pool):
    shape, window, strides, padding = pool
    gradients = gradients_of(lambda x: nnx.max_pool(x, window, strides, padding))
    x = np.array(with_ties(*shape))
    x[0] = -np.inf
    assert 'select_and_scatter_add' not in primitives_of(fast_convolutions(gradients), x)
    (_, got), (_, expected) = run(fast_convolutions(gradients), x), run(gradients, x)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)  # sums, where windows overlap


def test_max_pool_keeps_its_rule_when_differentiated_afterwards():
    def pool(x):
        return nnx.max_pool(x, (2, 2), (2, 2), 'SAME')

    x = with_ties(4, 7, 6, 3)
    _, expected = run(gradients_of(pool), x)
    _, got = run(gradients_of(fast_convolutions(pool)), x)
    np.testing.assert_array_equal(got, expected)


def test_max_pool_of_any_axes_and_under_vmap():
    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 1, 2), (1, 3, 1, 2), 'VALID')

    x = with_ties(5, 2, 6, 4, 6)
    _, expected = run(jax.vmap(gradients_of(pool)), x)
    for fast in (
        jax.vmap(fast_convolutions(gradients_of(pool))),
        fast_convolutions(jax.vmap(gradients_of(pool))),
    ):
        assert 'select_and_scatter_add' not in primitives_of(fast, x)
        np.testing.assert_array_equal(run(fast, x)[1], expected)


def test_max_pools_over_large_windows_stay_as_they_are():
    assert_unchanged(gradients_of(lambda x: nnx.max_pool(x, (8, 8), (1, 1))), with_ties(2, 9, 9, 2))


def test_average_and_min_pools_stay_as_they_are():
    x = with_ties(4, 6, 8, 3)
    assert_unchanged(gradients_of(lambda x: nnx.avg_pool(x, (2, 2), (2, 2))), x)
    assert_unchanged(gradients_of(lambda x: nnx.min_pool(x, (2, 2), (2, 2))), x)


def assert_unchanged(fn, *args):
    assert str(jax.make_jaxpr(fast_convolutions(fn))(*args)) == str(jax.make_jaxpr(fn)(*args))


# --- nested programs --------------------------------------------------------------------------


def layer(x, kernel):
    return jnp.tanh(lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', None, None, Conv.layout))


@jax.custom_vjp
def with_custom_gradient(x, kernel):
    return layer(x, kernel)


def _forward(x, kernel):
    out, vjp = jax.vjp(layer, x, kernel)
    return out, vjp


def _backward(vjp, grad):
    return jax.tree.map(lambda leaf: 0.5 * leaf, vjp(grad))


with_custom_gradient.defvjp(_forward, _backward)


@jax.custom_jvp
def with_custom_tangent(x, kernel):
    return layer(x, kernel)


@with_custom_tangent.defjvp
def _tangent(primals, tangents):
    out, tangent = jax.jvp(layer, primals, tangents)
    return out, 2 * tangent


def in_scan(x, kernel):
    return lax.scan(lambda x, scale: (layer(x, scale * kernel), None), x, jnp.arange(1.0, 3.0))[0]


def in_cond(x, kernel):
    return lax.cond(x[0, 0, 0, 0] > 0, layer, lambda x, kernel: layer(-x, kernel), x, kernel)


NESTED = {
    'jit': jax.jit(layer),
    'scan': in_scan,
    'cond': in_cond,
    'remat': jax.checkpoint(layer),
    'custom_vjp': with_custom_gradient,
    'custom_jvp': with_custom_tangent,
    'vmap': lambda x, kernel: jax.vmap(layer, (None, 0))(x, jnp.stack([kernel, 2 * kernel])),
}


@pytest.mark.parametrize('forward', NESTED.values(), ids=NESTED)
def test_nested_programs_are_rewritten_to_the_same_values(forward):
    assert_same(gradients_of(forward), normal(0, 2, 6, 5, 16), 0.1 * normal(1, 3, 3, 16, 16))


def test_training_inside_a_loop_is_rewritten_to_the_same_values():
    def train(x, kernel):
        def body(_, kernel):
            return kernel - 0.01 * jax.grad(lambda k: (layer(x, k) ** 2).sum())(kernel)

        def unless_done(state):
            return state[0] + 1, body(0, state[1])

        return (
            lax.fori_loop(0, 3, body, kernel),
            lax.while_loop(lambda state: state[0] < 2, unless_done, (0, kernel)),
        )

    assert_same(train, normal(0, 2, 6, 5, 16), 0.03 * normal(1, 3, 3, 16, 16))


@pytest.mark.parametrize('forward', NESTED.values(), ids=NESTED)
def test_the_result_can_be_differentiated(forward):
    x, kernel = normal(0, 2, 6, 5, 16), 0.1 * normal(1, 3, 3, 16, 16)

    def loss(forward):
        return lambda kernel: (forward(x, kernel) ** 2).sum()

    got = run(jax.grad(loss(fast_convolutions(forward))), kernel)
    expected = np.asarray(run(jax.grad(loss(forward)), kernel))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


# --- whole functions --------------------------------------------------------------------------


class CNN(nnx.Module):
    """The network of the speed measurements."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(7 * 7 * 64, 128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.first(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.second(x)), (2, 2), (2, 2))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


@pytest.fixture(scope='module')
def cnn():
    """Returns the CNN's loss with gradients, and its arguments."""
    graph, params = nnx.split(CNN(nnx.Rngs(0)))

    def loss(params, x, labels):
        logits = nnx.merge(graph, params)(x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), {'logits': logits, 'nothing': None}

    arguments = nnx.to_pure_dict(params), normal(0, 4, 28, 28, 1), np.arange(4)
    return jax.value_and_grad(loss, has_aux=True), arguments


def test_cnn_gives_the_same_loss_and_gradients(cnn):
    fn, arguments = cnn
    assert_same(fn, *arguments)


def test_cnn_is_rewritten_as_expected(cnn):
    fn, arguments = cnn
    original = primitives_of(fn, *arguments)
    assert original.count('conv_general_dilated') == 5  # two forward, two weights, one image
    assert original.count('select_and_scatter_add') == original.count('reduce_window_max') == 2

    program = jax.make_jaxpr(lambda *args: lax.scan(
        lambda carry, _: (carry, fast_convolutions(fn)(*args)), 0, length=2
    ))(*arguments)  # fmt: skip
    rewritten = list(equations(program.jaxpr))
    names = [eqn.primitive.name for eqn in rewritten]
    assert 'select_and_scatter_add' not in names
    convolutions = [eqn for eqn in rewritten if eqn.primitive.name == 'conv_general_dilated']
    assert len(convolutions) == 5
    nhwc, hwio = (0, 3, 1, 2), (3, 2, 0, 1)
    assert all(eqn.params['dimension_numbers'] == (nhwc, hwio, nhwc) for eqn in convolutions)


def test_half_precision_stays_half_precision():
    conv = Conv()
    operands = [
        normal(i, *shape).astype(jnp.bfloat16) for i, shape in enumerate((conv.image, conv.kernel))
    ]
    assert_same(gradients_of(conv), *operands, rtol=2e-2)


def test_without_convolutions_the_program_is_unchanged():
    def loss(w, x):
        step = lambda x, _: (jnp.tanh(x @ w), x.max())  # noqa: E731
        x, largest = lax.scan(step, x, length=3)
        return (x**2).sum() + largest.sum(), {'x': x}

    assert_unchanged(jax.value_and_grad(loss, has_aux=True), normal(0, 4, 4), normal(1, 2, 4))


def test_integer_convolutions_are_unchanged():
    image, kernel = jnp.ones((1, 2, 4, 4), jnp.int32), jnp.ones((2, 2, 3, 3), jnp.int32)
    assert_unchanged(lambda *args: lax.conv(*args, (1, 1), 'SAME'), image, kernel)


def test_it_can_be_switched_off(cnn, monkeypatch):
    fn, arguments = cnn
    monkeypatch.setenv('THINKML_FAST_CONVOLUTIONS', '0')
    assert primitives_of(fast_convolutions(fn), *arguments) == primitives_of(fn, *arguments)


def test_for_an_accelerator_nothing_is_rewritten(cnn):
    fn, arguments = cnn
    with tracing_for(SimpleNamespace(platform='tpu')):
        assert primitives_of(fast_convolutions(fn), *arguments) == primitives_of(fn, *arguments)


def test_signature_and_pytrees_stay_the_same():
    def fn(x, *, scale, options=None):
        return {'pooled': (nnx.max_pool(x, (2, 2), (2, 2)) * scale['by'], options), 'x': [x, 2]}

    x = with_ties(1, 4, 4, 1)
    got, expected = fast_convolutions(fn)(x, scale={'by': 3.0}), jax.jit(fn)(x, scale={'by': 3.0})
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert fast_convolutions(fn).__name__ == 'fn'


# --- compiler options -------------------------------------------------------------------------


def uses_ynnpack(options) -> bool:
    conv = Conv((8, 16, 16, 64), (3, 3, 64, 64))
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (conv.image, conv.kernel)]
    compiled = jax.jit(conv.__call__, compiler_options=options).lower(*operands).compile()
    return '__ynn_fusion' in compiled.as_text()


def test_with_the_compiler_options_convolutions_are_not_ynnpacks():
    assert not uses_ynnpack(compiler_options())
    assert uses_ynnpack({}) == bool(compiler_options())  # there are no options without YNNPACK


def test_the_compiler_options_change_nothing_else():
    def loss(weights, x):
        hidden = jax.nn.relu(x @ weights[0] + weights[1])
        return jax.nn.logsumexp(hidden @ weights[2]).mean(), hidden.sum((0, 1))

    weights = [normal(0, 64, 128), normal(1, 128), normal(2, 128, 256)]
    operands = weights, normal(3, 512, 64)
    programs = [
        jax.jit(jax.grad(loss, has_aux=True), compiler_options=options).lower(*operands).compile()
        for options in ({}, compiler_options())
    ]
    plain, optioned = (program.as_text() for program in programs)
    assert plain == optioned
    weights[0] *= jnp.nan
    assert jnp.isnan(programs[1](*operands)[1])


@pytest.mark.parametrize(
    ('variable', 'value'),
    [
        ('THINKML_FAST_CONVOLUTIONS', '0'),
        ('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT'),
    ],
)
def test_users_decide_about_the_compiler_options(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert compiler_options() == {}


def test_there_are_no_compiler_options_for_an_accelerator():
    with tracing_for(SimpleNamespace(platform='tpu')):
        assert compiler_options() == {}


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(cpu_convolutions, '_YNNPACK', 'xla_cpu_of_another_version')
    cpu_convolutions._is_supported_option.cache_clear()
    try:
        assert compiler_options() == {}
    finally:
        cpu_convolutions._is_supported_option.cache_clear()


def test_jit_asks_for_options_when_a_program_is_compiled(monkeypatch):
    calls = []
    monkeypatch.setattr(jit, 'compiler_options', lambda: calls.append(1) or {})

    def scaled(x, by):
        return x * by

    compiled = jit.Jit(scaled, static_argnums=1)
    assert (compiled.__name__, calls) == ('scaled', [])
    assert [int(compiled(2, 3)), int(compiled(4, 3))] == [6, 12]
    assert calls == [1]  # once for each program
    assert compiled.lower(2, 3).compile()(2) == 6


class Cut(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(64, 64, (2, 3), padding=((-1, 1), (0, 0)), rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(x).mean((1, 2))


def test_predictions_and_evaluations_are_rewritten_as_well():
    """XLA:CPU reads outside the image for negative padding at the front, positive at the back."""
    model, x = Cut(), normal(0, 6, 9, 8, 64)
    cut_and_padded = np.pad(np.asarray(x)[:, 1:], [(0, 0), (0, 1), (0, 0), (0, 0)])
    expected = run(Conv(padding='VALID').__call__, cut_and_padded, model.conv.kernel[...])
    expected = np.asarray(expected).mean((1, 2))
    np.testing.assert_allclose(
        predict_outputs(model, np.asarray(x)), expected, rtol=1e-4, atol=1e-4
    )

    functional = functionalize(model, x[:1], jax.random.key(0))
    metrics = make_metrics()
    step = make_eval_step(functional.apply, get_loss('mse'), metrics)
    measured = evaluate(
        step, metrics, functional.params, functional.model_state,
        place(np.asarray(x), np.asarray(expected)), batch_size=6,
    )  # fmt: skip
    assert measured['loss'] < 1e-6
