"""Environment: the variables that ThinkML reads, and the directory of its cached files.

``THINKML_COMPILATION_CACHE=0`` switches the cache of compiled programs off,
``THINKML_FAST_CONVOLUTIONS=0`` switches the faster convolutions on CPUs off, and
``THINKML_HOME`` is the parent of the folder ``weights`` for pretrained weights.
"""

import os
import sys
from pathlib import Path

COMPILATION_CACHE = 'THINKML_COMPILATION_CACHE'
FAST_CONVOLUTIONS = 'THINKML_FAST_CONVOLUTIONS'
_HOME = 'THINKML_HOME'
_OFF = ('0', 'false', 'no', 'off')


def is_switched_off(variable: str) -> bool:
    """Returns True if the user has set an environment variable to 0, false, no or off."""
    return os.environ.get(variable, '').strip().lower() in _OFF


def user_cache_directory() -> Path:
    """Returns the platform's directory for a user's cache files.

    Raises:
        RuntimeError: if the user has no home directory.
    """
    if sys.platform == 'win32':
        return Path(os.environ.get('LOCALAPPDATA') or Path.home() / 'AppData' / 'Local')
    if sys.platform == 'darwin':
        return Path.home() / 'Library' / 'Caches'
    configured = Path(os.environ.get('XDG_CACHE_HOME', ''))
    # The specification ignores relative paths: https://specifications.freedesktop.org/basedir
    return configured if configured.is_absolute() else Path.home() / '.cache'


def cache_home() -> Path:
    """Returns ``$THINKML_HOME``, or the folder ``thinkml`` in the user's cache directory."""
    configured = os.environ.get(_HOME)
    return Path(configured).expanduser() if configured else user_cache_directory() / 'thinkml'
