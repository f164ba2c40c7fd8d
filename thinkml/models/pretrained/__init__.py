"""Pretrained weights: found, read without running anything, and put into a model."""

import os
from typing import Any

import jax
import numpy as np

from thinkml.errors import (
    ConfigError,
    PretrainedWeightsWarning,
    WeightsError,
    WeightsNotFoundError,
    warn_user,
)
from thinkml.models.pretrained.keras_file import is_keras_file, load_keras, read_keras_file
from thinkml.models.pretrained.weight_files import open_tensors as open_tensors
from thinkml.models.pretrained.weight_sources import find_weights as find_weights
from thinkml.models.pretrained.weight_sources import how_to_get
from thinkml.models.zoo.load import load_tensors
from thinkml.paths import local_path


def check_weights(weights: Any) -> Any:
    """Returns what names weights, or None.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(weights, str | os.PathLike | None):
        raise ConfigError(
            f"weights: got {weights!r}, expected None, 'auto', 'required' or the path of a file."
        )
    return weights


def load_pretrained(model: Any, name: str, weights: str | os.PathLike[str]) -> Any:
    """Loads pretrained weights into a model of the zoo.

    Args:
        model: filled in place, as a whole or not at all.
        name: of its architecture.
        weights: ``'auto'``, ``'required'`` or the path of a file.

    Returns:
        what was loaded; None where ``'auto'`` found nothing.

    Warns:
        PretrainedWeightsWarning: if ``'auto'`` found nothing.

    Raises:
        WeightsError: if ``'required'`` found nothing, or the file does not fit. Names each tensor.
    """
    if weights in ('auto', 'required'):
        path = find_weights(name)
        if path is None:
            missing = f'weights: no pretrained weights of {name} were found. {how_to_get(name)}'
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
                f'{how_to_get(name)}'
            )
    if is_keras_file(path):
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        count = load_keras(model, read_keras_file(path), images, what=str(path))
        return f'{count} arrays of {path} loaded.'
    return load_tensors(model, open_tensors(path), what=str(path))
