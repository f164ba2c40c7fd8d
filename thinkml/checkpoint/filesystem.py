"""What the file system is asked for beyond reading and writing: lasting files, locks, room."""

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
    """Makes a directory, and writes to it as a test.

    Raises:
        OSError: if that is impossible, or the disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_probe(directory, sync=True)


def write_probe(directory: Path, sync: bool = False) -> None:
    """Writes to a directory as a test, to the disk itself if ``sync``; nothing of it is left.

    Raises:
        OSError: if that is impossible.
    """
    with tempfile.TemporaryFile(dir=directory) as file:  # it has no name
        file.write(_PROBE)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def read_bounded(path: Path, limit: int) -> bytes:
    """Reads a regular file of at most ``limit`` bytes; a pipe or a device is not waited for.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is something else or larger.
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
    """Makes renames in a folder last; Windows has no such call, and needs none."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# The descriptors of this process's locks.
_locks: set[int] = set()


def _close_locks() -> None:
    """Closes them in a process that was forked, which would hold them longer than this one."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_locks)


def lock(folder: Path) -> int | None:
    """Locks a folder until `unlock` is called or the process ends.

    Returns:
        The descriptor; None if another one has the lock; -1 where folders can't be locked.
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
    """Gives a lock back; does nothing in a process that was forked from the one that has it."""
    if fcntl is not None and descriptor in _locks:
        _locks.remove(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, seconds: float) -> Iterator[None]:
    """Holds the lock of a folder, where folders can be locked.

    Raises:
        OSError: if another one has held it for ``seconds``, or there is no such folder.
    """
    until = time.monotonic() + seconds
    while (held := lock(folder)) is None:
        if time.monotonic() >= until:
            raise TimeoutError(f'another process has held {folder} for {seconds:g} seconds')
        time.sleep(0.01)
    try:
        yield
    finally:
        unlock(held)


def remove(path: Path, trash: Path) -> None:
    """Removes a directory or a link, first by name and at once: a kill leaves the trash only."""
    path.rename(trash)
    if trash.is_symlink():
        trash.unlink()
    else:
        shutil.rmtree(trash, ignore_errors=True)


def readable(num_bytes: int) -> str:
    """A number of bytes for people, such as ``'1.5 GB'``."""
    for size, unit in ((1e12, 'TB'), (1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
        if num_bytes >= size:
            return f'{num_bytes / size:.1f} {unit}'
    return f'{num_bytes} bytes'
