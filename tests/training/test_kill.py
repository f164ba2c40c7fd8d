"""A process killed twice at random moments ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.training.run_to_kill import main

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name('run_to_kill.py')


def start(directory, kind, output):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    directory.mkdir(exist_ok=True)
    command = [sys.executable, str(WORKER), str(directory), kind, str(output)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def steps(directory):
    found = (directory / 'run-1').glob('[0-9]*')
    return max((int(path.name) for path in found), default=0)


def kill_within(process, directory, chance):
    """Kills the process a random time after it has got a checkpoint further."""
    before = steps(directory)
    while steps(directory) <= before and process.poll() is None:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.25))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, 'it ended before it was killed'


def saved(output):
    with np.load(output.with_suffix('.npz')) as arrays:
        leaves = {name: (arrays[name].dtype, arrays[name].tobytes()) for name in arrays.files}
    return leaves, json.loads(output.with_suffix('.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind',
    ['arrays', 'memmap', 'batches', 'periods', 'tokens', 'pixels', 'heads', 'experts', 'gan'],
)
def test_a_run_killed_twice_equals_one_that_was_not(tmp_path, kind):
    chance = random.Random(kind)
    (tmp_path / 'whole').mkdir()
    main(tmp_path / 'whole', kind, tmp_path / 'expected')
    killed_at = []
    for _ in range(2):
        process = start(tmp_path / 'killed', kind, tmp_path / 'found')
        kill_within(process, tmp_path / 'killed', chance)
        killed_at.append(steps(tmp_path / 'killed'))
    assert not (tmp_path / 'found.npz').exists()
    assert 0 < killed_at[0] < killed_at[1] < 60
    main(tmp_path / 'killed', kind, tmp_path / 'found')
    found, expected = saved(tmp_path / 'found'), saved(tmp_path / 'expected')
    assert found[1] == expected[1]
    assert found[0] == expected[0]
