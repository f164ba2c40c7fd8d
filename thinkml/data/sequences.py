"""Sequences: rows of different lengths, padded to one length."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thinkml.core.model.adapters import input_names
from thinkml.core.model.frame_masks import WithFrameMask
from thinkml.data.dataframes import is_named_row
from thinkml.data.map_style_datasets import is_array
from thinkml.errors import DataError, warn_user
from thinkml.model_record import ArraySpec, InputSpec
from thinkml.tasks import IGNORE_LABEL, AnyTask, blanks_of
from thinkml.typing import Inputs, Labels, Model

MASK_NAMES = ('mask', 'attention_mask', 'padding_mask')
"""The parameters of a model that receive True for each position of a row, False for padding."""

_MOST_BUCKETS, _MULTIPLE = 4, 8


class PaddedData(NamedTuple):
    """Inputs and targets of one length.

    Attributes:
        X: the inputs: an array ``[rows, length, ...]``, or a dict of it and a mask.
        y: the targets; those of positions are padded with the label that is ignored.
        lengths: the length of each row; None if all rows had one length.
    """

    X: Inputs
    y: Labels
    lengths: np.ndarray | None = None


def is_ragged(values: Any) -> bool:
    """Returns True for a list or column of sequences whose lengths differ.

    Example:
        >>> from thinkml.data.sequences import is_ragged
        >>> is_ragged([[1, 2], [3]]), is_ragged([[1, 2], [3, 4]]), is_ragged(['ab', 'c'])
        (True, False, False)
    """
    rows = _rows_of(values)
    return _are_of_one_kind(rows) and len(set(map(len, rows or ()))) > 1


def _are_of_one_kind(rows: Sequence[Any] | None) -> bool:
    """Returns True for sequences, of numbers or of arrays of one shape."""
    if not rows or not all(isinstance(row, list) or is_array(row) for row in rows):
        return False
    if any(map(is_named_row, rows)):  # rows of a frame
        return False
    return len({() if isinstance(row, list) else np.shape(row)[1:] for row in rows}) == 1


def _rows_of(values: Any) -> Sequence[Any] | None:
    """Returns the rows of a list or of a column of lists; None for anything else."""
    if isinstance(values, list):
        return values
    if isinstance(values, tuple):
        return None if all(map(is_array, values)) else list(values)
    if isinstance(values, np.ndarray):
        return list(values) if values.dtype == object and values.ndim == 1 else None
    kind = str(getattr(values, 'type', getattr(values, 'dtype', '')))
    if type(values).__name__ == 'Column' and hasattr(values, '__getitem__'):  # of Hugging Face
        return _rows_of(list(values[:]))
    for name in ('to_pylist', 'to_list'):  # of Arrow, pandas and polars
        if hasattr(values, name) and ('list' in kind.lower() or kind == 'object'):
            return getattr(values, name)()
    return None


def pad_sequences(
    model: Model,
    X: Inputs,
    y: Labels,
    *,
    argument: str = 'X_train',
    label_argument: str = 'y_train',
    max_length: int | None = None,
    like: InputSpec | None = None,
    ignore_label: int | None = None,
) -> PaddedData:
    """Pads rows of different lengths to one length, with zeros.

    If the model's ``__call__`` has a parameter ``mask`` (or ``attention_mask``), the inputs are a
    dict of the sequences, by the name of the first parameter, and of the mask.

    Args:
        model: the model that takes the inputs.
        X: the inputs. Data that is not ragged is returned as it is, and so are rows of floats for a
            model without a mask.
        y: the targets: one for each row, or for each position of a row.
        argument: the name of ``X`` used in error messages.
        label_argument: the name of ``y`` used in error messages.
        max_length: the length that longer rows are cut to; None for that of the longest row.
        like: the description of the inputs that the model was trained on, whose length is used.
        ignore_label: the label of padded positions; None for -100.

    Raises:
        DataError: for rows that are not sequences of numbers, or targets of other lengths.
    """
    names = _names_of_inputs(model)
    if not (is_ragged(X) or (names.mask is not None and _are_flat_sequences(X))):
        return PaddedData(X, y)
    rows = [_as_row(row, f'{argument}, row {index}') for index, row in enumerate(_rows_of(X) or [])]
    lengths = np.array(list(map(len, rows)))
    if names.mask is None and any(row.dtype.kind == 'f' and row.ndim == 1 for row in rows):
        return PaddedData(X, y)  # more likely a table with a mistake, which others report
    if not lengths.all():
        raise DataError(
            f'{argument}: got no positions in row {lengths.argmin()}, expected at least one. Leave '
            'empty rows out.'
        )
    known = _known_length(like)
    length = known or min(max_length or lengths.max(), int(lengths.max()))
    too_long = int((lengths > length).sum())
    if too_long:
        warn_user(
            f'{argument}: got {too_long:,} rows of more than {length} positions, up to '
            f'{lengths.max():,}. They are cut to {length}'
            + ('.' if known is None else ', the length that the model was trained on.')
        )
    if is_ragged(y) or (y is not None and _are_sequences(y, lengths)):
        y = _pad_labels(y, lengths, length, label_argument, ignore_label)
    array = _padded(rows, length, 0)
    lengths = np.minimum(lengths, length)
    if names.mask is None or names.tokens is None:
        return PaddedData(array, y, lengths)
    is_real = np.arange(length) < lengths[:, None]
    return PaddedData({names.tokens: array, names.mask: is_real}, y, lengths)


class _Names(NamedTuple):
    """The parameters of a model that receive the sequences and their mask; None without a mask."""

    tokens: str | None = None
    mask: str | None = None


def _names_of_inputs(model: Model) -> _Names:
    names = input_names(model)
    if names is None:
        return _Names()
    mask = next((name for name in MASK_NAMES if name in names.names), None)
    tokens = next((name for name in names.names if name not in MASK_NAMES), None)
    return _Names(tokens, mask) if mask and set(names.required) <= {tokens, mask} else _Names()


def _are_flat_sequences(values: Any) -> bool:
    """Returns True for a list or column of sequences of numbers, whose lengths may be equal."""
    rows = _rows_of(values)
    return bool(rows) and _are_of_one_kind(rows) and np.ndim(rows[0]) == 1


def _as_row(row: Any, argument: str, advice: str = 'Encode text as token ids first.') -> np.ndarray:
    try:
        array = np.asarray(row)
    except ValueError as error:
        raise DataError(f'{argument}: got a row that is not an array ({error}).') from error
    if array.ndim == 0 or array.dtype.kind not in 'biuf':
        raise DataError(
            f'{argument}: got {array.dtype} of shape {array.shape}, expected a sequence of '
            f'numbers. {advice}'
        )
    return array


def _known_length(like: InputSpec | None) -> int | None:
    if like is None:
        return None
    parts = like.arrays.values() if isinstance(like.arrays, dict) else [like.arrays]
    lengths = [part.shape[0] for part in parts if isinstance(part, ArraySpec) and part.shape]
    return lengths[0] if lengths else None


def shorter_inputs(inputs: InputSpec, length: int) -> InputSpec:
    """Returns the description of inputs whose sequences have another length."""
    return inputs.map(
        lambda part: dataclasses.replace(part, shape=(length, *part.shape[1:]))
    )  # fmt: skip


def length_spec(array: np.ndarray) -> InputSpec:
    """Returns a description of inputs whose rows have the length of these."""
    return InputSpec(ArraySpec(array.shape[1:], 'float32'))


def _are_sequences(y: Labels, lengths: np.ndarray) -> bool:
    """Returns True for targets of positions in rows that happen to have one length."""
    rows = _rows_of(y)
    return (
        rows is not None
        and len(rows) > 0
        and all(
            isinstance(row, list | np.ndarray) and len(row) == length
            for row, length in zip(rows, lengths, strict=False)
        )
    )


def _pad_labels(
    y: Labels, lengths: np.ndarray, length: int, argument: str, ignore_label: int | None
) -> np.ndarray:
    advice = 'Number the labels from 0 on.'
    rows = [
        _as_row(row, f'{argument}, row {index}', advice)
        for index, row in enumerate(_rows_of(y) or [])
    ]
    if len(rows) != len(lengths):
        raise DataError(f'{argument}: got {len(rows):,} rows beside inputs of {len(lengths):,}.')
    for index, (row, expected) in enumerate(zip(rows, lengths, strict=True)):
        if len(row) != expected:
            raise DataError(
                f'{argument}: got {len(row)} labels in row {index}, whose inputs have {expected} '
                'positions, expected a label for each. Mark positions without a label by -100.'
            )
    if any(row.dtype.kind == 'f' for row in rows):
        raise DataError(
            f'{argument}: got floats in rows of different lengths, expected whole numbers, which '
            'are classes. For numbers, pad X and y yourself and write an Objective that leaves '
            'out positions by the mask.'
        )
    return _padded(rows, length, IGNORE_LABEL if ignore_label is None else ignore_label)


def pad_label_sequences(y: Labels, argument: str, ignore_label: int | None = None) -> Labels:
    """Pads sequences of labels, which no position of the inputs is aligned to, to one length.

    Args:
        y: a list or column of sequences; arrays are returned as they are.
        argument: the name used in error messages.
        ignore_label: the label after the end of a sequence; None for -100.

    Raises:
        DataError: for rows that are not sequences of whole numbers.

    Example:
        >>> from thinkml.data.sequences import pad_label_sequences
        >>> pad_label_sequences([[3, 1], [2], []], 'y_train').tolist()
        [[3, 1], [2, -100], [-100, -100]]
    """
    rows = _rows_of(y)
    if not _are_of_one_kind(rows):
        return y
    advice = 'Number the labels by the outputs of the model.'
    arrays = [
        _as_row(row, f'{argument}, row {index}', advice) if len(row) else np.zeros(0, np.int64)
        for index, row in enumerate(rows or [])
    ]
    for index, row in enumerate(arrays):
        if row.ndim != 1 or row.dtype.kind not in 'iu':
            raise DataError(
                f'{argument}, row {index}: got {row.dtype} of shape {row.shape}, expected whole '
                f'numbers (labels,). {advice}'
            )
    longest = max(1, *map(len, arrays)) if arrays else 1
    return _padded(arrays, longest, IGNORE_LABEL if ignore_label is None else ignore_label)


def mask_name(inputs: Any) -> str | None:
    """Returns the name of the mask in a dict of inputs; None without one."""
    if not isinstance(inputs, Mapping):
        return None
    return next((name for name in MASK_NAMES if name in inputs), None)


def with_frame_mask(model: Model, task: AnyTask, inputs: Any) -> Model:
    """Returns a model whose frames of padding have the blank, if it returns frames of sequences.

    Args:
        model: the model.
        task: its task.
        inputs: its inputs, or their shapes; a dict with a mask for padded sequences.
    """
    blanks, mask = blanks_of(task), mask_name(inputs)
    return WithFrameMask(model, blanks, mask) if blanks and mask else model


def _padded(rows: Sequence[np.ndarray], length: int, fill: int) -> np.ndarray:
    dtype = np.result_type(*{row.dtype for row in rows})
    if fill < 0 and dtype.kind in 'bu':
        dtype = np.dtype(np.int64)
    padded = np.full((len(rows), length, *rows[0].shape[1:]), fill, dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row[:length]
    return padded


def bucket_lengths(lengths: np.ndarray) -> np.ndarray:
    """Returns at most four lengths to pad rows to, such that little is padded.

    They are multiples of 8, or the largest length. The first bucket that a row fits is its own.

    Args:
        lengths: the length of each row.

    Example:
        >>> import numpy as np
        >>> from thinkml.data.sequences import bucket_lengths
        >>> bucket_lengths(np.array([3, 5, 6, 30, 31, 90])).tolist()
        [8, 32, 90]
    """
    longest = int(lengths.max())
    rounded = np.minimum(-(-lengths // _MULTIPLE) * _MULTIPLE, longest)
    sizes, counts = np.unique(rounded, return_counts=True)
    if len(sizes) <= _MOST_BUCKETS:
        return sizes
    # The least number of positions with a number of buckets, by the largest size among them.
    before = np.concatenate([[0], np.cumsum(counts)])
    best = np.full((_MOST_BUCKETS + 1, len(sizes) + 1), np.inf)
    last = np.zeros((_MOST_BUCKETS + 1, len(sizes) + 1), np.int64)
    best[:, 0] = 0
    for bucket in range(1, _MOST_BUCKETS + 1):
        for end in range(1, len(sizes) + 1):
            totals = best[bucket - 1, :end] + sizes[end - 1] * (before[end] - before[:end])
            last[bucket, end] = totals.argmin()
            best[bucket, end] = totals.min()
    chosen, end = [], len(sizes)
    for bucket in range(_MOST_BUCKETS, 0, -1):
        if end == 0:
            break
        chosen.append(sizes[end - 1])
        end = last[bucket, end]
    return np.array(sorted(chosen))


def pack_sequences(sequences: Sequence[Any], length: int, *, pad: int = 0) -> dict[str, np.ndarray]:
    """Packs short sequences of token ids into rows of one length, whole and in order.

    Each sequence goes into the first row that has space for it. Longer ones are cut into pieces.

    Args:
        sequences: token ids, ``[tokens]`` each.
        length: the number of tokens in a row.
        pad: the id of unused positions.

    Returns:
        ``tokens``, ``segments`` (the number of the sequence within its row, from 1; 0 for unused
        positions) and ``positions`` (the position within the sequence), each ``[rows, length]``.

    Raises:
        DataError: for sequences that are not whole numbers.

    Example:
        >>> from thinkml.data import pack_sequences
        >>> packed = pack_sequences([[5, 6, 7], [8, 9], [4]], length=4)
        >>> packed['tokens'].tolist(), packed['segments'].tolist()
        ([[5, 6, 7, 4], [8, 9, 0, 0]], [[1, 1, 1, 2], [1, 1, 0, 0]])
    """
    pieces = []
    for index, sequence in enumerate(sequences):
        row = _as_row(sequence, f'sequences, row {index}')
        if row.ndim != 1 or row.dtype.kind not in 'iu':
            raise DataError(
                f'sequences, row {index}: got {row.dtype} of shape {row.shape}, expected whole '
                'numbers (tokens,).'
            )
        pieces += [row[first : first + length] for first in range(0, len(row), length)]
    rows: list[list[np.ndarray]] = []
    free: list[int] = []
    first_open = 0
    for piece in pieces:
        while first_open < len(free) and not free[first_open]:
            first_open += 1
        fitting = (i for i in range(first_open, len(free)) if free[i] >= len(piece))
        at = next(fitting, None)
        if at is None:
            at = len(rows)
            rows.append([])
            free.append(length)
        rows[at].append(piece)
        free[at] -= len(piece)
    packed = {name: np.zeros((len(rows), length), np.int32) for name in ('segments', 'positions')}
    tokens = np.full((len(rows), length), pad, np.int64)
    for index, parts in enumerate(rows):
        start = 0
        for number, part in enumerate(parts, 1):
            span = slice(start, start + len(part))
            tokens[index, span] = part
            packed['segments'][index, span] = number
            packed['positions'][index, span] = np.arange(len(part))
            start += len(part)
    return {'tokens': tokens, **packed}
