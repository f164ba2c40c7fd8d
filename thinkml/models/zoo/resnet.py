"""ResNet, version 1.5."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.models.zoo.layers import ConvNorm, DType, apply_head, check_images, make_head

_POOL_PADDING: Any = ((1, 1), (1, 1))  # flax's annotation knows names alone


class ResNet(nnx.Module):
    """A residual network for images, as torchvision builds it.

    A stem (a 7x7 convolution of stride 2, then 3x3 max-pooling of stride 2) and four stages of
    residual blocks, each of half the height and width of the one before. ``1.5`` means that a
    bottleneck block halves the image in its 3x3 convolution, not in its first 1x1. Paddings are
    torch's: the same on both sides, where ``'SAME'`` would pad one side more. All images of
    32x32 and more fit, of any proportion.

    In training, BatchNorm's running variance is the biased one; torch stores the unbiased.

    Args:
        depths: the number of blocks of each stage.
        bottleneck: blocks of three convolutions (1x1, 3x3, 1x1) in place of two 3x3.
        num_classes: outputs of the head; None for no head.
        in_channels: of the images.
        dtype: what it computes in; parameters and statistics are float32.
        rngs: random streams; ``params`` is used.

    Attributes:
        num_features: the length of a row of features.
        head: the last dense layer, or None.

    Raises:
        DataError: when called, if ``x`` is no batch of such images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.models.zoo import create
        >>> model = create('resnet18', num_classes=10)
        >>> model.eval()
        >>> x = jnp.zeros((2, 224, 224, 3))
        >>> [maps.shape for maps in jax.eval_shape(model.feature_maps, x)][-1]
        (2, 7, 7, 512)

    Reference:
        He, Zhang, Ren, Sun, 2015: Deep Residual Learning for Image Recognition
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        bottleneck: bool,
        num_classes: int | None = 1000,
        in_channels: int = 3,
        dtype: DType | None = None,
        rngs: nnx.Rngs,
    ):
        self.in_channels = in_channels
        self.stem = ConvNorm(in_channels, 64, 7, 2, dtype=dtype, rngs=rngs)
        self.stages = nnx.List()
        num_features = 64
        for stage, depth in enumerate(depths):
            blocks = nnx.List()
            for index in range(depth):
                blocks.append(
                    ResidualBlock(
                        num_features,
                        width=64 * 2**stage,
                        stride=2 if stage > 0 and index == 0 else 1,
                        bottleneck=bottleneck,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                num_features = 64 * 2**stage * (4 if bottleneck else 1)
            self.stages.append(blocks)
        self.num_features = num_features
        self.head = nnx.data(make_head(num_features, num_classes, dtype=dtype, rngs=rngs))

    def feature_maps(self, x: jax.Array) -> list[jax.Array]:
        """The maps ``[batch, height, width, channels]`` after each stage."""
        check_images(x, self.in_channels)
        x = nnx.relu(self.stem(x))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=_POOL_PADDING)
        maps = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return maps

    def features(self, x: jax.Array) -> jax.Array:
        """The last maps' means, ``[batch, num_features]``."""
        return jnp.mean(self.feature_maps(x)[-1], axis=(1, 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_head(self.head, self.features(x))


class ResidualBlock(nnx.Module):
    """Two or three convolutions, added to their input."""

    def __init__(
        self,
        in_features: int,
        *,
        width: int,
        stride: int,
        bottleneck: bool,
        dtype: DType | None,
        rngs: nnx.Rngs,
    ):
        layers = ((1, width, 1), (3, width, stride), (1, 4 * width, 1))
        if not bottleneck:
            layers = ((3, width, stride), (3, width, 1))
        self.layers, features = nnx.List(), in_features
        for kernel, out_features, layer_stride in layers:
            self.layers.append(
                ConvNorm(features, out_features, kernel, layer_stride, dtype=dtype, rngs=rngs)
            )
            features = out_features
        is_same = stride == 1 and in_features == features
        self.shortcut = (
            None if is_same else ConvNorm(in_features, features, 1, stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.layers
        y = x
        for layer in hidden:
            y = nnx.relu(layer(y))
        return nnx.relu(last(y) + (x if self.shortcut is None else self.shortcut(x)))
