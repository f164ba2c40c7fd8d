"""Choices of the rows to label next, beside scikit-activeml and modAL.

    python benchmarks/active.py                # about four minutes on 2 cores, 3 GB of memory
    python benchmarks/active.py --rows 2000 --large-rows 5000   # small, to see that it runs

The pool has 50,000 x 128 features and probabilities of 10 classes, the same arrays for all sides.
100 rows are chosen, and the first 100 rows are labelled. A fixed classifier gives both libraries
the probabilities, so no model is trained or run in any of the times. Sides take turns in one
process; each is called as its users call it, including its checks of the arrays. ThinkML gets
NumPy's float32 arrays, as a network makes them, and sends them to the device in each call.
scikit-activeml gets float64 copies, made outside of the measured time, since it takes longer with
float32. The first turn, which compiles, is shown separately; in the others a call is repeated for
at least 0.3 seconds. A ratio is the median over the turns. `CPU` is the processor time on all cores
during the call, which other programs on the machine disturb less than the wall time.

Then ThinkML alone makes the same choices from 1,000,000 x 128, each strategy in its own process.
Reported are the seconds of the second call, and the process's high-water mark above its memory
before the first call, pool included.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

try:
    import modAL.uncertainty
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import Badge, CoreSet, UncertaintySampling
except ImportError as error:
    raise SystemExit(
        f'{error}. This benchmark compares with scikit-activeml and modAL: '
        'pip install scikit-activeml modAL-python'
    ) from error

from thinkml.core import (
    badge,
    diverse,
    entropy,
    highest,
    k_center_greedy,
    least_confident,
    typiclust,
)

NUM_FEATURES, NUM_CLASSES, COUNT, NUM_LABELED = 128, 10, 100, 100
SHORTEST = 0.3
GOALS = {'uncertainty': 1, 'core-set': 10, 'badge': 10}


def make_pool(num_rows, num_features=NUM_FEATURES):
    """Returns features of classes that overlap, and a linear model's probabilities for them."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((num_features, NUM_CLASSES), dtype=np.float32)
    features = rng.standard_normal((num_rows, num_features), dtype=np.float32)
    features += directions.T[rng.integers(0, NUM_CLASSES, num_rows)]
    probabilities = features @ directions / 16
    probabilities -= probabilities.max(1, keepdims=True)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(1, keepdims=True)
    return features, probabilities


def our_sides(features, probabilities):
    available = np.arange(len(features)) >= NUM_LABELED
    labeled, key = features[:NUM_LABELED], jax.random.key(0)
    return {
        'uncertainty': lambda: highest(least_confident(probabilities), COUNT, available),
        'core-set': lambda: k_center_greedy(features, COUNT, labeled, available),
        'badge': lambda: badge(probabilities, features, COUNT, key, available),
        'diverse': lambda: diverse(entropy(probabilities), features, COUNT, key, available),
        'typiclust': lambda: typiclust(features, COUNT, key, labeled, available),
    }


def other_sides(features, probabilities):
    class Fixed(SkactivemlClassifier):
        """A classifier that returns stored probabilities for the pool's last rows."""

        def fit(self, X, y, sample_weight=None):
            return self

        def predict_proba(self, X):
            return probabilities[-len(X) :]

    features, probabilities = features.astype(np.float64), probabilities.astype(np.float64)
    y = np.full(len(features), np.nan)
    y[:NUM_LABELED] = np.arange(NUM_LABELED) % NUM_CLASSES
    classifier, batch = Fixed(classes=range(NUM_CLASSES)), {'batch_size': COUNT}
    own_model = {'clf': classifier, 'fit_clf': False}
    uncertainty = UncertaintySampling(method='least_confident', random_state=0)
    unlabeled = features[NUM_LABELED:]

    def modal():
        found = modAL.uncertainty.uncertainty_sampling(classifier, unlabeled, n_instances=COUNT)
        return found + NUM_LABELED

    return {
        ('uncertainty', 'scikit-activeml'): lambda: uncertainty.query(
            features, y, **own_model, **batch
        ),
        ('uncertainty', 'modAL'): modal,
        ('core-set', 'scikit-activeml'): lambda: CoreSet(random_state=0).query(
            features, y, **batch
        ),
        ('badge', 'scikit-activeml'): lambda: Badge(random_state=0).query(
            features, y, **own_model, **batch
        ),
    }


def measure(call, at_least=0.0):
    """Returns wall and CPU seconds of a call and its result; repeats a call that is too short."""
    num_calls, cpu, started = 0, time.process_time(), time.perf_counter()
    while not num_calls or time.perf_counter() - started < at_least:
        result = call()
        num_calls += 1
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return wall / num_calls, cpu / num_calls, result


def compare(num_rows, repetitions):
    features, probabilities = make_pool(num_rows)
    ours = our_sides(features, probabilities)
    sides = {(name, 'thinkml'): call for name, call in ours.items()}
    sides |= other_sides(features, probabilities)
    times, results = {side: [] for side in sides}, {}
    for turn in range(repetitions + 1):
        for side, call in sides.items():
            *seconds, results[side] = measure(call, SHORTEST if turn else 0)
            times[side].append(seconds)
    # If deterministic strategies chose other rows, the times would not be comparable.
    for name, other in (
        ('uncertainty', 'scikit-activeml'),
        ('uncertainty', 'modAL'),
        ('core-set', 'scikit-activeml'),
    ):
        assert set(results[name, 'thinkml'].indices) == set(results[name, other]), (name, other)
    print(f'\n{num_rows:,} x {NUM_FEATURES}, {COUNT} of them; medians of {repetitions}\n')
    print('| | seconds | CPU | first call | this/thinkml | by CPU | goal |')
    print('| --- | ---: | ---: | ---: | ---: | ---: | --- |')
    for (name, library), rows in sorted(times.items(), key=lambda row: list(ours).index(row[0][0])):
        first, rows, own = rows[0][0], np.array(rows[1:]), np.array(times[name, 'thinkml'][1:])
        wall, cpu = np.median(rows, axis=0)
        versus = '|  |  |  |'
        if library != 'thinkml':
            ratio, by_cpu = np.median(rows / own, axis=0)
            met = 'met' if ratio >= GOALS[name] else 'missed'
            versus = f'| {ratio:.1f} | {by_cpu:.1f} | at least {GOALS[name]}: {met} |'
        print(f'| {name}, {library} | {wall:.4f} | {cpu:.4f} | {first:.2f} {versus}')


def high_water_mark():
    """Returns the peak memory of the process since `forget_high_water_mark`, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) * 1024
    raise OSError('/proc/self/status does not say VmHWM')


def forget_high_water_mark():
    Path('/proc/self/clear_refs').write_text('5')


def measure_large(num_rows, name):
    features, probabilities = make_pool(num_rows)
    call = our_sides(features, probabilities)[name]
    jax.block_until_ready(jax.device_put(np.zeros(1)))
    forget_high_water_mark()
    before = high_water_mark()
    first, _, _ = measure(call)
    wall, cpu, found = measure(call)
    assert len(set(found.indices)) == COUNT
    above = (high_water_mark() - before) / 1e6
    data = (features.nbytes + probabilities.nbytes) / 1e6
    print(f'| {name} | {wall:.2f} | {cpu:.2f} | {first:.2f} | {data:.0f} MB | {above:.0f} MB |')


def report_large(num_rows):
    print(f'\n{num_rows:,} x {NUM_FEATURES}, {COUNT} of them, thinkml\n')
    print('| | seconds | CPU | first call | the pool | memory above it |')
    print('| --- | ---: | ---: | ---: | ---: | ---: |', flush=True)
    for name in our_sides(*make_pool(NUM_LABELED)):
        command = [sys.executable, __file__, '--large-rows', str(num_rows), '--large', name]
        subprocess.run(command, check=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rows', type=int, default=50_000)
    parser.add_argument('--large-rows', type=int, default=1_000_000)
    parser.add_argument('--repetitions', type=int, default=3)
    parser.add_argument('--large', metavar='STRATEGY', help='only measure this one, alone')
    args = parser.parse_args()
    if args.large:
        measure_large(args.large_rows, args.large)
        return
    names = ('jax', 'numpy', 'scikit-learn', 'scikit-activeml', 'modAL-python')
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, '
        f'load {os.getloadavg()[0]:.1f}; {", ".join(f"{n} {version(n)}" for n in names)}'
    )
    compare(args.rows, args.repetitions)
    report_large(args.large_rows)
    print(f'\nload at the end {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
    main()
