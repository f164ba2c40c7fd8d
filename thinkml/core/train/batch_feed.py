"""Where a run's batches come from: data on the device, cut into steps by an index plan."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from thinkml.core.parallel.sharding import ShardedRows
from thinkml.core.train.step import Batch
from thinkml.core.xla.jit import Jit


class DeviceData(struct.PyTreeNode):
    """A data set on the device, or a part of one, as an index plan into the whole.

    Row counts are traced, so that folds and subsets of one data set share compiled programs.

    Attributes:
        x: inputs, arrays ``[capacity, ...]``.
        y: encoded labels or targets, ``[capacity, ...]``.
        rows: int32, the rows in use; only the first ``num_rows`` entries count.
        num_rows: int32 scalar.
        weight: float32 ``[capacity]``, what each example's loss counts; None where all count 1.
        parted: how ``x``, ``y`` and ``weight`` are in parts on several devices; None where each
            device has all of them.
    """

    x: Any
    y: jax.Array
    rows: jax.Array
    num_rows: jax.Array
    weight: jax.Array | None = None
    parted: ShardedRows | None = struct.field(pytree_node=False, default=None)


class Block(NamedTuple):
    """Consecutive steps of an epoch whose data is on the device.

    Attributes:
        data: holds at least the rows of these steps.
        plan: int32 ``[steps, batch]``, the rows of ``data`` each step takes. Counted through, only
            the first ``data.num_rows`` entries are examples; the others fill up, at weight 0.
        start: the epoch's step that is the plan's first.
        first: the first step to run, an index into the plan.
        last: one past the last step to run.
        ends_epoch: whether nothing of the epoch is left after it.
        sources: where the source of the data is after each step of the plan, as plain values;
            empty where the step alone tells.
    """

    data: DeviceData
    plan: jax.Array
    start: int
    first: int
    last: int
    ends_epoch: bool
    sources: Sequence[Any] = ()


class Feed(Protocol):
    """The batches of a run, by epoch."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch; None where only its end tells."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples of a step."""
        ...

    def blocks(self, epoch: int, first: int, source: Any = None) -> Iterator[Block]:
        """The blocks of an epoch from step ``first`` on. The same arguments give the same data.

        Args:
            epoch: 0-based.
            first: steps already done.
            source: where the source of the data was after them, from `Block.sources`.
        """
        ...


class ResidentFeed:
    """Batches of data that stays on the device: an epoch is one block.

    Each epoch visits every row once, in an order that depends on ``(shuffle_key, epoch)`` alone.
    The last batch of an epoch is filled up with rows from its beginning, at weight 0.

    Args:
        data: the training data.
        num_rows: ``data.num_rows`` as a Python int.
        batch_size: examples of a step; a smaller data set trains as one batch.
        shuffle_key: PRNG key of the shuffling; None keeps the order of the rows.
        limit_steps: steps after which an epoch ends, if it has more; None for all.
        room: rows up to which the data set grows. A batch is then never smaller than that because
            there are few rows yet: it is filled up, so that nothing is compiled anew.
    """

    def __init__(
        self,
        data: DeviceData,
        *,
        num_rows: int,
        batch_size: int,
        shuffle_key: jax.Array | None,
        limit_steps: int | None = None,
        room: int | None = None,
    ):
        self.batch_size = min(batch_size, room or num_rows)
        self.steps_per_epoch = steps_of(num_rows, batch_size, limit_steps)
        self._data = data.replace(rows=jnp.asarray(data.rows))
        self._key = shuffle_key

    def blocks(self, epoch: int, first: int, source: Any = None) -> Iterator[Block]:
        """One block: the epoch."""
        make = _plan_on_host if _is_of_one_cpu(self._data.rows) else _plan
        plan = make(self.batch_size, self._data.rows, self._data.num_rows, self._key, epoch)
        yield Block(self._data, plan, 0, first, self.steps_per_epoch, True)


def steps_of(num_rows: int, batch_size: int, limit_steps: int | None = None) -> int:
    """Steps of an epoch over ``num_rows`` rows."""
    steps = math.ceil(num_rows / min(batch_size, num_rows))
    return steps if limit_steps is None else min(steps, limit_steps)


def epoch_order(rows: np.ndarray, capacity: int, key: jax.Array | None, epoch: int) -> np.ndarray:
    """The order in which an epoch visits rows, on the host: the same as on an accelerator.

    Args:
        rows: the rows in use.
        capacity: how many there may be; decides what is drawn.
        key: PRNG key of the shuffling; None keeps the order.
        epoch: 0-based.
    """
    if key is None:
        return rows
    # Each row's bits above its place: 64-bit numbers, which NumPy sorts 20 times as fast as XLA
    # sorts pairs on a CPU.
    packed = np.asarray(_bits(capacity, key, epoch))[: len(rows)].astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(len(rows), dtype=np.uint64)
    packed.sort()
    return rows[packed.astype(np.uint32)]


def _plan_on_host(
    batch_size: int, rows: jax.Array, num_rows: jax.Array, key: jax.Array | None, epoch: int
) -> jax.Array:
    """What `_plan` returns, of rows in the memory of a CPU."""
    order = epoch_order(np.asarray(rows)[: int(num_rows)], len(rows), key, epoch)
    plan = np.resize(order, (math.ceil(len(rows) / batch_size), batch_size))
    return jax.device_put(plan, rows.sharding if rows.committed else None)


@functools.partial(Jit, static_argnums=(0,))
def _plan(
    batch_size: int, rows: jax.Array, num_rows: jax.Array, key: jax.Array | None, epoch: int
) -> jax.Array:
    """The epoch's index plan ``[steps, batch]``."""
    order = rows
    if key is not None:
        unused = jnp.arange(len(rows)) >= num_rows
        bits = jnp.where(unused, jnp.uint32(0xFFFFFFFF), _bits(len(rows), key, epoch))
        _, order = jax.lax.sort((bits, rows), num_keys=1, is_stable=True)
    steps = math.ceil(len(rows) / batch_size)
    return order[jnp.arange(steps * batch_size) % num_rows].reshape(steps, batch_size)


@functools.partial(Jit, static_argnums=(0,))
def _bits(capacity: int, key: jax.Array, epoch: int) -> jax.Array:
    """What rows are sorted by, stably.

    Two rows that draw the same 32 bits keep their order, a bias far below anything training could
    notice.
    """
    return jax.random.bits(jax.random.fold_in(key, epoch), (capacity,), jnp.uint32)


def _is_of_one_cpu(array: jax.Array) -> bool:
    devices = array.devices()
    return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def take(data: DeviceData, rows: jax.Array, first: jax.Array) -> Batch:
    """Gathers rows as a batch; those at or past ``num_rows`` of the plan get weight 0."""
    if data.parted is None:
        gather = functools.partial(jnp.take, indices=rows, axis=0, mode='clip')
    else:
        gather = functools.partial(data.parted.take, rows=rows)
    mask = (first + jnp.arange(len(rows)) < data.num_rows).astype(jnp.float32)
    weight = mask if data.weight is None else mask * gather(data.weight)
    return Batch(jax.tree.map(gather, data.x), gather(data.y), weight, mask)
