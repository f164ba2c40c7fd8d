"""The examples and the README's code run, as a newcomer runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / 'examples').glob('[0-9]*.py'))
DEVICES = '06_several_devices.py'  # which makes them, so that it needs a process of its own
LONG = {'07_transfer.py', '08_active.py'}  # they train dozens of models
QUICK = [path for path in EXAMPLES if path.name not in {DEVICES, *LONG}]
(README,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)

# Runs scripts one after another, each in a directory of its own, and prints what each wrote.
EACH = """
import contextlib, io, json, os, pathlib, runpy, sys, traceback
outcomes, home = {}, pathlib.Path.cwd()
for path in map(pathlib.Path, sys.argv[1:]):
    (home / path.stem).mkdir()
    os.chdir(home / path.stem)
    output, errors, failure = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(str(path), run_name='__main__')
        except BaseException:
            failure = traceback.format_exc()
    outcomes[path.name] = output.getvalue(), errors.getvalue(), failure
print(json.dumps(outcomes))
"""


def run(arguments, directory):
    done = subprocess.run(
        [sys.executable, '-W', 'error', *arguments], cwd=directory,
        env=os.environ | {'PYTHONPATH': str(ROOT), 'EPOCHS': '1'}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('examples')


@pytest.fixture(scope='module')
def outcomes(folder):
    """What each of them wrote to stdout and stderr, and how it failed: all in one process."""
    readme = folder / 'readme.py'
    readme.write_text(README)
    return json.loads(run(['-c', EACH, *QUICK, readme], folder))


@pytest.mark.parametrize('name', [path.name for path in QUICK])
def test_example(name, outcomes):
    *_, failure = outcomes[name]
    assert failure is None, failure


def test_the_example_of_several_devices(tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    output = run([ROOT / 'examples' / DEVICES], tmp_path)
    assert 'first kernel: {(64, 32)}' in output and '4 devices of kind cpu' in output


def test_the_first_example_leaves_what_it_promises(outcomes, folder):
    output, errors, _ = outcomes['01_first_model.py']
    accuracy = float(re.search(r'^accuracy +([\d.]+)', output, re.MULTILINE).group(1))
    assert accuracy >= 0.95
    assert 'steps [' in errors, 'the progress bar'
    written = {path.name for path in (folder / '01_first_model' / 'output').iterdir()}
    assert written == {
        'confusion_matrix.png', 'digits_model', 'progress.png', 'report.txt', 'roc_curve.png',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'says', 'written'),
    [
        ('09_language_model.py', r'perplexity: [\d.]+, test text [\d.]+', set()),
        ('10_segmentation.py', r'mean_iou: [\d.]+, from [\d.]+ to [\d.]+', {'segmentation.png'}),
        ('11_autoencoder.py', r'ROC AUC: [\d.]+', {'anomalies.png'}),
        ('12_vae.py', r'epoch  reconstruction     kl', {'samples.png'}),
        ('13_contrastive.py', r'50 +[\d.]+ +[\d.]+ +[\d.]+', {'embeddings.png'}),
        ('14_gan.py', r'epoch  discriminator  generator', {'gan.png'}),
    ],
)
def test_the_tutorials_end_with_something_to_look_at(name, says, written, outcomes, folder):
    output, _, failure = outcomes[name]
    assert failure is None, failure
    assert re.search(says, output)
    found = (folder / name.removesuffix('.py')).glob('output/*')
    assert {path.name for path in found} == written


def test_the_readmes_first_model(outcomes):
    output, _, failure = outcomes['readme.py']
    assert failure is None, failure
    assert output.startswith('History(')


def test_they_are_short():
    assert all(len(path.read_text().splitlines()) <= 120 for path in EXAMPLES)
    assert len(README.splitlines()) <= 27


@pytest.mark.slow
@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.name)
def test_each_runs_in_a_process_of_its_own(path, tmp_path):
    output = run([path], tmp_path)
    if path.name == '07_transfer.py':
        transferred, scratch = map(float, re.findall(r'accuracy ([\d.]+)', output))
        assert transferred > scratch + 0.1


@pytest.mark.slow
def test_so_does_the_readmes_code(tmp_path):
    run(['-c', README], tmp_path)
