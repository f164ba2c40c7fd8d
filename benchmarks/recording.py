"""The cost of recording a training: history, metrics, progress bar, callbacks, the step's norms.

    python benchmarks/recording.py                          # about five minutes on 2 cores
    python benchmarks/recording.py w1a                      # workloads whose name starts so
    python benchmarks/recording.py w1 --rows 2000 --epochs 4   # small, to see that it runs

The workloads are those of race.py. All sides train the same net on the same data and take
turns epoch by epoch in one process, each in a thread that waits while the others train:

- nothing: `core.train_chunks` and the loss;
- default: `ModelTrainer` by default, with history, accuracy and progress bar;
- host: the same, with the callbacks 'throughput', 'lr_monitor', 'csv' (which needs 'grad_norm')
  and, if the device reports its memory, 'device_stats';
- step: the default, with the metrics 'grad_norm' and 'update_ratio', which the compiled step
  computes;
- all: both.

Reported are median seconds per epoch, and the median over the rounds of the ratio to another side.
"""

import argparse
import functools
import statistics
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from peers.nets_flax import make_net
from peers.workloads import WORKLOADS, make_job

from thinkml import core
from thinkml.data import place
from thinkml.training import CSVLogger, ModelTrainer, TrainingConfig

REPEATS = 15
NORMS = ['grad_norm', 'update_ratio']
NAMES = ('w1a', 'w1b', 'w2')


class Turns:
    """A lock that lets one side at a time train an epoch, and measures it."""

    def __init__(self, sides):
        self.seconds = {side: [] for side in sides}
        self._following = dict(zip(sides, [*sides[1:], sides[0]], strict=True))
        self._may_run = {side: threading.Semaphore(0) for side in sides}

    def start(self):
        next(iter(self._may_run.values())).release()

    def wait(self, side):
        self._may_run[side].acquire()
        self._started_at = time.perf_counter()

    def end(self, side):
        self.seconds[side].append(time.perf_counter() - self._started_at)
        self._may_run[self._following[side]].release()


class TakesTurns:
    """The last callback of a side, which waits for its turn."""

    def __init__(self, turns, side):
        self.turns, self.side = turns, side

    def on_train_start(self, run):
        self.turns.wait(self.side)

    def on_epoch_end(self, run):
        self.turns.end(self.side)
        if run.epoch < run.config.epochs:
            self.turns.wait(self.side)


def train_plainly(job, turns, side):
    key, x, y = jax.random.key(0), job.x, job.y.astype(np.int32)
    functional = core.functionalize(make_net(job.workload, job.weights), x[:1], key)
    tx, metrics = core.make_optimizer('adam'), core.make_metrics(())
    step = core.make_train_step(functional.apply, core.get_loss('cross_entropy'), tx, metrics)
    state = core.init_state(functional.params, functional.model_state, tx, key, learning_rate=1e-3)
    size = {'num_rows': len(x), 'batch_size': job.workload.batch_size}
    feed = core.ResidentFeed(place(x, y), shuffle_key=key, **size)
    turns.wait(side)
    for chunk in core.train_chunks(step, metrics, state, feed, epochs=job.epochs):
        if chunk.ends_epoch:
            chunk.epoch_metrics()
            turns.end(side)
            if chunk.epoch + 1 < job.epochs:
                turns.wait(side)


def train(job, turns, side, *, callbacks=(), metrics=None):
    callbacks = [*callbacks, TakesTurns(turns, side)]
    batch_size = job.workload.batch_size
    config = TrainingConfig(batch_size=batch_size, epochs=job.epochs, callbacks=callbacks)
    model = make_net(job.workload, job.weights)
    ModelTrainer(config).train(model, job.x, job.y, metrics=metrics)


def compare(name, num_rows, epochs, directory):
    job = make_job(WORKLOADS[name], epochs, num_rows)
    host = ['throughput', 'lr_monitor']
    if jax.devices()[0].memory_stats():
        host.append('device_stats')
    runs = {
        'nothing': train_plainly,
        'default': train,
        'host': functools.partial(train, callbacks=[*host, CSVLogger(directory / 'host.csv')]),
        'step': functools.partial(train, metrics=NORMS),
        'all': functools.partial(
            train, callbacks=[*host, CSVLogger(directory / 'all.csv')], metrics=NORMS
        ),
    }
    turns = Turns(list(runs))
    threads = [threading.Thread(target=run, args=(job, turns, side)) for side, run in runs.items()]
    for thread in threads:
        thread.start()
    turns.start()
    for thread in threads:
        thread.join()
    report(name, len(job.x), job.workload.batch_size, turns.seconds)


def report(name, num_rows, batch_size, seconds):
    # The first two epochs compile and measure the pace; in the last one earlier sides clean up.
    seconds = {side: times[2:-1] for side, times in seconds.items()}
    print(f'\n{name}: {num_rows:,} rows, batch {batch_size}; goal: at most 1.02')
    for side, of in [('default', 'nothing'), ('host', 'default'), ('step', 'default'),
                     ('all', 'default'), ('all', 'nothing')]:  # fmt: skip
        pairs = zip(seconds[side], seconds[of], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        print(
            f'  {side:8} {statistics.median(seconds[side]):8.4f} s/epoch   '
            f'{of:8} {statistics.median(seconds[of]):8.4f} s/epoch   ratio {ratio:6.3f}'
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('only', nargs='?', default='', help='start of a workload name')
    parser.add_argument('--rows', type=int, help='of the data; those of race.py if none')
    parser.add_argument('--epochs', type=int, default=REPEATS + 3)
    options = parser.parse_args()
    for name in NAMES:
        if name.startswith(options.only):
            with tempfile.TemporaryDirectory() as directory:
                compare(name, options.rows, options.epochs, Path(directory))


if __name__ == '__main__':
    main()
