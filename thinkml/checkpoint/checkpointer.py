"""Checkpointer: numbered checkpoints of a training run, written atomically in the background."""

import concurrent.futures
import functools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from thinkml.checkpoint import filesystem, manifest
from thinkml.checkpoint.array_store import (
    INDEX,
    PackedTree,
    as_checkpoint_error,
    check_disk,
    load_arrays,
    pack,
    start_saving,
)
from thinkml.core.parallel.multiprocess import barrier, broadcast_result, is_first_process
from thinkml.errors import (
    CheckpointError,
    ConfigError,
    is_whole,
    problems,
    warn_user,
)
from thinkml.paths import local_path
from thinkml.typing import PyTree

MAX_METADATA_BYTES = 256 * 2**20

_METADATA = 'metadata.json'
_MODEL_FILES = 'model.json', 'weights'
_STEP = re.compile(r'0|[1-9][0-9]*')
_LEFTOVER = re.compile(r'\.(0|[1-9][0-9]*)\.thinkml-(new|old)')


class Checkpointer:
    """A directory of numbered checkpoints of a training state, written in the background.

    A save returns once the state is copied from the device, so the caller may donate it to the
    next step. A checkpoint becomes complete in one moment: when its manifest, with the size and
    SHA-256 of every file, is on disk. If the process is killed before that, the earlier checkpoints
    stay, and the incomplete one is removed when the directory is next opened. Other files in the
    directory are not changed.

    A program that ends completes its last save, except on Python 3.12, which starts no thread at
    its end. There, call `wait` or `close` first; otherwise the checkpoint before is the newest one.
    Trainers always wait.

    In a run of several processes, each creates a checkpointer for the same shared directory, and
    calls its methods in the same order.

    Args:
        directory: the directory of the checkpoints; created with its parents.
        keep: the number of newest checkpoints to keep; None keeps all. The best one is also kept.

    Raises:
        ConfigError: if ``keep`` is not a number of checkpoints.
        CheckpointError: if the directory can't be written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from thinkml.checkpoint import Checkpointer
        >>> checkpointer = Checkpointer(tempfile.mkdtemp(), keep=2)
        >>> for step in (10, 20, 30, 40):
        ...     state = {'w': jnp.full(3, step)}
        ...     checkpointer.save(step, state, {'epoch': step // 10}, best=step == 10)
        >>> checkpointer.wait()
        >>> checkpointer.steps(), checkpointer.best_step()
        ([10, 30, 40], 10)
        >>> step = checkpointer.latest_sound()
        >>> checkpointer.metadata(step)
        {'epoch': 4}
        >>> state, metadata = checkpointer.restore(step, template={'w': jnp.zeros(3, int)})
        >>> state['w'].tolist()
        [40, 40, 40]
        >>> checkpointer.close()
    """

    def __init__(self, directory: str | Path, keep: int | None = 3):
        if keep is not None and not (is_whole(keep) and keep >= 1):
            raise ConfigError(
                f'keep: got {keep!r}, expected a whole number of at least 1, or None for all.'
            )
        self._initialize(directory, keep)
        if os.path.isfile(self.directory):
            raise CheckpointError(
                f'directory: {self.directory} is a file, expected a directory or a new path.'
            )
        as_checkpoint_error(
            lambda: filesystem.open_directory(self.directory),
            f'directory: {self.directory} can not be written. Choose another one, or make it '
            'writable and free some space',
        )
        if is_first_process():
            as_checkpoint_error(
                self._clean_up, f'directory: {self.directory} could not be cleaned up'
            )
        barrier('checkpoint-opened')

    @classmethod
    def to_read(cls, directory: str | Path) -> Self:
        """Returns a read-only checkpointer, which creates, cleans up and locks nothing."""
        checkpointer = cls.__new__(cls)
        checkpointer._initialize(directory, None)
        return checkpointer

    def _initialize(self, directory: str | Path, keep: int | None) -> None:
        self.directory = Path(os.path.abspath(local_path(directory, 'directory')))
        self._keep = keep
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._damaged: set[int] = set()
        self._verified: int | None = None

    def check_space(self, num_bytes: int) -> None:
        """Checks that the disk has space for a checkpoint.

        Args:
            num_bytes: the size of the checkpoint. A new one is complete before an old one is
                removed.

        Raises:
            CheckpointError: if there is less space. Says how much is needed and free.
        """
        message = f'directory: the free space of {self.directory} is not known'
        free = as_checkpoint_error(lambda: shutil.disk_usage(self.directory).free, message)
        if free < num_bytes:
            raise CheckpointError(
                f'directory: a checkpoint in {self.directory} needs '
                f'{filesystem.readable(num_bytes)}, {filesystem.readable(free)} are free. '
                'Free some space, or choose another directory.'
            )

    def save(
        self,
        step: int,
        state: PyTree,
        metadata: Mapping[str, Any] | None = None,
        *,
        best: bool = False,
    ) -> None:
        """Starts to write a checkpoint, after waiting for the previous one.

        When it is complete, checkpoints of the same step and of later steps are removed, since the
        run was resumed from an earlier step. Those beyond the number to keep are removed too.

        Args:
            step: the number of the checkpoint, at least 0.
            state: any pytree of arrays, typed PRNG keys and Python numbers.
            metadata: plain JSON values; NaN and infinities are allowed.
            best: True if this is the best checkpoint so far; it is kept until a later save is best.

        Raises:
            CheckpointError: if this save can't be started, or if the previous one failed. In the
                second case this save was not started, and the next may succeed.
        """
        if not (is_whole(step) and step >= 0):
            raise CheckpointError(f'step: got {step!r}, expected a whole number of at least 0.')
        step, best = int(step), bool(best)
        message = f'step: {step} could not be written to {self.directory}'
        packed = as_checkpoint_error(lambda: pack(state), message)
        # Encoded now, since the caller may change it later.
        encoded = as_checkpoint_error(lambda: _encode(dict(metadata or {})), message)
        self.wait()
        self._verified = None
        as_checkpoint_error(
            lambda: broadcast_result(lambda: check_disk(self.directory, packed)), message
        )
        finish = as_checkpoint_error(lambda: self._start(step, packed, encoded, best), message)
        executor = concurrent.futures.ThreadPoolExecutor(1, 'thinkml-checkpoint')
        self._pending = step, executor.submit(finish)
        executor.shutdown(wait=False)
        _complete_before_exit(self._pending[1])

    def mark_best(self, step: int) -> None:
        """Makes a complete checkpoint the best one, and removes those that are no longer kept.

        Args:
            step: one of `steps`.

        Raises:
            CheckpointError: if there is no such step, or its manifest can't be written.
        """
        self.wait()

        def mark() -> None:
            manifest.update(self._path(step), best=True)
            self._remove_old()

        message = f'step: {step} in {self.directory} could not be marked as the best'
        as_checkpoint_error(lambda: broadcast_result(mark), message)

    def wait(self) -> None:
        """Blocks until every save is on disk.

        Raises:
            CheckpointError: if a save failed.
        """
        self._join()
        pending, self._pending = self._pending, None
        if pending is not None:
            step, future = pending
            as_checkpoint_error(
                future.result, f'step: {step} could not be written to {self.directory}'
            )

    def close(self) -> None:
        """Waits until every save is on disk.

        Raises:
            CheckpointError: if a save failed.
        """
        self.wait()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints in order, including damaged ones."""
        return [
            step
            for step, path in sorted(self._checkpoints().items())
            if (path / manifest.NAME).is_file() and not path.is_symlink()
        ]

    def latest_step(self) -> int | None:
        """Returns the last of `steps`; None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step last saved as the best; None if there is none."""
        return max(filter(self._is_best, self.steps()), default=None)

    def latest_sound(self) -> int | None:
        """Returns the latest step whose files are undamaged; None without checkpoints.

        Reads all files of that checkpoint. Warns about newer checkpoints that are damaged; they are
        removed when a newer one is complete.

        Raises:
            CheckpointError: if there are checkpoints and all are damaged. Describes the damage.
        """
        self._join()
        self._verified = broadcast_result(self._find_sound)
        return self._verified

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata of a checkpoint, without reading its arrays.

        Args:
            step: one of `steps`.

        Raises:
            CheckpointError: if there is no such step, or it can't be read.
        """
        self._join()
        path = self._path(step)
        return as_checkpoint_error(lambda: _decode(path), f'step: {step} in {self.directory}')

    def restore(
        self, step: int, template: PyTree, prefixes: tuple[str, ...] = ('',)
    ) -> tuple[PyTree, dict[str, Any]]:
        """Reads a checkpoint, after comparing its files with its manifest.

        Args:
            step: one of `steps`.
            template: a pytree of arrays or `jax.ShapeDtypeStruct`, which sets the structure of the
                result and the sharding of each leaf; None for a flat dict, see `load_arrays`.
            prefixes: prefixes of the names to read, if there is no template.

        Returns:
            the state and its metadata.

        Raises:
            CheckpointError: if there is no such step, it is damaged, or it doesn't fit the
                template. Names every leaf that doesn't, with both shapes.
        """
        self._join()
        path = self._path(step)
        # The files that latest_sound has just read need not be read again.
        damage = None if self._verified == step else self._damage(step, path)
        if damage:
            raise CheckpointError(
                f'step: {step} in {self.directory} is damaged: {damage}. Restore another one, '
                'such as latest_sound().'
            )
        return load_arrays(path, template, prefixes), self.metadata(step)

    def _path(self, step: int) -> Path:
        if step not in self.steps():
            raise CheckpointError(
                f'step: got {step}, expected one of {self.steps()} in {self.directory}.'
            )
        return self.directory / str(step)

    def _temporary_path(self, step: int, kind: str) -> Path:
        return self.directory / f'.{step}.thinkml-{kind}'

    def _checkpoints(self) -> dict[int, Path]:
        """Returns the paths of all checkpoints, complete or damaged, by step."""
        return _checkpoints_in(self.directory)

    def _is_best(self, step: int) -> bool:
        try:
            return manifest.read(self.directory / str(step)).get('best') is True
        except (OSError, ValueError):  # damaged: latest_sound and restore report it
            return False

    def _damage(self, step: int, path: Path) -> str | None:
        return manifest.damage(path, format=1, step=step)

    def _find_sound(self) -> int | None:
        damaged: dict[int, str] = {}
        sound = None
        for step, path in sorted(self._checkpoints().items(), reverse=True):
            damage = self._damage(step, path)
            if damage is None:
                sound = step
                break
            if path.is_symlink() or path.exists():  # another process may have removed it
                damaged[step] = damage
        self._damaged = set(damaged)
        if damaged:
            lines = [f'step {step}: {damage}' for step, damage in damaged.items()]
            prefix = f'directory: {self.directory}'
            if sound is None:
                raise CheckpointError(
                    problems(f'{prefix} has no checkpoint that is not damaged:', lines)
                )
            headline = f'{prefix} has damaged checkpoints; step {sound} is used instead of'
            warn_user(problems(headline, lines))
        return sound

    def _start(
        self, step: int, packed: PackedTree, metadata: bytes, best: bool
    ) -> Callable[[], None]:
        """Copies the state from the device; returns a function that completes the checkpoint."""
        new, target = self._temporary_path(step, 'new'), self.directory / str(step)
        if not is_first_process():
            return start_saving(new, packed)
        if os.path.lexists(target) and not is_checkpoint(target):
            raise CheckpointError(
                f'step: {step} can not be saved, {target} exists and is not a checkpoint. Choose '
                'another directory.'
            )
        if new.exists():
            self._clean_up()
        new.mkdir()
        lock = filesystem.lock(new)
        try:
            write_arrays = start_saving(new, packed)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            filesystem.unlock(lock)
            raise

        def finish() -> None:
            try:
                write_arrays()
                (new / _METADATA).write_bytes(metadata)
                manifest.write(new, format=1, step=step, best=best)
                self._publish(new, step)
                self._remove_old()
            finally:
                if not (new / manifest.NAME).is_file():  # else the next opening publishes it
                    shutil.rmtree(new, ignore_errors=True)
                filesystem.unlock(lock)

        return finish

    def _publish(self, new: Path, step: int) -> None:
        """Renames a directory that has its manifest, which makes it the newest checkpoint."""
        for later in sorted(self._checkpoints(), reverse=True):
            if later >= step:
                self._remove(later)
        new.rename(self.directory / str(step))
        filesystem.sync_folder(self.directory)

    def _remove_old(self) -> None:
        steps = [step for step in self.steps() if step not in self._damaged]
        kept = set(steps if self._keep is None else steps[-self._keep :])
        best = max(filter(self._is_best, steps), default=None)
        for step in self._checkpoints().keys() - kept - {best}:
            self._remove(step)

    def _remove(self, step: int) -> None:
        trash = self._temporary_path(step, 'old')
        shutil.rmtree(trash, ignore_errors=True)
        filesystem.remove(self.directory / str(step), trash)
        self._damaged.discard(step)

    def _clean_up(self) -> None:
        """Publishes or removes directories left by killed processes, except locked ones."""
        for path in list(self.directory.iterdir()):
            leftover = _LEFTOVER.fullmatch(path.name)
            if leftover is None or path.is_symlink() or not path.is_dir():
                continue
            lock = filesystem.lock(path)
            if lock is None:
                continue
            try:
                if leftover[2] == 'new' and (path / manifest.NAME).is_file():
                    self._publish(path, int(leftover[1]))
                else:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                filesystem.unlock(lock)

    def _join(self) -> None:
        """Waits for the background thread; the next `wait` raises its error."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending[1]])
            barrier('checkpoint-saved')


_running_saves: set[concurrent.futures.Future[None]] = set()


def _complete_before_exit(save: concurrent.futures.Future[None]) -> None:
    _wait_at_exit()
    _running_saves.add(save)
    save.add_done_callback(_running_saves.discard)


@functools.cache
def _wait_at_exit() -> None:
    """Makes the interpreter wait for saves before it stops the threads that Orbax needs.

    `atexit` runs too late for that: Orbax would then wait for itself for five minutes. Python 3.12
    refuses new threads already when this is called, so that Orbax fails.
    """
    threading._register_atexit(  # pyright: ignore[reportAttributeAccessIssue]
        lambda: concurrent.futures.wait(list(_running_saves))
    )
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=_running_saves.clear)  # a fork has no threads


def has_checkpoints(directory: Path) -> bool:
    """Returns True if a directory contains a checkpoint of a `Checkpointer`."""
    return directory.is_dir() and bool(_checkpoints_in(directory))


def holds_checkpoints(path: Path) -> bool:
    """Returns True for a checkpoint, a run's directory of checkpoints, and a directory of runs."""
    return is_checkpoint(path) or any(map(has_checkpoints, (path, *path.glob('run-*'))))


def _checkpoints_in(directory: Path) -> dict[int, Path]:
    return {
        int(path.name): path
        for path in directory.iterdir()
        if _STEP.fullmatch(path.name) and is_checkpoint(path)
    }


def is_checkpoint(path: Path) -> bool:
    """Returns True for a checkpoint, also for a link, and if one of its files is missing."""
    # A saved model, even a damaged one, has files with the same names.
    if any(os.path.lexists(path / name) for name in _MODEL_FILES):
        return False
    return sum((path / name).is_file() for name in (manifest.NAME, INDEX, _METADATA)) >= 2


def _encode(metadata: dict[str, Any]) -> bytes:
    content = json.dumps(metadata).encode() + b'\n'
    if len(content) > MAX_METADATA_BYTES:
        raise ValueError(
            f'metadata of {len(content)} bytes, at most {MAX_METADATA_BYTES} can be read back'
        )
    return content


def _decode(path: Path) -> dict[str, Any]:
    return json.loads(filesystem.read_bounded(path / _METADATA, MAX_METADATA_BYTES))
