"""Compilation cache: compiled programs on disk, so a process compiles no program a second time.

JAX has such a cache, but leaves it off and has no default directory for it. Importing
`thinkml.core` switches it on in the user's cache directory, unless the user has set one up or
switched it off. The files contain machine code, so only the user may write to the directory. The
code is compiled for one kind of processor, so each kind has a separate directory: several machines
may share a home. JAX itself separates the programs of its versions, backends and flags.
"""

import contextlib
import contextvars
import hashlib
import logging
import os
import secrets
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from thinkml.environment import COMPILATION_CACHE, is_switched_off, user_cache_directory

_log = logging.getLogger(__name__)


# The least recently used programs are removed first.
MAX_BYTES = 1 << 30
_DIGEST_BYTES = hashlib.sha256().digest_size


def switch_on() -> Path | None:
    """Switches JAX's compilation cache on, unless the user has configured it.

    The cache stays as it is in three cases: if ``THINKML_COMPILATION_CACHE=0``, if the user has set
    JAX's ``jax_compilation_cache_dir`` or ``jax_enable_compilation_cache``, and if there is no
    directory that only this user can write to.

    Returns:
        The directory of the programs; None if the cache was not switched on.
    """
    settings: Any = jax.config  # type checkers do not know its names
    if (
        is_switched_off(COMPILATION_CACHE)
        or settings.jax_compilation_cache_dir is not None
        or not settings.jax_enable_compilation_cache
    ):
        return None
    try:
        directory = _private_directory(user_cache_directory() / 'thinkml' / 'compiled')
        directory = _private_directory(directory / _machine())
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home directory
        _log.info('Compiled programs are not kept: %s', error)
        return None
    if not _install_programs(directory):
        _log.info('This version of JAX writes the compiled programs itself.')
    jax.config.update('jax_compilation_cache_dir', str(directory))
    # The many small programs of a training run take as long to compile as its large one.
    for setting, default, minimum in (
        ('jax_persistent_cache_min_compile_time_secs', 1.0, 0.0),
        ('jax_persistent_cache_min_entry_size_bytes', 0, -1),
    ):
        if getattr(settings, setting) == default:  # else the user has set it
            jax.config.update(setting, minimum)
    return directory


def _private_directory(directory: Path) -> Path:
    """Returns the directory, created if it does not exist.

    Raises:
        OSError: if it can't be created, belongs to another user or is writable by others.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, 'geteuid'):
        status = directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(f'{directory} is not private: other users can write to it')
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f'{directory} is not writable')
    return directory


def _machine() -> str:
    """Returns a hash of XLA's compilation target on a CPU: the instructions and thread count."""
    described = [sys.platform, os.environ.get('NPROC'), os.environ.get('PROCESSOR_IDENTIFIER')]
    if hasattr(os, 'sched_getaffinity'):
        described.append(len(os.sched_getaffinity(0)))
    if hasattr(os, 'uname'):
        described += [os.uname().machine, os.uname().version if sys.platform == 'darwin' else '']
    described += _first_processor()
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def _first_processor() -> Iterator[str]:
    """Yields the lines of Linux's ``cpuinfo`` on the processor's model and instructions."""
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


_paused: contextvars.ContextVar[bool] = contextvars.ContextVar('paused', default=False)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Keeps programs compiled in the block out of the cache.

    JAX writes programs for devices that are not attached, but can't read them again.
    """
    before = _paused.set(True)
    try:
        with warnings.catch_warnings():  # of a cache that the user has set up
            warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation')
            yield
    finally:
        _paused.reset(before)


class Programs:
    """A directory of compiled programs that any number of processes share.

    Writes are atomic, and a damaged program is written again. JAX's own cache writes in place and
    never overwrites, so a file truncated by a killed process or a full disk stays damaged for every
    later process. Each file begins with the program's hash. Programs that several processes compile
    together are not kept: a process that found one would leave the others waiting.

    Args:
        directory: this machine's directory. It lies beside those of other machines, which count
            towards the size.
        max_bytes: the limit for all programs. Those added between two prunings may exceed it.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES):
        self._path = directory
        self._max_bytes = max_bytes
        self._until_pruned = 0
        self._failed = False

    def get(self, key: str) -> bytes | None:
        """Returns the program that was `put`; None if it is missing or damaged."""
        if jax.process_count() > 1 or _paused.get():
            return None
        file = self._file(key)
        try:
            entry = file.read_bytes()
            program = entry[_DIGEST_BYTES:]
            if hashlib.sha256(program).digest() != entry[:_DIGEST_BYTES]:
                return None
            os.utime(file)  # `prune` reads it as the time of last use
        except OSError:
            return None
        return program

    def put(self, key: str, value: bytes) -> None:
        """Writes a program. After a failure this process writes no more programs."""
        if self._failed or jax.process_count() > 1 or _paused.get():
            return
        file = self._file(key)
        temporary = self._path / f'{secrets.token_hex(8)}.part'
        try:
            if self._until_pruned <= 0:
                prune(self._path.parent, self._max_bytes)
                self._until_pruned = self._max_bytes // 16
            self._until_pruned -= len(value)
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)  # the user may clear it
            with open(temporary, 'xb', opener=_open_private) as out:
                out.write(hashlib.sha256(value).digest())
                out.write(value)
            os.replace(temporary, file)
        except OSError as error:
            self._failed = True
            _log.info('No more compiled programs are kept: %s', error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._path / key[-200:]  # the key ends with its hash


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def prune(root: Path, max_bytes: int) -> None:
    """Removes the least recently used files if all files together exceed ``max_bytes``.

    The remaining files take at most three quarters of ``max_bytes``.
    """
    files = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # another process has removed or renamed it
                continue
            files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= max_bytes:
        return
    for _, size, path in sorted(files):
        if total <= max_bytes * 3 // 4:
            return
        Path(path).unlink(missing_ok=True)
        total -= size


def _install_programs(directory: Path) -> bool:
    """Makes JAX read and write this directory through `Programs`; returns True on success.

    JAX has no public way to set this. If it fails, JAX's class writes the programs.
    """
    try:
        from jax._src import compilation_cache

        jax_get_file_cache = compilation_cache.get_file_cache
    except (ImportError, AttributeError):
        return False

    def get_file_cache(path: str) -> Any:
        if path != str(directory):  # the user has set another directory since
            return jax_get_file_cache(path)
        return Programs(directory), path

    compilation_cache.get_file_cache = get_file_cache
    return True
