"""Savings in labels by each strategy: areas under learning curves, against random rows.

    python benchmarks/active_curves.py                 # 10 seeds, about 20 minutes on 2 cores
    python benchmarks/active_curves.py --seeds 2 --tasks digits

Three tasks, an MLP with one hidden layer of 64, 20 labels to begin with and 10 queries of 20 rows,
trained from scratch each time. A seed sets the initial weights, the first labels, the split into
pool and validation rows, and the random draws of the strategies. All strategies begin with the
same. The area under the curve of validation accuracy over the number of labels is divided by its
width, so it is the mean accuracy. Intervals are 95 %, of Student's t over the seeds.
"""

import argparse
import statistics
import time

import numpy as np
from flax import nnx
from scipy.stats import t as student
from sklearn.datasets import load_digits, make_classification

from thinkml.training import ActiveLearner, TrainingConfig

STRATEGIES = ('random', 'uncertainty', 'margin', 'entropy', 'badge', 'core_set', 'typiclust')
CONFIG = TrainingConfig(epochs=60, batch_size=16, learning_rate=0.003)
FIRST, QUERY_SIZE, QUERIES = 20, 20, 10


def digits(rng):
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def rare_classes(rng):
    """Returns ten clusters in 16 dimensions, the rarest a tenth as frequent as the commonest."""
    sizes = np.geomspace(400, 40, 10).astype(int)
    centres = rng.normal(size=(10, 16)) * 1.5
    y = np.repeat(np.arange(10), sizes)
    return centres[y] + rng.normal(size=(len(y), 16)), y


def noisy_features(rng):
    """Returns four classes, two clusters each, in 20 dimensions; 8 of them are informative."""
    return make_classification(
        2000, 20, n_informative=8, n_redundant=0, n_classes=4, n_clusters_per_class=2,
        class_sep=1.5, flip_y=0.02, random_state=int(rng.integers(2**31)),
    )  # fmt: skip


TASKS = {'digits': digits, 'rare classes': rare_classes, 'noisy features': noisy_features}


def areas(task, seed):
    """Returns the area of each strategy, all from the same beginning."""
    rng = np.random.default_rng(seed)
    X, y = TASKS[task](rng)
    X = ((X - X.mean(0)) / (X.std(0) + 1e-8)).astype(np.float32)
    order = rng.permutation(len(X))
    first, pool, val = np.split(order, [FIRST, 2 * len(X) // 3])
    found = {}
    for strategy in STRATEGIES:
        rngs = nnx.Rngs(seed)
        model = nnx.Sequential(
            nnx.Linear(X.shape[1], 64, rngs=rngs), nnx.relu,
            nnx.Linear(64, int(y.max()) + 1, rngs=rngs),
        )  # fmt: skip
        learner = ActiveLearner(
            model, strategy, config=CONFIG, query_size=QUERY_SIZE, seed=seed, metrics=['accuracy']
        )
        history = learner.train(
            X[first], y[first], X[pool], QUERIES, y_unlabeled=y[pool], X_val=X[val], y_val=y[val],
            progress=False,
        )  # fmt: skip
        found[strategy] = history.area('val_accuracy')
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS))
    args = parser.parse_args()
    for task in args.tasks:
        started = time.perf_counter()
        rows = [areas(task, seed) for seed in range(args.seeds)]
        factor = student.ppf(0.975, args.seeds - 1) / args.seeds**0.5

        def interval(values, factor=factor):
            return statistics.mean(values), factor * statistics.stdev(values)

        print(f'\n{task}, {args.seeds} seeds, {time.perf_counter() - started:.0f} s\n')
        print('| strategy | mean area | 95 % | intervals apart | gain over random, by seed |')
        print('| --- | ---: | ---: | --- | ---: |')
        at_random, half_random = interval([row['random'] for row in rows])
        for strategy in STRATEGIES:
            mean, half = interval([row[strategy] for row in rows])
            gain, half_gain = interval([row[strategy] - row['random'] for row in rows])
            apart = 'yes' if mean - half > at_random + half_random else 'no'
            if strategy == 'random':
                print(f'| random | {mean:.4f} | ±{half:.4f} | | |')
            else:
                print(
                    f'| {strategy} | {mean:.4f} | ±{half:.4f} | {apart} '
                    f'| {gain:+.4f} ±{half_gain:.4f} |'
                )


if __name__ == '__main__':
    main()
