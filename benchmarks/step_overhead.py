"""What ModelTrainer costs beside the same training written by hand.

    python benchmarks/step_overhead.py            # everything, about ten minutes on 2 cores
    python benchmarks/step_overhead.py mlp        # only the workloads whose name starts so

Both sides train the same net from the same weights on the same data with Adam at 1e-3, shuffled
each epoch, and take turns epoch by epoch in one process, so that a machine that is busy slows both.
ModelTrainer records history and metrics and draws its progress bar; by hand there is the loss of
each step and nothing else, and the rows of an incomplete last batch are dropped. Reported: median
seconds per epoch, the median of the ratios of neighbouring epochs, and the last epoch's mean loss.
"""

import argparse
import functools
import itertools
import os
import platform
import statistics
import time
from importlib.metadata import version

import jax
import numpy as np
import optax
from flax import nnx

from thinkml.training import ModelTrainer, TrainingConfig

REPEATS = 7


def make_mlp():
    rngs = nnx.Rngs(0)
    sizes = (64, 128, 128, 10)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nnx.Linear(inputs, outputs, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers[:-1])


class CNN(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dense1 = nnx.Linear(7 * 7 * 64, 128, rngs=rngs)
        self.dense2 = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.dense2(nnx.relu(self.dense1(x.reshape(len(x), -1))))


def make_data(num_rows, shape):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, num_rows)
    centres = rng.normal(size=(10, *shape))
    x = centres[y] * 0.3 + rng.normal(size=(num_rows, *shape))
    return x.astype(np.float32), y.astype(np.int32)


# workload: (net, rows, shape of a row, batch size, also as a Python loop, goal: at most this
# times the faster of the hand-written ones)
WORKLOADS = {
    'mlp-32': (make_mlp, 60_000, (64,), 32, False, 1.05),
    'mlp-512': (make_mlp, 60_000, (64,), 512, False, 1.05),
    'cnn-128': (CNN, 2_560, (28, 28, 1), 128, True, 1.0),
}


class ByHand:
    """The training as one would write it by hand: a jitted step, scanned or looped over."""

    def __init__(self, make_net, x, y, batch_size):
        graph, params = nnx.split(make_net())
        self.params = nnx.to_pure_dict(params)
        self.tx = optax.adam(1e-3)
        self.opt_state = self.tx.init(self.params)
        self.x, self.y, self.batch_size = jax.numpy.asarray(x), jax.numpy.asarray(y), batch_size
        self.num_steps = len(x) // batch_size
        self.epoch = 0

        def loss_fn(params, x, y):
            logits = nnx.merge(graph, params)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        def step(carry, rows, x, y):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, x[rows], y[rows])
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        self.jitted_step = functools.partial(jax.jit, donate_argnums=0)(step)

        @functools.partial(jax.jit, donate_argnums=0)
        def scanned_epoch(carry, key, x, y):
            rows = self.shuffled(key)
            return jax.lax.scan(lambda carry, rows: step(carry, rows, x, y), carry, rows)

        self.scanned_epoch = scanned_epoch
        self.jitted_shuffle = jax.jit(self.shuffled)

    def shuffled(self, key):
        rows = jax.random.permutation(key, len(self.x))[: self.num_steps * self.batch_size]
        return rows.reshape(self.num_steps, self.batch_size)

    def scan(self):
        self.epoch += 1
        carry = (self.params, self.opt_state)
        carry, losses = self.scanned_epoch(carry, jax.random.key(self.epoch), self.x, self.y)
        self.params, self.opt_state = carry
        return np.asarray(losses).mean()

    def loop(self):
        self.epoch += 1
        carry, losses = (self.params, self.opt_state), []
        for rows in self.jitted_shuffle(jax.random.key(self.epoch)):
            carry, loss = self.jitted_step(carry, rows, self.x, self.y)
            losses.append(loss)
        self.params, self.opt_state = carry
        return np.asarray(jax.device_get(losses)).mean()


def compare(name):
    make_net, num_rows, shape, batch_size, with_loop, goal = WORKLOADS[name]
    x, y = make_data(num_rows, shape)
    sides = {'hand-written scan': ByHand(make_net, x, y, batch_size).scan}
    if with_loop:
        sides['hand-written loop'] = ByHand(make_net, x, y, batch_size).loop
    seconds = {side: [] for side in ('ModelTrainer', *sides)}
    losses = {}
    clock = [time.perf_counter()]

    def take_turns(run):
        seconds['ModelTrainer'].append(time.perf_counter() - clock[0])
        losses['ModelTrainer'] = run.history['loss'][-1]
        for side, epoch in sides.items():
            started = time.perf_counter()
            losses[side] = float(epoch())
            seconds[side].append(time.perf_counter() - started)
        clock[0] = time.perf_counter()

    config = TrainingConfig(batch_size=batch_size, epochs=REPEATS + 2, callbacks=[take_turns])
    ModelTrainer(config).train(make_net(), x, y)

    # The first two epochs compile and find the pace.
    ours = seconds['ModelTrainer'][2:]
    print(f'\n{name}: {num_rows:,} rows of {shape}, batch {batch_size}; goal: ratio <= {goal}')
    for side in seconds:
        theirs = seconds[side][2:]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(
            f'  {side:18} {statistics.median(theirs):8.4f} s/epoch '
            f'(min {min(theirs):.4f}, max {max(theirs):.4f})  '
            f'ModelTrainer/this {ratio:6.3f}  loss {losses[side]:.4f}'
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('only', nargs='?', default='', help='start of a workload name')
    only = parser.parse_args().only
    versions = ', '.join(f'{name} {version(name)}' for name in ('jax', 'flax', 'optax'))
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; {versions}'
    )
    for name in WORKLOADS:
        if name.startswith(only):
            compare(name)


if __name__ == '__main__':
    main()
