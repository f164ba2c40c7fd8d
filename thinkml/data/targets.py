"""Targets: checks of labels and numbers to predict, and their encoding for the losses."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from thinkml.core.objectives.ctc import needed_frames
from thinkml.core.objectives.elements import IGNORED
from thinkml.data.arrays import as_numeric, as_values
from thinkml.data.numeric_checks import check_finite, check_magnitude, check_resolution
from thinkml.errors import DataError
from thinkml.tasks import IGNORE_LABEL, Task
from thinkml.typing import Labels

_NO_LABEL = 'Drop these rows, or give them any of the labels and sample_weight 0.'

# The values by which other libraries mark a row, or a pixel, without a label.
_MARKERS = (-100, -1, 255)


def check_targets(y: Labels, argument: str) -> np.ndarray:
    """Returns the targets as an array of numbers, bools or text, with rows along its first axis.

    Raises:
        DataError: for targets that are missing, of mixed kinds, not finite, out of the range of
            int64, or one number.
    """
    refuse_parts(y, argument)
    array = as_values(y, argument, _NO_LABEL)
    if array.dtype.kind != 'U':
        array = as_numeric(array, argument)
        check_finite(array, argument)
    if array.dtype.kind == 'u' and array.max() > np.iinfo(np.int64).max:
        raise DataError(
            f'{argument}: got whole numbers up to {array.max()}, expected them within int64. '
            'Convert labels to text, .astype(str), and scale numbers to predict.'
        )
    if array.ndim == 0:
        raise DataError(
            f'{argument}: got shape (), expected (rows,), (rows, targets) or a target for each '
            'element of a row.'
        )
    return array


def refuse_parts(y: Labels, argument: str) -> None:
    """Raises a `DataError` for a dict or tuple of arrays, or an array of dicts, as one target.

    The message explains how to learn several targets at once.
    """
    if isinstance(y, np.ndarray) and y.dtype == object and y.size and y.ndim == 1:
        y = y[0]
    if isinstance(y, Mapping):
        names = [repr(name) for name in list(y)[:3]]
        got = f'a dict of {", ".join(names)}{", ..." if len(y) > 3 else ""}'
        parts = ', '.join(f'y[{name}]' for name in names[:2])
    elif isinstance(y, tuple) and are_columns(y):
        got, parts = f'a tuple of {len(y)} arrays', 'y[0], y[1]'
    else:
        return
    raise DataError(
        f'{argument}: got {got}, expected one array, (rows,) or (rows, targets), since the model '
        'returns one array. Let the model return a dict with an output for each, or put numbers '
        f'side by side: np.column_stack([{parts}]).'
    )


def named_targets(y: Any, num_rows: int | None = None) -> dict[str, Any] | None:
    """Returns the targets of several heads by name; None for one array.

    The names of a tuple of arrays are their positions, as text.

    Args:
        y: the targets.
        num_rows: the number of rows, if it is known. A tuple or list of as many arrays as there are
            rows is one array.
    """
    if isinstance(y, Mapping):
        return {str(name): part for name, part in y.items()}
    if hasattr(y, '_fields'):
        return y._asdict()
    is_tuple = isinstance(y, tuple) and (are_columns(y) if num_rows is None else True)
    is_list = isinstance(y, list) and num_rows is not None and len(y) != num_rows
    if not (is_tuple or is_list) or (
        num_rows is not None and not all(_has_rows(part, num_rows) for part in y)
    ):
        return None
    return {str(position): part for position, part in enumerate(y)}


def _has_rows(part: Any, num_rows: int) -> bool:
    if isinstance(part, list | tuple):  # perhaps sequences of different lengths
        return len(part) == num_rows
    return len(np.shape(part)) > 0 and len(part) == num_rows


def are_columns(parts: tuple[Any, ...]) -> bool:
    """Returns True for arrays of equal length that are columns, not rows."""
    lengths = {part.shape[0] if getattr(part, 'ndim', 0) else 0 for part in parts}
    return len(parts) > 1 and len(lengths) == 1 and max(lengths) > len(parts)


def find_marker(labels: np.ndarray) -> int | None:
    """Returns -100, -1 or 255 if it occurs together with whole numbers from 0 on, else None.

    Other libraries use it to mark rows without a label. In ThinkML only -100 marks them, beside
    classes; another marker is a label like any other, unless it is the ``ignore_label``.
    """
    if labels.dtype.kind not in 'iuf':
        return None
    values = np.unique(labels)
    found = [m for m in _MARKERS if m in values and not (m == 255 and 254 in values)]
    others = values[~np.isin(values, found[:1])]
    is_marker = len(found) == 1 and len(others) and others.min() >= 0
    return found[0] if is_marker and np.array_equal(others, np.round(others)) else None


def unlabeled(marker: float, *, is_class: bool) -> str:
    """Describes the fix for rows that ``marker`` marks as having no label."""
    if is_class:
        return (
            f'If {marker} marks rows without a label, pass ignore_label={marker} to train, or '
            f'write {IGNORE_LABEL} in its place.'
        )
    return (
        f'If {marker} marks rows without a label, drop them, or give them one of the other labels '
        'and sample_weight 0.'
    )


def encode_targets(y: Labels, task: Task, argument: str = 'y_train') -> np.ndarray:
    """Encodes targets for the losses.

    Returns:
        class indices, int32 ``[rows]``, for binary and multiclass, -1 for the label that the task
        ignores; 0 and 1, float32 ``[rows, k]``,
        for multilabel; float32 ``[rows]`` or ``[rows, k]`` for regression; class indices, int32
        ``[rows, labels]``, for sequences.

    Raises:
        DataError: for labels the task does not have, or another shape than the task's.
    """
    array = check_targets(y, argument)
    if task.type.has_sequences:
        return _encode_sequences(array, task, argument)
    shape, expected = array.shape[1:], task.row_shape
    if shape != expected and {(*shape, 1), shape} & {(*expected, 1), expected} == set():
        raise DataError(
            f'{argument}: got shape {array.shape}, expected '
            f'(rows{"".join(f", {size}" for size in expected)}) as in training.'
        )
    encoded = _encode_elements(elements_of(array, task), task, argument)
    return encoded.reshape(len(array), *task.element_shape, *encoded.shape[1:])


def _encode_sequences(array: np.ndarray, task: Task, argument: str) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in 'iu':
        raise DataError(
            f'{argument}: got shape {array.shape}, {array.dtype}, expected whole numbers (rows, '
            f'labels) or a list of sequences of them, the classes of {task.in_words}.'
        )
    is_after_end = array == task.ignore_label
    if (is_after_end[:, :-1] & ~is_after_end[:, 1:]).any():
        row = (is_after_end[:, :-1] & ~is_after_end[:, 1:]).any(axis=1).argmax()
        raise DataError(
            f'{argument}: got a label after {task.ignore_label} in row {row}, expected '
            f'{task.ignore_label} after the end of a sequence only. Move the labels to the front.'
        )
    values = np.unique(array[~is_after_end])
    other = values[(values < 0) | (values >= task.num_outputs)]
    if len(other):
        raise DataError(
            f'{argument}: got labels {other[:10].tolist()}, expected whole numbers from 0 to '
            f'{task.num_outputs - 1}, the positions of the outputs. Number the labels so, and pass '
            'ignore_label=... for another mark after the end of a sequence.'
        )
    if task.blank_id in values:
        raise DataError(
            f'{argument}: got the label {task.blank_id}, which is the blank, expected others: the '
            'blank stands for no label. Number the labels without it, or pass CTC(blank_id=...) '
            'with the output of another class.'
        )
    return np.where(is_after_end, IGNORED, array).astype(np.int32)


def check_alignments(labels: np.ndarray, frames: np.ndarray | int, argument: str) -> None:
    """Checks that each sequence of labels has an alignment to the frames of its row.

    Args:
        labels: encoded sequences, ``[rows, labels]``.
        frames: the number of frames, of all rows or of each.
        argument: the name used in error messages.

    Raises:
        DataError: for a row with fewer frames than it needs. Its loss would be infinite.
    """
    needed = needed_frames(labels)
    if (missing := needed > frames).any():
        row = int(missing.argmax())
        found = int(np.broadcast_to(frames, needed.shape)[row])
        raise DataError(
            f'{argument}: got {(labels[row] >= 0).sum()} labels in row {row}, which need '
            f'{needed[row]} frames (one for each, and one between equal neighbours), but the model '
            f'returns {found}. Let the model return more frames, or leave out such rows, '
            f'{missing.sum():,} of {len(labels):,}.'
        )


def elements_of(array: np.ndarray, task: Task) -> np.ndarray:
    """Returns targets or outputs with one axis for rows and their elements."""
    num_axes, count = 1 + len(task.element_shape), len(array) * task.num_elements
    return array.reshape(count, *array.shape[num_axes:])


def _encode_elements(array: np.ndarray, task: Task, argument: str) -> np.ndarray:
    if not task.type.has_one_class:
        return _encode_numbers(array, task, argument)
    if task.is_one_hot:
        if not is_one_hot(array):
            raise DataError(f'{argument}: got rows that are not one-hot, expected a single 1 each.')
        return array.argmax(axis=1).astype(np.int32)
    flat = array.reshape(len(array))
    if task.ignored is None or flat.dtype.kind == 'U':
        return _encode_labels(flat, task, argument)
    encoded = np.full(len(flat), IGNORED, np.int32)
    counts = flat != task.ignored
    encoded[counts] = _encode_labels(flat[counts], task, argument)
    return encoded


def check_targets_held(
    targets: np.ndarray, task: Task, argument: str = 'y_train', *, is_first: bool = False
) -> None:
    """Checks that regression targets stay different in float32, the dtype of the losses.

    Args:
        targets: checked targets.
        task: the task of the targets.
        argument: the name used in error messages.
        is_first: see `check_resolution`.

    Raises:
        DataError: if they are too close or too large for float32. Names the fix.
    """
    if not task.is_classification and targets.dtype != np.float32:
        check_magnitude(targets, np.dtype(np.float32), argument, 'Scale the targets')
        check_resolution(targets, np.dtype(np.float32), argument, is_first=is_first)


def _encode_numbers(array: np.ndarray, task: Task, argument: str) -> np.ndarray:
    if array.dtype.kind == 'U':
        raise DataError(f'{argument}: got text, expected numbers for {task.in_words}.')
    if task.type.has_many_labels and not np.isin(array, (0, 1)).all():
        raise DataError(f'{argument}: got other values than 0 and 1, expected rows of 0 and 1.')
    check_magnitude(array, np.dtype(np.float32), argument, 'Scale the targets')
    encoded = array.astype(np.float32)
    return encoded if task.num_outputs > 1 else encoded.reshape(len(encoded))


def _encode_labels(flat: np.ndarray, task: Task, argument: str) -> np.ndarray:
    classes = np.asarray(task.classes)
    if (classes.dtype.kind == 'U') != (flat.dtype.kind == 'U'):
        raise DataError(f'{argument}: got dtype {flat.dtype}, expected labels for {task.in_words}.')
    order = np.argsort(classes)
    position = np.searchsorted(classes[order], flat).clip(max=len(classes) - 1)
    indices = order[position]
    unknown = classes[indices] != flat
    if unknown.any():
        labels = np.unique(flat[unknown])[:10].tolist()
        marked = [marker for marker in _MARKERS if marker in labels]
        raise DataError(
            f'{argument}: got labels the model was not trained on: {labels}. Its task is '
            f'{task.in_words}. Remove these rows, or train a model with an output for each label.'
            + (f' {unlabeled(marked[0], is_class=True)}' if marked else '')
        )
    return indices.astype(np.int32)


def fits(array: np.ndarray, task: Task) -> bool:
    """Returns True if checked targets have the shape and the labels of a task."""
    if array.shape[1:] != task.row_shape:
        return False
    array = elements_of(array, task)
    if task.ignored is not None and array.dtype.kind != 'U':
        array = array[array != task.ignored]
    if not task.is_classification:
        return array.dtype.kind != 'U'
    if task.type.has_many_labels:
        return bool(np.isin(array, (0, 1)).all())
    if task.is_one_hot:
        return is_one_hot(array)
    classes = np.asarray(task.classes)
    return (classes.dtype.kind == 'U') == (array.dtype.kind == 'U') and bool(
        np.isin(array, classes).all()
    )


def num_ignored(encoded: np.ndarray, task: Task) -> int:
    """Returns the number of rows, or of elements of rows, whose encoded label counts nowhere."""
    return int((encoded == IGNORED).sum()) if task.type.has_one_class else 0


def counted_rows(encoded: np.ndarray, task: Task) -> np.ndarray:
    """Returns a mask of the rows that count; False for those whose one label is ignored."""
    if not task.has_row_labels:
        return np.ones(len(encoded), bool)
    return encoded != IGNORED


def is_one_hot(array: np.ndarray) -> bool:
    """Returns True if the last axis has a single 1 and else 0."""
    return bool(np.isin(array, (0, 1)).all() and (array.sum(axis=-1) == 1).all())
