"""Batch feeds: data on the device, divided into steps by an index plan."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from thinkml.core.parallel.sharding import ShardedRows
from thinkml.core.train.step import Batch
from thinkml.core.xla.jit import Jit
from thinkml.typing import PyTree

SourcePosition: TypeAlias = Any
"""The position of a data source, as plain values that a checkpoint can store; None for none."""


@dataclasses.dataclass(frozen=True)
class Shortening:
    """The length that the sequences of a batch are cut to, since the rest is padding.

    Attributes:
        length: the number of positions.
        targets: for each array of targets, True if it has a target for each position.
    """

    length: int
    targets: tuple[bool, ...]

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with its sequences cut."""
        y, structure = jax.tree.flatten(batch.y)
        y = [
            self._cut(leaf) if is_long else leaf
            for leaf, is_long in zip(y, self.targets, strict=True)
        ]
        weight = jax.tree.map(lambda leaf: self._cut(leaf) if leaf.ndim > 1 else leaf, batch.weight)
        x = jax.tree.map(self._cut, batch.x)
        return batch._replace(x=x, y=jax.tree.unflatten(structure, y), weight=weight)

    def _cut(self, leaf: jax.Array) -> jax.Array:
        return leaf[:, : self.length]


class DeviceData(struct.PyTreeNode):
    """A data set on the device, or a subset of its rows, given by their indices.

    Row counts are traced, so folds and subsets of one data set share compiled programs.

    Attributes:
        x: inputs, arrays ``[capacity, ...]``.
        y: encoded labels or targets, ``[capacity, ...]``; a dict of them by head.
        rows: int32, the indices of the rows in use; only the first ``num_rows`` entries are valid.
        num_rows: int32 scalar, the number of rows in use.
        weight: float32 ``[capacity]``, the weight of each example's loss, or ``[capacity,
            *element_shape]`` for each element's, or a dict of them by head; None if all weights
            are 1.
        parted: the way ``x``, ``y`` and ``weight`` are sharded over several devices; None if each
            device has all of them.
        shortening: how the sequences of these rows are cut; None if they are not.
    """

    x: PyTree
    y: PyTree
    rows: jax.Array
    num_rows: jax.Array
    weight: PyTree = None
    parted: ShardedRows | None = struct.field(pytree_node=False, default=None)
    shortening: Shortening | None = struct.field(pytree_node=False, default=None)


class Block(NamedTuple):
    """Consecutive steps of an epoch whose data is on the device.

    Attributes:
        data: the data, at least the rows of these steps.
        plan: int32 ``[steps, batch]``, the indices of the rows of ``data`` in each step. Over the
            flattened plan, only the first ``data.num_rows`` entries are examples. The others are
            padding with weight 0.
        start: the index, within the epoch, of the plan's first step.
        first: the first step to run, an index into the plan.
        last: one past the last step to run.
        ends_epoch: True if this is the last block of the epoch.
        sources: the position of the data source after each step of the plan, as plain values;
            empty if the step number alone determines it.
    """

    data: DeviceData
    plan: jax.Array
    start: int
    first: int
    last: int
    ends_epoch: bool
    sources: Sequence[SourcePosition] = ()


class Feed(Protocol):
    """The batches of a run, by epoch."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Returns the number of steps in an epoch; None if it is unknown until the epoch ends."""
        ...

    @property
    def batch_size(self) -> int:
        """Returns the number of examples in a step."""
        ...

    def blocks(self, epoch: int, first: int, source: SourcePosition = None) -> Iterator[Block]:
        """Yields the blocks of an epoch from step ``first`` on. Equal arguments give equal data.

        Args:
            epoch: the epoch, counted from 0.
            first: the number of finished steps.
            source: the position of the data source after these steps, from `Block.sources`.
        """
        ...


class ResidentFeed:
    """A feed of data that stays on the device, with one block per epoch.

    Each epoch visits every row once, in an order that depends on ``(shuffle_key, epoch)`` alone.
    The last batch of an epoch is padded with rows from its beginning, at weight 0.

    Args:
        data: the training data.
        num_rows: ``data.num_rows`` as a Python int.
        batch_size: the number of examples in a step. A smaller data set trains as one batch.
        shuffle_key: the PRNG key of the shuffling; None keeps the order of the rows.
        limit_steps: the number of steps after which an epoch ends, if it has more; None for all.
        room: the number of rows that the data set may grow to. Batches then have
            ``min(batch_size, room)`` rows from the start, padded while there are fewer, so that
            growth compiles nothing again.
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

    def blocks(self, epoch: int, first: int, source: SourcePosition = None) -> Iterator[Block]:
        """Yields one block, the epoch."""
        make_plan = _plan_on_host if _is_on_one_cpu(self._data.rows) else _plan
        plan = make_plan(self.batch_size, self._data.rows, self._data.num_rows, self._key, epoch)
        yield Block(
            data=self._data,
            plan=plan,
            start=0,
            first=first,
            last=self.steps_per_epoch,
            ends_epoch=True,
        )


class BucketFeed:
    """A feed of sequences on the device, whose batches hold rows of similar lengths.

    Each bucket has its own length and its own program. The batches of an epoch are drawn from one
    bucket each, in runs of up to 8 whose order is random. The last batch of a bucket is padded.

    Args:
        data: the training data, padded to the length of the longest bucket.
        rows: the indices of the rows in use.
        buckets: the bucket of each of these rows.
        shortenings: how the sequences of each bucket are cut.
        batch_size: the number of examples in a step.
        shuffle_key: the PRNG key of the shuffling; None keeps the order of the rows.
        limit_steps: the number of steps after which an epoch ends, if it has more; None for all.
    """

    def __init__(
        self,
        data: DeviceData,
        *,
        rows: np.ndarray,
        buckets: np.ndarray,
        shortenings: Sequence[Shortening],
        batch_size: int,
        shuffle_key: jax.Array | None,
        limit_steps: int | None = None,
    ):
        self.batch_size = min(batch_size, len(rows))
        self._data, self._rows, self._key = data, rows, shuffle_key
        self._bucket_of = np.zeros(len(data.rows), np.int64)
        self._bucket_of[rows] = buckets
        self._shortenings = shortenings
        counts = np.bincount(buckets, minlength=len(shortenings))
        self._steps = -(-counts // self.batch_size)
        steps = int(self._steps.sum())
        self.steps_per_epoch = steps if limit_steps is None else min(steps, limit_steps)

    def blocks(self, epoch: int, first: int, source: SourcePosition = None) -> Iterator[Block]:
        """Yields the blocks of an epoch from step ``first`` on, each of one bucket."""
        order = epoch_order(self._rows, len(self._data.rows), self._key, epoch)
        buckets = [self._in_bucket(order, bucket) for bucket in range(len(self._steps))]
        start = 0
        for bucket, begin, end in self._runs(epoch):
            end = min(end, begin + self.steps_per_epoch - start)
            skipped = max(0, first - start)
            if begin + skipped < end:
                data, plan = buckets[bucket]
                yield Block(
                    data=data,
                    plan=plan,
                    start=start - begin,
                    first=begin + skipped,
                    last=end,
                    ends_epoch=start + end - begin == self.steps_per_epoch,
                )
            start += end - begin
            if start == self.steps_per_epoch:
                return

    def _in_bucket(self, order: np.ndarray, bucket: int) -> tuple[DeviceData, jax.Array]:
        rows = order[self._bucket_of[order] == bucket]
        plan = np.resize(rows, (self._steps[bucket], self.batch_size)).astype(np.int32)
        sharding = self._data.rows.sharding if self._data.rows.committed else None
        data = self._data.replace(
            num_rows=jax.device_put(np.int32(len(rows)), sharding),
            shortening=self._shortenings[bucket],
        )
        return data, jax.device_put(plan, sharding)

    def _runs(self, epoch: int) -> list[tuple[int, int, int]]:
        """Returns the bucket, the first and the last step of each run, in the epoch's order."""
        runs = [
            (bucket, begin, min(begin + _RUN, steps))
            for bucket, steps in enumerate(self._steps.tolist())
            for begin in range(0, steps, _RUN)
        ]
        if self._key is None:
            return runs
        bits = np.asarray(_bits(len(runs), jax.random.fold_in(self._key, _RUNS), epoch))
        return [runs[index] for index in np.argsort(bits, kind='stable')]


# Steps of one bucket in a row, which cost one dispatch.
_RUN = 8
# Differs from the numbers of epochs.
_RUNS = 2**31


def steps_of(num_rows: int, batch_size: int, limit_steps: int | None = None) -> int:
    """Returns the number of steps in an epoch over ``num_rows`` rows."""
    steps = math.ceil(num_rows / min(batch_size, num_rows))
    return steps if limit_steps is None else min(steps, limit_steps)


def epoch_order(rows: np.ndarray, capacity: int, key: jax.Array | None, epoch: int) -> np.ndarray:
    """Returns the rows in the order of an epoch, on the host; an accelerator gives the same order.

    Args:
        rows: the rows in use.
        capacity: the largest possible number of rows. The random draws depend on it.
        key: the PRNG key of the shuffling; None keeps the order.
        epoch: the epoch, counted from 0.
    """
    if key is None:
        return rows
    # The random bits above each row's position form one 64-bit number. On a CPU, NumPy sorts these
    # 20 times as fast as XLA sorts pairs.
    keys = np.asarray(_bits(capacity, key, epoch))[: len(rows)].astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(len(rows), dtype=np.uint64)
    keys.sort()
    return rows[keys.astype(np.uint32)]


def _plan_on_host(
    batch_size: int, rows: jax.Array, num_rows: jax.Array, key: jax.Array | None, epoch: int
) -> jax.Array:
    """Returns the result of `_plan` for rows in the memory of a CPU."""
    order = epoch_order(np.asarray(rows)[: int(num_rows)], len(rows), key, epoch)
    plan = np.resize(order, (math.ceil(len(rows) / batch_size), batch_size))
    return jax.device_put(plan, rows.sharding if rows.committed else None)


@functools.partial(Jit, static_argnums=(0,))
def _plan(
    batch_size: int, rows: jax.Array, num_rows: jax.Array, key: jax.Array | None, epoch: int
) -> jax.Array:
    """Returns the epoch's index plan ``[steps, batch]``."""
    order = rows
    if key is not None:
        unused = jnp.arange(len(rows)) >= num_rows
        bits = jnp.where(unused, jnp.uint32(0xFFFFFFFF), _bits(len(rows), key, epoch))
        _, order = jax.lax.sort((bits, rows), num_keys=1, is_stable=True)
    steps = math.ceil(len(rows) / batch_size)
    return order[jnp.arange(steps * batch_size) % num_rows].reshape(steps, batch_size)


@functools.partial(Jit, static_argnums=(0,))
def _bits(capacity: int, key: jax.Array, epoch: int) -> jax.Array:
    """Draws the bits by which rows are sorted, stably.

    Two rows with the same 32 bits keep their order. This bias is far too small to affect training.
    """
    return jax.random.bits(jax.random.fold_in(key, epoch), (capacity,), jnp.uint32)


def _is_on_one_cpu(array: jax.Array) -> bool:
    devices = array.devices()
    return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def take(data: DeviceData, rows: jax.Array, first: jax.Array | int) -> Batch:
    """Gathers rows as a batch. Rows at or after position ``num_rows`` of the plan get weight 0."""
    if data.parted is None:
        gather = functools.partial(jnp.take, indices=rows, axis=0, mode='clip')
    else:
        gather = functools.partial(data.parted.take, rows=rows)
    mask = (first + jnp.arange(len(rows)) < data.num_rows).astype(jnp.float32)
    weight = mask
    if data.weight is not None:  # of rows or of elements

        def masked(weights: jax.Array) -> jax.Array:
            return mask.reshape(-1, *[1] * (weights.ndim - 1)) * weights

        weight = jax.tree.map(lambda leaf: masked(gather(leaf)), data.weight)
    x, y = jax.tree.map(gather, (data.x, data.y))
    batch = Batch(x=x, y=y, weight=weight, mask=mask)
    return batch if data.shortening is None else data.shortening(batch)
