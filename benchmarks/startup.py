"""The first seconds of a program: from process start to a trained model, beside scikit-learn.

python benchmarks/startup.py [rounds]

Each round starts a process of each kind in turn. CPU seconds are of all threads, user and system.
On a machine with other work they are more meaningful than wall time.
"""

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

# The program of a newcomer. Marks show where a part begins; without the marks it is the
# program whose totals are compared.
THINKML = """
mark('Python')
import numpy
mark('import numpy')
import jax
mark('import jax')
from flax import nnx
mark('import flax.nnx')
from thinkml.training import ModelTrainer, TrainingConfig
mark('import thinkml.training')
from sklearn.datasets import load_digits
X, y = load_digits(return_X_y=True)
mark('import sklearn.datasets, read the data')
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 64, rngs=rngs),
                       nnx.relu, nnx.Linear(64, 10, rngs=rngs))
mark('build the model')
config = TrainingConfig(batch_size=32, epochs=100, callbacks=CALLBACKS)
ModelTrainer(config).train(model, X / 16, y)
mark('train: the epochs')
"""

SKLEARN = """
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
X, y = load_digits(return_X_y=True)
MLPClassifier((128, 64), batch_size=32, max_iter=100, n_iter_no_change=1000).fit(X / 16, y)
"""

# Measures the program above from inside: its marks, and the compilations JAX reports.
MARKS = """
import atexit, json, sys, time
marks, programs = [], dict.fromkeys(('traced', 'lowered', 'ready'), 0.0) | {'count': 0}
WHAT = {'jaxpr_trace': 'traced', 'jaxpr_to_mlir_module': 'lowered', 'backend_compile': 'ready'}

def heard(event, seconds, **_):
    what = WHAT.get(event.rpartition('/')[2].removesuffix('_duration'))
    if event.startswith('/jax/core/compile/') and what:
        programs[what] += seconds
        programs['count'] += what == 'ready'

def mark(name):
    if name == 'import jax':
        jax.monitoring.register_event_duration_secs_listener(heard)
    marks.append((name, time.monotonic(), time.process_time(), dict(programs)))

class Marks:
    first = True
    def on_train_start(self, run):
        mark('train: check, prepare')
    def on_chunk_end(self, run):
        if self.first:
            mark('train: the first step')
        self.first = False

CALLBACKS = (Marks(),)
atexit.register(lambda: print(json.dumps(marks)))
"""
NO_MARKS = 'mark = lambda name: None; CALLBACKS = ()\n'


def run(code, cache):
    """Returns wall seconds, CPU seconds and the output of the process."""
    environment = os.environ | {'XDG_CACHE_HOME': cache, 'LOCALAPPDATA': cache}
    for name in ('THINKML_COMPILATION_CACHE', 'PYTHONDONTWRITEBYTECODE'):
        environment.pop(name, None)
    with tempfile.TemporaryFile('w+') as output:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, '-c', code], env=environment,
            stdout=output, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        ended = time.monotonic()
        output.seek(0)
        printed = output.read()
    if status:
        raise SystemExit(f'a process failed with status {status}:\n{code}')
    return started, ended, used.ru_utime + used.ru_stime, printed


def seconds_of(code, cache):
    started, ended, cpu, _ = run(code, cache)
    return ended - started, cpu


def parts_of(cache):
    """Returns seconds, CPU seconds and compiled programs of each part."""
    started, ended, cpu, printed = run(MARKS + THINKML, cache)
    nothing = dict.fromkeys(('traced', 'lowered', 'ready', 'count'), 0)
    rows = [('', started, 0.0, nothing), *json.loads(printed.splitlines()[-1])]
    rows.append(('exit', ended, cpu, rows[-1][3]))
    return {
        name: (at - before, cpu - cpu_before, *(done[key] - earlier[key] for key in nothing))
        for (_, before, cpu_before, earlier), (name, at, cpu, done) in itertools.pairwise(rows)
    }


def median(rows):
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def show_parts(title, found):
    print(f'\n{title}\n{"":42}  passed  CPU   programs: number  traced  lowered  compiled or read')
    for name in found[0]:
        passed, cpu, traced, lowered, ready, count = median([parts[name] for parts in found])
        programs = f'{count:16.0f} {traced:7.2f} {lowered:8.2f} {ready:9.2f}' if count else ''
        print(f'{name:42} {passed:7.2f} {cpu:5.2f} {programs}'.rstrip())
    totals = [[sum(column) for column in zip(*parts.values(), strict=True)] for parts in found]
    passed, cpu, *_ = median(totals)
    print(f'{"all":42} {passed:7.2f} {cpu:5.2f}')


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    names = ('jax', 'flax', 'optax', 'scikit-learn', 'numpy')
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, '
        + ', '.join(f'{name} {version(name)}' for name in names)
    )
    sides = {
        'ThinkML, nothing compiled before': [],
        'ThinkML, compiled by an earlier process': [],
        'scikit-learn': [],
        'import jax': [],
        'import flax.nnx, sklearn.datasets': [],
    }
    cold, warm, loads = [], [], []
    with tempfile.TemporaryDirectory() as kept:
        run(NO_MARKS + THINKML, kept)
        for _ in range(rounds):
            loads.append(os.getloadavg()[0])
            codes = (
                NO_MARKS + THINKML, NO_MARKS + THINKML, SKLEARN, 'import jax',
                'from flax import nnx; import sklearn.datasets',
            )  # fmt: skip
            for index, (side, code) in enumerate(zip(sides, codes, strict=True)):
                with tempfile.TemporaryDirectory() as empty:
                    sides[side].append(seconds_of(code, kept if index else empty))
            with tempfile.TemporaryDirectory() as empty:
                cold.append(parts_of(empty))
            warm.append(parts_of(kept))
    print(
        f'medians of {rounds} processes of each kind, in turns; '
        f'load of the machine {statistics.median(loads):.1f}'
    )
    show_parts('nothing compiled before', cold)
    show_parts('compiled by an earlier process', warm)
    print(f'\n{"from process start to exit":42}  passed  CPU   to import jax: passed, CPU')
    base = sides['import jax']
    for side, found in sides.items():
        passed, cpu = median(found)
        ratios = median([(a / c, b / d) for (a, b), (c, d) in zip(found, base, strict=True)])
        print(f'{side:42} {passed:7.2f} {cpu:5.2f} {ratios[0]:12.2f} {ratios[1]:5.2f}')


if __name__ == '__main__':
    main()
