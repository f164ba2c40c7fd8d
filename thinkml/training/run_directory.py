"""A directory of its own for each run."""

import re
from pathlib import Path

_NAME = re.compile(r'run-([1-9][0-9]*)')


def run_directory(root: str | Path, resume: bool) -> Path:
    """Returns ``root/run-N``: the newest that holds something if a run is resumed, else a new one.

    So runs neither overwrite nor mix with what earlier ones left, and one that failed before it
    left anything is no run to go on with.
    """
    root = Path(root).absolute()
    found = [int(match[1]) for path in root.glob('run-*') if (match := _NAME.fullmatch(path.name))]
    filled = [number for number in found if any((root / f'run-{number}').glob('[!.]*'))]
    if resume and found:
        return root / f'run-{max(filled or found)}'
    return root / f'run-{max(found, default=0) + 1}'
