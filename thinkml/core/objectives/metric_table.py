"""Metric table: the names, tasks and directions of all metrics of training and of evaluation.

The computations are attached by name: the streaming ones of training in `metric_entries`, the exact
ones of evaluation in `thinkml.evaluation.metrics.registry`.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import jax
from clu import metrics as clu_metrics

from thinkml.core.objectives.hashable import is_hashable
from thinkml.core.objectives.image_quality import image_problem
from thinkml.errors import unknown_name
from thinkml.task_types import TaskKind

Metric = str | type[clu_metrics.Metric] | Callable[[Any, Any], Any]

# The keywords of a metric's from_model_output; the last three are None in an evaluation.
STEP_KEYWORDS = (
    'logits', 'labels', 'losses', 'weight', 'mask', 'element_shape', 'grads', 'params', 'updates'
)  # fmt: skip

_KINDS: frozenset[TaskKind] = frozenset(get_args(TaskKind))
_REGRESSION: frozenset[TaskKind] = frozenset({'regression'})
_MULTICLASS: frozenset[TaskKind] = frozenset({'multiclass'})
_CLASSES: frozenset[TaskKind] = frozenset({'binary', 'multiclass'})
_LABELS: frozenset[TaskKind] = frozenset({'binary', 'multilabel'})
_SEQUENCES: frozenset[TaskKind] = frozenset({'sequence'})
_CLASSIFICATION = _KINDS - _REGRESSION - _SEQUENCES


class MetricSpec(NamedTuple):
    """A row of the table: the name of a metric, and where and how it is used.

    Attributes:
        name: the metric's name. Metrics whose names differ in a number have one row, which has a
            letter in place of the number or leaves it out: ``'top_k_accuracy'``, ``'pinball_q'``,
            ``'psnr'``. Metrics of one class have one row, too: ``'iou_<class>'``.
        tasks: the kinds of tasks that it fits.
        higher_is_better: True if larger values are better, False if smaller ones are; None if the
            best value is in between.
        in_training: True if training can record it.
        in_evaluation: True if an evaluation can compute it.
        in_analysis: True if an analysis of any model that fits the task includes it.
        is_default: True if an evaluation computes it when no metrics are requested.
        active_learning_tasks: the kinds of tasks for which active learning measures it by default.
        needs_probabilities: True if predictions alone are not enough for an evaluation.
        average: ``'macro'``, ``'micro'`` or ``'weighted'`` if the name ends in this average over
            classes or labels, else None.
        pattern: a regular expression that matches the names with a number or class, which is its
            group; None for one name.
        default_number: the number if the name has the letter in its place or leaves it out; None if
            the name then is not valid.
        has_class: True if names end in one of the task's classes (or labels).
    """

    name: str
    tasks: frozenset[TaskKind]
    higher_is_better: bool | None = True
    in_training: bool = False
    in_evaluation: bool = True
    in_analysis: bool = True
    is_default: bool = False
    active_learning_tasks: frozenset[TaskKind] = frozenset()
    needs_probabilities: bool = False
    average: str | None = None
    pattern: str | None = None
    default_number: int | None = None
    has_class: bool = False

    @property
    def base_name(self) -> str:
        """Returns the name without the average: ``'f1'`` for ``'f1_macro'``."""
        return self.name if self.average is None else self.name.removesuffix(f'_{self.average}')


# fmt: off
_CLASS_FRACTIONS = (
    MetricSpec(name='precision', tasks=_CLASSIFICATION, in_training=True, is_default=True),
    MetricSpec(name='recall', tasks=_CLASSIFICATION, in_training=True, is_default=True),
    MetricSpec(
        name='f1', tasks=_CLASSIFICATION, in_training=True, is_default=True,
        active_learning_tasks=frozenset({'multilabel'}),
    ),
    MetricSpec(name='specificity', tasks=_CLASSIFICATION),
    MetricSpec(name='npv', tasks=_CLASSIFICATION),
    MetricSpec(name='iou', tasks=_CLASSIFICATION, in_training=True, in_analysis=False),
)
_SPECS = (
    # Counts of classes.
    MetricSpec(
        name='accuracy', tasks=_CLASSIFICATION, in_training=True, is_default=True,
        active_learning_tasks=_CLASSIFICATION,
    ),
    MetricSpec(
        name='exact_match', tasks=_CLASSIFICATION | _SEQUENCES, in_training=True, in_analysis=False
    ),
    MetricSpec(name='balanced_accuracy', tasks=_CLASSIFICATION, in_training=True),
    MetricSpec(name='mcc', tasks=_CLASSES),
    MetricSpec(name='kappa', tasks=_CLASSES),
    *_CLASS_FRACTIONS,
    *(
        spec._replace(
            name=f'{spec.name}_{average}', average=average, in_analysis=False, is_default=False,
            active_learning_tasks=frozenset(),
        )
        for average in ('macro', 'micro', 'weighted')
        for spec in _CLASS_FRACTIONS
    ),

    # Other names of averages, which are usual for pixels.
    MetricSpec(
        name='mean_iou', tasks=_CLASSIFICATION, in_training=True, in_analysis=False,
        average='macro',
    ),
    MetricSpec(name='dice', tasks=_CLASSIFICATION, in_training=True, in_analysis=False),

    # One class (or label) alone.
    MetricSpec(
        name='iou_<class>', tasks=_CLASSIFICATION, in_training=True, in_analysis=False,
        pattern=r'iou_(.+)', has_class=True,
    ),

    # Probabilities.
    MetricSpec(
        name='roc_auc', tasks=_CLASSIFICATION, in_training=True, is_default=True,
        needs_probabilities=True,
    ),
    MetricSpec(name='roc_auc_ovo', tasks=_MULTICLASS, needs_probabilities=True),
    MetricSpec(
        name='roc_auc_binned', tasks=_CLASSIFICATION, in_training=True, in_evaluation=False,
        in_analysis=False, needs_probabilities=True,
    ),
    MetricSpec(
        name='average_precision', tasks=_CLASSIFICATION, in_training=True, needs_probabilities=True
    ),
    MetricSpec(
        name='log_loss', tasks=_CLASSIFICATION, higher_is_better=False, in_training=True,
        is_default=True, active_learning_tasks=_CLASSES, needs_probabilities=True,
    ),
    MetricSpec(
        name='perplexity', tasks=_CLASSIFICATION, higher_is_better=False, in_training=True,
        in_analysis=False, needs_probabilities=True,
    ),
    MetricSpec(
        name='bits_per_token', tasks=_CLASSIFICATION, higher_is_better=False, in_training=True,
        in_analysis=False, needs_probabilities=True,
    ),
    MetricSpec(
        name='brier', tasks=_CLASSIFICATION, higher_is_better=False, in_training=True,
        needs_probabilities=True,
    ),
    # An analysis leaves it out, since it duplicates other metrics.
    MetricSpec(
        name='top_k_accuracy', tasks=_MULTICLASS, in_training=True, in_analysis=False,
        needs_probabilities=True, pattern=r'top_(k|[1-9]\d*)_accuracy', default_number=5,
    ),
    MetricSpec(
        name='ece', tasks=_CLASSIFICATION, higher_is_better=False, needs_probabilities=True
    ),
    MetricSpec(
        name='ece_adaptive', tasks=_CLASSIFICATION, higher_is_better=False, needs_probabilities=True
    ),
    MetricSpec(
        name='calibration_slope', tasks=_LABELS, higher_is_better=None, needs_probabilities=True
    ),
    MetricSpec(
        name='calibration_intercept', tasks=_LABELS, higher_is_better=None, needs_probabilities=True
    ),

    # Regression.
    MetricSpec(
        name='rmse', tasks=_REGRESSION, higher_is_better=False, in_training=True, is_default=True,
        active_learning_tasks=_REGRESSION,
    ),
    MetricSpec(
        name='mae', tasks=_REGRESSION, higher_is_better=False, in_training=True, is_default=True
    ),
    MetricSpec(name='mse', tasks=_REGRESSION, higher_is_better=False, in_training=True),
    MetricSpec(
        name='r2', tasks=_REGRESSION, in_training=True, is_default=True,
        active_learning_tasks=_REGRESSION,
    ),
    MetricSpec(name='explained_variance', tasks=_REGRESSION),
    MetricSpec(name='median_absolute_error', tasks=_REGRESSION, higher_is_better=False),
    MetricSpec(name='max_error', tasks=_REGRESSION, higher_is_better=False),
    MetricSpec(name='mape', tasks=_REGRESSION, higher_is_better=False),
    MetricSpec(
        name='pinball_q', tasks=_REGRESSION, higher_is_better=False, in_analysis=False,
        pattern=r'pinball_(0?\.\d+)',
    ),
    # An analysis leaves these out, since they need images and the range of their values.
    MetricSpec(
        name='psnr', tasks=_REGRESSION, in_training=True, in_analysis=False,
        pattern=r'psnr(?:_([1-9]\d*))?', default_number=1,
    ),
    MetricSpec(
        name='ssim', tasks=_REGRESSION, in_training=True, in_analysis=False,
        pattern=r'ssim(?:_([1-9]\d*))?', default_number=1,
    ),
    # An analysis leaves these out, since they need a model that predicts bounds.
    MetricSpec(
        name='interval_coverage', tasks=_REGRESSION, higher_is_better=None, in_analysis=False
    ),
    MetricSpec(
        name='interval_width', tasks=_REGRESSION, higher_is_better=False, in_analysis=False
    ),
    MetricSpec(
        name='interval_score_level', tasks=_REGRESSION, higher_is_better=False, in_analysis=False,
        pattern=r'interval_score_(0?\.\d+)',
    ),

    # Training steps, which an evaluation does not have.
    MetricSpec(
        name='grad_norm', tasks=_KINDS, higher_is_better=False, in_training=True,
        in_evaluation=False, in_analysis=False,
    ),
    MetricSpec(
        name='update_ratio', tasks=_KINDS, higher_is_better=False, in_training=True,
        in_evaluation=False, in_analysis=False,
    ),
)
# fmt: on

METRIC_TABLE: Mapping[str, MetricSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""The metrics by name, in the order in which results list them."""


def metric_spec(name: str) -> MetricSpec | None:
    """Returns the row of a metric that users can name; None if there is none.

    Example:
        >>> from thinkml.core.objectives.metric_table import metric_spec
        >>> metric_spec('top_3_accuracy').name, metric_spec('pinball_0.9').higher_is_better
        ('top_k_accuracy', False)
        >>> metric_spec('pinball_q')
    """
    spec = METRIC_TABLE.get(name)
    if spec is not None and spec.pattern is None:
        return spec
    if spec is not None and spec.default_number is None:
        return None
    return next((s for s in _SPECS if s.pattern and re.fullmatch(s.pattern, name)), None)


def metric_number(name: str) -> int | float | None:
    """Returns the number in a metric's name: 0.9 for ``'pinball_0.9'``; None without one."""
    spec = metric_spec(name)
    if spec is None or spec.pattern is None or spec.has_class:
        return None
    if name == spec.name:
        return spec.default_number
    match = re.fullmatch(spec.pattern, name)
    assert match is not None
    return float(match[1]) if '.' in match[1] else int(match[1])


def class_problem(metric: object, classes: Sequence[Any]) -> str | None:
    """Returns a sentence if a metric is that of a class which a task does not have; else None."""
    spec = metric_spec(metric) if isinstance(metric, str) else None
    if spec is None or not spec.has_class or class_position(str(metric), classes) is not None:
        return None
    shown = [spec.name.replace('<class>', str(label)) for label in classes]
    shown = shown if len(shown) <= 10 else [*shown[:4], '...', shown[-1]]
    return f'metrics: got {metric!r}, which is no class; expected one of {", ".join(shown)}.'


def class_position(name: str, classes: Sequence[Any]) -> int | None:
    """Returns the position of the class in a metric's name, among those of a task.

    Args:
        name: the metric's name, such as ``'iou_cat'``.
        classes: the task's classes, or labels.

    Returns:
        The position; None for a class that the task does not have, and for other metrics.

    Example:
        >>> from thinkml.core.objectives.metric_table import class_position
        >>> class_position('iou_cat', ('ant', 'bee', 'cat'))
        2
    """
    spec = metric_spec(name)
    if spec is None or not spec.has_class:
        return None
    match = re.fullmatch(spec.pattern or '', name)
    names = [str(label) for label in classes]
    return names.index(match[1]) if match and match[1] in names else None


def metric_names(
    task: TaskKind | None = None,
    *,
    in_training: bool | None = None,
    in_evaluation: bool | None = None,
) -> tuple[str, ...]:
    """Returns the names of metrics, in the order of the table.

    Names with a number or a class are valid too, but not listed.

    Args:
        task: a kind of task that the metrics fit; None for any.
        in_training: True for the metrics that training can record, False for the others.
        in_evaluation: True for the metrics that an evaluation can compute, False for the others.

    Example:
        >>> from thinkml.core.objectives.metric_table import metric_names
        >>> metric_names('regression', in_training=True, in_evaluation=True)
        ('rmse', 'mae', 'mse', 'r2', 'psnr', 'ssim')
    """
    return tuple(
        spec.name
        for spec in _SPECS
        if (task is None or task in spec.tasks)
        and in_training in (None, spec.in_training)
        and in_evaluation in (None, spec.in_evaluation)
        and metric_spec(spec.name) is not None
    )


TRAINING_ONLY_METRICS = ('grad_norm', 'update_ratio')
"""Values of training steps, which validation does not have."""


def is_higher_better(name: str, heads: Iterable[str] = ()) -> bool | None:
    """Returns True if larger values of a metric are better, False if smaller ones are.

    Args:
        name: the metric's name in the history, which may begin with ``'val_'``.
        heads: the names of the model's heads, which may follow.

    Returns:
        True or False, or None for a custom metric, whose direction is unknown, and for a metric
        whose best value is in between.

    Example:
        >>> from thinkml.core.objectives.metric_table import is_higher_better
        >>> is_higher_better('val_roc_auc'), is_higher_better('loss'), is_higher_better('mine')
        (True, False, None)
    """
    name = name.removeprefix('val_')
    within = [name.removeprefix(f'{head}_') for head in heads if name.startswith(f'{head}_')]
    directions = [known for rest in within if (known := is_higher_better(rest)) is not None]
    if directions:
        return directions[0]
    if name == 'loss':  # always recorded, so it is not a metric that users name
        return False
    spec = metric_spec(name)
    return None if spec is None else spec.higher_is_better


def top_k(name: str) -> int | None:
    """Returns the ``k`` of ``'top_3_accuracy'``, 5 for ``'top_k_accuracy'``, None for others."""
    spec = metric_spec(name)
    if spec is None or spec.name != 'top_k_accuracy':
        return None
    number = metric_number(name)
    assert isinstance(number, int)
    return number


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
    metric: object,
    kind: TaskKind | None = None,
    num_outputs: int | None = None,
    element_shape: tuple[int, ...] | None = None,
    classes: Sequence[Any] | None = None,
) -> str | None:
    """Returns a sentence that says what is wrong with an entry of ``metrics``; None if valid.

    Args:
        metric: a name, a class of `clu.metrics.Metric`, or a function ``(logits, labels)``.
        kind: the kind of the task; None does not check that the metric fits it.
        num_outputs: the number of values the model returns per example; None does not check it.
        element_shape: the axes of a row that have a target each; None does not check them.
        classes: the classes, or labels; None does not check them.

    Example:
        >>> from thinkml.core.objectives.metric_table import check_metric
        >>> check_metric('top_3_accuracy', 'multiclass', num_outputs=10)
        >>> check_metric('top_3_accuracy', 'binary')
        "metrics: got 'top_3_accuracy' for a binary task, which has no top 3; expected 'accuracy'."
    """
    if not isinstance(metric, str):
        return _check_custom(metric)
    # All classification tasks list the same names, since top-k has an error of its own.
    alone = {None: _KINDS, 'regression': _REGRESSION, 'sequence': _SEQUENCES}
    tasks = alone.get(kind, _CLASSIFICATION)
    spec = metric_spec(metric)
    if spec is None or not spec.in_training or not spec.tasks & tasks:
        names = {n for n in metric_names(in_training=True) if METRIC_TABLE[n].tasks & tasks}
        sentence = unknown_name('metrics', metric, names)
        return f'{sentence} The task is {kind}.' if kind else sentence
    k = top_k(metric)
    if k and kind is not None and kind not in spec.tasks:
        return (
            f"metrics: got {metric!r} for a {kind} task, which has no top {k}; expected 'accuracy'."
        )
    if k and num_outputs and k >= num_outputs:
        return (
            f'metrics: got {metric!r} for {num_outputs} classes, where it is always 1; expected '
            "fewer, as in 'top_2_accuracy'."
        )
    if spec.has_class and classes is not None:
        return class_problem(metric, classes)
    if spec.name == 'ssim' and num_outputs and element_shape is not None:
        return image_problem((*element_shape, num_outputs))
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
    if not is_hashable(metric):
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
