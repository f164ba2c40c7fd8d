"""The compiled chunk: many training steps in one dispatch, and the generator over chunks."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Collection

from thinkml.core.objectives.streaming_metrics import compute
from thinkml.core.parallel.multiprocess import broadcast_number
from thinkml.core.parallel.sharding import Layout, pin_state, replicate
from thinkml.core.train.batch_feed import DeviceData, Feed, take
from thinkml.core.train.state import TrainState
from thinkml.core.train.step import EvalStep, TrainStep
from thinkml.core.xla.jit import Jit


class Position(NamedTuple):
    """How far a run has got.

    Attributes:
        epoch: 0-based epoch to go on with.
        step: steps of that epoch already done.
        metrics: what they measured; None where there were none.
        source: where the source of the data was after them, from the `Feed`.
    """

    epoch: int = 0
    step: int = 0
    metrics: Collection | None = None
    source: Any = None


@dataclasses.dataclass(eq=False)
class Chunk:
    """What one dispatch did. Its arrays may still be in the making; reading them waits.

    They are donated to the next dispatch: read or copy what you need before asking for the next
    chunk. Assign to ``state`` to go on with another one (another learning rate, say).

    Attributes:
        state: the state after the chunk.
        epoch: 0-based epoch.
        first: first step of the chunk within its epoch.
        last: one past the chunk's last step.
        ends_epoch: whether the epoch is complete.
        metrics: the epoch's metrics so far, a CLU collection on the device.
        losses: the loss of each step of the chunk, then zeros, on the device.
        num_done: steps done, fewer than asked for where a loss was not finite; on the device.
        state_is_finite: whether the parameters and the model state are; on the device.
        source: where the source of the data was after it.
        started_at: when it was dispatched, by `time.perf_counter`.
        input_seconds: how long it waited for its data before that, the device at rest.
        rerun: ``rerun(state, num_steps)``, the state after the chunk's first steps from the state
            before it, which is donated.
    """

    state: TrainState
    epoch: int
    first: int
    last: int
    ends_epoch: bool
    metrics: Collection
    losses: jax.Array
    num_done: jax.Array
    state_is_finite: jax.Array
    source: Any
    started_at: float
    input_seconds: float
    rerun: Callable[[TrainState, int], TrainState]

    def step_losses(self) -> np.ndarray:
        """The loss of each step done, on the host."""
        return np.asarray(self.losses)[: int(self.num_done)]

    def epoch_metrics(self) -> dict[str, float]:
        """The epoch's metrics so far as plain floats."""
        return compute(self.metrics)

    @property
    def is_finite(self) -> bool:
        """Whether the losses of all steps done were finite."""
        return bool(np.isfinite(self.step_losses()).all())

    @property
    def position(self) -> Position:
        """Where to go on after this chunk."""
        if self.ends_epoch:
            return Position(self.epoch + 1)
        return Position(self.epoch, self.last, self.metrics, self.source)


def train_chunks(
    step: TrainStep,
    metrics: type[Collection],
    state: TrainState,
    feed: Feed,
    *,
    epochs: int,
    start: Position = Position(),  # noqa: B008 (immutable)
    max_steps: int | None = None,
    border_every: int | None = None,
    stop_nonfinite: bool = True,
    steps_per_dispatch: int | None = None,
    layout: Layout | None = None,
) -> Iterator[Chunk]:
    """Trains, yielding after each dispatch.

    Where an epoch is cut into dispatches changes neither the numbers nor the compiled program.

    Args:
        step: from `make_train_step`.
        metrics: the CLU collection class the step was made with.
        state: from `init_state`; donated, as every later state is.
        feed: the batches, for instance a `ResidentFeed`.
        epochs: passes over the data, those before ``start`` counted in.
        start: where to begin, from the `Chunk.position` an earlier run got to.
        max_steps: steps to take at most.
        border_every: let a dispatch end wherever a multiple of this many steps are done.
        stop_nonfinite: end with the first step whose loss is NaN or infinite.
        steps_per_dispatch: training steps in one dispatch. None fits them to two seconds at most,
            for Python can't react (progress bar, Ctrl-C) while a dispatch runs.
        layout: that of the step.

    Yields:
        a `Chunk` as soon as it is dispatched.
    """
    pace = _Pace(steps_per_dispatch, border_every)
    steps_done = int(state.step)
    last_step = math.inf if max_steps is None else steps_done + max_steps
    for epoch in range(start.epoch, epochs):
        begun = start if epoch == start.epoch else Position(epoch)
        totals = empty_metrics(metrics, layout) if begun.metrics is None else begun.metrics
        asked_at = time.perf_counter()
        for block in feed.blocks(epoch, begun.step, begun.source):
            input_seconds = time.perf_counter() - asked_at
            first = block.first
            while first < block.last and steps_done < last_step:
                steps = pace.steps_from(steps_done, block.last - first)
                if layout is not None and layout.spans_processes:
                    steps = broadcast_number(steps)
                steps = min(steps, last_step - steps_done)
                last = int(min(block.last, first + steps))
                started = time.perf_counter()
                run = functools.partial(
                    _run_steps, step, stop_nonfinite, layout, block.data, block.plan
                )
                state, totals, losses, num_done, finite = run((state, totals), first, last)
                chunk = Chunk(
                    state=state,
                    epoch=epoch,
                    first=block.start + first,
                    last=block.start + last,
                    ends_epoch=block.ends_epoch and last == block.last,
                    metrics=totals,
                    losses=losses,
                    num_done=num_done,
                    state_is_finite=finite,
                    source=block.sources[last - 1] if block.sources else None,
                    started_at=started,
                    input_seconds=input_seconds,
                    rerun=functools.partial(_rerun, run, metrics, layout, first),
                )
                yield chunk
                losses.block_until_ready()
                if stop_nonfinite and not chunk.is_finite:
                    return
                state = chunk.state
                pace.observe(last - first, time.perf_counter() - started)
                steps_done += last - first
                first, input_seconds = last, 0.0
            if steps_done >= last_step:
                return
            asked_at = time.perf_counter()


class _Pace:
    """How many steps the next dispatch takes: at most about ``TARGET_SECONDS`` of them."""

    # A dispatch has a price (on a CPU, XLA takes memory for activations anew), Ctrl-C waits for it.
    TARGET_SECONDS = 2.0

    def __init__(self, steps_per_dispatch: int | None, border_every: int | None):
        self.fixed = steps_per_dispatch is not None
        self.border_every = border_every
        # The first dispatch compiles and so tells nothing; the second measures the step.
        self.steps = steps_per_dispatch or 1
        self.compiled = False
        self.step_seconds = math.inf

    def steps_from(self, step: int, remaining: int) -> int:
        """Steps of the dispatch that begins after ``step`` steps, with so many to the end."""
        if self.border_every is not None:
            remaining = min(remaining, self.border_every - step % self.border_every)
        if self.fixed:
            return min(self.steps, remaining)
        # No short one is left for the end.
        return math.ceil(remaining / math.ceil(remaining / self.steps))

    def observe(self, steps: int, seconds: float) -> None:
        if self.fixed:
            return
        if not self.compiled:
            self.compiled, self.steps = True, 8
            return
        # The least: what the caller did meanwhile (an evaluation, a checkpoint) is in it too.
        self.step_seconds = min(self.step_seconds, seconds / steps)
        self.steps = max(1, int(self.TARGET_SECONDS / self.step_seconds))


@functools.partial(Jit, static_argnums=(0, 1))
def empty_metrics(metrics: type[Collection], layout: Layout | None = None) -> Collection:
    """An epoch's metrics before anything was measured."""
    return replicate(layout, metrics.empty())


@functools.partial(Jit, static_argnums=(0, 1, 2), donate_argnums=(5,))
def _run_steps(
    step: TrainStep,
    stop_nonfinite: bool,
    layout: Layout | None,
    data: DeviceData,
    plan: jax.Array,
    carry: tuple[TrainState, Collection],
    first: int,
    last: int,
) -> tuple[TrainState, Collection, jax.Array, jax.Array, jax.Array]:
    """Steps ``first`` to ``last`` of a plan. Traced bounds: one program for every length."""

    def goes_on(carry):
        index, goes_on, *_ = carry
        return (index < last) & goes_on

    def body(carry):
        index, _, state, totals, losses = carry
        batch = take(data, plan[index], index * plan.shape[1])
        state, output = step(state, batch)
        goes_on = jnp.isfinite(output.loss) if stop_nonfinite else jnp.asarray(True)
        losses = losses.at[index - first].set(output.loss)
        totals = replicate(layout, totals.merge(output.metrics))
        return index + 1, goes_on, state, totals, losses

    losses = jnp.zeros((len(plan),), jnp.float32)
    start = (jnp.asarray(first, jnp.int32), jnp.asarray(True), *carry, losses)
    index, _, state, totals, losses = jax.lax.while_loop(goes_on, body, start)
    outcome = totals, losses, index - first, all_finite((state.params, state.model_state))
    return pin_state(layout, state), *replicate(layout, outcome)


def all_finite(tree: Any) -> jax.Array:
    """Whether all floats of a pytree are finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    each = (jnp.isfinite(leaf).all() for leaf in floats)
    return functools.reduce(jnp.logical_and, each, jnp.asarray(True))


def _rerun(
    run: Any,
    metrics: type[Collection],
    layout: Layout | None,
    first: int,
    state: TrainState,
    num_steps: int,
) -> TrainState:
    return run((state, empty_metrics(metrics, layout)), first, first + num_steps)[0]


def evaluate(
    step: EvalStep,
    metrics: type[Collection],
    params: Any,
    model_state: Any,
    data: DeviceData | Iterable[DeviceData],
    *,
    batch_size: int,
    layout: Layout | None = None,
) -> dict[str, float]:
    """Returns the metrics over a data set as plain floats, equal for any batch size, to rounding.

    Args:
        step: from `make_eval_step`.
        metrics: the CLU collection class the step was made with.
        params: the trainable arrays.
        model_state: the other arrays.
        data: the data set, whole or in parts.
        batch_size: rows at a time; bounds the memory, changes no more than rounding.
        layout: that of the step.
    """
    totals = empty_metrics(metrics, layout)
    for part in [data] if isinstance(data, DeviceData) else data:
        totals = _run_eval(step, batch_size, layout, totals, params, model_state, part)
    return compute(totals)


@functools.partial(Jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def _run_eval(
    step, batch_size, layout, totals, params, model_state, data: DeviceData
) -> Collection:
    def body(index, totals):
        first = index * batch_size
        rows = data.rows[(first + jnp.arange(batch_size)) % data.num_rows]
        measured = step(params, model_state, take(data, rows, first))
        return replicate(layout, totals.merge(measured))

    num_batches = (data.num_rows + batch_size - 1) // batch_size
    return jax.lax.fori_loop(0, num_batches, body, totals)
