"""Paths in nested dicts of arrays: reads, writes and replaces the value at a path."""

import functools
from typing import Any

from thinkml.typing import PyTree

Path = tuple[Any, ...]


def get_at(tree: PyTree, path: Path) -> PyTree:
    """Returns the value at a path.

    Example:
        >>> from thinkml.core.model.tree_paths import get_at
        >>> get_at({'layer': {'kernel': 1}}, ('layer', 'kernel'))
        1
    """
    return functools.reduce(lambda part, name: part[name], path, tree)


def set_at(tree: dict[Any, Any], path: Path, value: Any) -> None:
    """Writes a value at a path, in place; makes the dicts on the way."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def replaced_at(tree: PyTree, path: Path, value: PyTree) -> PyTree:
    """Returns a copy of nested dicts with another value at a path."""
    if not path:
        return value
    return {**tree, path[0]: replaced_at(tree[path[0]], path[1:], value)}
