"""The training loop: many compiled steps in one dispatch, and a generator over the dispatches."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from clu.metrics import Collection

from thinkml.core.objectives.streaming_metrics import compute
from thinkml.core.parallel.multiprocess import broadcast_number
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout, replicate
from thinkml.core.train.batch_feed import Block, DeviceData, Feed, SourcePosition
from thinkml.core.train.dispatch import LOOP_LENGTH, Dispatched, run_eval, run_steps
from thinkml.core.train.state import TrainState
from thinkml.core.train.step import EvalStep, TrainStep
from thinkml.core.xla.jit import Jit
from thinkml.typing import PyTree


class Position(NamedTuple):
    """The position of a run, from which it can be resumed.

    Attributes:
        epoch: the epoch to continue, counted from 0.
        step: the number of finished steps of that epoch.
        metrics: the metrics of the steps since the last period ended; None if there were none.
        source: the position of the data source after these steps, from the `Feed`.
    """

    epoch: int = 0
    step: int = 0
    metrics: Collection | None = None
    source: SourcePosition = None


@dataclasses.dataclass(eq=False)
class Chunk:
    """The result of one dispatch. Its arrays may not be computed yet; reading them waits.

    They are donated to the next dispatch, so read or copy what you need before you request the next
    chunk. To continue with another state, such as one with another learning rate, assign to
    ``state``.

    Attributes:
        state: the state after the chunk.
        epoch: the epoch, counted from 0.
        first: the first step of the chunk within its epoch.
        last: one past the chunk's last step.
        ends_epoch: True if the epoch is complete.
        ends_period: True if the metrics are those of a complete period, which is an epoch by
            default. Set it to True to end the period here: the next chunk begins another one.
        metrics: the period's metrics so far, a CLU collection on the device.
        losses: the loss of each step of the chunk, followed by zeros, on the device.
        num_done: the number of finished steps, on the device. It is smaller than
            ``last - first`` if a loss was not finite.
        state_is_finite: True if the parameters and the model state are finite, on the device.
        source: the position of the data source after the chunk.
        started_at: the time of the dispatch, by `time.perf_counter`.
        input_seconds: the time before the dispatch in which the device waited for data.
        block: the data that its steps are in.
        rerun: ``rerun(state, num_steps)`` runs the chunk's first steps again from the state before
            the chunk, which is donated, and returns the state after them.
    """

    state: TrainState
    epoch: int
    first: int
    last: int
    ends_epoch: bool
    ends_period: bool
    metrics: Collection
    losses: jax.Array
    num_done: jax.Array
    state_is_finite: jax.Array
    source: SourcePosition
    started_at: float
    input_seconds: float
    block: Block
    rerun: Callable[[TrainState, int], TrainState]

    def step_losses(self) -> np.ndarray:
        """Returns the loss of each finished step, on the host."""
        return np.asarray(self.losses)[: int(self.num_done)]

    def epoch_metrics(self) -> dict[str, float]:
        """Returns the metrics of the epoch, or of the period, so far as plain floats."""
        return compute(self.metrics)

    @property
    def is_finite(self) -> bool:
        """Returns True if the losses of all finished steps are finite."""
        return bool(np.isfinite(self.step_losses()).all())

    @property
    def num_examples(self) -> int:
        """Returns the number of examples in its steps, without the rows that fill up a batch."""
        rows_before = (
            (step - self.block.start) * self.block.plan.shape[1] for step in (self.first, self.last)
        )
        first, last = (min(rows, int(self.block.data.num_rows)) for rows in rows_before)
        return last - first

    @property
    def position(self) -> Position:
        """Returns the position of the run after this chunk."""
        metrics = None if self.ends_period else self.metrics
        if self.ends_epoch:
            return Position(self.epoch + 1, metrics=metrics)
        return Position(epoch=self.epoch, step=self.last, metrics=metrics, source=self.source)


def train_chunks(
    step: TrainStep,
    metrics: type[Collection],
    state: TrainState,
    feed: Feed,
    *,
    epochs: int,
    start: Position = Position(),  # noqa: B008 (immutable)
    max_steps: int | None = None,
    period: float | None = None,
    border_every: int | None = None,
    stop_nonfinite: bool = True,
    steps_per_dispatch: int | None = None,
    loop_length: int = LOOP_LENGTH,
    layout: Layout = ONE_DEVICE,
) -> Iterator[Chunk]:
    """Trains and yields after each dispatch.

    The number of steps in a dispatch changes neither the results nor the compiled program.

    Args:
        step: the training step, from `make_train_step`.
        metrics: the CLU collection class that the step was made with.
        state: the initial state, from `init_state`. It is donated, like every later state.
        feed: the batches, such as a `ResidentFeed`.
        epochs: the number of passes over the data, including those before ``start``.
        start: the position to start from, such as an earlier run's `Chunk.position`.
        max_steps: the largest number of steps to take.
        period: the number of steps whose metrics are added up, through the epochs; None for an
            epoch, `math.inf` for periods that end when you set `Chunk.ends_period`.
        border_every: end a dispatch whenever the number of finished steps is a multiple of this.
        stop_nonfinite: True to stop after the first step whose loss is NaN or infinite.
        steps_per_dispatch: the number of training steps in one dispatch. None limits a dispatch to
            about two seconds, because Python can't react (progress bar, Ctrl-C) while it runs.
        loop_length: the number of steps in a call on a GPU: 1 for steps that take longer than a
            call (0.1 ms).
        layout: the layout that the step was made with.

    Yields:
        Each `Chunk` as soon as it is dispatched.
    """
    pace = _Pace(steps_per_dispatch, border_every, period)
    totals = start.metrics
    steps_done = int(state.step)
    last_step = math.inf if max_steps is None else steps_done + max_steps
    for epoch in range(start.epoch, epochs):
        position = start if epoch == start.epoch else Position(epoch)
        requested_at = time.perf_counter()
        for block in feed.blocks(epoch, position.step, position.source):
            input_seconds = time.perf_counter() - requested_at
            first = block.first
            while first < block.last and steps_done < last_step:
                steps = pace.steps_from(steps_done, block.last - first)
                if layout.spans_processes:
                    steps = broadcast_number(steps)
                steps = min(steps, last_step - steps_done)
                last = int(min(block.last, first + steps))
                started_at = time.perf_counter()
                totals = empty_metrics(metrics, layout) if totals is None else totals
                run = functools.partial(
                    run_steps, step, stop_nonfinite, layout, block.data, block.plan,
                    loop_length=loop_length,
                )  # fmt: skip
                dispatched = run((state, totals), first, last)
                ends_epoch = block.ends_epoch and last == block.last
                chunk = Chunk(
                    state=dispatched.state,
                    epoch=epoch,
                    first=block.start + first,
                    last=block.start + last,
                    ends_epoch=ends_epoch,
                    ends_period=_ends_period(period, steps_done + last - first, ends_epoch),
                    metrics=dispatched.metrics,
                    losses=dispatched.losses,
                    num_done=dispatched.num_done,
                    state_is_finite=dispatched.state_is_finite,
                    source=block.sources[last - 1] if block.sources else None,
                    started_at=started_at,
                    input_seconds=input_seconds,
                    block=block,
                    rerun=functools.partial(_rerun, run, metrics, layout, first),
                )
                yield chunk
                dispatched.losses.block_until_ready()
                if stop_nonfinite and not chunk.is_finite:
                    return
                state, totals = chunk.state, None if chunk.ends_period else dispatched.metrics
                pace.observe(last - first, time.perf_counter() - started_at)
                steps_done += last - first
                first, input_seconds = last, 0.0
            if steps_done >= last_step:
                return
            requested_at = time.perf_counter()


def _ends_period(period: float | None, steps_done: int, ends_epoch: bool) -> bool:
    return ends_epoch if period is None else steps_done % period == 0


class _Pace:
    """A controller of the steps per dispatch, which should take ``TARGET_SECONDS`` at most."""

    # Shorter dispatches cost time, since on a CPU XLA allocates the activations again for each.
    # Longer ones delay Ctrl-C.
    TARGET_SECONDS = 2.0

    def __init__(self, steps_per_dispatch: int | None, *borders: float | None):
        self.fixed = steps_per_dispatch is not None
        self.borders = [every for every in borders if every is not None and every < math.inf]
        # The time of the first dispatch includes compilation, so the second measures the step.
        self.steps = steps_per_dispatch or 1
        self.compiled = False
        self.step_seconds = math.inf

    def steps_from(self, step: int, remaining: int) -> int:
        """Returns how many of the remaining steps the dispatch after ``step`` steps takes."""
        remaining = min([remaining, *(int(every - step % every) for every in self.borders)])
        if self.fixed:
            return min(self.steps, remaining)
        # Dispatches of nearly equal length leave no short one at the end.
        return math.ceil(remaining / math.ceil(remaining / self.steps))

    def observe(self, steps: int, seconds: float) -> None:
        if self.fixed:
            return
        if not self.compiled:
            self.compiled, self.steps = True, 8
            return
        # The minimum, because the caller's own work (an evaluation, a checkpoint) is in the time.
        self.step_seconds = min(self.step_seconds, seconds / steps)
        self.steps = max(1, int(self.TARGET_SECONDS / self.step_seconds))


@functools.partial(Jit, static_argnums=(0, 1))
def empty_metrics(metrics: type[Collection], layout: Layout = ONE_DEVICE) -> Collection:
    """Returns an epoch's metrics before its first step."""
    return replicate(layout, metrics.empty())


def _rerun(
    run: Callable[..., Dispatched],
    metrics: type[Collection],
    layout: Layout,
    first: int,
    state: TrainState,
    num_steps: int,
) -> TrainState:
    return run((state, empty_metrics(metrics, layout)), first, first + num_steps).state


def evaluate(
    step: EvalStep,
    metrics: type[Collection],
    params: PyTree,
    model_state: PyTree,
    data: DeviceData | Iterable[DeviceData],
    *,
    batch_size: int,
    layout: Layout = ONE_DEVICE,
) -> dict[str, float]:
    """Returns the metrics over a data set as plain floats.

    They do not depend on the batch size, except for rounding.

    Args:
        step: the evaluation step, from `make_eval_step`.
        metrics: the CLU collection class that the step was made with.
        params: the trainable arrays.
        model_state: the other arrays.
        data: the data set, as one object or in several parts.
        batch_size: the number of rows computed at a time, which limits the memory.
        layout: the layout that the step was made with.
    """
    totals = empty_metrics(metrics, layout)
    for part in [data] if isinstance(data, DeviceData) else data:
        totals = run_eval(step, batch_size, layout, totals, params, model_state, part)
    return compute(totals)
