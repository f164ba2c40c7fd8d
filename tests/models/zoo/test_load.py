"""Loading of tensors from files that are written here, without torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import WeightsError
from thinkml.models import load_safetensors, save_safetensors
from thinkml.models.zoo import create, load_tensors
from thinkml.models.zoo.catalog import tensor_names_of
from thinkml.models.zoo.tensor_names import OURS, names_in, shape_in

RESNET = {'depths': (1, 1)}
CONVNEXT = {'depths': (1, 2), 'widths': (4, 8)}
VIT = {'patch_size': 4, 'width': 8, 'depth': 2, 'num_heads': 2, 'image_size': 16}
MODELS = {'resnet18': RESNET, 'resnet50': RESNET, 'convnext_tiny': CONVNEXT, 'vit_s16': VIT}


def made(name, num_classes=3, **options):
    return create(name, num_classes, **MODELS[name] | options)


def arrays(model):
    return {
        '.'.join(map(str, path)): np.asarray(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    }


def random_file(model, layout, seed=0):
    """Returns random tensors with all names and shapes of a layout."""
    rng, rules, tensors = np.random.default_rng(seed), tensor_names_of(model).layouts[layout], {}
    for path, array in arrays(model).items():
        names = names_in(layout, rules, path)
        for name in names:
            shape = shape_in(layout, path, array.shape, len(names))
            tensors[name] = rng.random(shape, np.float32)
    return tensors


def resnet_file(seed=0, num_classes=3):
    tensors = random_file(made('resnet18', num_classes), 'torchvision', seed)
    return tensors | {'bn1.num_batches_tracked': np.int64(7)}


FAMILIES = [
    (name, layout)
    for name in MODELS
    for layout in tensor_names_of(made(name)).layouts
    if layout != OURS
]


@pytest.mark.parametrize(('name', 'layout'), FAMILIES)
def test_layouts_are_recognised(name, layout):
    model = made(name)
    tensors = random_file(model, layout)
    before = arrays(model)
    loaded = load_tensors(model, tensors, what='x.pth')
    assert (loaded.layout, loaded.num_loaded) == (layout, len(tensors))
    assert loaded.skipped == () and loaded.head_kept == ''
    after = arrays(model)
    assert all(np.abs(after[path] - before[path]).max() > 0 for path in before)
    assert sum(a.size for a in after.values()) == sum(t.size for t in tensors.values())


# Some names in the libraries' own files, and the arrays they are loaded into.
def oihw(tensor):
    return tensor.transpose(2, 3, 1, 0)


KNOWN = [
    ('resnet50', 'conv1.weight', 'stem.conv.kernel', oihw),
    ('resnet50', 'bn1.running_var', 'stem.norm.var', None),
    ('resnet50', 'layer2.0.conv3.weight', 'stages.1.0.layers.2.conv.kernel', oihw),
    ('resnet50', 'layer2.0.bn2.weight', 'stages.1.0.layers.1.norm.scale', None),
    ('resnet50', 'layer1.0.downsample.0.weight', 'stages.0.0.shortcut.conv.kernel', oihw),
    ('resnet50', 'layer1.0.downsample.1.bias', 'stages.0.0.shortcut.norm.bias', None),
    ('resnet50', 'fc.weight', 'head.kernel', np.transpose),
    (
        'resnet50',
        'encoder.stages.1.layers.0.layer.2.convolution.weight',
        'stages.1.0.layers.2.conv.kernel',
        oihw,
    ),
    ('resnet50', 'classifier.1.bias', 'head.bias', None),
    (
        'convnext_tiny',
        'stages.1.blocks.1.conv_dw.weight',
        'stages.1.blocks.1.depthwise.kernel',
        oihw,
    ),
    ('convnext_tiny', 'stages.1.blocks.0.gamma', 'stages.1.blocks.0.layer_scale', None),
    ('convnext_tiny', 'features.2.1.weight', 'stages.1.downsample.conv.kernel', oihw),
    ('convnext_tiny', 'features.3.1.block.5.bias', 'stages.1.blocks.1.mlp.fc2.bias', None),
    ('convnext_tiny', 'classifier.0.weight', 'norm.scale', None),
    (
        'convnext_tiny',
        'encoder.stages.1.layers.1.pwconv1.weight',
        'stages.1.blocks.1.mlp.fc1.kernel',
        np.transpose,
    ),
    ('vit_s16', 'blocks.1.attn.qkv.weight', 'blocks.1.attention.qkv.kernel', np.transpose),
    ('vit_s16', 'pos_embed', 'positions', None),
    ('vit_s16', 'conv_proj.weight', 'patches.kernel', oihw),
    (
        'vit_s16',
        'encoder.layers.encoder_layer_1.self_attention.in_proj_bias',
        'blocks.1.attention.qkv.bias',
        None,
    ),
    ('vit_s16', 'encoder.layer.0.output.dense.bias', 'blocks.0.mlp.fc2.bias', None),
]


@pytest.mark.parametrize(('name', 'theirs', 'ours', 'converted'), KNOWN)
def test_names_of_the_libraries(name, theirs, ours, converted):
    found = []
    for layout in tensor_names_of(made(name)).layouts:
        model = made(name)
        tensors = random_file(model, layout)
        if layout != OURS and theirs in tensors:
            load_tensors(model, tensors, what='x')
            expected = converted(tensors[theirs]) if converted else tensors[theirs]
            np.testing.assert_array_equal(arrays(model)[ours], expected)
            found.append(layout)
    assert len(found) == 1


def test_queries_keys_and_values_are_joined():
    model = made('vit_s16')
    tensors = random_file(model, 'huggingface')
    load_tensors(model, tensors, what='x')
    place = 'encoder.layer.1.attention.attention'
    for last, ours in (('weight', 'kernel'), ('bias', 'bias')):
        joined = np.concatenate([tensors[f'{place}.{p}.{last}'] for p in ('query', 'key', 'value')])
        np.testing.assert_array_equal(arrays(model)[f'blocks.1.attention.qkv.{ours}'], joined.T)


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'resnet.', 'module.resnet.'])
def test_prefixes_of_wrappers_are_left_out(prefix):
    model, tensors = made('resnet18'), resnet_file()
    load_tensors(model, {prefix + name: t for name, t in tensors.items()}, what='x')
    np.testing.assert_array_equal(arrays(model)['head.bias'], tensors['fc.bias'])


def test_old_names_of_torchvision_s_vit():
    model = made('vit_s16')
    tensors = random_file(model, 'torchvision')
    old = {
        n.replace('.mlp.0.', '.mlp.linear_1.').replace('.mlp.3.', '.mlp.linear_2.'): t
        for n, t in tensors.items()
    }
    assert old.keys() != tensors.keys()
    assert load_tensors(model, old, what='x').num_loaded == len(tensors)


def test_scales_and_dense_layers_may_have_ones_at_the_end():
    model = made('convnext_tiny')
    tensors = random_file(model, 'torchvision')
    as_convolutions = {
        name: t[:, None, None] if 'scale' in name else t[..., None, None] if t.ndim == 2 else t
        for name, t in tensors.items()
    }
    load_tensors(model, as_convolutions, what='x')
    first = arrays(model)
    load_tensors(model, tensors, what='x')
    for path, array in arrays(model).items():
        np.testing.assert_array_equal(array, first[path])


def test_our_own_files_are_read_too(tmp_path):
    model = create('cnn', 3, in_channels=1, dropout=0.5)
    save_safetensors(model, tmp_path / 'w')
    from safetensors.numpy import load_file

    other = create('cnn', 4, in_channels=1, dropout=0.5, seed=1)
    loaded = load_tensors(other, load_file(tmp_path / 'w'), what='w')
    assert loaded.layout == 'thinkml' and loaded.head_kept
    before, after = arrays(model), arrays(other)
    for path in before.keys() - {'head.kernel', 'head.bias'}:
        np.testing.assert_array_equal(before[path], after[path])
    load_safetensors(tmp_path / 'w', into=create('cnn', 3, in_channels=1, dropout=0.5, seed=2))


@pytest.mark.parametrize('dtype', ['float16', 'float64', jnp.bfloat16])
def test_floats_of_other_widths_become_float32(dtype):
    model, tensors = made('resnet18'), resnet_file()
    narrow = {n: t.astype(dtype) if t.ndim else t for n, t in tensors.items()}
    load_tensors(model, narrow, what='x')
    head = arrays(model)['head.bias']
    assert head.dtype == np.float32
    np.testing.assert_array_equal(head, narrow['fc.bias'].astype(np.float32))


def test_a_model_is_in_eval_mode_and_keeps_its_streams():
    model = made('vit_s16', dropout=0.5)
    key = jax.random.key_data(model.dropout.rngs.key[...])
    tensors = random_file(model, 'timm')
    model.train()
    load_tensors(model, tensors, what='x')
    assert model.dropout.deterministic
    np.testing.assert_array_equal(key, jax.random.key_data(model.dropout.rngs.key[...]))
    x = np.ones((1, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(model(x), model(x))


# --- heads --------------------------------------------------------------------------------------


def test_a_head_for_other_classes_is_left_out():
    model, tensors = made('resnet18', 5), resnet_file(num_classes=3)
    head = arrays(model)['head.kernel']
    loaded = load_tensors(model, tensors, what='x')
    assert loaded.head_kept == "the file's is for 3 classes, the model's for 5"
    assert set(loaded.skipped) == {'fc.weight', 'fc.bias', 'bn1.num_batches_tracked'}
    assert loaded.num_loaded == len(tensors) - 3
    np.testing.assert_array_equal(arrays(model)['head.kernel'], head)
    np.testing.assert_array_equal(arrays(model)['stem.norm.bias'], tensors['bn1.bias'])
    assert str(loaded) == (
        f'{len(tensors) - 3} tensors of the layout of torchvision loaded, 3 left out (fc.bias, '
        'fc.weight, bn1.num_batches_tracked). The head keeps its initial weights: '
        "the file's is for 3 classes, the model's for 5."
    )


def test_a_file_without_a_head_leaves_the_model_s():
    model, tensors = made('resnet18'), resnet_file()
    del tensors['fc.weight'], tensors['fc.bias']
    assert load_tensors(model, tensors, what='x').head_kept == 'the file has none'


def test_a_model_without_a_head_takes_none():
    model = made('resnet18', None)
    loaded = load_tensors(model, resnet_file(), what='x')
    assert loaded.head_kept == '' and {'fc.weight', 'fc.bias'} <= set(loaded.skipped)


def test_a_head_of_other_features_or_in_part_does_not_fit():
    tensors = resnet_file() | {'fc.weight': np.zeros((3, 99), np.float32)}
    with pytest.raises(WeightsError, match=r'fc.weight: float32\[3,99\].*expected float\[3,128\]'):
        load_tensors(made('resnet18'), tensors, what='x')
    for name in ('fc.weight', 'fc.bias'):
        part = {n: t for n, t in resnet_file().items() if n != name}
        with pytest.raises(WeightsError, match=f'{name}: not in the file'):
            load_tensors(made('resnet18'), part, what='x')


# --- what does not fit --------------------------------------------------------------------------


def test_each_tensor_that_does_not_fit_is_named_and_nothing_is_changed():
    model, tensors = made('resnet18'), resnet_file()
    before = arrays(model)
    model.train()
    del tensors['layer1.0.bn1.running_mean']
    tensors['layer2.0.conv1.weight'] = np.zeros((128, 64, 1, 1), np.float32)
    tensors['bn1.bias'] = np.zeros(64, np.int32)
    tensors['layer3.0.conv1.weight'] = np.zeros((256, 128, 3, 3), np.float32)
    with pytest.raises(WeightsError) as caught:
        load_tensors(model, tensors, what='mine.pth')
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).splitlines() == [
        "weights: mine.pth, in torchvision's layout, does not fit the model:",
        '  - bn1.bias: int32[64] in the file, expected float[64]',
        '  - layer1.0.bn1.running_mean: not in the file, expected float[64]',
        '  - layer2.0.conv1.weight: float32[128,64,1,1] in the file, expected float[128,64,3,3]',
        '  - layer3.0.conv1.weight: float32[256,128,3,3] in the file, the model has no such tensor',
    ]
    for path, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[path])
    assert not model.stem.norm.use_running_average


def test_names_in_messages_are_those_of_the_file():
    tensors = {f'module.{name}': t for name, t in resnet_file().items()}
    tensors['module.bn1.bias'] = np.zeros(65, np.float32)
    with pytest.raises(WeightsError, match=r'- module.bn1.bias: float32\[65\]'):
        load_tensors(made('resnet18'), tensors, what='x')


def test_a_part_of_the_queries_is_missing():
    model = made('vit_s16')
    tensors = random_file(model, 'huggingface')
    del tensors['encoder.layer.1.attention.attention.key.weight']
    with pytest.raises(
        WeightsError, match=r'attention.key.weight: not in the file, .*float\[8,8\]'
    ):
        load_tensors(model, tensors, what='x')


@pytest.mark.parametrize('tensors', [{}, {'transformer.h.0.attn': np.zeros(3, np.float32)}])
def test_a_file_of_something_else(tensors):
    with pytest.raises(WeightsError, match=r'weights: x holds none of the tensors of a ResNet'):
        load_tensors(made('resnet18'), tensors, what='x')


def test_a_larger_architecture_does_not_fit_a_smaller_one():
    tensors = random_file(made('resnet50'), 'torchvision')
    with pytest.raises(WeightsError) as caught:
        load_tensors(made('resnet18'), tensors, what='x')
    assert 'layer1.0.conv3.weight' in str(caught.value)
    assert 'layer1.0.conv1.weight: float32[64,64,1,1]' in str(caught.value)


@pytest.mark.parametrize('extra', ['pooler.dense.weight', 'vit.pooler.dense.bias'])
def test_layers_of_other_tasks_are_left_out(extra):
    model = made('vit_s16')
    tensors = random_file(model, 'huggingface') | {extra: np.zeros(3, np.float32)}
    assert load_tensors(model, tensors, what='x').skipped == (extra,)


# --- positions ----------------------------------------------------------------------------------


def test_positions_of_another_image_size_are_interpolated():
    source = made('vit_s16')
    tensors = random_file(source, 'timm')
    load_tensors(source, tensors, what='x')
    model = made('vit_s16', image_size=24)
    load_tensors(model, tensors, what='x')
    source.eval(), model.eval()
    x = np.random.default_rng(0).random((2, 24, 24, 3), np.float32)
    np.testing.assert_allclose(model(x), source(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 19, 8), (1, 17, 9), (17, 8), (2, 26, 8)])
def test_positions_that_are_no_square_do_not_fit(shape):
    model = made('vit_s16')
    tensors = random_file(model, 'timm') | {'pos_embed': np.zeros(shape, np.float32)}
    with pytest.raises(WeightsError, match=r'pos_embed: float32.*expected float\[1,17,8\]'):
        load_tensors(model, tensors, what='x')
