"""Loading of weights that Keras saved, by the kinds and the order of the layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from thinkml.core.model.layer_inspection import layers_in_order
from thinkml.errors import WeightsError, problems
from thinkml.models.pretrained.keras_file import Layers
from thinkml.models.serialization.weights import fill, named_arrays
from thinkml.typing import Inputs

# The names of a layer's arrays in Keras's order, by the number of axes of the first array.
_NAMES: Mapping[int, Sequence[str]] = {
    4: ('kernel', 'bias'),
    2: ('kernel', 'bias'),
    1: ('scale', 'bias', 'mean', 'var'),
}

_KINDS = {4: 'convolutions', 2: 'dense layers', 1: 'normalisations'}


def load_keras(
    model: nnx.Module,
    layers: Layers,
    x: Inputs,
    *,
    what: str,
) -> int:
    """Loads a Keras model's arrays into a model with the same layers: all, or none on an error.

    Keras numbers its layers separately for each kind. So convolutions, dense layers and
    normalisations are matched one kind at a time, each in the order of the layers.

    Args:
        model: the model to fill, in place.
        layers: the layers of the file, see `read_keras_file`.
        x: inputs of the model; only shapes and dtypes are read.
        what: the name of the file, for messages.

    Returns:
        The number of arrays that were loaded.

    Raises:
        WeightsError: if the layers or their shapes differ. Names them.
    """
    current = named_arrays(model)
    found, arrays = [], {}
    for axes, names in _NAMES.items():
        ours = _modules(model, current, x, names[0], axes)
        theirs = [layer for layer in layers if layer[1][0].ndim == axes]
        if len(ours) != len(theirs):
            counts = f'{len(theirs)} layers in the file, {len(ours)} in the model'
            found.append(f'{_KINDS[axes]}: {counts}')
        for module, (layer, values) in zip(ours, theirs, strict=False):
            expected = [f'{module}/{name}' for name in names if f'{module}/{name}' in current]
            shapes = [current[name].shape for name in expected]
            if shapes != [value.shape for value in values]:
                given = ', '.join(str(value.shape) for value in values)
                found.append(f'{layer}: {given} in the file, {module} has {shapes}')
            arrays |= dict(zip(expected, values, strict=False))
    if found:
        raise WeightsError(problems(f'weights: {what} does not fit the model:', found[:20]))
    cast = {name: np.asarray(array, current[name].dtype) for name, array in arrays.items()}
    fill(model, current | cast, what)
    return len(arrays)


def _modules(
    model: nnx.Module, arrays: Mapping[str, Any], x: Inputs, first: str, axes: int
) -> list[str]:
    """Returns the modules whose first array has ``axes`` axes, in the order of computation."""
    paths = [path[:-1] for layer in layers_in_order(model, x) for path in layer.params]
    names = dict.fromkeys('/'.join(map(str, path)) for path in paths)
    return [name for name in names if getattr(arrays.get(f'{name}/{first}'), 'ndim', None) == axes]
