"""The compiled chunk: many training steps in one dispatch, and the generator over chunks."""

import functools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Collection
from flax import struct

from thinkml.core.state import TrainState
from thinkml.core.step import Batch, EvalStep, TrainStep


class DeviceData(struct.PyTreeNode):
    """A data set on the device, or a part of one, as an index plan into the whole.

    Row counts are traced, so that folds and subsets of one data set share compiled programs.

    Attributes:
        x: inputs, arrays ``[capacity, ...]``.
        y: encoded labels or targets, ``[capacity, ...]``.
        rows: int32, the rows in use; only the first ``num_rows`` entries count.
        num_rows: int32 scalar.
    """

    x: Any
    y: jax.Array
    rows: jax.Array
    num_rows: jax.Array


class Chunk(NamedTuple):
    """What one dispatch did. Its arrays may still be in the making; reading them waits.

    They are donated to the next dispatch: read or copy what you need before asking for the next
    chunk.

    Attributes:
        state: the state after the chunk.
        epoch: 0-based epoch.
        first: first step of the chunk within its epoch.
        last: one past the chunk's last step.
        ends_epoch: whether the epoch is complete.
        losses: the loss of each of the epoch's steps so far, on the device.
        metrics: the epoch's metrics so far, a CLU collection on the device.
    """

    state: TrainState
    epoch: int
    first: int
    last: int
    ends_epoch: bool
    losses: jax.Array
    metrics: Collection

    def step_losses(self) -> np.ndarray:
        """The loss of each step of this chunk, on the host."""
        return np.asarray(self.losses)[self.first : self.last]

    def epoch_metrics(self) -> dict[str, float]:
        """The epoch's metrics so far as plain floats."""
        return compute_metrics(self.metrics)


def train_chunks(
    step: TrainStep,
    metrics: type[Collection],
    state: TrainState,
    data: DeviceData,
    *,
    num_rows: int,
    batch_size: int,
    epochs: int,
    shuffle_key: jax.Array,
    steps_per_dispatch: int | None = None,
) -> Iterator[Chunk]:
    """Trains, yielding after each dispatch.

    Each epoch visits every row once, in an order that depends on ``(shuffle_key, epoch)`` alone.
    The last batch of an epoch is filled up with rows from its beginning, at weight 0. Where an
    epoch is cut into dispatches changes neither the numbers nor the compiled program.

    Args:
        step: from `make_train_step`.
        metrics: the CLU collection class the step was made with.
        state: from `init_state`; donated, as every later state is.
        data: the training data.
        num_rows: ``data.num_rows`` as a Python int.
        batch_size: rows a step; a smaller data set trains as one batch.
        epochs: passes over the data.
        shuffle_key: PRNG key of the shuffling.
        steps_per_dispatch: training steps in one dispatch. None fits them to about a second, for
            Python can't react (progress bar, Ctrl-C) while a dispatch runs.

    Yields:
        a `Chunk` as soon as it is dispatched.
    """
    batch_size = min(batch_size, num_rows)
    num_steps = math.ceil(num_rows / batch_size)
    pace = _Pace(steps_per_dispatch)
    for epoch in range(epochs):
        plan, totals, losses = _begin_epoch(metrics, batch_size, data, shuffle_key, epoch)
        first = 0
        while first < num_steps:
            last = min(num_steps, first + pace.steps)
            started = time.perf_counter()
            state, totals, losses = _run_steps(
                step, (state, totals, losses), data, plan, first, last
            )
            yield Chunk(state, epoch, first, last, last == num_steps, losses, totals)
            losses.block_until_ready()
            pace.observe(last - first, time.perf_counter() - started)
            first = last


class _Pace:
    """How many steps the next dispatch takes: about ``TARGET_SECONDS`` of them."""

    TARGET_SECONDS = 1.0

    def __init__(self, steps_per_dispatch: int | None):
        self.fixed = steps_per_dispatch is not None
        # The first dispatch compiles and so tells nothing; the second measures the step.
        self.steps = steps_per_dispatch or 1
        self.compiled = False
        self.step_seconds = math.inf

    def observe(self, steps: int, seconds: float) -> None:
        if self.fixed:
            return
        if not self.compiled:
            self.compiled, self.steps = True, 8
            return
        # The least: what the caller did meanwhile (an evaluation, a checkpoint) is in it too.
        self.step_seconds = min(self.step_seconds, seconds / steps)
        self.steps = max(1, int(self.TARGET_SECONDS / self.step_seconds))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin_epoch(
    metrics: type[Collection], batch_size: int, data: DeviceData, key: jax.Array, epoch: int
) -> tuple[jax.Array, Collection, jax.Array]:
    """The epoch's index plan ``[steps, batch]``, empty metrics, and room for its losses."""
    capacity = len(data.rows)
    # One stable sort by random bits. Two rows that draw the same 32 bits keep their order, a bias
    # far below anything training could notice.
    bits = jax.random.bits(jax.random.fold_in(key, epoch), (capacity,), jnp.uint32)
    unused = jnp.arange(capacity) >= data.num_rows
    bits = jnp.where(unused, jnp.uint32(0xFFFFFFFF), bits)
    _, order = jax.lax.sort((bits, data.rows), num_keys=1, is_stable=True)
    steps = math.ceil(capacity / batch_size)
    plan = order[jnp.arange(steps * batch_size) % data.num_rows].reshape(steps, batch_size)
    return plan, metrics.empty(), jnp.zeros((steps,), jnp.float32)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _run_steps(
    step: TrainStep,
    carry: tuple[TrainState, Collection, jax.Array],
    data: DeviceData,
    plan: jax.Array,
    first: int,
    last: int,
) -> tuple[TrainState, Collection, jax.Array]:
    """Steps ``first`` to ``last`` of an epoch. Traced bounds: one program for every length."""

    def body(index, carry):
        state, totals, losses = carry
        batch = _take(data, plan[index], index * plan.shape[1])
        state, output = step(state, batch)
        return state, totals.merge(output.metrics), losses.at[index].set(output.loss)

    return jax.lax.fori_loop(first, last, body, carry)


def _take(data: DeviceData, rows: jax.Array, first: jax.Array) -> Batch:
    """Gathers rows as a batch; those at or past ``num_rows`` of the plan get weight 0."""
    take = functools.partial(jnp.take, indices=rows, axis=0, mode='clip')
    weight = (first + jnp.arange(len(rows)) < data.num_rows).astype(jnp.float32)
    return Batch(jax.tree.map(take, data.x), take(data.y), weight)


def evaluate(
    step: EvalStep,
    metrics: type[Collection],
    params: Any,
    model_state: Any,
    data: DeviceData,
    *,
    batch_size: int,
) -> dict[str, float]:
    """Returns the metrics over a data set as plain floats, exact for any batch size.

    Args:
        step: from `make_eval_step`.
        metrics: the CLU collection class the step was made with.
        params: the trainable arrays.
        model_state: the other arrays.
        data: the data set.
        batch_size: rows at a time; bounds the memory, changes nothing else.
    """
    return compute_metrics(_run_eval(step, metrics, batch_size, params, model_state, data))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_eval(step, metrics, batch_size, params, model_state, data: DeviceData) -> Collection:
    def body(index, totals):
        first = index * batch_size
        rows = data.rows[(first + jnp.arange(batch_size)) % data.num_rows]
        return totals.merge(step(params, model_state, _take(data, rows, first)))

    num_batches = (data.num_rows + batch_size - 1) // batch_size
    return jax.lax.fori_loop(0, num_batches, body, metrics.empty())


@jax.jit
def _compute(metrics: Collection) -> dict[str, jax.Array]:
    return metrics.compute()


def compute_metrics(metrics: Collection) -> dict[str, float]:
    """The values of a CLU collection as plain floats, in one transfer."""
    values = jax.device_get(_compute(metrics))
    return {name: float(values[name]) for name in type(metrics).__annotations__}
