"""Per-row metrics: means over the rows' accuracies, log losses and Brier scores."""

import functools
from collections.abc import Callable

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.ranking_scores import scores
from thinkml.typing import Array


def mean_of_rows(part: Array, weight: Array) -> Array:
    """Returns the weighted mean of a value per row, ``(n,)``."""
    return weight @ part / weight.sum()


def accuracy_rows(data: EvaluationData) -> np.ndarray:
    """Returns 1 for each row with a right prediction: of several labels, all must be right."""
    right = data.labels == data.predictions
    right = right.all(axis=1) if right.ndim > 1 else right
    return right.astype(np.float64)


@functools.lru_cache(maxsize=256)
def top_rows(k: int) -> Callable[[EvaluationData], np.ndarray]:
    """Returns a function that gives 1 if the label is among the ``k`` most probable classes.

    If probabilities are equal, the earlier class counts as more probable, as for predictions.
    (In scikit-learn it is the later one.)
    """

    def rows(data: EvaluationData) -> np.ndarray:
        if data.summary is not None:
            return (data.summary.rank < k).astype(np.float64)
        labels = data.labels[:, None]
        values = data.probabilities if data.outputs is None else data.outputs
        assert values is not None
        values = values.reshape(len(data), -1)
        of_label = np.take_along_axis(values, labels, axis=1)
        earlier = np.arange(values.shape[1]) < labels
        ahead = (values > of_label) | ((values == of_label) & earlier)
        return (ahead.sum(axis=1) < k).astype(np.float64)

    return rows


def log_loss_rows(data: EvaluationData) -> np.ndarray:
    """Returns ``-ln p`` of the true class, in nats; for multilabel, the mean over the labels.

    It is computed from the logits if the model returns them, so it has no largest value, like
    cross-entropy. Probabilities of other libraries' models are clipped to ``[eps, 1 - eps]`` with
    the ``eps`` of their dtype, as in scikit-learn. For multilabel, scikit-learn's ``log_loss``
    counts only positive labels; this one is the mean of the labels' binary log losses.
    """
    if data.summary is not None:
        return data.summary.log_loss.astype(np.float64)
    values, has_logits = data.part(scores), data.outputs is not None
    if data.task_type.has_many_labels:
        true = np.where(data.labels > 0.5, values, -values if has_logits else 1 - values)
    else:
        true = np.take_along_axis(values, data.labels[:, None], axis=1)
    if has_logits:
        return np.logaddexp(0, -true, dtype=np.float64).mean(axis=1)
    eps = np.finfo(values.dtype).eps
    return -np.log(np.clip(true, eps, 1 - eps), dtype=np.float64).mean(axis=1)


def bits_rows(data: EvaluationData) -> np.ndarray:
    """Returns ``-log2 p`` of the true label of each row, ``(n,)``."""
    return data.part(log_loss_rows) / np.log(2)


def perplexity(rows: Array, weight: Array) -> Array:
    """Returns ``exp`` of the mean loss: so many equally likely labels would be as uncertain."""
    mean = mean_of_rows(rows, weight)
    return mean.__array_namespace__().exp(mean)


def brier_rows(data: EvaluationData) -> np.ndarray:
    """Returns the squared error of the probabilities.

    ``(p - y)^2`` for binary; its sum over the classes for multiclass; its mean over the labels for
    multilabel.

    Reference:
        Brier, 1950, *Verification of forecasts expressed in terms of probability*.
    """
    if data.summary is not None:
        return data.summary.squares.astype(np.float64) + 1 - 2 * data.summary.true_probability
    probabilities = data.probabilities
    assert probabilities is not None
    if data.task_type.has_many_labels:
        return ((probabilities - (data.labels > 0.5)) ** 2).mean(axis=1, dtype=np.float64)
    if data.task_type.has_positive_class:
        return (probabilities[:, 1].astype(np.float64) - data.labels) ** 2
    true = np.take_along_axis(probabilities, data.labels[:, None], axis=1)[:, 0]
    true = true.astype(np.float64)
    return (probabilities.astype(np.float64) ** 2).sum(axis=1) - true**2 + (1 - true) ** 2
