"""Largest errors: confident wrong predictions, surprises, large residuals and confusions."""

from typing import Any

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.per_row import log_loss_rows
from thinkml.evaluation.metrics.regression import errors as target_less_prediction
from thinkml.evaluation.ranking_scores import scores
from thinkml.evaluation.result import Evaluation

NUM_ERRORS = 10
NUM_CONFUSIONS = 10
NUM_SURPRISES = 10


def errors(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the largest errors of the model, and the number of all its errors.

    Rows with weight 0 are left out. With several labels, each label of a row can be an error. With
    several targets, residuals are compared in units of their target's RMSE.
    """
    data, task = evaluation.scored, evaluation.task
    classes = [str(label) for label in task.classes or ()]
    if not task.is_classification:
        found = _residuals(data)
    elif task.type.has_many_labels:
        found = _wrong_labels(data, classes)
    else:
        found = _wrong_classes(data, classes)
    if data.positions is None:
        return found
    rows = [_place(row, data.positions, task.element_shape) for row in found['rows']]
    return found | {'rows': rows}


def _place(error: dict[str, Any], positions: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns an error with its row, and with the index of its element if the row has several."""
    row, *element = np.unravel_index(positions[error['row']], (positions.max() + 1, *shape))
    place = {'element': ', '.join(map(str, element))} if shape else {}
    return error | {'row': int(row), **place}


def _wrong_classes(data: EvaluationData, classes: list[str]) -> dict[str, Any]:
    wrong = np.flatnonzero((data.labels != data.predictions) & (data.weights > 0))
    predicted, p, confidence = data.predictions[wrong], None, None
    if data.summary is not None:
        p, confidence = data.summary.confidence[wrong], data.summary.logit[wrong]
    elif data.probabilities is not None:
        p, confidence = data.probabilities[wrong, predicted], data.part(scores)[wrong, predicted]
    rows = [
        {
            'row': int(wrong[index]),
            'true': classes[data.labels[wrong[index]]],
            'predicted': classes[predicted[index]],
            'probability': None if p is None else float(p[index]),
        }
        for index in _largest(confidence, len(wrong))
    ]
    return {'count': len(wrong), 'rows': rows}


def _wrong_labels(data: EvaluationData, labels: list[str]) -> dict[str, Any]:
    truth, predicted = data.labels > 0.5, data.predictions > 0.5
    rows, columns = np.nonzero((truth != predicted) & (data.weights > 0)[:, None])
    p = confidence = None
    if data.probabilities is not None:
        p = data.probabilities[rows, columns]
        p = confidence = np.where(predicted[rows, columns], p, 1 - p)
        if data.outputs is not None:
            logit = data.part(scores)[rows, columns]
            confidence = np.where(predicted[rows, columns], logit, -logit)
    largest = [
        {
            'row': int(rows[index]),
            'label': labels[columns[index]],
            'true': bool(truth[rows[index], columns[index]]),
            'predicted': bool(predicted[rows[index], columns[index]]),
            'probability': None if p is None else float(p[index]),
        }
        for index in _largest(confidence, len(rows))
    ]
    return {'count': len(rows), 'rows': largest}


def _residuals(data: EvaluationData) -> dict[str, Any]:
    residual = data.part(target_less_prediction).error
    truth, predicted = (a.reshape(residual.shape) for a in (data.labels, data.predictions))
    scale = np.sqrt(np.average(residual**2, axis=0, weights=data.weights))
    size = np.abs(residual) / np.where(scale > 0, scale, 1)
    rows, columns = np.nonzero((size > 0) & (data.weights > 0)[:, None])
    largest = [
        {
            'row': int(row),
            'target': int(column),
            'true': float(truth[row, column]),
            'predicted': float(predicted[row, column]),
            'residual': float(residual[row, column]),
        }
        for row, column in (
            (rows[index], columns[index]) for index in _largest(size[rows, columns], len(rows))
        )
    ]
    return {'count': len(rows), 'rows': largest}


def surprises(evaluation: Evaluation) -> list[dict[str, Any]] | None:
    """Returns the tokens whose true label was least probable, the least probable one first.

    None unless the task has one label for each token and the model returns probabilities.
    """
    data, task = evaluation.scored, evaluation.task
    has_tokens = len(task.element_shape) == 1 and task.type.has_one_class
    if not has_tokens or not data.has_probabilities or data.positions is None:
        return None
    classes = [str(label) for label in task.classes or ()]
    probability = (
        np.take_along_axis(data.probabilities, data.labels[:, None], axis=1)[:, 0]
        if data.summary is None
        else data.summary.true_probability
    )
    counted, losses = np.flatnonzero(data.weights > 0), data.part(log_loss_rows)
    tokens = counted[_largest(losses[counted], len(counted), NUM_SURPRISES)]
    rows = [
        {
            'row': int(token),
            'true': classes[data.labels[token]],
            'predicted': classes[data.predictions[token]],
            'probability': float(probability[token]),
            'log_loss': float(losses[token]),
        }
        for token in tokens
    ]
    return [_place(row, data.positions, task.element_shape) for row in rows]


def _largest(values: np.ndarray | None, count: int, most: int = NUM_ERRORS) -> np.ndarray:
    """Returns the indices of the largest values, with ties in order.

    If there are no values, these are the first indices.
    """
    order = np.arange(count) if values is None else np.argsort(-values, kind='stable')
    return order[:most]


def confusions(evaluation: Evaluation) -> list[dict[str, Any]] | None:
    """Returns the most frequent pairs of true and predicted class; None without a class matrix."""
    matrix = evaluation.confusion_matrix
    if matrix is None or matrix.ndim == 3:
        return None
    classes = [str(label) for label in evaluation.task.classes or ()]
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    order = np.argsort(-wrong, axis=None, kind='stable')[:NUM_CONFUSIONS]
    return [
        {
            'true': classes[true],
            'predicted': classes[predicted],
            'count': wrong[true, predicted],
            'share': wrong[true, predicted] / matrix[true].sum(),
        }
        for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, predicted] > 0
    ]
