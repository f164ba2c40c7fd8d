"""Vision transformers: the module, its tensor names in other libraries, and its weights."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from thinkml.core.model.attention import dot_product_attention
from thinkml.errors import ConfigError, DataError
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
    linear,
    make_drop_path,
    make_dropout,
    make_head,
    rising_rates,
)
from thinkml.models.zoo.preprocessing import Preprocessing
from thinkml.models.zoo.tensor_names import Rules, TensorNames

_INIT = Init(1.0, 'mean', uniform=True)
_PATCH_INIT = Init(1.0, 'in')
_POSITION_INIT = Init(0.02**2)


class ViT(nnx.Module):
    """A transformer over the patches of an image, with a class token and learned positions.

    Blocks normalise before attention and before their dense layers (exact GELU). The normalised
    class token is the output of `features`.

    Positions are learned for images of ``image_size``. For images of another size, whose sides
    must be multiples of ``patch_size``, they are interpolated in each call. The interpolation is
    bicubic and antialiased, as in timm with ``dynamic_img_size``. Hugging Face Transformers
    interpolates without antialiasing, which differs if the image is smaller. `load_tensors`
    interpolates in the same way if a file's positions have another size than the model's.

    Args:
        patch_size: the side of a patch in pixels.
        width: the length of a token.
        depth: the number of blocks.
        num_heads: the number of attention heads of each block, which must divide ``width``.
        num_classes: the number of outputs of the head; None for no head.
        image_size: the side, in pixels, of the square images that the positions are learned for.
        in_channels: the number of channels of the images.
        dropout: the rate of dropout after dense layers, in training.
        drop_path: the rate of stochastic depth in training, which rises from 0 in the first block
            to this value in the last.
        dtype: the dtype of the computation; parameters are float32.
        rngs: random streams; ``params``, and with one of the rates also ``dropout``, are used.

    Attributes:
        num_features: the number of features per example.
        head: the last dense layer, or None.

    Raises:
        ConfigError: if ``image_size`` or ``width`` is not divisible.
        DataError: when called, if ``x`` is not a batch of such images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.models.zoo import create
        >>> model = create('vit_s16', num_classes=10)
        >>> jax.eval_shape(model, jnp.zeros((2, 240, 160, 3))).shape
        (2, 10)

    Reference:
        Dosovitskiy et al., 2020: An Image is Worth 16x16 Words
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        *,
        num_classes: int | None = 1000,
        image_size: int = 224,
        in_channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: DType | None = None,
        rngs: nnx.Rngs,
    ):
        _check_divides('image_size', image_size, 'patch_size', patch_size)
        _check_divides('width', width, 'num_heads', num_heads)
        self.patch_size, self.in_channels = patch_size, in_channels
        self.patches = conv(
            in_channels,
            width,
            (patch_size, patch_size),
            patch_size,
            padding=0,
            kernel_init=_PATCH_INIT,
            dtype=dtype,
            rngs=rngs,
        )
        num_positions = 1 + (image_size // patch_size) ** 2
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.positions = nnx.Param(_POSITION_INIT(rngs.params(), (1, num_positions, width)))
        self.dropout = make_dropout(dropout, rngs)
        self.blocks = nnx.List(
            Block(width, num_heads, dropout=dropout, drop_path=rate, dtype=dtype, rngs=rngs)
            for rate in rising_rates(drop_path, depth)
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.num_features = width
        self.head = nnx.data(make_head(width, num_classes, dtype=dtype, rngs=rngs))

    def feature_maps(self, x: jax.Array) -> list[jax.Array]:
        """Returns the patch tokens ``[batch, height, width, channels]`` after each block."""
        height, width = self._grid(x)
        return [
            tokens[:, 1:].reshape(-1, height, width, self.num_features)
            for tokens in self._tokens(x)
        ]

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the normalised class token after the last block, ``[batch, num_features]``."""
        return self.norm(self._tokens(x)[-1][:, 0])

    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_head(self.head, self.features(x))

    def _tokens(self, x: jax.Array) -> list[jax.Array]:
        """Returns the class token and the tokens of the patches, after each block."""
        grid = self._grid(x)
        patches = self.patches(x)
        tokens = patches.reshape(x.shape[0], grid[0] * grid[1], self.num_features)
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, self.num_features))
        tokens = jnp.concatenate([first.astype(tokens.dtype), tokens], axis=1)
        positions = resize_positions(self.positions[...], grid)
        tokens = self.dropout(tokens + positions.astype(tokens.dtype))
        after = []
        for block in self.blocks:
            tokens = block(tokens)
            after.append(tokens)
        return after

    def _grid(self, x: jax.Array) -> tuple[int, int]:
        check_images(x, self.in_channels)
        (height, width), size = x.shape[1:3], self.patch_size
        if height % size or width % size or not (height and width):
            fitting = [max(size, round(side / size) * size) for side in (height, width)]
            raise DataError(
                f'x: got images of {height}x{width}, expected sides that are multiples of '
                f'{size}, the side of a patch. Resize or crop them, for instance to '
                f'{fitting[0]}x{fitting[1]}.'
            )
        return height // size, width // size


class Block(nnx.Module):
    """A block of attention and dense layers, each after LayerNorm and with a residual sum."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        dropout: float,
        drop_path: float,
        dtype: DType | None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = FeedForward(
            width, 4 * width, dropout=dropout, kernel_init=_INIT, dtype=dtype, rngs=rngs
        )
        self.dropout = make_dropout(dropout, rngs)
        self.drop_path = make_drop_path(drop_path, rngs, num_axes=3)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.drop_path(self.dropout(self.attention(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SelfAttention(nnx.Module):
    """Attention between all tokens, with queries, keys and values from one matrix product."""

    def __init__(self, width: int, num_heads: int, *, dtype: DType | None, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = linear(width, 3 * width, kernel_init=_INIT, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, kernel_init=_INIT, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        heads = (batch, length, self.num_heads, width // self.num_heads)
        query, key, value = (part.reshape(heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return self.out(dot_product_attention(query, key, value).reshape(x.shape))


def resize_positions(positions: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Interpolates the positions of a square grid of patches, without that of the class token.

    Args:
        positions: ``[1, 1 + side * side, width]``.
        grid: the numbers of patches in each column and each row.

    Returns:
        ``[1, 1 + grid[0] * grid[1], width]``; ``positions`` itself if it has this grid.
    """
    side, width = math.isqrt(positions.shape[1] - 1), positions.shape[2]
    if grid == (side, side):
        return positions
    square = positions[:, 1:].reshape(1, side, side, width)
    resized = jax.image.resize(square, (1, *grid, width), 'bicubic', antialias=True)
    return jnp.concatenate([positions[:, :1], resized.reshape(1, -1, width)], axis=1)


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value < 1 or divisor < 1 or value % divisor:
        raise ConfigError(
            f'{name}: got {value} with {divisor_name}={divisor}, expected a multiple of it.'
        )


# --- tensor names of other libraries ------------------------------------------------------------

_TENSOR_RULES: Mapping[str, Rules] = {
    'timm': {
        'patches': lambda: 'patch_embed.proj',
        'class_token': lambda: 'cls_token',
        'positions': lambda: 'pos_embed',
        'blocks.#.norm#': lambda b, i: f'blocks.{b}.norm{i}',
        'blocks.#.attention.qkv': lambda b: f'blocks.{b}.attn.qkv',
        'blocks.#.attention.out': lambda b: f'blocks.{b}.attn.proj',
        'blocks.#.mlp.fc#': lambda b, i: f'blocks.{b}.mlp.fc{i}',
        'norm': lambda: 'norm',
        'head': lambda: 'head',
    },
    'torchvision': {
        'patches': lambda: 'conv_proj',
        'class_token': lambda: 'class_token',
        'positions': lambda: 'encoder.pos_embedding',
        'blocks.#.norm#': lambda b, i: f'encoder.layers.encoder_layer_{b}.ln_{i}',
        'blocks.#.attention.qkv.kernel': lambda b: (
            f'encoder.layers.encoder_layer_{b}.self_attention.in_proj_weight'
        ),
        'blocks.#.attention.qkv.bias': lambda b: (
            f'encoder.layers.encoder_layer_{b}.self_attention.in_proj_bias'
        ),
        'blocks.#.attention.out': lambda b: (
            f'encoder.layers.encoder_layer_{b}.self_attention.out_proj'
        ),
        'blocks.#.mlp.fc1': lambda b: f'encoder.layers.encoder_layer_{b}.mlp.0',
        'blocks.#.mlp.fc2': lambda b: f'encoder.layers.encoder_layer_{b}.mlp.3',
        'norm': lambda: 'encoder.ln',
        'head': lambda: 'heads.head',
    },
    'huggingface': {
        'patches': lambda: 'embeddings.patch_embeddings.projection',
        'class_token': lambda: 'embeddings.cls_token',
        'positions': lambda: 'embeddings.position_embeddings',
        'blocks.#.norm1': lambda b: f'encoder.layer.{b}.layernorm_before',
        'blocks.#.norm2': lambda b: f'encoder.layer.{b}.layernorm_after',
        'blocks.#.attention.qkv': lambda b: tuple(
            f'encoder.layer.{b}.attention.attention.{part}' for part in ('query', 'key', 'value')
        ),
        'blocks.#.attention.out': lambda b: f'encoder.layer.{b}.attention.output.dense',
        'blocks.#.mlp.fc1': lambda b: f'encoder.layer.{b}.intermediate.dense',
        'blocks.#.mlp.fc2': lambda b: f'encoder.layer.{b}.output.dense',
        'norm': lambda: 'layernorm',
        'head': lambda: 'classifier',
    },
}


# Names in files that older versions of torchvision wrote.
_OLD_NAMES = ((r'\.mlp\.linear_1\.', '.mlp.0.'), (r'\.mlp\.linear_2\.', '.mlp.3.'))

# Layers for other tasks.
_UNUSED = r'pooler\.dense\.(weight|bias)|embeddings\.mask_token'


def _positions_like(positions: np.ndarray, ours: np.ndarray | jax.Array) -> np.ndarray:
    """Interpolates the positions of a file for the grid of a model, if both grids are square."""
    grids = [math.isqrt(array.shape[1] - 1) for array in (positions, ours) if np.ndim(array) == 3]
    if (
        len(grids) < 2
        or grids[0] == grids[1]
        or (positions.shape[0], positions.shape[2]) != (1, ours.shape[2])
        or [1 + grid**2 for grid in grids] != [positions.shape[1], ours.shape[1]]
    ):
        return positions
    resized = resize_positions(jnp.asarray(positions, jnp.float32), (grids[1], grids[1]))
    return np.asarray(resized)


# --- pretrained weights -------------------------------------------------------------------------

_CENTRED = (0.5, 0.5, 0.5)
_PREPROCESSING = Preprocessing(224, 'bicubic', mean=_CENTRED, std=_CENTRED, crop_pct=0.9)


def _architecture(width: int, num_heads: int, *, sources: tuple[Source, ...]) -> Architecture:
    return Architecture(
        make=ViT,
        options={'patch_size': 16, 'width': width, 'depth': 12, 'num_heads': num_heads},
        preprocessing=_PREPROCESSING,
        sources=sources,
        tensor_names=TensorNames(
            rules=_TENSOR_RULES,
            prefix='vit',
            renamed=_OLD_NAMES,
            unused=_UNUSED,
            resize={'positions': _positions_like},
        ),
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    'vit_s16': _architecture(
        384,
        6,
        sources=(
            Source.hugging_face(
                'timm/vit_small_patch16_224.augreg_in21k_ft_in1k',
                sha256='79c03c635cdfd798a364a9d8c4e5c0b7255b975ea2c9616046d4f77ab01435aa',
                revision='7e2c55630205e1266030f18370f4c6ed1a514b52',
            ),
        ),
    ),
    'vit_b16': _architecture(
        768,
        12,
        sources=(
            Source.hugging_face(
                'timm/vit_base_patch16_224.augreg2_in21k_ft_in1k',
                sha256='32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b',
                revision='063c6c38a5d8510b2e57df480445e94b231dad2c',
            ),
        ),
    ),
}
