"""By hand in JAX: a jitted step that donates its state, scanned over an epoch or called in a loop.

Rows are shuffled each epoch; those of an incomplete last batch are dropped. The scan reads them
from the device. So does the loop, except on a CPU, where batches cut by NumPy are faster.
"""

import functools

import jax
import numpy as np
import optax
from flax import nnx

from .nets_flax import make_net, negative_elbo
from .workloads import LEARNING_RATE, WORKLOADS, make_job

tx = optax.adam(LEARNING_RATE)


def cross_entropy(net, x, y, step):
    del step
    return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()


def mean_elbo(net, x, y, step):
    del y
    losses, _ = negative_elbo(net, x, jax.random.fold_in(jax.random.key(0), step))
    return losses.mean()


def make_step(graph, loss_of):
    def loss_fn(params, stats, x, y, step):
        net = nnx.merge(graph, params, stats)
        return loss_of(net, x, y, step), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def step(carry, x, y):
        params, stats, opt_state = carry
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, stats), grads = grad_fn(params, stats, x, y, opt_state[0].count)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    return step


def begin(job):
    """Returns the step, the first carry, and the data."""
    graph, params, stats = nnx.split(make_net(job.workload, job.weights), nnx.Param, nnx.BatchStat)
    params, stats = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    carry = params, stats, jax.jit(tx.init)(params)
    loss_of = mean_elbo if job.workload.net == 'vae' else cross_entropy
    return make_step(graph, loss_of), carry, job.x, job.y.astype(np.int32)


def flops_of_step(name):
    """Returns the operations of a step of a workload by dtype."""
    from thinkml.training.model_flops import step_flops

    workload = WORKLOADS[name]
    step, *arguments = begin(make_job(workload, epochs=1, rows=workload.batch_size))
    return step_flops(step, *arguments)


def train_by_scan(job, turns):
    step, carry, x, y = begin(job)
    x, y = jax.device_put((x, y))
    batch_size = job.workload.batch_size
    num_steps = len(x) // batch_size

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry, key, x, y):
        order = jax.random.permutation(key, len(x))[: num_steps * batch_size]
        rows = order.reshape(num_steps, batch_size)
        return jax.lax.scan(lambda carry, rows: step(carry, x[rows], y[rows]), carry, rows)

    turns.start()
    for key in jax.random.split(jax.random.key(0), job.epochs):
        carry, losses = epoch(carry, key, x, y)
        turns.over(np.asarray(losses).mean())


def train_by_loop(job, turns):
    step, carry, x, y = begin(job)
    batch_size = job.workload.batch_size
    num_steps = len(x) // batch_size
    jitted_step = jax.jit(step, donate_argnums=0)
    jitted_step_of_rows = jax.jit(
        lambda carry, rows, x, y: step(carry, x[rows], y[rows]), donate_argnums=0
    )
    on_cpu = jax.default_backend() == 'cpu'
    if not on_cpu:
        x, y = jax.device_put((x, y))
    rng = np.random.default_rng(0)
    turns.start()
    for _ in range(job.epochs):
        order = rng.permutation(len(x)).astype(np.int32)
        losses = []
        for rows in order[: num_steps * batch_size].reshape(num_steps, batch_size):
            if on_cpu:
                carry, loss = jitted_step(carry, x[rows], y[rows])
            else:
                carry, loss = jitted_step_of_rows(carry, rows, x, y)
            losses.append(loss)
        turns.over(np.asarray(jax.device_get(losses)).mean())


def train(job, turns, scanned):
    (train_by_scan if scanned else train_by_loop)(job, turns)
