"""A directory of its own for each run."""

import re
from pathlib import Path

_NAME = re.compile(r'run-([1-9][0-9]*)')


def new_directory(root: Path) -> Path:
    """Makes ``root/run-N`` for a new run, and returns its path.

    Runs that begin at the same time get different ones.

    Raises:
        OSError: if it can't be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(root), default=0) + 1
    while True:
        try:
            (root / f'run-{number}').mkdir()
            return root / f'run-{number}'
        except FileExistsError:
            number += 1


def newest_directory(root: Path) -> Path | None:
    """Returns the newest ``root/run-N`` that holds something, else the newest; None for none.

    A run that failed before it left anything is not a run to continue.
    """
    found = _numbers(root)
    filled = [number for number in found if any((root / f'run-{number}').glob('[!.]*'))]
    return root / f'run-{max(filled or found)}' if found else None


def _numbers(root: Path) -> list[int]:
    return [int(match[1]) for path in root.glob('run-*') if (match := _NAME.fullmatch(path.name))]
