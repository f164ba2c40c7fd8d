"""Creation of models by name, with random or pretrained weights."""

import inspect
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from thinkml.errors import ConfigError, is_whole, unknown_name
from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.catalog import architecture_of
from thinkml.models.zoo.initializers import HostRngs
from thinkml.models.zoo.layers import DType
from thinkml.models.zoo.pretrained_weights import check_weights, load_pretrained
from thinkml.typing import Model


def create(
    name: str,
    num_classes: int | Literal['auto'] | None = 'auto',
    *,
    weights: str | os.PathLike[str] | None = None,
    dtype: DType | None = None,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Creates a model.

    Args:
        name: one of `list_models`.
        num_classes: the number of outputs of the head: the classes, or the numbers to predict. None
            makes a model that returns features. ``'auto'`` means 1000, the classes of ImageNet, for
            architectures with pretrained weights; the others need a number.
        weights: None for random weights; ``'auto'`` for pretrained ones if they can be found or
            downloaded, and a warning if not; ``'required'`` to make that an error; or the path of
            a file. A model with loaded weights is in eval mode. If the head in the file has another
            number of classes, the model's head keeps its random weights.
        dtype: the dtype of the computation, for instance ``'bfloat16'``; parameters are float32.
        seed: the seed of the random weights and of dropout. The weights are the same on every
            device, but differ from those that the class itself draws from ``nnx.Rngs``.
        **options: arguments of the class: ``in_features`` of a table, ``in_channels`` and
            ``image_size`` of images, dropout rates.

    Returns:
        A `flax.nnx.Module`. ``model(x)`` returns logits and ``model.features(x)`` the inputs of the
        head. For images, ``model.feature_maps(x)`` returns the maps after each stage.

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
    architecture = architecture_of(name)
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
    allowed = [key for key in parameters if key not in ('self', 'num_classes', 'dtype', 'rngs')]
    for key in options:
        if key not in allowed:
            raise ConfigError(unknown_name(f'options of {name}', key, allowed))
    merged = {**architecture.options, **options}
    for key in allowed:
        if parameters[key].default is inspect.Parameter.empty and key not in merged:
            raise ConfigError(
                f'{key}: got nothing for {name}, expected a number: create({name!r}, {key}=...).'
            )
    return merged


def _checked_dtype(dtype: DType | None) -> np.dtype | None:
    if dtype is None:
        return None
    try:
        checked = jnp.dtype(dtype)
    except TypeError:
        checked = np.dtype(object)
    if not jnp.issubdtype(checked, jnp.floating):
        raise ConfigError(f"dtype: got {dtype!r}, expected 'float32' or 'bfloat16'.")
    return checked
