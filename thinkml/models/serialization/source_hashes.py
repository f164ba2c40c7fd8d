"""Hashes of the source code of a model, to find changes since it was saved."""

import hashlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

from thinkml.models.serialization.import_allowlist import LIBRARIES, is_installed
from thinkml.models.serialization.json_values import Json

_NAME = re.compile(r'([A-Za-z_][\w.]*):([A-Za-z_]\w*)')
_MAX_MODULES = 1000


def source_hashes(structure: Json) -> dict[str, str]:
    """Returns the SHA-256 of the source of each user module that a model's code depends on.

    These are the modules of the classes and functions that the structure names, and the modules
    that these use in turn. Modules of installed libraries are left out.
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
    """Returns the modules whose source has changed. Nothing is imported."""
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
    """Returns the modules that a module has as attributes, or from which its attributes come."""
    values = list(vars(module).values())
    names = (v.__name__ if isinstance(v, types.ModuleType) else _module_of(v) for v in values)
    return {name for name in names if name}


def _module_of(thing: object) -> str:
    module = getattr(thing, '__module__', None)
    return module if isinstance(module, str) else ''


def _hash(name: str) -> str | None:
    """Returns the hash of a user module that is imported from a file; None for all others."""
    module, top = sys.modules.get(name), name.split('.')[0]
    if module is None or top in LIBRARIES or top in sys.stdlib_module_names:
        return None
    if is_installed(module):
        return None
    try:
        return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
    except OSError:
        return None
