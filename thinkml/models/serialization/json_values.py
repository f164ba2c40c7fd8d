"""Codec for plain values: strict JSON that keeps their types.

JSON has no NaN, no tuple, no integer key, no float32. Such values are written as an object with
one key that starts with ``$``: ``{"$float": "nan"}``, ``{"$tuple": [1, 2]}``.
"""

import dataclasses
import datetime
import enum
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.errors import NotStorableError

Json = Any
Path = tuple[Any, ...]


def where(path: Path) -> str:
    """Returns a path as text: ``metadata['scores'][0]``, ``model.layers[0]``."""
    root, *keys = path
    in_model = root.startswith('model')

    def step(key: object) -> str:
        return f'.{key}' if in_model and str(key).isidentifier() else f'[{key!r}]'

    return root + ''.join(map(step, keys))


def refuse(value: object, path: Path) -> Json:
    """Raises the error for a value that JSON can't hold."""
    kind = type(value)
    raise NotStorableError(
        f'{where(path)}: got {kind.__module__}.{kind.__qualname__}, which a model file can not '
        'hold. Expected numbers, text, dates, paths, arrays, dataclasses, or lists and dicts of '
        'them.'
    )


def encode(value: Any, path: Path, special: Callable[[Any, Path], Json] = refuse) -> Json:
    """Turns a value into strict JSON.

    Args:
        value: None, bool, int, float, str, numpy scalars, and lists, tuples and dicts of them.
        path: the position of the value, for error messages: a name, then keys.
        special: ``special(value, path)`` encodes or refuses everything else.

    Raises:
        NotStorableError: if ``special`` refuses.
    """

    def items(values: Iterable[Any]) -> list[Json]:
        return [encode(item, (*path, i), special) for i, item in enumerate(values)]

    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {'$float': str(value)}
    if kind is list:
        return items(value)
    if kind is tuple:
        return {'$tuple': items(value)}
    if kind is dict:
        if all(type(key) is str and not key.startswith('$') for key in value):
            return {key: encode(item, (*path, key), special) for key, item in value.items()}
        pairs = [
            [encode(key, path, special), encode(item, (*path, key), special)]
            for key, item in value.items()
        ]
        return {'$dict': pairs}
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        name = 'str' if isinstance(value, np.str_) else value.dtype.name
        return {'$numpy': [name, encode(value.item(), path, special)]}
    return special(value, path)


def _unknown(tag: str, body: Json) -> Any:
    raise ValueError(f'{tag!r} is unknown to this version')


def decode(node: Json, special: Callable[[str, Json], Any] = _unknown) -> Any:
    """Returns the value that `encode` turned into JSON.

    Args:
        node: parsed JSON.
        special: ``special(tag, body)`` decodes the values that ``special`` of `encode` encoded.

    Raises:
        Exception: of any type, if `encode` can not have written the JSON.
    """
    if isinstance(node, list):
        return [decode(item, special) for item in node]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node), '')
    if not tag.startswith('$'):
        return {key: decode(item, special) for key, item in node.items()}
    ((_, body),) = node.items()
    match tag:
        case '$float':
            return float({'nan': 'nan', 'inf': 'inf', '-inf': '-inf'}[body])
        case '$tuple':
            return tuple(decode(item, special) for item in body)
        case '$dict':
            return {decode(key, special): decode(item, special) for key, item in body}
        case '$numpy':
            name, item = body
            return np.str_(item) if name == 'str' else dtype_named(name).type(decode(item))
    return special(tag, body)


def dtype_named(name: str) -> np.dtype:
    """Returns the numeric dtype of this name, including bfloat16 and similar types.

    Raises:
        ValueError: for any other text, which numpy could read as a record layout or an object.
    """
    dtype = jnp.dtype(name)
    if dtype.name != name or (not jnp.issubdtype(dtype, np.number) and dtype != np.bool_):
        raise ValueError(f'{name!r} is not a numeric dtype')
    return dtype


def plain(value: Any, path: Path, special: Callable[[Any, Path], Json] = refuse) -> Json:
    """Reduces a value to None, bool, int, float, str, and lists and dicts of them.

    Arrays become lists, dates ISO text, paths text, dataclasses and named tuples dicts.

    Args:
        value: the value to reduce.
        path: the position of the value, for error messages: a name, then keys.
        special: ``special(value, path)`` reduces or refuses everything else.

    Raises:
        NotStorableError: if ``special`` refuses.
    """

    def items(values: Iterable[Any]) -> list[Any]:
        return [plain(item, (*path, i), special) for i, item in enumerate(values)]

    def mapping(values: Mapping) -> dict[Any, Any]:
        return {_key(key, path): plain(v, (*path, key), special) for key, v in values.items()}

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value, path, special)
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array) and _is_plain_dtype(value.dtype):
        return _numbers(value, path)
    if isinstance(value, np.ndarray):
        return items(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return mapping({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, tuple) and (fields := getattr(value, '_fields', None)):
        return mapping(dict(zip(fields, value, strict=True)))
    if isinstance(value, Mapping):
        return mapping(value)
    if isinstance(value, list | tuple):
        return items(value)
    if isinstance(value, set | frozenset):
        return items(sorted(value, key=repr))
    if isinstance(value, int | float | str):  # a subclass
        base = next(kind for kind in (int, float, str) if isinstance(value, kind))
        return base(value)
    return special(value, path)


def _numbers(array: np.generic | np.ndarray | jax.Array, path: Path) -> Json:
    try:
        return np.asarray(array).tolist()
    except RuntimeError as error:  # it is donated, or sharded over other processes
        raise NotStorableError(f'{where(path)}: the array can not be read: {error}') from error


def _is_plain_dtype(dtype: np.dtype) -> bool:
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # PRNG keys
        return False
    real = jnp.issubdtype(dtype, np.number) and not jnp.issubdtype(dtype, np.complexfloating)
    return real or dtype.kind in 'bU'


def _key(key: Any, path: Path) -> Any:
    key = key.item() if isinstance(key, np.generic) else key
    if key is None or type(key) in (bool, int, float, str):
        return key
    if isinstance(key, enum.Enum):
        return _key(key.value, path)
    raise NotStorableError(
        f'{where(path)}: got the key {key!r} of type {type(key).__name__}, expected text or a '
        'number.'
    )
