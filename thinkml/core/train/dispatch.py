"""The compiled programs of a dispatch, which run several training steps."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Collection
from jax.flatten_util import ravel_pytree

from thinkml.core.objectives.elements import ElementShape, element_weights
from thinkml.core.objectives.heads import part_of
from thinkml.core.parallel.sharding import Layout, pin_state, replicate
from thinkml.core.train.batch_feed import Block, DeviceData, take
from thinkml.core.train.state import TrainState
from thinkml.core.train.step import Batch, EvalStep, TrainStep
from thinkml.core.xla.jit import Jit
from thinkml.typing import PyTree

LOOP_LENGTH = 8
"""The number of short steps that a GPU runs in one call."""


class Dispatched(NamedTuple):
    """The result of a dispatch; its arrays may not be computed yet.

    Attributes:
        state: the state after the steps. If a loss was not finite it is of no use.
        metrics: the epoch's metrics so far.
        losses: the loss of each step, followed by zeros.
        num_done: the number of steps, up to the first whose loss is not finite.
        state_is_finite: True if the parameters and the model state are finite.
    """

    state: TrainState
    metrics: Collection
    losses: jax.Array
    num_done: jax.Array
    state_is_finite: jax.Array


def run_steps(
    step: TrainStep,
    stop_nonfinite: bool,
    layout: Layout,
    data: DeviceData,
    plan: jax.Array,
    carry: tuple[TrainState, Collection],
    first: int,
    last: int,
    loop_length: int = LOOP_LENGTH,
) -> Dispatched:
    """Runs steps ``first`` to ``last`` of an epoch's index plan, without waiting for the result.

    Other bounds compile nothing again, and change no bit of the result.

    On a CPU and a TPU the program is one loop, which ends after the first loss that is not finite.
    A GPU would copy the condition of such a loop to the host after each step, and wait for the
    answer. There a dispatch consists of calls of one loop of a fixed length, whose steps from
    ``last`` on change nothing. All steps run, and the losses tell how many of them count.

    Args:
        step: the training step.
        stop_nonfinite: True to count no step after the first whose loss is NaN or infinite.
        layout: the layout that the step was made with.
        data: the rows.
        plan: the rows of each step, ``[steps, batch]``.
        carry: the state and the metrics before the first step. They are donated.
        first: the first step.
        last: one past the last step.
        loop_length: the steps of a call on a GPU. A call takes the host about 0.1 ms. So this is 1
            for steps that take longer, and more for others.
    """
    if layout.platform != 'gpu':
        return _run_steps(step, stop_nonfinite, layout, data, plan, carry, first, last)
    state, totals = carry
    losses = _no_losses(layout, len(plan))
    for start in range(first, last, loop_length):
        state, totals, losses = _run_loop(
            step, layout, loop_length, data, plan, (state, totals, losses), first, start, last
        )
    counted = _count_finite(
        stop_nonfinite, layout, losses, last - first, (state.params, state.model_state)
    )
    return Dispatched(state, totals, losses, *counted)


def batch_shapes(block: Block) -> Batch:
    """Returns the shapes and dtypes of the batches of a block."""
    rows = jax.ShapeDtypeStruct(block.plan.shape[1:], block.plan.dtype)
    return jax.eval_shape(take, block.data, rows, 0)


def count_elements(
    shapes: Mapping[str | None, ElementShape],
    layout: Layout,
    block: Block,
    first: int,
    last: int,
) -> np.ndarray:
    """Returns the number of elements of some steps that count, by head.

    An ignored element does not count, nor one with weight 0, such as those of filler rows.

    Args:
        shapes: the axes of the elements of a row, by head; None for a model with one output.
        layout: the layout of the data.
        block: the data of the steps.
        first: the first step of the epoch that is counted.
        last: one past the last step.
    """
    data = block.data.replace(x=())  # neither copied nor a part of the compiled program
    steps = first - block.start, last - block.start
    return np.asarray(_count_elements(tuple(shapes.items()), layout, data, block.plan, *steps))


@functools.partial(Jit, static_argnums=(0, 1))
def _count_elements(
    shapes: tuple[tuple[str | None, ElementShape], ...],
    layout: Layout,
    data: DeviceData,
    plan: jax.Array,
    first: int,
    last: int,
) -> jax.Array:
    def add_step(index, counts):
        batch = take(data, plan[index], index * plan.shape[1])
        weights = [
            element_weights(part_of(batch.weight, name), part_of(batch.y, name), shape)
            for name, shape in shapes
        ]
        return counts + jnp.stack([jnp.count_nonzero(weight) for weight in weights])

    counts = jax.lax.fori_loop(first, last, add_step, jnp.zeros(len(shapes), jnp.int32))
    return replicate(layout, counts)


def run_eval(
    step: EvalStep,
    batch_size: int,
    layout: Layout,
    totals: Collection,
    params: PyTree,
    model_state: PyTree,
    data: DeviceData,
) -> Collection:
    """Adds the metrics of a data set to ``totals``, which are donated.

    On a GPU each batch is a call, and the number of rows is read once. See `run_steps` for why.
    """
    if layout.platform != 'gpu':
        return _run_eval(step, batch_size, layout, totals, params, model_state, data)
    for index in range(-(-int(data.num_rows) // batch_size)):
        totals = _add_batch(step, batch_size, layout, totals, params, model_state, data, index)
    return totals


# --- one loop with traced bounds --------------------------------------------------------------


@functools.partial(
    Jit, static_argnums=(0, 1, 2), donate_argnums=(5,),
    options=lambda step, stop, layout, *_: layout.compiler_options(),
)  # fmt: skip
def _run_steps(
    step: TrainStep,
    stop_nonfinite: bool,
    layout: Layout,
    data: DeviceData,
    plan: jax.Array,
    carry: tuple[TrainState, Collection],
    first: int,
    last: int,
) -> Dispatched:
    """Runs steps ``first`` to ``last`` in one loop. The bounds are traced: one program for all."""

    def should_continue(carry):
        index, is_valid, *_ = carry
        return (index < last) & is_valid

    def body(carry):
        index, _, state, totals, losses = carry
        batch = take(data, plan[index], index * plan.shape[1])
        state, output = step(state, batch)
        is_valid = jnp.isfinite(output.loss) if stop_nonfinite else jnp.asarray(True)
        losses = losses.at[index - first].set(output.loss)
        totals = replicate(layout, totals.merge(output.metrics))
        return index + 1, is_valid, state, totals, losses

    losses = jnp.zeros((len(plan),), jnp.float32)
    start = (jnp.asarray(first, jnp.int32), jnp.asarray(True), *carry, losses)
    index, _, state, totals, losses = jax.lax.while_loop(should_continue, body, start)
    outcome = totals, losses, index - first, all_finite((state.params, state.model_state))
    return Dispatched(pin_state(layout, state), *replicate(layout, outcome))


@functools.partial(Jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def _run_eval(
    step: EvalStep,
    batch_size: int,
    layout: Layout,
    totals: Collection,
    params: PyTree,
    model_state: PyTree,
    data: DeviceData,
) -> Collection:
    def body(index, totals):
        return _add_batch(step, batch_size, layout, totals, params, model_state, data, index)

    num_batches = (data.num_rows + batch_size - 1) // batch_size
    return jax.lax.fori_loop(0, num_batches, body, totals)


@functools.partial(Jit, static_argnums=(0, 1, 2), donate_argnums=(3,))
def _add_batch(
    step: EvalStep,
    batch_size: int,
    layout: Layout,
    totals: Collection,
    params: PyTree,
    model_state: PyTree,
    data: DeviceData,
    index: jax.Array | int,
) -> Collection:
    """Adds the metrics of one batch."""
    first = index * batch_size
    rows = data.rows[(first + jnp.arange(batch_size)) % data.num_rows]
    batch_metrics = step(params, model_state, take(data, rows, first))
    return replicate(layout, totals.merge(batch_metrics))


# --- calls of a loop of a fixed length --------------------------------------------------------


@functools.partial(
    Jit, static_argnums=(0, 1, 2), donate_argnums=(5,),
    options=lambda step, layout, *_: layout.compiler_options(),
)  # fmt: skip
def _run_loop(
    step: TrainStep,
    layout: Layout,
    length: int,
    data: DeviceData,
    plan: jax.Array,
    carry: tuple[TrainState, Collection, jax.Array],
    first: int,
    start: int,
    last: int,
) -> tuple[TrainState, Collection, jax.Array]:
    """Runs ``length`` steps from step ``start``; those from ``last`` on change nothing."""

    def advance(index, carry):
        state, totals, losses = carry
        batch = take(data, plan[index], index * plan.shape[1])
        state, output = step(state, batch)
        losses = losses.at[index - first].set(output.loss)
        return state, replicate(layout, totals.merge(output.metrics)), losses

    def body(offset, packed):
        index = start + offset
        advanced = pack(advance(index, unpack(packed)))
        return jax.tree.map(functools.partial(jnp.where, index < last), advanced, packed)

    if length == 1:
        state, totals, losses = advance(start, carry)
    else:
        pack, unpack = _packing(carry)
        state, totals, losses = unpack(jax.lax.fori_loop(0, length, body, pack(carry)))
    return pin_state(layout, state), *replicate(layout, (totals, losses))


# Each small array would need a kernel of its own to select its new value.
_MOST_PACKED = 8


def _packing(tree: PyTree) -> tuple[Callable[[PyTree], PyTree], Callable[[PyTree], PyTree]]:
    """Returns functions that pack a pytree's small arrays into one for each dtype, and back."""
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[str, list[int]] = {}
    for index, leaf in enumerate(leaves):
        if leaf.size <= _MOST_PACKED and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            groups.setdefault(str(leaf.dtype), []).append(index)
    unravel = {name: ravel_pytree([leaves[i] for i in group])[1] for name, group in groups.items()}
    packed = {index for group in groups.values() for index in group}

    def pack(tree: PyTree) -> PyTree:
        leaves = jax.tree.leaves(tree)
        large = {i: leaf for i, leaf in enumerate(leaves) if i not in packed}
        small = {
            name: ravel_pytree([leaves[i] for i in group])[0] for name, group in groups.items()
        }
        return large, small

    def unpack(packed: PyTree) -> PyTree:
        large, small = packed
        at = dict(large)
        for name, vector in small.items():
            at.update(zip(groups[name], unravel[name](vector), strict=True))
        return jax.tree.unflatten(structure, [at[i] for i in range(len(leaves))])

    return pack, unpack


@functools.partial(Jit, static_argnums=(0, 1))
def _no_losses(layout: Layout, num_steps: int) -> jax.Array:
    return replicate(layout, jnp.zeros((num_steps,), jnp.float32))


@functools.partial(Jit, static_argnums=(0, 1))
def _count_finite(
    stop_nonfinite: bool, layout: Layout, losses: jax.Array, num_steps: int, model: PyTree
) -> tuple[jax.Array, jax.Array]:
    """Returns ``num_done`` and ``state_is_finite`` of a `Dispatched`."""
    num_done = jnp.asarray(num_steps, jnp.int32)
    if stop_nonfinite:
        is_bad = ~jnp.isfinite(losses)  # the losses after the last step are 0
        num_done = jnp.where(is_bad.any(), jnp.argmax(is_bad).astype(jnp.int32) + 1, num_done)
    return replicate(layout, (num_done, all_finite(model)))


def all_finite(tree: PyTree) -> jax.Array:
    """Returns True, as an array, if all floats of a pytree are finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    each = (jnp.isfinite(leaf).all() for leaf in floats)
    return functools.reduce(jnp.logical_and, each, jnp.asarray(True))
