import functools
import inspect
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError, DataError
from thinkml.models import ModelManager
from thinkml.models.zoo import MLP, ResNet, ViT, create
from thinkml.models.zoo.catalog import ARCHITECTURES
from thinkml.models.zoo.initializers import HostRngs, Init
from thinkml.models.zoo.resnet import _POOL_PADDING

# A small model of every family: its options, and the shape of an input row.
SMALL = {
    'mlp': ({'in_features': 6, 'hidden': (8, 4), 'dropout': 0.2}, (6,)),
    'residual_mlp': ({'in_features': 6, 'width': 8}, (6,)),
    'cnn': ({'in_channels': 1, 'widths': (4, 8), 'dropout': 0.2}, (9, 8, 1)),
    'resnet18': ({'depths': (1, 1)}, (20, 17, 3)),
    'resnet50': ({'depths': (1, 1)}, (20, 17, 3)),
    'convnext_tiny': ({'depths': (1, 1), 'widths': (8, 16), 'drop_path': 0.5}, (19, 16, 3)),
    'vit_s16': (
        {'patch_size': 4, 'width': 8, 'depth': 2, 'num_heads': 2, 'image_size': 16}
        | {'dropout': 0.2, 'drop_path': 0.5},
        (16, 16, 3),
    ),
}
IMAGES = [name for name, (_, row) in SMALL.items() if len(row) == 3]


# resnet18 differs from resnet50 in how convolutions are put together.
EACH = [
    pytest.param(name, marks=[pytest.mark.slow] if name == 'resnet18' else []) for name in SMALL
]


def small(name, num_classes=5, **options):
    return create(name, num_classes, **SMALL[name][0] | options)


def batch(name, rows=3):
    return np.random.default_rng(0).random((rows, *SMALL[name][1]), np.float32)


@functools.cache
def whole(name):
    """Returns the model with default options, without values, which would take seconds to draw."""
    options = {} if ARCHITECTURES[name].preprocessing else {'num_classes': 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Init, '__call__', lambda _, key, shape, *dtype: jnp.zeros(shape, *dtype))
        return nnx.eval_shape(lambda: create(name, **options))


@functools.partial(jax.jit, static_argnums=0)
def _run(graph, state, x):
    model = nnx.merge(graph, state)
    maps = model.feature_maps(x) if hasattr(model, 'feature_maps') else None
    return (model(x), model.features(x), maps), nnx.state(model)


def run(model, x):
    """Returns logits, features and maps."""
    outputs, state = _run(*nnx.split(model), x)
    nnx.update(model, state)
    return outputs


@functools.cache
def evaluated(name):
    """Returns a small model in eval mode, inputs, and the outputs of `run`."""
    model, x = small(name), batch(name)
    model.eval()
    return model, x, run(model, x)


@functools.cache
def trained(name):
    """Returns batch statistics, logits and gradients of two successive calls in train mode."""
    # Layer scale damps the gradients below it to 1e-6.
    options = {'layer_scale': 0.5} if name == 'convnext_tiny' else {}
    model, x = small(name, **options), batch(name, rows=8)
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(x)
        return (logits**2 * jnp.arange(5.0)).sum(), (logits, nnx.split(model, nnx.Param, ...)[2])

    gradients_of = jax.jit(jax.grad(loss, has_aux=True))
    calls = []
    for _ in range(2):
        before = rest
        gradients, (logits, rest) = gradients_of(params, rest)
        calls.append((statistics_of(before), statistics_of(rest), logits, gradients))
    return calls


def statistics_of(state):
    return [np.array(leaf) for leaf in jax.tree.leaves(nnx.filter_state(state, nnx.BatchStat))]


def num_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ('name', 'published'),
    [
        ('resnet18', 11_689_512),
        ('resnet34', 21_797_672),
        ('resnet50', 25_557_032),
        ('resnet101', 44_549_160),
        ('resnet152', 60_192_808),
        ('convnext_tiny', 28_589_128),
        ('vit_s16', 22_050_664),
        ('vit_b16', 86_567_656),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, published):
    model = whole(name)
    assert num_parameters(model) == published
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ('name', 'strides', 'widths'),
    [
        ('resnet18', (4, 8, 16, 32), (64, 128, 256, 512)),
        ('resnet152', (4, 8, 16, 32), (256, 512, 1024, 2048)),
        ('convnext_tiny', (4, 8, 16, 32), (96, 192, 384, 768)),
        ('vit_b16', (16,) * 12, (768,) * 12),
        ('cnn', (2, 4, 8), (32, 64, 128)),
    ],
)
def test_maps_of_a_whole_model(name, strides, widths):
    x = jax.ShapeDtypeStruct((2, 224, 160, 3), jnp.float32)
    model = whole(name)
    model.eval()
    graph, state = nnx.split(model)
    maps = jax.eval_shape(lambda state, x: nnx.merge(graph, state).feature_maps(x), state, x)
    expected = [(2, 224 // s, 160 // s, w) for s, w in zip(strides, widths, strict=True)]
    assert [m.shape for m in maps] == expected


def test_every_family_is_tested_here():
    assert {ARCHITECTURES[name].make for name in SMALL} == {
        architecture.make for architecture in ARCHITECTURES.values()
    }


@pytest.mark.parametrize('name', SMALL)
def test_logits_are_the_head_of_the_features(name):
    model, _, (logits, features, _) = evaluated(name)
    assert features.shape == (3, model.num_features)
    assert isinstance(model.head, nnx.Linear)
    assert logits.shape == (3, 5)
    np.testing.assert_allclose(logits, model.head(features), rtol=1e-6, atol=1e-6)
    assert np.ptp(np.asarray(logits), axis=0).min() > 0  # rows differ, in every class


@pytest.mark.parametrize('name', EACH)
def test_without_classes_it_returns_features_and_takes_a_head_later(name):
    model, x = small(name, None), batch(name)
    model.eval()
    assert model.head is None
    features = jax.make_jaxpr(lambda x: model.features(x))(x)
    assert str(jax.make_jaxpr(lambda x: model(x))(x)) == str(features)
    model.head = nnx.Linear(model.num_features, 2, rngs=nnx.Rngs(0))
    assert jax.eval_shape(lambda x: model(x), x).shape == (3, 2)
    assert 'head' in nnx.to_pure_dict(nnx.state(model))


@pytest.mark.parametrize('name', IMAGES)
def test_features_come_from_the_last_maps(name):
    model, _, (_, features, maps) = evaluated(name)
    assert len(maps) == 2
    assert all(m.ndim == 4 and len(m) == 3 for m in maps)
    if name != 'vit_s16':
        means = np.mean(maps[-1], axis=(1, 2))
        means = model.norm(means) if name == 'convnext_tiny' else means
        np.testing.assert_allclose(features, means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', SMALL)
def test_rows_do_not_depend_on_each_other_in_eval_mode(name):
    model, x, (logits, *_) = evaluated(name)
    others = x[::-1].copy() + 1
    others[1] = x[1]
    changed, *_ = run(model, others)
    np.testing.assert_allclose(changed[1], logits[1], rtol=0, atol=1e-5)
    assert np.abs(changed - logits)[[0, 2]].max() > 1e-3


@pytest.mark.parametrize('name', EACH)
def test_bfloat16_computes_in_it_and_keeps_parameters_in_float32(name):
    model = small(name, dtype='bfloat16')
    model.eval()
    _, x, (same, *_) = evaluated(name)
    program = jax.jit(lambda x: (model(x), model.features(x))).trace(x)
    logits, features = program.lower().compile()(x)
    assert logits.dtype == features.dtype == jnp.bfloat16
    for state in (nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)):
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype('float32')}
    np.testing.assert_allclose(np.float32(logits), same, rtol=0, atol=0.1)
    products = [
        eqn
        for eqn in _equations(program.jaxpr.jaxpr)
        if eqn.primitive.name in ('dot_general', 'conv_general_dilated')
    ]
    assert products
    for eqn in products:
        assert {v.aval.dtype for v in eqn.invars} == {jnp.dtype('bfloat16')}, eqn


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                yield from _equations(value.jaxpr)


@pytest.mark.parametrize('name', SMALL)
def test_train_and_eval_follow_nnx(name):
    model, x, (logits, *_) = evaluated(name)
    statistics = statistics_of(nnx.state(model))
    again, *_ = run(model, x)
    np.testing.assert_array_equal(again, logits)
    for before, now in zip(statistics, statistics_of(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(before, now)
    (before, after, first, _), (_, _, second, _) = trained(name)
    if not name.startswith('resnet'):  # these have no dropout
        assert np.abs(first - second).max() > 0
    assert len(after) == len(statistics)
    for old, moved in zip(before, after, strict=True):
        assert np.abs(old - moved).max() > 0


@pytest.mark.parametrize('name', SMALL)
def test_every_parameter_has_a_gradient(name):
    (*_, gradients), _ = trained(name)
    for path, grad in nnx.to_flat_state(gradients):
        assert np.isfinite(grad[...]).all(), path
        assert np.abs(grad[...]).max() > 0, path


@pytest.mark.parametrize('name', EACH)
def test_a_saved_model_is_the_same_again(name, tmp_path):
    model, x, (logits, *_) = evaluated(name)
    ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(tmp_path / 'model')
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(run(loaded, x)[0], logits)
    assert loaded.num_features == model.num_features


# --- paddings and other details -----------------------------------------------------------------


def test_paddings_are_torch_s_on_both_sides():
    """The first position of a convolution of stride 2 has a row of zeros above, as in torch."""
    model = whole('resnet50')
    for stage, blocks in enumerate(model.stages):
        for index, block in enumerate(blocks):
            kernels = [layer.conv.kernel_size for layer in block.layers]
            assert kernels == [(1, 1), (3, 3), (1, 1)]
            assert [layer.conv.padding for layer in block.layers] == [0, 1, 0]
            stride = 2 if stage > 0 and index == 0 else 1
            assert [layer.conv.strides for layer in block.layers] == [1, stride, 1]
            assert (block.shortcut is not None) == (index == 0)
    assert (model.stem.conv.padding, model.stem.conv.strides) == (3, 2)


def test_epsilons_and_momentum():
    norms = {
        (type(module).__name__, module.epsilon, getattr(module, 'momentum', None))
        for name in ('resnet18', 'convnext_tiny', 'vit_s16')
        for _, module in nnx.iter_modules(whole(name))
        if hasattr(module, 'epsilon')
    }
    assert norms == {('BatchNorm', 1e-5, 0.9), ('LayerNorm', 1e-6, None)}


def test_pooling_of_negative_maps_is_not_padded_with_zeros():
    x = -jnp.ones((1, 4, 4, 1))
    assert float(nnx.max_pool(x, (3, 3), (2, 2), padding=_POOL_PADDING).max()) == -1


def test_vit_interpolates_positions_for_other_sizes():
    model = small('vit_s16')
    model.eval()
    positions = np.asarray(model.positions[...])
    model.positions[...] = np.broadcast_to(positions[0, :2].mean(0), positions.shape)
    # If all positions and patches are equal, their arrangement does not matter.
    square, wide = (
        run(model, np.ones((1, *size, 3), np.float32))[0] for size in ((16, 16), (8, 32))
    )
    np.testing.assert_allclose(square, wide, atol=1e-5)


def test_vit_names_a_size_that_fits():
    with pytest.raises(DataError, match=r'got images of 225x193.*multiples of 4.*224x192'):
        small('vit_s16')(np.zeros((1, 225, 193, 3), np.float32))


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 3, 32, 32), r'got shape \(2, 3, 32, 32\), expected images.*transpose\(0, 2, 3, 1\)'),
        ((2, 32, 32, 1), r'expected images \(rows, height, width, 3\).*repeat\(3, axis=-1\)'),
        ((32, 32, 3), r'x\[None\]'),
        ((2, 32), r'got shape \(2, 32\)'),
    ],
)
@pytest.mark.parametrize('name', ['resnet18', 'convnext_tiny', 'vit_s16'])
def test_inputs_that_are_no_images(name, shape, message):
    with pytest.raises(DataError, match=message):
        evaluated(name)[0](np.zeros(shape, np.float32))


def test_images_too_small_for_the_stages():
    with pytest.raises(DataError, match='got images of 3x8, expected at least 4x4'):
        small('cnn')(np.zeros((1, 3, 8, 1), np.float32))
    with pytest.raises(DataError, match='expected at least 32x32'):
        whole('convnext_tiny')(np.zeros((1, 31, 40, 3), np.float32))


@pytest.mark.parametrize('name', EACH)
def test_it_is_exported_for_any_number_of_rows(name):
    model, x, (logits, *_) = evaluated(name)
    (rows,) = jax.export.symbolic_shape('rows')
    spec = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    program = jax.export.export(jax.jit(lambda x: model(x)))(spec)
    np.testing.assert_allclose(program.call(x), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['mlp', 'residual_mlp'])
def test_tables_with_other_columns(name):
    with pytest.raises(DataError, match=r'x: got shape \(2, 7\), expected rows of 6 numbers'):
        small(name)(np.zeros((2, 7), np.float32))
    x = np.zeros((2, 3, 2), np.float32)
    assert jax.eval_shape(lambda x: small(name)(x), x).shape == (2, 5)


def test_numbers_that_do_not_divide():
    with pytest.raises(ConfigError, match='image_size: got 225 with patch_size=16'):
        create('vit_s16', image_size=225)
    with pytest.raises(ConfigError, match='width: got 10 with num_heads=4'):
        ViT(8, 10, 1, 4, rngs=nnx.Rngs(0))


# --- initial weights ----------------------------------------------------------------------------


@pytest.mark.parametrize('rngs', [HostRngs(0), nnx.Rngs(0)], ids=['numpy', 'jax'])
@pytest.mark.parametrize(
    ('init', 'std'),
    [
        (Init(2.0, 'out'), math.sqrt(2 / (9 * 64))),
        (Init(2.0, 'in'), math.sqrt(2 / (9 * 32))),
        (Init(1 / 3, 'in', uniform=True), math.sqrt(1 / (3 * 9 * 32))),
        (Init(1.0, 'mean', uniform=True), math.sqrt(2 / (9 * 96))),
        (Init(4e-4), 0.02),
    ],
)
def test_draws_have_the_variance_of_the_initialiser(rngs, init, std):
    draws = np.asarray(init(rngs.params(), (3, 3, 32, 64), jnp.float32))
    assert draws.dtype == np.float32 and draws.shape == (3, 3, 32, 64)
    assert draws.std() == pytest.approx(std, rel=0.02)
    assert abs(draws.mean()) < 0.02 * std
    limit = math.sqrt(3) * std
    assert (np.abs(draws).max() <= limit * 1.001) == init.uniform


def test_classes_take_the_streams_of_nnx():
    kernels = [
        np.asarray(MLP(4, (8,), num_classes=2, rngs=nnx.Rngs(seed)).head.kernel[...])
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0

    def made_and_called(x):
        return ResNet((1,), bottleneck=False, num_classes=2, rngs=nnx.Rngs(0))(x)

    logits = jax.eval_shape(made_and_called, jnp.zeros((1, 32, 32, 3)))
    assert logits.shape == (1, 2)


@pytest.mark.parametrize(
    ('name', 'few'),
    [
        ('resnet34', {'depths': (1, 1, 1, 1)}),
        ('convnext_tiny', {'depths': (2, 1), 'widths': (96, 192)}),
        ('vit_s16', {'depth': 2}),
    ],
)
@pytest.mark.parametrize('whole', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_activations_neither_vanish_nor_explode(name, few, whole):
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    model = create(name, **({} if whole else few))
    model.train()
    features = np.asarray(nnx.jit(lambda model: model.features(x))(model))
    assert 0.1 < features.std() < 10


def test_random_streams_are_there_only_for_dropout():
    for name in SMALL:
        rates = {n: 0.0 for n in inspect.signature(ARCHITECTURES[name].make.__init__).parameters}
        rates = {n: rate for n, rate in rates.items() if 'drop' in n}
        model = small(name, **rates)
        assert not jax.tree.leaves(nnx.state(model, nnx.RngState)), name
    assert jax.tree.leaves(nnx.state(small('mlp'), nnx.RngState))
