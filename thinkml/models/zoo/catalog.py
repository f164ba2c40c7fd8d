"""The architectures by name."""

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from thinkml.errors import ConfigError, is_whole, unknown_name
from thinkml.models.zoo.cnn import CNN
from thinkml.models.zoo.convnext import ConvNeXt
from thinkml.models.zoo.initializers import HostRngs
from thinkml.models.zoo.layers import DType
from thinkml.models.zoo.mlp import MLP
from thinkml.models.zoo.preprocessing import Preprocessing
from thinkml.models.zoo.resnet import ResNet
from thinkml.models.zoo.tabular_resnet import ResidualMLP
from thinkml.models.zoo.vit import ViT

_CENTRED = (0.5, 0.5, 0.5)
_RESNET = Preprocessing(224, 'bicubic', crop_pct=0.95)  # of those that timm trained
_CONVNEXT = Preprocessing(224, 'bicubic')
_VIT = Preprocessing(224, 'bicubic', _CENTRED, _CENTRED, crop_pct=0.9)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One row of the catalog.

    Attributes:
        make: the class.
        options: what it is called with, unless the user says otherwise.
        preprocessing: of the images it is pretrained on; None if there are no such weights.
    """

    make: type[Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Preprocessing | None = None


def _resnet(depths: tuple[int, ...], *, bottleneck: bool) -> Architecture:
    return Architecture(ResNet, {'depths': depths, 'bottleneck': bottleneck}, _RESNET)


def _vit(width: int, num_heads: int) -> Architecture:
    options = {'patch_size': 16, 'width': width, 'depth': 12, 'num_heads': num_heads}
    return Architecture(ViT, options, _VIT)


ARCHITECTURES: Mapping[str, Architecture] = {
    'mlp': Architecture(MLP),
    'residual_mlp': Architecture(ResidualMLP),
    'cnn': Architecture(CNN),
    'resnet18': _resnet((2, 2, 2, 2), bottleneck=False),
    'resnet34': _resnet((3, 4, 6, 3), bottleneck=False),
    'resnet50': _resnet((3, 4, 6, 3), bottleneck=True),
    'resnet101': _resnet((3, 4, 23, 3), bottleneck=True),
    'resnet152': _resnet((3, 8, 36, 3), bottleneck=True),
    'convnext_tiny': Architecture(ConvNeXt, {}, _CONVNEXT),
    'vit_s16': _vit(384, 6),
    'vit_b16': _vit(768, 12),
}


def list_models() -> list[str]:
    """Returns the names that `create` knows.

    Example:
        >>> from thinkml.models.zoo import list_models
        >>> 'resnet50' in list_models()
        True
    """
    return list(ARCHITECTURES)


def get_preprocessing(name: str) -> Preprocessing | None:
    """Returns how images are prepared for an architecture's pretrained weights.

    Args:
        name: one of `list_models`.

    Returns:
        The preprocessing, or None for architectures without pretrained weights.

    Raises:
        ConfigError: for an unknown name.

    Example:
        >>> from thinkml.models.zoo import get_preprocessing
        >>> get_preprocessing('vit_s16').mean
        (0.5, 0.5, 0.5)
    """
    return _architecture(name).preprocessing


def create(
    name: str,
    num_classes: int | Literal['auto'] | None = 'auto',
    *,
    weights: str | os.PathLike[str] | None = None,
    dtype: DType | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Creates a model.

    Args:
        name: one of `list_models`.
        num_classes: outputs of the head: the number of classes, or of numbers to predict. None
            for a model that returns features. ``'auto'`` is 1000, the classes of ImageNet, for
            architectures with pretrained weights; the others need a number.
        weights: None for random ones; ``'auto'`` for pretrained ones if they can be found or
            downloaded, and a warning if not; ``'required'`` to make that an error; or the path of
            a file. With weights the model is in eval mode. Where the file's head has another
            number of classes, the model's keeps its random weights.
        dtype: what the model computes in, ``'bfloat16'`` for instance; parameters are float32.
        seed: of the random weights, and of dropout. They are the same on every device, and others
            than those that the class draws from ``nnx.Rngs``.
        **options: of the class: ``in_features`` of a table, ``in_channels`` and ``image_size`` of
            images, rates of dropout.

    Returns:
        A `flax.nnx.Module`: ``model(x)`` are logits, ``model.features(x)`` what the head gets,
        ``model.feature_maps(x)``, for images, the maps after each stage.

    Raises:
        ConfigError: for an unknown name or option.
        WeightsError: if weights don't fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.models.zoo import create
        >>> model = create('mlp', num_classes=3, in_features=8)
        >>> model(jnp.zeros((2, 8))).shape
        (2, 3)
        >>> create('resnet8')
        Traceback (most recent call last):
            ...
        thinkml.errors.ConfigError: name: got 'resnet8', ... Did you mean 'resnet18'?
    """
    from thinkml.models.pretrained import check_weights, load_pretrained  # which import the zoo

    architecture = _architecture(name)
    options = _checked_options(name, architecture, options)
    num_outputs = _checked_num_classes(name, architecture, num_classes)
    if not is_whole(seed) or seed < 0:
        raise ConfigError(f'seed: got {seed!r}, expected a whole number from 0.')
    check_weights(weights)
    model = architecture.make(
        **options, num_classes=num_outputs, dtype=_checked_dtype(dtype), rngs=HostRngs(int(seed))
    )
    if weights is not None:
        load_pretrained(model, name, weights)
    return model


def _architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise ConfigError(unknown_name('name', name, ARCHITECTURES))
    return ARCHITECTURES[name]


def _checked_num_classes(name: str, architecture: Architecture, num_classes: Any) -> int | None:
    if num_classes is None or (is_whole(num_classes) and num_classes >= 1):
        return num_classes
    if num_classes == 'auto' and architecture.preprocessing:
        return 1000
    got = 'nothing' if num_classes == 'auto' else repr(num_classes)
    raise ConfigError(
        f'num_classes: got {got} for {name}, expected the number of classes or outputs, or None '
        'for a model without a head.'
    )


def _checked_options(
    name: str, architecture: Architecture, options: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(architecture.make.__init__).parameters
    known = [key for key in parameters if key not in ('self', 'num_classes', 'dtype', 'rngs')]
    for key in options:
        if key not in known:
            raise ConfigError(unknown_name(f'options of {name}', key, known))
    merged = {**architecture.options, **options}
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and key not in merged:
            raise ConfigError(
                f'{key}: got nothing for {name}, expected a number: create({name!r}, {key}=...).'
            )
    return merged


def _checked_dtype(dtype: DType | None) -> Any:
    if dtype is None:
        return None
    try:
        checked = jnp.dtype(dtype)
    except TypeError:
        checked = np.dtype(object)
    if not jnp.issubdtype(checked, jnp.floating):
        raise ConfigError(f"dtype: got {dtype!r}, expected 'float32' or 'bfloat16'.")
    return checked
