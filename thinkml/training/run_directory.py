"""Run directories: a separate directory and table for each run."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from thinkml.checkpoint.filesystem import locked

# Seconds that a run waits for another one that starts in the same folder.
_LOCK_SECONDS = 1
_NAME = re.compile(r'run-([1-9][0-9]*)')


def new_directory(root: Path) -> Path:
    """Makes ``root/run-N`` for a new run, and returns its path.

    Runs that start at the same time get different directories.

    Raises:
        OSError: if the directory can't be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(root), default=0) + 1
    while True:
        try:
            (root / f'run-{number}').mkdir()
            return root / f'run-{number}'
        except FileExistsError:
            number += 1


def is_filled(directory: Path) -> bool:
    """Returns True if a directory holds a file or directory that is not hidden."""
    return any(directory.glob('[!.]*'))


def newest_directory(root: Path, is_run: Callable[[Path], bool] = is_filled) -> Path | None:
    """Returns the newest ``root/run-N`` that holds a run, else the newest; None for none.

    A run that failed before it wrote anything can not be continued.

    Args:
        root: the directory of all runs.
        is_run: returns True for a directory that holds a run.
    """
    found = _numbers(root)
    runs = [number for number in found if is_run(root / f'run-{number}')]
    return root / f'run-{max(runs or found)}' if found else None


def is_lost(directory: Path, is_run: Callable[[Path], bool]) -> bool:
    """Returns True for a missing path ``root/run-N`` if ``root`` holds other runs."""
    root = directory.parent
    is_named = _NAME.fullmatch(directory.name) and not directory.exists()
    return bool(is_named) and any(is_run(root / f'run-{number}') for number in _numbers(root))


def _numbers(root: Path) -> list[int]:
    return [int(match[1]) for path in root.glob('run-*') if (match := _NAME.fullmatch(path.name))]


class RunTable:
    """The file of a run's table: at a path, until a later run's table replaces it there.

    Then it is moved beside the path: ``history.csv`` becomes ``history-1.csv``, the next table
    ``history-2.csv``. A run continues to write to its table after it was moved.

    Args:
        path: the path of the newest run's table.
        name: the name of this run's table once it is not the newest any more, as an earlier process
            of the run recorded it; None if that is not known. A lost table is started again.
        is_own: returns True for a file that may be this run's table; None for a new run.

    Attributes:
        name: the name of this run's table once it is not the newest any more.

    Raises:
        OSError: if nothing can be written there.
    """

    def __init__(self, path: Path, name: str | None, is_own: Callable[[Path], bool] | None):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(
                TimeoutError
            ):  # the lock is held by something that takes longer
                stack.enter_context(locked(path.parent, _LOCK_SECONDS))
            newest = self._next().name
            self.name = name or newest
            file = path if self.name == newest else path.with_name(self.name)
            if is_own is not None and file.exists() and is_own(file):
                return
            if path.exists():
                os.replace(path, path.with_name(newest))
            path.touch()
            self.name = self._next().name

    @property
    def path(self) -> Path:
        """Returns the present path of the table."""
        moved = self._path.with_name(self.name)
        return moved if moved.exists() else self._path

    def _next(self) -> Path:
        """Returns the path that the table is moved to when another one replaces it."""
        stem, suffix = self._path.stem, self._path.suffix
        name = re.compile(f'{re.escape(stem)}-([1-9][0-9]*){re.escape(suffix)}')
        files = (path.name for path in self._path.parent.iterdir())
        numbers = [int(match[1]) for file in files if (match := name.fullmatch(file))]
        return self._path.with_name(f'{stem}-{max(numbers, default=0) + 1}{suffix}')
