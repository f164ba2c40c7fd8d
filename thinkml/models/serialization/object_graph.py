"""Codec for the graph of an NNX model.

`flax.nnx.GraphDef` lists the nodes and attributes of a model in the order of traversal. In JSON
they are nested as in the model:

- ``{"module": class, "id": 0, "attributes": [[name, child], ...]}``
- ``{"variable": class, "id": 1, "metadata": {...}, "value": {"$array": name}}``
- ``{"container": "list", "items": [[0, child], ...]}``
- ``{"shared": 1}``, a node that appeared before with this id
- ``{"leaf": {"$array": name}}``, an array that is not a variable
- ``{"static": value}``
- ``{"state": [false, false]}``, flax's own flags of each module
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from flax.nnx import graphlib, pytreelib
from flax.typing import HashableMapping

from thinkml.core.model.adapters import arrays_lock
from thinkml.errors import NotStorableError
from thinkml.model_record import without_references
from thinkml.models.serialization import import_allowlist
from thinkml.models.serialization.array_index import ArrayNames, ArrayTaker, is_array
from thinkml.models.serialization.attribute_codec import decode_special, encode_attribute
from thinkml.models.serialization.json_values import Json, Path, decode, refuse, where

_CONTAINERS = {kind.__name__: kind for kind in (dict, list, tuple, type(None))}


def describe_graph(model: nnx.Module, arrays: ArrayNames) -> Json:
    """Describes an NNX model in eval mode, and collects its arrays.

    Raises:
        ModelFileError: for a part that another process could not find by name, or that JSON can't
            hold.
    """
    with arrays_lock:
        copy = nnx.merge(*nnx.split(model))  # the user's model keeps its mode
    copy.eval()
    return _Writer(copy, arrays).node(('model',))


class _Writer:
    """A reader of a GraphDef's lists together with its state, which returns JSON."""

    def __init__(self, model: nnx.Module, arrays: ArrayNames):
        graph, state = nnx.split(model)
        self._nodes = iter(graph.nodes)
        self._attributes = iter(without_references(graph).attributes)
        self._leaves = iter(nnx.to_flat_state(state))
        self._arrays = arrays

    def node(self, path: Path) -> Json:
        node = next(self._nodes)
        if isinstance(node, graphlib.NodeRef):
            return {'shared': node.index}
        if isinstance(node, graphlib.VariableDef):
            return {
                'variable': import_allowlist.name_of(node.type, import_allowlist.VARIABLE, path),
                'id': node.index,
                'metadata': encode_attribute(dict(node.metadata), path),
                'value': self._leaf(path),
            }
        if not isinstance(node, graphlib.NodeDef):
            return refuse(node, path)
        if node.type is graphlib.GenericPytree:
            return _describe_pytree(node, path)
        children = []
        for _ in range(node.num_attributes):
            key, attribute = next(self._attributes)
            child = self._attribute(attribute, (*path, key))
            children.append([encode_attribute(key, path), child])
        if node.type in _CONTAINERS.values():
            return {'container': node.type.__name__, 'items': children}
        name = import_allowlist.name_of(node.type, import_allowlist.NODE, path)
        return {'module': name, 'id': node.index, 'attributes': children}

    def _attribute(self, attribute: object, path: Path) -> Json:
        if isinstance(attribute, graphlib.Static):
            return {'static': encode_attribute(attribute.value, path)}
        if isinstance(attribute, graphlib.LeafAttr):
            return {'leaf': self._leaf(path)}
        return self.node(path)

    def _leaf(self, path: Path) -> Json:
        leaf_path, leaf = next(self._leaves)
        value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        if is_array(value):
            return {'$array': self._arrays.add(leaf_path, value)}
        return encode_attribute(value, path)


def _describe_pytree(node: Any, path: Path) -> Json:
    if path[-1] != '_pytree__state':
        raise NotStorableError(
            f'{where(path)}: got the pytree {node.metadata.treedef}, which a model file can not '
            'describe. Keep its arrays in an nnx.Module, nnx.Dict or nnx.List.'
        )
    flags = node.metadata.treedef.unflatten(())
    return {'state': [flags.initializing, flags.is_setup]}


def build_graph(root: Json, arrays: ArrayTaker, trusted: Sequence[str]) -> nnx.Module:
    """Builds an NNX model from its description, without calling its class.

    Raises:
        ModelFileError: for names that are missing or not allowed, and for missing arrays.
        Exception: of any other type, if `describe_graph` can not have written the JSON.
    """
    reader = _Reader(arrays, trusted)
    reader.node(root, ())
    graph = graphlib.GraphDef(reader.nodes, reader.attributes, reader.num_leaves)
    model = nnx.merge(graph, reader.state)
    if not isinstance(model, nnx.Module) or nnx.graphdef(model) != graph:
        raise ValueError('the graph is not consistent')
    return model


class _Reader:
    """A builder of a GraphDef's lists and its state from JSON."""

    def __init__(self, arrays: ArrayTaker, trusted: Sequence[str]):
        self.nodes: list[Any] = []
        self.attributes: list[tuple[Any, Any]] = []
        self.state: dict[Any, Any] = {}
        self.num_leaves = 0
        self._trusted = trusted
        self._special = arrays.or_else(functools.partial(decode_special, trusted=trusted))

    def node(self, node: Mapping[str, Any], path: Path) -> None:
        if 'shared' in node:
            self.nodes.append(graphlib.NodeRef(node['shared']))
        elif 'variable' in node:
            kind = import_allowlist.resolve(
                node['variable'], import_allowlist.VARIABLE, self._trusted
            )
            metadata = HashableMapping(decode(node['metadata'], self._special))
            self.nodes.append(graphlib.VariableDef(kind, node['id'], None, metadata, None))
            self._leaf(node['value'], path)
        elif 'state' in node:
            self.nodes.append(_state_def(*node['state']))
        elif 'container' in node:
            self._parent(_CONTAINERS[node['container']], None, None, node['items'], path)
        else:
            kind = import_allowlist.resolve(node['module'], import_allowlist.NODE, self._trusted)
            self._parent(kind, kind, node['id'], node['attributes'], path)

    def _parent(
        self, kind: type, metadata: type | None, index: int | None, children: Json, path: Path
    ) -> None:
        self.nodes.append(graphlib.NodeDef(kind, index, None, len(children), metadata))
        for name, child in children:
            key = decode(name)
            if type(key) not in (int, str, tuple) or str(key).startswith('__'):
                raise ValueError(f'an attribute named {key!r}')
            self._attribute(key, child, (*path, key))

    def _attribute(self, key: Any, child: Mapping[str, Any], path: Path) -> None:
        if 'static' in child:
            value = decode(child['static'], self._special)
            self.attributes.append((key, graphlib.Static(value)))
        elif 'leaf' in child:
            self.attributes.append((key, graphlib.LeafAttr()))
            self._leaf(child['leaf'], path)
        else:
            self.attributes.append((key, graphlib.NodeAttr()))
            self.node(child, path)

    def _leaf(self, value: Json, path: Path) -> None:
        self.num_leaves += 1
        tree = self.state
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = decode(value, self._special)


def _state_def(initializing: bool, is_setup: bool) -> graphlib.NodeDef:
    state = pytreelib.PytreeState(bool(initializing), bool(is_setup))
    metadata = graphlib.IndexesPytreeDef(HashableMapping({}), jax.tree.structure(state))
    return graphlib.NodeDef(graphlib.GenericPytree, None, None, 0, metadata)
