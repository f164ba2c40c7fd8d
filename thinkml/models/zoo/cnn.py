"""CNN: a small convolutional network."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.layers import (
    ConvNorm,
    DType,
    apply_head,
    check_images,
    make_dropout,
    make_head,
)


class CNN(nnx.Module):
    """A convolutional network for small images such as 28x28 or 32x32.

    Each stage has two 3x3 convolutions with BatchNorm and ReLU, and 2x2 max-pooling. The features
    are the means of the last maps, so images of any size fit, with three stages from 8x8.

    Args:
        in_channels: the number of channels of the images; 1 for grey ones.
        widths: the number of channels of each stage.
        num_classes: the number of outputs of the head; None for no head.
        dropout: the rate of dropout before the head, in training.
        dtype: the dtype of the computation; parameters and statistics are float32.
        rngs: random streams; ``params``, and with a rate also ``dropout``, are used.

    Attributes:
        num_features: the number of features per example.
        head: the last dense layer, or None.

    Raises:
        DataError: when called, if ``x`` is not a batch of such images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.models.zoo import create
        >>> model = create('cnn', num_classes=10, in_channels=1)
        >>> model.eval()
        >>> jax.eval_shape(model, jnp.zeros((2, 28, 28, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128),
        *,
        num_classes: int | None,
        dropout: float = 0.0,
        dtype: DType | None = None,
        rngs: nnx.Rngs,
    ):
        self.in_channels = in_channels
        self.stages = nnx.List(
            nnx.List(
                ConvNorm(features, width, 3, dtype=dtype, rngs=rngs) for features in (before, width)
            )
            for before, width in itertools.pairwise((in_channels, *widths))
        )
        self.dropout = make_dropout(dropout, rngs)
        self.num_features = widths[-1]
        self.head = nnx.data(make_head(self.num_features, num_classes, dtype=dtype, rngs=rngs))

    def feature_maps(self, x: jax.Array) -> list[jax.Array]:
        """Returns the maps ``[batch, height, width, channels]`` after each stage."""
        check_images(x, self.in_channels, 2 ** len(self.stages))
        maps = []
        for stage in self.stages:
            for layer in stage:
                x = nnx.relu(layer(x))
            x = nnx.max_pool(x, (2, 2), (2, 2))
            maps.append(x)
        return maps

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the means of the last maps, ``[batch, num_features]``."""
        return self.dropout(jnp.mean(self.feature_maps(x)[-1], axis=(1, 2)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_head(self.head, self.features(x))


ARCHITECTURES: Mapping[str, Architecture] = {'cnn': Architecture(CNN)}
