"""Pretrained weights for models of the zoo, by name or from a file."""

import os

import jax
import numpy as np
from flax import nnx

from thinkml.errors import (
    ConfigError,
    PretrainedWeightsWarning,
    WeightsError,
    WeightsNotFoundError,
    warn_user,
)
from thinkml.models.pretrained.keras_file import is_keras_file, read_keras_file
from thinkml.models.pretrained.weight_files import open_tensors
from thinkml.models.pretrained.weight_sources import download_advice, find_weights
from thinkml.models.zoo.catalog import sources_of
from thinkml.models.zoo.keras_weights import load_keras
from thinkml.models.zoo.load import LoadReport, load_tensors
from thinkml.paths import local_path

PathLike = str | os.PathLike[str]


def check_weights(weights: PathLike | None) -> PathLike | None:
    """Returns the argument ``weights`` if it is None or may name a file.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(weights, str | os.PathLike | None):
        raise ConfigError(
            f"weights: got {weights!r}, expected None, 'auto', 'required' or the path of a file."
        )
    return weights


def load_pretrained(model: nnx.Module, name: str, weights: PathLike) -> LoadReport | str | None:
    """Loads pretrained weights into a model of the zoo.

    Args:
        model: the model to fill, in place. It gets all weights of the file, or none on an error.
        name: the name of its architecture.
        weights: ``'auto'``, ``'required'`` or the path of a file.

    Returns:
        A report of the loaded weights, to be printed; None if ``'auto'`` found no file.

    Warns:
        PretrainedWeightsWarning: if ``'auto'`` found no file.

    Raises:
        WeightsError: if ``'required'`` found no file, or the file does not fit. Names each tensor.
    """
    sources = sources_of(name)
    if weights in ('auto', 'required'):
        path = find_weights(sources)
        if path is None:
            advice = download_advice(name, sources)
            missing = f'weights: no pretrained weights of {name} were found. {advice}'
            if weights == 'required':
                raise WeightsError(missing)
            warn_user(
                f'{missing} The {name} has RANDOM weights, which have learned nothing.',
                PretrainedWeightsWarning,
            )
            return None
    else:
        path = local_path(weights, 'weights')
        if not path.is_file():
            raise WeightsNotFoundError(
                f"weights: there is no file {path}, and it is neither 'auto' nor 'required'. "
                f'{download_advice(name, sources)}'
            )
    if is_keras_file(path):
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        count = load_keras(model, read_keras_file(path), images, what=str(path))
        return f'{count} arrays of {path} loaded.'
    return load_tensors(model, open_tensors(path), what=str(path))
