"""A model's arrays by name: collected while it is described, used while it is built."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from thinkml.errors import ModelFileError
from thinkml.models.serialization.attribute_codec import encode_special
from thinkml.models.serialization.json_values import Json, Path


def is_array(value: object) -> bool:
    """Returns True if a value belongs to the arrays of a model file, not to its structure."""
    return isinstance(value, jax.Array | np.ndarray)


class ArrayNames:
    """A collection of arrays, with names made of their paths.

    Attributes:
        found: the arrays so far, by name.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add(self, path: Path, array: jax.Array | np.ndarray) -> str:
        name = '/'.join(map(str, path))
        while name in self.found:  # {'a/b': 1, 'a': {'b': 2}}
            name += "'"
        self.found[name] = array
        return name

    def special(self, value: Any, path: Path) -> Json:
        """Encodes arrays as their names, and the special values of a tree of arrays."""
        if is_array(value):
            return {'$array': self.add(path[1:], value)}
        return encode_special(value, path, self.special)


class ArrayTaker:
    """A supply of arrays by name; each array is used once.

    Attributes:
        left: the unused arrays, by name.
    """

    def __init__(self, arrays: Mapping[str, Any]):
        self.left = dict(arrays)

    def or_else(self, special: Callable[[str, Json], Any]) -> Callable[[str, Json], Any]:
        """Returns a decoder that decodes names to arrays, and all other values with ``special``."""

        def take(tag: str, body: Json) -> Any:
            if tag != '$array':
                return special(tag, body)
            if body not in self.left:
                raise ModelFileError(f'the array {body!r} is missing')
            return self.left.pop(body)

        return take
