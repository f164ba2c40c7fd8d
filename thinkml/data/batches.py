"""Batches: sources that choose the order of their batches themselves.

Supported are loaders of torch, tf.data and Grain, generators, and any other iterable. A custom
source needs ``__iter__`` and yields ``(inputs, labels)``. Two methods are optional:

* ``__len__`` is the number of batches per epoch.
* ``get_state()`` and ``set_state(state)`` of the iterator, as in Grain, resume in the middle of an
  epoch. The state is bytes or plain JSON values. Without them, the earlier batches of the epoch
  are read again and skipped.
"""

import base64
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import jax
import numpy as np

from thinkml.data.arrays import as_array
from thinkml.data.dataframes import is_frame
from thinkml.data.map_style_datasets import (
    LABELS,
    find_label,
    is_array,
    is_items,
    is_parts,
    without,
)
from thinkml.data.rows import check_tree
from thinkml.data.sample_weights import check_sample_weight
from thinkml.data.targets import named_targets
from thinkml.errors import DataError
from thinkml.model_record import InputSpec
from thinkml.typing import Inputs, PyTree

_WEIGHT = 'sample_weight'

BatchSource: TypeAlias = Any
"""An iterable over batches, or a function that returns an iterator over them."""


class HostBatch(NamedTuple):
    """A batch on the host, with checked inputs.

    Attributes:
        x: inputs ``[batch, ...]``: an array, or a dict or tuple of them.
        y: the labels in the user's form, or a dict of them by head; None if the source has none.
        weight: float64 ``[batch]``, or a dict by head; None if the source has none.
    """

    x: PyTree
    y: PyTree
    weight: PyTree


def is_batches(X: Inputs) -> bool:
    """Returns True for a source of batches, not rows: it is iterable, but can not be indexed.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import is_batches
        >>> is_batches((x, x) for x in np.ones((3, 2, 4))), is_batches(np.ones((3, 2, 4)))
        (True, False)
    """
    if isinstance(X, Sequence | Mapping | set | frozenset) or is_array(X) or is_frame(X):
        return False
    if _is_function(X):
        return True
    return hasattr(X, '__iter__') and not hasattr(X, '__array__') and not _is_indexed(X)


def _is_indexed(X: Inputs) -> bool:
    # torch's IterableDataset inherits a __getitem__ that it does not support.
    is_stream = any(kind.__name__ == 'IterableDataset' for kind in type(X).__mro__)
    return is_items(X) and not is_stream


def open_batches(
    source: BatchSource,
    argument: str = 'X_train',
    *,
    label: str | None = None,
    with_labels: bool = True,
    like: InputSpec | None = None,
) -> 'Batches':
    """Opens a source of batches and reads the first one.

    Each batch is ``(inputs, labels)``, ``(inputs, labels, weights)``, or a dict that holds the
    labels by name (and weights as ``sample_weight``). The rest of a dict is one input if it is a
    single array, else a dict. Arrays may be of torch, JAX or NumPy.

    Args:
        source: an object that can be iterated over again for each epoch (a loader of torch or
            Grain, a `tf.data.Dataset`), a function that returns an iterator, or, for one epoch, an
            iterator.
        argument: the name used in error messages.
        label: the name of the labels in batches that are dicts. None looks for one of ``label``,
            ``labels``, ``target``, ``targets``, ``y``.
        with_labels: True if each batch must hold labels; False if it may be only inputs.
        like: the description of the inputs the model was trained on, which the batches must match;
            None uses that of the first batch. Columns of frames are put into its order.

    Raises:
        DataError: if the source gives no batches, or batches that can't be used.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import open_batches
        >>> def batches():
        ...     for first in (0, 2):
        ...         yield np.ones((2, 3)), np.arange(first, first + 2)
        >>> epoch = open_batches(batches).iterate()
        >>> next(epoch).y, epoch.position()
        (array([0, 1]), {'batches': 1})
    """
    read = functools.partial(_read_batch, label=label, with_labels=with_labels)
    batches = Batches(source, argument, read, like)
    batches.peek()
    return batches


class Batches:
    """A source of batches; made by `open_batches`.

    Attributes:
        argument: the name of the source in error messages.
    """

    def __init__(
        self,
        source: BatchSource,
        argument: str,
        read: Callable[[Any, str, InputSpec | None], tuple[HostBatch, InputSpec]],
        like: InputSpec | None,
    ):
        self._like = like
        self._inputs: InputSpec | None = None
        self._heads: frozenset[str] | None = None
        self._source = source
        self.argument = argument
        self._read = read
        self._next_iterator: BatchIterator | None = None
        self._next_epoch = 0
        self._is_used_up = False

    @property
    def inputs(self) -> InputSpec:
        """Returns the description of one row of the inputs on the device."""
        if self._inputs is None:
            self.peek()
        assert self._inputs is not None
        return self._inputs

    @property
    def num_batches(self) -> int | None:
        """Returns the number of batches per epoch; None if the source does not report it."""
        try:
            return len(self._source)
        except (TypeError, NotImplementedError):
            return None

    @property
    def has_one_epoch(self) -> bool:
        """Returns True if the source is an iterator, which can't be read again."""
        self.peek()
        return self._is_used_up

    def peek(self) -> HostBatch:
        """Returns the first batch of the next epoch, which `iterate` will yield again.

        Raises:
            DataError: if there is no batch, or it can't be used.
        """
        if self._next_iterator is None:
            self._next_iterator, self._next_epoch = self._open(0), 0
        return self._next_iterator.peek()

    def iterate(
        self, position: Mapping[str, Any] | None = None, *, epoch: int = 0
    ) -> 'BatchIterator':
        """Begins an epoch, or resumes within one.

        The resumed batches are those of an uninterrupted epoch only if the source gives the same
        order again, for instance by a seed.

        Args:
            position: the result of `BatchIterator.position`; None for the beginning.
            epoch: the number of the epoch. It is passed to the method ``set_epoch`` of the source
                or of its ``sampler``, if there is one (torch and Hugging Face have it).

        Raises:
            DataError: for the second epoch of an iterator, which has only one.
        """
        iterator, self._next_iterator = self._next_iterator, None
        is_other = epoch != self._next_epoch and _set_epoch(self._source) is not None
        if iterator is None or is_other:
            iterator = self._open(epoch)
        if position is not None:
            iterator.go_to(position)
        return iterator

    def _open(self, epoch: int) -> 'BatchIterator':
        if self._is_used_up:
            raise DataError(
                f'{self.argument}: got an iterator, which is used up after one epoch. Pass the '
                'function that makes it, without calling it, or an object with __iter__.'
            )
        set_epoch = _set_epoch(self._source)
        if set_epoch is not None:
            set_epoch(epoch)
        iterator = _iterator(self._source, self.argument)
        self._is_used_up = iterator is self._source
        return BatchIterator(iterator, self._check_batch, self.argument)

    def _check_batch(self, raw: Any, number: int) -> HostBatch:
        batch, inputs = self._read(raw, f'{self.argument}, batch {number}', self._like)
        if self._inputs is None:
            # Later batches must match the first one; only the range of its values is checked.
            self._inputs, self._like = inputs, inputs.without_ranges()
            self._heads = _heads_of(batch)
        if _heads_of(batch) != self._heads:
            got, expected = map(_heads_in_words, (_heads_of(batch), self._heads))
            raise DataError(
                f'{self.argument}, batch {number}: got {got}, expected {expected} as in batch 1. '
                'Give rows without a target any of the labels and weight 0, or the label -100.'
            )
        return batch


class BatchIterator:
    """An iterator over one epoch of batches, which reports its position.

    Attributes:
        argument: the name of the source in error messages.
    """

    def __init__(
        self, iterator: Iterator[Any], check_batch: Callable[[Any, int], HostBatch], argument: str
    ):
        self._iterator = iterator
        self._check_batch = check_batch
        self.argument = argument
        self._count = 0
        self._ahead: HostBatch | None = None
        self._state_before_ahead: dict[str, Any] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> HostBatch:
        batch, self._ahead = self._ahead, None
        if batch is None:
            batch = self._check_batch(next(self._iterator), self._count + 1)
        self._count += 1
        return batch

    def peek(self) -> HostBatch:
        """Returns the next batch without advancing.

        Raises:
            DataError: if there is no batch, or it can't be used.
        """
        if self._ahead is None:
            self._state_before_ahead = _state_of(self._iterator)
            try:
                raw = next(self._iterator)
            except StopIteration:
                raise DataError(
                    f'{self.argument}: got no batches, expected at least one. An iterator that '
                    'was used before is empty: pass the function that makes it.'
                ) from None
            self._ahead = self._check_batch(raw, self._count + 1)
        return self._ahead

    def position(self) -> dict[str, Any]:
        """Returns the position after the last yielded batch, as JSON values."""
        is_ahead = self._ahead is not None
        state = self._state_before_ahead if is_ahead else _state_of(self._iterator)
        return {'batches': self._count} | ({} if state is None else {'state': state})

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Resumes after the batch that was the last one when `position` was called.

        Raises:
            DataError: if the epoch ends before that position.
        """
        if position['batches'] == self._count:
            return
        if not _set_state(self._iterator, position.get('state')):
            self._skip(position['batches'])
        self._count, self._ahead = position['batches'], None

    def _skip(self, count: int) -> None:
        first = self._count + (self._ahead is not None)
        for number in range(first, count):
            try:
                next(self._iterator)
            except StopIteration:
                raise DataError(
                    f'{self.argument}: got {number} batches, but the run to resume had reached '
                    f'batch {count}. Pass the data it was trained on.'
                ) from None


def _iterator(source: BatchSource, argument: str) -> Iterator[Any]:
    if _is_function(source):
        source = source()
    if hasattr(source, 'as_numpy_iterator'):  # tf.data
        return source.as_numpy_iterator()
    try:
        return iter(source)
    except TypeError as error:
        raise DataError(
            f'{argument}: got a function that returns {type(source).__name__}, expected one that '
            'returns an iterator over batches (inputs, labels).'
        ) from error


def _set_epoch(source: BatchSource) -> Callable[[int], object] | None:
    for part in (source, getattr(source, 'sampler', None)):
        set_epoch = getattr(part, 'set_epoch', None)
        if set_epoch is not None:
            return set_epoch
    return None


def _is_function(source: BatchSource) -> bool:
    return inspect.isroutine(source) or isinstance(source, functools.partial)


def _state_of(iterator: Any) -> dict[str, Any] | None:
    """Returns the state of an iterator as JSON; None if it has none that JSON can hold."""
    if not (hasattr(iterator, 'get_state') and hasattr(iterator, 'set_state')):
        return None
    state = iterator.get_state()
    if isinstance(state, bytes):
        return {'bytes': base64.b64encode(state).decode()}
    try:
        return {'json': state} if json.loads(json.dumps(state)) == state else None
    except (TypeError, ValueError):
        return None


def _set_state(iterator: Any, state: Mapping[str, Any] | None) -> bool:
    """Sets a state from `_state_of`; returns True if the iterator accepted it."""
    if state is None or not hasattr(iterator, 'set_state'):
        return False
    is_bytes = 'bytes' in state
    try:
        iterator.set_state(base64.b64decode(state['bytes']) if is_bytes else state['json'])
    except ValueError:  # Grain compares the repr of the source, which may hold its address
        return False
    return True


def _read_batch(
    raw: Any, argument: str, like: InputSpec | None, *, label: str | None, with_labels: bool
) -> tuple[HostBatch, InputSpec]:
    x, y, weight = _parts(raw, argument, label, with_labels)
    x, inputs = check_tree(_inputs(x), argument, like, is_first=True)
    num_rows = len(jax.tree.leaves(x)[0])
    y, heads = y if with_labels else None, None
    if y is not None:
        heads = named_targets(y, num_rows)
        y = y if heads is not None else _labels(y, num_rows, argument)
    if heads is not None:
        y = {name: _labels(part, num_rows, f'{argument}[{name!r}]') for name, part in heads.items()}
    if weight is not None:
        weight = _all_weights(weight, y, num_rows, argument)
    # Copies: a source may write to the same arrays again before these are on the device.
    x, y = jax.tree.map(np.array, (x, y))
    return HostBatch(x, y, weight), inputs


def _heads_of(batch: HostBatch) -> frozenset[str] | None:
    return frozenset(batch.y) if isinstance(batch.y, dict) else None


def _heads_in_words(heads: frozenset[str] | None) -> str:
    return 'one array' if heads is None else f'targets of {", ".join(map(repr, sorted(heads)))}'


def _labels(y: Any, num_rows: int, argument: str) -> np.ndarray:
    y = as_array(y, argument)
    if y.ndim == 0 or len(y) != num_rows:
        raise DataError(
            f'{argument}: got inputs of {num_rows} rows with labels of shape {y.shape}, '
            'expected one label per row. Batch single examples first: '
            'torch.utils.data.DataLoader(dataset, batch_size=32), or .batch(32).'
        )
    return y


def _all_weights(weight: Any, y: PyTree, num_rows: int, argument: str) -> PyTree:
    """Returns the weights of rows or elements, or a dict of them by head."""
    by_head = named_targets(weight, num_rows) if isinstance(y, dict) else None
    if by_head is None:
        return _weights(weight, None if isinstance(y, dict) else y, num_rows, argument)
    if unknown := by_head.keys() - y.keys():
        raise DataError(
            f'{argument}: got weights of {", ".join(map(repr, sorted(unknown)))}, expected those '
            f'of {", ".join(map(repr, y))}.'
        )
    return {
        name: _weights(part, y[name], num_rows, f'{argument}[{name!r}]')
        for name, part in by_head.items()
    }


def _weights(weight: Any, y: np.ndarray | None, num_rows: int, argument: str) -> np.ndarray:
    elements = () if y is None else y.shape[1 : np.ndim(weight)]
    return check_sample_weight(weight, (num_rows, *elements), argument)


def _parts(raw: Any, argument: str, label: str | None, with_labels: bool) -> tuple[Any, Any, Any]:
    """Returns the inputs, labels and weights of a batch."""
    if isinstance(raw, Mapping):
        weight = raw.get(_WEIGHT)
        rest = {name: part for name, part in raw.items() if name != _WEIGHT}
        if label is None and not with_labels and not any(name in rest for name in LABELS):
            return rest, None, weight
        name = find_label(list(rest), label, argument)
        return without(rest, name), rest[name], weight
    if is_parts(raw) and len(raw) in (2, 3):
        return raw[0], raw[1], raw[2] if len(raw) == 3 else None
    if not with_labels:
        return raw[0] if is_parts(raw) and len(raw) == 1 else raw, None, None
    got = f'{len(raw)} parts' if is_parts(raw) else f'a {type(raw).__name__}'
    raise DataError(
        f'{argument}: got {got}, expected (inputs, labels), (inputs, labels, weights) or a dict '
        'with the labels.'
    )


def _inputs(x: PyTree) -> PyTree:
    """Returns several inputs as a tuple: a loader may have made a list of them."""
    return tuple(map(_inputs, x)) if is_parts(x) else x
