"""The versions that a result was made with."""

import importlib.metadata
import platform

_LIBRARIES = ('thinkml', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def library_versions() -> dict[str, str]:
    """The versions of Python, ThinkML and the libraries under it, by name.

    Example:
        >>> from thinkml.versions import library_versions
        >>> 'jax' in library_versions()
        True
    """
    found = {'python': platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # used from a checkout that isn't installed
            continue
    return found
