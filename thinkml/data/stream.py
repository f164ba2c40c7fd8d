"""Streaming: data that stays on the host and goes to the device in blocks of steps."""

import collections
import concurrent.futures
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from thinkml.core import Block, DeviceData
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout, ShardedRows
from thinkml.core.train.batch_feed import epoch_order, steps_of
from thinkml.data.batches import Batches, BatchIterator, HostBatch
from thinkml.data.device_placement import capacity, padded, put_parts
from thinkml.data.head_targets import num_rows_of, rows_at
from thinkml.data.rows import Rows
from thinkml.errors import DataError
from thinkml.typing import PyTree

Item = TypeVar('Item')
# Inputs, encoded targets, and weights if they are not all 1; dicts of both for several heads.
Arrays = tuple[PyTree, PyTree, PyTree]

# For this many steps, the cost of a dispatch is negligible.
_MAX_BLOCK_STEPS = 64
# Blocks on the device at a time: one in use, two that wait, one being made.
_BLOCKS = 4
_AHEAD = 2
# Transfers of this size are already fast; larger blocks would only arrive later.
_MAX_BLOCK_BYTES = 64 * 2**20
# For a slow source, a block holds the data of this time, so that training begins with the first
# batches, and Ctrl-C need not wait for a full block.
_BLOCK_SECONDS = 1.0


class StreamedFeed:
    """A feed of data that is read by rows, in the same order as if it stayed on the device.

    A thread reads ahead while the device computes. Results are equal to those of a
    `thinkml.core.ResidentFeed`, bit for bit.

    Args:
        x: the inputs.
        y: encoded targets ``[rows, ...]``, in memory, or a dict of them by head.
        rows: the rows to use, in increasing order; None for all.
        weight: float32 ``[rows]``, the weight of each example's loss, or a dict by head; None if
            all are 1.
        batch_size: examples per step; a smaller data set trains as one batch.
        shuffle_key: PRNG key of the shuffling; None keeps the order of the rows.
        budget: bytes of device memory for the blocks; None for a default. The memory of four steps
            is used in any case.
        limit_steps: the maximum number of steps per epoch; None for all.
        layout: the devices.

    Attributes:
        num_bytes: the maximum size of the blocks on a device, in bytes.
    """

    def __init__(
        self,
        x: Rows,
        y: PyTree,
        *,
        rows: np.ndarray | None = None,
        weight: PyTree = None,
        batch_size: int,
        shuffle_key: jax.Array | None,
        budget: int | None = None,
        limit_steps: int | None = None,
        layout: Layout = ONE_DEVICE,
    ):
        self._x, self._y, self._weight = x, y, weight
        self._rows = np.arange(len(x)) if rows is None else rows
        self.batch_size = min(batch_size, len(self._rows))
        self.steps_per_epoch = steps_of(len(self._rows), batch_size, limit_steps)
        step_bytes = _bytes_of_step(self.batch_size, row_bytes(x, y, weight), layout)
        self._block_steps = block_steps(step_bytes, self.steps_per_epoch, budget)
        self.num_bytes = _BLOCKS * self._block_steps * step_bytes
        self._key, self._layout = shuffle_key, layout

    def blocks(
        self, epoch: int, first: int, source: Mapping[str, Any] | None = None
    ) -> Iterator[Block]:
        """Yields the blocks of an epoch from step ``first`` on, read ahead in a thread."""
        order = epoch_order(self._rows, capacity(len(self._x)), self._key, epoch)
        yield from prefetched(self._read_blocks(order, first))

    def _read_blocks(self, order: np.ndarray, start: int) -> Iterator[Block]:
        steps = 1  # one step first, to measure how long reading takes
        while start < self.steps_per_epoch:
            steps = min(steps, self._block_steps, self.steps_per_epoch - start)
            begin = time.perf_counter()
            block = self._block(order, start, steps)
            step_seconds = (time.perf_counter() - begin) / steps
            yield block
            start += steps
            steps = max(1, int(_BLOCK_SECONDS / step_seconds))
            if self._layout.spans_processes:
                steps = self._block_steps

    def _block(self, order: np.ndarray, start: int, steps: int) -> Block:
        first, size = start * self.batch_size, steps * self.batch_size
        rows_of_block = order[np.arange(first, first + size) % len(order)]

        def read(positions: np.ndarray) -> Arrays:
            rows = rows_of_block[positions]
            return self._x.take(rows), *rows_at((self._y, self._weight), rows)

        return block_of(
            read, size,
            num_rows=min(len(order) - first, size),
            shape=(self._block_steps, self.batch_size),
            start=start, last=steps, ends_epoch=start + steps == self.steps_per_epoch,
            layout=self._layout,
        )  # fmt: skip


class BatchFeed:
    """A feed of batches in the order of their source.

    A thread reads ahead while the device computes.

    Args:
        batches: the source. Its first batch sets the batch size; shorter batches are padded by
            repeating their examples, with weight 0.
        encode: ``(batch, argument) -> (x, y, weight)`` returns the arrays of a batch for the
            device. It may leave out rows that count nowhere.
        accumulate_steps: batches per step.
        budget: bytes of device memory for the blocks; None for a default. The memory of four steps
            is used in any case.
        limit_steps: the maximum number of steps per epoch; None for all.
        layout: the devices.

    Attributes:
        num_bytes: the maximum size of the blocks on a device, in bytes.
    """

    def __init__(
        self,
        batches: Batches,
        encode: Callable[[HostBatch, str], Arrays],
        *,
        accumulate_steps: int = 1,
        budget: int | None = None,
        limit_steps: int | None = None,
        layout: Layout = ONE_DEVICE,
    ):
        self._batches, self._encode, self._layout = batches, encode, layout
        self._accumulate_steps, self._limit_steps = accumulate_steps, limit_steps
        arrays = encode(batches.peek(), f'{batches.argument}, batch 1')
        self._rows_of_batch = num_rows_of(batches.peek().x)
        self.batch_size = self._rows_of_batch * accumulate_steps
        count = batches.num_batches
        steps = None if count is None else math.ceil(count / accumulate_steps)
        limits = [number for number in (steps, limit_steps) if number is not None]
        self.steps_per_epoch = min(limits) if steps is not None else None
        step_bytes = _bytes_of_step(self.batch_size, row_bytes(*arrays), layout)
        self._block_steps = block_steps(step_bytes, min(limits, default=None), budget)
        self.num_bytes = _BLOCKS * self._block_steps * step_bytes

    def blocks(
        self, epoch: int, first: int, source: Mapping[str, Any] | None = None
    ) -> Iterator[Block]:
        """Yields the blocks of an epoch from the position ``source`` on, read ahead in a thread."""
        iterator = self._batches.iterate(source, epoch=epoch)
        return prefetched(self._read_blocks(iterator, first))

    def _read_blocks(self, iterator: BatchIterator, first: int) -> Iterator[Block]:
        steps: list[_Step] = []
        start, begin = first, time.perf_counter()
        all_steps = filter(lambda step: step.num_rows, self._steps(iterator))
        if first == 0:  # else batches read before the resumption may have weights above 0
            all_steps = _check_weighted(
                all_steps, lambda step: any(map(_has_weight, step.parts)), iterator.argument
            )
        for step, is_last in _mark_last(itertools.islice(all_steps, self._remaining(first))):
            steps.append(step)
            is_short = step.num_rows < self.batch_size
            is_late = (
                time.perf_counter() - begin > _BLOCK_SECONDS and not self._layout.spans_processes
            )
            if is_last or is_short or is_late or len(steps) == self._block_steps:
                yield self._block(steps, start, is_last)
                start, begin = start + len(steps), time.perf_counter()
                steps = []

    def _remaining(self, first: int) -> int | None:
        return None if self._limit_steps is None else self._limit_steps - first

    def _steps(self, iterator: BatchIterator) -> Iterator['_Step']:
        """Yields the batches of one step at a time; a short batch ends its step."""
        parts: list[Arrays] = []
        for number, batch in enumerate(iterator, 1):
            x, y, weight = self._encode(batch, f'{iterator.argument}, batch {number}')
            num_rows = num_rows_of(batch.x)
            if num_rows > self._rows_of_batch:
                raise DataError(
                    f'{iterator.argument}: got {num_rows} examples in batch {number} after '
                    f'{self._rows_of_batch} in the first, expected at most as many. Make batches '
                    'of one size.'
                )
            parts.append((x, y, weight))
            if num_rows < self._rows_of_batch or len(parts) == self._accumulate_steps:
                yield _Step(parts, iterator.position())
                parts = []
        if parts:
            yield _Step(parts, iterator.position())

    def _block(self, steps: list['_Step'], start: int, ends_epoch: bool) -> Block:
        parts = [part for step in steps for part in step.parts]
        num_rows = sum(step.num_rows for step in steps)
        size = len(steps) * self.batch_size
        rows = _pad_rows(num_rows, size, steps[-1].num_rows)
        arrays = jax.tree.map(lambda *leaves: _concatenate(leaves)[rows], *parts)
        block = block_of(
            lambda positions: rows_at(arrays, positions), size,
            num_rows=num_rows,
            shape=(self._block_steps, self.batch_size),
            start=start, last=len(steps), ends_epoch=ends_epoch, layout=self._layout,
        )  # fmt: skip
        return block._replace(sources=[step.source for step in steps])


def _has_weight(arrays: Arrays) -> bool:
    """Returns True if some of the rows have a weight above 0."""
    *_, weight = arrays
    return weight is None or any(leaf.any() for leaf in jax.tree.leaves(weight))


def _check_weighted(
    items: Iterable[Item], has_weight: Callable[[Item], bool], argument: str
) -> Iterator[Item]:
    """Yields the items, and checks that at least one of them has a weight above 0.

    Raises:
        DataError: after the last item, if none has: the mean of the loss would be undefined.
    """
    found = False
    for item in items:
        found = found or has_weight(item)
        yield item
    if not found:
        raise DataError(
            f'{argument}: got weight 0 for every example of its batches, or an ignored label, '
            'expected some that count.'
        )


class _Step(NamedTuple):
    """The batches of a step, and the position of their source after them."""

    parts: list[Arrays]
    source: dict[str, Any]

    @property
    def num_rows(self) -> int:
        return sum(num_rows_of(y) for _, y, _ in self.parts)


def _mark_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Yields each item with a bool, which is True for the last one."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates arrays; a single one is not copied, since batches are already copies."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _pad_rows(num_rows: int, count: int, num_last: int) -> slice | np.ndarray:
    """Returns the indices of all rows, then repeats those of the last, short step up to ``count``.

    The padding has weight 0, but BatchNorm includes it in its statistics. Repeating rows of other
    steps would overrepresent them there.
    """
    if num_rows == count:
        return slice(None)
    more = num_rows - num_last + np.arange(count - num_rows) % num_last
    return np.append(np.arange(num_rows), more)


def row_bytes(x: Rows | PyTree, y: PyTree, weight: PyTree) -> int:
    """Returns the bytes of one row on the device, with its target, weight and index in the plan.

    Args:
        x: `Rows`, or arrays ``[rows, ...]``.
        y: encoded targets ``[rows, ...]``, or a dict of them.
        weight: float32 ``[rows]``, or a dict; None if all are 1.
    """
    spec = x.spec if isinstance(x, Rows) else x
    leaves = jax.tree.leaves((spec, y, weight))
    return 4 + sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)


def block_steps(step_bytes: int, steps_per_epoch: int | None, budget: int | None) -> int:
    """Returns the steps per block, such that all blocks on the device stay within the budget."""
    block_bytes = min(_MAX_BLOCK_BYTES, math.inf if budget is None else budget // _BLOCKS)
    max_steps = max(1, min(_MAX_BLOCK_STEPS, int(block_bytes // step_bytes)))
    return max_steps if steps_per_epoch is None else min(max_steps, steps_per_epoch)


def _bytes_of_step(batch_size: int, row_bytes: int, layout: Layout) -> int:
    """Returns the bytes of the rows of one step on each device."""
    return row_bytes * -(-batch_size // layout.num_devices)


def block_of(
    read: Callable[[Any], Arrays],
    size: int,
    *,
    num_rows: int,
    shape: tuple[int, int],
    start: int,
    last: int,
    ends_epoch: bool,
    layout: Layout = ONE_DEVICE,
) -> Block:
    """Puts consecutive rows on the device, padded to a block of ``shape``.

    Args:
        read: returns the arrays of some of the rows, given their positions or a slice.
        size: the number of rows to read.
        num_rows: the number of examples among them; the later rows are padding.
        shape: the number of steps, and of rows per step.
        start: see `Block`.
        last: see `Block`.
        ends_epoch: see `Block`.
        layout: the devices; each gets its rows of every step.
    """
    arrangement = arrange_block(*shape, layout)
    if layout.num_devices == 1:
        count = len(arrangement.positions)
        arrays = jax.tree.map(lambda array: layout.put(padded(array, count)), read(slice(0, size)))
    else:
        arrays = put_parts(read, arrangement.positions, size, layout)
    x, y, weight = arrays
    data = DeviceData(
        x=x,
        y=y,
        rows=arrangement.rows,
        num_rows=layout.put(np.int32(num_rows)),
        weight=weight,
        parted=arrangement.parted,
    )
    return Block(
        data=data, plan=arrangement.plan, start=start, first=0, last=last, ends_epoch=ends_epoch
    )


class _Arrangement(NamedTuple):
    """The arrangement of a block's rows on the devices.

    Attributes:
        positions: the positions of the rows in the block, in their order on the devices.
        plan: ``[steps, batch]``, the indices on the devices of the rows of each step.
        rows: the same indices, flat.
        parted: see `DeviceData`.
    """

    positions: np.ndarray
    plan: jax.Array
    rows: jax.Array
    parted: ShardedRows | None


@functools.lru_cache(maxsize=8)
def arrange_block(steps: int, batch_size: int, layout: Layout) -> _Arrangement:
    """Arranges the rows of a block for the devices.

    If the number of devices divides the batch size, the rows of each device lie together;
    otherwise rows stay in order.
    """
    positions = np.arange(steps * batch_size, dtype=np.int32)
    plan, parted = positions.reshape(steps, batch_size), None
    num_devices = layout.num_devices
    if num_devices > 1:
        parted = layout.sharded_rows(aligned=batch_size % num_devices == 0)
        if batch_size % num_devices == 0:
            by_device = positions.reshape(steps, num_devices, -1).swapaxes(0, 1)
            plan = np.argsort(by_device.ravel()).astype(np.int32).reshape(steps, batch_size)
            positions = by_device.ravel()
        else:
            positions = np.arange(-(-len(positions) // num_devices) * num_devices, dtype=np.int32)
    return _Arrangement(
        positions=positions,
        plan=layout.put(plan),
        rows=layout.put(plan.ravel()),
        parted=parted,
    )


def row_parts(
    x: Rows,
    y: PyTree,
    weight: PyTree,
    rows: np.ndarray,
    part_rows: int,
    layout: Layout = ONE_DEVICE,
) -> Iterator[DeviceData]:
    """Yields rows on the device in parts of ``part_rows`` rows, for an evaluation."""

    def part(first: int) -> DeviceData:
        part_of_rows = rows[first : first + part_rows]

        def read(positions: slice | np.ndarray) -> Arrays:
            indices = part_of_rows[positions]
            return x.take(indices), *rows_at((y, weight), indices)

        return _part(read, len(part_of_rows), part_rows, layout)

    return prefetched(part(first) for first in range(0, len(rows), part_rows))


def batch_parts(
    batches: Batches,
    encode: Callable[[HostBatch, str], Arrays],
    part_rows: int,
    limit: int | None = None,
    layout: Layout = ONE_DEVICE,
) -> Iterator[DeviceData]:
    """Yields batches on the device one by one, for an evaluation.

    With a ``limit``, only the first batches are used, and batches whose weights are all 0 are
    skipped.

    Raises:
        DataError: after the last batch, if all rows have weight 0.
    """

    def encoded(number: int, batch: HostBatch) -> Arrays:
        return encode(batch, f'{batches.argument}, batch {number}')

    def part(arrays: Arrays) -> DeviceData:
        num_rows = num_rows_of(arrays[1])
        return _part(
            lambda positions: rows_at(arrays, positions),
            num_rows, max(part_rows, num_rows), layout,
        )  # fmt: skip

    all_arrays: Iterable[Arrays] = itertools.starmap(encoded, enumerate(batches.iterate(), 1))
    all_arrays = filter(lambda arrays: num_rows_of(arrays[1]), all_arrays)
    if limit is not None:
        all_arrays = itertools.islice(filter(_has_weight, all_arrays), limit)
    return prefetched(map(part, _check_weighted(all_arrays, _has_weight, batches.argument)))


def _part(
    read: Callable[[Any], Arrays], num_rows: int, part_rows: int, layout: Layout
) -> DeviceData:
    return block_of(
        read, num_rows, num_rows=num_rows, shape=(1, part_rows), start=0, last=1,
        ends_epoch=False, layout=layout,
    ).data  # fmt: skip


def prefetched(items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items, computed in a thread ahead of their use."""
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
