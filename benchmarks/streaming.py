"""The cost of streaming: the same training from the device's memory and from a file on disk.

    python benchmarks/streaming.py          # about ten minutes on 2 cores
    python benchmarks/streaming.py cnn      # only the workloads whose name starts so

The data is a `numpy.memmap` eight times as large as its memory limit on the device
(``device_data_bytes``). Both sides train the nets of race.py in the same order, with the
same numbers, and take turns epoch by epoch in one process. Reported are median seconds per epoch,
the median of the ratios of neighbouring epochs (goal: streamed at no less than 0.9 of the resident
speed), and True if the losses are equal bit for bit. Then, in a separate process, the memory of a
streamed `ModelTrainer.train` beyond that of the same training on a thousandth of the rows.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from peers import workloads
from peers.nets_flax import make_net

from thinkml import core
from thinkml.data import StreamedFeed, open_rows, place
from thinkml.training import ModelTrainer, TrainingConfig

REPEATS = 7
SHARE = 8

RACED = workloads.WORKLOADS
WORKLOADS = {
    'mlp-32': dataclasses.replace(RACED['w1a'], rows=240_000),
    'mlp-512': dataclasses.replace(RACED['w1b'], rows=480_000),
    'cnn-128': dataclasses.replace(RACED['w2'], rows=40_960),
    'cnn-128-small': dataclasses.replace(RACED['w2'], rows=10_240),  # blocks of two steps
}


def fresh_net(workload):
    weights = workloads.initial_weights(workload, np.random.default_rng(0))
    return make_net(workload, weights)


def make_file(directory, num_rows, shape):
    """Writes a file of rows around the centres of ten classes, a part at a time."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, num_rows).astype(np.int32)
    centres = (rng.normal(size=(10, *shape)) * 0.3).astype(np.float32)
    path = Path(directory) / 'x.npy'
    x = np.lib.format.open_memmap(path, 'w+', np.float32, (num_rows, *shape))
    for first in range(0, num_rows, 10_000):
        part = slice(first, first + 10_000)
        noise = rng.standard_normal(size=(len(y[part]), *shape), dtype=np.float32)
        x[part] = centres[y[part]] + noise
    x.flush()
    return path, y


def training(workload, feed, x):
    """Yields the chunks of a training from this feed."""
    functional = core.functionalize(fresh_net(workload), x, jax.random.key(0))
    metrics, tx = core.make_metrics(('accuracy',)), core.make_optimizer('adam')
    loss_fn = core.get_loss('cross_entropy')
    step = core.make_train_step(functional.apply, loss_fn, tx, metrics)
    arrays = functional.params, functional.model_state
    state = core.init_state(*arrays, tx, jax.random.key(1), 1e-3)
    return core.train_chunks(step, metrics, state, feed, epochs=REPEATS + 2)


def one_epoch(chunks):
    """Returns the seconds of an epoch, and the losses of its steps."""
    started, losses = time.perf_counter(), []
    for chunk in chunks:
        losses.append(chunk.step_losses())
        if chunk.ends_epoch:
            return time.perf_counter() - started, np.concatenate(losses)


def compare(name, directory):
    workload = WORKLOADS[name]
    num_rows, shape, batch_size = workload.rows, workload.shape, workload.batch_size
    path, y = make_file(directory, num_rows, shape)
    x = np.load(path, mmap_mode='r')
    common = {'batch_size': batch_size, 'shuffle_key': jax.random.key(2)}
    budget = x.nbytes // SHARE
    feeds = {
        'resident': core.ResidentFeed(place(np.array(x), y), num_rows=num_rows, **common),
        'streamed': StreamedFeed(open_rows(x), y, budget=budget, **common),
    }
    sides = {side: training(workload, feed, x[:1]) for side, feed in feeds.items()}
    seconds, equal = {side: [] for side in sides}, True
    for epoch in range(REPEATS + 2):
        losses = []
        for side, chunks in sides.items():
            taken, of_epoch = one_epoch(chunks)
            losses.append(of_epoch)
            if epoch >= 2:  # the first two compile and measure the pace
                seconds[side].append(taken)
        equal = equal and np.array_equal(*losses)
    print(
        f'\n{name}: {num_rows:,} rows of {shape}, {x.nbytes / 1e6:.0f} MB on disk, '
        f'{budget / 1e6:.1f} MB on the device, batch {batch_size}'
    )
    for side, taken in seconds.items():
        print(
            f'  {side}  {statistics.median(taken):7.3f} s/epoch '
            f'(min {min(taken):.3f}, max {max(taken):.3f})'
        )
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f'  speed of streamed/resident: {ratio:.3f} (goal: at least 0.9); equal losses: {equal}')
    print(
        f'  memory beyond a training on a few rows: {memory_of(name, path) / 1e6:.0f} MB '
        f'(budget {budget / 1e6:.1f} MB)'
    )


def memory_of(name, path):
    """Returns the private bytes of two streamed epochs beyond those of a small training."""
    command = [sys.executable, __file__, name, '--memory', str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure_memory(name, path):
    workload = WORKLOADS[name]
    num_rows, batch_size = workload.rows, workload.batch_size
    x, y = np.load(path, mmap_mode='r'), np.arange(num_rows) % 10

    def most_of_training(rows, budget):
        settings = {'batch_size': batch_size, 'epochs': 2, 'device_data_bytes': budget}
        trainer, most, done = ModelTrainer(TrainingConfig(**settings)), [0], threading.Event()

        def watch():
            while not done.wait(0.002):
                most[0] = max(most[0], private_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        trainer.train(fresh_net(workload), x[:rows], y[:rows], progress=False)
        done.set()
        watcher.join()
        return most[0]

    small = most_of_training(3 * batch_size, budget=1)
    print(most_of_training(num_rows, budget=x.nbytes // SHARE) - small)


def private_bytes():
    """Returns this process's memory without pages of files, which come and go."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('RssAnon'):
            return int(line.split()[1]) * 1024
    raise OSError('/proc/self/status does not say RssAnon')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('only', nargs='?', default='', help='start of a workload name')
    parser.add_argument('--memory', metavar='FILE', help='only measure memory, in this process')
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.only, arguments.memory)
        return
    versions = ', '.join(f'{name} {version(name)}' for name in ('jax', 'flax', 'optax'))
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; {versions}'
    )
    for name in WORKLOADS:
        if name.startswith(arguments.only):
            with tempfile.TemporaryDirectory() as directory:
                compare(name, directory)


if __name__ == '__main__':
    main()
