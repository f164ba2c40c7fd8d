"""Preprocessing of images for pretrained models: resizing, cropping and standardisation."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.xla.jit import Jit
from thinkml.errors import ConfigError, DataError
from thinkml.typing import Inputs

# The approximate limit for the pixels of one batch, as floats.
_BATCH_BYTES = 64 * 2**20
_METHODS = {'bilinear': 'linear', 'bicubic': 'cubic'}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A function that prepares images like those a model was trained on.

    The shorter side is resized to ``size / crop_pct`` and the centre is cropped, as in timm and
    torchvision. Resizing is antialiased like Pillow's and torch's (``antialias=True``). Values that
    a bicubic resize moves beyond black and white are clipped. Pillow clips too, and rounds to whole
    pixel values, after each axis. The difference is about 1/255, more in corners of hard edges.

    Args:
        size: the length of each side in pixels, after cropping.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
        mean: the mean of each of the three channels, on a scale from 0 to 1; it is subtracted.
        std: the standard deviation of each channel; values are divided by it.
        crop_pct: the fraction of the shorter side that the crop keeps.

    Raises:
        ConfigError: for another interpolation, and for numbers out of range.

    Example:
        >>> import numpy as np
        >>> from thinkml.models.zoo import Preprocessing
        >>> images = np.full((2, 30, 40, 3), 255, np.uint8)
        >>> x = Preprocessing(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))(images)
        >>> x.shape, x.dtype, round(float(x.min()), 3)
        ((2, 16, 16, 3), dtype('float32'), 1.0)
    """

    size: int = 224
    interpolation: Literal['bilinear', 'bicubic'] = 'bilinear'
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.875

    def __post_init__(self):
        if self.interpolation not in _METHODS:
            raise ConfigError(
                f"interpolation: got {self.interpolation!r}, expected 'bilinear' or 'bicubic'."
            )
        if self.size < 1:
            raise ConfigError(f'size: got {self.size!r}, expected a number of pixels.')
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f'crop_pct: got {self.crop_pct!r}, expected above 0, at most 1.')
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f'std: got mean={self.mean}, std={self.std}, expected three numbers each, and '
                'those of std above 0.'
            )

    def __call__(self, images: Inputs) -> np.ndarray:
        """Prepares images, a batch at a time.

        Args:
            images: ``[n, height, width, 3]``, or grey ``[n, height, width]`` or ``[n, height,
                width, 1]``, whose channel is repeated. The dtype is uint8, or a float type with
                values from 0 to 1. It may be anything that can be sliced, for instance a
                memory-mapped array.

        Returns:
            float32 ``[n, size, size, 3]``.

        Raises:
            DataError: for other shapes, dtypes or values.
        """
        images = images if hasattr(images, 'shape') else _as_array(images)
        _check(images)
        num_rows, height, width = images.shape[:3]
        fitting = _BATCH_BYTES // (12 * max(height * width, self.size**2))
        batch_size = min(max(1, fitting), 2 ** (num_rows - 1).bit_length())
        prepared = np.empty((num_rows, self.size, self.size, 3), np.float32)
        for first in range(0, num_rows, batch_size):
            batch = np.asarray(images[first : first + batch_size])
            _check_range(batch)
            # Fills the last batch, since fewer rows would need another program.
            rows = np.arange(batch_size) % len(batch)
            outputs = np.asarray(_prepare(self, batch[rows]))
            prepared[first : first + batch_size] = outputs[: len(batch)]
        return prepared


@functools.partial(Jit, static_argnums=(0,))
def _prepare(settings: Preprocessing, images: jax.Array) -> jax.Array:
    x = images.astype(jnp.float32)
    x = x / 255 if jnp.issubdtype(images.dtype, jnp.integer) else x
    x = x[..., None] if x.ndim == 3 else x
    size, sides = settings.size, x.shape[1:3]
    shorter = math.floor(size / settings.crop_pct)
    resized = [shorter * side // min(sides) for side in sides]
    # Resizes and crops at once, so that only the pixels in the crop are computed.
    x = jax.image.scale_and_translate(
        x,
        (x.shape[0], size, size, x.shape[3]),
        spatial_dims=(1, 2),
        scale=jnp.array([to / side for to, side in zip(resized, sides, strict=True)]),
        translation=-jnp.array([float(round((side - size) / 2)) for side in resized]),
        method=_METHODS[settings.interpolation],
        antialias=True,
    )
    return (jnp.clip(x, 0, 1) - jnp.array(settings.mean)) / jnp.array(settings.std)


def _as_array(images: Inputs) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:
        raise DataError(
            'images: got images of several sizes, expected one array. Prepare them one by one, '
            'preprocessing(image[None]), and concatenate the results.'
        ) from error


def _check(images: Inputs) -> None:
    shape, dtype = tuple(images.shape), np.dtype(images.dtype)
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))) or 0 in shape:
        hint = ''
        if len(shape) == 4 and shape[1] in (1, 3):
            hint = ' They are channels first: pass images.transpose(0, 2, 3, 1).'
        elif len(shape) == 4 and shape[3] == 4:
            hint = ' The fourth channel is opacity: pass images[..., :3].'
        raise DataError(
            f'images: got shape {shape}, expected (n, height, width, 3), or grey (n, height, '
            f'width).{hint}'
        )
    if len(shape) == 3 and shape[2] == 3:
        raise DataError(
            f'images: got shape {shape}, which is one image or {shape[0]} grey ones 3 pixels '
            'wide. Pass images[None] or images[..., None].'
        )
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise DataError(
            f'images: got {dtype}, expected uint8 or floats from 0 to 1. Pass '
            'images.astype(np.uint8) if they are pixel values from 0 to 255.'
        )


def _check_range(batch: np.ndarray) -> None:
    if batch.dtype == np.uint8:
        return
    low, high = float(batch.min()), float(batch.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f'images: got floats from {low:.4g} to {high:.4g}, expected 0 to 1. Pass pixel '
            'values as uint8, or divide them by 255; they are standardised here.'
        )
