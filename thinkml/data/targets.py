"""Targets: inference of the task, encoding of labels to numbers, and decoding of predictions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from thinkml.core.objectives.elements import IGNORED
from thinkml.data.arrays import as_numeric, as_values
from thinkml.data.numeric_checks import check_finite, check_magnitude, check_resolution
from thinkml.errors import DataError
from thinkml.model_record import Task
from thinkml.typing import Labels

_NO_LABEL = 'Drop these rows, or give them any of the labels and sample_weight 0.'

# The usual causes if a model returns NaN.
WHY_NAN = (
    'If all are NaN, the training has diverged: train again with a lower learning_rate. If some '
    'are, look for ids beyond the rows of an embedding, and for a logarithm or division.'
)

IGNORE_LABEL = -100
"""The label of elements that count nowhere, as in torch and transformers."""

Decided = Literal['regression', 'softmax', 'sigmoid', 'classification']


def infer_task(
    y: Labels,
    num_outputs: int | tuple[int, ...],
    *,
    argument: str = 'y_train',
    decided: Decided | None = None,
    known: Task | None = None,
    ignore_label: int = IGNORE_LABEL,
) -> Task:
    """Infers the task of a model with ``num_outputs`` outputs per example from ``y``.

    ============================================  ============================================
    ``y``                                         task
    ============================================  ============================================
    text or bool                                  binary (two classes), else multiclass
    integers, several outputs                     multiclass (two outputs: binary)
    integers or floats of two values, one output  binary
    other numbers                                 regression
    rows of 0 and 1 with a single 1 each          multiclass, one-hot (unless ``'sigmoid'``)
    other rows of 0 and 1                         multilabel
    rows of other numbers                         regression
    ============================================  ============================================

    Integer labels from 0 to ``num_outputs - 1`` are the outputs' indices; other labels are
    assigned to the outputs in sorted order. Floats count as two values only if they are 0 and 1.

    If outputs or targets have more axes, a row consists of elements, such as tokens or pixels, with
    the shape ``e``:

    ========================  ============================================  =======================
    outputs of a row          targets of a row                              task of each element
    ========================  ============================================  =======================
    ``(*e, k)``               ``e``, text, bools or whole numbers           binary or multiclass
    ``e`` or ``(*e, 1)``      ``e`` or ``(*e, 1)``, two values              binary
    ``(*e, k)``               ``(*e, k)``, 0 and 1 with a single 1 each     multiclass, one-hot
    ``(*e, k)``, 2 or more    ``(*e, k)``, other 0 and 1                    multilabel
    axes in ``e``
    ``(*e, k)``               ``(*e, k)``, other numbers                    regression of k targets
    ========================  ============================================  =======================

    Args:
        y: targets, ``[rows]``, ``[rows, 1]``, ``[rows, k]``, or of elements.
        num_outputs: the number of outputs of the model per example, or the shape of the outputs of
            a row.
        argument: the name used in error messages.
        decided: the kind of task that the loss requires: ``'regression'``, ``'softmax'`` (one
            class per example), ``'sigmoid'`` (yes or no per output) or ``'classification'``
            (softmax or sigmoid); None to infer it.
        known: the classification task the model was trained on before. It is kept if ``y`` fits
            it, so that data without one of the classes does not renumber them.
        ignore_label: the label of elements that count nowhere, where a row has several.

    Raises:
        DataError: if ``y`` is not usable or the model can't output it.

    Example:
        >>> from thinkml.data import infer_task
        >>> print(infer_task(['cat', 'dog', 'cat'], num_outputs=1))
        binary, 2 classes (cat, dog)
    """
    array = check_targets(y, argument)
    shape = (num_outputs,) if isinstance(num_outputs, int) else num_outputs
    if len(shape) > 1 or array.ndim > 2:
        return _infer_from_elements(array, shape, argument, decided, known, ignore_label)
    num_outputs = shape[0] if shape else 1
    if known is not None and _is_kept(known, array, num_outputs, decided):
        return known
    if array.ndim == 2 and array.shape[1] > 1:
        return _infer_from_rows(array, num_outputs, argument, decided)
    shape, flat = array.shape[1:], array.reshape(len(array))
    if decided == 'regression' or (decided is None and not _looks_like_labels(flat, num_outputs)):
        return _regression_task(flat, num_outputs, shape, argument)
    classes = _infer_classes(flat, num_outputs, argument)
    kind = 'binary' if len(classes) == 2 else 'multiclass'
    return Task(kind, classes, num_outputs, shape)


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
    """Raises a `DataError` for targets that are a dict or tuple of arrays, or an array of dicts.

    The message explains how to learn several targets at once.
    """
    if isinstance(y, np.ndarray) and y.dtype == object and y.size and y.ndim == 1:
        y = y[0]
    if isinstance(y, Mapping):
        names = [repr(name) for name in list(y)[:3]]
        got = f'a dict of {", ".join(names)}{", ..." if len(y) > 3 else ""}'
        parts = ', '.join(f'y[{name}]' for name in names[:2])
    elif isinstance(y, tuple) and _are_columns(y):
        got, parts = f'a tuple of {len(y)} arrays', 'y[0], y[1]'
    else:
        return
    raise DataError(
        f'{argument}: got {got}, expected one array, (rows,) or (rows, targets). Put them side by '
        f'side, a column for each output of the model and classes one-hot: np.column_stack(['
        f'{parts}]). A custom loss_fn can split the columns.'
    )


def _are_columns(parts: tuple[Any, ...]) -> bool:
    """Returns True for arrays of equal length that are columns, not rows."""
    lengths = {part.shape[0] if getattr(part, 'ndim', 0) else 0 for part in parts}
    return len(parts) > 1 and len(lengths) == 1 and max(lengths) > len(parts)


def _looks_like_labels(flat: np.ndarray, num_outputs: int) -> bool:
    if flat.dtype.kind in 'Ub':
        return True
    values = np.unique(flat)
    if flat.dtype.kind in 'iu':
        return num_outputs > 1 or len(values) <= 2
    is_integral = bool(np.all(values == np.round(values)))
    return (num_outputs > 1 and is_integral) or bool(np.isin(values, (0.0, 1.0)).all())


def _infer_classes(flat: np.ndarray, num_outputs: int, argument: str) -> tuple[Any, ...]:
    slots = max(2, num_outputs)
    values = np.unique(flat)
    if flat.dtype.kind == 'b':
        values = np.array([False, True])
    elif flat.dtype.kind != 'U' and _are_indices(values, slots):
        values = np.arange(slots).astype(flat.dtype)
    if len(values) == slots:
        return tuple(values.tolist())
    shown = ', '.join(repr(value) for value in values[:10].tolist())
    if len(values) > 10:
        shown += ', ...'
    if len(values) == 1:
        raise DataError(
            f'{argument}: got only one label, {shown}, expected at least two. Check how the rows '
            'were selected.'
        )
    outputs = 'output' if num_outputs == 1 else 'outputs'
    fix = f'Build the model with {len(values)} outputs'
    raise DataError(
        f'{argument}: got {len(values)} different labels ({shown}), but the model returns '
        f'{num_outputs} {outputs} per example, enough for {slots} classes. {fix}'
        + (', or use integer labels from 0 on.' if len(values) < slots else '.')
        + _marker_hint(flat)
    )


# The values by which other libraries mark a row, or a pixel, without a label.
_MARKERS = (-100, -1, 255)


def find_marker(labels: np.ndarray) -> int | None:
    """Returns -100, -1 or 255 if it occurs together with whole numbers from 0 on, else None.

    Other libraries use it to mark rows without a label; in ThinkML it is a label like any other.
    """
    if labels.dtype.kind not in 'iuf':
        return None
    values = np.unique(labels)
    found = [m for m in _MARKERS if m in values and not (m == 255 and 254 in values)]
    others = values[~np.isin(values, found[:1])]
    is_marker = len(found) == 1 and len(others) and others.min() >= 0
    return found[0] if is_marker and np.array_equal(others, np.round(others)) else None


def _marker_hint(labels: np.ndarray) -> str:
    marker = find_marker(labels)
    return '' if marker is None else ' ' + unlabeled(marker)


def unlabeled(marker: float) -> str:
    """Describes the fix for rows that ``marker`` marks as having no label."""
    return (
        f'If {marker} marks rows without a label, drop them, or give them one of the other labels '
        'and sample_weight 0.'
    )


def _are_indices(values: np.ndarray, slots: int) -> bool:
    return bool(values.min() >= 0 and values.max() < slots and np.all(values == np.round(values)))


def _infer_from_rows(
    array: np.ndarray, num_outputs: int, argument: str, decided: Decided | None
) -> Task:
    width = array.shape[1]
    if array.dtype.kind == 'U':
        raise DataError(
            f'{argument}: got text of shape {array.shape}, expected one label per example. For '
            'several labels per example use rows of 0 and 1.'
        )
    is_binary = bool(np.isin(array, (0, 1)).all())
    if decided == 'regression' or (decided is None and not is_binary):
        return _regression_task(array, num_outputs, (width,), argument)
    if not is_binary:
        raise DataError(
            f'{argument}: got rows of other numbers than 0 and 1, which a classification loss '
            "can't take. Use class labels, one-hot or multilabel rows, or loss_fn='mse'."
            + _marker_hint(array)
        )
    if num_outputs != width:
        raise DataError(
            f'{argument}: got rows of {width} labels, but the model returns {num_outputs} outputs '
            f'per example. Build the model with {width} outputs.'
        )
    one_hot = decided != 'sigmoid' and _is_one_hot(array)
    kind = ('binary' if width == 2 else 'multiclass') if one_hot else 'multilabel'
    return Task(kind, tuple(range(width)), num_outputs, (width,))


def _infer_from_elements(
    array: np.ndarray,
    outputs: tuple[int, ...],
    argument: str,
    decided: Decided | None,
    known: Task | None,
    ignore_label: int,
) -> Task:
    """Infers the task of rows that consist of elements, see `infer_task`."""
    targets: tuple[int, ...] = array.shape[1:]
    of_classes = outputs[:-1]
    if decided != 'regression' and targets in (of_classes, (*of_classes, 1)) and outputs[-1] > 1:
        element_shape, target_shape = of_classes, targets[len(of_classes) :]
        num_outputs = outputs[-1]
    elif targets and (outputs in (targets, (*targets, 1)) or targets == (*outputs, 1)):
        is_class = decided != 'regression' and _has_two_values(array, decided, ignore_label)
        has_columns = is_class and targets == outputs and array.shape[-1] > 1
        has_columns = has_columns and array.dtype.kind != 'U'
        if has_columns and decided != 'sigmoid' and _is_one_hot(array):
            return _task_of_columns('multiclass', targets)
        if has_columns and len(targets) > 2:
            return _task_of_columns('multilabel', targets)
        if not is_class:
            return _regression_of_elements(array, outputs, argument)
        split = len(targets) - (array.shape[-1] == 1)
        element_shape, target_shape, num_outputs = targets[:split], targets[split:], 1
    else:
        raise DataError(_shapes_differ(array, outputs, argument))
    marker = None if array.dtype.kind in 'Ub' else ignore_label
    if known is not None and known.element_shape == element_shape:
        again = dataclasses.replace(known, ignore_label=marker)
        if _is_kept(again, array, num_outputs, decided):
            return again
    flat = array.reshape(-1)
    flat = flat if marker is None else flat[flat != marker]
    if not len(flat):
        raise DataError(
            f'{argument}: each label is {marker}, which marks elements that are ignored, expected '
            'some others. Pass ignore_label=... to ignore another label.'
        )
    if flat.dtype.kind == 'f' and not np.array_equal(flat, np.round(flat)):
        raise DataError(_shapes_differ(array, outputs, argument))
    classes = _infer_classes(flat, num_outputs, argument)
    kind = 'binary' if len(classes) == 2 else 'multiclass'
    return Task(
        kind, classes, num_outputs,
        target_shape=target_shape, element_shape=element_shape, ignore_label=marker,
    )  # fmt: skip


def _is_kept(known: Task, array: np.ndarray, num_outputs: int, decided: Decided | None) -> bool:
    """Returns True if the task of an earlier training is kept for these targets."""
    return (
        known.num_outputs == num_outputs
        and known.is_classification
        and decided != 'regression'
        and (decided != 'sigmoid' or known.kind == 'multilabel' or num_outputs == 1)
        and _fits(array, known)
    )


def _has_two_values(array: np.ndarray, decided: Decided | None, ignore_label: int) -> bool:
    """Returns True for labels of two classes; for floats these are 0 and 1."""
    if array.dtype.kind in 'Ub' or decided is not None:
        return True
    values = np.unique(array)
    values = values[values != ignore_label]
    are_bits = bool(np.isin(values, (0, 1)).all())
    return are_bits or (array.dtype.kind in 'iu' and len(values) <= 2)


def _task_of_columns(kind: Literal['multiclass', 'multilabel'], targets: tuple[int, ...]) -> Task:
    width = targets[-1]
    is_pair = kind == 'multiclass' and width == 2
    return Task(
        'binary' if is_pair else kind, tuple(range(width)), width,
        target_shape=(width,), element_shape=targets[:-1],
    )  # fmt: skip


def _regression_of_elements(array: np.ndarray, outputs: tuple[int, ...], argument: str) -> Task:
    if array.dtype.kind == 'U':
        raise DataError(f'{argument}: got text, expected numbers for regression.')
    targets = array.shape[1:]
    has_columns = targets == outputs
    split = len(targets) - 1 if has_columns else len(targets)
    num_targets = targets[-1] if has_columns else 1
    return Task(
        'regression', None, num_targets,
        target_shape=targets[split:], element_shape=targets[:split],
    )  # fmt: skip


def _shapes_differ(array: np.ndarray, outputs: tuple[int, ...], argument: str) -> str:
    """Returns an error for targets whose shape or values don't fit the outputs."""
    targets = array.shape[1:]
    got = f'{argument}: got shape {array.shape}, {array.dtype}, beside outputs {_of_rows(outputs)}'
    if len(outputs) < 2:
        return (
            f'{got}, expected one target for each output. Let the model return '
            f'{_of_rows((*targets, "classes"))} for a class of each element, or '
            f'{_of_rows(targets)} for numbers; or flatten the targets.'
        )
    if not targets:
        return (
            f'{got}, expected outputs (rows,) or (rows, outputs) for one target a row. Flatten or '
            'pool the outputs.'
        )
    return (
        f'{got}, expected whole numbers, bools or text {_of_rows(outputs[:-1])} for a class of '
        f'each element, or numbers {_of_rows(outputs)} for regression. Reshape one of them.'
    )


def _of_rows(shape: tuple[Any, ...]) -> str:
    return f'(rows{"".join(f", {size}" for size in shape) or ","})'


def _regression_task(
    array: np.ndarray, num_outputs: int, shape: tuple[int, ...], argument: str
) -> Task:
    if array.dtype.kind == 'U':
        raise DataError(f'{argument}: got text, expected numbers for regression.')
    targets = shape[0] if shape else 1
    if num_outputs != targets:
        raise DataError(
            f'{argument}: got {targets} number{"s" if targets > 1 else ""} per example, but the '
            f'model returns {num_outputs} outputs. Build the model with {targets} '
            f'output{"s" if targets > 1 else ""}, or use integer labels for classification.'
            + _marker_hint(array)
        )
    return Task('regression', None, num_outputs, shape)


def _is_one_hot(array: np.ndarray) -> bool:
    """Returns True if the last axis has a single 1 and else 0."""
    return bool(np.isin(array, (0, 1)).all() and (array.sum(axis=-1) == 1).all())


def _fits(array: np.ndarray, task: Task) -> bool:
    if array.shape[1:] != task.row_shape:
        return False
    array = _elements_of(array, task)
    if task.ignore_label is not None and array.dtype.kind != 'U':
        array = array[array != task.ignore_label]
    if task.kind == 'regression':
        return array.dtype.kind != 'U'
    if task.kind == 'multilabel':
        return bool(np.isin(array, (0, 1)).all())
    if task.is_one_hot:
        return _is_one_hot(array)
    classes = np.asarray(task.classes)
    return (classes.dtype.kind == 'U') == (array.dtype.kind == 'U') and bool(
        np.isin(array, classes).all()
    )


def encode_targets(y: Labels, task: Task, argument: str = 'y_train') -> np.ndarray:
    """Encodes targets for the losses.

    Returns:
        class indices, int32 ``[rows]``, for binary and multiclass; 0 and 1, float32 ``[rows, k]``,
        for multilabel; float32 ``[rows]`` or ``[rows, k]`` for regression.

    Raises:
        DataError: for labels the task does not have, or another shape than the task's.
    """
    array = check_targets(y, argument)
    shape, expected = array.shape[1:], task.row_shape
    if shape != expected and {(*shape, 1), shape} & {(*expected, 1), expected} == set():
        raise DataError(
            f'{argument}: got shape {array.shape}, expected '
            f'(rows{"".join(f", {size}" for size in expected)}) as in training.'
        )
    encoded = _encode_elements(_elements_of(array, task), task, argument)
    return encoded.reshape(len(array), *task.element_shape, *encoded.shape[1:])


def _elements_of(array: np.ndarray, task: Task) -> np.ndarray:
    """Returns targets or outputs with one axis for rows and their elements."""
    num_axes, count = 1 + len(task.element_shape), len(array) * task.num_elements
    return array.reshape(count, *array.shape[num_axes:])


def _encode_elements(array: np.ndarray, task: Task, argument: str) -> np.ndarray:
    if task.kind in ('regression', 'multilabel'):
        return _encode_numbers(array, task, argument)
    if task.is_one_hot:
        if not _is_one_hot(array):
            raise DataError(f'{argument}: got rows that are not one-hot, expected a single 1 each.')
        return array.argmax(axis=1).astype(np.int32)
    flat = array.reshape(len(array))
    if task.ignore_label is None or flat.dtype.kind == 'U':
        return _encode_labels(flat, task, argument)
    encoded = np.full(len(flat), IGNORED, np.int32)
    counts = flat != task.ignore_label
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
    if task.kind == 'regression' and targets.dtype != np.float32:
        check_magnitude(targets, np.dtype(np.float32), argument, 'Scale the targets')
        check_resolution(targets, np.dtype(np.float32), argument, is_first=is_first)


def _encode_numbers(array: np.ndarray, task: Task, argument: str) -> np.ndarray:
    if array.dtype.kind == 'U':
        raise DataError(f'{argument}: got text, expected numbers for {task.in_words}.')
    if task.kind == 'multilabel' and not np.isin(array, (0, 1)).all():
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
            + (f' {unlabeled(marked[0])}' if marked else '')
        )
    return indices.astype(np.int32)


def probabilities(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Converts raw outputs to probabilities.

    Args:
        outputs: ``[rows, num_outputs]`` or ``[rows]``.
        task: a classification task.

    Returns:
        float64 ``[rows, classes]``, or ``[rows, *element_shape, classes]``: softmax over the
        outputs; for one-logit binary ``[1 - p, p]`` with the sigmoid ``p``; for multilabel the
        sigmoid of each output. In float64, probabilities near 1 differ up to a logit of 36.

    Raises:
        DataError: for a regression task, and outputs that are NaN.
    """
    if task.kind == 'regression':
        raise DataError('model: it was trained for regression, which has no probabilities.')
    shape = (len(outputs), *task.element_shape)
    return _probabilities(_matrix(outputs, task).astype(np.float64), task).reshape(*shape, -1)


def _matrix(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Returns the outputs as ``[elements, num_outputs]``."""
    return outputs.reshape(len(outputs) * task.num_elements, -1)


def _probabilities(outputs: np.ndarray, task: Task) -> np.ndarray:
    _check_numbers(outputs)
    if task.kind == 'multilabel' or outputs.shape[1] == 1:
        positive = _sigmoid(outputs)
        if task.kind == 'multilabel':
            return positive
        return np.concatenate([_sigmoid(-outputs), positive], axis=1)
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def log_probabilities(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Converts raw outputs to log-probabilities, which differ even for confident predictions.

    Args:
        outputs: ``[rows, num_outputs]`` or ``[rows]``, finite.
        task: a classification task.

    Returns:
        float64 ``[rows, classes]``; for multilabel ``[rows, labels, 2]``, for no and yes.
    """
    outputs = outputs.reshape(len(outputs), -1).astype(np.float64)
    if task.kind == 'multilabel' or outputs.shape[1] == 1:
        both = -np.logaddexp(0, np.stack([outputs, -outputs], axis=-1))
        return both if task.kind == 'multilabel' else both[:, 0]
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check_numbers(outputs: np.ndarray) -> None:
    _check_no_nan(np.isnan(outputs))


def _check_no_nan(is_nan: np.ndarray) -> None:
    unclear = is_nan.any(axis=1)
    if unclear.any():
        raise DataError(
            f'model: it returns NaN for {unclear.sum():,} of {len(is_nan):,} rows, the first at '
            f'row {unclear.argmax()}, expected numbers to choose a class by. {WHY_NAN}'
        )


def _sigmoid(outputs: np.ndarray) -> np.ndarray:
    # Exact to the last digit even for the smallest probabilities, which rank confident negatives.
    return np.exp(-np.logaddexp(0, -outputs))


def decode(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Converts raw outputs to predictions in the form of the user's targets.

    Returns:
        ``[rows, *task.row_shape]``: the labels of the targets, one-hot rows if the targets were
        one-hot, rows of 0 and 1 for multilabel, numbers for regression.

    Raises:
        DataError: for outputs that are NaN, since then no class has the largest output.
    """
    shape = (len(outputs), *task.row_shape)
    outputs = _matrix(outputs, task)
    if task.kind == 'regression':
        return outputs.reshape(shape)
    _check_numbers(outputs)
    if task.kind == 'multilabel':
        return (outputs > 0).astype(np.int64).reshape(shape)
    one_logit = outputs.shape[1] == 1
    indices = (outputs[:, 0] > 0).astype(np.int64) if one_logit else outputs.argmax(axis=1)
    return _labels_of(indices, task).reshape(shape)


def decode_indices(indices: np.ndarray, task: Task) -> np.ndarray:
    """Returns `decode` of outputs whose largest ones have these indices; -1 stands for NaN.

    Args:
        indices: ``[rows, *element_shape]``, from `thinkml.core.model.forward.largest_output`.
        task: a task with one class for each element, and an output for each class.
    """
    _check_no_nan(indices.reshape(len(indices), -1) < 0)
    return _labels_of(indices.reshape(-1), task).reshape(len(indices), *task.row_shape)


def _labels_of(indices: np.ndarray, task: Task) -> np.ndarray:
    if task.is_one_hot:
        return np.eye(task.num_outputs, dtype=np.int64)[indices]
    return np.asarray(task.classes)[indices]
