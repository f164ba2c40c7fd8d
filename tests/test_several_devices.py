"""Runs the tests of tests/several_devices, a process with eight simulated devices for each file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import simulating

FOLDER = Path(__file__).parent / 'several_devices'
FILES = sorted(path.name for path in FOLDER.glob('test_*.py'))


@pytest.mark.timeout(2400)  # each test within has the usual limit
@pytest.mark.parametrize('file', FILES)
def test_on_eight_devices(file, request):
    marks = request.config.getoption('markexpr')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-m', marks, str(FOLDER / file)],
        cwd=FOLDER.parents[1], capture_output=True, text=True,
        env={**os.environ, **simulating(8)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
