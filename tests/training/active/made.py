"""Rows and labels that the tests of active learning share."""

import numpy as np

from thinkml.training import TrainingConfig

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)).astype(np.float32)
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).astype(int) + (X[:, 2] > 0.8)
LABELED, POOL, VAL = slice(0, 30), slice(30, 200), slice(200, 300)
CONFIG = TrainingConfig(epochs=3, batch_size=16, learning_rate=0.01)


def same(one, other):
    return all(
        np.array_equal(a.indices, b.indices)
        and a.metrics == b.metrics
        and a.num_labels == b.num_labels
        for a, b in zip(one, other, strict=True)
    )
