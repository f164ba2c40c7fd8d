"""Peak memory of ModelTrainer beside the same training as a hand-written scan.

    python benchmarks/memory.py             # everything, about ten minutes on 2 cores
    python benchmarks/memory.py w1          # only the workloads whose name starts so

The workloads are those of race.py. Each side trains in its own process: the same net from the same
weights on the same NumPy data with Adam, for a few steps (a hand-written scan over convolutions is
slow). Measured is private memory (RssAnon of /proc/self/status, read every millisecond), without
pages of libraries and files. The memory of the process after importing everything, starting JAX and
making the data is subtracted. On a CPU the device's memory is the process's, so the data on the
device, the state and the activations are included. There are three figures:

- whole: the peak of everything, compilation included,
- training: the peak during further epochs, once everything is compiled and the allocator has
  returned freed memory to the system (glibc's malloc_trim),
- program: the compiler's figure for the training program: arguments, temporaries and results, with
  aliased memory counted once.

A ratio is the median of the turns' ratios; goal: at most 1.1.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import version

import jax
import optax
from flax import nnx
from peers.nets_flax import make_net
from peers.workloads import WORKLOADS, make_job
from streaming import private_bytes

from thinkml.core.train import loop
from thinkml.training import ModelTrainer, TrainingConfig

STEPS, EPOCHS, TURNS, GOAL = 4, 3, 3, 1.1
SIDES = ('ModelTrainer', 'by hand')
NAMES = [name for name, workload in WORKLOADS.items() if workload.rows is not None]


class Watch:
    """The peak of the private memory, less that at its beginning."""

    def __init__(self):
        self.start = self.most = private_bytes()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while True:
            self.most = max(self.most, private_bytes())
            time.sleep(0.001)

    def read(self):
        return max(self.most, private_bytes()) - self.start

    def read_and_trim(self):
        most = self.read()
        ctypes.CDLL(None).malloc_trim(0)
        self.most = private_bytes()
        return most


def train_by_hand(net, x, y, batch_size, watch):
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    tx = optax.adam(1e-3)
    x, y = jax.numpy.asarray(x), jax.numpy.asarray(y)

    def loss_fn(params, rest, x, y):
        net = nnx.merge(graph, params, rest)
        loss = optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()
        return loss, nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.Param)))

    def step(carry, rows, x, y):
        params, rest, opt_state = carry
        (loss, rest), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, rest, x[rows], y[rows]
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), rest, opt_state), loss

    def epoch(carry, key, x, y):
        order = jax.random.permutation(key, len(x))[: STEPS * batch_size]
        rows = order.reshape(STEPS, batch_size)
        return jax.lax.scan(lambda carry, rows: step(carry, rows, x, y), carry, rows)

    carry = (params, rest, tx.init(params))
    run = jax.jit(epoch, donate_argnums=0).lower(carry, jax.random.key(0), x, y).compile()
    figures = {'program': program_bytes(run)}
    for number in range(EPOCHS):
        carry, losses = run(carry, jax.random.key(number), x, y)
        losses.block_until_ready()
        if number == 0:
            figures['whole'] = watch.read_and_trim()
    return figures | {'training': watch.read(), 'loss': float(losses.mean())}


def train_with_thinkml(net, x, y, batch_size, watch):
    figures, programs, run_steps = {}, [], loop._run_steps

    def noted(*arguments):
        if not programs:
            shapes = jax.eval_shape(lambda: arguments[3:])
            programs.append((*arguments[:3], *shapes))
        return run_steps(*arguments)

    loop._run_steps = noted

    def after_epoch(run):
        if run.epoch == 2:  # the second one measures the pace and compiles nothing
            figures['whole'] = watch.read_and_trim()

    config = TrainingConfig(
        batch_size=batch_size, epochs=EPOCHS + 1, limit_train_batches=STEPS,
        callbacks=[after_epoch],
    )  # fmt: skip
    history = ModelTrainer(config).train(net, x, y, progress=False)
    figures |= {'training': watch.read(), 'loss': history['loss'][-1]}
    return figures | {'program': program_bytes(run_steps.lower(*programs[0]).compile())}


def program_bytes(compiled):
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )  # fmt: skip


def measure(side, name):
    job = make_job(WORKLOADS[name], EPOCHS)
    y = job.y.astype('int32')
    jax.numpy.zeros(3).block_until_ready()
    train, watch = train_with_thinkml if side == SIDES[0] else train_by_hand, Watch()
    net = make_net(job.workload, job.weights)
    print(json.dumps(train(net, job.x, y, job.workload.batch_size, watch)))


def run_process(side, name):
    done = subprocess.run(
        [sys.executable, __file__, name, '--side', side],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compare(name):
    turns = [[run_process(side, name) for side in SIDES] for _ in range(TURNS)]
    print(f'\n{name}: {WORKLOADS[name].title}')
    for figure in ('whole', 'training', 'program'):
        if not all(figure in side for turn in turns for side in turn):
            continue
        pairs = [[side[figure] / 1e6 for side in turn] for turn in turns]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(
            f'  {figure:9} {ours:8.1f} MB   by hand {theirs:8.1f} MB   ratio {ratio:.3f} '
            f'({"met" if ratio <= GOAL else "missed"})'
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('only', nargs='?', default='', help='start of a workload name')
    parser.add_argument('--side', choices=SIDES, help='only measure this side, in this process')
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, arguments.only)
        return
    versions = ', '.join(f'{name} {version(name)}' for name in ('jax', 'flax', 'optax'))
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; '
        f'{versions}; medians of {TURNS} turns; goal: at most {GOAL}'
    )
    for name in NAMES:
        if name.startswith(arguments.only):
            compare(name)


if __name__ == '__main__':
    main()
