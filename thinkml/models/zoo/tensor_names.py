"""What other libraries call the tensors of our models, and how they are laid out.

A rule leads from a path of ours, with ``#`` for each number, to their name. It is given the
numbers. A rule for a module holds for its arrays, whose last names are the same everywhere;
where a rule returns several names, ours is their concatenation.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from thinkml.models.zoo.convnext import ConvNeXt
from thinkml.models.zoo.resnet import ResNet
from thinkml.models.zoo.vit import ViT

Rules = Mapping[str, Callable[..., str | tuple[str, ...]]]
OURS = 'thinkml'

_LAST_NAMES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}

# What is said in front of all names, and what names were in older versions.
_RENAMED = (
    (r'^(module|model)\.', ''),
    (r'^(resnet|convnext|vit)\.', ''),
    (r'\.mlp\.linear_1\.', '.mlp.0.'),
    (r'\.mlp\.linear_2\.', '.mlp.3.'),
)

# What files hold besides weights that are used: counters, and layers for other tasks.
_HARMLESS = (
    r'(.*\.)?num_batches_tracked|(.*\.)?rngs\.count|'
    r'pooler\.dense\.(weight|bias)|embeddings\.mask_token'
)

_RESNET: Mapping[str, Rules] = {
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

_CONVNEXT: Mapping[str, Rules] = {
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

_VIT: Mapping[str, Rules] = {
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

_FAMILIES = {ResNet: _RESNET, ConvNeXt: _CONVNEXT, ViT: _VIT}


def layouts_of(model: nnx.Module) -> Mapping[str, Rules]:
    """The layouts that are known for a model, by name. Ours, which needs no rules, is always."""
    return {OURS: {}, **_FAMILIES.get(type(model), {})}


def names_in(layout: str, rules: Rules, path: str) -> tuple[str, ...]:
    """What an array of ours is called in a layout: its name, or those of its parts."""
    if layout == OURS:
        return (path,)
    module, _, last = path.rpartition('.')
    for key, ending in ((path, ''), (module, f'.{_LAST_NAMES.get(last)}')):
        for pattern, rule in rules.items():
            match = re.fullmatch(re.escape(pattern).replace(r'\#', r'(\d+)'), key)
            if match:
                found = rule(*map(int, match.groups()))
                names = (found,) if isinstance(found, str) else found
                return tuple(name + ending for name in names)
    raise KeyError(f'{layout} has no rule for {path}')


def shape_in(layout: str, path: str, shape: tuple[int, ...], num_parts: int) -> tuple[int, ...]:
    """The shape of each part of an array of ours in a layout."""
    if layout == OURS:
        return shape
    if _is_kernel(path):
        shape = (*reversed(shape[-2:]), *shape[:-2])
    return (shape[0] // num_parts, *shape[1:])


def convert(layout: str, path: str, parts: list[np.ndarray]) -> np.ndarray:
    """An array as we lay it out: convolutions HWIO for OIHW, dense layers ``[in, out]``."""
    array = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if layout == OURS or not _is_kernel(path):
        return array
    order = (*range(2, array.ndim), 1, 0)
    return array.transpose(order)


def tidy(name: str) -> str:
    """A name of a file as the rules have it."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def is_harmless(name: str) -> bool:
    """Whether a tensor of this name may be left out."""
    return re.fullmatch(_HARMLESS, name) is not None


def _is_kernel(path: str) -> bool:
    return path.rpartition('.')[2] == 'kernel'


def squeezed(shape: Any) -> tuple[int, ...]:
    """A shape without the ones at its end: torch's scale of channels is ``[C, 1, 1]``."""
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
