"""Layers that several architectures are made of."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.errors import DataError
from thinkml.models.zoo.initializers import CONV_INIT, LINEAR_INIT, zeros

DType = Any

# Flax draws zeros by a program for each shape.
linear = functools.partial(nnx.Linear, bias_init=zeros)
conv = functools.partial(nnx.Conv, bias_init=zeros)


class ConvNorm(nnx.Module):
    """A square convolution without bias, padded to keep the size, and BatchNorm as torch has it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int,
        stride: int = 1,
        *,
        dtype: DType | None,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (kernel, kernel),
            stride,
            padding=kernel // 2,
            use_bias=False,
            kernel_init=CONV_INIT,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = batch_norm(out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class FeedForward(nnx.Module):
    """Two dense layers with an exact GELU between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        kernel_init: nnx.Initializer,
        dtype: DType | None,
        rngs: nnx.Rngs,
    ):
        self.fc1 = linear(width, hidden, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.dropout = make_dropout(dropout, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.dropout(jax.nn.gelu(self.fc1(x), approximate=False))
        return self.dropout(self.fc2(hidden))


def batch_norm(num_features: int, *, dtype: DType | None, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """As in torch, whose running variance is the unbiased one, however; flax's is the biased."""
    return nnx.BatchNorm(num_features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def layer_norm(num_features: int, *, dtype: DType | None, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """The variance in two passes: in one it loses digits where the mean is large."""
    return nnx.LayerNorm(
        num_features, epsilon=1e-6, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


def make_head(
    num_features: int,
    num_classes: int | None,
    *,
    kernel_init: nnx.Initializer = LINEAR_INIT,
    dtype: DType | None,
    rngs: nnx.Rngs,
) -> nnx.Linear | None:
    """The last layer, or None for a model that returns features."""
    if num_classes is None:
        return None
    return linear(num_features, num_classes, kernel_init=kernel_init, dtype=dtype, rngs=rngs)


def make_dropout(rate: float, rngs: nnx.Rngs, *, whole_rows: int | None = None) -> nnx.Dropout:
    """Dropout, of single numbers or, with the number of axes, of whole rows (stochastic depth).

    Without a rate there is no random stream either.
    """
    broadcast = () if whole_rows is None else tuple(range(1, whole_rows))
    return nnx.Dropout(rate, broadcast_dims=broadcast, rngs=rngs.dropout if rate else None)


def rising_rates(highest: float, count: int) -> list[float]:
    """Rates of stochastic depth: 0 in the first block, the highest in the last."""
    return [highest * index / max(1, count - 1) for index in range(count)]


def apply_head(head: nnx.Linear | None, features: jax.Array) -> jax.Array:
    """Logits, or the features themselves where there is no head."""
    return features if head is None else head(features)


def check_images(x: jax.Array, channels: int, smallest: int = 1) -> None:
    """Checks the shape of a batch of images.

    Raises:
        DataError: if it is none that a model for ``channels`` channels takes.
    """
    shape = jnp.shape(x)
    expected = f'images (rows, height, width, {channels})'
    if len(shape) != 4 or shape[3] != channels:
        hint = ''
        if len(shape) == 4 and shape[1] == channels:
            hint = ' They are channels first: pass x.transpose(0, 2, 3, 1).'
        elif len(shape) == 4 and shape[3] == 1:
            hint = f' Repeat the grey channel: x.repeat({channels}, axis=-1).'
        elif len(shape) == 3:
            hint = ' Add the axis that is missing: x[None] for one image, x[..., None] for grey.'
        raise DataError(f'x: got shape {shape}, expected {expected}.{hint}')
    if min(shape[1:3]) < smallest:
        raise DataError(
            f'x: got images of {shape[1]}x{shape[2]}, expected at least {smallest}x{smallest}: '
            'each stage halves them. Resize them first.'
        )
