import json

import grain
import numpy as np
import pytest

from tests.data.sources import (
    BATCHES,
    ROWS,
    X,
    Y,
    generate,
    grain_iterable,
    grain_loader,
    kinds,
    needs_torch,
    torch_inputs,
    torch_loader,
)
from thinkml.data import is_batches, open_batches
from thinkml.errors import DataError
from thinkml.model_record import ArraySpec, InputSpec


def joined(batches):
    batches = list(batches)
    return np.concatenate([b.x for b in batches]), np.concatenate([b.y for b in batches])


@pytest.mark.parametrize('kind', kinds(ROWS))
def test_rows_are_not_batches(kind, tmp_path):
    assert not is_batches(ROWS[kind](tmp_path))


def test_text_and_the_like_are_not_batches():
    assert not any(map(is_batches, ['ab', {'x': X}, [X, Y], (X, Y), {1, 2}, None, 3, range(3)]))


@pytest.mark.parametrize('kind', kinds(BATCHES))
def test_every_kind_gives_the_same_batches(kind):
    source = BATCHES[kind]()
    assert is_batches(source)
    batches = open_batches(source)
    assert batches.inputs == InputSpec(ArraySpec((3,), 'float32'))
    assert batches.num_batches == (5 if kind.startswith('torch') else None)
    np.testing.assert_array_equal(batches.peek().x, X[:5])  # and is yielded again:
    x, y = joined(batches.iterate())
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    if kind != 'generator':
        np.testing.assert_array_equal(joined(batches.iterate())[0], X)


@pytest.mark.parametrize('kind', kinds(BATCHES))
@pytest.mark.parametrize('done', [0, 1, 3])
def test_going_on_gives_what_would_have_come(kind, done):
    whole = open_batches(BATCHES[kind]())
    whole.peek()
    first = whole.iterate()
    for _ in range(done):
        next(first)
    position = json.loads(json.dumps(first.position()))
    expected = joined(first)
    again = open_batches(BATCHES[kind]()).iterate(position)
    assert again.position()['batches'] == done
    for got, wanted in zip(joined(again), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize('source', [grain_iterable, grain_loader])
def test_grain_goes_to_a_batch_without_reading_those_before(source):
    first = open_batches(source()).iterate()
    for _ in range(3):
        next(first)
    # Beyond the last batch: a source that is read again does not reach it, a restored state does.
    position = first.position() | {'batches': 99}
    np.testing.assert_array_equal(joined(open_batches(source()).iterate(position))[0], X[15:])


def test_a_state_that_is_refused_is_made_up_for_by_reading():
    iterator = open_batches(grain_loader()).iterate()
    next(iterator)
    position = iterator.position()
    position['state'] = {'bytes': ''}
    x, _ = joined(open_batches(grain_loader()).iterate(position))
    np.testing.assert_array_equal(x, X[5:])


def test_a_position_behind_the_end_is_refused():
    with pytest.raises(DataError, match=r'X_train: got 5 batches, but .* reached batch 9'):
        open_batches(generate).iterate({'batches': 9})


def test_a_generator_has_one_epoch():
    batches = open_batches(generate())
    list(batches.iterate())
    with pytest.raises(DataError, match=r'X_train: got an iterator, which is used up .* without'):
        batches.iterate()
    spent = generate()
    list(spent)
    with pytest.raises(DataError, match='X_train: got no batches'):
        open_batches(spent)


@needs_torch
def test_a_sampler_is_told_the_epoch():
    class Sampler:
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return len(X)

        def __iter__(self):
            return iter(np.random.default_rng(self.epoch).permutation(len(X)).tolist())

    batches = open_batches(torch_loader(sampler=Sampler()))
    orders = [joined(batches.iterate(epoch=epoch))[0] for epoch in (0, 1, 2)]
    for epoch, order in enumerate(orders):
        wanted = X[np.random.default_rng(epoch).permutation(len(X))]
        np.testing.assert_array_equal(order, wanted)
    resumed = open_batches(torch_loader(sampler=Sampler())).iterate({'batches': 2}, epoch=2)
    np.testing.assert_array_equal(joined(resumed)[0], orders[2][10:])


def test_weights_and_several_inputs():
    weight = np.linspace(0, 1, 23)
    batch = next(open_batches([(X, Y, weight)].__iter__).iterate())
    np.testing.assert_array_equal(batch.weight, weight)
    given = {'image': X, 'age': X[:, 0], 'labels': Y, 'sample_weight': weight}
    batch = next(open_batches([given].__iter__).iterate())
    assert sorted(batch.x) == ['age', 'image'] and batch.weight is not None
    batch = next(open_batches([[[X, np.ones(23)], Y]].__iter__).iterate())
    assert isinstance(batch.x, tuple) and batch.x[1].shape == (23,)
    batch = next(open_batches([{'x': X, 'kind': Y}].__iter__, label='kind').iterate())
    np.testing.assert_array_equal(batch.y, Y)


def test_labels_are_not_asked_for_where_none_are_needed():
    for given in (X, (X,), (X, Y), {'x': X, 'label': Y}):
        batch = open_batches([given].__iter__, with_labels=False).peek()
        np.testing.assert_array_equal(batch.x, X)
    batch = open_batches([{'a': X, 'b': X}].__iter__, with_labels=False).peek()
    assert sorted(batch.x) == ['a', 'b'] and batch.y is None


BROKEN = np.where(np.arange(23)[:, None] == 3, np.nan, X)


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        ([(X, Y), (BROKEN, Y)], r'X_train, batch 2: got 3 NaN .* \(3, 0\)'),
        ([(X, Y), (X[:, :2], Y)], r'X_train, batch 2: got rows of shape \(2,\), expected \(3,\)'),
        ([(X, Y[:5])], r'X_train, batch 1: got inputs of 23 rows with labels of shape \(5,\)'),
        ([(X[0], 1)], r'labels of shape \(\), expected .* Batch single examples first'),
        ([(X, Y, -np.ones(23))], 'X_train, batch 1: got -1.0 at row 0, expected weights'),
        ([X], 'X_train, batch 1: got a ndarray, expected'),
        ([(X, Y, Y, Y)], 'X_train, batch 1: got 4 parts'),
        ([{'x': X, 'kind': Y}], 'X_train, batch 1: got None, and nothing among the columns x, k'),
        ([], 'X_train: got no batches'),
    ],
)
def test_batches_that_can_not_be_used_are_named(given, says):
    with pytest.raises(DataError, match=says):
        list(open_batches(given.__iter__).iterate())


def test_a_function_must_return_an_iterator():
    with pytest.raises(DataError, match='X_train: got a function that returns int'):
        open_batches(lambda: 3)


def test_single_examples_of_a_stream_are_no_batches():
    stream = grain.MapDataset.source(list(zip(X, Y, strict=True))).to_iter_dataset()
    with pytest.raises(DataError, match=r'Batch single examples first.* or \.batch\(32\)'):
        open_batches(stream)


@needs_torch
def test_an_iterable_data_set_of_torch_can_not_be_indexed():
    import torch

    class Stream(torch.utils.data.IterableDataset):
        def __len__(self):
            return 23

        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    assert is_batches(Stream()) and not is_batches(torch_inputs())
    with pytest.raises(DataError, match='Batch single examples first'):
        open_batches(Stream())
