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
from thinkml.models.zoo.drawing import HostRngs, Init
from thinkml.models.zoo.resnet import _POOL_PADDING

# Small ones of every family: what they are made with, and a row of their inputs.
SMALL = {
    'mlp': ({'in_features': 6, 'hidden': (8, 4), 'dropout': 0.2}, (6,)),
    'residual_mlp': ({'in_features': 6, 'width': 8}, (6,)),
    'cnn': ({'in_channels': 1, 'widths': (4, 8), 'dropout': 0.2}, (9, 8, 1)),
    'resnet18': ({'depths': (1, 1)}, (20, 17, 3)),
    'resnet50': ({'depths': (1, 1)}, (20, 17, 3)),
    'convnext_tiny': ({'depths': (1, 1), 'widths': (8, 16), 'drop_path': 0.5}, (19, 16, 3)),
    'vit_s16': (
        {'patch_size': 4, 'width': 8, 'depth': 3, 'num_heads': 2, 'image_size': 16}
        | {'dropout': 0.2, 'drop_path': 0.5},
        (16, 16, 3),
    ),
}
IMAGES = [name for name, (_, row) in SMALL.items() if len(row) == 3]


def small(name, num_classes=5, **options):
    return create(name, num_classes, **SMALL[name][0] | options)


def batch(name, rows=3):
    return np.random.default_rng(0).random((rows, *SMALL[name][1]), np.float32)


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
    model = nnx.eval_shape(lambda: create(name))
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
    model = create(name, num_classes=10)
    model.eval()
    maps = jax.eval_shape(model.feature_maps, jnp.zeros((2, 224, 160, 3)))
    expected = [(2, 224 // s, 160 // s, w) for s, w in zip(strides, widths, strict=True)]
    assert [m.shape for m in maps] == expected


def test_every_family_is_tested_here():
    assert {ARCHITECTURES[name].make for name in SMALL} == {
        architecture.make for architecture in ARCHITECTURES.values()
    }


@pytest.mark.parametrize('name', SMALL)
def test_logits_are_the_head_of_the_features(name):
    model, x = small(name), batch(name)
    model.eval()
    features = model.features(x)
    assert features.shape == (3, model.num_features)
    assert isinstance(model.head, nnx.Linear)
    logits = model(x)
    assert logits.shape == (3, 5)
    np.testing.assert_array_equal(logits, model.head(features))
    assert np.ptp(np.asarray(logits), axis=0).min() > 0  # rows differ, in every class


@pytest.mark.parametrize('name', SMALL)
def test_without_classes_it_returns_features_and_takes_a_head_later(name):
    model, x = small(name, None), batch(name)
    model.eval()
    assert model.head is None
    np.testing.assert_array_equal(model(x), model.features(x))
    model.head = nnx.Linear(model.num_features, 2, rngs=nnx.Rngs(0))
    assert model(x).shape == (3, 2)
    assert 'head' in nnx.to_pure_dict(nnx.state(model))


@pytest.mark.parametrize('name', IMAGES)
def test_features_come_from_the_last_maps(name):
    model, x = small(name), batch(name)
    model.eval()
    maps = model.feature_maps(x)
    assert len(maps) == (3 if name == 'vit_s16' else 2)
    assert all(m.ndim == 4 and len(m) == 3 for m in maps)
    if name != 'vit_s16':
        means = maps[-1].mean(axis=(1, 2))
        means = model.norm(means) if name == 'convnext_tiny' else means
        np.testing.assert_allclose(model.features(x), means, rtol=1e-6)


@pytest.mark.parametrize('name', SMALL)
def test_rows_do_not_depend_on_each_other_in_eval_mode(name):
    model, x = small(name), batch(name)
    model.eval()
    np.testing.assert_allclose(model(x)[1:2], model(x[1:2]), rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', SMALL)
def test_bfloat16_computes_in_it_and_keeps_parameters_in_float32(name):
    model, same, x = small(name, dtype='bfloat16'), small(name), batch(name)
    model.eval(), same.eval()
    logits = model(x)
    assert logits.dtype == model.features(x).dtype == jnp.bfloat16
    for state in (nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)):
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype('float32')}
    np.testing.assert_allclose(logits.astype(jnp.float32), same(x), rtol=0, atol=0.1)
    products = [
        eqn
        for eqn in _equations(jax.make_jaxpr(lambda x: model(x))(x).jaxpr)
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
    model, x = small(name), batch(name)
    statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    model.eval()
    np.testing.assert_array_equal(model(x), model(x))
    after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    for before, now in zip(statistics, after, strict=True):
        np.testing.assert_array_equal(before, now)
    model.train()
    first, second = model(x), model(x)
    if not name.startswith('resnet'):  # these have no dropout
        assert np.abs(first - second).max() > 0
    moved = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    for before, now in zip(statistics, moved, strict=True):
        assert np.abs(before - now).max() > 0


@pytest.mark.parametrize('name', SMALL)
def test_every_parameter_has_a_gradient(name):
    # Layer scale damps what is below it to 1e-6.
    options = {'layer_scale': 0.5} if name == 'convnext_tiny' else {}
    model, x = small(name, **options), batch(name, rows=8)
    model.train()

    @nnx.jit
    def gradients(model):
        return nnx.grad(lambda model: (model(x) ** 2 * jnp.arange(5.0)).sum())(model)

    for path, grad in nnx.to_flat_state(gradients(model)):
        assert np.isfinite(grad[...]).all(), path
        assert np.abs(grad[...]).max() > 0, path


@pytest.mark.parametrize('name', SMALL)
def test_a_saved_model_is_the_same_again(name, tmp_path):
    model, x = small(name), batch(name)
    model.eval()
    ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(tmp_path / 'model')
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.num_features == model.num_features


# --- paddings and what else is particular -------------------------------------------------------


def test_paddings_are_torch_s_on_both_sides():
    """The first position of a convolution of stride 2 has a row of zeros above, as in torch."""
    model = nnx.eval_shape(lambda: create('resnet50'))
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
    resnet = nnx.eval_shape(lambda: create('resnet18'))
    convnext = nnx.eval_shape(lambda: create('convnext_tiny'))
    vit = nnx.eval_shape(lambda: create('vit_s16'))
    norms = {
        (type(module).__name__, module.epsilon, getattr(module, 'momentum', None))
        for model in (resnet, convnext, vit)
        for _, module in nnx.iter_modules(model)
        if hasattr(module, 'epsilon')
    }
    assert norms == {('BatchNorm', 1e-5, 0.9), ('LayerNorm', 1e-6, None)}


def test_pooling_of_negative_maps_is_not_padded_with_zeros():
    x = -jnp.ones((1, 4, 4, 1))
    assert float(nnx.max_pool(x, (3, 3), (2, 2), padding=_POOL_PADDING).max()) == -1


def test_vit_interpolates_positions_for_other_sizes():
    model = small('vit_s16')
    model.eval()
    model.positions[...] = jnp.broadcast_to(model.positions[0, :2].mean(0), model.positions.shape)
    x = np.ones((1, 16, 16, 3), np.float32)
    # Where all positions and patches are the same, it does not matter how they lie.
    np.testing.assert_allclose(model(x), model(np.ones((1, 8, 32, 3), np.float32)), atol=1e-5)


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
        small(name)(np.zeros(shape, np.float32))


def test_images_too_small_for_the_stages():
    with pytest.raises(DataError, match='got images of 3x8, expected at least 4x4'):
        small('cnn')(np.zeros((1, 3, 8, 1), np.float32))
    with pytest.raises(DataError, match='expected at least 32x32'):
        create('convnext_tiny')(np.zeros((1, 31, 40, 3), np.float32))


@pytest.mark.parametrize('name', SMALL)
def test_it_is_exported_for_any_number_of_rows(name):
    model, x = small(name), batch(name)
    model.eval()
    (rows,) = jax.export.symbolic_shape('rows')
    spec = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    program = jax.export.export(jax.jit(lambda x: model(x)))(spec)
    np.testing.assert_allclose(program.call(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['mlp', 'residual_mlp'])
def test_tables_with_other_columns(name):
    with pytest.raises(DataError, match=r'x: got shape \(2, 7\), expected rows of 6 numbers'):
        small(name)(np.zeros((2, 7), np.float32))
    assert small(name)(np.zeros((2, 3, 2), np.float32)).shape == (2, 5)


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
    model = nnx.jit(lambda: ResNet((1,), bottleneck=False, num_classes=2, rngs=nnx.Rngs(0)))()
    assert model(jnp.zeros((1, 32, 32, 3))).shape == (1, 2)


def test_activations_neither_vanish_nor_explode():
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    for name in ('resnet34', 'convnext_tiny', 'vit_s16'):
        model = create(name)
        model.train()
        features = np.asarray(nnx.jit(lambda model: model.features(x))(model))
        assert 0.1 < features.std() < 10, name


def test_random_streams_are_there_only_for_dropout():
    for name in SMALL:
        rates = {n: 0.0 for n in inspect.signature(type(small(name)).__init__).parameters}
        rates = {n: rate for n, rate in rates.items() if 'drop' in n}
        model = small(name, **rates)
        assert not jax.tree.leaves(nnx.state(model, nnx.RngState)), name
    assert jax.tree.leaves(nnx.state(small('mlp'), nnx.RngState))
