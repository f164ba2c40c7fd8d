"""The cost and the gain of several devices and processes.

    python benchmarks/scaling.py              # everything, about ten minutes on 2 cores
    python benchmarks/scaling.py one          # the overhead on one device
    python benchmarks/scaling.py exchange     # jit over a mesh against shard_map
    python benchmarks/scaling.py devices      # weak and strong scaling over simulated devices
    python benchmarks/scaling.py processes    # the same over processes on this machine
    python benchmarks/scaling.py accelerators # the same over the available accelerators

Simulated devices share the cores, so these figures show the cost of sharding, not a gain.
Efficiency is the examples per second relative to one device on the same machine. Without that
cost it would be 1 on simulated devices too, since the work and the cores are the same.

`predicted_scaling.py` predicts the scaling to many devices.
"""

import argparse
import itertools
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

NUM_ROWS = 60_000
SIZES = (64, 128, 128, 10)
REPEATS = 9


# --- the training that is timed ---------------------------------------------------------------


def make_model():
    from flax import nnx

    rngs = nnx.Rngs(0)
    layers = []
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [nnx.Linear(inputs, outputs, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers[:-1])


def make_data(num_rows):
    import numpy as np

    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, num_rows)
    x = rng.normal(size=(10, SIZES[0]))[y] * 0.3 + rng.normal(size=(num_rows, SIZES[0]))
    return x.astype(np.float32), y.astype(np.int32)


class Timed:
    """A callback that measures the seconds of each epoch, without the first ones, which compile."""

    def __init__(self):
        self.seconds, self._begun = [], None

    def on_epoch_end(self, run):
        now = time.perf_counter()
        if run.epoch > 2:
            self.seconds.append(now - self._begun)
        self._begun = now


def epoch_seconds(trainer_of, batch_size, num_rows, epochs):
    """Returns the seconds of each epoch of a training, and its last loss."""
    from thinkml.training import TrainingConfig

    timed = Timed()
    config = TrainingConfig(epochs=epochs + 2, batch_size=batch_size, callbacks=[timed])
    x, y = make_data(num_rows)
    history = trainer_of(config).train(make_model(), x, y, progress=False)
    return timed.seconds, history['loss'][-1]


# --- one device -------------------------------------------------------------------------------


def one_device():
    """Measures the distributed path on one device, in turns with the plain one."""
    import jax

    from thinkml.core.parallel.sharding import Layout, data_mesh
    from thinkml.training import DistributedTrainer, ModelTrainer
    from thinkml.training.train import train
    from thinkml.training.training_data import TrainRequest

    class OnMesh:
        """The layout's path, which `DistributedTrainer` leaves out for one device."""

        def __init__(self, config):
            self.config = config

        def train(self, model, x, y, progress):
            layout = Layout(data_mesh(jax.devices()[:1]))
            return train(model, TrainRequest(x, y), self.config, layout, progress=progress).history

    sides = {
        'DistributedTrainer(num_gpus=1)': lambda config: DistributedTrainer(config, num_gpus=1),
        'a mesh of one device': OnMesh,
    }
    print('| batch | side | s/epoch | ModelTrainer | ratio | goal |')
    print('| ---: | --- | ---: | ---: | ---: | --- |')
    for batch_size in (32, 512):
        for name, side in sides.items():
            pairs = []
            for turn in range(REPEATS):
                order = (side, ModelTrainer) if turn % 2 else (ModelTrainer, side)
                timed = {of: epoch_seconds(of, batch_size, NUM_ROWS, 2) for of in order}
                (own, loss), (plain, plain_loss) = timed[side], timed[ModelTrainer]
                assert abs(loss - plain_loss) < 1e-5, (loss, plain_loss)
                pairs.append((min(own), min(plain)))
            ratio = statistics.median(own / plain for own, plain in pairs)
            own, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
            met = 'met' if ratio <= 1.02 else 'missed'
            goal = f'at most 1.02: {met}'
            print(f'| {batch_size} | {name} | {own:.3f} | {plain:.3f} | {ratio:.3f} | {goal} |')


# --- jit over the mesh against shard_map ------------------------------------------------------


def exchange(num_devices):
    """Prints the seconds of a step by jit over a mesh and by shard_map, and their all-reduces."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:num_devices]), ('data',), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec('data'), PartitionSpec()
    tx = optax.adam(1e-3)
    batch, steps = 512, 100
    x, y = make_data(batch * steps)
    x, y = x.reshape(steps, batch, -1), y.reshape(steps, batch)

    def summed_loss(params, x, y):
        for index, (w, b) in enumerate(params):
            x = x @ w + b
            x = jax.nn.relu(x) if index < len(params) - 1 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, y).sum()

    def by_jit(params, x, y):
        split = functools.partial(
            jax.lax.with_sharding_constraint, shardings=NamedSharding(mesh, rows)
        )
        return jax.value_and_grad(summed_loss)(params, split(x), split(y))

    in_parts = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(whole, rows, rows), out_specs=whole, check_vma=False
    )

    @in_parts
    def by_shard_map(params, x, y):
        flat, unflatten = jax.flatten_util.ravel_pytree(
            jax.value_and_grad(summed_loss)(params, x, y)
        )
        return unflatten(jax.lax.psum(flat, 'data'))

    @in_parts
    def by_arrays(params, x, y):
        return jax.lax.psum(jax.value_and_grad(summed_loss)(params, x, y), 'data')

    def chunk(gradients, state, x, y):
        def step(state, batch):
            params, opt_state = state
            loss, grads = gradients(params, *batch)
            grads = jax.tree.map(lambda grad: grad / len(batch[1]), grads)
            updates, opt_state = tx.update(grads, opt_state, params)
            state = optax.apply_updates(params, updates), opt_state
            pinned = jax.tree.map(lambda _: NamedSharding(mesh, whole), state)
            return jax.lax.with_sharding_constraint(state, pinned), loss

        return jax.lax.scan(step, state, (x, y))

    keys = jax.random.split(jax.random.key(0), len(SIZES))
    params = [
        (jax.random.normal(key, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for key, shape in zip(keys, itertools.pairwise(SIZES), strict=False)
    ]
    arguments = jax.device_put(((params, tx.init(params)), x, y), NamedSharding(mesh, whole))
    sides = {}
    for name, gradients in {'jit': by_jit, 'flat': by_shard_map, 'arrays': by_arrays}.items():
        run = jax.jit(functools.partial(chunk, gradients))
        text = run.lower(*arguments).compile().as_text()
        losses = np.asarray(run(*arguments)[1])
        sides[name] = run, text.count(' all-reduce('), losses
    drift = max(np.abs(sides['jit'][2] - losses).max() / batch for _, _, losses in sides.values())
    turns = []
    for _ in range(REPEATS):
        seconds = []
        for run, *_ in sides.values():
            begun = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            seconds.append((time.perf_counter() - begun) / steps)
        turns.append(seconds)
    medians = [f'{statistics.median(side) * 1e3:.2f} ms' for side in zip(*turns, strict=True)]
    ratios = [
        f'{statistics.median(turn[0] / turn[other] for turn in turns):.2f}' for other in (1, 2)
    ]
    reduces = ', '.join(str(count) for _, count, _ in sides.values())
    print(f'| {" | ".join([str(num_devices), *medians, *ratios, reduces, f"{drift:.0e}"])} |')


# --- scaling ----------------------------------------------------------------------------------


def scaling_case(kind, count, batch_of_one, processes):
    """Prints the examples per second of one case; runs in its own process."""
    from thinkml.training import DistributedTrainer

    batch = batch_of_one * count if kind == 'weak' else batch_of_one
    seconds, _ = epoch_seconds(
        lambda config: DistributedTrainer(config, num_gpus=count), batch, NUM_ROWS, 5
    )
    import jax

    if jax.process_index() == 0:
        print(f'RESULT {NUM_ROWS / statistics.median(seconds)}', flush=True)


def measured(kind, count, batch_of_one, processes=1, simulated=True):
    """Runs one case in a number of processes; returns examples per second."""
    environment = dict(os.environ)
    if simulated:
        environment['JAX_PLATFORMS'] = 'cpu'
        flag = f'--xla_force_host_platform_device_count={count // processes}'
        environment['XLA_FLAGS'] = flag
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    children = [
        subprocess.Popen(
            [
                sys.executable, __file__, 'case', kind, str(count), str(batch_of_one),
                str(processes), str(index), str(port),
            ],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(processes)
    ]  # fmt: skip
    outputs = [child.communicate() for child in children]
    found = [line for output, _ in outputs for line in output.splitlines() if 'RESULT' in line]
    if not found:
        raise RuntimeError(outputs[0][1])
    return float(found[0].split()[1])


def scaling(counts, processes, simulated=True, batch_of_one=512):
    """Measures weak and strong scaling over devices, or over processes of one device each."""
    what = 'processes' if processes else 'devices'
    print(f'| {what} | strong: examples/s | efficiency | weak: examples/s | efficiency |')
    print('| ---: | ---: | ---: | ---: | ---: |')
    first = {}
    for count in counts:
        row = [str(count)]
        for kind in ('strong', 'weak'):
            speed = measured(kind, count, batch_of_one, count if processes else 1, simulated)
            first.setdefault(kind, speed)
            # Real devices add up; simulated ones share the cores.
            of_one = first[kind] * (1 if simulated else count / counts[0])
            row += [f'{speed:,.0f}', f'{speed / of_one:.2f}']
        print(f'| {" | ".join(row)} |', flush=True)


# --- the command line -------------------------------------------------------------------------


def in_child(*arguments, devices):
    environment = {
        **os.environ, 'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }  # fmt: skip
    subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)


def accelerators():
    import jax

    devices = jax.devices()
    if devices[0].platform == 'cpu':
        print('There are no accelerators here.')
        return
    counts = [count for count in (1, 2, 4, 8, 16) if count <= len(devices)]
    scaling(counts, processes=False, simulated=False, batch_of_one=4096)


PARTS = ('one', 'exchange', 'devices', 'processes', 'accelerators')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('parts', nargs='*')
    arguments = parser.parse_args().parts
    if arguments[:1] == ['case']:
        kind, count, batch, processes, index, port = arguments[1:]
        if int(processes) > 1:
            from thinkml.core.parallel.multiprocess import initialize

            initialize(f'localhost:{port}', int(processes), int(index))
        return scaling_case(kind, int(count), int(batch), int(processes))
    if arguments[:1] == ['exchange-on']:
        return exchange(int(arguments[1]))
    if unknown := set(arguments) - set(PARTS):
        parser.error(f'unknown {", ".join(unknown)}; expected some of {", ".join(PARTS)}')
    print(f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, '
          f'jax {version("jax")}, flax {version("flax")}')  # fmt: skip
    for part in arguments or PARTS:
        print(f'\n## {part}\n', flush=True)
        if part == 'one':
            one_device()
        elif part == 'exchange':
            print('| devices | jit | shard_map: flat | arrays | jit/flat | jit/arrays |', end='')
            print(' all-reduces | losses differ by |')
            print('| ---: ' * 8 + '|', flush=True)
            for count in (2, 8):
                in_child('exchange-on', str(count), devices=count)
        elif part == 'devices':
            scaling((1, 2, 4, 8), processes=False)
        elif part == 'processes':
            scaling((1, 2, 4), processes=True)
        else:
            accelerators()
    return None


if __name__ == '__main__':
    main()
