"""Predictions: a model's outputs as probabilities, labels and numbers."""

import numpy as np

from thinkml.core.objectives.ctc import best_path
from thinkml.errors import DataError
from thinkml.tasks import Task

# The usual causes if a model returns NaN.
WHY_NAN = (
    'If all are NaN, the training has diverged: train again with a lower learning_rate. If some '
    'are, look for ids beyond the rows of an embedding, and for a logarithm or division.'
)


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
    shape = (len(outputs), *task.element_shape)
    outputs = _matrix(outputs, task).astype(np.float64)
    _check_numbers(outputs, task)
    return task.type.probabilities(outputs).reshape(*shape, -1)


def _matrix(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Returns the outputs as ``[elements, num_outputs]``."""
    return outputs.reshape(len(outputs) * task.num_elements, -1)


def log_probabilities(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Converts raw outputs to log-probabilities, which differ even for confident predictions.

    Args:
        outputs: ``[rows, num_outputs]`` or ``[rows]``, finite.
        task: a classification task.

    Returns:
        float64 ``[rows, classes]``; for multilabel ``[rows, labels, 2]``, for no and yes.
    """
    return task.type.log_probabilities(outputs.reshape(len(outputs), -1).astype(np.float64))


def _check_numbers(outputs: np.ndarray, task: Task) -> None:
    if task.is_classification:
        _check_no_nan(np.isnan(outputs))


def _check_no_nan(is_nan: np.ndarray) -> None:
    unclear = is_nan.any(axis=1)
    if unclear.any():
        raise DataError(
            f'model: it returns NaN for {unclear.sum():,} of {len(is_nan):,} rows, the first at '
            f'row {unclear.argmax()}, expected numbers to choose a class by. {WHY_NAN}'
        )


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
    _check_numbers(outputs, task)
    encoded = task.type.decide(outputs)
    return (_labels_of(encoded, task) if task.type.has_one_class else encoded).reshape(shape)


def decode_indices(indices: np.ndarray, task: Task) -> np.ndarray:
    """Returns `decode` of outputs whose largest ones have these indices; -1 stands for NaN.

    Args:
        indices: ``[rows, *element_shape]``, from `thinkml.core.model.forward.largest_output`.
        task: a task with one class for each element, and an output for each class.
    """
    _check_no_nan(indices.reshape(len(indices), -1) < 0)
    return _labels_of(indices.reshape(-1), task).reshape(len(indices), *task.row_shape)


def decode_frames(path: np.ndarray, task: Task) -> list[np.ndarray]:
    """Returns the labels of the best path of each row, without repeats and blanks.

    Args:
        path: ``[rows, frames]``, the most probable class of each frame, from
            `thinkml.core.model.forward.largest_output`; -1 stands for NaN.
        task: a task of sequences.

    Raises:
        DataError: for outputs that are NaN.
    """
    _check_no_nan(path < 0)
    assert task.blank_id is not None
    labels = best_path(path.astype(np.int64), task.blank_id)
    return [row[row >= 0] for row in labels]


def _labels_of(indices: np.ndarray, task: Task) -> np.ndarray:
    if task.is_one_hot:
        return np.eye(task.num_outputs, dtype=np.int64)[indices]
    return np.asarray(task.classes)[indices]
