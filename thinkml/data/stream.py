"""Data that stays on the host and goes to the device a block of steps at a time."""

import collections
import concurrent.futures
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from thinkml.core import Block, DeviceData
from thinkml.core.parallel.sharding import Layout, ShardedRows
from thinkml.core.train.batch_feed import epoch_order, steps_of
from thinkml.data.batches import Batches, BatchIterator, HostBatch
from thinkml.data.device_placement import capacity, padded, put, put_parts
from thinkml.data.rows import Rows
from thinkml.errors import DataError

Item = TypeVar('Item')
# Inputs, encoded targets, and weights where they don't all count 1.
Arrays = tuple[Any, np.ndarray, np.ndarray | None]

# A dispatch of so many steps costs next to nothing beside them.
_MAX_BLOCK_STEPS = 64
# Blocks on the device at a time: one that is trained on, two that wait, one in the making.
_BLOCKS = 4
_AHEAD = 2
# Larger ones would only take longer to come: a transfer of this size is fast already.
_MAX_BLOCK_BYTES = 64 * 2**20
# Of a slow source a block holds what comes in this time: training begins with the first batches,
# and Ctrl-C need not wait for all of them.
_BLOCK_SECONDS = 1.0


class StreamedFeed:
    """Batches of data that is read by rows, in the same order as if it stayed on the device.

    A thread reads ahead while the device computes. The numbers are those of a
    `thinkml.core.ResidentFeed`, bit for bit.

    Args:
        x: the inputs.
        y: encoded targets ``[rows, ...]``, in memory.
        rows: the rows to use, in increasing order; None for all.
        weight: float32 ``[rows]``, what each example's loss counts; None where all count 1.
        batch_size: examples of a step; a smaller data set trains as one batch.
        shuffle_key: PRNG key of the shuffling; None keeps the order of the rows.
        budget: bytes of the device that the blocks may take; None for a default. Room for four
            steps is taken in any case.
        limit_steps: steps after which an epoch ends, if it has more; None for all.
        layout: the devices, where there are several.

    Attributes:
        num_bytes: what the blocks take on a device at most.
    """

    def __init__(
        self,
        x: Rows,
        y: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        batch_size: int,
        shuffle_key: jax.Array | None,
        budget: int | None = None,
        limit_steps: int | None = None,
        layout: Layout | None = None,
    ):
        self._x, self._y, self._weight = x, y, weight
        self._rows = np.arange(len(x)) if rows is None else rows
        self.batch_size = min(batch_size, len(self._rows))
        self.steps_per_epoch = steps_of(len(self._rows), batch_size, limit_steps)
        step_bytes = _bytes_of_step(self.batch_size, row_bytes(x, y, weight), layout)
        self._block_steps = block_steps(step_bytes, self.steps_per_epoch, budget)
        self.num_bytes = _BLOCKS * self._block_steps * step_bytes
        self._key, self._layout = shuffle_key, layout

    def blocks(self, epoch: int, first: int, source: Any = None) -> Iterator[Block]:
        """The blocks of an epoch from step ``first`` on, read ahead of their use."""
        order = epoch_order(self._rows, capacity(len(self._x)), self._key, epoch)
        yield from prefetched(self._read_blocks(order, first))

    def _read_blocks(self, order: np.ndarray, start: int) -> Iterator[Block]:
        steps = 1  # which tells how long reading takes
        while start < self.steps_per_epoch:
            steps = min(steps, self._block_steps, self.steps_per_epoch - start)
            begun = time.perf_counter()
            block = self._block(order, start, steps)
            step_seconds = (time.perf_counter() - begun) / steps
            yield block
            start += steps
            steps = max(1, int(_BLOCK_SECONDS / step_seconds))
            if _is_shared(self._layout):
                steps = self._block_steps

    def _block(self, order: np.ndarray, start: int, steps: int) -> Block:
        first, size = start * self.batch_size, steps * self.batch_size
        rows_of_block = order[np.arange(first, first + size) % len(order)]

        def read(positions: np.ndarray) -> Arrays:
            rows = rows_of_block[positions]
            weight = None if self._weight is None else self._weight[rows]
            return self._x.take(rows), self._y[rows], weight

        return block_of(
            read, size,
            num_rows=min(len(order) - first, size),
            shape=(self._block_steps, self.batch_size),
            start=start, last=steps, ends_epoch=start + steps == self.steps_per_epoch,
            layout=self._layout,
        )  # fmt: skip


class BatchFeed:
    """Batches in the order in which their source gives them.

    A thread reads ahead while the device computes.

    Args:
        batches: the source. Its first batch tells how many examples a batch has; shorter ones are
            filled up with their own examples, at weight 0.
        encode: ``(batch, argument) -> (x, y, weight)``, what a batch is on the device.
        accumulate_steps: batches of a step.
        budget: bytes of the device that the blocks may take; None for a default. Room for four
            steps is taken in any case.
        limit_steps: steps after which an epoch ends, if it has more; None for all.
        layout: the devices, where there are several.

    Attributes:
        num_bytes: what the blocks take on a device at most.
    """

    def __init__(
        self,
        batches: Batches,
        encode: Callable[[HostBatch, str], Arrays],
        *,
        accumulate_steps: int = 1,
        budget: int | None = None,
        limit_steps: int | None = None,
        layout: Layout | None = None,
    ):
        self._batches, self._encode, self._layout = batches, encode, layout
        self._accumulate_steps, self._limit_steps = accumulate_steps, limit_steps
        arrays = encode(batches.peek(), f'{batches.argument}, batch 1')
        self._rows_of_batch = len(arrays[1])
        self.batch_size = self._rows_of_batch * accumulate_steps
        count = batches.num_batches
        steps = None if count is None else math.ceil(count / accumulate_steps)
        limits = [number for number in (steps, limit_steps) if number is not None]
        self.steps_per_epoch = min(limits) if steps is not None else None
        step_bytes = _bytes_of_step(self.batch_size, row_bytes(*arrays), layout)
        self._block_steps = block_steps(step_bytes, min(limits, default=None), budget)
        self.num_bytes = _BLOCKS * self._block_steps * step_bytes

    def blocks(self, epoch: int, first: int, source: Any = None) -> Iterator[Block]:
        """The blocks of an epoch from ``source`` on, read ahead of their use."""
        iterator = self._batches.iterate(source, epoch=epoch)
        return prefetched(self._read_blocks(iterator, first))

    def _read_blocks(self, iterator: BatchIterator, first: int) -> Iterator[Block]:
        steps: list[_Step] = []
        start, begun = first, time.perf_counter()
        all_steps = self._steps(iterator)
        if first == 0:  # else some may count that were read before
            all_steps = _checked_to_count(
                all_steps, lambda step: any(map(_counts, step.parts)), iterator.argument
            )
        for step, is_last in _told_last(itertools.islice(all_steps, self._left(first))):
            steps.append(step)
            is_short = step.num_rows < self.batch_size
            is_late = time.perf_counter() - begun > _BLOCK_SECONDS and not _is_shared(self._layout)
            if is_last or is_short or is_late or len(steps) == self._block_steps:
                yield self._block(steps, start, is_last)
                start, begun = start + len(steps), time.perf_counter()
                steps = []

    def _left(self, first: int) -> int | None:
        return None if self._limit_steps is None else self._limit_steps - first

    def _steps(self, iterator: BatchIterator) -> Iterator['_Step']:
        """As many batches at a time as make a step; fewer after a short one."""
        parts: list[Arrays] = []
        for number, batch in enumerate(iterator, 1):
            x, y, weight = self._encode(batch, f'{iterator.argument}, batch {number}')
            if len(y) > self._rows_of_batch:
                raise DataError(
                    f'{iterator.argument}: got {len(y)} examples in batch {number} after '
                    f'{self._rows_of_batch} in the first, expected at most as many. Make batches '
                    'of one size.'
                )
            parts.append((x, y, weight))
            if len(y) < self._rows_of_batch or len(parts) == self._accumulate_steps:
                yield _Step(parts, iterator.position())
                parts = []
        if parts:
            yield _Step(parts, iterator.position())

    def _block(self, steps: list['_Step'], start: int, ends_epoch: bool) -> Block:
        parts = [part for step in steps for part in step.parts]
        num_rows = sum(step.num_rows for step in steps)
        size = len(steps) * self.batch_size
        rows = _filled_up(num_rows, size, steps[-1].num_rows)
        arrays = jax.tree.map(lambda *leaves: _joined(leaves)[rows], *parts)
        block = block_of(
            lambda positions: jax.tree.map(lambda leaf: leaf[positions], arrays), size,
            num_rows=num_rows,
            shape=(self._block_steps, self.batch_size),
            start=start, last=len(steps), ends_epoch=ends_epoch, layout=self._layout,
        )  # fmt: skip
        return block._replace(sources=[step.source for step in steps])


def _counts(arrays: Arrays) -> bool:
    """Returns True if some of the rows have a weight above 0."""
    *_, weight = arrays
    return weight is None or bool(weight.any())


def _checked_to_count(
    items: Iterable[Item], counts: Callable[[Item], bool], argument: str
) -> Iterator[Item]:
    """Yields the items, and checks that at least one of them counts.

    Raises:
        DataError: at their end, if none does: a loss has no mean then.
    """
    found = False
    for item in items:
        found = found or counts(item)
        yield item
    if not found:
        raise DataError(
            f'{argument}: got weight 0 for every example of its batches, expected some above 0.'
        )


def _is_shared(layout: Layout | None) -> bool:
    """Whether other processes make blocks of the same steps, by clocks of their own."""
    return layout is not None and layout.spans_processes


class _Step(NamedTuple):
    """The batches of a step, and where their source is after them."""

    parts: list[Arrays]
    source: Any

    @property
    def num_rows(self) -> int:
        return sum(len(y) for _, y, _ in self.parts)


def _told_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """The items, each with whether it is the last."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates arrays; a single one is not copied, since batches are copies already."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _filled_up(num_rows: int, count: int, num_last: int) -> slice | np.ndarray:
    """All rows, then those of the last, short step over again, up to ``count``.

    What fills up has weight 0 but is seen by BatchNorm, which of other rows would learn more of
    them than there is.
    """
    if num_rows == count:
        return slice(None)
    more = num_rows - num_last + np.arange(count - num_rows) % num_last
    return np.append(np.arange(num_rows), more)


def row_bytes(x: Any, y: np.ndarray, weight: np.ndarray | None) -> int:
    """Bytes of the device that a row takes, with its target, weight and place in the plan.

    Args:
        x: `Rows`, or arrays ``[rows, ...]``.
        y: encoded targets ``[rows, ...]``.
        weight: float32 ``[rows]``; None where all count 1.
    """
    spec = x.spec if isinstance(x, Rows) else x
    leaves = jax.tree.leaves((spec, y, weight))
    return 4 + sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)


def block_steps(step_bytes: int, steps_per_epoch: int | None, budget: int | None) -> int:
    """Steps of a block, such that all blocks on the device stay within the budget."""
    block_bytes = min(_MAX_BLOCK_BYTES, math.inf if budget is None else budget // _BLOCKS)
    fitting = max(1, min(_MAX_BLOCK_STEPS, int(block_bytes // step_bytes)))
    return fitting if steps_per_epoch is None else min(fitting, steps_per_epoch)


def _bytes_of_step(batch_size: int, row_bytes: int, layout: Layout | None) -> int:
    """Bytes of a device that the rows of a step take."""
    return row_bytes * (batch_size if layout is None else -(-batch_size // layout.num_devices))


def block_of(
    read: Callable[[Any], Arrays],
    size: int,
    *,
    num_rows: int,
    shape: tuple[int, int],
    start: int,
    last: int,
    ends_epoch: bool,
    layout: Layout | None = None,
) -> Block:
    """Puts consecutive rows on the device, as a block of ``shape`` whatever their number.

    Args:
        read: returns the arrays of some of the rows, given their positions or a slice of them.
        size: how many rows there are to read.
        num_rows: how many of them are examples, before those that fill up.
        shape: steps and rows of a step.
        start: see `Block`.
        last: see `Block`.
        ends_epoch: see `Block`.
        layout: the devices, where there are several: each gets its rows of every step.
    """
    places = block_places(*shape, layout)
    if layout is None:
        count = len(places.positions)
        arrays = jax.tree.map(
            lambda array: jax.device_put(padded(array, count)), read(slice(0, size))
        )
    else:
        arrays = put_parts(read, places.positions, size, layout)
    x, y, weight = arrays
    data = DeviceData(x, y, places.rows, put(np.int32(num_rows), layout), weight, places.parted)
    return Block(data, places.plan, start, 0, last, ends_epoch)


class _Places(NamedTuple):
    """Where the rows of a block lie.

    Attributes:
        positions: of the rows in the block, in the order in which they lie on the devices.
        plan: ``[steps, batch]``, the places of the rows of each step.
        rows: the same, flat.
        parted: see `DeviceData`.
    """

    positions: np.ndarray
    plan: jax.Array
    rows: jax.Array
    parted: ShardedRows | None


@functools.lru_cache(maxsize=8)
def block_places(steps: int, batch_size: int, layout: Layout | None) -> _Places:
    """Rows lie as they come, or those of each device together, if the devices divide a step."""
    positions = np.arange(steps * batch_size, dtype=np.int32)
    plan, parted = positions.reshape(steps, batch_size), None
    if layout is not None:
        num_devices = layout.num_devices
        parted = ShardedRows(layout.mesh, aligned=batch_size % num_devices == 0)
        if parted.aligned:
            by_device = positions.reshape(steps, num_devices, -1).swapaxes(0, 1)
            plan = np.argsort(by_device.ravel()).astype(np.int32).reshape(steps, batch_size)
            positions = by_device.ravel()
        else:
            positions = np.arange(-(-len(positions) // num_devices) * num_devices, dtype=np.int32)
    return _Places(positions, put(plan, layout), put(plan.ravel(), layout), parted)


def row_parts(
    x: Rows,
    y: np.ndarray,
    weight: np.ndarray | None,
    rows: np.ndarray,
    part_rows: int,
    layout: Layout | None = None,
) -> Iterator[DeviceData]:
    """Gives rows to the device in parts, for an evaluation."""

    def part(first: int) -> DeviceData:
        part_of_rows = rows[first : first + part_rows]

        def read(positions: Any) -> Arrays:
            taken = part_of_rows[positions]
            return x.take(taken), y[taken], None if weight is None else weight[taken]

        return _part(read, len(part_of_rows), part_rows, layout)

    return prefetched(part(first) for first in range(0, len(rows), part_rows))


def batch_parts(
    batches: Batches,
    encode: Callable[[HostBatch, str], Arrays],
    part_rows: int,
    limit: int | None = None,
    layout: Layout | None = None,
) -> Iterator[DeviceData]:
    """Gives batches to the device one by one, for an evaluation.

    With a ``limit`` they are the first of those in which some rows have a weight above 0.

    Raises:
        DataError: at their end, if all rows have weight 0.
    """

    def encoded(number: int, batch: HostBatch) -> Arrays:
        return encode(batch, f'{batches.argument}, batch {number}')

    def part(arrays: Arrays) -> DeviceData:
        return _part(
            lambda positions: jax.tree.map(lambda leaf: leaf[positions], arrays),
            len(arrays[1]), max(part_rows, len(arrays[1])), layout,
        )  # fmt: skip

    all_arrays: Iterable[Arrays] = itertools.starmap(encoded, enumerate(batches.iterate(), 1))
    if limit is not None:
        all_arrays = itertools.islice(filter(_counts, all_arrays), limit)
    return prefetched(map(part, _checked_to_count(all_arrays, _counts, batches.argument)))


def _part(
    read: Callable[[Any], Arrays], num_rows: int, part_rows: int, layout: Layout | None
) -> DeviceData:
    return block_of(
        read, num_rows, num_rows=num_rows, shape=(1, part_rows), start=0, last=1,
        ends_epoch=False, layout=layout,
    ).data  # fmt: skip


def prefetched(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, made in a thread a little ahead of their use."""
    iterator = iter(items)

    def following() -> list[Item]:
        return list(itertools.islice(iterator, 1))

    with concurrent.futures.ThreadPoolExecutor(1, 'thinkml-prefetch') as pool:
        waiting = collections.deque(pool.submit(following) for _ in range(_AHEAD))
        try:
            while item := waiting.popleft().result():
                waiting.append(pool.submit(following))
                yield item[0]
        finally:
            for future in waiting:
                future.cancel()
