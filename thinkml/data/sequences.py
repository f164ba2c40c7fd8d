"""Sequences: rows of different lengths, padded to one length."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thinkml.core.model.adapters import input_names
from thinkml.core.model.frame_masks import WithFrameMask
from thinkml.data.dataframes import is_named_row
from thinkml.data.map_style_datasets import is_array
from thinkml.data.targets import named_targets
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
        X: the inputs: an array ``[rows, length, ...]``, or a dict of arrays and a mask.
        y: the targets; those of positions are padded with the label that is ignored.
        lengths: the length of each row; None if all rows had one length.
        length: the length of all rows, with padding.
    """

    X: Inputs
    y: Labels
    lengths: np.ndarray | None = None
    length: int | None = None


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
    ignore_label: int | Mapping[str, int | None] | None = None,
) -> PaddedData:
    """Pads rows of different lengths to one length, with zeros.

    If the model's ``__call__`` has a parameter ``mask`` (or ``attention_mask``), the inputs are a
    dict of the sequences, by the name of the first parameter, and of the mask. In a dict of inputs
    the parts that are ragged are padded, and the mask is added if there is none.

    Args:
        model: the model that takes the inputs.
        X: the inputs. Data that is not ragged is returned as it is, and so are rows of floats for a
            model without a mask.
        y: the targets: one for each row, or for each position of a row; a dict or tuple of them for
            several heads.
        argument: the name of ``X`` used in error messages.
        label_argument: the name of ``y`` used in error messages.
        max_length: the length that longer rows are cut to; None for that of the longest row.
        like: the description of the inputs that the model was trained on, whose length is used.
        ignore_label: the label of padded positions, or a dict by head; None for -100.

    Raises:
        DataError: for rows that are not sequences of numbers, or targets of other lengths.
    """
    names = _names_of_inputs(model, X)
    ragged = _sequences_of(X, names, like)
    parts = {
        name: [
            as_row(row, f'{_named(argument, name)}, row {index}')
            for index, row in enumerate(_rows_of(part) or [])
        ]
        for name, part in ragged.items()
    }
    all_rows = [row for rows in parts.values() for row in rows]
    if names.mask is None and any(row.dtype.kind == 'f' and row.ndim == 1 for row in all_rows):
        return PaddedData(X, y)  # more likely a table with a mistake, which others report
    if not parts:
        return PaddedData(X, y)
    lengths = _lengths_of(parts, argument)
    known = _known_length(like, next(iter(parts)))
    length = known or min(max_length or lengths.max(), int(lengths.max()))
    too_long = int((lengths > length).sum())
    if too_long:
        warn_user(
            f'{argument}: got {too_long:,} rows of more than {length} positions, up to '
            f'{lengths.max():,}. They are cut to {length}'
            + ('.' if known is None else ', the length that the model was trained on.')
        )
    y = _padded_targets(y, lengths, length, label_argument, ignore_label)
    arrays = {name: _padded(rows, length, 0) for name, rows in parts.items()}
    lengths = np.minimum(lengths, length)
    if isinstance(X, Mapping):
        arrays = dict(X) | arrays
    elif names.mask is None or names.tokens is None:
        return PaddedData(arrays[None], y, lengths, length)
    else:
        arrays = {names.tokens: arrays[None]}
    if names.mask is not None:
        arrays[names.mask] = np.arange(length) < lengths[:, None]
    return PaddedData(arrays, y, lengths, length)


def _sequences_of(X: Inputs, names: '_Names', like: InputSpec | None) -> dict[str | None, Any]:
    """Returns the parts of the inputs that are padded, by name; None is the name of all inputs."""
    if not isinstance(X, Mapping):
        is_padded = is_ragged(X) or (names.mask is not None and _are_flat_sequences(X))
        return {None: X} if is_padded else {}
    before = like.arrays if like is not None and isinstance(like.arrays, dict) else {}
    found: dict[str | None, Any] = {name: part for name, part in X.items() if is_ragged(part)}
    if names.mask in before:  # rows of one length are padded to that of the training
        shape = before[names.mask].shape
        found |= {
            name: part
            for name, part in X.items()
            if name in before and before[name].shape[:1] == shape and _are_flat_sequences(part)
        }
    return found


def _lengths_of(parts: Mapping[str | None, list[np.ndarray]], argument: str) -> np.ndarray:
    """Returns the length of each row, which is that of all its parts."""
    (name, rows), *others = parts.items()
    lengths = np.array(list(map(len, rows)))
    if not lengths.all():
        raise DataError(
            f'{_named(argument, name)}: got no positions in row {lengths.argmin()}, expected at '
            'least one. Leave empty rows out.'
        )
    for other, rows_of_other in others:
        if list(map(len, rows_of_other)) != lengths.tolist():
            raise DataError(
                f'{_named(argument, other)}: got rows of other lengths than those of '
                f'{_named(argument, name)}, expected the same, since one mask tells the padding of '
                'both. Pad them yourself, and pass arrays and masks.'
            )
    return lengths


def _named(argument: str, name: str | None) -> str:
    return argument if name is None else f'{argument}[{name!r}]'


def _padded_targets(
    y: Labels, lengths: np.ndarray, length: int, argument: str, ignore_label: Any
) -> Labels:
    """Returns targets with those of positions padded; those of heads as a dict."""
    heads = named_targets(y, len(lengths))
    if heads is not None:
        return {
            name: _padded_targets(
                part, lengths, length, _named(argument, name),
                ignore_label.get(name) if isinstance(ignore_label, Mapping) else ignore_label,
            )
            for name, part in heads.items()
        }  # fmt: skip
    if is_ragged(y) or (y is not None and _are_sequences(y, lengths)):
        return _pad_labels(y, lengths, length, argument, ignore_label)
    return y


class _Names(NamedTuple):
    """The parameters of a model that receive the sequences and their mask; None without a mask."""

    tokens: str | None = None
    mask: str | None = None


def _names_of_inputs(model: Model, X: Inputs) -> _Names:
    names = input_names(model)
    if names is None:
        return _Names()
    mask = next((name for name in MASK_NAMES if name in names.names), None)
    tokens = next((name for name in names.names if name not in MASK_NAMES), None)
    given = set(X) if isinstance(X, Mapping) else {tokens}
    if mask is None or mask in given or not set(names.required) <= given | {mask}:
        return _Names()
    return _Names(tokens, mask)


def _are_flat_sequences(values: Any) -> bool:
    """Returns True for a list or column of sequences of numbers, whose lengths may be equal."""
    rows = _rows_of(values)
    return bool(rows) and _are_of_one_kind(rows) and np.ndim(rows[0]) == 1


def as_row(row: Any, argument: str, advice: str = 'Encode text as token ids first.') -> np.ndarray:
    """Returns a sequence as an array; raises a `DataError` unless it consists of numbers."""
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


def _known_length(like: InputSpec | None, name: str | None) -> int | None:
    """Returns the length of earlier inputs, of the part of this name if they are a dict."""
    if like is None:
        return None
    parts = like.arrays if isinstance(like.arrays, dict) else {name: like.arrays}
    found = [parts[name]] if name in parts else list(parts.values())
    lengths = [part.shape[0] for part in found if isinstance(part, ArraySpec) and part.shape]
    return lengths[0] if lengths else None


def shorter_inputs(inputs: InputSpec, length: int) -> InputSpec:
    """Returns the description of inputs whose sequences have another length."""
    return inputs.map(
        lambda part: dataclasses.replace(part, shape=(length, *part.shape[1:]))
    )  # fmt: skip


def length_spec(length: int) -> InputSpec:
    """Returns a description of inputs whose rows have this length."""
    return InputSpec(ArraySpec((length,), 'float32'))


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
        as_row(row, f'{argument}, row {index}', advice)
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
        as_row(row, f'{argument}, row {index}', advice) if len(row) else np.zeros(0, np.int64)
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
