"""Logits and features of torch's networks with the same weights.

Weights are random, of such a scale that logits have a standard deviation of about 1.
"""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from thinkml.models.pretrained import open_tensors
from thinkml.models.zoo import Preprocessing, create, load_tensors

torch = pytest.importorskip('torch')

from tests.models.zoo.torch_reference import (  # noqa: E402
    TorchResNet,
    convnext_as_timm,
    convnext_as_torchvision,
    randomise,
    vit_as,
)

pytestmark = pytest.mark.slow

DEPTHS = {
    'resnet18': (2, 2, 2, 2),
    'resnet34': (3, 4, 6, 3),
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
    'resnet152': (3, 8, 36, 3),
}
MAX_DIFFERENCE = 1e-4


@pytest.fixture(autouse=True, scope='module')
def _one_thread():
    # If another process uses the other core, several threads are ten times slower than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def resnet(name):
    return TorchResNet(DEPTHS[name], bottleneck=name not in ('resnet18', 'resnet34'))


@functools.cache
def hf(kind, **settings):
    """Returns a model of transformers, from a configuration, with random weights."""
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, f'{kind}Config')(num_labels=1000, **settings)
    model = getattr(transformers, f'{kind}ForImageClassification')(config)
    randomise(model)
    return model


def written_and_read(tensors, directory):
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / 'w')
    return open_tensors(directory / 'w')


def hf_file(model, directory):
    """Returns the tensors that transformers writes, whose names are not those of its modules."""
    from safetensors.torch import load_file

    model.save_pretrained(directory)
    return load_file(directory / 'model.safetensors')


def as_numpy(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def images(height, width, rows=2):
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(1))


def check_equal(model, x, logits, maps):
    """Compares logits, and maps where they are given, ``{index: [batch, channels, h, w]}``."""

    @nnx.jit
    def outputs(model, x):
        found = model.feature_maps(x)
        return model(x), {index: found[index] for index in maps}

    ours, our_maps = outputs(model, x.numpy().transpose(0, 2, 3, 1))
    logits = logits.detach().numpy()
    assert 0.3 < logits.std() < 3
    np.testing.assert_allclose(ours, logits, rtol=0, atol=MAX_DIFFERENCE)
    for index, theirs in maps.items():
        theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
        assert 0.3 < theirs.std() < 10, index
        np.testing.assert_allclose(
            our_maps[index], theirs, rtol=0, atol=MAX_DIFFERENCE, err_msg=f'maps {index}'
        )


def check_same_weights(model, other):
    """Compares models of two files with the same weights under other names."""
    for one, two in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, other)), strict=True):
        np.testing.assert_array_equal(one, two)


# --- ResNet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'sizes'),
    [
        ('resnet18', [(225, 193)]),
        ('resnet50', [(224, 224), (97, 65)]),
        # It has more blocks of the same kind, all of whose tensors must be loaded.
        ('resnet34', []),
        ('resnet101', []),
        ('resnet152', []),
    ],
)
@torch.no_grad()
def test_resnet_of_torchvision(name, sizes, tmp_path):
    reference, model = resnet(name), create(name)
    if sizes:
        randomise(reference)
    torch.save(reference.state_dict(), tmp_path / 'resnet.pth')
    tensors = open_tensors(tmp_path / 'resnet.pth')
    loaded = load_tensors(model, tensors, what=name)
    assert loaded.layout == 'torchvision' and not loaded.head_kept
    assert loaded.num_loaded + len(loaded.skipped) == len(tensors)
    assert all(skipped.endswith('num_batches_tracked') for skipped in loaded.skipped)
    for size in sizes:
        x = images(*size)
        maps = dict(enumerate(reference.maps(x)))
        check_equal(model, x, reference(x), maps)


@torch.no_grad()
def test_resnet_of_hugging_face(tmp_path):
    reference, model = hf('ResNet'), create('resnet50')
    loaded = load_tensors(model, written_and_read(hf_file(reference, tmp_path), tmp_path), what='x')
    assert loaded.layout == 'huggingface'
    x = images(97, 65)
    output = reference(x, output_hidden_states=True)
    check_equal(model, x, output.logits, {0: output.hidden_states[1], 3: output.hidden_states[4]})


def test_batch_norm_in_training_is_torch_s():
    reference, model = (
        TorchResNet((1, 1, 1, 1), bottleneck=True),
        create('resnet50', depths=(1,) * 4),
    )
    randomise(reference)
    load_tensors(model, as_numpy(reference.state_dict()), what='x')
    mean, var = model.stem.norm.mean[...], np.asarray(model.stem.norm.var[...])
    assert np.ptp(var) > 0.1
    x = images(64, 64, rows=4)
    reference.train(), model.train()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    with torch.no_grad():
        expected = reference(x).numpy()
    logits = nnx.jit(lambda model, x: model(x))(model, x.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)  # 4 rows of 2x2 pixels
    np.testing.assert_allclose(
        model.stem.norm.mean[...], reference.bn1.running_mean.numpy(), rtol=0, atol=1e-5
    )
    assert np.abs(model.stem.norm.mean[...] - mean).max() > 1e-3
    num_values = 4 * 32 * 32
    unbiased = (model.stem.norm.var[...] - 0.9 * var) * num_values / (num_values - 1) + 0.9 * var
    np.testing.assert_allclose(unbiased, reference.bn1.running_var.numpy(), rtol=1e-5)


# --- ConvNeXt -----------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', ['huggingface', 'timm', 'torchvision'])
@torch.no_grad()
def test_convnext(layout, tmp_path):
    reference, model = hf('ConvNext', layer_norm_eps=1e-6), create('convnext_tiny')
    tensors = hf_file(reference, tmp_path)
    if layout != 'huggingface':
        rename = convnext_as_timm if layout == 'timm' else convnext_as_torchvision
        tensors = rename(tensors)
    loaded = load_tensors(model, written_and_read(tensors, tmp_path), what='x')
    assert loaded.layout == layout and loaded.num_loaded == len(tensors) == 182
    if layout != 'huggingface':
        load_tensors(
            other := create('convnext_tiny'), as_numpy(hf_file(reference, tmp_path)), what='x'
        )
        check_same_weights(model, other)
        return
    for size in [(224, 224), (97, 65)]:
        x = images(*size)
        output = reference(x, output_hidden_states=True)
        maps = {index: output.hidden_states[index + 1] for index in range(4)}
        check_equal(model, x, output.logits, maps)


# --- ViT ----------------------------------------------------------------------------------------

SMALL = {'hidden_size': 384, 'num_attention_heads': 6, 'intermediate_size': 1536}


def vit_maps(output, height, width):
    """Returns the patch tokens after the first, the sixth and the last block."""
    return {
        index: output.hidden_states[index + 1][:, 1:]
        .transpose(1, 2)
        .reshape(len(output.logits), -1, height, width)
        for index in (0, 5, 10)
    }


@pytest.mark.parametrize('layout', ['huggingface', 'timm', 'torchvision'])
@torch.no_grad()
def test_vit(layout, tmp_path):
    reference, model = hf('ViT', layer_norm_eps=1e-6, **SMALL), create('vit_s16')
    tensors = hf_file(reference, tmp_path)
    assert len(tensors) == 200
    tensors = tensors if layout == 'huggingface' else vit_as(layout, tensors)
    loaded = load_tensors(model, written_and_read(tensors, tmp_path), what='x')
    assert loaded.layout == layout and loaded.num_loaded == len(tensors)
    if layout != 'huggingface':
        load_tensors(other := create('vit_s16'), as_numpy(hf_file(reference, tmp_path)), what='x')
        check_same_weights(model, other)
        return
    x = images(224, 224)
    output = reference(x, output_hidden_states=True)
    check_equal(model, x, output.logits, vit_maps(output, 14, 14))


@torch.no_grad()
def test_vit_b16(tmp_path):
    reference = hf('ViT', layer_norm_eps=1e-6, num_hidden_layers=2)
    model = create('vit_b16', depth=2)
    tensors = vit_as('timm', hf_file(reference, tmp_path))
    load_tensors(model, written_and_read(tensors, tmp_path), what='x')
    x = images(224, 224, rows=1)
    check_equal(model, x, reference(x).logits, {})


@pytest.mark.parametrize('size', [(112, 304)])
@torch.no_grad()
def test_vit_of_other_sizes_has_positions_as_timm_interpolates_them(size, tmp_path):
    """The reference is a model for that size, whose positions torch has interpolated."""
    square, model = hf('ViT', layer_norm_eps=1e-6, **SMALL), create('vit_s16')
    tensors = hf_file(square, tmp_path)
    load_tensors(model, as_numpy(tensors), what='x')

    height, width = size[0] // 16, size[1] // 16
    reference = hf('ViT', layer_norm_eps=1e-6, image_size=size, **SMALL)
    embeddings = square.vit.embeddings
    positions = embeddings.position_embeddings
    grid = positions[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        grid, (height, width), mode='bicubic', antialias=True, align_corners=False
    )
    positions = torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    state = square.state_dict() | {'vit.embeddings.position_embeddings': positions}
    reference.load_state_dict(state)

    x = images(*size)
    output = reference(x, output_hidden_states=True)
    check_equal(model, x, output.logits, vit_maps(output, height, width))


def test_resizing_is_torch_s():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 300, 401, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    for interpolation in ('bilinear', 'bicubic'):
        ours = Preprocessing(224, interpolation, (0, 0, 0), (1, 1, 1))(pixels)
        resized = torch.nn.functional.interpolate(
            x, (256, 342), mode=interpolation, antialias=True, align_corners=False
        )
        theirs = resized.clamp(0, 1)[:, :, 16:240, 59:283].permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
