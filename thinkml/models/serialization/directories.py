"""Model directories: atomic writes, checks against the manifest, and consistent reads.

Messages about the files of a directory do not contain its path, which the caller adds.
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
from typing import Any, NoReturn, TypeVar

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
from thinkml.models.serialization.json_values import Json
from thinkml.paths import local_path

Result = TypeVar('Result')

FORMAT = 2

MAX_JSON_BYTES = 256 * 2**20
_MAX_NAME_BYTES = 200  # the names of temporary directories are longer
_WAIT_SECONDS = 60.0
_MAX_READS = 20
_LEFTOVER = re.compile(r'\..+\.[0-9a-f]{12}\.thinkml-new')


def absolute(path: str | os.PathLike[str], argument: str = 'path') -> Path:
    """Returns a path as `local_path` does, absolute and without links and dots in its folders.

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
    """Checks that a model may be written to a path, before any work is done.

    If a save was killed after it had moved the old model aside, that model is first moved back.

    Raises:
        ModelFileError: if there is something at the path that may not be replaced.
    """
    if not path.parent.is_dir():  # it will be created
        return
    try:
        with filesystem.locked(path.parent, _WAIT_SECONDS):
            _check_replaceable(path, overwrite)
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f'path: {path} can not be written: {error}') from error


def _check_replaceable(path: Path, overwrite: bool) -> None:
    _restore(path)
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
    """Yields a new directory to fill, and moves it to ``path`` at the end.

    The old content of ``path`` stays until the new directory is on disk with its manifest. If the
    process is killed, one of the two is at ``path``, and the next save into the same folder removes
    the hidden directory that is left. After an error nothing has changed. If two processes write to
    one path, the later one replaces the result of the other, or gets the error without
    ``overwrite``. All processes of one run write one directory together.

    Raises:
        ModelFileError: if the directory can't be written, or ``path`` was created in the meantime.
    """
    temporary = Path(broadcast_result(lambda: str(_temporary_name(path)), ModelFileError))
    held = None

    def begin() -> None:
        nonlocal held
        path.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.locked(path.parent, _WAIT_SECONDS):
            temporary.mkdir()
            held = filesystem.lock(temporary)  # shows other processes that it is in use
            _sweep(path.parent)

    def finish() -> None:
        manifest.write(temporary, format=FORMAT)
        with filesystem.locked(path.parent, _WAIT_SECONDS):
            _replace(path, temporary, overwrite)

    try:
        broadcast_result(begin, ModelFileError)
        yield temporary
        barrier('model-written')
        broadcast_result(finish, ModelFileError)
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f'path: {path} could not be written: {error}') from error
    finally:
        if is_first_process():
            shutil.rmtree(temporary, ignore_errors=True)
        filesystem.unlock(held)


def _sweep(folder: Path) -> None:
    """Removes the remains of saves that were killed; locked directories are still being written."""
    for name in os.listdir(folder):
        leftover = folder / name
        if not _LEFTOVER.fullmatch(name) or leftover.is_symlink() or not leftover.is_dir():
            continue
        held = None
        with contextlib.suppress(FileNotFoundError):  # its own process just removed it
            held = filesystem.lock(leftover)
        if held is not None and held >= 0:  # unknown if folders can't be locked
            shutil.rmtree(leftover, ignore_errors=True)
        filesystem.unlock(held)


def _replace(path: Path, new: Path, overwrite: bool) -> None:
    """Moves a directory to a path where another one may be.

    No portable call swaps two directories. So for a moment the old one has another name, which
    `find` looks at too.
    """
    _check_replaceable(path, overwrite)
    aside = _aside(path)
    if path.exists():
        _discard(path)
        path.rename(aside)
    try:
        new.rename(path)  # fails if folders can't be locked and another process was first
    except OSError:
        _check_replaceable(path, overwrite)
        raise
    sync_folder(path.parent)
    _discard(path)


def _aside(path: Path) -> Path:
    return path.with_name(f'.{path.name}.thinkml-old')


def _temporary_name(path: Path) -> Path:
    return path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.thinkml-new')


def _is_model(path: Path) -> bool:
    return not path.is_symlink() and (path / manifest.NAME).is_file()


def _restore(path: Path) -> None:
    aside = _aside(path)
    if not os.path.lexists(path) and _is_model(aside):
        # Fails if another process has just finished: then a model is at the path.
        with contextlib.suppress(OSError):
            aside.rename(path)


def _discard(path: Path) -> None:
    """Removes a replaced model. Its name is free at once, even if the process is then killed."""
    aside = _aside(path)
    if not os.path.lexists(aside):
        return
    if not _is_model(aside):
        raise ModelFileError(f'path: {aside} is in the way and is not a model. Move it away.')
    trash = _temporary_name(path)
    aside.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def find(path: Path) -> Path:
    """Returns the directory of a model.

    Raises:
        ModelFileError: if there is none. Names what is there instead.
    """
    if not os.path.lexists(path) and _is_model(_aside(path)):
        return _aside(path)
    if not path.exists():
        raise ModelNotFoundError(f'path: {path} does not exist.')
    if not path.is_dir():
        raise ModelFileError(f'path: {path} is a file, expected the directory of a saved model.')
    if holds_checkpoints(path):
        raise ModelFileError(
            f'path: {path} holds checkpoints of a training, not a saved model. Create the model '
            f'and load their weights: thinkml.training.load_checkpoint({str(path)!r}, model).'
        )
    if not (path / manifest.NAME).is_file():
        raise ModelFileError(
            f'path: {path} is not the directory of a saved model: it has no {manifest.NAME}.'
        )
    return path


def models_in(folder: Path) -> list[Path]:
    """Returns the models directly in a folder, sorted; an empty list if it does not exist.

    Raises:
        ModelFileError: if it can't be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if _is_model(path) and path.name[0] != '.')
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ModelFileError(f'root: {folder} can not be listed: {error}') from error


def read_consistent(path: Path, read: Callable[[Path], Result]) -> Result:
    """Calls ``read`` with a model's directory, again if the model was replaced in the meantime.

    Raises:
        ModelFileError: if there is no model, or ``read`` fails although nothing was replaced.
    """
    for _ in range(_MAX_READS):
        before = _stamp(path)
        try:
            found = read(find(path))
        except ModelFileError:
            if _stamp(path) == before:
                raise
        else:
            if _stamp(path) == before:  # otherwise the result may mix both models
                return found
    raise ModelFileError(f'path: {path} was replaced {_MAX_READS} times while it was read.')


def _stamp(path: Path) -> list[tuple[int, int] | None]:
    """Returns a value that changes whenever the model at a path is replaced."""
    found: list[tuple[int, int] | None] = []
    for directory in (path, _aside(path)):
        try:
            status = (directory / manifest.NAME).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns))
    return found


def write_json(directory: Path, name: str, value: Json) -> None:
    """Writes strict JSON.

    Raises:
        ModelFileError: if it is too large to be read again.
    """
    content = json.dumps(value, indent=1, allow_nan=False).encode() + b'\n'
    if len(content) > MAX_JSON_BYTES:
        raise NotStorableError(
            f'{name}: {len(content)} bytes, at most {MAX_JSON_BYTES} can be read again. Keep large '
            'arrays in separate files.'
        )
    (directory / name).write_bytes(content)


def read_json(directory: Path, name: str, limit: int | None = None) -> Json:
    """Reads strict JSON.

    Raises:
        ModelFileError: if the file is missing, too large, or not a regular file of JSON.
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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f'{name} is not JSON')


def fingerprint(directory: Path) -> str:
    """Returns the hash of a model directory's manifest, which identifies its content."""
    return hashlib.sha256((directory / manifest.NAME).read_bytes()).hexdigest()


def verify(directory: Path, only: Collection[str] | None = None) -> None:
    """Checks the files of a model directory against its manifest.

    Args:
        directory: the directory of the model.
        only: the files whose content is checked; None for all. Missing and unlisted files are
            reported in any case.

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
    """Returns the files and hashes in a manifest of the first format; None for later formats."""
    found = read_json(directory, manifest.NAME, manifest.MAX_BYTES)
    hashes = found.get('sha256') if isinstance(found, dict) else None
    if not isinstance(hashes, dict):
        return None
    # ThinkML writes exactly this text, so any other text with the same meaning is a change.
    written = json.dumps({'format': 1, 'sha256': hashes}, indent=1, sort_keys=True).encode()
    if (directory / manifest.NAME).read_bytes() != written + b'\n':
        raise ModelFileError(f'{manifest.NAME!r} changed since it was written')
    sizes = {
        path.relative_to(directory).as_posix(): path.lstat().st_size
        for path in directory.rglob('*')
    }
    return {name: [sizes.get(name, 0), digest] for name, digest in hashes.items()}
