"""Lazy imports: names of a package that are imported when they are first used."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the ``__getattr__`` and ``__dir__`` of a package, see PEP 562.

    Use it for names that not every user needs: training then starts without the modules that only
    evaluation imports. Type checkers read the same names below ``if TYPE_CHECKING``. Call it last
    in the package: star imports get these names and those that are defined already.

    Args:
        package: the package's ``__name__``.
        modules: the names of each module, separated by spaces.
    """
    home = {name: module for module, listed in modules.items() for name in listed.split()}
    here = vars(sys.modules[package])
    public = {n for n, v in here.items() if n[0] != '_' and not isinstance(v, ModuleType)}
    here['__all__'] = sorted({*public, *home} - {'TYPE_CHECKING'})

    def get(name: str) -> Any:
        if name in home:
            value = here[name] = getattr(importlib.import_module(home[name]), name)
            return value
        if name[0] != '_' and importlib.util.find_spec(f'{package}.{name}') is not None:
            return importlib.import_module(f'{package}.{name}')
        raise AttributeError(f'module {package!r} has no attribute {name!r}')

    def listed() -> list[str]:
        return sorted({*here, *home})

    return get, listed
