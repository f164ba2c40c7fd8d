"""Names of a package that are imported when they are first used."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the ``__getattr__`` and ``__dir__`` of a package, see PEP 562.

    For what not every user of the package needs: a training then begins without the modules that
    only evaluations import. Type checkers read the same names below ``if TYPE_CHECKING``.

    Args:
        package: its ``__name__``.
        modules: of each module, its names, parted by spaces.
    """
    home = {name: module for module, listed in modules.items() for name in listed.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, listed
