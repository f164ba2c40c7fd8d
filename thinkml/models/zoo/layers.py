"""Layers that several architectures share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.errors import DataError
from thinkml.models.zoo.initializers import CONV_INIT, LINEAR_INIT, zeros

DType = Any

# Flax compiles a program for zeros of each shape.
linear = functools.partial(nnx.Linear, bias_init=zeros)
conv = functools.partial(nnx.Conv, bias_init=zeros)


class ConvNorm(nnx.Module):
    """A square convolution without bias, padded to keep the size, and torch's BatchNorm."""

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
    """Returns BatchNorm with torch's settings.

    The running variance differs: torch keeps the unbiased one, flax the biased one.
    """
    return nnx.BatchNorm(num_features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def layer_norm(num_features: int, *, dtype: DType | None, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns LayerNorm that computes the variance in two passes.

    Computed in one pass, it loses digits if the mean is large.
    """
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
    """Returns the last layer, or None for a model that returns features."""
    if num_classes is None:
        return None
    return linear(num_features, num_classes, kernel_init=kernel_init, dtype=dtype, rngs=rngs)


def make_dropout(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Returns dropout of single numbers. With a rate of 0 it has no random stream."""
    return nnx.Dropout(rate, rngs=rngs.dropout if rate else None)


def make_drop_path(rate: float, rngs: nnx.Rngs, num_axes: int) -> nnx.Dropout:
    """Returns dropout of entire examples (stochastic depth), for inputs with ``num_axes`` axes.

    With a rate of 0 it has no random stream.
    """
    shared_axes = tuple(range(1, num_axes))
    return nnx.Dropout(rate, broadcast_dims=shared_axes, rngs=rngs.dropout if rate else None)


def rising_rates(highest: float, count: int) -> list[float]:
    """Returns rates of stochastic depth that rise from 0 in the first block to the highest."""
    return [highest * index / max(1, count - 1) for index in range(count)]


def apply_head(head: nnx.Linear | None, features: jax.Array) -> jax.Array:
    """Returns logits, or the features themselves if there is no head."""
    return features if head is None else head(features)


def check_images(x: jax.Array, channels: int, smallest: int = 1) -> None:
    """Checks the shape of a batch of images.

    Raises:
        DataError: if a model for images with ``channels`` channels does not take this shape.
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
            hint = ' Add the missing axis: x[None] for one image, x[..., None] for grey ones.'
        raise DataError(f'x: got shape {shape}, expected {expected}.{hint}')
    if min(shape[1:3]) < smallest:
        raise DataError(
            f'x: got images of {shape[1]}x{shape[2]}, expected at least {smallest}x{smallest}: '
            'each stage halves them. Resize them first.'
        )
