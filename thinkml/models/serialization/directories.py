"""Model directories: written whole or not at all, and checked before they are read.

What is wrong with the files of a directory is worded without its path, which the caller adds.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from thinkml.checkpoint import filesystem, manifest
from thinkml.checkpoint.checkpointer import holds_checkpoints
from thinkml.checkpoint.filesystem import read_bounded, sync_folder
from thinkml.core.parallel.multiprocess import barrier, broadcast_result, is_first_process
from thinkml.errors import (
    ConfigError,
    ModelExistsError,
    ModelFileError,
    ModelNotFoundError,
    NotStorableError,
)
from thinkml.paths import local_path

Result = TypeVar('Result')

FORMAT = 2

MAX_JSON_BYTES = 256 * 2**20
_MAX_NAME_BYTES = 200  # what stands beside has a longer name
_WAIT_SECONDS = 60.0
_MAX_READS = 20
_LEFTOVER = re.compile(r'\..+\.[0-9a-f]{12}\.thinkml-new')


def absolute(path: Any, argument: str = 'path') -> Path:
    """Returns where a path leads, see `local_path`, without links and dots in its folders.

    Raises:
        ConfigError: if it is not a path.
    """
    found = local_path(path, argument)
    name = Path(path).name or found.name
    if not name:
        raise ConfigError(f'{argument}: got {path!r}, expected the path of a directory below it.')
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ConfigError(
            f'{argument}: got a name of {len(name)} letters, expected at most {_MAX_NAME_BYTES}.'
        )
    return found.resolve() if name == '..' else found.parent.resolve() / found.name


def check_target(path: Path, overwrite: bool) -> None:
    """Checks that a model may be written to a path, before any work is done for it.

    A model that a save left aside when it was killed is first put back.

    Raises:
        ModelFileError: if something is there that may not be replaced.
    """
    if not path.parent.is_dir():  # it will be made
        return
    try:
        with filesystem.locked(path.parent, _WAIT_SECONDS):
            _check_free(path, overwrite)
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f'path: {path} can not be written: {error}') from error


def _check_free(path: Path, overwrite: bool) -> None:
    _put_back(path)
    if not os.path.lexists(path):
        return
    if not _is_model(path):
        raise ModelExistsError(
            f'path: {path} exists and is not a model, so it is not overwritten. Choose another '
            'path.'
        )
    if not overwrite:
        raise ModelExistsError(
            f'path: {path} exists. Choose another path, or pass overwrite=True to replace it.'
        )


@contextlib.contextmanager
def atomic_directory(path: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a new directory to fill, and puts it in place of ``path`` at the end.

    What was at ``path`` stays until the new directory is on disk with its manifest; a process that
    is killed leaves the one or the other, and a hidden directory that the next save beside it
    removes. After an error nothing has changed. Of two processes that write to one path, the later
    one replaces what the other wrote, or without ``overwrite`` gets the error. The processes of one
    run write one directory together.

    Raises:
        ModelFileError: if the directory can't be written, or something came to be at ``path``.
    """
    beside = Path(broadcast_result(lambda: str(_unused(path)), ModelFileError))
    held = None

    def begin() -> None:
        nonlocal held
        path.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.locked(path.parent, _WAIT_SECONDS):
            beside.mkdir()
            held = filesystem.lock(beside)  # says that somebody is at work here
            _sweep(path.parent)

    def finish() -> None:
        manifest.write(beside, format=FORMAT)
        with filesystem.locked(path.parent, _WAIT_SECONDS):
            _replace(path, beside, overwrite)

    try:
        broadcast_result(begin, ModelFileError)
        yield beside
        barrier('model-written')
        broadcast_result(finish, ModelFileError)
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f'path: {path} could not be written: {error}') from error
    finally:
        if is_first_process():
            shutil.rmtree(beside, ignore_errors=True)
        filesystem.unlock(held)


def _sweep(folder: Path) -> None:
    """Removes what saves that were killed have left; what is locked somebody is still writing."""
    for name in os.listdir(folder):
        leftover = folder / name
        if not _LEFTOVER.fullmatch(name) or leftover.is_symlink() or not leftover.is_dir():
            continue
        held = None
        with contextlib.suppress(FileNotFoundError):  # who failed there removes it just now
            held = filesystem.lock(leftover)
        if held is not None and held >= 0:  # nobody knows where folders can't be locked
            shutil.rmtree(leftover, ignore_errors=True)
        filesystem.unlock(held)


def _replace(path: Path, new: Path, overwrite: bool) -> None:
    """Moves a directory to a path where another one may be.

    No portable call swaps two directories, so for a moment the old one is aside; `find` looks
    there too.
    """
    _check_free(path, overwrite)
    aside = _aside(path)
    if path.exists():
        _discard(path)
        path.rename(aside)
    try:
        new.rename(path)  # fails where folders can't be locked and another process was first
    except OSError:
        _check_free(path, overwrite)
        raise
    sync_folder(path.parent)
    _discard(path)


def _aside(path: Path) -> Path:
    return path.with_name(f'.{path.name}.thinkml-old')


def _unused(path: Path) -> Path:
    return path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.thinkml-new')


def _is_model(path: Path) -> bool:
    return not path.is_symlink() and (path / manifest.NAME).is_file()


def _put_back(path: Path) -> None:
    aside = _aside(path)
    if not os.path.lexists(path) and _is_model(aside):
        # Fails where another process has just finished: then a model is at the path.
        with contextlib.suppress(OSError):
            aside.rename(path)


def _discard(path: Path) -> None:
    """Removes a model that was replaced; its place is free at once, also if the rest is killed."""
    aside = _aside(path)
    if not os.path.lexists(aside):
        return
    if not _is_model(aside):
        raise ModelFileError(f'path: {aside} is in the way and is not a model. Move it away.')
    trash = _unused(path)
    aside.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def find(path: Path) -> Path:
    """Returns the directory of a model.

    Raises:
        ModelFileError: if there is none; says what is there.
    """
    if not os.path.lexists(path) and _is_model(_aside(path)):
        return _aside(path)
    if not path.exists():
        raise ModelNotFoundError(f'path: {path} does not exist.')
    if not path.is_dir():
        raise ModelFileError(f'path: {path} is a file, expected the directory of a saved model.')
    if holds_checkpoints(path):
        raise ModelFileError(
            f'path: {path} holds checkpoints of a training, not a saved model. Make the model and '
            f'load their weights: thinkml.training.load_checkpoint({str(path)!r}, model).'
        )
    if not (path / manifest.NAME).is_file():
        raise ModelFileError(
            f'path: {path} is not the directory of a saved model: it has no {manifest.NAME}.'
        )
    return path


def models_in(folder: Path) -> list[Path]:
    """The models that are directly in a folder, sorted; none where there is no such folder.

    Raises:
        ModelFileError: if it can't be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if _is_model(path) and path.name[0] != '.')
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelFileError(f'root: {folder} can not be listed: {error}') from error


def read_whole(path: Path, read: Callable[[Path], Result]) -> Result:
    """Calls ``read`` with a model's directory, and again where the model was replaced meanwhile.

    Raises:
        ModelFileError: if there is no model, or ``read`` fails and nothing was replaced.
    """
    for _ in range(_MAX_READS):
        before = _stamp(path)
        try:
            found = read(find(path))
        except ModelFileError:
            if _stamp(path) == before:
                raise
        else:
            if _stamp(path) == before:  # else it may hold something of both
                return found
    raise ModelFileError(f'path: {path} was replaced {_MAX_READS} times while it was read.')


def _stamp(path: Path) -> list[tuple[int, int] | None]:
    """Changes whenever the model at a path is another one."""
    found: list[tuple[int, int] | None] = []
    for directory in (path, _aside(path)):
        try:
            status = (directory / manifest.NAME).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns))
    return found


def write_json(directory: Path, name: str, value: Any) -> None:
    """Writes strict JSON.

    Raises:
        ModelFileError: if it is too large to be read again.
    """
    content = json.dumps(value, indent=1, allow_nan=False).encode() + b'\n'
    if len(content) > MAX_JSON_BYTES:
        raise NotStorableError(
            f'{name}: {len(content)} bytes, at most {MAX_JSON_BYTES} can be read again. Keep large '
            'arrays in files of their own.'
        )
    (directory / name).write_bytes(content)


def read_json(directory: Path, name: str, limit: int | None = None) -> Any:
    """Reads strict JSON.

    Raises:
        ModelFileError: if the file is missing, too large, or something else.
    """
    try:
        content = read_bounded(directory / name, MAX_JSON_BYTES if limit is None else limit)
    except OSError as error:
        raise ModelFileError(f'{name} can not be read: {error}') from error
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f'{name} is damaged: {error}') from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON')


def fingerprint(directory: Path) -> str:
    """Identifies what a model directory holds, by its manifest."""
    return hashlib.sha256((directory / manifest.NAME).read_bytes()).hexdigest()


def verify(directory: Path, only: Collection[str] | None = None) -> None:
    """Checks the files of a model directory against its manifest.

    Args:
        directory: of the model.
        only: the files whose contents are looked at; None for all. That no others are missing or
            too many is checked in any case.

    Raises:
        ModelFileError: for the first file that is missing, changed or not listed. Names it.
    """
    listed = _listed_in_format_1(directory)
    if listed is None:
        problem = manifest.damage(directory, only)
    else:
        problem = manifest.difference(directory, listed, only)
    if problem is not None:
        raise ModelFileError(problem)


def _listed_in_format_1(directory: Path) -> dict[str, Any] | None:
    """The files and hashes that a manifest of the first format lists; None for later ones."""
    found = read_json(directory, manifest.NAME, manifest.MAX_BYTES)
    hashes = found.get('sha256') if isinstance(found, dict) else None
    if not isinstance(hashes, dict):
        return None
    # Written in one way only: whatever else means the same was not written by us.
    written = json.dumps({'format': 1, 'sha256': hashes}, indent=1, sort_keys=True).encode()
    if (directory / manifest.NAME).read_bytes() != written + b'\n':
        raise ModelFileError(f'{manifest.NAME!r} changed since it was written')
    sizes = {
        path.relative_to(directory).as_posix(): path.lstat().st_size
        for path in directory.rglob('*')
    }
    return {name: [sizes.get(name, 0), digest] for name, digest in hashes.items()}
