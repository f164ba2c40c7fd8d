"""A model's arrays by name: read and replaced without describing its classes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from thinkml.core.model.adapters import FunctionModel, LinenModel
from thinkml.core.model.exported_forward import ExportedModel
from thinkml.core.model.functional import not_a_model
from thinkml.core.model.tree_paths import set_at
from thinkml.errors import ModelFileError, ModelTypeError, problems
from thinkml.models.serialization.array_index import ArrayNames, ArrayTaker, is_array
from thinkml.models.serialization.attribute_codec import decode_special
from thinkml.models.serialization.json_values import decode, encode
from thinkml.typing import Model, PyTree

Array = jax.Array | np.ndarray

# The attributes with the arrays of models that are not NNX modules.
_TREES = {LinenModel: 'variables', FunctionModel: 'params'}


def named_arrays(model: Model) -> dict[str, Any]:
    """Returns the arrays of a model by the names they have in its file.

    Args:
        model: a `flax.nnx.Module`, or a model from `from_linen` or `from_functions` that has
            parameters.

    Raises:
        ModelTypeError: for anything else.

    Example:
        >>> from flax import nnx
        >>> from thinkml.models.serialization.weights import named_arrays
        >>> sorted(named_arrays(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
        ['bias', 'kernel']
    """
    names = ArrayNames()
    if isinstance(model, nnx.Module):
        for path, leaf in nnx.to_flat_state(nnx.state(model)):
            value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
            if is_array(value):
                names.add(path, value)
    elif isinstance(model, ExportedModel):
        return dict(model.arrays)
    else:
        encode(_tree_of(model), ('model',), names.special)
    return names.found


def fill(model: Model, arrays: Mapping[str, Any], source: str) -> None:
    """Puts arrays into a model: all of them, or none if one does not fit.

    Args:
        model: a model, as for `named_arrays`.
        arrays: the arrays by name.
        source: the file they come from, for the message.

    Raises:
        ModelFileError: names every array that does not fit, with both types and shapes.
        ModelTypeError: if it is not a model.
    """
    current = named_arrays(model)
    check_fit(current, arrays, source)
    arrays = {name: _placed_like(current[name], array) for name, array in arrays.items()}
    if isinstance(model, nnx.Module):
        names, values = ArrayNames(), {}
        for path, leaf in nnx.to_flat_state(nnx.state(model)):
            value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
            if is_array(value):
                set_at(values, path, arrays[names.add(path, value)])
        nnx.update(model, values)
        model.eval()
        return
    names = ArrayNames()
    node = encode(_tree_of(model), ('model',), names.special)
    taker = ArrayTaker(arrays)
    special = taker.or_else(lambda tag, body: decode_special(tag, body, (), special))
    setattr(model, _TREES[type(model)], decode(node, special))


def check_fit(expected: Mapping[str, Any], arrays: Mapping[str, Any], source: str) -> None:
    """Compares names, shapes and dtypes.

    Raises:
        ModelFileError: names every array that does not fit, with both types and shapes.
    """
    found = [
        f'{name}: {_shape(arrays[name])} in the file, the model has no such array'
        for name in arrays
        if name not in expected
    ]
    found += [
        f'{name}: {_shape(expected[name])} in the model, '
        + (f'{_shape(arrays[name])} in the file' if name in arrays else 'not in the file')
        for name in expected
        if name not in arrays or _shape(arrays[name]) != _shape(expected[name])
    ]
    if found:
        raise ModelFileError(problems(f'into: {source} does not fit the model:', sorted(found)))


def _shape(array: Array) -> str:
    return f'{array.dtype}[{",".join(map(str, np.shape(array)))}]'


def _placed_like(current: Array, array: Array) -> Array:
    """Puts an array on the devices of the model's array, if that is committed to them."""
    if isinstance(current, jax.Array) and current.committed:
        return jax.device_put(array, current.sharding)
    return array


def _tree_of(model: Model) -> PyTree:
    attribute = _TREES.get(type(model))
    if attribute is None:
        raise ModelTypeError(not_a_model(model))
    tree = getattr(model, attribute)
    if tree is None:
        raise ModelFileError(
            f'model: {model!r} has no parameters yet. Train it, or create it with some: from_linen('
            'module, module.init(key, x)), from_functions(init, apply, init(key, x)).'
        )
    return tree
