"""scikit-learn: `MLPClassifier`, an epoch a `partial_fit`, or all epochs in one `fit`."""

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from .workloads import LEARNING_RATE


class FromWeights(MLPClassifier):
    """An `MLPClassifier` that begins with given weights instead of drawing its own."""

    def begin_with(self, weights):
        self._given = [
            (weights[f'dense.{index}.kernel'].copy(), weights[f'dense.{index}.bias'].copy())
            for index in range(len(self.hidden_layer_sizes) + 1)
        ]
        return self

    def _init_coef(self, fan_in, fan_out, dtype):
        kernel, bias = self._given.pop(0)
        assert kernel.shape == (fan_in, fan_out)
        return kernel.astype(dtype), bias.astype(dtype)


def train(job, turns, threads=None):
    with threadpool_limits(threads):
        _train(job, turns)


def _train(job, turns):
    classifier = FromWeights(
        hidden_layer_sizes=job.workload.widths[1:-1], batch_size=job.workload.batch_size,
        learning_rate_init=LEARNING_RATE, alpha=0, max_iter=job.epochs, tol=0,
        n_iter_no_change=job.epochs, random_state=0,
    ).begin_with(job.weights)  # fmt: skip
    turns.start()
    if job.alone:
        turns.over(classifier.fit(job.x, job.y).loss_)
        return
    for _ in range(job.epochs):
        turns.over(classifier.partial_fit(job.x, job.y, classes=np.arange(10)).loss_)
