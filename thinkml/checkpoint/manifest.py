"""Manifest: a file with the size and SHA-256 of every other file in a directory.

A directory with a manifest is complete. A file that differs from the manifest has been changed.
"""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thinkml.checkpoint.filesystem import read_bounded, sync_folder, write_synced

NAME = 'manifest.json'
MAX_BYTES = 64 * 2**20
MAX_FILES = 100_000
_MAX_DEPTH = 100

_PART = f'{NAME}.part'


def write(directory: Path, **about: Any) -> None:
    """Hashes every file of a directory, flushes it to disk, and then writes the manifest.

    The manifest is written atomically.

    Args:
        directory: the directory, with complete files and no links.
        **about: further plain JSON values for the manifest.

    Raises:
        OSError: if a file can't be read or the manifest can't be written.
        ValueError: if the directory contains something that a manifest can't list.
    """
    paths, folders = {}, [os.fspath(directory)]
    for name, path, mode in _walk(directory):
        if stat.S_ISDIR(mode):
            folders.append(path)
        elif stat.S_ISREG(mode):
            paths[name] = path
        else:
            raise ValueError(f'{name!r} is not a regular file')
    # Hashing releases the interpreter's lock: one thread per core.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        files = dict(zip(paths, threads.map(_sync_and_fingerprint, paths.values()), strict=True))
    for folder in folders:
        sync_folder(folder)
    write_synced(directory / _PART, _encode({**about, 'files': files}))
    os.replace(directory / _PART, directory / NAME)
    sync_folder(directory)


def update(directory: Path, **about: Any) -> None:
    """Replaces further values of a manifest, atomically; the files are not read again.

    Raises:
        OSError: if the manifest can't be read or written.
        ValueError: if it was changed after `write`.
    """
    # Beside the directory, which must contain nothing else if the process is killed.
    part = directory.parent / f'.{directory.name}.{_PART}'
    write_synced(part, _encode({**read(directory), **about}))
    os.replace(part, directory / NAME)
    sync_folder(directory)


def read(directory: Path) -> dict[str, Any]:
    """Returns the content of the manifest.

    Raises:
        ValueError: if it was changed after `write`.
        OSError: if it can't be read.
    """
    path = directory / NAME
    if path.is_symlink():
        raise ValueError(f'{NAME!r} is a symbolic link')
    content = read_bounded(path, MAX_BYTES)
    try:
        manifest = json.loads(content)
        del manifest['sha256']
        sound = content == _encode(manifest)
    except (ValueError, RecursionError, KeyError, TypeError):
        sound, manifest = False, {}
    if not sound:
        raise ValueError(f'{NAME!r} changed since it was written')
    return manifest


def damage(directory: Path, only: Collection[str] | None = None, **about: Any) -> str | None:
    """Describes the first difference between a directory and its manifest; None if there is none.

    Args:
        directory: the directory of the files.
        only: the files whose contents are compared; None for all.
        **about: further values that the manifest must contain.
    """
    if directory.is_symlink():
        return 'it is a symbolic link'
    try:
        manifest = read(directory)
        for name, expected in about.items():
            if manifest.get(name) != expected:
                return f'its manifest is that of {name} {manifest.get(name)!r}'
        return difference(directory, manifest['files'], only)
    except FileNotFoundError as error:
        return f'{os.path.relpath(error.filename or directory, directory)!r} is missing'
    except (OSError, ValueError) as error:
        return str(error)


def difference(
    directory: Path, listed: Mapping[str, Any], only: Collection[str] | None = None
) -> str | None:
    """Describes the first file or folder that differs from the list; None if there is none.

    Sizes are compared first, since that costs nothing.
    """
    if any(name.count('/') > _MAX_DEPTH for name in listed):
        return f'a file of it is more than {_MAX_DEPTH} folders deep'
    folders = {name[:end] for name in listed for end, sign in enumerate(name) if sign == '/'}
    found = {}
    for name, path, mode in _walk(directory):
        if stat.S_ISREG(mode) and (name in listed or name == NAME):
            found[name] = path
        elif not (stat.S_ISDIR(mode) and name in folders):
            return f'{name!r} is not part of it'
    for name in sorted(listed.keys() - found.keys()):
        return f'{name!r} is missing'
    for name, (size, _) in listed.items():
        if (has := os.stat(found[name]).st_size) != size:
            return f'{name!r} has {has} bytes, expected {size}'
    compared = sorted(listed if only is None else listed.keys() & only)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        fingerprints = threads.map(lambda name: _fingerprint(found[name]), compared)
        for name, fingerprint in zip(compared, fingerprints, strict=True):
            if fingerprint != listed[name]:
                return f'{name!r} changed since it was written'
    return None


def _encode(manifest: dict[str, Any]) -> bytes:
    """Encodes a manifest as canonical JSON with its digest, so that any change is detected."""
    body = json.dumps(manifest, indent=1, sort_keys=True).encode()
    manifest = {**manifest, 'sha256': hashlib.sha256(body).hexdigest()}
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b'\n'


def _walk(directory: Path) -> Iterator[tuple[str, str, int]]:
    """Yields the relative name, path and mode of everything in a directory; follows no links."""
    folders, count = [('', os.fspath(directory))], 0
    while folders:
        within, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    raise ValueError(f'it has more than {MAX_FILES} files')
                name = within + entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    folders.append((f'{name}/', entry.path))
                yield name, entry.path, mode


def _sync_and_fingerprint(path: str) -> list[int | str]:
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())
    return _fingerprint(path)


def _fingerprint(path: str) -> list[int | str]:
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
        return [file.tell(), digest]
