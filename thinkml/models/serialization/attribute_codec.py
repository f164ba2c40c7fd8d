"""Codec for the attributes of models that are neither arrays nor modules.

It covers everything that `thinkml.models.serialization.json_values` can't encode: classes and
functions by name, dtypes, enums, dataclasses of settings, partial functions, weight initialisers,
and Linen modules.
"""

import dataclasses
import enum
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import FrozenDict
from flax.typing import HashableMapping

from thinkml.errors import ModelFileError
from thinkml.models.serialization import import_allowlist
from thinkml.models.serialization.json_values import (
    Json,
    Path,
    decode,
    dtype_named,
    encode,
    refuse,
    where,
)

Special = Callable[[Any, Path], Json]
Decoder = Callable[[str, Json], Any]

_BUILTINS = {kind.__name__: kind for kind in (bool, int, float, complex, str)}
_MAPPINGS = {kind.__name__: kind for kind in (FrozenDict, HashableMapping, nnx.StateAxes)}
_JAX_SCALAR = type(jnp.float32)


def encode_attribute(value: Any, path: Path) -> Json:
    """Turns an attribute into strict JSON.

    Raises:
        ModelFileError: for a value that another process could not find by name, or that JSON can't
            hold.
    """
    return encode(value, path, encode_special)


def encode_special(value: Any, path: Path, nested: Special | None = None) -> Json:
    """Encodes a value that `encode` can't. ``nested`` encodes such values inside of it."""
    nested = nested or encode_special

    def inner(value: Any, *keys: object) -> Json:
        return encode(value, (*path, *keys), nested)

    def fields(of: Any, skip: Callable[[dataclasses.Field], bool] = lambda _: False) -> Json:
        found = [field.name for field in dataclasses.fields(of) if not skip(field)]
        return {name: inner(getattr(of, name), name) for name in found}

    kind = type(value)
    if value is Ellipsis:
        return {'$ellipsis': True}
    if isinstance(value, _JAX_SCALAR):
        return {'$jax_type': value.dtype.name}
    if isinstance(value, np.dtype):
        return {'$dtype': value.name}
    if inspect.isclass(value):
        return _encode_class(value, path)
    if isinstance(value, enum.Enum):
        return {'$enum': [import_allowlist.name_of(kind, import_allowlist.ENUM, path), value.name]}
    if isinstance(value, functools.partial):
        arguments = (encode(a, path, _setting) for a in (list(value.args), value.keywords))
        return {'$partial': [inner(value.func), *arguments]}
    if kind in _MAPPINGS.values():
        return {'$mapping': [kind.__name__, inner(dict(value))]}
    if import_allowlist.LINEN.check(kind):
        name = import_allowlist.name_of(kind, import_allowlist.LINEN, path)
        return {'$linen': [name, fields(value, lambda field: _is_implied(value, field))]}
    if import_allowlist.DATACLASS.check(kind):
        return {
            '$dataclass': [
                import_allowlist.name_of(kind, import_allowlist.DATACLASS, path),
                fields(value),
            ]
        }
    if (initializer := _initializer(value)) is not None:
        factory, arguments = initializer
        return {'$initializer': [factory, inner(arguments)]}
    if import_allowlist.FUNCTION.check(value):
        return {'$function': import_allowlist.name_of(value, import_allowlist.FUNCTION, path)}
    return refuse(value, path)


def decode_special(
    tag: str, body: Json, trusted: Sequence[str], nested: Decoder | None = None
) -> Any:
    """Decodes the JSON of `encode_special`. ``nested`` decodes special values inside of it."""
    nested = nested or functools.partial(decode_special, trusted=trusted)

    def inner(node: Json) -> Any:
        return decode(node, nested)

    match tag:
        case '$ellipsis':
            return Ellipsis
        case '$jax_type':
            return _jax_type(body)
        case '$dtype':
            return dtype_named(body)
        case '$numpy_type':
            return dtype_named(body).type
        case '$builtin':
            return _BUILTINS[body]
        case '$class':
            return import_allowlist.resolve(body, import_allowlist.CLASS, trusted)
        case '$function':
            return import_allowlist.resolve(body, import_allowlist.FUNCTION, trusted)
        case '$enum':
            return import_allowlist.resolve(body[0], import_allowlist.ENUM, trusted)[body[1]]
        case '$partial':
            function, args, keywords = body
            import_allowlist.check_called_with_arguments(function['$function'], trusted)
            args, keywords = decode(args, _decode_setting), decode(keywords, _decode_setting)
            return functools.partial(inner(function), *args, **keywords)
        case '$mapping':
            return _MAPPINGS[body[0]](inner(body[1]))
        case '$linen':
            return import_allowlist.resolve(body[0], import_allowlist.LINEN, trusted)(
                **inner(body[1])
            )
        case '$dataclass':
            return _dataclass(
                import_allowlist.resolve(body[0], import_allowlist.DATACLASS, trusted),
                inner(body[1]),
            )
        case '$initializer':
            return _INITIALIZERS[body[0]](**inner(body[1]))
    raise ValueError(f'{tag!r} is unknown to this version')


def _encode_class(value: type, path: Path) -> Json:
    if _BUILTINS.get(value.__name__) is value:
        return {'$builtin': value.__name__}
    if issubclass(value, np.generic):
        return {'$numpy_type': np.dtype(value).name}
    return {'$class': import_allowlist.name_of(value, import_allowlist.CLASS, path)}


def _jax_type(name: str) -> Any:
    thing = vars(jnp).get(dtype_named(name).name)
    thing = jnp.bool_ if name == 'bool' else thing
    if not isinstance(thing, _JAX_SCALAR):
        raise ValueError(f'{name!r} is not a type of jax.numpy')
    return thing


# The kinds of arguments that a partial function may have: nothing that it could call.
_SETTINGS = ('$ellipsis', '$jax_type', '$dtype', '$numpy_type', '$builtin', '$enum')


def _setting(value: Any, path: Path) -> Json:
    node = encode_special(value, path, _setting)
    if next(iter(node)) not in _SETTINGS:
        raise ModelFileError(
            f'{where(path)}: a partial function is given {type(value).__name__} {value!r}, '
            'expected numbers, text and dtypes. Define a function instead.'
        )
    return node


def _decode_setting(tag: str, body: Json) -> Any:
    if tag not in _SETTINGS:
        raise ModelFileError(f'a partial function is given {tag!r}, expected a number or a dtype')
    return decode_special(tag, body, (), _decode_setting)


def _dataclass(kind: type, values: Mapping[str, Any]) -> Any:
    """Makes an instance without calling any code of its class."""
    expected = {field.name for field in dataclasses.fields(kind)}
    if set(values) != expected:
        raise ValueError(
            f'{kind.__name__} has the fields {sorted(expected)}, the file {sorted(values)}'
        )
    instance = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance


def _is_implied(module: object, field: dataclasses.Field) -> bool:
    """Returns True if a Linen module's field has its default, or is set by Linen itself."""
    value = getattr(module, field.name)
    return field.name == 'parent' or value is field.default


# Weight initialisers are closures, for instance jax.nn.initializers.normal(0.1). They are stored as
# the function that made them and its arguments.
_INITIALIZERS = {
    name: getattr(jax.nn.initializers, name)
    for name in (
        'constant',
        'delta_orthogonal',
        'normal',
        'orthogonal',
        'truncated_normal',
        'uniform',
        'variance_scaling',
    )
}


def _initializer(value: object) -> tuple[str, dict[str, Any]] | None:
    """Returns the name of the function that made an initialiser, and its arguments."""
    if not isinstance(value, types.FunctionType):
        return None
    factory = value.__qualname__.split('.')[0]
    maker = _INITIALIZERS.get(factory)
    if maker is None or value.__code__ not in maker.__code__.co_consts:
        return None
    defaults = {name: p.default for name, p in inspect.signature(value).parameters.items()}
    captured = defaults | dict(inspect.getclosurevars(value).nonlocals)
    parameters = inspect.signature(maker).parameters
    return factory, {name: item for name, item in captured.items() if name in parameters}
