"""The classes and functions that a model file may name, and their lookup.

A model file names the classes and functions of its model. The author of the file chose these
names, so a name is only looked up, never traversed or evaluated. The result must be of the expected
kind and must be defined in the module that the name gives. From libraries, only classes and
functions that compute with arrays may be named, since the file also chooses their arguments.
"""

import dataclasses
import enum
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.errors import ModelFileError, NotStorableError
from thinkml.models.serialization.json_values import Path, where

LIBRARIES = ('flax', 'jax', 'optax', 'thinkml')

# Modules that are searched first, since the private modules of libraries move between versions.
_PUBLIC = (
    'jax',
    'jax.nn',
    'jax.numpy',
    'jax.lax',
    'jax.nn.initializers',
    'flax.nnx',
    'flax.linen',
    'optax',
    'optax.losses',
)

# The modules with the libraries' array functions. No other function of a library may be named: some
# of them read files or run text as code, and the file chooses the arguments.
_ARRAY_FUNCTIONS = (
    'jax.nn',
    'jax.numpy',
    'jax.lax',
    'jax.scipy',
    'jax._src.nn',
    'jax._src.numpy',
    'jax._src.lax',
    'jax._src.ops.special',
    'jax._src.scipy',
    'flax.nnx.nn',
    'flax.linen.attention',
    'flax.linen.dtypes',
    'flax.linen.initializers',
    'flax.linen.linear',
    'flax.linen.normalization',
    'flax.linen.pooling',
    'flax.linen.recurrent',
    'optax.losses',
)

# Functions in these modules that access files, call their arguments, or return other objects than
# arrays.
_NO_ARRAY_FUNCTIONS = (
    'load', 'save', 'savez', 'savez_compressed', 'fromfile', 'fromstring', 'from_dlpack',
    'fromfunction', 'frompyfunc', 'unary_ufunc', 'vectorize', 'apply_along_axis',
    'apply_over_axes', 'piecewise', 'mask_indices', 'pad', 'leslie', 'cond', 'switch',
    'while_loop', 'fori_loop', 'map', 'scan', 'scan3', 'scan_nocarry', 'associative_scan',
    'platform_dependent', 'composite', 'custom_root', 'custom_linear_solve', 'reduce',
    'reduce_window', 'cumred_reduce', 'scatter_apply', 'pool', 'stop_gradient',
    'optimization_barrier', 'make_fenchel_young_loss',
)  # fmt: skip


# Modules of ThinkML that were renamed, by the names in older files.
_MOVED = {
    'thinkml.record': 'thinkml.model_record',
    'thinkml.models.zoo.parts': 'thinkml.models.zoo.layers',
    'thinkml.models.zoo.table': 'thinkml.models.zoo.tabular_resnet',
}


class MissingNameError(ModelFileError):
    """A class or function that is missing or not trusted: a problem of the code, not the file."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of class or function that a model file may name in some position."""

    label: str
    check: Callable[[Any], bool]


def _subclass_of(*bases: type) -> Callable[[Any], bool]:
    return lambda thing: inspect.isclass(thing) and issubclass(thing, bases)


def _is_linen_class(thing: object) -> bool:
    linen = sys.modules.get('flax.linen')
    return linen is not None and _subclass_of(linen.Module)(thing)


@functools.cache
def _function_types() -> tuple[type, ...]:
    jitted = type(jax.jit(lambda: None))
    return (types.FunctionType, jitted, jax.custom_jvp, jax.custom_vjp, jnp.ufunc)


def _is_dataclass(thing: object) -> bool:
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing)


def _is_value_class(thing: object) -> bool:
    return (
        _subclass_of(nnx.Pytree, nnx.Variable, enum.Enum)(thing)
        or thing is nnx.Carry
        or _is_linen_class(thing)
        or _is_dataclass(thing)
    )


NODE = Kind('an nnx module class', _subclass_of(nnx.Pytree))
VARIABLE = Kind('an nnx variable class', _subclass_of(nnx.Variable))
LINEN = Kind('a Linen module class', _is_linen_class)
FUNCTION = Kind('a function', lambda thing: isinstance(thing, _function_types()))
DATACLASS = Kind('a dataclass', _is_dataclass)
ENUM = Kind('an enum class', _subclass_of(enum.Enum))
CLASS = Kind('a class that models are made of', _is_value_class)


def name_of(thing: Any, kind: Kind, path: Path) -> str:
    """Returns the name, ``'package.module:Name'``, by which `resolve` finds a class or function.

    Raises:
        NotStorableError: if another process could not find it by any name, or must not use it.
    """
    name = getattr(thing, '__qualname__', None) or getattr(thing, '__name__', '')
    home = getattr(thing, '__module__', None) or ''
    if name.replace('.', '_').isidentifier() and '.' in name:
        raise NotStorableError(
            f'{where(path)}: {name!r} is nested, so another process can not find it. '
            f'Define {name.split(".")[-1]} at the top level of {home}.'
        )
    if not name.isidentifier():
        raise NotStorableError(
            f'{where(path)}: {name or type(thing).__qualname__!r} of {home or "nowhere"} has no '
            'name by which another process could find it. Define it at the top level of a module, '
            'with def or class.'
        )
    if home == '__main__':
        raise NotStorableError(
            f'{where(path)}: {name!r} is defined in the main program, where another process can '
            'not find it. Move it into a separate file, for instance my_models.py, and write '
            f'from my_models import {name}.{_rescue(thing, path)}'
        )
    for module in (*_PUBLIC, home):
        if module in sys.modules and vars(sys.modules[module]).get(name) is thing:
            return _checked(f'{module}:{name}', kind, path)
    raise NotStorableError(
        f'{where(path)}: {home}.{name} is something else than this {type(thing).__name__}. '
        'Save an object that its module has under its name.'
    )


def _rescue(thing: Any, path: Path) -> str:
    """Returns advice on how to keep the weights of a model from the main program."""
    if NODE.check(thing):
        new = f'{thing.__name__}(...) of that class, nnx.update(new, nnx.state(model))'
    elif LINEN.check(thing):
        new = 'from_linen(module, model.variables) of that module'
    elif path[0] in ('model.init', 'model.apply'):
        new = 'from_functions(init, apply, model.params) of those functions'
    else:
        return ''
    return (
        f' To keep the weights of this one, make new = {new}, '
        'thinkml.models.attach_record(new, thinkml.models.record_of(model)), and save new.'
    )


def _checked(name: str, kind: Kind, path: Path) -> str:
    """Returns the name, if `resolve` can find it with its package trusted at load time."""
    top = name.split(':')[0].split('.')[0]
    try:
        resolve(name, kind, () if top in LIBRARIES else (top,))
    except ModelFileError as error:
        raise ModelFileError(f'{where(path)}: {error}.') from None
    return name


def resolve(name: str, kind: Kind, trusted: Sequence[str] = ()) -> Any:
    """Returns the class or function of this name.

    Args:
        name: ``'package.module:Name'``.
        kind: the kind that it must have.
        trusted: modules that may be imported for it, with their submodules, and from which
            everything may be named. From `LIBRARIES`, classes and array functions may be named.
            User modules must be imported already.

    Raises:
        ModelFileError: if the name is not allowed, does not exist, or is of another kind.
    """
    module_name, _, attribute = name.partition(':')
    module_name = _MOVED.get(module_name, module_name)
    parts = module_name.split('.')
    if not all(p.isidentifier() and not p.startswith('__') for p in (*parts, attribute)):
        raise ModelFileError(f'{name!r} is not the name of {kind.label}')
    module = _module(module_name, name, trusted)
    if attribute not in vars(module):
        raise MissingNameError(f'{name!r} is gone: {module_name} has no {attribute}')
    thing = vars(module)[attribute]
    if not kind.check(thing):
        raise ModelFileError(f'{name!r} is not {kind.label}')
    home = getattr(thing, '__module__', None) or ''
    if is_inside(home, LIBRARIES):
        if not is_inside(home, trusted) and not _is_harmless(thing, home):
            raise ModelFileError(
                f'{name!r} is none of the functions and classes of {home.split(".")[0]} that a '
                'model file may name. Call it from your own function or module class'
            )
    elif home.split('.')[0] != parts[0] and not is_inside(home, trusted):
        raise ModelFileError(f'{name!r} is defined in {home or "no module"}, not in {parts[0]}')
    return thing


def _module(module_name: str, name: str, trusted: Sequence[str]) -> types.ModuleType:
    top = module_name.split('.')[0]
    if top in sys.stdlib_module_names:
        raise ModelFileError(f'{name!r} is of the standard library, which no model is made of')
    if top in LIBRARIES or is_inside(module_name, trusted):
        try:
            return importlib.import_module(module_name)
        except ImportError as error:
            raise MissingNameError(f'{name!r} is gone: {error}') from error
    if module_name not in sys.modules:
        raise MissingNameError(
            f'{name!r} is of a module that is not imported. If you trust it, import {module_name} '
            f'first, or pass trusted=[{top!r}]'
        )
    module = sys.modules[module_name]
    if is_installed(module):
        raise MissingNameError(
            f'{name!r} is of an installed library, which may have been imported for other reasons. '
            f'If you trust the file with all of it, pass trusted=[{top!r}]'
        )
    return module


def is_installed(module: types.ModuleType) -> bool:
    """Returns True if a module belongs to an installed library, or has no file."""
    file = getattr(module, '__file__', None)
    return file is None or not {'site-packages', 'dist-packages'}.isdisjoint(PurePath(file).parts)


def _is_harmless(thing: Any, home: str) -> bool:
    """Returns True if a class or function of a library only computes with arrays.

    It must do so for all arguments. Classes do, since they are instantiated without being called.
    The exception are dataclasses with ``__call__``, which may call one of their fields; nnx's
    filters only compare.
    """
    if inspect.isclass(thing):
        is_called = any('__call__' in vars(base) for base in thing.__mro__)
        is_setting = not is_called or home == 'flax.nnx.filterlib'
        return is_setting or not _is_dataclass(thing) or _is_linen_class(thing)
    name = getattr(thing, '__name__', '')
    is_private = name.startswith('_') and home.split('.')[0] == 'jax'
    return is_inside(home, _ARRAY_FUNCTIONS) and name not in _NO_ARRAY_FUNCTIONS and not is_private


def check_called_with_arguments(name: str, trusted: Sequence[str]) -> None:
    """Checks that a function may be called with arguments that a file chose.

    Raises:
        ModelFileError: for functions that are neither from a library nor trusted.
    """
    home = resolve(name, FUNCTION, trusted).__module__
    if not is_inside(home, (*LIBRARIES, *trusted)):
        raise MissingNameError(
            f'{name!r} is called with arguments from the file. If you trust both, pass '
            f'trusted=[{name.split(":")[0]!r}]'
        )


def is_inside(module: str, packages: Sequence[str]) -> bool:
    """Returns True if a module is one of the packages or in one of them."""
    return f'{module}.'.startswith(_beginnings(tuple(packages)))


@functools.cache
def _beginnings(packages: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f'{package}.' for package in packages)
