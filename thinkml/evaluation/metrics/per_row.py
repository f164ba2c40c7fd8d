"""Metrics that are means over rows: each row's accuracy, log loss, Brier score."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.ranking_scores import scores


def mean_of_rows(part: Any, weight: Any) -> Any:
    """The weighted mean of a value per row, ``(n,)``."""
    return weight @ part / weight.sum()


def accuracy_rows(scored: EvaluationData) -> np.ndarray:
    """1 where the prediction is right; for multilabel, right in every label."""
    right = scored.labels == scored.predictions
    right = right.all(axis=1) if scored.kind == 'multilabel' else right
    return right.astype(np.float64)


@functools.lru_cache(maxsize=256)
def top_rows(k: int) -> Callable[[EvaluationData], np.ndarray]:
    """Makes each row's 1 where the label is among the ``k`` most probable classes.

    Of equal probabilities the earlier class is the more probable, as for the predictions. (For
    scikit-learn it is the later one.)
    """

    def rows(scored: EvaluationData) -> np.ndarray:
        labels = scored.labels[:, None]
        values = scored.probabilities if scored.outputs is None else scored.outputs
        assert values is not None
        values = values.reshape(len(scored), -1)
        own = np.take_along_axis(values, labels, axis=1)
        earlier = np.arange(values.shape[1]) < labels
        ahead = (values > own) | ((values == own) & earlier)
        return (ahead.sum(axis=1) < k).astype(np.float64)

    return rows


def log_loss_rows(scored: EvaluationData) -> np.ndarray:
    """``-ln p`` of what is true, in nats; for multilabel, the mean over the labels.

    It is computed from the logits where the model gives them, so that it has no largest value, as
    cross-entropy has none. Probabilities of other libraries' models are clipped to
    ``[eps, 1 - eps]`` with the ``eps`` of their dtype, as scikit-learn does. For multilabel its
    ``log_loss`` counts positive labels only; this one is the mean of the labels' binary log losses.
    """
    values, has_logits = scored.part(scores), scored.outputs is not None
    if scored.kind == 'multilabel':
        true = np.where(scored.labels > 0.5, values, -values if has_logits else 1 - values)
    else:
        true = np.take_along_axis(values, scored.labels[:, None], axis=1)
    if has_logits:
        return np.logaddexp(0, -true, dtype=np.float64).mean(axis=1)
    eps = np.finfo(values.dtype).eps
    return -np.log(np.clip(true, eps, 1 - eps), dtype=np.float64).mean(axis=1)


def brier_rows(scored: EvaluationData) -> np.ndarray:
    """The squared error of the probabilities.

    ``(p - y)^2`` for binary; its sum over the classes for multiclass; its mean over the labels for
    multilabel.

    Reference:
        Brier, 1950, *Verification of forecasts expressed in terms of probability*.
    """
    shares = scored.probabilities
    assert shares is not None
    if scored.kind == 'multilabel':
        return ((shares - (scored.labels > 0.5)) ** 2).mean(axis=1, dtype=np.float64)
    if scored.kind == 'binary':
        return (shares[:, 1].astype(np.float64) - scored.labels) ** 2
    own = np.take_along_axis(shares, scored.labels[:, None], axis=1)[:, 0].astype(np.float64)
    return (shares.astype(np.float64) ** 2).sum(axis=1) - own**2 + (1 - own) ** 2
