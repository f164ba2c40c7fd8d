"""A search that test_search.py starts twice: ``python -m tests.optimization.run_to_share FILE``."""

import json
import os
import sys

import numpy as np
from flax import nnx

from thinkml.optimization import RandomSearch
from thinkml.training import Callback, TrainingConfig

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
y = X[:, :3].argmax(axis=1)


class Tell(Callback):
    """Prints the rate of each training once."""

    def __init__(self):
        self.told = set()

    def on_train_start(self, run):
        rate = run.config.learning_rate
        if rate not in self.told:
            self.told.add(rate)
            print(json.dumps({'process': os.getpid(), 'rate': rate}), flush=True)


if __name__ == '__main__':
    search = RandomSearch(
        {'learning_rate': (1e-4, 0.1, 'log')}, n_iter=8, cv=2, storage=sys.argv[1],
        config=TrainingConfig(epochs=400, callbacks=[Tell()]),
    )  # fmt: skip
    search.optimize(lambda rngs: nnx.Linear(4, 3, rngs=rngs), X, y, progress=False, refit=False)
