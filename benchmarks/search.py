"""A grid search: ThinkML's, and scikit-learn's over its own network.

    python benchmarks/search.py          # about two minutes on 2 cores

The grid has 16 settings (4 learning rates, 2 amounts of weight decay, 2 seeds) in 3 folds of
scikit-learn's digits, for the network of W3 in race.py: with 200 epochs in batches of 200, the
defaults of `MLPClassifier`, and with 50 epochs in batches of 32. Both sides have the same number of
epochs and take turns in processes of their own. Reported are the seconds of a search, without
imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

RATES, DECAYS = [1e-4, 3e-4, 1e-3, 3e-3], [1e-6, 1e-4]
WIDTHS, FOLDS = (128, 64), 3
EPOCHS = {200: 200, 32: 50}  # by batch size


def data():
    import numpy as np
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def by_thinkml(batch_size):
    from flax import nnx

    from thinkml.optimization import GridSearch
    from thinkml.training import TrainingConfig

    def make_model(rngs):
        first, second = WIDTHS
        return nnx.Sequential(
            nnx.Linear(64, first, rngs=rngs), nnx.relu,
            nnx.Linear(first, second, rngs=rngs), nnx.relu, nnx.Linear(second, 10, rngs=rngs),
        )  # fmt: skip

    X, y = data()
    space = {'learning_rate': RATES, 'weight_decay': DECAYS, 'seed': [0, 1]}
    config = TrainingConfig(epochs=EPOCHS[batch_size], batch_size=batch_size, optimizer='adamw')
    search = GridSearch(space, cv=FOLDS, scoring='accuracy', config=config)
    start = time.perf_counter()
    result = search.optimize(make_model, X, y, refit=False, progress=False)
    return time.perf_counter() - start, result.best_trial.score


def by_scikit_learn(batch_size):
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter('ignore', ConvergenceWarning)
    X, y = data()
    epochs = EPOCHS[batch_size]
    grid = {'learning_rate_init': RATES, 'alpha': DECAYS, 'random_state': [0, 1]}
    model = MLPClassifier(WIDTHS, batch_size=batch_size, max_iter=epochs, n_iter_no_change=epochs)
    search = GridSearchCV(model, grid, cv=FOLDS, scoring='accuracy', refit=False)
    start = time.perf_counter()
    search.fit(X, y)
    return time.perf_counter() - start, search.best_score_


SIDES = {'thinkml': by_thinkml, 'scikit-learn': by_scikit_learn}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--side', nargs=2, metavar=('SIDE', 'BATCH_SIZE'))
    options = parser.parse_args()
    if options.side:
        side, batch_size = options.side
        print(json.dumps(SIDES[side](int(batch_size))))
        return
    for batch_size in EPOCHS:
        compare(batch_size, options.rounds)


def compare(batch_size, rounds):
    seconds = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            output = subprocess.run(
                [sys.executable, __file__, '--side', side, str(batch_size)],
                capture_output=True, check=True,
            ).stdout  # fmt: skip
            took, score = json.loads(output.splitlines()[-1])
            seconds[side].append(took)
            print(f'{batch_size}, {side}: {took:.2f} s, best accuracy {score:.4f}', flush=True)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    medians = ', '.join(
        f'{side} {statistics.median(found):.2f} s' for side, found in seconds.items()
    )
    print(f'batches of {batch_size}: {medians}; ratio {statistics.median(ratios):.1f} (goal: 9)')


if __name__ == '__main__':
    main()
