"""Flax as its documentation shows it: `nnx.jit` around a step that updates an `nnx.Optimizer`."""

import jax
import numpy as np
import optax
from flax import nnx

from .nets_flax import make_net
from .workloads import LEARNING_RATE


@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def train(job, turns):
    model = make_net(job.workload, job.weights)
    optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
    x, y, batch_size = job.x, job.y.astype(np.int32), job.workload.batch_size
    rng = np.random.default_rng(0)
    turns.start()
    for _ in range(job.epochs):
        order, losses = rng.permutation(len(x)), []
        for first in range(0, len(x) - batch_size + 1, batch_size):
            rows = order[first : first + batch_size]
            losses.append(train_step(model, optimizer, x[rows], y[rows]))
        turns.over(np.asarray(jax.device_get(losses)).mean())
