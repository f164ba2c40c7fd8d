"""Tests of the augmentations against NumPy, SciPy and colorsys, and by inverting them."""

import colorsys
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from thinkml.core import (
    AUGMENTATIONS,
    ColorJitter,
    CutMix,
    Cutout,
    GaussianNoise,
    MixUp,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    check_augmentation,
    make_augmentation,
)
from thinkml.core.train.augmentations import _draw_ratios, _rotate
from thinkml.errors import ConfigError, ThinkMLWarning

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(64, 12, 10, 3)).astype(np.float32)
BYTES = RNG.integers(0, 256, size=(64, 12, 10, 3)).astype(np.uint8)
LABELS = np.arange(64, dtype=np.int32) % 5
TABLE = RNG.normal(size=(64, 6)).astype(np.float32)


def make(spec, x=IMAGES, task_kind='multiclass', num_outputs=5):
    return make_augmentation(spec, x, task_kind, num_outputs)


def apply(augment, x, y, key=KEY):
    """Returns ``x`` and ``y`` augmented in a compiled program, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(augment)(key, x, y))


rotated = jax.jit(_rotate)
draw_ratios = jax.jit(_draw_ratios, static_argnums=2)


def images_by(augment, x, key=KEY):
    """Returns the augmented images as a NumPy array."""
    return apply(augment, x, np.zeros(len(x), np.float32), key)[0]


def is_each(results, *candidates):
    """Returns a mask ``[candidate, image]`` of the candidate that each image is equal to."""
    return np.array(
        [[np.array_equal(*pair) for pair in zip(results, c, strict=True)] for c in candidates]
    )


# --- each of them -----------------------------------------------------------------------------


@pytest.mark.parametrize('x', [IMAGES, BYTES], ids=['floats', 'bytes'])
def test_a_flipped_image_is_its_mirror_image_or_itself(x):
    flips = is_each(images_by(RandomFlip(), x), x, x[:, :, ::-1])
    assert flips.any(axis=0).all() and flips.any(axis=1).all()
    flips = is_each(images_by(RandomFlip(horizontal=False, vertical=True), x), x, x[:, ::-1])
    assert flips.any(axis=0).all() and flips.any(axis=1).all()
    both = is_each(
        images_by(RandomFlip(vertical=True), x), x, x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1]
    )
    assert both.any(axis=0).all() and both.any(axis=1).all()


def test_half_of_the_images_are_flipped():
    x = np.tile(np.arange(8.0).reshape(1, 1, 8, 1), (4000, 1, 1, 1))
    flipped = images_by(RandomFlip(), x)[:, 0, 0, 0] == 7
    assert stats.binomtest(int(flipped.sum()), 4000).pvalue > 1e-3


@pytest.mark.parametrize('mode', ['zeros', 'reflect'])
@pytest.mark.parametrize('x', [IMAGES, BYTES], ids=['floats', 'bytes'])
def test_a_crop_is_a_window_of_the_padded_image(x, mode):
    cropped = images_by(RandomCrop(2, mode), x)
    padded = np.pad(
        x, ((0, 0), (2, 2), (2, 2), (0, 0)), 'reflect' if mode == 'reflect' else 'constant'
    )
    windows = [padded[:, i : i + 12, j : j + 10] for i in range(5) for j in range(5)]
    found = is_each(cropped, *windows)
    assert found.any(axis=0).all()
    assert found.any(axis=1).sum() > 15  # of 25 shifts


def test_every_shift_is_equally_likely():
    x = np.zeros((5000, 9, 9, 1), np.float32)
    x[:, 4, 4] = 1
    where = images_by(RandomCrop(1), x).reshape(5000, -1).argmax(axis=1)
    shifts, counts = np.unique(where, return_counts=True)
    assert len(shifts) == 9
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_padding_is_an_eighth_of_each_side_unless_told():
    x = np.zeros((2000, 24, 8, 1), np.float32)
    x[:, 12, 4] = 1
    rows, columns = np.nonzero(images_by(RandomCrop(), x)[..., 0])[1:]
    assert set(rows) == set(range(9, 16))
    assert set(columns) == {3, 4, 5}


@pytest.mark.parametrize('degrees', [-170, -90, -33, 0, 12.5, 45, 90, 180])
def test_rotation_is_scipys(degrees):
    image = IMAGES[0]
    expected = ndimage.rotate(image, degrees, reshape=False, order=1, mode='grid-constant')
    np.testing.assert_allclose(rotated(image, np.deg2rad(degrees)), expected, atol=2e-5)


def test_rotation_by_nothing_is_nothing_and_by_a_quarter_is_rot90():
    image = IMAGES[0, :10]
    np.testing.assert_array_equal(rotated(image, 0.0), image)
    np.testing.assert_allclose(rotated(image, np.pi / 2), np.rot90(image), atol=1e-5)


def test_angles_are_within_the_degrees_and_fill_them():
    # A point to the right of the centre shows the angle.
    x = np.zeros((500, 41, 41, 1), np.float32)
    x[:, 20, 36] = 1
    turned = images_by(RandomRotation(30), x)[..., 0]
    rows, columns = np.arange(41)[:, None] - 20, np.arange(41) - 20
    mass = turned.sum(axis=(1, 2))
    angles = np.degrees(
        np.arctan2(-(turned * rows).sum((1, 2)) / mass, (turned * columns).sum((1, 2)) / mass)
    )
    assert np.abs(angles).max() < 30.5
    assert stats.kstest(angles, stats.uniform(-30, 60).cdf).pvalue > 1e-3


def test_rotated_bytes_are_bytes_close_to_rotated_floats():
    turned = images_by(RandomRotation(40), BYTES)
    floats = images_by(RandomRotation(40), BYTES.astype(np.float32))
    assert turned.dtype == np.uint8
    np.testing.assert_allclose(turned, floats, atol=0.5001)


def test_brightness_shifts_each_image_by_one_number():
    x = 0.25 + 0.5 * IMAGES
    shift = images_by(ColorJitter(0.2, 0, 0, 0), x) - x
    np.testing.assert_allclose(shift, shift[:, :1, :1, :1] + 0 * x, atol=1e-6)
    shifts = shift[:, 0, 0, 0]
    assert np.abs(shifts).max() <= 0.2 + 1e-6
    assert len(np.unique(shifts)) == len(x)


def test_contrast_scales_about_the_mean_of_each_channel():
    x = 0.25 + 0.5 * IMAGES
    changed = images_by(ColorJitter(0, 0.3, 0, 0), x)
    mean = x.mean(axis=(1, 2), keepdims=True)
    factors = ((changed - mean) * (x - mean)).sum((1, 2, 3)) / ((x - mean) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(changed, mean + factors[:, None, None, None] * (x - mean), atol=1e-5)
    assert 0.7 <= factors.min() < 0.8 and 1.2 < factors.max() <= 1.3


def hsv_before_and_after(jitter):
    x = 0.1 + 0.8 * IMAGES[:16, :4, :4]
    to_hsv = np.vectorize(colorsys.rgb_to_hsv, signature='(),(),()->(),(),()')
    return to_hsv(*np.moveaxis(x, -1, 0)), to_hsv(*np.moveaxis(images_by(jitter, x), -1, 0))


def test_saturation_is_scaled_by_one_factor_per_image():
    old, new = hsv_before_and_after(ColorJitter(0, 0, 0.5, 0))
    factors = (new[1] / old[1]).max(
        axis=(1, 2), keepdims=True
    )  # of a pixel that was not clipped at 1
    np.testing.assert_allclose(new[1], np.minimum(1, factors * old[1]), atol=1e-4)
    np.testing.assert_allclose(np.exp(2j * np.pi * (new[0] - old[0])), 1, atol=1e-3)
    np.testing.assert_allclose(new[2], old[2], atol=1e-5)
    assert 0.5 <= factors.min() < 0.8 and 1.2 < factors.max() <= 1.5 + 1e-4


def test_hue_is_turned_by_one_angle_per_image():
    old, new = hsv_before_and_after(ColorJitter(0, 0, 0, 0.5))
    turns = np.exp(2j * np.pi * (new[0] - old[0]))
    np.testing.assert_allclose(turns / turns[:, :1, :1], 1, atol=1e-3)
    np.testing.assert_allclose(new[1:], old[1:], atol=1e-4)
    assert len(np.unique(turns[:, 0, 0].round(4))) == 16


def test_colors_stay_in_range_and_in_their_dtype():
    jitter = ColorJitter(1.0, 1.0, 1.0, 0.5)
    floats = images_by(jitter, IMAGES)
    assert floats.dtype == np.float32 and floats.min() == 0 and floats.max() == 1
    changed = images_by(jitter, BYTES)
    assert changed.dtype == np.uint8
    as_floats = images_by(jitter, BYTES.astype(np.float32) / 255)
    np.testing.assert_allclose(changed, 255 * as_floats, atol=0.51)
    int32 = images_by(jitter, BYTES.astype(np.int32))
    np.testing.assert_array_equal(int32, changed)


def test_alpha_stays_and_grey_has_no_saturation():
    rgba = np.concatenate([BYTES, BYTES[..., :1]], axis=3)
    changed = images_by(ColorJitter(), rgba)
    np.testing.assert_array_equal(changed[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(changed[..., :3], images_by(ColorJitter(), BYTES))
    grey = BYTES[..., :1]
    np.testing.assert_array_equal(images_by(ColorJitter(0, 0, 0.9, 0.5), grey), grey)


def boxes_of(marked):
    """Returns the height and width of each image's marked area, which must be a full rectangle."""
    sizes = []
    for mark in marked:
        rows, columns = np.nonzero(mark.any(axis=1))[0], np.nonzero(mark.any(axis=0))[0]
        if len(rows) == 0:
            sizes.append((0, 0))
            continue
        assert mark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        sizes.append((rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    return np.array(sizes)


@pytest.mark.parametrize('dtype', [np.float32, np.uint8, np.bool_])
def test_cutout_zeroes_one_square_and_nothing_else(dtype):
    x = np.ones((300, 12, 16, 2), dtype)
    cut = images_by(Cutout(5), x)
    assert cut.dtype == dtype
    np.testing.assert_array_equal(cut[..., 0], cut[..., 1])
    sizes = boxes_of(cut[..., 0] == 0)
    assert (sizes >= 3).all() and (sizes <= 5).all()  # centred on a pixel: at least half is inside
    # The square is inside the image for centres in 8 of 12 rows and 12 of 16 columns.
    num_inside = int((sizes == 5).all(axis=1).sum())
    assert stats.binomtest(num_inside, 300, 8 / 12 * 12 / 16).pvalue > 1e-3
    assert boxes_of(images_by(Cutout(), x)[..., 0] == 0).max(axis=0).tolist() == [3, 4]


@pytest.mark.parametrize('alpha', [0.1, 0.2, 0.5, 1.0, 4.0])
def test_the_ratio_is_the_larger_part_of_a_beta_draw(alpha):
    ratios = np.asarray(draw_ratios(KEY, alpha, 5000))
    draws = np.random.default_rng(1).beta(alpha, alpha, 5000)
    expected = np.maximum(draws, 1 - draws).astype(np.float32)
    assert ratios.min() >= 0.5 and ratios.max() <= 1
    assert stats.ks_2samp(ratios, expected).pvalue > 1e-3


def test_mixup_mixes_inputs_and_labels_by_the_same_share():
    x, y = apply(make(MixUp(1.0)), IMAGES, LABELS)
    difference = np.roll(IMAGES, 1, axis=0) - IMAGES
    given = ((x - IMAGES) * difference).sum((1, 2, 3)) / (difference**2).sum((1, 2, 3))
    np.testing.assert_allclose(x, IMAGES + given[:, None, None, None] * difference, atol=1e-6)
    one_hot = np.eye(5, dtype=np.float32)[LABELS]
    expected = one_hot + given[:, None] * (np.roll(one_hot, 1, axis=0) - one_hot)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert given.min() >= -1e-6 and 0.4 < given.max() <= 0.5
    assert len(np.unique(given.round(6))) > 60
    assert (np.asarray(y).argmax(1) == LABELS).all()


def test_the_box_of_cutmix_covers_what_its_label_gives_away():
    x = np.tile(np.arange(64, dtype=np.float32)[:, None, None, None], (1, 12, 10, 3))
    mixed, y = apply(make(CutMix(), x, 'multiclass', 64), x, np.arange(64, dtype=np.int32))
    pasted = mixed != x
    np.testing.assert_array_equal(np.where(pasted, np.roll(x, 1, axis=0), x), mixed)
    boxes_of(pasted[..., 0])
    area = np.asarray(pasted).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(np.diagonal(y), 1 - area, atol=1e-6)
    np.testing.assert_allclose(np.asarray(y)[np.arange(64), np.arange(64) - 1], area, atol=1e-6)
    assert area.max() <= 0.5 and len(np.unique(area)) > 10


@pytest.mark.parametrize('spec', [MixUp(1.0), CutMix()])
def test_labels_become_what_the_loss_of_the_task_takes(spec):
    _, y = apply(make(spec), IMAGES, LABELS)
    assert y.shape == (64, 5) and y.dtype == np.float32
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)

    binary = (LABELS > 1).astype(np.int32)
    _, one_logit = apply(make(spec, IMAGES, 'binary', 1), IMAGES, binary)
    _, two_logits = apply(make(spec, IMAGES, 'binary', 2), IMAGES, binary)
    assert one_logit.shape == (64,) and one_logit.dtype == np.float32
    np.testing.assert_allclose(two_logits[:, 1], one_logit, atol=1e-6)
    assert ((np.asarray(one_logit) >= 0.5) == binary).all()

    multilabel = RNG.integers(0, 2, size=(64, 5)).astype(np.float32)
    _, y = apply(make(spec, IMAGES, 'multilabel', 5), IMAGES, multilabel)
    assert y.shape == (64, 5) and (np.abs(y - multilabel) <= 0.5).all()


def test_regression_targets_are_mixed_like_their_inputs():
    target = TABLE @ np.arange(6, dtype=np.float32)
    x, y = apply(make(MixUp(1.0), TABLE, 'regression', 1), TABLE, target)
    np.testing.assert_allclose(y, x @ np.arange(6, dtype=np.float32), atol=1e-4)


def test_noise_is_normal_in_standard_deviations_of_each_column():
    x = np.random.default_rng(2).normal(size=(4000, 3)) * [1, 100, 0] + [0, 7, 5]
    x = x.astype(np.float32)
    noise = images_by(GaussianNoise(0.2), x) - x
    assert stats.kstest(noise[:, 0] / x[:, 0].std(), stats.norm(0, 0.2).cdf).pvalue > 1e-3
    np.testing.assert_allclose(
        noise.std(axis=0) / x.std(axis=0).clip(1e-9), [0.2, 0.2, 0], rtol=0.1
    )
    assert np.abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.1


def test_noisy_bytes_stay_between_0_and_255():
    noisy = images_by(GaussianNoise(1.0), BYTES)
    assert noisy.dtype == np.uint8
    assert np.corrcoef(noisy.ravel(), BYTES.ravel())[0, 1] > 0.5  # none has wrapped around


# --- all of them ------------------------------------------------------------------------------


COMPUTING = {'rotate', 'color', 'mixup', 'noise'}  # the others do not change values


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [
        *((name, 'float32') for name in AUGMENTATIONS),
        *((name, 'uint8') for name in sorted(COMPUTING)),
        *(
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name in AUGMENTATIONS
            for dtype in ('bfloat16', 'uint8')
            if dtype == 'bfloat16' or name not in COMPUTING
        ),
    ],
)
def test_every_one_keeps_shape_and_dtype_and_draws_by_key_and_example(name, dtype):
    images = BYTES if dtype == 'uint8' else IMAGES
    x = jnp.asarray(np.tile(images[:2], (32, 1, 1, 1)), dtype)
    run = jax.jit(make(name, x))
    first, again, other = (run(key, x, LABELS) for key in (KEY, KEY, jax.random.key(8)))
    assert first[0].shape == x.shape and first[0].dtype == x.dtype
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    same_image = np.asarray(first[0], np.float32)[::2].reshape(32, -1)
    assert len(np.unique(same_image, axis=0)) > 1
    if name not in ('mixup', 'cutmix'):
        np.testing.assert_array_equal(first[1], LABELS)


@pytest.mark.parametrize(
    'spec',
    [
        ['crop', 'rotate', 'mixup'],
        *(
            pytest.param(['flip', 'crop', 'rotate', 'cutout', last], marks=pytest.mark.slow)
            for last in ('mixup', 'cutmix')
        ),
    ],
)
def test_many_models_at_once_get_what_each_gets_alone(spec):
    augment = make(spec)
    keys = jax.random.split(KEY, 2)
    x, y = jax.jit(jax.vmap(augment, in_axes=(0, None, None)))(keys, IMAGES, LABELS)
    for index, key in enumerate(keys):
        alone_x, alone_y = apply(augment, IMAGES, LABELS, key)
        np.testing.assert_allclose(x[index], alone_x, atol=1e-4)
        np.testing.assert_allclose(y[index], alone_y, atol=1e-6)


def test_equal_arguments_return_equal_functions():
    def own(key, x, y):
        return x, y

    spec = ['crop', RandomFlip(), MixUp(0.3), own]
    first, second = make(spec), make(tuple(spec), IMAGES[:8])
    assert first == second and hash(first) == hash(second)
    assert make('flip') == make(['flip']) == make(RandomFlip())
    for other in (['crop'], [*spec[:2], MixUp(0.4), own], spec[::-1]):
        assert make(other) != first
    assert make('mixup', IMAGES, 'multiclass', 6) != make('mixup')


def test_an_equal_augmentation_compiles_nothing(count_compiles):
    run = jax.jit(lambda augment, key, x, y: augment(key, x, y), static_argnums=0)
    x, y = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    assert count_compiles(run, make(['crop', MixUp(0.3)]), KEY, x, y) > 0
    assert count_compiles(run, make(['crop', MixUp(0.3)]), KEY, x, y) == 0


def test_a_function_without_a_hash_is_told_apart_by_identity():
    @dataclasses.dataclass
    class Shift:
        by: float

        def __call__(self, key, x, y):
            return x + self.by, y

    one = Shift(1.0)
    assert make(one) == make(one) and hash(make(one)) == hash(make(one))
    assert make(one) != make(Shift(1.0))
    np.testing.assert_array_equal(apply(make(one), IMAGES, LABELS)[0], IMAGES + 1)


def test_a_sequence_is_applied_in_its_order():
    def double(key, x, y):
        return 2 * x, y

    def add(key, x, y):
        return x + 1, y

    x = np.ones((3, 2), np.float32)
    assert images_by(make([double, add], x), x).tolist() == [[3, 3]] * 3
    assert images_by(make([add, double], x), x).tolist() == [[4, 4]] * 3


def test_each_of_a_sequence_draws_for_itself():
    keys = []

    def own(key, x, y):
        keys.append(jax.random.key_data(key).tolist())
        return x, y

    make([own, own, own])(KEY, TABLE, LABELS)
    assert len(np.unique(keys, axis=0)) == 3


# --- True -------------------------------------------------------------------------------------


@pytest.mark.parametrize('channels', [3, 4])
def test_true_crops_and_flips_in_colour(channels):
    x = np.zeros((2, 32, 32, channels), np.uint8)
    assert make(True, x) == make(['crop', 'flip'], x)


def test_true_never_flips_grey_images():
    # An asymmetric image that is moved keeps its bright half on the left of its dark one.
    x = np.zeros((200, 16, 16, 1), np.float32)
    x[:, 4:12, 5:8], x[:, 4:12, 8:11] = 1.0, 0.5
    assert make(True, x) == make('crop', x)
    columns = np.arange(16)
    moved = images_by(make(True, x), x)[..., 0].max(axis=1)
    bright = (columns * (moved == 1.0)).sum(1) / (moved == 1.0).sum(1)
    dark = (columns * (moved == 0.5)).sum(1) / (moved == 0.5).sum(1)
    assert (bright < dark).all() and len(np.unique(bright)) > 1


@pytest.mark.parametrize(
    ('x', 'words'),
    [
        (TABLE, "got True for a table of 6 columns.*'noise' or 'mixup'"),
        (np.zeros((4, 20, 8), np.float32), r'X\[..., None\]'),
        (np.zeros((4, 3, 32, 32), np.float32), r'channels first \(use X.transpose\(0, 2, 3, 1\)\)'),
        (np.zeros((4, 6, 6, 1), np.float32), 'images of 6x6x1, which are too small'),
        ({'a': TABLE, 'b': TABLE}, 'several arrays'),
    ],
)
def test_true_does_nothing_where_it_has_no_default_and_says_so(x, words):
    with pytest.warns(ThinkMLWarning, match=words):
        assert make(True, x) is None


@pytest.mark.parametrize('spec', [None, False, [], ()])
def test_nothing_asked_for_is_nothing(spec):
    assert make(spec) is None


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (lambda: RandomFlip(False), 'horizontal: got False'),
        (lambda: RandomFlip('yes'), "horizontal: got 'yes', expected True or False"),
        (lambda: RandomCrop(0), 'padding: got 0'),
        (lambda: RandomCrop(1.5), 'padding: got 1.5'),
        (lambda: RandomCrop(mode='reflekt'), "mode: got 'reflekt'.*Did you mean 'reflect'"),
        (lambda: RandomRotation(0), 'degrees: got 0'),
        (lambda: RandomRotation(181), 'degrees: got 181'),
        (lambda: ColorJitter(2, hue=0.6), r'brightness: got 2(.|\n)*hue: got 0.6'),
        (lambda: ColorJitter(0, 0, 0, 0), 'brightness: got 0'),
        (lambda: Cutout(True), 'size: got True'),
        (lambda: MixUp(0), 'alpha: got 0'),
        (lambda: CutMix(float('nan')), 'alpha: got nan'),
        (lambda: GaussianNoise(-1), 'scale: got -1'),
    ],
)
def test_impossible_parameters_are_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


@pytest.mark.parametrize(
    ('spec', 'x', 'words'),
    [
        ('flipp', IMAGES, "augmentation: got 'flipp'.*Did you mean 'flip'"),
        (3, IMAGES, 'augmentation: got 3, expected True, a name'),
        (MixUp, IMAGES, r'got the class MixUp, expected an object of it: MixUp\(...\)'),
        ('flip', TABLE, 'RandomFlip: got a table of 6 columns, expected images'),
        ('flip', IMAGES[..., 0], r'X\[..., None\]'),
        ('flip', {'a': IMAGES}, 'RandomFlip: it takes inputs of one array'),
        ('noise', (TABLE, TABLE), 'GaussianNoise: it takes inputs of one array'),
        ('mixup', np.zeros((4, 9), np.int32), 'MixUp: got inputs of int32'),
        ('rotate', np.zeros((4, 9, 9, 1), bool), 'RandomRotation: got inputs of bool'),
        (RandomCrop(10), IMAGES, 'RandomCrop: padding: got 10 for images of 12x10'),
        ('color', IMAGES[..., :2], 'ColorJitter: got 2 channels'),
        ('color', 255 * IMAGES, 'ColorJitter: got values from .* in float32, expected 0 to 1'),
        ('color', IMAGES - 0.5, 'ColorJitter: got values from -0.5'),
        ('color', 300 + BYTES.astype(np.int32), 'in int32, expected 0 to 255'),
        (['mixup', 'cutmix'], IMAGES, 'got MixUp and CutMix, expected one of them'),
    ],
)
def test_what_does_not_fit_the_inputs_is_refused(spec, x, words):
    with pytest.raises(ConfigError, match=words):
        make(spec, x)


def test_cutmix_is_refused_for_regression():
    with pytest.raises(ConfigError, match=r'CutMix: got a regression.*Use MixUp'):
        make('cutmix', IMAGES, 'regression', 1)


def test_all_that_does_not_fit_is_told_at_once():
    with pytest.raises(ConfigError, match=r'RandomFlip: (.|\n)*Cutout: '):
        make(['flip', 'cutout'], TABLE)


def test_integer_labels_can_not_be_mixed():
    with pytest.raises(ConfigError, match=r'y: got int32.*one_hot'):
        MixUp()(KEY, jnp.asarray(TABLE), jnp.asarray(LABELS))


# --- custom functions -------------------------------------------------------------------------


def spec_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


check = functools.partial(check_augmentation, y=spec_of(LABELS))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'uint8'])
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_our_own_pass_the_check_on_shapes_alone(name, dtype):
    images = jax.ShapeDtypeStruct(BYTES.shape, dtype)
    augment = make(name, images)
    check(augment, images)
    changed, _ = jax.eval_shape(augment, KEY, images, spec_of(LABELS))
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)


def test_functions_on_pytrees_and_soft_labels_pass_the_check():
    def own(key, x, y):
        return {**x, 'a': -x['a']}, jax.nn.one_hot(y, 5)

    x = spec_of({'a': IMAGES, 'b': TABLE})
    check(make(own, x), x)


@pytest.mark.parametrize(
    ('own', 'words'),
    [
        (lambda key, x, y: x, r'returned float32\(64, 6\), expected a pair \(x, y\)'),
        (lambda key, x, y: None, r'returned None, expected a pair'),
        (lambda x, y: (x, y), r'failed for a batch x of float32\(64, 6\).*TypeError'),
        (lambda key, x, y: (x[0], y), r'x as float32\(6,\), expected float32\(64, 6\)'),
        (lambda key, x, y: (x > 0, y), r'x as bool\(64, 6\), expected float32\(64, 6\)'),
        (lambda key, x, y: ((x, x), y), r'expected float32\(64, 6\): the structure'),
        (lambda key, x, y: (x, y[:2]), r'y as int32\(2,\), expected int32\(64,\)'),
        (lambda key, x, y: (x, y > 1), r'y as bool\(64,\), expected int32\(64,\)'),
        (lambda key, x, y: (np.asarray(x), y), 'failed for a batch.*TracerArrayConversionError'),
    ],
)
def test_what_a_function_returns_is_checked_before_anything_compiles(own, words, count_compiles):
    def attempt():
        with pytest.raises(ConfigError, match=f'(?s)augmentation: <lambda>.*{words}'):
            check(make(own, TABLE), spec_of(TABLE))

    jax.random.key(0)  # the key of the trace, made once
    assert count_compiles(attempt) == 0


# --- targets of pixels ------------------------------------------------------------------------

CLASSES = RNG.integers(0, 4, size=(64, 12, 10)).astype(np.int32)


def with_classes(spec, x, y=CLASSES, kind='multiclass'):
    return apply(make_augmentation(spec, x, kind, 4, y.shape[1:3]), x, y)


@pytest.mark.parametrize('spec', ['flip', 'vertical_flip', 'crop', ['flip', 'crop']])
def test_classes_of_pixels_move_with_them_and_are_ignored_outside(spec):
    images, classes = with_classes(spec, CLASSES[..., None] + 1)  # the pixels are the classes
    np.testing.assert_array_equal(images[..., 0] - 1, classes)
    assert not np.array_equal(classes, CLASSES)
    assert np.any(classes == -1) == (spec not in ('flip', 'vertical_flip'))


def test_rotated_classes_are_those_of_the_nearest_pixels():
    _, classes = with_classes('rotate', IMAGES)
    angles = RandomRotation()._angles(jax.random.fold_in(KEY, 0), 64)
    same = [
        np.mean(
            ndimage.rotate(y + 1, np.rad2deg(angle), order=0, reshape=False, mode='grid-constant')
            - 1
            == moved
        )
        for y, angle, moved in zip(CLASSES, angles, classes, strict=True)
    ]
    assert set(np.unique(classes)) <= {-1, 0, 1, 2, 3}
    assert np.mean(same) > 0.98, np.mean(same)


def test_numbers_of_pixels_are_interpolated_as_the_pixels_are():
    targets = IMAGES[..., :2] * 3
    images, moved = with_classes('rotate', IMAGES, targets, 'regression')
    np.testing.assert_allclose(moved, images[..., :2] * 3, rtol=1e-5, atol=1e-6)


def test_labels_of_multilabel_pixels_stay_labels():
    targets = (IMAGES > 0.5).astype(np.float32)
    _, moved = with_classes(['rotate', 'flip'], IMAGES, targets, 'multilabel')
    assert set(np.unique(moved)) == {0, 1}


def test_colours_and_boxes_leave_classes_where_they_are():
    for spec in ('color', 'cutout', 'noise'):
        images, classes = with_classes(spec, IMAGES)
        np.testing.assert_array_equal(classes, CLASSES)
        assert not np.array_equal(images, IMAGES)
