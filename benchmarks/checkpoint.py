"""The cost of checkpoints for a training, and the time until a killed run resumes.

    python benchmarks/checkpoint.py               # about three minutes on 2 cores

A large MLP is trained with Adam: parameters and optimizer state are 200 MB, and an epoch takes
several seconds. At the end of every other epoch a checkpoint is saved while the next epoch begins.
Reported are:

- the median seconds of an epoch after a save and of one without, and the median of the ratios of
  neighbouring ones;
- the time that `Checkpointer.save` blocks the training;
- the seconds until the checkpoint is complete;
- in new processes, the seconds to verify and to restore it.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version

import jax
import numpy as np
from flax import nnx

from thinkml import core
from thinkml.checkpoint import Checkpointer
from thinkml.data import check_inputs, place

INPUTS, HIDDEN, CLASSES = 512, 3_828, 10  # 16.7 million parameters; Adam keeps three of each


def make_model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(INPUTS, HIDDEN, rngs=rngs), nnx.relu,
        nnx.Linear(HIDDEN, HIDDEN, rngs=rngs), nnx.relu,
        nnx.Linear(HIDDEN, CLASSES, rngs=rngs),
    )  # fmt: skip


def make_training(num_rows, batch_size):
    """Returns the state of a training, and the arguments of `core.train_chunks` around it."""
    rng = np.random.default_rng(0)
    x = check_inputs(rng.normal(size=(num_rows, INPUTS)).astype(np.float32))
    y = rng.integers(0, CLASSES, num_rows).astype(np.int32)
    functional = core.functionalize(make_model(), x[:1], jax.random.key(0))
    metrics, tx = core.make_metrics(('accuracy',)), core.make_optimizer('adam')
    loss_fn = core.get_loss('cross_entropy')
    step = core.make_train_step(functional.apply, loss_fn, tx, metrics)
    arrays = functional.params, functional.model_state
    state = core.init_state(*arrays, tx, jax.random.key(1), 1e-3)
    feed = core.ResidentFeed(
        place(x, y), num_rows=num_rows, batch_size=batch_size, shuffle_key=jax.random.key(2)
    )
    return step, metrics, state, feed


def size_of(state):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


class Completion(threading.Thread):
    """A thread that waits until a checkpoint is complete while the training runs."""

    def __init__(self, checkpointer, step):
        super().__init__()
        self.checkpointer, self.step = checkpointer, step
        self.started, self.seconds = time.perf_counter(), None

    def run(self):
        while self.step not in self.checkpointer.steps():
            time.sleep(0.005)
        self.seconds = time.perf_counter() - self.started


def train(directory, pairs, num_rows, batch_size):
    step, metrics, state, feed = make_training(num_rows, batch_size)
    print(f'\nstate: {size_of(state) / 1e6:.0f} MB; {num_rows:,} rows, batch {batch_size}')
    checkpointer = Checkpointer(directory, keep=2)
    checkpointer.check_space(3 * size_of(state))
    plain, with_save, held_up, completions = [], [], [], []
    saved = False
    clock = time.perf_counter()
    # The first two epochs compile and import. No epoch follows the save of the last one.
    for chunk in core.train_chunks(step, metrics, state, feed, epochs=2 * pairs + 2):
        if not chunk.ends_epoch:
            continue
        chunk.step_losses()  # waits for the device, as recording them does
        now = time.perf_counter()
        if chunk.epoch >= 2:
            (with_save if saved else plain).append(now - clock)
        clock = now
        saved = chunk.epoch % 2 == 0
        if saved:
            checkpointer.save(chunk.epoch, chunk.state, {'epoch': chunk.epoch})
            if chunk.epoch:
                held_up.append(time.perf_counter() - clock)
                completions.append(Completion(checkpointer, chunk.epoch))
                completions[-1].start()
    checkpointer.close()
    for completion in completions:
        completion.join()
    with_save, plain = with_save[:pairs], plain[:pairs]
    report('epoch', plain)
    report('epoch after a save', with_save)
    ratio = statistics.median(a / b for a, b in zip(with_save, plain, strict=True))
    added = statistics.median(a - b for a, b in zip(with_save, plain, strict=True))
    print(f'  added to an epoch: {added:+.3f} s, ratio {ratio:.3f}')
    report('of that, in save', held_up)
    report('until complete', [completion.seconds for completion in completions])


def read(directory, num_rows, batch_size):
    """Verifies and restores the newest checkpoint; prints the seconds of each."""
    template = jax.eval_shape(lambda: make_training(num_rows, batch_size)[2])
    checkpointer = Checkpointer(directory, keep=2)
    started = time.perf_counter()
    step = checkpointer.latest_sound()
    verified = time.perf_counter()
    state, _ = checkpointer.restore(step, template)
    jax.block_until_ready(state)
    print(verified - started, time.perf_counter() - verified)


def report(name, seconds):
    print(
        f'  {name:20} {statistics.median(seconds):8.3f} s '
        f'(min {min(seconds):.3f}, max {max(seconds):.3f}, of {len(seconds)})'
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--pairs', type=int, default=7, help='epochs with and without a save')
    parser.add_argument('--rows', type=int, default=4_096)
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--directory', help='on the disk to measure; default: a temporary one')
    parser.add_argument('--read', metavar='DIRECTORY', help='only verify and restore')
    args = parser.parse_args()
    if args.read:
        read(args.read, args.rows, args.batch)
        return
    versions = ', '.join(f'{n} {version(n)}' for n in ('jax', 'flax', 'orbax-checkpoint'))
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; {versions}'
    )
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        train(directory, args.pairs, args.rows, args.batch)
        command = [sys.executable, __file__, '--read', directory, '--rows', '8', '--batch', '8']
        runs = [
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            for _ in range(3)
        ]
        print('in a new process:')
        report('verify', [float(verify) for verify, _ in runs])
        report('restore', [float(restore) for _, restore in runs])


if __name__ == '__main__':
    main()
