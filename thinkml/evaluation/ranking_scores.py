"""Scores: what ranks rows and classes, also where probabilities have rounded to 0 or 1."""

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.model_record import TaskKind


def scores(scored: EvaluationData) -> np.ndarray:
    """Returns what ranks the rows for each class or label, laid out as the probabilities.

    A model's outputs give logits; models of other libraries give their probabilities alone.
    """
    if scored.outputs is None:
        assert scored.probabilities is not None
        return scored.probabilities
    return logits(scored.outputs, scored.kind)


def logits(outputs: np.ndarray, kind: TaskKind) -> np.ndarray:
    """Returns the logit ``ln(p / (1 - p))`` of each class or label.

    In float32 a probability is 1 from a logit of 17 on, and in float64 from 37 on; logits keep
    the order of all rows.

    Args:
        outputs: of a model, ``(n, outputs)`` or ``(n,)``.
        kind: of the task, a classification.

    Returns:
        ``(n, 2)`` for binary, ``(n, classes)`` or ``(n, labels)``. Outputs that are logits already
        keep their dtype, the others become float64.
    """
    outputs = outputs.reshape(len(outputs), -1)
    if kind == 'multilabel':
        return outputs
    if outputs.shape[1] == 1:
        return np.concatenate([-outputs, outputs], axis=1)
    outputs = outputs.astype(np.float64)
    return outputs - outputs[:, ::-1] if outputs.shape[1] == 2 else _against_the_rest(outputs)


def _against_the_rest(outputs: np.ndarray) -> np.ndarray:
    """Each output minus the logarithm of the sum of the exponentials of the others.

    Sums are over sorted outputs: rows with the same outputs in another order have the same logits.
    """
    falling = -np.sort(-outputs, axis=1)
    first, second = falling[:, :1], falling[:, 1:2]
    is_first = outputs == first
    below = np.exp(falling[:, 1:] - second).sum(axis=1, keepdims=True)
    total = np.exp(falling - first).sum(axis=1, keepdims=True)
    rest = np.where(is_first, below, total - np.exp(outputs - first))
    return outputs - np.where(is_first, second, first) - np.log(rest)
