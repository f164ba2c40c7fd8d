"""Sample weights: the weight of each example's loss, from class weights and row weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from thinkml.core.objectives.elements import IGNORED
from thinkml.data.arrays import as_numeric
from thinkml.data.numeric_checks import check_finite
from thinkml.errors import DataError, did_you_mean, is_number
from thinkml.tasks import Task


def example_weights(
    targets: np.ndarray,
    task: Task,
    class_weights: Mapping[Any, float] | str | None = None,
    sample_weight: ArrayLike | None = None,
    *,
    rows: np.ndarray | None = None,
) -> np.ndarray | None:
    r"""Returns the weight of each example: the weight of its class times its sample weight.

    ``'balanced'`` gives a class the weight ``n / (k * count)``, as in scikit-learn: ``n`` rows of
    ``k`` different classes, ``count`` of them in this class. Both numbers are weighted by
    ``sample_weight``. So all classes have the same total weight.

    A weighted mean does not depend on the scale of its weights. If the weights are out of the
    range of float32, all are multiplied by the same power of 2.

    Args:
        targets: encoded targets ``[rows, ...]``.
        task: the task of the targets.
        class_weights: a weight for each label in the user's form (for one-hot rows, the index of
            the 1); other classes have weight 1. Or ``'balanced'``; None if all have weight 1.
        sample_weight: ``[rows]``, or ``[rows, *element_shape]``, not negative; None if all are 1.
        rows: the rows to train on, from which ``'balanced'`` counts the classes; None for all.

    Returns:
        float32 ``[rows]``, or ``[rows, *element_shape]`` if elements differ; None if all are 1.

    Raises:
        DataError: for labels the task does not have; for weights that are negative, not finite or
            all 0; for class weights of a task that does not have one class per row.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import example_weights
        >>> from thinkml.tasks import Task
        >>> task = Task('binary', ('no', 'yes'), num_outputs=1)
        >>> example_weights(np.array([0, 0, 0, 1]), task, {'yes': 3})
        array([1., 1., 1., 3.], dtype=float32)
    """
    if class_weights is None and sample_weight is None:
        return None
    used = slice(None) if rows is None else rows
    weight = np.ones(len(targets))
    if sample_weight is not None:
        shape = (len(targets), *task.element_shape)
        weight = in_float32(check_sample_weight(sample_weight, shape, 'sample_weight'))
    if class_weights is not None:
        table = class_weight_table(targets[used], task, class_weights, weight[used])
        weight = of_rows(weight, targets) * table[targets].astype(np.float64)
    if not weight[used].any():
        names = [
            name
            for name, value in (('class_weights', class_weights), ('sample_weight', sample_weight))
            if value is not None
        ]
        raise DataError(
            f'{", ".join(names)}: got weight 0 for every row to train on, expected some above 0.'
        )
    return in_float32(weight)


# Powers of 2 for weights whose products with losses and other weights stay within float32: those
# that are used unchanged, and the largest possible ones.
_USUAL, _POSSIBLE = 40, 80


def shift_of(weight: np.ndarray) -> int:
    """Returns the power of 2 that brings weights into the range of float32; 0 for usual ones."""
    positive = weight[weight > 0]
    if not len(positive):
        return 0
    low, high = np.frexp([positive.min(), positive.max()])[1].tolist()
    if low >= -_USUAL and high <= _USUAL:
        return 0
    return -max((low + high) // 2, high - _USUAL)


def in_float32(
    weight: np.ndarray, shift: int | None = None, argument: str = 'sample_weight'
) -> np.ndarray:
    """Returns weights in float32, multiplied by a power of 2, which rounds nothing.

    Args:
        weight: finite and at least 0.
        shift: the power; None for the result of `shift_of`.
        argument: the name used in error messages.

    Raises:
        DataError: if the weights are too large or too small for a ``shift`` from other weights.
    """
    shift = shift_of(weight) if shift is None else shift
    scaled = np.ldexp(weight.astype(np.float64), shift)
    if scaled.any() and abs(int(np.frexp(scaled.max())[1])) > _POSSIBLE:
        raise DataError(
            f'{argument}: got weights of up to {weight.max():.3g}, which float32 can not represent '
            'together with those of the first batch. Bring the weights of all batches to one scale.'
        )
    return scaled.astype(np.float32)


def check_sample_weight(
    sample_weight: ArrayLike, shape: int | tuple[int, ...], argument: str
) -> np.ndarray:
    """Returns the weights of rows, float64 ``[rows]``, or of their elements.

    Args:
        sample_weight: the weights.
        shape: the number of rows, or it and the axes of their elements.
        argument: the name used in error messages.

    Raises:
        DataError: unless there is one finite number of at least 0 for each row, or each element.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    num_rows = shape[0]
    weight = as_numeric(sample_weight, argument)
    check_finite(weight, argument)
    if len(shape) > 1 and weight.shape == shape:
        kept = shape
    elif weight.shape in ((num_rows,), (num_rows, 1)):
        kept = (num_rows,)
    else:
        of_elements = f', or {shape}: one per element' if len(shape) > 1 else ''
        raise DataError(
            f'{argument}: got shape {weight.shape}, expected ({num_rows},): one weight per row'
            f'{of_elements}.'
        )
    if weight.min() < 0:
        row = weight.argmin() // (weight.size // num_rows)
        raise DataError(
            f'{argument}: got {weight.min()} at row {row}, expected weights of at '
            'least 0. A row of weight 0 is ignored.'
        )
    return weight.reshape(kept).astype(np.float64)


def of_rows(weight: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the weights of rows in a shape that multiplies weights of the targets' elements."""
    return weight.reshape(*weight.shape, *[1] * (targets.ndim - weight.ndim))


def class_weight_table(
    targets: np.ndarray,
    task: Task,
    class_weights: Mapping[Any, float] | str,
    sample_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the weight of each class, float32, in the order of the encoded targets.

    The arguments and errors are those of `example_weights`; ``targets`` and ``sample_weight`` hold
    only the rows to train on.
    """
    if task.classes is None or not task.type.has_one_class:
        raise DataError(
            f'class_weights: got them for {task.in_words}, expected a task with one class '
            'per row. Pass sample_weight=..., one weight per row.'
        )
    if isinstance(class_weights, str) and class_weights == 'balanced':
        counted = targets != IGNORED
        if sample_weight is not None:
            shaped = of_rows(sample_weight, targets)
            sample_weight = np.broadcast_to(shaped, targets.shape)[counted]
        counts = np.bincount(targets[counted], sample_weight, minlength=len(task.classes))
        # A class without rows needs no weight: no row uses it.
        present = np.where(counts > 0, counts, 1)
        return in_float32(counts.sum() / (max(np.count_nonzero(counts), 1) * present))
    if not isinstance(class_weights, Mapping):
        raise DataError(
            f"class_weights: got {class_weights!r}, expected 'balanced' or a dict of a weight for "
            f'each label, for instance {{{task.classes[0]!r}: 2.0}}.'
        )
    weights = np.ones(len(task.classes))
    indices = {label: index for index, label in enumerate(task.classes)}
    for label, value in class_weights.items():
        if label not in indices:
            raise DataError(_unknown_label(label, task.classes))
        if not is_number(value) or value < 0:
            raise DataError(
                f'class_weights[{label!r}]: got {value!r}, expected a finite number of at least 0.'
            )
        weights[indices[label]] = value
    return in_float32(weights)


def _unknown_label(label: object, classes: tuple[Any, ...]) -> str:
    shown = [repr(each) for each in classes[:10]] + ['...'] * (len(classes) > 10)
    by_text = {str(each): each for each in classes}
    if str(label) in by_text:
        close = f' Did you mean {by_text[str(label)]!r}?'
    else:
        close = did_you_mean(label, by_text)
    return (
        f'class_weights: got the label {label!r}, expected one of {", ".join(shown)}, as in '
        f'y_train.{close}'
    )
