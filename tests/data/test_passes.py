"""Rows of batch sources, which are read in order."""

import numpy as np
import pytest

from thinkml.data import open_batches, rows_of_batches
from thinkml.errors import DataError

X = np.arange(46, dtype=np.float32).reshape(23, 2)


class Source:
    """Batches of several lengths, which count how often they are read from the beginning."""

    def __init__(self, parts=5):
        self.parts, self.passes = np.array_split(X, parts), 0

    def __iter__(self):
        self.passes += 1
        return iter(self.parts)


def test_rows_come_in_any_order_and_more_than_once():
    rows = rows_of_batches(open_batches(Source(), with_labels=False))
    assert len(rows) == 23 and rows.spec.shape == (23, 2)
    rng = np.random.default_rng(0)
    for size in (1, 5, 23, 60):
        chosen = rng.integers(0, 23, size)
        np.testing.assert_array_equal(rows.take(chosen), X[chosen])
    np.testing.assert_array_equal(rows.all(), X)


def test_in_order_they_take_one_pass():
    source = Source()
    rows = rows_of_batches(open_batches(source, with_labels=False))
    before = source.passes
    for first in range(0, 23, 4):
        np.testing.assert_array_equal(
            rows.take(np.arange(first, min(first + 4, 23))), X[first : first + 4]
        )
    assert source.passes == before + 1


def test_several_inputs():
    batches = [({'a': part, 'b': part[:, 0]}) for part in np.array_split(X, 3)]
    rows = rows_of_batches(open_batches(lambda: iter(batches), with_labels=False))
    found = rows.take(np.array([20, 2]))
    np.testing.assert_array_equal(found['a'], X[[20, 2]])
    np.testing.assert_array_equal(found['b'], X[[20, 2], 0])


def test_an_iterator_and_a_source_that_shrinks_are_told():
    with pytest.raises(DataError, match='X_unlabeled: got an iterator'):
        rows_of_batches(open_batches(iter([X]), 'X_unlabeled', with_labels=False))
    source = Source()
    rows = rows_of_batches(open_batches(source, 'X_unlabeled', with_labels=False))
    source.parts = source.parts[:-1]
    with pytest.raises(DataError, match=r'it ended after .* rows, but had more the first time'):
        rows.take(np.array([0, 22]))
