"""Model directories: written whole or not at all, and checked before they are read.

What is wrong with the files of a directory is worded without its path, which the caller adds.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from thinkml.checkpoint.disk import sync_folder
from thinkml.errors import ModelFileError

Result = TypeVar('Result')

MANIFEST = 'manifest.json'
MAX_JSON_BYTES = 256 * 2**20
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 100_000


def check_target(path: Path, overwrite: bool) -> None:
    """Checks that a model may be written to a path, before any work is done for it.

    A model that a save left aside when it was killed is first put back.

    Raises:
        ModelFileError: if something is there that may not be replaced.
    """
    _put_back(path)
    if not os.path.lexists(path):
        return
    if not _is_model(path):
        raise ModelFileError(
            f'path: {path} exists and is not a model, so it is not overwritten. Choose another '
            'path.'
        )
    if not overwrite:
        raise ModelFileError(
            f'path: {path} exists. Choose another path, or pass overwrite=True to replace it.'
        )


@contextlib.contextmanager
def written_whole(path: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a new directory to fill, and puts it in place of ``path`` at the end.

    What was at ``path`` stays until the new directory is on disk with its manifest; a process that
    is killed leaves the one or the other. After an error nothing has changed. Of two processes
    that write to one path without ``overwrite``, one gets the error.

    Raises:
        ModelFileError: if the directory can't be written, or something came to be at ``path``.
    """
    beside = _unused(path)
    try:
        beside.mkdir(parents=True)
        yield beside
        _write_manifest(beside)
        _replace(path, beside, overwrite)
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f'path: {path} could not be written: {error}') from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace(path: Path, new: Path, overwrite: bool) -> None:
    """Moves a directory to a path where another one may be.

    No portable call swaps two directories, so for a moment the old one is aside; `find` looks
    there too.
    """
    check_target(path, overwrite)
    aside = _aside(path)
    if path.exists():
        _discard(aside)
        path.rename(aside)
    try:
        new.rename(path)  # fails where another process put a model in the meantime
    except OSError:
        check_target(path, overwrite)
        raise
    sync_folder(path.parent)
    _discard(aside)


def _aside(path: Path) -> Path:
    return path.with_name(f'.{path.name}.thinkml-old')


def _unused(path: Path) -> Path:
    return path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.tmp')


def _is_model(path: Path) -> bool:
    return not path.is_symlink() and (path / MANIFEST).is_file()


def _put_back(path: Path) -> None:
    aside = _aside(path)
    if not os.path.lexists(path) and _is_model(aside):
        # Fails where another process has just finished: then a model is at the path.
        with contextlib.suppress(OSError):
            aside.rename(path)


def _discard(aside: Path) -> None:
    """Removes a model that was replaced; its place is free at once, also if the rest is killed."""
    if not os.path.lexists(aside):
        return
    if not _is_model(aside):
        raise ModelFileError(f'path: {aside} is in the way and is not a model. Move it away.')
    trash = _unused(aside)
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
        raise ModelFileError(f'path: {path} does not exist.')
    if not path.is_dir():
        raise ModelFileError(f'path: {path} is a file, expected the directory of a saved model.')
    if not (path / MANIFEST).is_file():
        raise ModelFileError(
            f'path: {path} is not the directory of a saved model: it has no {MANIFEST}.'
        )
    return path


def read_whole(path: Path, read: Callable[[Path], Result]) -> Result:
    """Calls ``read`` with a model's directory, and again if the model was replaced meanwhile.

    Raises:
        ModelFileError: if there is no model, or ``read`` fails and nothing was replaced.
    """
    before = _stamp(path)
    try:
        return read(find(path))
    except ModelFileError:
        if _stamp(path) == before:
            raise
    return read(find(path))


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the model at a path is another one."""
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def write_json(directory: Path, name: str, value: Any) -> None:
    """Writes strict JSON.

    Raises:
        ModelFileError: if it is too large to be read again.
    """
    content = json.dumps(value, indent=1, allow_nan=False).encode() + b'\n'
    if len(content) > MAX_JSON_BYTES:
        raise ModelFileError(
            f'{name}: {len(content)} bytes, at most {MAX_JSON_BYTES} can be read again. Keep large '
            'arrays in files of their own.'
        )
    (directory / name).write_bytes(content)


def read_json(directory: Path, name: str, limit: int | None = None) -> Any:
    """Reads strict JSON.

    Raises:
        ModelFileError: if the file is missing, too large, or something else.
    """
    limit = MAX_JSON_BYTES if limit is None else limit
    try:
        size = (directory / name).stat().st_size
        content = (directory / name).read_bytes() if size <= limit else b''
    except OSError as error:
        raise ModelFileError(f'{name} can not be read: {error}') from error
    if size > limit:
        raise ModelFileError(f'{name} has {size} bytes, at most {limit} are read')
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f'{name} is damaged: {error}') from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON')


def verify(directory: Path) -> None:
    """Checks every file of a model directory against its manifest.

    Raises:
        ModelFileError: for the first file that is missing, changed or not listed. Names it.
    """
    manifest = read_json(directory, MANIFEST, MAX_MANIFEST_BYTES)
    listed = manifest.get('sha256') if isinstance(manifest, dict) else None
    # Written in one way only: whatever else means the same was not written by us.
    if not isinstance(listed, dict) or (directory / MANIFEST).read_bytes() != _manifest(listed):
        raise ModelFileError(f'{MANIFEST} is damaged')
    found = {name: path for name, path in _files(directory) if name != MANIFEST}
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            raise ModelFileError(f'{name} is missing')
        if name not in listed:
            raise ModelFileError(f'{name} is not part of the model')
        if _sha256(found[name]) != listed[name]:
            raise ModelFileError(f'{name} is damaged: it changed since it was saved')


def _manifest(hashes: dict[str, str]) -> bytes:
    manifest = {'format': 1, 'sha256': hashes}
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b'\n'


def _write_manifest(directory: Path) -> None:
    hashes = {name: _sha256(path, sync=True) for name, path in _files(directory)}
    (directory / MANIFEST).write_bytes(_manifest(hashes))
    _sync_file(directory / MANIFEST)
    for folder, _, _ in os.walk(directory):
        sync_folder(Path(folder))


def _files(directory: Path) -> list[tuple[str, Path]]:
    """All files by their name within the directory.

    Raises:
        ModelFileError: for links and devices, which could lead out of it, and too many files.
    """
    files = []
    folders = [directory]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(directory).as_posix()
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    files.append((name, Path(entry.path)))
                else:
                    raise ModelFileError(f'{name} is not a regular file')
        if len(files) + len(folders) > MAX_FILES:
            raise ModelFileError(f'it has more than {MAX_FILES} files')
    return files


def _sha256(path: Path, sync: bool = False) -> str:
    if sync:
        _sync_file(path)
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _sync_file(path: Path) -> None:
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())
