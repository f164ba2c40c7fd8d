"""Ranking scores: logits, which still order rows whose probabilities have rounded to 0 or 1."""

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.task_types import TASK_TYPES, TaskKind


def scores(data: EvaluationData) -> np.ndarray:
    """Returns the scores that rank the rows for each class or label, shaped as the probabilities.

    Scores are logits, from a model's outputs. For models of other libraries they are the
    probabilities, since there are no outputs.
    """
    if data.outputs is None:
        assert data.probabilities is not None
        return data.probabilities
    return logits(data.outputs, data.kind)


def logits(outputs: np.ndarray, kind: TaskKind) -> np.ndarray:
    """Returns the logit ``ln(p / (1 - p))`` of each class or label.

    A probability rounds to 1 for logits from 17 on in float32, and from 37 on in float64. Logits
    keep the order of all rows.

    Args:
        outputs: the outputs of a model, ``(n, outputs)`` or ``(n,)``.
        kind: the kind of the task, a classification.

    Returns:
        ``(n, 2)`` for binary, else ``(n, classes)`` or ``(n, labels)``. Outputs that are logits
        already keep their dtype, the others become float64.
    """
    outputs = outputs.reshape(len(outputs), -1)
    if TASK_TYPES[kind].has_many_labels:
        return outputs
    if outputs.shape[1] == 1:
        return np.concatenate([-outputs, outputs], axis=1)
    outputs = outputs.astype(np.float64)
    return outputs - outputs[:, ::-1] if outputs.shape[1] == 2 else _against_the_rest(outputs)


def _against_the_rest(outputs: np.ndarray) -> np.ndarray:
    """Returns each output minus the logarithm of the sum of the exponentials of the others.

    The sums are over sorted outputs, so rows with the same outputs in another order have the same
    logits.
    """
    falling = -np.sort(-outputs, axis=1)
    first, second = falling[:, :1], falling[:, 1:2]
    is_first = outputs == first
    below = np.exp(falling[:, 1:] - second).sum(axis=1, keepdims=True)
    total = np.exp(falling - first).sum(axis=1, keepdims=True)
    rest = np.where(is_first, below, total - np.exp(outputs - first))
    return outputs - np.where(is_first, second, first) - np.log(rest)
