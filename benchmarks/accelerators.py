"""Measurements that are only meaningful on an accelerator.

    python benchmarks/accelerators.py            # all of it, about ten minutes on one GPU
    python benchmarks/accelerators.py resnet50   # one part
    python benchmarks/accelerators.py --smoke    # small, on a CPU, to see that it runs

- resnet50: ResNet-50 v1.5, bfloat16, 224x224, batch 256, synthetic images that are on the device.
  Images per second in `ModelTrainer` and in torch (bfloat16 by autocast, channels last), eager and
  with `torch.compile`, each in its own process, in turns. If the peak of the device is known, also
  the fraction of it that the model's arithmetic uses (model FLOP utilisation).
- vmap: 64 small MLPs of different seeds at once, the step under `jax.vmap` in one program, beside
  one after another with the program of one.
- evaluation: five metrics of 1e8 binary rows.
- active: the choices of `active.py` from 1,000,000 x 512.

For W1 to W7 beside the hand-written scan and torch, see `race.py`. Without an accelerator only
``--smoke`` runs, and its output is not a measurement.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time

import numpy as np

PARTS = ('resnet50', 'vmap', 'evaluation', 'active')
# Multiplications and additions for a 224x224 image, forwards; a training takes three times that.
RESNET50_MACS = 4.09e9
SIDES = ('ThinkML', 'torch', 'torch.compile')


@dataclasses.dataclass(frozen=True)
class Size:
    """The amount of computation."""

    batch: int = 256
    pixels: int = 224
    steps: int = 20
    turns: int = 3
    models: int = 64
    rows: int = 100_000_000
    pool: int = 1_000_000
    features: int = 512


SMOKE = Size(
    batch=2, pixels=64, steps=2, turns=1, models=4, rows=10_000, pool=2_000, features=16
)  # fmt: skip


# --- ResNet-50 --------------------------------------------------------------------------------


def images(size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((size.batch * size.steps, size.pixels, size.pixels, 3), np.float32)
    return x, rng.integers(0, 1000, len(x)).astype(np.int32)


def resnet50_in_thinkml(size):
    from thinkml.models import create
    from thinkml.training import ModelTrainer, TrainingConfig

    x, y = images(size)
    ended = []
    config = TrainingConfig(
        batch_size=size.batch, epochs=4, precision='bfloat16', optimizer='momentum',
        callbacks=[lambda run: ended.append(time.perf_counter())],
    )  # fmt: skip
    ModelTrainer(config).train(create('resnet50', num_classes=1000), x, y, progress=False)
    return np.diff(ended[1:]).min()


def resnet50_in_torch(size, compiled):
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    x, y = images(size)
    x = torch.from_numpy(x).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
    y = torch.from_numpy(y).long().to(device)
    # Strides in the 3x3 convolutions, which is v1.5.
    net = ResNetForImageClassification(
        ResNetConfig(num_labels=1000, downsample_in_bottleneck=False)
    ).to(device, memory_format=torch.channels_last)
    model = torch.compile(net) if compiled else net
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    seconds = []
    for _ in range(4):
        started, order = time.perf_counter(), torch.randperm(len(x), device=device)
        for rows in order.split(size.batch):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                logits = model(x[rows]).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), y[rows])
            loss.backward()
            optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - started)
    return min(seconds[2:])


def peak_of(device):
    """Returns the bfloat16 operations per second of a device by its name; None if unknown."""
    from thinkml.training.accelerators import accelerator_of

    accelerator = accelerator_of(device)
    return None if accelerator is None else accelerator.peak_flops['bfloat16']


def resnet50(size, device):
    rates = {side: [] for side in SIDES}
    for _ in range(size.turns):
        for side, of_side in rates.items():
            command = [sys.executable, __file__, 'resnet50', '--side', side]
            command += ['--smoke'] if size == SMOKE else []
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            of_side.append(size.batch * size.steps / json.loads(told.splitlines()[-1]))
    peak = peak_of(device)
    print(f'\nresnet50, {size.pixels}x{size.pixels}, batch {size.batch}, bfloat16')
    ours = statistics.median(rates['ThinkML'])
    for side, of_side in rates.items():
        rate = statistics.median(of_side)
        flops = rate * 6 * RESNET50_MACS * (size.pixels / 224) ** 2
        used = 'peak unknown' if peak is None else f'{flops / peak:.1%} of the peak'
        print(f'  {side:14} {rate:10,.1f} images/s  {used}  ThinkML/this {ours / rate:.3f}')


# --- the others -------------------------------------------------------------------------------


def vmap(size, device):
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from thinkml import core

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2048, 64)).astype(np.float32), rng.integers(0, 10, 2048)
    net = nnx.Sequential(
        nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(128, 10, rngs=nnx.Rngs(0))
    )
    functional = core.functionalize(net, x, jax.random.key(0))
    tx, metrics = optax.adam(1e-3), core.make_metrics()
    step = core.make_train_step(functional.apply, core.get_loss('cross_entropy'), tx, metrics)
    batches = core.Batch(
        jnp.asarray(x).reshape(64, 32, 64), jnp.asarray(y, jnp.int32).reshape(64, 32),
        jnp.ones((64, 32)),
    )  # fmt: skip

    def of_seed(key):
        return core.init_state(functional.params, functional.model_state, tx, key)

    def train(state):
        return jax.lax.scan(lambda state, batch: (step(state, batch)[0], None), state, batches)[0]

    keys = jax.random.split(jax.random.key(1), size.models)
    one, many = jax.jit(train), jax.jit(jax.vmap(train))
    states, stacked = [of_seed(key) for key in keys], jax.jit(jax.vmap(of_seed))(keys)

    def alone():
        return [one(state) for state in states]

    for seconds in ([], []):
        for name, run in (('one after another', alone), ('at once', lambda: many(stacked))):
            started = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append((name, time.perf_counter() - started))
    print(f'\nvmap: {size.models} MLPs, 64 steps of 32 rows')
    print(''.join(f'  {name}: {taken:.4f} s' for name, taken in seconds))


def evaluation(size, device):
    from evaluation import binary, ours

    case = binary(size.rows)
    ours(case)
    started = time.perf_counter()
    ours(case)
    print(
        f'\nevaluation: five metrics of {size.rows:,} rows: {time.perf_counter() - started:.2f} s'
    )


def active(size, device):
    import active

    features, probabilities = active.make_pool(size.pool, size.features)
    print(f'\nactive: {active.COUNT} of {size.pool:,} x {size.features}')
    for name, call in active.our_sides(features, probabilities).items():
        first, *_ = active.measure(call)
        seconds, *_ = active.measure(call)
        print(f'  {name:12} {seconds:8.3f} s   first call {first:.2f} s')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('parts', nargs='*', choices=[[], *PARTS], help=', '.join(PARTS))
    parser.add_argument('--smoke', action='store_true')
    parser.add_argument('--side', choices=SIDES, help='only measure this one, in this process')
    asked = parser.parse_args()
    size = SMOKE if asked.smoke else Size()
    if asked.side == 'ThinkML':
        print(json.dumps(resnet50_in_thinkml(size)))
        return
    if asked.side:
        print(json.dumps(resnet50_in_torch(size, asked.side == 'torch.compile')))
        return

    import jax

    device = jax.devices()[0]
    if device.platform == 'cpu' and not asked.smoke:
        parser.error('there is no accelerator; --smoke shows that it runs')
    if asked.smoke:
        print('SMALL, to see that it runs: none of this is a figure.')
    print(f'{device.device_kind}, jax {jax.__version__}')
    for part in asked.parts or PARTS:
        globals()[part](size, device.device_kind)


if __name__ == '__main__':
    main()
