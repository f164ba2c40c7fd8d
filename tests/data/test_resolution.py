"""Numbers that are too close for the device's dtype are rejected, never rounded silently."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from thinkml.data import check_inputs, check_targets_held, open_batches, open_dataset, open_rows
from thinkml.errors import DataError, ThinkMLWarning
from thinkml.model_record import ArraySpec, InputSpec
from thinkml.tasks import Task

RNG = np.random.default_rng(0)
# Times one second apart, which float32 rounds to 128 seconds.
TIMES = 1.7e9 + np.arange(50.0)
NOISE = RNG.normal(size=50)
IDS = np.append(np.arange(0, 2**24, 2**18), [2**24, 2**24 + 1])


class Examples:
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return np.array([TIMES[index], 1.0]), 0


def stored(path):
    np.save(path / 'x.npy', np.stack([NOISE, TIMES], axis=1))
    return np.load(path / 'x.npy', mmap_mode='r')


@pytest.mark.parametrize(
    ('read', 'says'),
    [
        (
            lambda _: open_rows(np.stack([NOISE, TIMES], axis=1)),
            'X_train: got column 1 with values',
        ),
        (lambda _: open_rows(TIMES.astype(int)[:, None]), 'X_train: got values from 1700000000'),
        (
            lambda _: open_rows(pd.DataFrame({'noise': NOISE, 'time': TIMES.astype(int)})),
            "X_train: got the column 'time'",
        ),
        (lambda _: open_rows({'time': TIMES}), r"X_train\['time'\]: got values"),
        (lambda _: open_rows(np.where(np.arange(50) % 9, TIMES, 0)), 'X_train: got values from 0'),
        (lambda _: open_rows(1 + 1e-9 * NOISE), 'X_train: got values from'),
        (lambda _: open_rows(IDS[-2:, None] * 1.0), 'X_train: got values from 16777216'),
        (lambda path: open_rows(stored(path)).all(), 'X_train: got column 1'),
        (lambda _: open_rows(scipy.sparse.csr_matrix(TIMES[:, None])).all(), 'X_train: got values'),
        (lambda _: open_dataset(Examples())[0].take(np.arange(9)), 'X_train: got column 0'),
        (
            lambda _: open_batches(lambda: iter([(1.7e9 + NOISE, NOISE)])),
            'X_train, batch 1: got values',
        ),
        # Evenly spaced, these are seconds that float32 represents.
        (lambda _: open_rows(1.7e9 + np.arange(2048.0)), 'X_train: got values from'),
    ],
)
def test_columns_that_would_become_constant_are_refused(read, says, tmp_path):
    with pytest.raises(DataError, match=says + r'.*the precision of float32.* Subtract their mean'):
        read(tmp_path)


def test_columns_that_rise_in_a_first_batch_are_warned_of():
    # Later batches may differ more: they may span a year, in the order of time.
    says = 'X_train, batch 1: got values .*the precision of float32.* Subtract .* Later batch'
    with pytest.warns(ThinkMLWarning, match=says):
        open_batches(lambda: iter([(TIMES[:32] + 0.5, NOISE[:32])]))


@pytest.mark.parametrize('values', [1e-50 * NOISE, 1e-40 * NOISE])
def test_columns_that_would_become_0_are_refused(values):
    with pytest.raises(DataError, match=r'X_train: got values .* float32 rounds to 0. Scale them'):
        open_rows(values)
    with pytest.raises(DataError, match=r'y_train: got values .* float32 rounds to 0. Scale them'):
        check_targets_held(values, Task('regression', None, 1))


def test_ids_of_later_batches_are_warned_of_in_the_same_words(recwarn):
    frames = [pd.DataFrame({'id': IDS[-4:], 'amount': 0.5}) for _ in range(3)]
    batches = open_batches(lambda: iter([(frame, NOISE[:4]) for frame in frames]))
    with pytest.warns(ThinkMLWarning) as warned:
        list(batches.iterate())
    assert len({str(one.message) for one in [*recwarn, *warned]}) == 1


@pytest.mark.parametrize(
    'values',
    [
        TIMES - TIMES[0],
        1e-30 * NOISE,
        1.7e9 + 3e7 * NOISE,  # a year, for which seconds do not matter
        np.full(50, 0.1),
        0.1 + 1e-17 * NOISE,  # noise of float64
        np.where(np.arange(50) % 9, 0.1, 5.0) + 1e-17 * NOISE,
        np.exp(9 * NOISE),
        np.where(np.arange(50) < 40, 0.0, 1.7e9),
        np.arange(50) + 0.1,
        TIMES[:1],
    ],
)
def test_other_columns_are_taken(values):
    np.testing.assert_array_equal(check_inputs(values), values.astype(np.float32))


def test_a_request_to_a_trained_model_may_be_of_rows_that_are_nearly_the_same():
    like = InputSpec(ArraySpec((), 'float32'))
    assert check_inputs(TIMES + 0.5, 'X_test', like).shape == (50,)


def test_ids_that_become_equal_are_warned_of():
    frame = pd.DataFrame({'id': IDS, 'amount': np.linspace(0, 1, len(IDS))})
    with pytest.warns(
        ThinkMLWarning, match="X_train: got the column 'id' with whole .* 16,777,216"
    ):
        open_rows(frame)
    with pytest.warns(ThinkMLWarning, match='X_test: got whole numbers beyond 16,777,216'):
        check_inputs(IDS, 'X_test', InputSpec(ArraySpec((), 'float32')))
    open_rows(frame[['id']])  # ids stay integers
    open_rows(frame[frame['id'] <= 2**24])


@pytest.mark.parametrize('values', [np.full((3, 2), 1e5, np.float32), np.full((3, 2), 100_000)])
def test_numbers_beyond_float16_are_refused_by_a_model_trained_on_it(values):
    like = InputSpec(ArraySpec((2,), 'float16'))
    with pytest.raises(
        DataError, match=r'X_test: got a value of magnitude 1e\+05, more than float16'
    ):
        check_inputs(values, 'X_test', like)
    assert check_inputs(values / 100, 'X_test', like).dtype == np.float16


@pytest.mark.parametrize('targets', [
    1.7e9 + NOISE, (1.7e9 + np.arange(50)).astype(int), np.stack([NOISE, 1e7 + NOISE], axis=1),
])  # fmt: skip
def test_targets_that_float32_does_not_tell_apart_are_refused(targets):
    task = Task('regression', None, targets.reshape(50, -1).shape[1], targets.shape[1:])
    with pytest.raises(
        DataError, match=r'y_train: got .*the precision of float32.* Subtract their mean'
    ):
        check_targets_held(targets, task)
    check_targets_held(targets - targets.mean(axis=0), task)
    check_targets_held(1e5 + NOISE, Task('regression', None, 1))
    check_targets_held(targets[:1].repeat(50, axis=0), task)
