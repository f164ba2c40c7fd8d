"""ResNet, version 1.5: the module, its tensor names in other libraries, and its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.models.pretrained.weight_sources import Source
from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.layers import ConvNorm, DType, apply_head, check_images, make_head
from thinkml.models.zoo.preprocessing import Preprocessing
from thinkml.models.zoo.tensor_names import Rules, TensorNames

_POOL_PADDING: Any = ((1, 1), (1, 1))  # flax's annotation allows only names


class ResNet(nnx.Module):
    """A residual network for images, as torchvision builds it.

    It has a stem (a 7x7 convolution of stride 2, then 3x3 max-pooling of stride 2) and four stages
    of residual blocks. Each stage halves the height and width of the one before. Version 1.5 means
    that a bottleneck block halves the image in its 3x3 convolution, not in its first 1x1
    convolution. Padding is torch's: equal on both sides, while ``'SAME'`` would pad one side more.
    Images may have any size from 32x32 and any aspect ratio.

    In training, BatchNorm's running variance is the biased one; torch stores the unbiased one.

    Args:
        depths: the number of blocks of each stage.
        bottleneck: True for blocks of three convolutions (1x1, 3x3, 1x1) instead of two 3x3.
        num_classes: the number of outputs of the head; None for no head.
        in_channels: the number of channels of the images.
        dtype: the dtype of the computation; parameters and statistics are float32.
        rngs: random streams; ``params`` is used.

    Attributes:
        num_features: the number of features per example.
        head: the last dense layer, or None.

    Raises:
        DataError: when called, if ``x`` is not a batch of such images.

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
        """Returns the maps ``[batch, height, width, channels]`` after each stage."""
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
        """Returns the means of the last maps, ``[batch, num_features]``."""
        return jnp.mean(self.feature_maps(x)[-1], axis=(1, 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_head(self.head, self.features(x))


class ResidualBlock(nnx.Module):
    """A block of two or three convolutions whose output is added to its input."""

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


# --- tensor names of other libraries ------------------------------------------------------------

_TENSOR_RULES: Mapping[str, Rules] = {
    'torchvision': {
        'stem.conv': lambda: 'conv1',
        'stem.norm': lambda: 'bn1',
        'stages.#.#.layers.#.conv': lambda s, b, i: f'layer{s + 1}.{b}.conv{i + 1}',
        'stages.#.#.layers.#.norm': lambda s, b, i: f'layer{s + 1}.{b}.bn{i + 1}',
        'stages.#.#.shortcut.conv': lambda s, b: f'layer{s + 1}.{b}.downsample.0',
        'stages.#.#.shortcut.norm': lambda s, b: f'layer{s + 1}.{b}.downsample.1',
        'head': lambda: 'fc',
    },
    'huggingface': {
        'stem.conv': lambda: 'embedder.embedder.convolution',
        'stem.norm': lambda: 'embedder.embedder.normalization',
        'stages.#.#.layers.#.conv': lambda s, b, i: (
            f'encoder.stages.{s}.layers.{b}.layer.{i}.convolution'
        ),
        'stages.#.#.layers.#.norm': lambda s, b, i: (
            f'encoder.stages.{s}.layers.{b}.layer.{i}.normalization'
        ),
        'stages.#.#.shortcut.conv': lambda s, b: (
            f'encoder.stages.{s}.layers.{b}.shortcut.convolution'
        ),
        'stages.#.#.shortcut.norm': lambda s, b: (
            f'encoder.stages.{s}.layers.{b}.shortcut.normalization'
        ),
        'head': lambda: 'classifier.1',
    },
}


# --- pretrained weights -------------------------------------------------------------------------

# The preprocessing of timm's files, which are the ones that may be downloaded.
_PREPROCESSING = Preprocessing(224, 'bicubic', crop_pct=0.95)


def _architecture(
    depths: tuple[int, ...], *, bottleneck: bool, sources: tuple[Source, ...]
) -> Architecture:
    return Architecture(
        make=ResNet,
        options={'depths': depths, 'bottleneck': bottleneck},
        preprocessing=_PREPROCESSING,
        sources=sources,
        tensor_names=TensorNames(rules=_TENSOR_RULES, prefix='resnet'),
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    'resnet18': _architecture(
        (2, 2, 2, 2),
        bottleneck=False,
        sources=(
            Source.hugging_face(
                'timm/resnet18.a1_in1k',
                sha256='80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612',
                revision='491b427b45c94c7fb0e78b5474cc919aff584bbf',
            ),
            Source.torchvision('resnet18', 'f37072fd'),
        ),
    ),
    'resnet34': _architecture(
        (3, 4, 6, 3),
        bottleneck=False,
        sources=(
            Source.hugging_face(
                'timm/resnet34.a1_in1k',
                sha256='829a220f9529d2b1ffdc8719d3273463001e0daf411eaf1916865d9db62c0ed2',
            ),
            Source.torchvision('resnet34', 'b627a593'),
        ),
    ),
    'resnet50': _architecture(
        (3, 4, 6, 3),
        bottleneck=True,
        sources=(
            Source.hugging_face(
                'timm/resnet50.a1_in1k',
                sha256='773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb',
                revision='767268603ca0cb0bfe326fa87277f19c419566ef',
            ),
            Source.torchvision('resnet50', '11ad3fa6'),
            Source.torchvision('resnet50', '0676ba61'),
            Source.hugging_face('microsoft/resnet-50'),
        ),
    ),
    'resnet101': _architecture(
        (3, 4, 23, 3),
        bottleneck=True,
        sources=(
            Source.torchvision('resnet101', 'cd907fc2'),
            Source.torchvision('resnet101', '63fe2227'),
        ),
    ),
    'resnet152': _architecture(
        (3, 8, 36, 3),
        bottleneck=True,
        sources=(
            Source.torchvision('resnet152', 'f82ba261'),
            Source.torchvision('resnet152', '394f9c45'),
        ),
    ),
}
