"""Data augmentations: random changes to a batch, on the device, inside the compiled step.

An augmentation is ``augment(key, x, y) -> (x, y)`` on a batch, with separate random draws for each
example. It draws from its key alone, so a resumed run repeats the same changes.

The arithmetic of colours and flips is dm-pix's. Its rotation is not used. It interpolates over the
channels as well, eight corners instead of four: 51 ms against 6 for 128 images of 32x32x3, 3.4 s
against 0.1 for 32 of 224x224x3 on a CPU with two cores. It also loses the border if a coordinate is
outside by a rounding error. Its crop is not used because it draws one axis at a time, which is as
fast but takes a second longer to compile.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from thinkml.core.objectives.elements import IGNORED
from thinkml.errors import ConfigError, is_number, is_whole, problems, unknown_name
from thinkml.typing import PyTree

Augment = Callable[[jax.Array, PyTree, jax.Array], tuple[PyTree, jax.Array]]


# --- images -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """A random mirroring of images: each axis is flipped with probability 1/2.

    Do not use it for images in which left and right have a meaning, such as digits, text and road
    signs.

    Args:
        horizontal: True to mirror left and right.
        vertical: True to mirror top and bottom, drawn independently.

    Raises:
        ConfigError: if both are False, or one is not a bool.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import RandomFlip
        >>> x = jnp.arange(8.0).reshape(4, 1, 2, 1)
        >>> flipped, y = RandomFlip()(jax.random.key(0), x, jnp.zeros(4))
        >>> flipped.shape
        (4, 1, 2, 1)
    """

    horizontal: bool = True
    vertical: bool = False

    def __post_init__(self):
        for name in ('horizontal', 'vertical'):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f'{name}: got {getattr(self, name)!r}, expected True or False.')
        if not (self.horizontal or self.vertical):
            raise ConfigError(
                'horizontal: got False together with vertical=False, expected at least one True: '
                'otherwise nothing is flipped.'
            )

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        import dm_pix

        left_right, up_down = jax.random.bernoulli(key, shape=(2, len(x), 1, 1, 1))
        if self.horizontal:
            x = jnp.where(left_right, dm_pix.flip_left_right(x), x)
        if self.vertical:
            x = jnp.where(up_down, dm_pix.flip_up_down(x), x)
        return x, y


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random shift: a window of the image's size, cut from the padded image.

    Args:
        padding: the number of pixels added on each side, which is the largest shift. None: an
            eighth of the height and of the width, 4 pixels of 32.
        mode: the padding values. ``'zeros'`` is black or, in standardised images, the mean.
            ``'reflect'`` mirrors the image at its border, for backgrounds of another colour.

    Raises:
        ConfigError: for a padding below 1 or an unknown mode.

    Reference:
        He et al., 2016, *Deep residual learning for image recognition*, section 4.2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import RandomCrop
        >>> x = jnp.ones((2, 8, 8, 1), jnp.uint8)
        >>> shifted, y = RandomCrop(padding=2)(jax.random.key(0), x, jnp.zeros(2))
        >>> shifted.shape, str(shifted.dtype)
        ((2, 8, 8, 1), 'uint8')
    """

    padding: int | None = None
    mode: Literal['zeros', 'reflect'] = 'zeros'

    def __post_init__(self):
        _check_pixels('padding', self.padding)
        if self.mode not in ('zeros', 'reflect'):
            raise ConfigError(unknown_name('mode', self.mode, ('zeros', 'reflect')))

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        height, width = (_pixels(self.padding, side, divisor=8) for side in x.shape[1:3])
        padded = jnp.pad(
            x,
            ((0, 0), (height, height), (width, width), (0, 0)),
            mode='reflect' if self.mode == 'reflect' else 'constant',
        )
        first = jax.random.randint(key, (len(x), 2), 0, jnp.array([2 * height + 1, 2 * width + 1]))
        window = functools.partial(jax.lax.dynamic_slice, slice_sizes=x.shape[1:])
        return jax.vmap(lambda image, at: window(image, (at[0], at[1], 0)))(padded, first), y


@dataclasses.dataclass(frozen=True)
class RandomRotation:
    """A random rotation of each image about its centre, by an angle from ``[-degrees, degrees]``.

    Values are interpolated between the four nearest pixels. Pixels from outside the image are 0.

    Args:
        degrees: the largest angle, above 0 and at most 180.

    Raises:
        ConfigError: for another angle.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import RandomRotation
        >>> x = jnp.ones((2, 9, 9, 1))
        >>> turned, y = RandomRotation(degrees=30)(jax.random.key(0), x, jnp.zeros(2))
        >>> turned[:, 4, 4, 0].tolist()
        [1.0, 1.0]
    """

    degrees: float = 15.0

    def __post_init__(self):
        if not is_number(self.degrees) or not 0 < self.degrees <= 180:
            raise ConfigError(
                f'degrees: got {self.degrees!r}, expected a number above 0 and at most 180.'
            )

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        rotated = jax.vmap(_rotate)(_as_floats(x), self._angles(key, len(x)))
        return _in_dtype(rotated, x.dtype), y

    def nearest(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Returns rotated images whose values are those of the nearest pixels, such as labels."""
        return jax.vmap(_rotate_to_nearest)(x, self._angles(key, len(x)))

    def _angles(self, key: jax.Array, count: int) -> jax.Array:
        largest = np.deg2rad(self.degrees)
        return jax.random.uniform(key, (count,), minval=-largest, maxval=largest)


@dataclasses.dataclass(frozen=True)
class WithTargets:
    """A flip, crop or rotation of images that moves the targets of their pixels along.

    The targets get the draws of the images. Class indices from outside an image are ignored;
    numbers and the labels of multilabel tasks are 0 there.

    Args:
        step: the augmentation of the images.
        are_numbers: True if the targets are numbers, which are interpolated as pixels are. Labels
            are those of the nearest pixels.
    """

    step: RandomFlip | RandomCrop | RandomRotation
    are_numbers: bool = False

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, _ = self.step(key, x, y)
        targets = y.reshape(*y.shape[:3], -1)
        are_indices = jnp.issubdtype(y.dtype, jnp.integer)
        # Outside of an image is 0, which becomes the label of pixels that are ignored.
        targets = targets - IGNORED if are_indices else targets
        if isinstance(self.step, RandomRotation) and not self.are_numbers:
            moved = self.step.nearest(key, targets)
        else:
            moved, _ = self.step(key, targets, y)
        moved = moved + IGNORED if are_indices else moved
        return images, moved.reshape(y.shape)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """A random change of each image's brightness, contrast, saturation and hue, in this order.

    ::

        brightness   x + d            d from [-brightness, brightness]
        contrast     m + f (x - m)    f from [1 - contrast, 1 + contrast], m each channel's mean
        saturation   S f              f from [1 - saturation, 1 + saturation], in HSV
        hue          H + d            d from [-hue, hue], in turns of the colour circle

    Floats range from 0 to 1 and integers from 0 to 255; results are clipped to that range. Grey
    images have neither saturation nor hue. With four channels the last one (alpha) is not changed.

    torchvision's class of this name differs: it multiplies the brightness, changes the contrast
    about the mean of the grey image, and draws the order.

    Args:
        brightness: from 0 to 1.
        contrast: from 0 to 1.
        saturation: from 0 to 1.
        hue: from 0 to 0.5.

    Raises:
        ConfigError: for other numbers, or if all are 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import ColorJitter
        >>> x = jnp.full((2, 8, 8, 3), 0.5)
        >>> changed, y = ColorJitter(brightness=0.1)(jax.random.key(0), x, jnp.zeros(2))
        >>> bool((abs(changed - x) <= 0.1 + 1e-6).all())
        True
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02

    def __post_init__(self):
        found = []
        for field, largest in (('brightness', 1), ('contrast', 1), ('saturation', 1), ('hue', 0.5)):
            value = getattr(self, field)
            if not is_number(value) or not 0 <= value <= largest:
                found.append(f'{field}: got {value!r}, expected a number from 0 to {largest}.')
        if found:
            raise ConfigError(problems('ColorJitter can not be used:', found))
        if not any(dataclasses.astuple(self)):
            raise ConfigError(
                'brightness: got 0 for this and all other fields, expected one number above 0.'
            )

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        draws = jax.random.uniform(key, (len(x), 4), minval=-1, maxval=1)
        white = 255 if jnp.issubdtype(x.dtype, jnp.integer) else 1
        colors = 3 if x.shape[3] == 4 else x.shape[3]
        changed = jax.vmap(self._change)(_as_floats(x[..., :colors]) / white, draws)
        changed = _in_dtype(white * jnp.clip(changed, 0, 1), x.dtype)
        return jnp.concatenate([changed, x[..., colors:]], axis=3), y

    def _change(self, image: Any, draws: jax.Array) -> jax.Array:  # Any: dm-pix returns chex's type
        import dm_pix

        in_color = image.shape[2] == 3
        if self.brightness:
            image = dm_pix.adjust_brightness(image, self.brightness * draws[0])
        if self.contrast:
            image = dm_pix.adjust_contrast(image, 1 + self.contrast * draws[1])
        if in_color and (self.saturation or self.hue):
            image = jnp.clip(image, 0, 1)  # HSV is not defined outside this range
        if in_color and self.saturation:
            image = dm_pix.adjust_saturation(image, 1 + self.saturation * draws[2])
        if in_color and self.hue:
            image = dm_pix.adjust_hue(image, self.hue * draws[3])
        return image


@dataclasses.dataclass(frozen=True)
class Cutout:
    """A random square of each image, set to 0.

    The square's centre is any pixel of the image. The part outside the image is ignored.

    Args:
        size: the square's side in pixels. None: a quarter of the height and of the width.

    Raises:
        ConfigError: for a size below 1.

    Reference:
        DeVries and Taylor, 2017, *Improved regularization of convolutional neural networks with
        cutout*.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import Cutout
        >>> x, y = Cutout(size=1)(jax.random.key(0), jnp.ones((2, 8, 8, 1)), jnp.zeros(2))
        >>> x.sum((1, 2, 3)).tolist()
        [63.0, 63.0]
    """

    size: int | None = None

    def __post_init__(self):
        _check_pixels('size', self.size)

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        height, width = (_pixels(self.size, side, divisor=4) for side in x.shape[1:3])
        return jnp.where(_boxes(key, x.shape, height, width), jnp.zeros((), x.dtype), x), y


# --- mixing examples --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MixUp:
    """A mix of each example, and its label, with its neighbour in the (shuffled) batch.

    ::

        x_i <- s_i x_i + (1 - s_i) x_(i-1)
        y_i <- s_i y_i + (1 - s_i) y_(i-1)      s_i = max(b, 1 - b), b from Beta(alpha, alpha)

    So an example always keeps at least half of its values, and its weight in the loss does not
    change. Labels are floats: class probabilities ``[batch, classes]``, 0 and 1, or regression
    targets. `make_augmentation` converts class indices to floats. If you call this object directly,
    convert them first.

    The paper draws one factor for the batch, and does not take the larger one of ``b`` and
    ``1 - b``.

    Args:
        alpha: a number above 0. Larger values mix more.

    Raises:
        ConfigError: for another alpha; when called, for integer labels.

    Reference:
        Zhang et al., 2018, *mixup: beyond empirical risk minimization*.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import MixUp
        >>> x, y = MixUp(alpha=1.0)(jax.random.key(0), jnp.eye(3), jnp.eye(3))
        >>> bool(jnp.array_equal(x, y)), bool((x.sum(1) == 1).all())
        (True, True)
    """

    alpha: float = 0.2

    def __post_init__(self):
        _check_alpha(self.alpha)

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        ratio = _draw_ratios(key, self.alpha, len(x))
        return _mix(x, ratio), _mix(_check_floats(y), ratio)


@dataclasses.dataclass(frozen=True)
class CutMix:
    """A random box of each image, replaced by that of its neighbour in the (shuffled) batch.

    The label is mixed in proportion to the areas: ``y_i <- s_i y_i + (1 - s_i) y_(i-1)``, where
    ``s_i``, at least 0.5, is the fraction of pixels that are kept. The box covers
    ``1 - max(b, 1 - b)`` of the image, with ``b`` from ``Beta(alpha, alpha)``, without the part
    beyond the border. Labels are floats as for `MixUp`, but not regression targets: half of an
    image does not have half of the target.

    Args:
        alpha: a number above 0. Larger values give larger boxes.

    Raises:
        ConfigError: for another alpha; when called, for integer labels.

    Reference:
        Yun et al., 2019, *CutMix: regularization strategy to train strong classifiers with
        localizable features*.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import CutMix
        >>> x = jnp.ones((2, 8, 8, 1)).at[1].set(0)
        >>> x, y = CutMix()(jax.random.key(0), x, jnp.eye(2))
        >>> bool((x.mean((1, 2, 3)) == y[:, 0]).all())
        True
    """

    alpha: float = 1.0

    def __post_init__(self):
        _check_alpha(self.alpha)

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        ratio_key, box_key = jax.random.split(key)
        side = jnp.sqrt(1 - _draw_ratios(ratio_key, self.alpha, len(x)))
        height, width = (jnp.floor(side * pixels).astype(int) for pixels in x.shape[1:3])
        box = _boxes(box_key, x.shape, height, width)
        ratio = 1 - box.mean(axis=(1, 2, 3))
        return jnp.where(box, _neighbour(x), x), _mix(_check_floats(y), ratio)


# --- any inputs -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Normal noise added to the inputs: ``x + scale * std * n``, with ``n`` from N(0, 1).

    ``std`` is the standard deviation over the batch, for each column of a table and each channel
    of images (the last axis). So a scale has the same effect on raw and standardised columns, and
    on pixels from 0 to 1 and from 0 to 255. A constant column stays constant.

    Args:
        scale: the noise in standard deviations of the data, above 0.

    Raises:
        ConfigError: for another scale.

    Reference:
        Bishop, 1995, *Training with noise is equivalent to Tikhonov regularization*.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.train.augmentations import GaussianNoise
        >>> x = jnp.array([[1.0, 5.0], [2.0, 5.0]])
        >>> noisy, y = GaussianNoise()(jax.random.key(0), x, jnp.zeros(2))
        >>> noisy[:, 1].tolist()
        [5.0, 5.0]
    """

    scale: float = 0.1

    def __post_init__(self):
        if not is_number(self.scale) or not self.scale > 0:
            raise ConfigError(f'scale: got {self.scale!r}, expected a number above 0.')

    def __call__(self, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = _as_floats(x)
        std = values.std(axis=tuple(range(max(1, x.ndim - 1))), keepdims=True)
        noisy = values + self.scale * std * jax.random.normal(key, x.shape, values.dtype)
        if jnp.issubdtype(x.dtype, jnp.integer):
            noisy = jnp.clip(noisy, 0, 255)
        return _in_dtype(noisy, x.dtype), y


# --- arithmetic -------------------------------------------------------------------------------


def _as_floats(x: jax.Array) -> jax.Array:
    """Converts to float32 or wider, because bfloat16 is too coarse for pixel positions."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _in_dtype(values: jax.Array, dtype: DTypeLike) -> jax.Array:
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    return (jnp.round(values) if is_integer else values).astype(dtype)


def _pixels(setting: int | None, side: int, divisor: int) -> int:
    return max(1, side // divisor) if setting is None else int(setting)


def _rotate(image: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates ``[height, width, channels]`` counter-clockwise by radians, padded with zeros."""
    height, width, _ = image.shape
    row, column = _rotated_from(image.shape, angle)

    def corner(row: jax.Array, column: jax.Array, weight: jax.Array) -> jax.Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
        return jnp.where(inside, weight, 0)[..., None] * pixel

    top, left = jnp.floor(row).astype(int), jnp.floor(column).astype(int)
    below, beside = row - top, column - left
    return (
        corner(top, left, (1 - below) * (1 - beside))
        + corner(top, left + 1, (1 - below) * beside)
        + corner(top + 1, left, below * (1 - beside))
        + corner(top + 1, left + 1, below * beside)
    )


def _rotate_to_nearest(image: jax.Array, angle: jax.Array) -> jax.Array:
    """Returns `_rotate` with the nearest pixels in place of interpolated values."""
    height, width, _ = image.shape
    row, column = (jnp.round(at).astype(int) for at in _rotated_from(image.shape, angle))
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    nearest = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], nearest, 0)


def _rotated_from(shape: tuple[int, ...], angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the row and column in an image that each pixel of a rotated one is read from."""
    height, width, _ = shape
    center_row, center_column = (height - 1) / 2, (width - 1) / 2
    down, right = jnp.arange(height)[:, None] - center_row, jnp.arange(width) - center_column
    row = jnp.cos(angle) * down + jnp.sin(angle) * right + center_row
    return row, jnp.cos(angle) * right - jnp.sin(angle) * down + center_column


def _boxes(
    key: jax.Array, shape: tuple[int, ...], height: jax.Array | int, width: jax.Array | int
) -> jax.Array:
    """Returns a mask ``[batch, height, width, 1]`` of a box per image, centred on any pixel."""
    row_key, column_key = jax.random.split(key)

    def marks(key: jax.Array, side: int, length: jax.Array | int) -> jax.Array:
        center = jax.random.randint(key, shape[:1], 0, side)
        first = center - length // 2
        at = jnp.arange(side)
        return (at >= first[:, None]) & (at < (first + length)[:, None])

    rows = marks(row_key, shape[1], height)
    columns = marks(column_key, shape[2], width)
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _neighbour(values: jax.Array) -> jax.Array:
    # The batch is shuffled already, so the neighbour is a random partner. A permutation would
    # gather rows from every device.
    return jnp.roll(values, 1, axis=0)


def _mix(values: jax.Array, ratio: jax.Array) -> jax.Array:
    ratio = ratio.reshape(-1, *[1] * (values.ndim - 1))
    floats = _as_floats(values)
    return _in_dtype(ratio * floats + (1 - ratio) * _neighbour(floats), values.dtype)


def _check_floats(y: jax.Array) -> jax.Array:
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ConfigError(
            f'y: got {y.dtype}, expected floats, which can be mixed. make_augmentation converts '
            'class indices; or use jax.nn.one_hot(y, num_classes).'
        )
    return y


def _draw_ratios(key: jax.Array, alpha: float, size: int) -> jax.Array:
    """Draws ``max(b, 1 - b)`` for ``b`` from ``Beta(alpha, alpha)``, without rejections.

    The distribution is exact. `jax.random.beta` rejects draws in loops, which take 0.2 ms for 128
    draws and a second to compile.

    Reference:
        Devroye, 1996, *Random variate generation in one line of code*.
    """
    # Draws are above 0, where the power would be infinite.
    u, v = jax.random.uniform(key, (2, size), minval=jnp.finfo(jnp.float32).tiny)
    t = (u ** (-1 / alpha) - 1) * jnp.cos(2 * jnp.pi * v) ** 2
    return 0.5 + 0.5 / jnp.sqrt(1 + 1 / t)


def _check_pixels(name: str, pixels: int | None) -> None:
    if pixels is not None and not (is_whole(pixels) and pixels >= 1):
        raise ConfigError(
            f'{name}: got {pixels!r}, expected a whole number of pixels of at least 1, or None.'
        )


def _check_alpha(alpha: float) -> None:
    if not is_number(alpha) or not alpha > 0:
        raise ConfigError(
            f'alpha: got {alpha!r}, expected a number above 0. To mix nothing, leave it out.'
        )
