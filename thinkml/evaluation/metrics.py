"""Metrics of predictions, in numpy on the host, equal to scikit-learn's.

Labels and predictions are encoded: class indices ``(n,)`` for binary and multiclass, 0 or 1 in
``(n, k)`` for multilabel, numbers ``(n,)`` or ``(n, k)`` for regression. Probabilities are
``(n, 2)``, ``(n, classes)`` or ``(n, k)``. The positive class of a binary task is the one with
index 1; multiclass and multilabel values are means over classes and labels (macro).
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from thinkml.errors import ConfigError, problems, unknown_name
from thinkml.evaluation.ranking import average_precision, roc_auc, warn
from thinkml.record import TaskKind

# --- classification ---------------------------------------------------------------------------


class ClassCounts(NamedTuple):
    """How often each class was hit, was predicted and occurs, each ``(classes,)``."""

    hits: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray


def class_counts(labels: np.ndarray, predictions: np.ndarray, num_classes: int = 2) -> ClassCounts:
    """Counts what precision, recall and F1 are made of.

    Args:
        labels: encoded, ``(n,)`` or multilabel ``(n, k)``.
        predictions: encoded likewise.
        num_classes: the least number of classes to count; more are counted where they occur. For
            multilabel the columns are counted.

    Example:
        >>> import numpy as np
        >>> class_counts(np.array([0, 1, 1]), np.array([1, 1, 1])).hits
        array([0, 2])
    """
    if labels.ndim == 2:
        truth, guess = labels > 0.5, predictions > 0.5
        return ClassCounts((truth & guess).sum(0), guess.sum(0), truth.sum(0))
    length = max(num_classes, int(labels.max()) + 1, int(predictions.max()) + 1)
    return ClassCounts(
        np.bincount(labels[labels == predictions], minlength=length),
        np.bincount(predictions, minlength=length),
        np.bincount(labels, minlength=length),
    )


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides counts by counts; 0 where there is nothing to divide by, as scikit-learn has it."""
    zeros = np.zeros(np.shape(numerator))
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts rows by true and predicted class.

    Returns:
        Integers ``(classes, classes)``, true classes in rows, predicted in columns. For
        multilabel one matrix ``[[tn, fp], [fn, tp]]`` per label, ``(k, 2, 2)``.

    Example:
        >>> import numpy as np
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([1, 1, 1]), 2)
        array([[0, 1],
               [0, 2]])
    """
    if labels.ndim == 2:
        hits, predicted, actual = class_counts(labels, predictions)
        neither = len(labels) - predicted - actual + hits
        cells = np.stack([neither, predicted - hits, actual - hits, hits], axis=1)
        return cells.reshape(-1, 2, 2)
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(labels: np.ndarray, predictions: np.ndarray, kind: TaskKind) -> float:
    """The share of rows predicted right; for multilabel, right in every label.

    Example:
        >>> import numpy as np
        >>> accuracy(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), 'binary')
        0.75
    """
    right = labels == predictions
    return float(np.mean(right.all(axis=1) if kind == 'multilabel' else right))


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray, kind: TaskKind) -> float:
    """The mean recall of the classes that occur in the labels.

    For multilabel it is taken of each label's 0 and 1, then averaged over the labels.
    """
    if kind == 'multilabel':
        columns = zip(labels.T.astype(int), predictions.T.astype(int), strict=True)
        return float(np.mean([balanced_accuracy(*column, 'binary') for column in columns]))
    hits, predicted, actual = class_counts(labels, predictions)
    if np.any(predicted[actual == 0]):
        warn('balanced_accuracy: classes were predicted that y_test lacks; they are left out.')
    return float(np.mean(ratio(hits, actual)[actual > 0]))


def precision(labels: np.ndarray, predictions: np.ndarray, kind: TaskKind) -> float:
    """Of what was predicted to be a class, the share that is: ``tp / (tp + fp)``.

    A class that was never predicted has precision 0, with a warning. The multiclass mean is over
    the classes that occur in the labels or the predictions.

    Example:
        >>> import numpy as np
        >>> precision(np.array([0, 1, 1, 0]), np.array([1, 1, 1, 1]), 'binary')
        0.5
    """
    counts = class_counts(labels, predictions)
    return _mean_ratio(counts.hits, counts.predicted, counts, kind, 'precision: no predictions of')


def recall(labels: np.ndarray, predictions: np.ndarray, kind: TaskKind) -> float:
    """Of what is a class, the share that was predicted to be: ``tp / (tp + fn)``.

    A class without examples has recall 0, with a warning. The mean is over the same classes as
    in `precision`.
    """
    counts = class_counts(labels, predictions)
    return _mean_ratio(counts.hits, counts.actual, counts, kind, 'recall: no examples of')


def f1(labels: np.ndarray, predictions: np.ndarray, kind: TaskKind) -> float:
    """The harmonic mean of precision and recall: ``2 tp / (2 tp + fp + fn)``.

    A class that neither occurs nor is predicted has F1 0, with a warning. The multiclass value is
    the mean of the classes' F1, over the same classes as in `precision`.
    """
    counts = class_counts(labels, predictions)
    either = counts.predicted + counts.actual
    return _mean_ratio(
        2 * counts.hits, either, counts, kind, 'f1: neither examples nor predictions of'
    )


def _mean_ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    counts: ClassCounts,
    kind: TaskKind,
    missing: str,
) -> float:
    if kind == 'binary':
        which = np.array([1])
    elif kind == 'multiclass':
        which = np.flatnonzero(counts.predicted + counts.actual)
    else:
        which = np.arange(len(denominator))
    if undefined := int(np.sum(denominator[which] == 0)):
        noun = 'labels' if kind == 'multilabel' else 'classes'
        several = f'{undefined} of {len(which)} {noun}'
        warn(f'{missing} {"the positive class" if kind == "binary" else several}; set to 0 there.')
    return float(np.mean(ratio(numerator[which], denominator[which])))


def log_loss(labels: np.ndarray, probabilities: np.ndarray, kind: TaskKind) -> float:
    """The mean of ``-ln p`` of what is true, in nats; for multilabel, over rows and labels.

    Probabilities are clipped to ``[eps, 1 - eps]`` with the ``eps`` of their dtype, as
    scikit-learn does. For multilabel its ``log_loss`` counts positive labels only; this one is
    the mean of the labels' binary log losses.

    Example:
        >>> import numpy as np
        >>> round(log_loss(np.array([0, 1]), np.array([[0.5, 0.5], [0.5, 0.5]]), 'binary'), 4)
        0.6931
    """
    if kind == 'multilabel':
        true = np.where(labels > 0.5, probabilities, 1 - probabilities)
    else:
        true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    eps = np.finfo(probabilities.dtype).eps
    return float(-np.log(np.clip(true, eps, 1 - eps), dtype=np.float64).mean())


# --- regression -------------------------------------------------------------------------------


def mse(targets: np.ndarray, predictions: np.ndarray) -> float:
    """The mean squared error, in squared units of the target; the mean over several targets.

    Example:
        >>> import numpy as np
        >>> mse(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
        2.0
    """
    return float(np.mean(_errors(targets, predictions) ** 2))


def rmse(targets: np.ndarray, predictions: np.ndarray) -> float:
    """The root of each target's mean squared error, in the target's units; the mean of these."""
    return float(np.mean(np.sqrt(np.mean(_errors(targets, predictions) ** 2, axis=0))))


def mae(targets: np.ndarray, predictions: np.ndarray) -> float:
    """The mean absolute error, in the target's units; the mean over several targets."""
    return float(np.mean(np.abs(_errors(targets, predictions))))


def r2(targets: np.ndarray, predictions: np.ndarray) -> float:
    """The coefficient of determination ``1 - sum(error^2) / sum((y - mean(y))^2)``.

    1 is perfect, 0 is as good as always predicting the mean; the mean over several targets. A
    constant target gives 1 if predicted exactly, else 0. One row gives NaN, with a warning.
    """
    if len(targets) < 2:
        warn('r2: NaN, since it is not defined for a single row.')
        return float('nan')
    squares = np.sum(_errors(targets, predictions) ** 2, axis=0)
    spread = np.sum(_errors(targets, targets.mean(axis=0, dtype=np.float64)) ** 2, axis=0)
    return float(np.mean(np.where(spread > 0, 1 - ratio(squares, spread), squares == 0)))


def _errors(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return np.subtract(targets, predictions, dtype=np.float64)


# --- the table --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        function: ``function(labels, values, kind)``, without ``kind`` for regression.
        values: whether ``values`` are the predictions or the probabilities.
        regression: whether it is for regression rather than classification.
        default: whether it is computed where no metrics are asked for.
    """

    function: Callable[..., float]
    values: Literal['predictions', 'probabilities'] = 'predictions'
    regression: bool = False
    default: bool = True


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        'accuracy': Metric(accuracy),
        'balanced_accuracy': Metric(balanced_accuracy, default=False),
        'precision': Metric(precision),
        'recall': Metric(recall),
        'f1': Metric(f1),
        'roc_auc': Metric(roc_auc, 'probabilities'),
        'average_precision': Metric(average_precision, 'probabilities', default=False),
        'log_loss': Metric(log_loss, 'probabilities'),
        'rmse': Metric(rmse, regression=True),
        'mae': Metric(mae, regression=True),
        'mse': Metric(mse, regression=True, default=False),
        'r2': Metric(r2, regression=True),
    }
)


def metrics_for(kind: TaskKind) -> list[str]:
    """The names of all metrics that fit a task."""
    return [name for name, metric in METRICS.items() if metric.regression == (kind == 'regression')]


def default_metrics(kind: TaskKind) -> list[str]:
    """The names of the metrics computed where none are asked for."""
    return [name for name in metrics_for(kind) if METRICS[name].default]


def check_metrics(metrics: Collection[str] | None) -> list[str] | None:
    """Returns the asked names as a list, a set's in the order of `METRICS`.

    Raises:
        ConfigError: if they are no list, tuple or set of names that exist. Names every problem.
    """
    if metrics is None:
        return None
    if isinstance(metrics, str):
        raise ConfigError(f'metrics: got the string {metrics!r}, expected a list: [{metrics!r}].')
    if not isinstance(metrics, list | tuple | set | frozenset):
        raise ConfigError(
            f'metrics: got {type(metrics).__name__}, expected a list of names, or None for those '
            'that fit the task.'
        )
    _raise(unknown_name('metrics', n, METRICS) for n in metrics if not _is_known(n))
    is_ordered = isinstance(metrics, list | tuple)
    return list(metrics) if is_ordered else [name for name in METRICS if name in metrics]


def check_fit(names: Sequence[str], kind: TaskKind) -> None:
    """Checks that known metrics fit a task.

    Raises:
        ConfigError: names every one that doesn't.
    """
    fitting = metrics_for(kind)
    _raise(
        f'metrics: got {name!r}, but the task is {kind}; expected some of {", ".join(fitting)}.'
        for name in names
        if name not in fitting
    )


def _is_known(name: Any) -> bool:
    return isinstance(name, str) and name in METRICS


def _raise(problem: Iterable[str]) -> None:
    found = list(problem)
    if found:
        raise ConfigError(found[0] if len(found) == 1 else problems('metrics:', found))


def compute_metrics(
    names: Sequence[str],
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray | None,
    kind: TaskKind,
) -> dict[str, float]:
    """Computes metrics by name. Everything is encoded; None probabilities are for regression."""
    values = {'predictions': predictions, 'probabilities': probabilities}
    kinds = () if kind == 'regression' else (kind,)
    return {
        name: METRICS[name].function(labels, values[METRICS[name].values], *kinds) for name in names
    }
