"""Batches from sources that decide themselves what comes when.

Loaders of torch, tf.data and Grain, generators, and whatever else can be iterated over. A source
of your own needs ``__iter__`` and to yield ``(inputs, labels)``. Two things are used where they
are there: ``__len__``, the number of batches of an epoch, and on its iterator Grain's pair
``get_state()`` and ``set_state(state)`` (bytes, or plain JSON values), to go on in the middle of
an epoch; else the batches up to there are read again and passed over.
"""

import base64
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from thinkml.data.arrays import as_array
from thinkml.data.dataframes import is_frame
from thinkml.data.example_datasets import LABELS, find_label, is_array, is_items, is_parts, without
from thinkml.data.rows import check_tree
from thinkml.data.sample_weights import check_sample_weight
from thinkml.data.targets import refuse_parts
from thinkml.errors import DataError
from thinkml.model_record import InputSpec

_WEIGHT = 'sample_weight'


class HostBatch(NamedTuple):
    """A batch as it comes, inputs checked.

    Attributes:
        x: inputs ``[batch, ...]``: an array, or a dict or tuple of them.
        y: the labels as the user writes them; None where the source has none.
        weight: float64 ``[batch]``; None where the source has none.
    """

    x: Any
    y: np.ndarray | None
    weight: np.ndarray | None


def is_batches(X: Any) -> bool:
    """Whether it is a source of batches, not of rows: it can be iterated over, but not indexed.

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


def _is_indexed(X: Any) -> bool:
    # torch's IterableDataset inherits an index that it does not support.
    is_stream = any(kind.__name__ == 'IterableDataset' for kind in type(X).__mro__)
    return is_items(X) and not is_stream


def open_batches(
    source: Any,
    argument: str = 'X_train',
    *,
    label: str | None = None,
    with_labels: bool = True,
    like: InputSpec | None = None,
) -> 'Batches':
    """Opens a source of batches and reads the first one.

    Each batch is ``(inputs, labels)``, ``(inputs, labels, weights)``, or a dict that holds the
    labels by name (and weights as ``sample_weight``); what is left of it is one input if it is one
    array, else a dict. Arrays of torch, JAX and NumPy.

    Args:
        source: an object that can be iterated over again for each epoch (a loader of torch or
            Grain, a `tf.data.Dataset`), a function that returns an iterator, or, for one epoch, an
            iterator.
        argument: the name used in error messages.
        label: the name of the labels in batches that are dicts. None looks for one of ``label``,
            ``labels``, ``target``, ``targets``, ``y``.
        with_labels: whether each batch must hold labels; else it may be the inputs alone.
        like: what the inputs must be like, of those the model is trained on; None takes those of
            the first batch. Columns of frames are put into that order.

    Raises:
        DataError: if it gives no batches, or none that can be used.

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
        source: Any,
        argument: str,
        read: Callable[[Any, str, InputSpec | None], tuple[HostBatch, InputSpec]],
        like: InputSpec | None,
    ):
        self._like = like
        self._inputs: InputSpec | None = None
        self._source = source
        self.argument = argument
        self._read = read
        self._waiting: BatchIterator | None = None
        self._waiting_epoch = 0
        self._is_used_up = False

    @property
    def inputs(self) -> InputSpec:
        """What a row of the inputs looks like on the device."""
        if self._inputs is None:
            self.peek()
        assert self._inputs is not None
        return self._inputs

    @property
    def num_batches(self) -> int | None:
        """Batches of an epoch; None where only its end tells."""
        try:
            return len(self._source)
        except (TypeError, NotImplementedError):
            return None

    @property
    def has_one_epoch(self) -> bool:
        """Whether the source is an iterator, which can't begin again."""
        self.peek()
        return self._is_used_up

    def peek(self) -> HostBatch:
        """The first batch of the epoch that is next; it is not lost to it.

        Raises:
            DataError: if there is none, or it can't be used.
        """
        if self._waiting is None:
            self._waiting, self._waiting_epoch = self._open(0), 0
        return self._waiting.peek()

    def iterate(
        self, position: Mapping[str, Any] | None = None, *, epoch: int = 0
    ) -> 'BatchIterator':
        """Begins an epoch, or goes on within one.

        That the batches are those that would have come without an interruption is up to the
        source: it must give the same order again, by a seed for instance.

        Args:
            position: from `BatchIterator.position`; None for the beginning.
            epoch: its number, for sources that ask for it: those with a method ``set_epoch``, or
                whose ``sampler`` has one, as torch's and Hugging Face's do.

        Raises:
            DataError: for the second epoch of an iterator, which has only one.
        """
        iterator, self._waiting = self._waiting, None
        is_other = epoch != self._waiting_epoch and _set_epoch(self._source) is not None
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
        return BatchIterator(iterator, self._checked, self.argument)

    def _checked(self, raw: Any, number: int) -> HostBatch:
        batch, inputs = self._read(raw, f'{self.argument}, batch {number}', self._like)
        if self._inputs is None:
            # All are like the first one; its values told whether they have the right range.
            self._inputs, self._like = inputs, inputs.without_ranges()
        return batch


class BatchIterator:
    """One epoch of batches, which knows how far it got.

    Attributes:
        argument: the name of the source in error messages.
    """

    def __init__(
        self, iterator: Iterator[Any], checked: Callable[[Any, int], HostBatch], argument: str
    ):
        self._iterator = iterator
        self._checked = checked
        self.argument = argument
        self._count = 0
        self._ahead: HostBatch | None = None
        self._state_before_ahead: Any = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> HostBatch:
        batch, self._ahead = self._ahead, None
        if batch is None:
            batch = self._checked(next(self._iterator), self._count + 1)
        self._count += 1
        return batch

    def peek(self) -> HostBatch:
        """The next batch, which will come once more.

        Raises:
            DataError: if there is none, or it can't be used.
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
            self._ahead = self._checked(raw, self._count + 1)
        return self._ahead

    def position(self) -> dict[str, Any]:
        """How far it got, as JSON values: after the batch that came last."""
        is_ahead = self._ahead is not None
        state = self._state_before_ahead if is_ahead else _state_of(self._iterator)
        return {'batches': self._count} | ({} if state is None else {'state': state})

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Goes on after the batch that came last when ``position`` was asked for.

        Raises:
            DataError: if the epoch ends before it.
        """
        if position['batches'] == self._count:
            return
        if not _set_state(self._iterator, position.get('state')):
            self._pass_over(position['batches'])
        self._count, self._ahead = position['batches'], None

    def _pass_over(self, count: int) -> None:
        first = self._count + (self._ahead is not None)
        for number in range(first, count):
            try:
                next(self._iterator)
            except StopIteration:
                raise DataError(
                    f'{self.argument}: got {number} batches, but the run to go on with had got '
                    f'to batch {count}. Pass the data it was trained on.'
                ) from None


def _iterator(source: Any, argument: str) -> Iterator[Any]:
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


def _set_epoch(source: Any) -> Callable[[int], Any] | None:
    for part in (source, getattr(source, 'sampler', None)):
        set_epoch = getattr(part, 'set_epoch', None)
        if set_epoch is not None:
            return set_epoch
    return None


def _is_function(source: Any) -> bool:
    return inspect.isroutine(source) or isinstance(source, functools.partial)


def _state_of(iterator: Any) -> Any:
    """The iterator's own state as JSON; None where it has none, or none that JSON can hold."""
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
    """Whether the iterator took a state from `_state_of`."""
    if state is None or not hasattr(iterator, 'set_state'):
        return False
    is_bytes = 'bytes' in state
    try:
        iterator.set_state(base64.b64decode(state['bytes']) if is_bytes else state['json'])
    except ValueError:  # Grain compares how the source describes itself, by its address for one
        return False
    return True


def _read_batch(
    raw: Any, argument: str, like: InputSpec | None, *, label: str | None, with_labels: bool
) -> tuple[HostBatch, InputSpec]:
    x, y, weight = _parts(raw, argument, label, with_labels)
    x, inputs = check_tree(_inputs(x), argument, like, is_first=True)
    num_rows = len(jax.tree.leaves(x)[0])
    if y is not None:
        refuse_parts(y, argument)
        y = as_array(y, argument)
        if y.ndim == 0 or len(y) != num_rows:
            raise DataError(
                f'{argument}: got inputs of {num_rows} rows with labels of shape {y.shape}, '
                'expected one label per row. Of single examples make batches first: '
                'torch.utils.data.DataLoader(dataset, batch_size=32), or .batch(32).'
            )
    if weight is not None:
        weight = check_sample_weight(weight, num_rows, argument)
    # Copies: a source may fill the same arrays again while these wait for the device.
    x, y = jax.tree.map(np.array, (x, y))
    return HostBatch(x, y, weight), inputs


def _parts(raw: Any, argument: str, label: str | None, with_labels: bool) -> tuple[Any, Any, Any]:
    """Inputs, labels and weights of a batch."""
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


def _inputs(x: Any) -> Any:
    """Several inputs as a tuple, where a loader has made a list of them."""
    return tuple(map(_inputs, x)) if is_parts(x) else x
