"""A grid search: ThinkML's, and scikit-learn's over its own network.

    python benchmarks/search.py          # about two minutes on 2 cores

The grid has 16 settings (4 learning rates, 2 amounts of weight decay, 2 seeds) in 3 folds of
scikit-learn's digits, for the network of W3 in race.py, 50 epochs in batches of 32. Both sides have
the same folds and take turns in processes of their own. Reported are the seconds of a search,
without imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

RATES, DECAYS = [1e-4, 3e-4, 1e-3, 3e-3], [1e-6, 1e-4]
EPOCHS, BATCH, WIDTHS, FOLDS = 50, 32, (128, 64), 3


def data():
    import numpy as np
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


def by_thinkml():
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
    config = TrainingConfig(epochs=EPOCHS, batch_size=BATCH, optimizer='adamw')
    search = GridSearch(space, cv=FOLDS, scoring='accuracy', config=config)
    start = time.perf_counter()
    result = search.optimize(make_model, X, y, refit=False, progress=False)
    return time.perf_counter() - start, result.best_trial.score


def by_scikit_learn():
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter('ignore', ConvergenceWarning)
    X, y = data()
    grid = {'learning_rate_init': RATES, 'alpha': DECAYS, 'random_state': [0, 1]}
    model = MLPClassifier(WIDTHS, batch_size=BATCH, max_iter=EPOCHS, n_iter_no_change=EPOCHS)
    search = GridSearchCV(model, grid, cv=FOLDS, scoring='accuracy', refit=False)
    start = time.perf_counter()
    search.fit(X, y)
    return time.perf_counter() - start, search.best_score_


SIDES = {'thinkml': by_thinkml, 'scikit-learn': by_scikit_learn}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--side', choices=SIDES)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side]()))
        return
    seconds = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            output = subprocess.run(
                [sys.executable, __file__, '--side', side], capture_output=True, check=True
            ).stdout
            took, score = json.loads(output.splitlines()[-1])
            seconds[side].append(took)
            print(f'{side}: {took:.2f} s, best accuracy {score:.4f}', flush=True)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(
        f'medians: {", ".join(f"{s} {statistics.median(v):.2f} s" for s, v in seconds.items())}; '
        f'scikit-learn takes {statistics.median(ratios):.1f} times as long (goal: at least 9)'
    )


if __name__ == '__main__':
    main()
