"""The examples and the README's code run, in processes of their own, as a newcomer runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / 'examples').glob('[0-9]*.py'))


def run(arguments, directory):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, '-W', 'error', *arguments],
        cwd=directory, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.name)
def test_example(path, tmp_path):
    assert len(path.read_text().splitlines()) <= 120
    done = run([path], tmp_path)
    assert done.returncode == 0, done.stderr
    if path.name == '07_transfer.py':
        transferred, scratch = map(float, re.findall(r'accuracy ([\d.]+)', done.stdout))
        assert transferred > scratch + 0.1


def test_the_first_example_leaves_what_it_promises(tmp_path):
    done = run([EXAMPLES[0]], tmp_path)
    accuracy = float(re.search(r'^accuracy +([\d.]+)', done.stdout, re.MULTILINE).group(1))
    assert accuracy >= 0.95
    assert 'steps [' in done.stderr, 'the progress bar'
    written = {path.name for path in (tmp_path / 'output').iterdir()}
    assert written == {
        'confusion_matrix.png', 'digits_model', 'progress.png', 'report.txt', 'roc_curve.png',
    }  # fmt: skip


def test_the_readmes_first_model(tmp_path):
    (code,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 27
    done = run(['-c', code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('History(')
