"""Runs the tests of tests/several_devices, in a process with eight simulated devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import simulating

FOLDER = Path(__file__).parent / 'several_devices'


@pytest.mark.compiled  # some of them
@pytest.mark.timeout(2400)  # each test within has the usual limit
def test_on_eight_devices(request):
    # Those that this run is for: `-m` is handed on.
    marks = request.config.getoption('markexpr')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-m', marks, FOLDER],
        cwd=FOLDER.parents[1], capture_output=True, text=True,
        env={**os.environ, **simulating(8)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
