"""Versions: the libraries and the code that produced a result."""

import importlib.metadata
import os
import platform
import subprocess
import sys

from thinkml import __version__

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def library_versions() -> dict[str, str]:
    """Returns the versions of Python, ThinkML and its main dependencies, by name.

    Example:
        >>> from thinkml.versions import library_versions
        >>> 'jax' in library_versions()
        True
    """
    found = {'python': platform.python_version(), 'thinkml': __version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a build under another name
            continue
    return found


def code_revision() -> str | None:
    """Returns the Git commit of the program's code, with ``-dirty`` if files differ from it.

    The repository is that of the main program's folder, or of the working directory in a notebook.
    Returns None outside of a Git repository.
    """
    main = getattr(sys.modules.get('__main__'), '__file__', None)
    folder = os.path.dirname(os.path.abspath(main)) if main else os.getcwd()
    command = ['git', '-C', folder, 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
