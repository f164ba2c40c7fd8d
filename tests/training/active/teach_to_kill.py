"""Adds labels one by one, and prints each once it is on disk. The test kills this process."""

import sys

from tests.models_for_tests import mlp
from tests.training.active.made import CONFIG, POOL, X, Y
from thinkml.training import ActiveLearner

if __name__ == '__main__':
    learner = ActiveLearner(mlp(6, 3), 'random', config=CONFIG)
    learner.start(X[POOL])
    learner.save(sys.argv[1])
    while True:
        for row in range(170):
            learner.teach([row], [Y[POOL][row]])
            print(row, Y[POOL][row], flush=True)
