"""Feeds that read ahead: bitwise equal to data on the device, in bounded memory."""

import threading

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm, mlp
from thinkml.core import (
    Position,
    ResidentFeed,
    functionalize,
    get_loss,
    init_state,
    make_metrics,
    make_optimizer,
    make_train_step,
    train_chunks,
)
from thinkml.data import BatchFeed, StreamedFeed, open_batches, open_rows, place
from thinkml.data.stream import block_steps, prefetched, row_bytes
from thinkml.errors import DataError

pytestmark = pytest.mark.compiled  # equal bits

NUM_ROWS = 53
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM_ROWS, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0)
WEIGHT = RNG.uniform(0, 2, NUM_ROWS).astype(np.float32)
KEY = jax.random.key(3)
METRICS = make_metrics(('accuracy', 'roc_auc'), kind='multiclass', num_outputs=3, capacity=64)
MODEL = DropoutBatchNorm(4, 3, nnx.Rngs(0))


def prepare(accumulate_steps=1, model=MODEL, learning_rate=0.01):
    functional = functionalize(model, X[:1], jax.random.key(0))
    tx = make_optimizer('adam')
    step = make_train_step(
        functional.apply, get_loss('cross_entropy'), tx, METRICS, accumulate_steps=accumulate_steps
    )
    state = init_state(
        functional.params, functional.model_state, tx, jax.random.key(1), learning_rate
    )
    return step, state


def run(feed, *, accumulate_steps=1, model=MODEL, **options):
    """The result of a run on the host: arrays, losses, the last epoch's metrics."""
    step, state = prepare(accumulate_steps, model)
    losses = []
    for chunk in train_chunks(step, METRICS, state, feed, **({'epochs': 2} | options)):
        losses.append(chunk.step_losses())
    arrays = (chunk.state.params, chunk.state.opt_state, chunk.state.model_state)
    return jax.device_get((arrays, np.concatenate(losses), chunk.epoch_metrics()))


def resident(rows=None, weight=None, key=KEY, **options):
    num_rows = NUM_ROWS if rows is None else len(rows)
    data = place(X, Y, rows, weight)
    return ResidentFeed(data, num_rows=num_rows, shuffle_key=key, **options)


def streamed(rows=None, weight=None, key=KEY, **options):
    x = open_rows(X)
    return StreamedFeed(x, Y, rows=rows, weight=weight, shuffle_key=key, **options)


def batches_of(size, weight=False):
    def batches():
        for first in range(0, NUM_ROWS, size):
            rows = slice(first, first + size)
            yield (X[rows], Y[rows], WEIGHT[rows]) if weight else (X[rows], Y[rows])

    return batches


def encode(batch, argument):
    weight = np.ones(len(batch.x), np.float32) if batch.weight is None else batch.weight
    return batch.x, batch.y.astype(np.int32), weight


def batch_feed(source, **options):
    return BatchFeed(open_batches(source), encode, **options)


STEP_BYTES = 8 * row_bytes(X, Y, None)


@pytest.mark.parametrize('budget', [1, 4 * STEP_BYTES, 8 * STEP_BYTES, 13 * STEP_BYTES, None])
def test_a_stream_gives_the_bits_of_data_on_the_device_in_blocks_of_any_size(budget):
    expected = run(resident(batch_size=8))
    chex.assert_trees_all_equal(run(streamed(batch_size=8, budget=budget)), expected)


OPTIONS = {
    'weights': ({'weight': WEIGHT}, {}),
    'some rows': ({'rows': np.arange(0, NUM_ROWS, 3)}, {}),
    'fewer than a batch': ({'rows': np.arange(5), 'weight': WEIGHT}, {}),
    'in order': ({'key': None}, {}),
    'limited': ({}, {'limit_steps': 3}),
    'hardly limited': ({}, {'limit_steps': 99}),
}


@pytest.mark.parametrize(
    ('data', 'options', 'accumulate_steps'),
    [
        *(pytest.param(*OPTIONS[name], 1, id=f'{name}, 1') for name in OPTIONS),
        pytest.param(*OPTIONS['weights'], 4, id='weights, 4'),
        *(
            pytest.param(*OPTIONS[name], 4, id=f'{name}, 4', marks=pytest.mark.slow)
            for name in OPTIONS
            if name not in ('weights', 'fewer than a batch')
        ),
    ],
)
def test_a_stream_gives_the_same_bits_with_every_option(data, options, accumulate_steps):
    options = {'batch_size': 8} | options
    expected = run(resident(**data, **options), accumulate_steps=accumulate_steps)
    for budget in (1, 8 * STEP_BYTES):
        feed = streamed(**data, **options, budget=budget)
        chex.assert_trees_all_equal(run(feed, accumulate_steps=accumulate_steps), expected)


@pytest.mark.parametrize('make', [
    lambda: streamed(batch_size=8, budget=8 * STEP_BYTES),
    lambda: batch_feed(batches_of(8), budget=8 * STEP_BYTES),
], ids=['rows', 'batches'])  # fmt: skip
@pytest.mark.parametrize('steps_per_dispatch', [None, 1, 3])
def test_a_stream_goes_on_from_any_step(make, steps_per_dispatch):
    expected = run(make())
    for stop in range(1, 14):
        step, state = prepare()
        chunks = train_chunks(
            step, METRICS, state, make(), epochs=2, max_steps=stop,
            steps_per_dispatch=steps_per_dispatch,
        )  # fmt: skip
        *_, last = chunks
        epoch, in_epoch, metrics, source = last.position
        if in_epoch == 0:
            assert (epoch, source) == (1, None)
        position = Position(epoch, in_epoch, metrics, source)
        *_, rest = train_chunks(step, METRICS, last.state, make(), epochs=2, start=position)
        arrays = (rest.state.params, rest.state.opt_state, rest.state.model_state)
        chex.assert_trees_all_equal(jax.device_get(arrays), expected[0])
        assert rest.epoch_metrics() == expected[2]


@pytest.mark.parametrize(
    ('weight', 'accumulate_steps'),
    [
        (False, 1),
        (True, 2),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((True, 1), (False, 2))),
    ],
)
def test_batches_are_a_data_set_in_order(weight, accumulate_steps):
    # No BatchNorm, which would see the padding of the last batch: rows of that batch for a feed of
    # batches, rows from the beginning of the epoch for resident data.
    model = mlp(4, 3)
    weights = WEIGHT if weight else None
    data = resident(weight=weights, key=None, batch_size=8 * accumulate_steps)
    expected = run(data, accumulate_steps=accumulate_steps, model=model)
    for budget in (1, 8 * STEP_BYTES, None):
        feed = batch_feed(batches_of(8, weight), accumulate_steps=accumulate_steps, budget=budget)
        got = run(feed, accumulate_steps=accumulate_steps, model=model)
        chex.assert_trees_all_close(got, expected, rtol=1e-6)


def test_a_short_batch_is_filled_up_with_its_own_rows_at_weight_0():
    sizes = [8, 3, 8, 8, 1]
    parts = np.split(np.arange(28), np.cumsum(sizes)[:-1])
    feed = batch_feed([(X[rows], Y[rows]) for rows in parts].__iter__)
    seen = []
    for block in feed.blocks(0, 0):
        for step in range(block.first, block.last):
            places = np.asarray(block.plan[step])
            counts = step * 8 + np.arange(8) < int(block.data.num_rows)
            seen.append((np.asarray(block.data.x)[places], counts))
    assert [counts.sum() for _, counts in seen] == sizes
    for (x, _), rows in zip(seen, parts, strict=True):
        np.testing.assert_array_equal(x, X[rows[np.arange(8) % len(rows)]])


@pytest.mark.parametrize(
    ('sizes', 'budget'),
    [
        ([8, 8, 8, 8, 5], 1),
        ([8, 8], None),
        *(pytest.param([8] * 5, budget, marks=pytest.mark.slow) for budget in (1, None)),
        pytest.param([8, 8, 8, 8, 5], None, marks=pytest.mark.slow),
        pytest.param([8, 8], 1, marks=pytest.mark.slow),
    ],
)
def test_parts_without_a_batch_leave_the_statistics_as_they_are(sizes, budget):
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    source = [(X[rows], Y[rows]) for rows in parts].__iter__
    ends = []
    for accumulate_steps in (1, 4):
        step, state = prepare(accumulate_steps, learning_rate=1e-30)
        feed = batch_feed(source, accumulate_steps=accumulate_steps, budget=budget)
        *_, chunk = train_chunks(step, METRICS, state, feed, epochs=1)
        ends.append(jax.device_get(chunk.state.model_state))
    chex.assert_trees_all_close(*ends, rtol=1e-6)


def test_what_accumulates_ends_with_a_short_batch():
    sizes = [4, 4, 4, 2, 4, 4, 4]
    parts = np.split(np.arange(26), np.cumsum(sizes)[:-1])
    feed = batch_feed([(X[rows], Y[rows]) for rows in parts].__iter__, accumulate_steps=3)
    blocks = list(feed.blocks(0, 0))
    assert [(block.start, int(block.data.num_rows)) for block in blocks] == [(0, 14), (2, 12)]
    assert [block.ends_epoch for block in blocks] == [False, True]


def test_blocks_stay_within_the_budget_and_hold_a_step_at_least():
    assert block_steps(100, None, 1) == 1
    assert block_steps(100, None, 800) == 2
    assert block_steps(100, 5, 10**6) == 5
    assert block_steps(100, None, None) == 64
    assert block_steps(2**25, None, 2**40) == 2
    assert row_bytes(X, Y, None) == 4 * 4 + 4 + 4
    assert row_bytes(open_rows({'a': X, 'b': X[:, 0]}), Y, WEIGHT) == 5 * 4 + 4 + 4 + 4


def bytes_held(width):
    """Counts the bytes of arrays ``[rows, width]`` on the device."""
    return sum(a.nbytes for a in jax.live_arrays() if a.ndim == 2 and a.shape[1] == width)


@pytest.mark.parametrize('kind', ['rows', 'batches'])
def test_the_device_holds_no_more_than_the_blocks_may_take(kind):
    wide = np.zeros((400, 999), np.float32)
    y = np.zeros(400, np.int32)
    budget = 12 * 8 * row_bytes(wide, y, None)  # three steps in each of four blocks
    if kind == 'rows':
        rows = open_rows(wide)
        feed = StreamedFeed(rows, y, batch_size=8, shuffle_key=KEY, budget=budget)
    else:
        parts = [(wide[first : first + 8], y[first : first + 8]) for first in range(0, 400, 8)]
        feed = batch_feed(parts.__iter__, budget=budget + 12 * 8 * 4)  # the arrays have weights
    most = 0
    functional = functionalize(mlp(999, 3), wide[:1], jax.random.key(0))
    tx = make_optimizer('sgd')
    step = make_train_step(functional.apply, get_loss('cross_entropy'), tx, METRICS)
    state = init_state(functional.params, {}, tx, jax.random.key(1), learning_rate=0.1)
    for _ in train_chunks(step, METRICS, state, feed, epochs=2):
        most = max(most, bytes_held(999))
    assert budget / 4 < most <= feed.num_bytes <= budget + 12 * 8 * 4


@pytest.mark.parametrize('ahead', [0, 1, 5])
def test_no_more_is_read_ahead_than_two_items(ahead):
    made = []
    release = threading.Event()

    def items():
        for number in range(20):
            made.append(number)
            if number == ahead + 2:
                release.set()
            yield number

    taken = prefetched(items())
    for _ in range(ahead + 1):
        last = next(taken)
    release.wait(10)  # the thread had time to run ahead
    taken.close()
    assert last == ahead and made == list(range(ahead + 3))


def threads():
    return {thread for thread in threading.enumerate() if 'prefetch' in thread.name}


def test_an_error_in_the_thread_comes_as_it_is_after_what_was_read_before():
    def items():
        yield 1
        yield 2
        raise KeyError('lost')

    got = []
    with pytest.raises(KeyError, match='lost'):
        for item in prefetched(items()):
            got.append(item)
    assert got == [1, 2] and not threads()


def test_a_source_that_says_stop_in_the_wrong_place_does_not_end_the_epoch():
    class Source:
        def __len__(self):
            return NUM_ROWS

        def __getitem__(self, index):
            if index == 40:
                raise StopIteration
            return X[index]

    feed = StreamedFeed(open_rows(Source()), Y, batch_size=8, shuffle_key=None, budget=1)
    with pytest.raises(RuntimeError, match='StopIteration'):
        list(feed.blocks(0, 0))


@pytest.mark.parametrize('how', ['closed', 'left', 'raised', 'interrupted'])
def test_an_abandoned_epoch_leaves_no_thread(how):
    before = threads()
    feed = batch_feed(batches_of(8), budget=1)
    step, state = prepare()
    chunks = train_chunks(step, METRICS, state, feed, epochs=50)
    error = {'raised': ValueError, 'interrupted': KeyboardInterrupt}.get(how)

    def use(chunks):
        for number, _ in enumerate(chunks):
            if number == 2:
                assert threads() - before
                if error is not None:
                    raise error
                return

    if error is None:
        use(chunks)
    else:
        with pytest.raises(error):
            use(chunks)
    chunks.close()
    assert threads() == before


def test_a_source_is_read_no_further_than_the_limit():
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield X[:8], Y[:8]

    feed = batch_feed(endless, limit_steps=5)
    assert feed.steps_per_epoch is None
    assert sum(block.last for block in feed.blocks(0, 0)) == 5
    assert len(read) == 5
    assert [block.ends_epoch for block in feed.blocks(1, 0)][-1]


def test_a_batch_larger_than_the_first_is_named():
    parts = [(X[:4], Y[:4]), (X[:4], Y[:4]), (X[:9], Y[:9])]
    with pytest.raises(DataError, match='X_train: got 9 examples in batch 3 after 4 in the first'):
        list(batch_feed(parts.__iter__).blocks(0, 0))


def test_a_slow_source_is_trained_on_as_it_comes(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr('thinkml.data.stream.time.perf_counter', lambda: 2.0 * next(clock))
    assert [block.last for block in batch_feed(batches_of(8)).blocks(0, 0)] == [1] * 7
    assert [block.last for block in streamed(batch_size=8).blocks(0, 0)] == [1] * 7
