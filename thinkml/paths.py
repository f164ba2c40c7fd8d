"""Paths: the files and directories that users name."""

import os
import re
from pathlib import Path
from typing import Any

from thinkml.errors import ConfigError

# Two letters at least: C:/ is a drive. `pathlib` makes one slash of two.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/+')
_MAX_SHOWN = 200


def local_path(path: Any, argument: str = 'path') -> Path:
    """Returns the absolute path of a file or directory that a user names.

    A leading ``~`` is the home directory. A relative path is made absolute at once, so that it
    stays the same when the working directory changes.

    Raises:
        ConfigError: if it is not a path, or has a scheme such as ``gs://``.

    Example:
        >>> from thinkml.paths import local_path
        >>> local_path('~/models') == Path.home() / 'models'
        True
    """
    problem = path_problem(path, argument)
    if problem is not None:
        raise ConfigError(problem)
    return expanded(path).absolute()


def local_directory(path: Any, argument: str = 'directory') -> Path:
    """Returns the absolute path of a directory that is there or can be made.

    Raises:
        ConfigError: if it is not a path, see `local_path`, or there is a file at it or above it.
    """
    found = local_path(path, argument)
    _check_folders(found, path, argument)
    return found


def local_file(path: Any, argument: str = 'path') -> Path:
    """Returns the absolute path of a file that is there or can be written.

    Raises:
        ConfigError: if it is not a path, see `local_path`, or there is a directory at it, or a file
            above it.
    """
    found = local_path(path, argument)
    if found.is_dir():
        raise ConfigError(
            f'{argument}: got {os.fspath(path)!r}, which is a directory, expected the path of a '
            'file. Add the name of a file to it.'
        )
    _check_folders(found.parent, path, argument)
    return found


def _check_folders(folder: Path, path: str | os.PathLike[str], argument: str) -> None:
    for place in (folder, *folder.parents):
        if os.path.lexists(place) and not place.is_dir():
            raise ConfigError(
                f'{argument}: got {os.fspath(path)!r}, but {os.fspath(place)!r} is a file, '
                'expected a directory or a new path. Choose another one.'
            )


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path as it was given, a leading ``~`` replaced by the home directory."""
    return Path(os.path.expanduser(path))


def path_problem(path: Any, argument: str = 'path') -> str | None:
    """Returns what is wrong with a path, a sentence; None for nothing."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or '\0' in text:
        got = repr(path)
        if len(got) > _MAX_SHOWN or '\n' in got:  # a model, where arguments were swapped
            got = type(path).__name__
        return f'{argument}: got {got}, expected a path: text or a pathlib.Path.'
    found = _SCHEME.match(text)
    if found is None:
        return None
    if found[1].lower() == 'file':
        plain = f'/{text[found.end() :]}'
        return f'{argument}: got {text!r}, expected a plain path, such as {plain!r}.'
    return (
        f'{argument}: got {text!r}, expected a path on this machine: {found[1]}:// is not read or '
        'written by ThinkML. Mount the storage as a directory and pass that, or use a local '
        'directory and copy it.'
    )
