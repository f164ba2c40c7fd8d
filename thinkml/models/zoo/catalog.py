"""The catalog: all architectures by name, collected from the files that define them."""

from collections.abc import Sequence

from flax import nnx

from thinkml.errors import ConfigError, unknown_name
from thinkml.models.pretrained.weight_sources import Source
from thinkml.models.zoo import cnn, convnext, mlp, resnet, tabular_resnet, vit
from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.preprocessing import Preprocessing
from thinkml.models.zoo.tensor_names import TensorNames

ARCHITECTURES: dict[str, Architecture] = {
    name: architecture
    for module in (mlp, tabular_resnet, cnn, resnet, convnext, vit)
    for name, architecture in module.ARCHITECTURES.items()
}


def list_models() -> list[str]:
    """Returns the names of the architectures that `create` can make.

    Example:
        >>> from thinkml.models.zoo import list_models
        >>> 'resnet50' in list_models()
        True
    """
    return list(ARCHITECTURES)


def get_preprocessing(name: str) -> Preprocessing | None:
    """Returns the preparation of images for an architecture's pretrained weights.

    Args:
        name: one of `list_models`.

    Returns:
        The preprocessing; None for architectures without pretrained weights.

    Raises:
        ConfigError: for an unknown name.

    Example:
        >>> from thinkml.models.zoo import get_preprocessing
        >>> get_preprocessing('vit_s16').mean
        (0.5, 0.5, 0.5)
    """
    return architecture_of(name).preprocessing


def architecture_of(name: str) -> Architecture:
    """Returns an entry of the catalog.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(unknown_name('name', name, ARCHITECTURES))
    return ARCHITECTURES[name]


def sources_of(name: str) -> Sequence[Source]:
    """Returns the files of pretrained weights for an architecture; none for an unknown name."""
    architecture = ARCHITECTURES.get(name)
    return () if architecture is None else architecture.sources


def tensor_names_of(model: nnx.Module) -> TensorNames:
    """Returns the tensor names that other libraries use for a model of the zoo.

    For any other model only our own names are returned.
    """
    for architecture in ARCHITECTURES.values():
        if architecture.make is type(model):
            return architecture.tensor_names
    return TensorNames()
