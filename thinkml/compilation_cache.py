"""Compiled programs kept on disk, so that a process compiles none that an earlier one has compiled.

JAX has such a cache, but leaves it off and has no place for it. Importing `thinkml.core` switches
it on, in the user's own cache directory, unless the user has set one up or switched it off. What is
kept there are machine instructions, so the directory must be the user's alone; they are made for
one kind of processor, so each kind has a directory of its own: homes are shared between machines.
JAX itself keeps the programs of its versions, backends and flags apart.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_log = logging.getLogger(__name__)

_OFF = ('0', 'false', 'no', 'off')

# The least recently used programs go first.
MAX_BYTES = 1 << 30
_DIGEST_BYTES = hashlib.sha256().digest_size


def switch_on() -> Path | None:
    """Switches JAX's compilation cache on, unless the user has decided about it.

    Nothing is switched on with ``THINKML_COMPILATION_CACHE=0``, where JAX's own settings
    (``jax_compilation_cache_dir``, ``jax_enable_compilation_cache``) say where or whether, and
    where no directory is to be had that nobody else can write to.

    Returns:
        where programs are kept; None if it was not switched on.
    """
    settings: Any = jax.config  # whose names type checkers don't know
    if (
        os.environ.get('THINKML_COMPILATION_CACHE', '').lower() in _OFF
        or settings.jax_compilation_cache_dir is not None
        or not settings.jax_enable_compilation_cache
    ):
        return None
    try:
        directory = _own_directory(user_cache_directory() / 'thinkml' / 'compiled')
        directory = _own_directory(directory / _machine())
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _log.info('Compiled programs are not kept: %s', error)
        return None
    if not _use_own_entries(directory):
        _log.info('This version of JAX writes the compiled programs itself.')
    jax.config.update('jax_compilation_cache_dir', str(directory))
    # A training's many small programs cost as much as its large one.
    for setting, default, least in (
        ('jax_persistent_cache_min_compile_time_secs', 1.0, 0.0),
        ('jax_persistent_cache_min_entry_size_bytes', 0, -1),
    ):
        if getattr(settings, setting) == default:  # else the user has set it
            jax.config.update(setting, least)
    return directory


def user_cache_directory() -> Path:
    """Where the platform keeps what a user's programs may lose.

    Raises:
        RuntimeError: if the user has no home.
    """
    if sys.platform == 'win32':
        return Path(os.environ.get('LOCALAPPDATA') or Path.home() / 'AppData' / 'Local')
    if sys.platform == 'darwin':
        return Path.home() / 'Library' / 'Caches'
    named = Path(os.environ.get('XDG_CACHE_HOME', ''))
    # What is not absolute is to be ignored: https://specifications.freedesktop.org/basedir
    return named if named.is_absolute() else Path.home() / '.cache'


def _own_directory(directory: Path) -> Path:
    """Makes it if it is not there.

    Raises:
        OSError: if that can't be, or it is another user's, or others can write to it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, 'geteuid'):
        found = directory.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(f'{directory} is not of this user alone: others can write to it')
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f'{directory} can not be written to')
    return directory


def _machine() -> str:
    """Identifies what XLA compiles for on a CPU: its instructions, and how many threads."""
    described = [sys.platform, os.environ.get('NPROC'), os.environ.get('PROCESSOR_IDENTIFIER')]
    if hasattr(os, 'sched_getaffinity'):
        described.append(len(os.sched_getaffinity(0)))
    if hasattr(os, 'uname'):
        described += [os.uname().machine, os.uname().version if sys.platform == 'darwin' else '']
    described += _first_processor()
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def _first_processor() -> Iterator[str]:
    """Linux's lines on its model and its instructions."""
    names = ('vendor_id', 'cpu family', 'model', 'stepping', 'flags', 'Features', 'CPU', 'isa')
    try:
        with open('/proc/cpuinfo') as lines:
            for line in lines:
                if not line.strip():
                    return
                if line.startswith(names):
                    yield line
    except OSError:  # not Linux
        return


class Programs:
    """A directory of compiled programs that any number of processes share.

    What is written appears whole or not at all, and is written anew where it is damaged: JAX's own
    cache writes in place, and never again, so that what a killed process or a full disk left half
    written is found damaged by every later process. Each program has its hash before it. Programs
    that several processes compile together are not kept, as a process that found one there would
    leave the others waiting.

    Args:
        directory: of this machine, beside those of others, which count for the size as well.
        max_bytes: what all programs take at most, but for those that this process adds meanwhile.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES):
        self._path = directory
        self._max_bytes = max_bytes
        self._until_pruned = 0
        self._failed = False

    def get(self, key: str) -> bytes | None:
        """The program, as it was put; None if there is none, or none that is whole."""
        if jax.process_count() > 1:
            return None
        file = self._file(key)
        try:
            entry = file.read_bytes()
            program = entry[_DIGEST_BYTES:]
            if hashlib.sha256(program).digest() != entry[:_DIGEST_BYTES]:
                return None
            os.utime(file)  # the time of its last use
        except OSError:
            return None
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program. After a failure nothing more is kept by this process."""
        if self._failed or jax.process_count() > 1:
            return
        file = self._file(key)
        beside = self._path / f'{secrets.token_hex(8)}.part'
        try:
            if self._until_pruned <= 0:
                prune(self._path.parent, self._max_bytes)
                self._until_pruned = self._max_bytes // 16
            self._until_pruned -= len(value)
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)  # the user may clear it
            with open(beside, 'xb', opener=_private) as out:
                out.write(hashlib.sha256(value).digest())
                out.write(value)
            os.replace(beside, file)
        except OSError as error:
            self._failed = True
            _log.info('No more compiled programs are kept: %s', error)
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._path / key[-200:]  # the hash is at its end


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def prune(root: Path, max_bytes: int) -> None:
    """Removes the files that were not used for longest, until those left take three quarters.

    Nothing is done where they take no more than ``max_bytes``.
    """
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # another process prunes, or has put it in its place
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    if total <= max_bytes:
        return
    for _, size, path in sorted(found):
        if total <= max_bytes * 3 // 4:
            return
        Path(path).unlink(missing_ok=True)
        total -= size


def _use_own_entries(directory: Path) -> bool:
    """Lets JAX read and write programs of this directory through `Programs`.

    JAX has no public way to say so. Without it, its own class writes them.
    """
    try:
        from jax._src import compilation_cache

        make_of_jax = compilation_cache.get_file_cache
    except (ImportError, AttributeError):
        return False

    def make(path: str) -> Any:
        if path != str(directory):  # the user has set another one since
            return make_of_jax(path)
        return Programs(directory), path

    compilation_cache.get_file_cache = make
    return True
