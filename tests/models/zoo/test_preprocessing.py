import math
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from thinkml.errors import ConfigError, DataError
from thinkml.models.zoo import Preprocessing, get_preprocessing
from thinkml.models.zoo import preprocessing as module

PLAIN = {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0)}


def photos(rows, height, width, channels=3, seed=0):
    """Returns smooth images with a few sharp edges, uint8."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(rows, height, width, channels)).cumsum(1).cumsum(2)
    noise = (noise - noise.min()) / np.ptp(noise) * 255
    noise[:, height // 3 : height // 2, width // 3 :] = 255
    noise[:, :, : width // 8] = 0
    return noise.astype(np.uint8)


def pillow(image, size, shorter, interpolation):
    """Resizes and crops like torchvision's Resize and CenterCrop for an image of Pillow."""
    height, width = image.shape[:2]
    new = [shorter * side // min(height, width) for side in (width, height)]
    method = Image.Resampling[interpolation.upper()]
    resized = Image.fromarray(image).resize(new, method)
    left, top = (round((side - size) / 2) for side in new)
    return np.asarray(resized.crop((left, top, left + size, top + size))) / 255


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('shape', [(300, 401), (401, 300), (50, 61), (64, 64)])
def test_it_is_what_pillow_does(interpolation, shape):
    images = photos(2, *shape)
    ours = Preprocessing(56, interpolation, **PLAIN, crop_pct=0.875)(images)
    theirs = np.stack([pillow(image, 56, 64, interpolation) for image in images])
    assert ours.shape == (2, 56, 56, 3) and ours.dtype == np.float32
    difference = np.abs(ours - theirs)
    # Pillow rounds after each axis, and clips values beyond black and white.
    assert np.quantile(difference, 0.999) < 1.6 / 255
    assert difference.max() < (1.6 if interpolation == 'bilinear' else 15) / 255
    assert difference.mean() < 0.4 / 255


def triangle(size, to):
    """Returns Pillow's bilinear weights ``[to, size]``: a triangle as wide as a step."""
    scale = size / to
    support = max(scale, 1)
    centres = (np.arange(to) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / support
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


def test_it_is_the_antialiased_resize_exactly():
    images = photos(1, 75, 90)
    x = images[0] / 255
    resized = np.einsum('yh,xw,hwc->yxc', triangle(75, 20), triangle(90, 24), x)
    expected = (resized[2:18, 4:20] - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    settings = Preprocessing(16, 'bilinear', (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), crop_pct=0.8)
    np.testing.assert_allclose(settings(images)[0], expected, rtol=0, atol=1e-4)


def test_images_of_the_right_size_are_only_standardised():
    images = photos(3, 32, 32)
    ours = Preprocessing(32, crop_pct=1.0)(images)
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_the_same_as_bytes(dtype):
    images = photos(2, 40, 50)
    settings = get_preprocessing('vit_s16')
    atol = 5e-3 if dtype == np.float16 else 1e-5
    np.testing.assert_allclose(
        settings((images / 255).astype(dtype)), settings(images), rtol=0, atol=atol
    )


def test_grey_images_have_three_equal_channels():
    grey = photos(2, 40, 50, channels=1)
    settings = Preprocessing(16)
    prepared = settings(grey)
    assert prepared.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(prepared, settings(grey[..., 0]))
    np.testing.assert_allclose(prepared, settings(grey.repeat(3, axis=-1)), rtol=0, atol=1e-5)


def test_any_number_of_rows_is_prepared_in_batches(monkeypatch, count_compiles):
    monkeypatch.setattr(module, '_BATCH_BYTES', 3 * 12 * 20 * 30)
    images, settings = photos(8, 20, 30), Preprocessing(8, crop_pct=1.0)
    assert count_compiles(settings, images) <= 1  # three batches, the last of two rows
    one_by_one = np.concatenate([settings(image[None]) for image in images])
    np.testing.assert_allclose(settings(images), one_by_one, rtol=0, atol=1e-6)


def test_memory_is_bounded_by_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_BATCH_BYTES', 2**24)  # JAX may let go of a batch late
    images = np.lib.format.open_memmap(tmp_path / 'x.npy', 'w+', np.uint8, (400, 256, 256, 3))
    settings = Preprocessing(8)
    settings(images[:1])
    tracemalloc.start()
    prepared = settings(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert prepared.shape == (400, 8, 8, 3)
    assert peak < images.nbytes / 4


def test_what_comes_out_does_not_depend_on_jax_arrays():
    images = photos(2, 20, 20)
    settings = Preprocessing(8)
    np.testing.assert_array_equal(settings(jax.numpy.asarray(images)), settings(images))
    np.testing.assert_array_equal(settings(list(images)), settings(images))


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((2, 3, 32, 32), np.uint8), r'got shape \(2, 3, 32, 32\).*transpose'),
        (np.zeros((2, 32, 32, 4), np.uint8), r'opacity: pass images\[\.\.\., :3\]'),
        (np.zeros((32, 32, 3), np.uint8), r'images\[None\]'),
        (np.zeros((2, 5), np.uint8), r'got shape \(2, 5\)'),
        (np.zeros((0, 8, 8, 3), np.uint8), r'got shape \(0, 8, 8, 3\)'),
        (np.zeros((2, 8, 8, 3), np.int64), r'got int64, expected uint8 or floats from 0 to 1'),
        (np.full((2, 8, 8, 3), 255.0), 'got floats from 255 to 255, expected 0 to 1'),
        (np.full((2, 8, 8, 3), -0.1), 'got floats from -0.1 to -0.1'),
        (np.full((2, 8, 8, 3), math.nan), 'got floats from nan to nan'),
        ([np.zeros((8, 8, 3)), np.zeros((9, 8, 3))], 'images of several sizes'),
    ],
)
def test_what_is_no_image_is_named(images, message):
    with pytest.raises(DataError, match=f'images: .*{message}'):
        Preprocessing(8)(images)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'interpolation': 'nearest'}, "interpolation: got 'nearest'"),
        ({'size': 0}, 'size: got 0'),
        ({'crop_pct': 1.2}, 'crop_pct: got 1.2'),
        ({'std': (0.0, 1.0, 1.0)}, 'std: got'),
        ({'mean': (0.5,)}, 'std: got mean='),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**settings)
