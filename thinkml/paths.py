"""Paths: checks of the files and directories that users pass."""

import os
import re
from pathlib import Path

from thinkml.errors import ConfigError

# At least two letters, because C:/ is a drive. One slash is enough: `pathlib` joins two into one.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/+')
_MAX_SHOWN = 200


def local_path(path: str | os.PathLike[str], argument: str = 'path') -> Path:
    """Returns the absolute path of a file or directory that a user passes.

    A leading ``~`` is the home directory. A relative path is made absolute immediately, so it does
    not change with the working directory.

    Raises:
        ConfigError: if ``path`` is not a path, or has a scheme such as ``gs://``.

    Example:
        >>> from thinkml.paths import local_path
        >>> local_path('~/models') == Path.home() / 'models'
        True
    """
    problem = path_problem(path, argument)
    if problem is not None:
        raise ConfigError(problem)
    return expanded(path).absolute()


def local_directory(path: str | os.PathLike[str], argument: str = 'directory') -> Path:
    """Returns the absolute path of a directory that exists or can be created.

    Raises:
        ConfigError: if ``path`` is not a path, see `local_path`, or if it or one of its parents is
            a file.
    """
    resolved = local_path(path, argument)
    _check_folders(resolved, path, argument)
    return resolved


def local_file(path: str | os.PathLike[str], argument: str = 'path') -> Path:
    """Returns the absolute path of a file that exists or can be written.

    Raises:
        ConfigError: if ``path`` is not a path, see `local_path`, if it is a directory, or if one of
            its parents is a file.
    """
    resolved = local_path(path, argument)
    if resolved.is_dir():
        raise ConfigError(
            f'{argument}: got {os.fspath(path)!r}, which is a directory, expected the path of a '
            'file. Add the name of a file to it.'
        )
    _check_folders(resolved.parent, path, argument)
    return resolved


def _check_folders(folder: Path, path: str | os.PathLike[str], argument: str) -> None:
    for parent in (folder, *folder.parents):
        if os.path.lexists(parent) and not parent.is_dir():
            raise ConfigError(
                f'{argument}: got {os.fspath(path)!r}, but {os.fspath(parent)!r} is a file, '
                'expected a directory or a new path. Choose another one.'
            )


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns the path with a leading ``~`` replaced by the home directory."""
    return Path(os.path.expanduser(path))


def path_problem(path: object, argument: str = 'path') -> str | None:
    """Returns a sentence that says what is wrong with a path, or None if it is valid."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or '\0' in text:
        got = repr(path)
        if len(got) > _MAX_SHOWN or '\n' in got:  # a model, if arguments were swapped
            got = type(path).__name__
        return f'{argument}: got {got}, expected a path: text or a pathlib.Path.'
    scheme = _SCHEME.match(text)
    if scheme is None:
        return None
    if scheme[1].lower() == 'file':
        plain = f'/{text[scheme.end() :]}'
        return f'{argument}: got {text!r}, expected a plain path, such as {plain!r}.'
    return (
        f'{argument}: got {text!r}, expected a path on this machine: ThinkML does not read or '
        f'write {scheme[1]}://. Mount the storage as a directory and pass that, or use a local '
        'directory and copy it.'
    )
