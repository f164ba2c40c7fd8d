"""The cost of saving and loading a model, beside its bare arrays in a safetensors file.

    python benchmarks/model_files.py                    # 400 MB, about a minute on 2 cores
    python benchmarks/model_files.py --megabytes 20     # small, to see that it runs

The model is an MLP of 24 large layers of different widths and 150 small ones, 350 float32 arrays.
Both sides write to the same directory and read from it in turns, in one process:

- thinkml: `ModelManager().save_model` and `load_model`, which returns a model. Every file is
  checked by its SHA-256, and saved files are on disk (fsync) before they replace the old ones;
- safetensors: `safetensors.flax.save_file` and `load_file`, which returns a dict of arrays. Nothing
  is checked and nothing is flushed to disk;
- safetensors and sha256: the same `load_file` after hashing the file, to show the cost of checking.

Loads are timed until the arrays are in memory (`jax.block_until_ready`). The files were just
written, so they are in the page cache for both. The first turn, which imports, is left out. A ratio
is the median over the turns. `CPU` is the processor time on all cores during the call, which other
programs on the machine disturb less than the wall time.
"""

import argparse
import hashlib
import itertools
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.flax import load_file, save_file

from thinkml.models import ModelManager

LARGE, SMALL, WIDTH = 24, 150, 16
GOAL = 1.5


def make_model(megabytes):
    """Returns the model; widths grow from 1 to 3 units, chosen for the requested total size."""
    steps = np.linspace(1, 3, LARGE + 1)
    unit = (megabytes * 1e6 / 4 / np.sum(steps[:-1] * steps[1:])) ** 0.5
    widths = [*(int(step * unit) for step in steps), *[WIDTH] * (SMALL + 1)]
    rngs = nnx.Rngs(0)
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nnx.Linear(inputs, outputs, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers)


def arrays_of(model):
    state = nnx.to_flat_state(nnx.state(model))
    return {'/'.join(map(str, path)): leaf[...] for path, leaf in state}


def check_equal(model, saved):
    """Checks that both sides return the saved arrays, without which times mean nothing."""
    loaded = arrays_of(model)
    assert loaded.keys() == saved.keys()
    assert all((loaded[name] == array).all() for name, array in saved.items())


def measure(call):
    """Returns wall and CPU seconds; the result of the call is freed outside of them."""
    cpu, started = time.process_time(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started, time.process_time() - cpu
    del result
    return seconds


def size_of(path):
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6, len(files)


def compare(directory, megabytes, repetitions):
    manager, model = ModelManager(), make_model(megabytes)
    arrays = arrays_of(model)
    ours, theirs = directory / 'model', directory / 'model.safetensors'

    def load():
        loaded = manager.load_model(ours)
        return jax.block_until_ready(nnx.state(loaded))

    def load_bare():
        return jax.block_until_ready(load_file(theirs))

    def load_checked():
        with open(theirs, 'rb') as file:
            hashlib.file_digest(file, 'sha256')
        return load_bare()

    sides = {
        ('save', 'thinkml'): lambda: manager.save_model(model, ours, overwrite=True),
        ('save', 'safetensors'): lambda: save_file(arrays, theirs),
        ('load', 'thinkml'): load,
        ('load', 'safetensors'): load_bare,
        ('load', 'safetensors and sha256'): load_checked,
    }
    times = {side: [] for side in sides}
    for _ in range(repetitions + 1):
        for side, call in sides.items():
            times[side].append(measure(call))
    check_equal(manager.load_model(ours), arrays)
    total = sum(array.nbytes for array in arrays.values()) / 1e6
    print(f'\n{len(arrays)} float32 arrays, {total:.0f} MB; medians of {repetitions}\n')
    report({side: np.array(rows[1:]) for side, rows in times.items()})
    for name, path in (('thinkml', ours), ('safetensors', theirs)):
        size, files = size_of(path)
        print(f'| size, {name} | {size:.1f} MB, files: {files} | | | | | |')


def report(times):
    print('| | seconds | min | max | CPU | thinkml/this | goal |')
    print('| --- | ---: | ---: | ---: | ---: | ---: | --- |')
    for (what, name), rows in times.items():
        wall, cpu = rows[:, 0], statistics.median(rows[:, 1])
        ratio = statistics.median(times[what, 'thinkml'][:, 0] / wall)
        versus = '' if name == 'thinkml' else f'{ratio:.2f}'
        goal = ''
        if (what, name) == ('load', 'safetensors'):
            goal = f'at most {GOAL}: {"met" if ratio <= GOAL else "missed"}'
        print(
            f'| {what}, {name} | {statistics.median(wall):.3f} | {wall.min():.3f} | '
            f'{wall.max():.3f} | {cpu:.3f} | {versus} | {goal} |'
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--megabytes', type=float, default=400)
    parser.add_argument('--repetitions', type=int, default=7)
    parser.add_argument('--directory', help='on the disk to measure; default: a temporary one')
    args = parser.parse_args()
    names = ('jax', 'flax', 'orbax-checkpoint', 'safetensors')
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, '
        f'load {os.getloadavg()[0]:.1f}; {", ".join(f"{n} {version(n)}" for n in names)}'
    )
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        compare(Path(directory), args.megabytes, args.repetitions)


if __name__ == '__main__':
    main()
