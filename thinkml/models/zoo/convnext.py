"""ConvNeXt: the module, its tensor names in other libraries, and its weights."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.models.pretrained.weight_sources import Source
from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.initializers import Init
from thinkml.models.zoo.layers import (
    DType,
    FeedForward,
    apply_head,
    check_images,
    conv,
    layer_norm,
    make_drop_path,
    make_head,
    rising_rates,
)
from thinkml.models.zoo.preprocessing import Preprocessing
from thinkml.models.zoo.tensor_names import Rules, TensorNames

_INIT = Init(0.02**2)


class ConvNeXt(nnx.Module):
    """A convolutional network for images, built with the choices of transformers.

    The stem is a 4x4 convolution of stride 4; four stages of blocks follow. A block has a depthwise
    7x7 convolution, LayerNorm, and two dense layers with an exact GELU; its output is scaled and
    added to its input. Stages are joined by LayerNorm and a 2x2 convolution of stride 2. Images may
    have any size from 32x32; rows and columns of pixels that fill only a part of a patch are left
    out, as in torch.

    Args:
        depths: the number of blocks of each stage.
        widths: the number of channels of each stage.
        num_classes: the number of outputs of the head; None for no head.
        in_channels: the number of channels of the images.
        drop_path: the rate of stochastic depth in training, which rises from 0 in the first block
            to this value in the last.
        layer_scale: the initial scale of each block's output.
        dtype: the dtype of the computation; parameters are float32.
        rngs: random streams; ``params``, and with ``drop_path`` also ``dropout``, are used.

    Attributes:
        num_features: the number of features per example.
        head: the last dense layer, or None.

    Raises:
        DataError: when called, if ``x`` is not a batch of such images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.models.zoo import create
        >>> model = create('convnext_tiny', num_classes=10)
        >>> jax.eval_shape(model, jnp.zeros((2, 224, 224, 3))).shape, model.num_features
        ((2, 10), 768)

    Reference:
        Liu, Mao, Wu, Feichtenhofer, Darrell, Xie, 2022: A ConvNet for the 2020s
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        *,
        num_classes: int | None = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
        dtype: DType | None = None,
        rngs: nnx.Rngs,
    ):
        self.in_channels = in_channels
        self.smallest = 4 * 2 ** (len(depths) - 1)
        self.stem = Stem(in_channels, widths[0], dtype=dtype, rngs=rngs)
        self.stages = nnx.List()
        rates = iter(rising_rates(drop_path, sum(depths)))
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            before = widths[stage - 1] if stage else None
            blocks = [
                Block(width, layer_scale=layer_scale, drop_path=next(rates), dtype=dtype, rngs=rngs)
                for _ in range(depth)
            ]
            self.stages.append(Stage(before, width, blocks, dtype=dtype, rngs=rngs))
        self.num_features = widths[-1]
        self.norm = layer_norm(self.num_features, dtype=dtype, rngs=rngs)
        self.head = nnx.data(
            make_head(self.num_features, num_classes, kernel_init=_INIT, dtype=dtype, rngs=rngs)
        )

    def feature_maps(self, x: jax.Array) -> list[jax.Array]:
        """Returns the maps ``[batch, height, width, channels]`` after each stage."""
        check_images(x, self.in_channels, self.smallest)
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the normalised means of the last maps, ``[batch, num_features]``."""
        return self.norm(jnp.mean(self.feature_maps(x)[-1], axis=(1, 2)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_head(self.head, self.features(x))


class Stem(nnx.Module):
    """The embedding of patches of 4x4 pixels, followed by normalisation."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DType | None, rngs: nnx.Rngs):
        self.conv = _patches(in_features, out_features, 4, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Downsample(nnx.Module):
    """Normalisation, followed by a convolution that joins patches of 2x2 positions."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DType | None, rngs: nnx.Rngs):
        self.norm = layer_norm(in_features, dtype=dtype, rngs=rngs)
        self.conv = _patches(in_features, out_features, 2, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class Stage(nnx.Module):
    """A stage of blocks, after a layer that halves the maps unless the stage is the first."""

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        blocks: Sequence['Block'],
        *,
        dtype: DType | None,
        rngs: nnx.Rngs,
    ):
        self.downsample = (
            None
            if in_features is None
            else Downsample(in_features, out_features, dtype=dtype, rngs=rngs)
        )
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    """A block with a depthwise convolution, and dense layers over the channels."""

    def __init__(
        self,
        width: int,
        *,
        layer_scale: float,
        drop_path: float,
        dtype: DType | None,
        rngs: nnx.Rngs,
    ):
        self.depthwise = conv(
            width,
            width,
            (7, 7),
            padding=3,
            feature_group_count=width,
            kernel_init=_INIT,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = FeedForward(width, 4 * width, kernel_init=_INIT, dtype=dtype, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full((width,), layer_scale))
        self.drop_path = make_drop_path(drop_path, rngs, num_axes=4)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.mlp(self.norm(self.depthwise(x)))
        return x + self.drop_path(y * self.layer_scale[...].astype(y.dtype))


def _patches(
    in_features: int, out_features: int, size: int, *, dtype: DType | None, rngs: nnx.Rngs
) -> nnx.Conv:
    return conv(
        in_features,
        out_features,
        (size, size),
        size,
        padding=0,
        kernel_init=_INIT,
        dtype=dtype,
        rngs=rngs,
    )


# --- tensor names of other libraries ------------------------------------------------------------

_TENSOR_RULES: Mapping[str, Rules] = {
    'timm': {
        'stem.conv': lambda: 'stem.0',
        'stem.norm': lambda: 'stem.1',
        'stages.#.downsample.norm': lambda s: f'stages.{s}.downsample.0',
        'stages.#.downsample.conv': lambda s: f'stages.{s}.downsample.1',
        'stages.#.blocks.#.depthwise': lambda s, b: f'stages.{s}.blocks.{b}.conv_dw',
        'stages.#.blocks.#.norm': lambda s, b: f'stages.{s}.blocks.{b}.norm',
        'stages.#.blocks.#.mlp.fc#': lambda s, b, i: f'stages.{s}.blocks.{b}.mlp.fc{i}',
        'stages.#.blocks.#.layer_scale': lambda s, b: f'stages.{s}.blocks.{b}.gamma',
        'norm': lambda: 'head.norm',
        'head': lambda: 'head.fc',
    },
    'torchvision': {
        'stem.conv': lambda: 'features.0.0',
        'stem.norm': lambda: 'features.0.1',
        'stages.#.downsample.norm': lambda s: f'features.{2 * s}.0',
        'stages.#.downsample.conv': lambda s: f'features.{2 * s}.1',
        'stages.#.blocks.#.depthwise': lambda s, b: f'features.{2 * s + 1}.{b}.block.0',
        'stages.#.blocks.#.norm': lambda s, b: f'features.{2 * s + 1}.{b}.block.2',
        'stages.#.blocks.#.mlp.fc1': lambda s, b: f'features.{2 * s + 1}.{b}.block.3',
        'stages.#.blocks.#.mlp.fc2': lambda s, b: f'features.{2 * s + 1}.{b}.block.5',
        'stages.#.blocks.#.layer_scale': lambda s, b: f'features.{2 * s + 1}.{b}.layer_scale',
        'norm': lambda: 'classifier.0',
        'head': lambda: 'classifier.2',
    },
    'huggingface': {
        'stem.conv': lambda: 'embeddings.patch_embeddings',
        'stem.norm': lambda: 'embeddings.layernorm',
        'stages.#.downsample.norm': lambda s: f'encoder.stages.{s}.downsampling_layer.0',
        'stages.#.downsample.conv': lambda s: f'encoder.stages.{s}.downsampling_layer.1',
        'stages.#.blocks.#.depthwise': lambda s, b: f'encoder.stages.{s}.layers.{b}.dwconv',
        'stages.#.blocks.#.norm': lambda s, b: f'encoder.stages.{s}.layers.{b}.layernorm',
        'stages.#.blocks.#.mlp.fc#': lambda s, b, i: f'encoder.stages.{s}.layers.{b}.pwconv{i}',
        'stages.#.blocks.#.layer_scale': lambda s, b: (
            f'encoder.stages.{s}.layers.{b}.layer_scale_parameter'
        ),
        'norm': lambda: 'layernorm',
        'head': lambda: 'classifier',
    },
}


# --- pretrained weights -------------------------------------------------------------------------

ARCHITECTURES: Mapping[str, Architecture] = {
    'convnext_tiny': Architecture(
        make=ConvNeXt,
        preprocessing=Preprocessing(224, 'bicubic'),
        sources=(
            Source.hugging_face(
                'timm/convnext_tiny.fb_in1k',
                sha256='08b9dc9c3a3a29421de7996761e176501896d1ae7fc3085cf56a643772329276',
                revision='b43a6303c9fcf176d2d707478a128c2c91e93528',
            ),
            Source.torchvision('convnext_tiny', '983f1562'),
            Source.hugging_face('facebook/convnext-tiny-224'),
        ),
        tensor_names=TensorNames(rules=_TENSOR_RULES, prefix='convnext'),
    ),
}
