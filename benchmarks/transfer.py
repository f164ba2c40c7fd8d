"""The gain of freezing layers, and of computing the features of a frozen base only once.

    python benchmarks/transfer.py               # about four minutes on 2 cores
    python benchmarks/transfer.py --rows 64     # small, to see that it runs

A ResNet-18 with random weights, images of 64x64, Adam. Each side is `TransferLearner.fine_tune`,
and they take turns, one training of three epochs each. An epoch's time is that of the last two,
which compile nothing. Ratios are medians over the turns, relative to the side of the same turn that
trains all layers. `operations` are those of one step as XLA counts them, relative to the same side:
the time would fall to that ratio if every operation took the same time. `state` is the size of the
optimizer's state.
"""

import argparse
import itertools
import os
import platform
import statistics
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core import Batch, get_loss, init_state, make_metrics, make_optimizer, make_train_step
from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.models import TransferModel, create
from thinkml.training import TrainingConfig, TransferLearner
from thinkml.training.transfer.layer_groups import groups_of_headed, rate_factors, select_layers

SIZE, NUM_CLASSES, BATCH_SIZE, EPOCHS = 64, 10, 32, 3


def as_they_are(key, x, y):
    """Augments nothing, so that the base's features are computed in each epoch."""
    return x, y


# side: (trained layers of the base, True if features of a frozen base are kept)
SIDES = {
    'all layers': ('all', False),
    'last 10': (10, False),
    'last 5': (5, False),
    'last 1': (1, False),
    'head alone, features computed each time': (0, False),
    'head alone, features kept': (0, True),
}


def new_model():
    return create('resnet18', None), create('mlp', NUM_CLASSES, in_features=512, hidden=())


def epoch_seconds(layers, keeps_features, X, y):
    """Returns the seconds of the first epoch, and of each that follows."""
    base, head = new_model()
    ends = [time.perf_counter()]
    config = TrainingConfig(
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        callbacks=[lambda run: ends.append(time.perf_counter())],
    )
    learner = TransferLearner(base, layers, config=config)
    learner.fine_tune(
        head, X, y, augmentation=None if keeps_features else as_they_are, progress=False
    )
    first, *others = (after - before for before, after in itertools.pairwise(ends))
    return first, others


def cost_of_step(layers, X, y):
    """Returns the operations of a compiled step, and the bytes of the optimizer's state."""
    model = TransferModel(*new_model())
    parts = groups_of_headed(model, X[:2])
    rates = rate_factors(parts, select_layers(parts.layers, layers), 1.0)
    functional = PartlyFrozen(model, rates).functionalize(X, jax.random.key(0))
    tx = make_optimizer('adam')
    state = init_state(
        functional.params, functional.model_state, tx, jax.random.key(0), learning_rate=1e-3
    )
    step = make_train_step(functional.apply, get_loss('cross_entropy'), tx, make_metrics())
    batch = Batch(jnp.asarray(X[:BATCH_SIZE]), jnp.asarray(y[:BATCH_SIZE]), jnp.ones(BATCH_SIZE))
    analysis = jax.jit(step).lower(state, batch).cost_analysis()
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    return analysis['flops'], num_bytes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rows', type=int, default=512)
    parser.add_argument('--turns', type=int, default=5)
    args = parser.parse_args()
    versions = ', '.join(f'{name} {version(name)}' for name in ('jax', 'flax', 'optax'))
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, '
        f'load {os.getloadavg()[0]:.1f}; {versions}'
    )
    rng = np.random.default_rng(0)
    X = rng.normal(size=(args.rows, SIZE, SIZE, 3)).astype(np.float32)
    y = rng.integers(0, NUM_CLASSES, args.rows)

    firsts, epochs = ({side: [] for side in SIDES} for _ in range(2))
    for turn in range(args.turns + 1):  # the first one compiles
        for side, (layers, keeps_features) in SIDES.items():
            first, others = epoch_seconds(layers, keeps_features, X, y)
            if turn:
                firsts[side].append(first)
                epochs[side].append(statistics.mean(others))

    costs = {side: cost_of_step(layers, X, y) for side, (layers, _) in SIDES.items()}
    print(f'\nresnet18, {args.rows} images {SIZE}x{SIZE}, batch {BATCH_SIZE}')
    print('| trained | first epoch | each further | ratio | operations | state |')
    print('| --- | ---: | ---: | ---: | ---: | ---: |')
    whole = epochs['all layers']
    for side, seconds in epochs.items():
        operations, num_bytes = costs[side]
        share = '' if SIDES[side][1] else f'{operations / costs["all layers"][0]:.3f}'
        ratio = statistics.median(a / b for a, b in zip(seconds, whole, strict=True))
        print(
            f'| {side} | {statistics.median(firsts[side]):.3f} s '
            f'| {statistics.median(seconds):.4f} s | {ratio:.4f} | {share} '
            f'| {num_bytes / 1e6:.2f} MB |'
        )


if __name__ == '__main__':
    main()
