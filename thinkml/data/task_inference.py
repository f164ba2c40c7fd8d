"""Task inference: the task of a model, from its outputs' shape and its targets."""

import dataclasses
from typing import Any

import numpy as np

from thinkml.data.targets import (
    check_targets,
    find_marker,
    fits,
    is_one_hot,
    unlabeled,
)
from thinkml.errors import DataError
from thinkml.task_types import Decision, TaskKind, kind_of_classes
from thinkml.tasks import IGNORE_LABEL, Task
from thinkml.typing import Labels


def infer_task(
    y: Labels,
    num_outputs: int | tuple[int, ...],
    *,
    argument: str = 'y_train',
    decided: Decision | None = None,
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
    Integers equal to ``ignore_label`` are not counted as a value, but in a regression they are
    numbers like others.

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

    Sequences of classes, ``(labels,)`` beside outputs ``(frames, k)``, are read as such only if the
    loss is `CTC`.

    Args:
        y: targets, ``[rows]``, ``[rows, 1]``, ``[rows, k]``, or of elements.
        num_outputs: the number of outputs of the model per example, or the shape of the outputs of
            a row.
        argument: the name used in error messages.
        decided: the kind of task that the loss requires: ``'regression'``, ``'softmax'`` (one
            class per example), ``'sigmoid'`` (yes or no per output), ``'classification'``
            (softmax or sigmoid) or ``'sequence'``; None to infer it.
        known: the classification task the model was trained on before. It is kept if ``y`` fits
            it, so that data without one of the classes does not renumber them.
        ignore_label: the label of rows, or of elements, that count nowhere.

    Raises:
        DataError: if ``y`` is not usable or the model can't output it.

    Example:
        >>> from thinkml.data import infer_task
        >>> print(infer_task(['cat', 'dog', 'cat'], num_outputs=1))
        binary, 2 classes (cat, dog)
    """
    array = check_targets(y, argument)
    shape = (num_outputs,) if isinstance(num_outputs, int) else num_outputs
    if decided == 'sequence':
        return _sequence_task(array, shape, argument, ignore_label)
    if len(shape) > 1 or array.ndim > 2:
        return _infer_from_elements(array, shape, argument, decided, known, ignore_label)
    num_outputs = shape[0] if shape else 1
    # None stands for the default, so that most tasks need not record it.
    marker = None if ignore_label == IGNORE_LABEL else ignore_label
    if known is not None and known.has_row_labels and known.ignore_label != marker:
        known = dataclasses.replace(known, ignore_label=marker)
    if known is not None and _is_kept(known, array, num_outputs, decided):
        return known
    if array.ndim == 2 and array.shape[1] > 1:
        return _infer_from_rows(array, num_outputs, argument, decided)
    shape, flat = array.shape[1:], array.reshape(len(array))
    counted = flat if flat.dtype.kind in 'Ub' else flat[flat != ignore_label]
    # -100 among floats may be a number to predict.
    shown = flat if flat.dtype.kind == 'f' else counted
    if decided == 'regression' or (decided is None and not _looks_like_labels(shown, num_outputs)):
        return _regression_task(flat, num_outputs, shape, argument)
    _check_some_count(counted, ignore_label, argument)
    others = f' {ignore_label} is ignored.' if len(counted) < len(flat) else ''
    classes = _infer_classes(counted, num_outputs, argument, others)
    marker = None if flat.dtype.kind in 'Ub' else marker
    return Task(kind_of_classes(len(classes)), classes, num_outputs, shape, ignore_label=marker)


def _check_some_count(counted: np.ndarray, ignore_label: int | None, argument: str) -> None:
    if not len(counted):
        raise DataError(
            f'{argument}: each label is {ignore_label}, which marks those that are ignored, '
            'expected some others. Pass ignore_label=... to ignore another label.'
        )


def _sequence_task(
    array: np.ndarray, outputs: tuple[int, ...], argument: str, ignore_label: int
) -> Task:
    if len(outputs) != 2:
        raise DataError(
            f'{argument}: got a CTC loss for outputs {_of_rows(outputs)}, expected (rows, frames, '
            'classes): logits of each frame. Let the model return them.'
        )
    if array.ndim != 2:
        raise DataError(
            f'{argument}: got shape {array.shape} for a CTC loss, expected (rows, labels), or a '
            'list of sequences.'
        )
    return Task('sequence', None, outputs[-1], ignore_label=ignore_label, blank_id=0)


def other_reading(task: Task) -> str | None:
    """Returns how to have targets read in another way; None if no other task fits their shape.

    Example:
        >>> from thinkml.data.task_inference import other_reading
        >>> other_reading(Task('binary', (0, 1), num_outputs=1))
        "task='regression' for numbers"
        >>> other_reading(Task('binary', ('no', 'yes'), num_outputs=1))
    """
    if task.is_one_hot:
        return "task='multilabel' for a yes or no in each column"
    are_numbers = not any(isinstance(label, str | bool) for label in task.classes or ())
    one_logit = task.type.has_positive_class and task.num_outputs == 1
    if task.type.has_many_labels or (one_logit and are_numbers):
        return "task='regression' for numbers"
    return None


def _looks_like_labels(flat: np.ndarray, num_outputs: int) -> bool:
    if flat.dtype.kind in 'Ub':
        return True
    values = np.unique(flat)
    if flat.dtype.kind in 'iu':
        return num_outputs > 1 or len(values) <= 2
    is_integral = bool(np.all(values == np.round(values)))
    return (num_outputs > 1 and is_integral) or bool(np.isin(values, (0.0, 1.0)).all())


def _infer_classes(
    flat: np.ndarray, num_outputs: int, argument: str, others: str = ''
) -> tuple[Any, ...]:
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
            f'were selected.{others}'
        )
    outputs = 'output' if num_outputs == 1 else 'outputs'
    fix = f'Build the model with {len(values)} outputs'
    raise DataError(
        f'{argument}: got {len(values)} different labels ({shown}), but the model returns '
        f'{num_outputs} {outputs} per example, enough for {slots} classes. {fix}'
        + (', or use integer labels from 0 on.' if len(values) < slots else '.')
        + _marker_hint(flat, is_class=True)
    )


def _marker_hint(labels: np.ndarray, *, is_class: bool = False) -> str:
    marker = find_marker(labels)
    return '' if marker is None else ' ' + unlabeled(marker, is_class=is_class)


def _are_indices(values: np.ndarray, slots: int) -> bool:
    return bool(values.min() >= 0 and values.max() < slots and np.all(values == np.round(values)))


def _infer_from_rows(
    array: np.ndarray, num_outputs: int, argument: str, decided: Decision | None
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
    one_hot = decided != 'sigmoid' and is_one_hot(array)
    kind = kind_of_classes(width) if one_hot else 'multilabel'
    return Task(kind, tuple(range(width)), num_outputs, (width,))


def _infer_from_elements(
    array: np.ndarray,
    outputs: tuple[int, ...],
    argument: str,
    decided: Decision | None,
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
        if has_columns and decided != 'sigmoid' and is_one_hot(array):
            return _task_of_columns(kind_of_classes(targets[-1]), targets)
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
    _check_some_count(flat, marker, argument)
    if flat.dtype.kind == 'f' and not np.array_equal(flat, np.round(flat)):
        raise DataError(_shapes_differ(array, outputs, argument))
    classes = _infer_classes(flat, num_outputs, argument)
    return Task(
        kind_of_classes(len(classes)), classes, num_outputs,
        target_shape=target_shape, element_shape=element_shape, ignore_label=marker,
    )  # fmt: skip


def _is_kept(known: Task, array: np.ndarray, num_outputs: int, decided: Decision | None) -> bool:
    """Returns True if the task of an earlier training is kept for these targets."""
    return (
        known.num_outputs == num_outputs
        and known.is_classification
        and decided != 'regression'
        and (decided != 'sigmoid' or known.type.has_yes_no_outputs(num_outputs))
        and fits(array, known)
    )


def _has_two_values(array: np.ndarray, decided: Decision | None, ignore_label: int) -> bool:
    """Returns True for labels of two classes; for floats these are 0 and 1."""
    if array.dtype.kind in 'Ub' or decided is not None:
        return True
    values = np.unique(array)
    values = values[values != ignore_label]
    are_bits = bool(np.isin(values, (0, 1)).all())
    return are_bits or (array.dtype.kind in 'iu' and len(values) <= 2)


def _task_of_columns(kind: TaskKind, targets: tuple[int, ...]) -> Task:
    width = targets[-1]
    return Task(
        kind, tuple(range(width)), width,
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
