"""Whether the code that a model is made of is still the code it was saved with."""

import hashlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from thinkml.models.serialization.import_allowlist import LIBRARIES, is_installed
from thinkml.models.serialization.json_values import Json

_NAME = re.compile(r'([A-Za-z_][\w.]*):([A-Za-z_]\w*)')
_MAX_MODULES = 1000


def source_hashes(structure: Json) -> dict[str, str]:
    """The SHA-256 of the source of each module of the user's own that a model's code is in.

    Those of the classes and functions it names, and those that these modules use in turn.
    """
    waiting = sorted({name.partition(':')[0] for name in _names(structure)})
    found: dict[str, str] = {}
    while waiting and len(found) < _MAX_MODULES:
        name = waiting.pop()
        digest = None if name in found else _hash(name)
        if digest is not None:
            found[name] = digest
            waiting += _used_by(sys.modules[name])
    return dict(sorted(found.items()))


def changed_sources(hashes: Mapping[str, str]) -> list[str]:
    """The modules whose source is another one now. Nothing is imported."""
    return [name for name, digest in hashes.items() if _hash(name) not in (None, digest)]


def _names(node: Json) -> Iterator[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _names(item)
    elif isinstance(node, str) and _NAME.fullmatch(node):
        yield node


def _used_by(module: types.ModuleType) -> set[str]:
    """The modules that a module holds, or holds something of."""
    held = list(vars(module).values())
    names = (t.__name__ if isinstance(t, types.ModuleType) else _home(t) for t in held)
    return {name for name in names if name}


def _home(thing: Any) -> str:
    home = getattr(thing, '__module__', None)
    return home if isinstance(home, str) else ''


def _hash(name: str) -> str | None:
    """Of a module of the user's own that is imported from a file; None for all others."""
    module, top = sys.modules.get(name), name.split('.')[0]
    if module is None or top in LIBRARIES or top in sys.stdlib_module_names:
        return None
    if is_installed(module):
        return None
    try:
        return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
    except OSError:
        return None
