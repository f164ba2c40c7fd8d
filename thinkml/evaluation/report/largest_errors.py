"""Where the model was wrong: the most confident errors, the largest residuals."""

from typing import Any

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.regression import errors as target_less_prediction
from thinkml.evaluation.ranking_scores import scores
from thinkml.evaluation.result import Evaluation

NUM_ERRORS = 10
NUM_CONFUSIONS = 10


def errors(evaluation: Evaluation) -> dict[str, Any]:
    """The rows the model was most wrong about, and how many it was wrong about at all.

    Rows that count nothing are left out. Of several labels each is a row's error of its own; of
    several targets a residual is large by its target's RMSE.
    """
    scored = evaluation.scored
    if scored.kind == 'regression':
        return _residuals(scored)
    classes = [str(label) for label in evaluation.task.classes or ()]
    if scored.kind == 'multilabel':
        return _wrong_labels(scored, classes)
    return _wrong_classes(scored, classes)


def _wrong_classes(scored: EvaluationData, classes: list[str]) -> dict[str, Any]:
    wrong = np.flatnonzero((scored.labels != scored.predictions) & (scored.weights > 0))
    guess, p, sure = scored.predictions[wrong], None, None
    if scored.probabilities is not None:
        p, sure = scored.probabilities[wrong, guess], scored.part(scores)[wrong, guess]
    rows = [
        {
            'row': int(wrong[index]),
            'true': classes[scored.labels[wrong[index]]],
            'predicted': classes[guess[index]],
            'probability': None if p is None else float(p[index]),
        }
        for index in _surest(sure, len(wrong))
    ]
    return {'count': len(wrong), 'rows': rows}


def _wrong_labels(scored: EvaluationData, labels: list[str]) -> dict[str, Any]:
    truth, guess = scored.labels > 0.5, scored.predictions > 0.5
    rows, columns = np.nonzero((truth != guess) & (scored.weights > 0)[:, None])
    p = sure = None
    if scored.probabilities is not None:
        p = scored.probabilities[rows, columns]
        p = sure = np.where(guess[rows, columns], p, 1 - p)
        if scored.outputs is not None:
            logit = scored.part(scores)[rows, columns]
            sure = np.where(guess[rows, columns], logit, -logit)
    found = [
        {
            'row': int(rows[index]),
            'label': labels[columns[index]],
            'true': bool(truth[rows[index], columns[index]]),
            'predicted': bool(guess[rows[index], columns[index]]),
            'probability': None if p is None else float(p[index]),
        }
        for index in _surest(sure, len(rows))
    ]
    return {'count': len(rows), 'rows': found}


def _residuals(scored: EvaluationData) -> dict[str, Any]:
    residual = scored.part(target_less_prediction).error
    truth, guess = (a.reshape(residual.shape) for a in (scored.labels, scored.predictions))
    scale = np.sqrt(np.average(residual**2, axis=0, weights=scored.weights))
    size = np.abs(residual) / np.where(scale > 0, scale, 1)
    rows, columns = np.nonzero((size > 0) & (scored.weights > 0)[:, None])
    found = [
        {
            'row': int(row),
            'target': int(column),
            'true': float(truth[row, column]),
            'predicted': float(guess[row, column]),
            'residual': float(residual[row, column]),
        }
        for row, column in (
            (rows[index], columns[index]) for index in _surest(size[rows, columns], len(rows))
        )
    ]
    return {'count': len(rows), 'rows': found}


def _surest(values: np.ndarray | None, count: int) -> np.ndarray:
    """The places of the largest values, equal ones in order; the first of all if there are none."""
    order = np.arange(count) if values is None else np.argsort(-values, kind='stable')
    return order[:NUM_ERRORS]


def confusions(evaluation: Evaluation) -> list[dict[str, Any]] | None:
    """Which class was most often taken for which; None where there is no matrix of classes."""
    matrix = evaluation.confusion_matrix
    if matrix is None or matrix.ndim == 3:
        return None
    classes = [str(label) for label in evaluation.task.classes or ()]
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    order = np.argsort(-wrong, axis=None, kind='stable')[:NUM_CONFUSIONS]
    return [
        {
            'true': classes[true],
            'predicted': classes[guess],
            'count': wrong[true, guess],
            'share': wrong[true, guess] / matrix[true].sum(),
        }
        for true, guess in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, guess] > 0
    ]
