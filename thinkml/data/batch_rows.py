"""Row access to a source of batches, which is read again from the beginning to go back."""

import jax
import numpy as np

from thinkml.data.batches import Batches, BatchIterator
from thinkml.data.input_arrays import Selection, indices_of
from thinkml.data.rows import Rows
from thinkml.errors import DataError
from thinkml.typing import PyTree


def rows_of_batches(batches: Batches) -> Rows:
    """Returns the rows of a source of batches, for reading them mostly in order.

    The source is read once to count its rows. Reading forward costs only the batches that hold the
    rows; reading an earlier row starts a new pass over the source. One batch is kept in memory.

    Args:
        batches: a source that gives the same rows each time.

    Raises:
        DataError: if the source can be read only once.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import open_batches, rows_of_batches
        >>> def batches():
        ...     yield from np.arange(12.0).reshape(3, 2, 2)
        >>> rows = rows_of_batches(open_batches(batches, with_labels=False))
        >>> len(rows), rows.take(np.array([5, 0]))
        (6, array([[10., 11.],
               [ 0.,  1.]], dtype=float32))
    """
    if batches.has_one_epoch:
        raise DataError(
            f'{batches.argument}: got an iterator, which can be read only once, expected one that '
            'can be read again: pass the function that makes it, without calling it.'
        )
    inputs = batches.inputs
    count = sum(_num_rows(batch.x) for batch in batches.iterate())
    reader = _Reader(batches)

    def read(selection: Selection) -> PyTree:
        return reader.take(indices_of(selection, count))

    return Rows(num_rows=count, inputs=inputs, in_memory=False, _read=read)


class _Reader:
    """A reader of rows that keeps its position in the source and the last batch."""

    def __init__(self, batches: Batches):
        self._batches = batches
        self._epoch: BatchIterator | None = None
        self._x: PyTree = None
        self._first = self._stop = 0  # the rows of the batch that was read last

    def take(self, rows: np.ndarray) -> PyTree:
        """Returns rows in the given order; they are read in the order of the source."""
        order = np.argsort(rows, kind='stable')
        parts, ordered, done = [], rows[order], 0
        if ordered[0] < self._first or self._epoch is None:
            self._epoch, self._first, self._stop = self._batches.iterate(), 0, 0
        while done < len(ordered):
            if ordered[done] >= self._stop:
                self._read_next()
                continue
            until = int(np.searchsorted(ordered, self._stop))
            within = ordered[done:until] - self._first
            parts.append(jax.tree.map(lambda leaf, rows=within: leaf[rows], self._x))
            done = until
        gathered = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return jax.tree.map(lambda leaf: leaf[np.argsort(order)], gathered)

    def _read_next(self) -> None:
        assert self._epoch is not None
        batch = next(self._epoch, None)
        if batch is None:
            self._epoch = None
            raise DataError(
                f'{self._batches.argument}: it ended after {self._stop:,} rows, but had more the '
                'first time. Pass a source that gives the same rows each time.'
            )
        self._x = batch.x
        self._first, self._stop = self._stop, self._stop + _num_rows(batch.x)


def _num_rows(x: PyTree) -> int:
    return len(jax.tree.leaves(x)[0])
