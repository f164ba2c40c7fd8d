"""Codec for a model's structure.

A model consists of arrays, which training changes, and of its structure. The structure of an NNX
model is its graph: each module's class and attributes, with shared parts once. The structure of a
Linen model is the module's class and fields; for plain functions it is their names. Building a
model calls no code of a user's NNX class, and looks up only names that
`thinkml.models.serialization.import_allowlist` allows.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from thinkml.core.model.adapters import FunctionModel, LinenModel
from thinkml.core.model.exported_forward import ExportedModel
from thinkml.core.model.functional import not_a_model
from thinkml.errors import ModelFileError, ModelTypeError
from thinkml.models.serialization.array_index import ArrayNames, ArrayTaker
from thinkml.models.serialization.attribute_codec import decode_special, encode_attribute
from thinkml.models.serialization.json_values import Json, decode, encode
from thinkml.models.serialization.object_graph import build_graph, describe_graph
from thinkml.typing import Model, PyTree


def describe(model: Model) -> tuple[Json, dict[str, Any]]:
    """Splits a model into its structure and its arrays.

    Args:
        model: a `flax.nnx.Module`, or a model from `from_linen` or `from_functions`.

    Returns:
        The structure as strict JSON, and the arrays by name. An NNX model is described in eval
        mode.

    Raises:
        ModelTypeError: for anything else.
        ModelFileError: for a part that another process could not find by name, or that JSON can't
            hold. Names the part.

    Example:
        >>> from flax import nnx
        >>> from thinkml.models.serialization.architecture import build, describe
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> structure, arrays = describe(model)
        >>> sorted(arrays)
        ['layers/0/bias', 'layers/0/kernel']
        >>> type(build(structure, arrays)).__name__
        'Sequential'
    """
    arrays = ArrayNames()
    if isinstance(model, ExportedModel):
        return {'kind': 'exported'}, dict(model.arrays)
    if isinstance(model, nnx.Module):
        structure = {'kind': 'nnx', 'graph': describe_graph(model, arrays)}
    elif isinstance(model, LinenModel):
        _check_initialised(model, model.variables)
        structure = {
            'kind': 'linen',
            'module': encode_attribute(model.module, ('model.module',)),
            'variables': encode(model.variables, ('model.variables',), arrays.special),
        }
    elif isinstance(model, FunctionModel):
        _check_initialised(model, model.params)
        structure = {
            'kind': 'functions',
            'init': encode_attribute(model.init, ('model.init',)),
            'apply': encode_attribute(model.apply, ('model.apply',)),
            'params': encode(model.params, ('model.params',), arrays.special),
        }
    else:
        raise ModelTypeError(not_a_model(model))
    return structure, arrays.found


def build(structure: Json, arrays: Mapping[str, Any], trusted: Sequence[str] = ()) -> Model:
    """Builds the model that `describe` split.

    Args:
        structure: parsed JSON.
        arrays: the arrays by name; all of them must be used.
        trusted: modules that may be imported, see
            `thinkml.models.serialization.import_allowlist.resolve`.

    Raises:
        ModelFileError: for names that are missing or not allowed, and for missing or unused arrays.
        Exception: of any other type, if `describe` can not have written the JSON.
    """
    taker = ArrayTaker(arrays)
    special = functools.partial(decode_special, trusted=trusted)

    def tree(node: Json) -> PyTree:
        # A special value may contain arrays.
        nested = taker.or_else(lambda tag, body: decode_special(tag, body, trusted, nested))
        return _checked_tree(decode(node, nested))

    match structure['kind']:
        case 'nnx':
            model = build_graph(structure['graph'], taker, trusted)
        case 'linen':
            module = decode(structure['module'], special)
            model = LinenModel(module, tree(structure['variables']))
        case 'functions':
            init, apply = (_function(decode(structure[n], special)) for n in ('init', 'apply'))
            model = FunctionModel(init, apply, tree(structure['params']))
        case kind:
            raise ValueError(f'{kind!r} is a kind of model unknown to this version')
    if taker.left:
        raise ModelFileError(f'the model has no place for {", ".join(sorted(taker.left)[:5])}')
    return model


def _check_initialised(model: Model, arrays: PyTree | None) -> None:
    if arrays is None:
        raise ModelFileError(f'model: {model!r} has no parameters yet. Train it first.')


def _checked_tree(tree: PyTree) -> PyTree:
    """Checks that the arguments of the file's functions contain only arrays and numbers."""
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array | np.generic | bool | int | float | complex):
            raise ValueError(f'a {type(leaf).__name__} among the parameters')
    return tree


def _function(thing: object) -> Callable:
    if not callable(thing) or inspect.isclass(thing):
        raise ValueError(f'{thing!r} is not a function')
    return thing
