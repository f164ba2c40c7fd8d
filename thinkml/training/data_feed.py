"""Data feeds: training and validation data on the device, or streamed to it."""

import enum
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from thinkml.core import (
    BucketFeed,
    DeviceData,
    Feed,
    ResidentFeed,
    Shortening,
    inference_batch_size,
)
from thinkml.core.objectives.heads import part_of
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout
from thinkml.core.train.batch_feed import steps_of
from thinkml.data import (
    BatchFeed,
    HostBatch,
    StreamedFeed,
    batch_parts,
    capacity,
    device_budget,
    place,
    row_parts,
    select,
)
from thinkml.data.head_targets import encode_any_targets, rows_at
from thinkml.data.sample_weights import in_float32, of_rows
from thinkml.data.sequences import bucket_lengths
from thinkml.data.stream import Arrays, row_bytes
from thinkml.data.targets import counted_rows
from thinkml.errors import ConfigError, DataError
from thinkml.tasks import AnyTask, Task, blanks_of
from thinkml.training.config import TrainingConfig
from thinkml.training.run import Validation
from thinkml.training.training_data import (
    Examples,
    Stream,
    rows_of_weight,
    with_advice,
    without_ignored,
)
from thinkml.training.training_setup import TrainingSetup
from thinkml.training.validation_sets import SetName, by_argument


class Placement(enum.Enum):
    """The placement of the rows of a data set."""

    REPLICATED = 'replicated'
    SHARDED = 'sharded'
    HOST = 'on the host, streamed'


def make_feed(
    setup: TrainingSetup, config: TrainingConfig, shuffle_key: jax.Array, layout: Layout
) -> tuple[Feed, dict[SetName, Validation]]:
    """Puts data that fits onto the device, and streams data that does not.

    On several devices the data is replicated if it fits, else its rows are sharded. Training data
    comes first; the validation sets may use the memory that is left, one after another.

    Raises:
        ConfigError: for a fraction of batches whose number is unknown.
    """
    budget = device_budget(config.device_data_bytes, layout)
    train = setup.train
    if isinstance(train, Stream):
        feed = BatchFeed(
            train.batches, functools.partial(_encode, train),
            accumulate_steps=config.accumulate_steps, budget=budget,
            limit_steps=_limit(config, _steps_of_batches(train.batches.num_batches, config)),
            layout=layout,
        )  # fmt: skip
        return feed, _validations(setup, None, config, _less(budget, feed.num_bytes), layout)
    batch_size = config.batch_size * config.accumulate_steps
    limit = _limit(config, steps_of(len(train.rows), batch_size))
    where = choose_placement(train, budget, layout)
    if where is Placement.HOST:
        feed = StreamedFeed(
            train.x, train.y, rows=train.rows, weight=train.weight, batch_size=batch_size,
            shuffle_key=shuffle_key, budget=budget, limit_steps=limit, layout=layout,
        )  # fmt: skip
        validations = _validations(setup, None, config, _less(budget, feed.num_bytes), layout)
        return feed, validations
    data = _placed(train, train.rows, where, layout)
    if train.lengths is not None:
        buckets, shortenings = _buckets_of(train, setup.task)
        limit = _limit(config, _steps(buckets, batch_size))
        feed = BucketFeed(
            data, rows=train.rows, buckets=buckets, shortenings=shortenings,
            batch_size=batch_size, shuffle_key=shuffle_key, limit_steps=limit,
        )  # fmt: skip
    else:
        feed = ResidentFeed(
            data, num_rows=len(train.rows), batch_size=batch_size,
            shuffle_key=layout.put(shuffle_key), limit_steps=limit,
            room=train.room,
        )  # fmt: skip
    left = _less(budget, bytes_to_put(train, where, layout))
    return feed, _validations(setup, data, config, left, layout)


def _buckets_of(examples: Examples, task: AnyTask) -> tuple[np.ndarray, list[Shortening]]:
    """Returns the bucket of each row in use, and how the sequences of each bucket are cut."""
    assert examples.lengths is not None
    sizes = bucket_lengths(examples.lengths[examples.rows])
    longest = jax.tree.leaves(examples.x.spec)[0].shape[1]
    labels = examples.y if isinstance(examples.y, dict) else {None: examples.y}
    aligned = [name not in dict(blanks_of(task)) for name in sorted(labels, key=str)]
    leaves = jax.tree.leaves(examples.y)
    targets = tuple(
        is_aligned and y.ndim > 1 and y.shape[1] == longest and y.dtype.kind == 'i'
        for y, is_aligned in zip(leaves, aligned, strict=True)
    )
    buckets = np.searchsorted(sizes, examples.lengths[examples.rows])
    return buckets, [Shortening(int(size), targets) for size in sizes]


def _steps(buckets: np.ndarray, batch_size: int) -> int:
    return int((-(-np.bincount(buckets) // min(batch_size, len(buckets)))).sum())


def planned_placements(
    setup: TrainingSetup, config: TrainingConfig, layout: Layout
) -> Iterator[tuple[str, Placement, int, int]]:
    """Yields where `make_feed` would put rows, without putting them there.

    Yields:
        The argument, the placement of its rows, their bytes in all, and their bytes per device.
    """
    budget = device_budget(config.device_data_bytes, layout)
    parts = {'X_train': setup.train, **by_argument(setup.val)}
    for argument, examples in parts.items():
        is_shared = argument != 'X_train' and _shares_rows(examples, setup.train)
        if not isinstance(examples, Examples) or is_shared:
            continue
        where = choose_placement(examples, budget, layout)
        of_device = bytes_to_put(examples, where, layout)
        if where is Placement.HOST:
            of_device = min(of_device, streamed_bytes(examples, config, budget, layout))
        yield argument, where, num_bytes(examples, Placement.REPLICATED, ONE_DEVICE), of_device
        budget = _less(budget, of_device)


def streamed_bytes(
    examples: Examples, config: TrainingConfig, budget: int | None, layout: Layout
) -> int:
    """Returns the bytes of a device that streamed rows take at most."""
    return StreamedFeed(
        examples.x, examples.y, rows=examples.rows, weight=examples.weight,
        batch_size=config.batch_size * config.accumulate_steps, shuffle_key=None, budget=budget,
        layout=layout,
    ).num_bytes  # fmt: skip


def choose_placement(examples: Examples, budget: int | None, layout: Layout) -> Placement:
    """Returns the placement of rows, given the bytes that data may take on a device."""
    for where in (Placement.REPLICATED, Placement.SHARDED):
        if budget is None or bytes_to_put(examples, where, layout) <= budget:
            return where
    return Placement.HOST


def num_bytes(examples: Examples, where: Placement, layout: Layout) -> int:
    """Returns the bytes of a device that all rows take, with filler rows up to the capacity."""
    x, y, weight = examples.x, examples.y, examples.weight
    num_devices = 1 if where is Placement.REPLICATED else layout.num_devices
    count = capacity(len(x))
    # The index plan, 4 bytes a row, is replicated.
    return -(-count // num_devices) * (row_bytes(x, y, weight) - 4) + 4 * count


def bytes_to_put(examples: Examples, where: Placement, layout: Layout) -> int:
    """Returns the bytes that rows will take, without arrays that are on the device already."""
    arrays = examples.x.arrays if layout.mesh is None else None
    there = [leaf.nbytes for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    return num_bytes(examples, where, layout) - sum(there)


def _placed(examples: Examples, rows: np.ndarray, where: Placement, layout: Layout) -> DeviceData:
    x, y, weight = examples.x, examples.y, examples.weight
    return place(x, y, rows, weight, layout, parted=where is Placement.SHARDED)


def _less(budget: int | None, num_bytes: int) -> int | None:
    return None if budget is None else budget - num_bytes


def _limit(config: TrainingConfig, steps: int | None) -> int | None:
    """Returns the number of steps after which an epoch ends; ``steps`` is how many there are."""
    limit = config.limit_train_batches
    if config.fast_dev_run:
        return int(config.fast_dev_run)
    if not isinstance(limit, float):
        return limit
    if steps is None:
        raise ConfigError(
            f'limit_train_batches: got the fraction {limit} of batches whose number is '
            'unknown before they end. Pass a whole number of steps, or give the source a __len__.'
        )
    return max(1, int(limit * steps))


def _steps_of_batches(count: int | None, config: TrainingConfig) -> int | None:
    return None if count is None else math.ceil(count / config.accumulate_steps)


def _shares_rows(val: Examples | Stream, train: Examples | Stream) -> bool:
    """Returns True for rows held out of the training data."""
    return isinstance(val, Examples) and isinstance(train, Examples) and val.x is train.x


def _validations(
    setup: TrainingSetup,
    train_data: DeviceData | None,
    config: TrainingConfig,
    budget: int | None,
    layout: Layout,
) -> dict[SetName, Validation]:
    """Places the validation sets; rows held out of resident training data are there already."""
    found = {}
    for name, val in setup.val.items():
        shared = train_data if _shares_rows(val, setup.train) else None
        found[name] = _validation(setup, val, shared, config, budget, layout)
        if isinstance(val, Examples) and shared is None:
            where = choose_placement(val, budget, layout)
            if where is not Placement.HOST:
                budget = _less(budget, bytes_to_put(val, where, layout))
    return found


def _validation(
    setup: TrainingSetup,
    val: Examples | Stream,
    shared: Any,
    config: TrainingConfig,
    budget: int | None,
    layout: Layout,
) -> Validation:
    if isinstance(val, Stream):
        batch_size = len(jax.tree.leaves(val.batches.peek().x)[0])
        encode = functools.partial(_encode, val)
        limit = 1 if config.fast_dev_run else None
        count = val.batches.num_batches
        return Validation(
            lambda: batch_parts(val.batches, encode, batch_size, limit, layout), batch_size,
            None if count is None else count * batch_size,
        )  # fmt: skip
    # By the capacity, so that splits of similar sizes share a compiled program.
    batch_size = min(inference_batch_size(val.x.spec), capacity(len(val.x)))
    if setup.objective.couples_rows:  # the loss depends on the batch size
        batch_size = min(config.batch_size, capacity(len(val.x)))
    rows = _first_weighted_rows(val, batch_size) if config.fast_dev_run else val.rows
    make = functools.partial(
        Validation, batch_size=batch_size,
        capacity=math.ceil(capacity(len(val.x)) / batch_size) * batch_size,
    )  # fmt: skip
    where = choose_placement(val, budget, layout)
    if shared is None and where is Placement.HOST:
        return make(lambda: row_parts(val.x, val.y, val.weight, rows, batch_size, layout))
    data = _placed(val, rows, where, layout) if shared is None else select(shared, rows, layout)
    if val.lengths is None or config.fast_dev_run:
        return make(lambda: data)
    buckets, shortenings = _buckets_of(val, setup.task)
    parts = [
        select(data, rows[buckets == bucket], layout).replace(shortening=shortening)
        for bucket, shortening in enumerate(shortenings)
    ]
    return make(lambda: parts)


def _first_weighted_rows(val: Examples, count: int) -> np.ndarray:
    """Returns the first rows whose weight is above 0, so that the loss has a mean."""
    return rows_of_weight(val)[:count]


def _encode(stream: Stream, batch: HostBatch, argument: str) -> Arrays:
    """Returns the inputs, encoded labels and weights of a batch, for the device."""
    y = with_advice(stream.advice, encode_any_targets, batch.y, stream.task, argument)
    if isinstance(stream.task, Task):
        weight = _stream_weights(stream, stream.task, y, batch.weight, argument)
        counts = counted_rows(y, stream.task)
        if stream.keeps_ignored or counts.all():
            return batch.x, y, weight
        return rows_at((batch.x, y, weight), counts)
    of_elements = stream.has_element_weights
    weights = {
        name: _weights_of_head(
            stream._replace(
                class_table=part_of(stream.class_table, name),
                has_element_weights=of_elements.get(name, False)
                if isinstance(of_elements, dict)
                else of_elements,
            ),
            head,
            y[name],
            batch.weight.get(name) if isinstance(batch.weight, dict) else batch.weight,
            f'{argument}, head {name!r}',
        )
        for name, head in stream.task.heads
    }  # fmt: skip
    return batch.x, y, weights


def _weights_of_head(
    stream: Stream, task: Task, y: np.ndarray, given: np.ndarray | None, argument: str
) -> np.ndarray | None:
    weight = _stream_weights(stream, task, y, given, argument)
    return without_ignored(weight, y, task)


def _stream_weights(
    stream: Stream, task: Task, y: np.ndarray, given: np.ndarray | None, argument: str
) -> np.ndarray:
    """Returns the weights of a batch's rows, or of their elements."""
    weight = np.ones(len(y), np.float32)
    if given is not None:
        weight = in_float32(given, stream.weight_shift, argument)
    if weight.ndim > 1 and weight.shape[1:] != task.element_shape:
        raise DataError(
            f'{argument}: got weights of shape {weight.shape} for {task.in_words}, expected '
            f'({len(y)},): one weight per row.'
        )
    if stream.has_element_weights:
        weight = np.broadcast_to(of_rows(weight, y), (len(y), *task.element_shape))
    elif weight.ndim > 1:
        raise DataError(
            f'{argument}: got weights of elements, expected weights of rows as in batch 1. Give '
            'each batch weights of elements.'
        )
    if stream.class_table is not None:
        weight = of_rows(weight, y) * stream.class_table[y]
    return weight
