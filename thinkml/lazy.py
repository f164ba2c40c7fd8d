"""Names of a package that are imported when they are first used."""

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

    For what not every user of the package needs: a training then begins without the modules that
    only evaluations import. Type checkers read the same names below ``if TYPE_CHECKING``. To be
    called last in the package: star imports get these names and those that are there already.

    Args:
        package: its ``__name__``.
        modules: of each module, its names, parted by spaces.
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
