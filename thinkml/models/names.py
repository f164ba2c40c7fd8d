"""Classes and functions by name, and which names a model file may use.

A model file names the classes and functions its model is made of. Whoever wrote the file chose the
names, so a name is looked up, never walked or evaluated, and what is found must be of the kind
that belongs in that place and at home where the name says.
"""

import dataclasses
import enum
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.errors import ModelFileError
from thinkml.models.values import Path, where

LIBRARIES = ('flax', 'jax', 'optax', 'thinkml')

# Where names are looked for first: a library's private modules move between its versions.
_PUBLIC = (
    'jax',
    'jax.nn',
    'jax.numpy',
    'jax.lax',
    'jax.nn.initializers',
    'flax.nnx',
    'flax.linen',
    'optax',
)

# What may be called with arguments out of a model file: pure functions of arrays.
_PURE = (
    'jax.nn',
    'jax.numpy',
    'jax.lax',
    'jax.scipy',
    'jax._src.nn',
    'jax._src.numpy',
    'jax._src.lax',
    'jax._src.scipy',
    'flax.nnx.nn',
    'flax.linen',
    'optax',
)
_NOT_PURE = ('load', 'fromfile')  # of jax.numpy: they read files, pickled ones too


@dataclasses.dataclass(frozen=True)
class Kind:
    """What may stand in one place of a model file."""

    label: str
    check: Callable[[Any], bool]


def _subclass_of(*bases: type) -> Callable[[Any], bool]:
    return lambda thing: inspect.isclass(thing) and issubclass(thing, bases)


def _is_linen_class(thing: Any) -> bool:
    linen = sys.modules.get('flax.linen')
    return linen is not None and _subclass_of(linen.Module)(thing)


@functools.cache
def _function_types() -> tuple[type, ...]:
    jitted = type(jax.jit(lambda: None))
    return (types.FunctionType, jitted, jax.custom_jvp, jax.custom_vjp, jnp.ufunc)


def _is_named_tuple(thing: Any) -> bool:
    return _subclass_of(tuple)(thing) and hasattr(thing, '_fields')


def _is_dataclass(thing: Any) -> bool:
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing)


def _is_value_class(thing: Any) -> bool:
    return (
        _subclass_of(nnx.Pytree, nnx.Variable, enum.Enum)(thing)
        or thing is nnx.Carry
        or _is_linen_class(thing)
        or _is_dataclass(thing)
        or _is_named_tuple(thing)
    )


NODE = Kind('an nnx module class', _subclass_of(nnx.Pytree))
VARIABLE = Kind('an nnx variable class', _subclass_of(nnx.Variable))
LINEN = Kind('a Linen module class', _is_linen_class)
FUNCTION = Kind('a function', lambda thing: isinstance(thing, _function_types()))
DATACLASS = Kind('a dataclass', _is_dataclass)
NAMED_TUPLE = Kind('a named tuple class', _is_named_tuple)
ENUM = Kind('an enum class', _subclass_of(enum.Enum))
CLASS = Kind('a class that models are made of', _is_value_class)


def name_of(thing: Any, kind: Kind, path: Path) -> str:
    """Returns the name, ``'package.module:Name'``, by which `resolve` will find a thing.

    Raises:
        ModelFileError: if it could not be found by any name in another process, or not be used.
    """
    name = getattr(thing, '__qualname__', None) or getattr(thing, '__name__', '')
    home = getattr(thing, '__module__', None) or ''
    if home == '__main__':
        raise ModelFileError(
            f'{where(path)}: {name!r} is defined in the main program, where another process can '
            'not find it. Move it into a file of its own, my_models.py for instance, and write '
            f'from my_models import {name}.'
        )
    if not name.isidentifier():
        raise ModelFileError(
            f'{where(path)}: {name or type(thing).__qualname__!r} of {home or "nowhere"} has no '
            'name by which another process could find it. Define it at the top level of a module, '
            'with def or class.'
        )
    for module in (*_PUBLIC, home):
        if module in sys.modules and vars(sys.modules[module]).get(name) is thing:
            return _checked(f'{module}:{name}', kind, path)
    raise ModelFileError(
        f'{where(path)}: {home}.{name} is something else than this {type(thing).__name__}. '
        'Save what stands under its own name in its module.'
    )


def _checked(name: str, kind: Kind, path: Path) -> str:
    try:
        resolve(name, kind)
    except ModelFileError as error:
        raise ModelFileError(f'{where(path)}: {error}.') from None
    return name


def resolve(name: str, kind: Kind, trusted: Sequence[str] = ()) -> Any:
    """Returns the class or function of this name.

    Args:
        name: ``'package.module:Name'``.
        kind: what it must be.
        trusted: modules that may be imported for it, with what is inside them, besides
            `LIBRARIES`. Other modules must be imported already.

    Raises:
        ModelFileError: if the name is not allowed, not there, or something else.
    """
    module_name, _, attribute = name.partition(':')
    parts = module_name.split('.')
    if not all(p.isidentifier() and not p.startswith('__') for p in (*parts, attribute)):
        raise ModelFileError(f'{name!r} is not the name of {kind.label}')
    is_trusted = is_inside(module_name, trusted)
    if is_trusted or parts[0] in LIBRARIES:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ModelFileError(f'{name!r} is gone: {error}') from error
    else:
        module = _imported(module_name, name)
    if attribute not in vars(module):
        raise ModelFileError(f'{name!r} is gone: {module_name} has no {attribute}')
    thing = vars(module)[attribute]
    home = getattr(thing, '__module__', None) or ''
    if not kind.check(thing):
        raise ModelFileError(f'{name!r} is not {kind.label}')
    if home.split('.')[0] != parts[0] and not is_inside(home, (*LIBRARIES, *trusted)):
        raise ModelFileError(f'{name!r} is at home in {home or "no module"}, not in {parts[0]}')
    return thing


def _imported(module_name: str, name: str) -> types.ModuleType:
    top = module_name.split('.')[0]
    if top in sys.stdlib_module_names:
        raise ModelFileError(f'{name!r} is of the standard library, which no model is made of')
    if module_name not in sys.modules:
        raise ModelFileError(
            f'{name!r} is of a module that is not imported. If you trust it, import {module_name} '
            f'first, or pass trusted=[{top!r}]'
        )
    return sys.modules[module_name]


def check_callable_with_arguments(name: str, trusted: Sequence[str]) -> None:
    """Checks that a function may be called with arguments that a file chose.

    Raises:
        ModelFileError: for functions of modules that are neither pure nor trusted.
    """
    module, _, attribute = name.partition(':')
    home = getattr(resolve(name, FUNCTION, trusted), '__module__', None) or ''
    pure = is_inside(home, _PURE) and is_inside(module, LIBRARIES) and attribute not in _NOT_PURE
    if not pure and not is_inside(module, trusted):
        raise ModelFileError(
            f'{name!r} is called with arguments that the file names. If you trust both, pass '
            f'trusted=[{module!r}]'
        )


def is_inside(module: str, packages: Sequence[str]) -> bool:
    """Whether a module is one of the packages or in one of them."""
    return any(module == package or module.startswith(f'{package}.') for package in packages)
