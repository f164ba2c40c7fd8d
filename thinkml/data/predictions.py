"""Predictions: a model's outputs as probabilities, labels and numbers."""

import numpy as np

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
