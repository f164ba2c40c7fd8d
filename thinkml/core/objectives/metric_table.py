"""Metric names: all names, those that fit a task, and the direction in which each is better."""

import functools
import inspect
import re
from collections.abc import Callable, Hashable
from typing import Any

import jax
from clu import metrics as clu_metrics

from thinkml.errors import unknown_name
from thinkml.model_record import TaskKind

Metric = str | type[clu_metrics.Metric] | Callable[[Any, Any], Any]

# The keywords of a metric's from_model_output; the last three are None in an evaluation.
STEP_KEYWORDS = ('logits', 'labels', 'losses', 'weight', 'mask', 'grads', 'params', 'updates')
TRAINING_ONLY_METRICS = ('grad_norm', 'update_ratio')
CLASSIFICATION_METRICS = (
    'accuracy',
    'balanced_accuracy',
    'top_k_accuracy',
    'precision',
    'recall',
    'f1',
    *(
        f'{name}_{how}'
        for name in ('precision', 'recall', 'f1')
        for how in ('macro', 'micro', 'weighted')
    ),
    'roc_auc',
    'average_precision',
    'log_loss',
    'brier',
    *TRAINING_ONLY_METRICS,
)
REGRESSION_METRICS = ('mse', 'mae', 'rmse', 'r2', *TRAINING_ONLY_METRICS)
_LOWER_IS_BETTER = frozenset(
    {'loss', 'log_loss', 'brier', 'mse', 'mae', 'rmse', *TRAINING_ONLY_METRICS}
)
_TOP = re.compile(r'top_(k|[1-9]\d*)_accuracy')


def is_higher_better(name: str) -> bool | None:
    """Returns True if larger values of a metric are better, False if smaller ones are.

    Args:
        name: the metric's name in the history, which may begin with ``'val_'``.

    Returns:
        True or False, or None for a custom metric, whose direction is unknown.

    Example:
        >>> from thinkml.core.objectives.metric_table import is_higher_better
        >>> is_higher_better('val_roc_auc'), is_higher_better('loss'), is_higher_better('mine')
        (True, False, None)
    """
    name = name.removeprefix('val_')
    if name in _LOWER_IS_BETTER:
        return False
    names = (*CLASSIFICATION_METRICS, *REGRESSION_METRICS)
    return True if name in names or top_k(name) else None


def top_k(name: str) -> int | None:
    """Returns the ``k`` of ``'top_3_accuracy'``, 5 for ``'top_k_accuracy'``, None for others."""
    match = _TOP.fullmatch(name)
    if match is None:
        return None
    return 5 if match[1] == 'k' else int(match[1])


def metric_name(metric: Metric) -> str:
    """Returns a metric's name in the history: a function's name, a class's name in snake_case.

    Example:
        >>> from clu.metrics import Accuracy
        >>> from thinkml.core.objectives.metric_table import metric_name
        >>> metric_name('f1'), metric_name(Accuracy), metric_name(lambda logits, labels: 0)
        ('f1', 'accuracy', 'lambda')
    """
    if isinstance(metric, str):
        return metric
    if isinstance(metric, functools.partial):
        return metric_name(metric.func)
    if not isinstance(metric, type) and hasattr(metric, '__name__'):
        return metric.__name__.strip('<>')
    name = (metric if isinstance(metric, type) else type(metric)).__name__
    return re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()


def check_metric(
    metric: object, kind: TaskKind | None = None, num_outputs: int | None = None
) -> str | None:
    """Returns a sentence that says what is wrong with an entry of ``metrics``; None if valid.

    Args:
        metric: a name, a class of `clu.metrics.Metric`, or a function ``(logits, labels)``.
        kind: the kind of the task; None does not check that the metric fits it.
        num_outputs: the number of values the model returns per example; None does not check it.

    Example:
        >>> from thinkml.core.objectives.metric_table import check_metric
        >>> check_metric('top_3_accuracy', 'multiclass', num_outputs=10)
        >>> check_metric('top_3_accuracy', 'binary')
        "metrics: got 'top_3_accuracy' for a binary task, which has no top 3; expected 'accuracy'."
    """
    if not isinstance(metric, str):
        return _check_custom(metric)
    names = {
        None: (*CLASSIFICATION_METRICS, *REGRESSION_METRICS),
        'regression': REGRESSION_METRICS,
    }.get(kind, CLASSIFICATION_METRICS)
    k = top_k(metric)
    if metric not in names and not (k and 'top_k_accuracy' in names):
        sentence = unknown_name('metrics', metric, set(names))
        return f'{sentence} The task is {kind}.' if kind else sentence
    if k and kind in ('binary', 'multilabel'):
        return (
            f"metrics: got {metric!r} for a {kind} task, which has no top {k}; expected 'accuracy'."
        )
    if k and num_outputs and k >= num_outputs:
        return (
            f'metrics: got {metric!r} for {num_outputs} classes, where it is always 1; expected '
            "fewer, as in 'top_2_accuracy'."
        )
    return None


def _check_custom(metric: Any) -> str | None:
    name = getattr(metric, '__name__', repr(metric))
    is_class = isinstance(metric, type) and issubclass(metric, clu_metrics.Metric)
    if is_class and issubclass(metric, clu_metrics.CollectingMetric):
        return (
            f'metrics: {name} collects on the host, which a compiled step cannot do. Pass a '
            'function (logits, labels) -> number instead: it gets the whole epoch.'
        )
    if is_class:
        return _check_class(metric)
    if isinstance(metric, type) or not callable(metric):
        return (
            f'metrics: got {metric!r}, expected a name, a class of clu.metrics.Metric or a '
            'function (logits, labels).'
        )
    if not isinstance(metric, Hashable):
        return f'metrics: got {metric!r}, which is not hashable; expected a function.'
    function = metric.func if isinstance(metric, functools.partial) else metric
    if str(getattr(function, '__module__', None)).startswith('sklearn.'):
        return (
            f"metrics: got scikit-learn's {metric_name(metric)}, which takes (labels, "
            'predictions), expected a function (logits, labels). Write one that calls it.'
        )
    return None


def _check_class(metric: type[clu_metrics.Metric]) -> str | None:
    try:
        jax.eval_shape(metric.empty)
    except Exception as error:
        return (
            f'metrics: {metric.__name__}.empty() did not return a pytree of arrays '
            f'({type(error).__name__}). Decorate the class with @flax.struct.dataclass, and write '
            'empty().'
        )
    try:
        inspect.signature(metric.from_model_output).bind(**dict.fromkeys(STEP_KEYWORDS))
    except TypeError as error:
        return (
            f'metrics: {metric.__name__}.from_model_output is called with the keywords '
            f'{", ".join(STEP_KEYWORDS)}, and it {_reword(error)}. Let it take those it needs, '
            'and end with **_ for the others.'
        )
    return None


def _reword(error: TypeError) -> str:
    text = str(error)
    if text.startswith('missing a required'):
        return text.replace('missing a required', 'requires another', 1)
    return text.replace('got an unexpected', 'does not take the', 1)
