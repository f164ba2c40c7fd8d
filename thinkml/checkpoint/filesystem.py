"""File system: durable writes, bounded reads, locks of directories, and readable sizes."""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PROBE = b'\0' * 4096


def open_directory(directory: Path) -> None:
    """Creates a directory, and writes to it as a test.

    Raises:
        OSError: if the directory can't be created or written, or the disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_probe(directory, sync=True)


def write_probe(directory: Path, sync: bool = False) -> None:
    """Writes a temporary file to a directory as a test; flushes it to disk if ``sync``.

    Raises:
        OSError: if the directory can't be written.
    """
    with tempfile.TemporaryFile(dir=directory) as file:  # has no name, so nothing is left
        file.write(_PROBE)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def read_bounded(path: Path, limit: int) -> bytes:
    """Reads a regular file of at most ``limit`` bytes, without waiting for a pipe or a device.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is not a regular file, or larger.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0)), 'rb') as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f'{path.name} is not a regular file')
        content = file.read(limit + 1) if status.st_size <= limit else None
    if content is None or len(content) > limit:
        raise ValueError(f'{path.name} has {status.st_size} bytes, at most {limit} are read')
    return content


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on disk."""
    with open(path, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: str | Path) -> None:
    """Makes renames in a folder durable; Windows has no such call, and needs none."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# The descriptors of this process's locks.
_locks: set[int] = set()


def _close_locks() -> None:
    """Closes the locks in a forked process, which would otherwise hold them too long."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_locks)


def lock(folder: Path) -> int | None:
    """Locks a folder until `unlock` is called or the process ends.

    Returns:
        the descriptor; None if the folder is already locked; -1 if folders can't be locked.
    """
    if fcntl is None:
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return -1
    _locks.add(descriptor)
    return descriptor


def unlock(descriptor: int | None) -> None:
    """Releases a lock; does nothing in a process forked from the one that holds it."""
    if fcntl is not None and descriptor in _locks:
        _locks.remove(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, seconds: float) -> Iterator[None]:
    """Holds the lock of a folder in a ``with`` block, if folders can be locked.

    Raises:
        OSError: if another process has held it for ``seconds``, or there is no such folder.
    """
    deadline = time.monotonic() + seconds
    while (descriptor := lock(folder)) is None:
        if time.monotonic() >= deadline:
            raise TimeoutError(f'another process has held {folder} for {seconds:g} seconds')
        time.sleep(0.01)
    try:
        yield
    finally:
        unlock(descriptor)


def remove(path: Path, trash: Path) -> None:
    """Removes a directory or a link, after an atomic rename: a kill leaves only the trash."""
    path.rename(trash)
    if trash.is_symlink():
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)


def readable(num_bytes: int) -> str:
    """Returns a number of bytes as readable text, such as ``'1.5 GB'``."""
    for size, unit in ((1e12, 'TB'), (1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
        if num_bytes >= size:
            return f'{num_bytes / size:.1f} {unit}'
    return f'{num_bytes} bytes'
