"""Metric registry: the definition of each metric of an evaluation, and its undefined cases.

Names, tasks, directions and defaults come from `thinkml.core.objectives.metric_table`.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import numpy as np

from thinkml.core.objectives import confusion_counts
from thinkml.core.objectives.metric_table import (
    METRIC_TABLE,
    MetricSpec,
    class_position,
    class_problem,
    metric_names,
    metric_number,
    metric_spec,
)
from thinkml.errors import ConfigError, problems, unknown_name
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics import (
    calibration,
    image_quality,
    per_row,
    ranking,
    regression,
    whole_rows,
)
from thinkml.evaluation.metrics.class_counts import Labels, Pairs, class_counts, class_part
from thinkml.evaluation.metrics.per_row import mean_of_rows
from thinkml.task_types import TASK_TYPES, TaskKind
from thinkml.typing import Array


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        part: derives the data that the metric needs from labels and predictions, once.
        value: ``value(part, weight)``, the metric under the rows' weights. See
            `thinkml.evaluation.metrics.class_counts`.
        kinds: the kinds of tasks it fits.
        higher_is_better: True if larger values are better; None if the best value is in between.
        default: True if it is computed when no metrics are requested.
        needs_probabilities: True if predictions alone are not enough.
        proportion: ``proportion(part, weight)``, the numerator and denominator of a metric that is
            a fraction of the rows; None for other metrics.
        is_biased: True for values from 0 to 1 whose resamples lie to one side: chance only adds to
            an error that cannot be negative, and a mean over classes lacks the rare ones in many
            resamples. Their percentiles are shifted to the value.
        resampled: the same as ``value`` for a resample that may lack a class; None is ``value``.
        undefined: ``undefined(part, weight)``, a warning in one sentence; None if there is none.
    """

    part: Callable[[EvaluationData], Any]
    value: Callable[[Any, Any], Any]
    kinds: frozenset[str]
    higher_is_better: bool | None = True
    default: bool = False
    needs_probabilities: bool = False
    proportion: Callable[[Any, np.ndarray], tuple[float, float]] | None = None
    is_biased: bool = False
    resampled: Callable[[Any, Any], Any] | None = None
    undefined: Callable[[Any, np.ndarray], str | None] | None = None

    @property
    def needs_all_scores(self) -> bool:
        """Returns True if the metric ranks the examples by the scores of every class."""
        return self.part is ranking.rankings

    def of(self, data: EvaluationData) -> float:
        """Returns the metric of labels and predictions, as a plain float."""
        return float(self.value(data.part(self.part), data.weights))

    def note(self, name: str, data: EvaluationData) -> str | None:
        """Returns a warning if the metric of this name is undefined, else None."""
        if self.undefined is None:
            return None
        note = self.undefined(data.part(self.part), data.weights)
        return None if note is None else f'{name}: {note}'


class _Computation(NamedTuple):
    """The attributes of a `Metric` that the metric table does not have."""

    part: Callable[[EvaluationData], Any]
    value: Callable[[Any, Any], Any]
    proportion: Callable[[Any, np.ndarray], tuple[float, float]] | None = None
    is_biased: bool = False
    resampled: Callable[[Any, Any], Any] | None = None
    undefined: Callable[[Any, np.ndarray], str | None] | None = None


# --- metrics from counts ----------------------------------------------------------------------

_FRACTIONS = {
    'precision': ('no predictions of', confusion_counts.precision),
    'recall': ('no examples of', confusion_counts.recall),
    'f1': ('neither examples nor predictions of', confusion_counts.f1),
    'specificity': ('no other examples than of', confusion_counts.specificity),
    'npv': ('no other predictions than of', confusion_counts.npv),
    'dice': ('neither examples nor predictions of', confusion_counts.f1),
    'iou': ('neither examples nor predictions of', confusion_counts.iou),
    'mean_iou': ('neither examples nor predictions of', confusion_counts.iou),
}


def _fraction(spec: MetricSpec, kind: TaskKind) -> _Computation:
    how = spec.average
    task_type, (missing, fraction) = TASK_TYPES[kind], _FRACTIONS[spec.base_name]
    is_of_positive_class = how is None and task_type.has_positive_class

    def value(part: Pairs | Labels, weight: Array) -> Array:
        counts = class_counts(part, weight)
        return confusion_counts.average(fraction(counts), counts, kind, how, part.occurs)

    def proportion(part: Pairs | Labels, weight: np.ndarray) -> tuple[float, float]:
        numerator, denominator = fraction(class_counts(part, weight))
        if how == 'micro':
            return (numerator * part.occurs).sum(), (denominator * part.occurs).sum()
        return numerator[1], denominator[1]

    def undefined(part: Pairs | Labels, weight: np.ndarray) -> str | None:
        counts = class_counts(part, weight)
        which = part.occurs
        if is_of_positive_class:
            which = np.array([False, True])
        empty = int((fraction(counts).denominator[which] == 0).sum())
        if not empty or how == 'micro':
            return None
        affected = f'{empty} of {which.sum()} {task_type.nouns[1]}'
        if is_of_positive_class:
            affected = 'the positive class'
        return f'{missing} {affected}; set to 0 there.'

    # A class that does not occur in a resample is left out there. A class whose rows all have
    # weight 0 in the data set counts as 0, as it does in the value.
    def resampled(part: Pairs | Labels, weight: Array) -> Array:
        counts = class_counts(part, weight)
        in_resample = confusion_counts.occurring(counts, kind)
        in_data = confusion_counts.occurring(part.full_counts, kind)
        return confusion_counts.average(
            fraction(counts), counts, kind, how, in_resample | part.occurs & ~in_data
        )

    def resampled_labels(part: Pairs | Labels, weight: Array) -> Array:
        in_resample, in_data = fraction(class_counts(part, weight)), fraction(part.full_counts)
        counted = (in_resample.denominator > 0) | (in_data.denominator == 0)
        ratios = confusion_counts.ratio(*in_resample)
        return confusion_counts.ratio((ratios * counted).sum(), counted.sum())

    is_proportion = spec.base_name not in ('f1', 'dice', 'iou', 'mean_iou') and (
        is_of_positive_class or (how == 'micro' and task_type.has_one_class)
    )
    is_mean_of_labels = task_type.has_many_labels and how in (None, 'macro')
    return _Computation(
        part=class_part,
        value=value,
        proportion=proportion if is_proportion else None,
        undefined=undefined,
        resampled=resampled_labels if is_mean_of_labels else resampled,
        is_biased=how in (None, 'macro') and not is_of_positive_class,
    )


def _class_iou(position: int) -> _Computation:
    def value(part: Pairs | Labels, weight: Array) -> Array:
        return confusion_counts.ratio(*confusion_counts.iou(class_counts(part, weight)))[position]

    def resampled(part: Pairs | Labels, weight: Array) -> Array:
        ratios = confusion_counts.ratio_or_nan(*confusion_counts.iou(class_counts(part, weight)))
        return ratios[position]

    def undefined(part: Pairs | Labels, weight: np.ndarray) -> str | None:
        if confusion_counts.iou(class_counts(part, weight)).denominator[position]:
            return None
        return 'neither examples nor predictions of the class; set to 0.'

    return _Computation(part=class_part, value=value, resampled=resampled, undefined=undefined)


def _counted(function: Callable[[confusion_counts.Counts], Any]) -> Callable[[Any, Any], Any]:
    return lambda part, weight: function(class_counts(part, weight))


def _balanced_accuracy(kind: TaskKind) -> _Computation:
    def undefined(part: Pairs | Labels, weight: np.ndarray) -> str | None:
        counts = class_counts(part, weight)
        missing = part.occurs & (counts.actual == 0)
        if TASK_TYPES[kind].has_many_labels:  # each label has the classes 0 and 1
            always = counts.actual == counts.total
            missing = missing & (counts.predicted > 0) | always & (counts.predicted < counts.total)
        return (
            'some classes have no examples with a weight above 0; they are left out.'
            if missing.any()
            else None
        )

    value = _counted(lambda counts: confusion_counts.balanced_accuracy(counts, kind))
    return _Computation(part=class_part, value=value, is_biased=True, undefined=undefined)


def _one_class(part: Pairs, weight: np.ndarray) -> str | None:
    if not np.isnan(_counted(confusion_counts.kappa)(part, weight)):
        return None
    return 'NaN, since all labels and predictions are the same class.'


# --- metrics from rankings and rows -----------------------------------------------------------


def _without_both(part: ranking.Rankings, weight: np.ndarray) -> str | None:
    missing = [min(positive, rest) == 0 for positive, rest in _sides(part, weight)]
    if not any(missing):
        return None
    return (
        f'NaN, since it is not defined{_of_columns(part, sum(missing))}: y_test needs positive and '
        'negative examples.'
    )


def _without_positives(part: ranking.Rankings, weight: np.ndarray) -> str | None:
    missing = sum(positive == 0 for positive, _ in _sides(part, weight))
    if not missing:
        return None
    return f'set to 0{_of_columns(part, missing)}: y_test has no positive examples.'


def _sides(part: ranking.Rankings, weight: np.ndarray) -> Iterable[tuple[float, float]]:
    columns = zip(part.order, part.label, part.positive_label, strict=True)
    for order, label, positive_label in columns:
        positive = weight[order][label == positive_label].sum()
        yield positive, weight.sum() - positive


def _of_columns(part: ranking.Rankings, missing: int) -> str:
    columns = len(part.positive_label)
    noun = 'classes' if len(part.classes) > 2 else 'labels'
    return '' if columns == 1 else f' for {missing} of {columns} {noun}'


def _sum_of_rows(part: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    return float(weight @ part), float(weight.sum())


def _too_few(part: regression.Errors, weight: np.ndarray) -> str | None:
    if (weight > 0).sum() > 1:
        return None
    return 'NaN, since it is not defined for a single row.'


def _infinite(part: whole_rows.RowValues, weight: np.ndarray) -> str | None:
    counted = weight[part.example] > 0
    exact = np.isinf(part.value[counted]).sum()
    if not exact:
        return None
    return f'infinite, since {exact:,} of {counted.sum():,} rows are predicted exactly.'


def _separable(part: calibration.Logits, weight: np.ndarray) -> str | None:
    if not np.isnan(calibration.calibration_slope(part, weight)):
        return None
    return 'NaN, since the logits separate the labels perfectly, or there is only one label.'


# --- the metrics by name ----------------------------------------------------------------------

# By the names of the metric table; those that depend on more than the name are in `_computation`.
_COMPUTATIONS = {
    'accuracy': _Computation(
        part=per_row.accuracy_rows, value=mean_of_rows, proportion=_sum_of_rows
    ),
    'exact_match': _Computation(
        part=whole_rows.exact_match_rows,
        value=whole_rows.mean_of_whole_rows,
        proportion=whole_rows.sum_of_whole_rows,
    ),
    'mcc': _Computation(part=class_part, value=_counted(confusion_counts.mcc)),
    'kappa': _Computation(
        part=class_part, value=_counted(confusion_counts.kappa), undefined=_one_class
    ),
    'roc_auc': _Computation(
        part=ranking.rankings,
        value=ranking.roc_auc,
        resampled=ranking.resampled_roc_auc,
        undefined=_without_both,
    ),
    'roc_auc_ovo': _Computation(
        part=ranking.rankings,
        value=ranking.roc_auc_ovo,
        resampled=ranking.resampled_roc_auc_ovo,
        undefined=_without_both,
    ),
    'average_precision': _Computation(
        part=ranking.rankings,
        value=ranking.average_precision,
        resampled=ranking.resampled_average_precision,
        undefined=_without_positives,
    ),
    'log_loss': _Computation(part=per_row.log_loss_rows, value=mean_of_rows),
    'perplexity': _Computation(part=per_row.log_loss_rows, value=per_row.perplexity),
    'bits_per_token': _Computation(part=per_row.bits_rows, value=mean_of_rows),
    'brier': _Computation(part=per_row.brier_rows, value=mean_of_rows),
    'ece': _Computation(
        part=calibration.even_bins, value=calibration.calibration_error, is_biased=True
    ),
    'ece_adaptive': _Computation(
        part=calibration.filled_bins, value=calibration.calibration_error, is_biased=True
    ),
    'calibration_slope': _Computation(
        part=calibration.logits, value=calibration.calibration_slope, undefined=_separable
    ),
    'calibration_intercept': _Computation(
        part=calibration.logits, value=calibration.calibration_intercept, undefined=_separable
    ),
    'rmse': _Computation(part=regression.errors, value=regression.rmse),
    'mae': _Computation(part=regression.errors, value=regression.mae),
    'mse': _Computation(part=regression.errors, value=regression.mse),
    'r2': _Computation(part=regression.errors, value=regression.r2, undefined=_too_few),
    'explained_variance': _Computation(
        part=regression.errors, value=regression.explained_variance, undefined=_too_few
    ),
    'median_absolute_error': _Computation(
        part=regression.ordered_errors, value=regression.median_absolute_error
    ),
    'max_error': _Computation(part=regression.ordered_errors, value=regression.max_error),
    'mape': _Computation(part=regression.mape_rows, value=mean_of_rows),
    'interval_coverage': _Computation(
        part=regression.coverage_rows, value=mean_of_rows, proportion=_sum_of_rows
    ),
    'interval_width': _Computation(part=regression.width_rows, value=mean_of_rows),
}


def _computation(spec: MetricSpec, kind: TaskKind, number: Any) -> _Computation:
    if spec.base_name in _FRACTIONS:
        return _fraction(spec, kind)
    match spec.name:
        case 'balanced_accuracy':
            return _balanced_accuracy(kind)
        case 'iou_<class>':
            return _class_iou(number)
        case 'top_k_accuracy':
            return _Computation(
                part=per_row.top_rows(number), value=mean_of_rows, proportion=_sum_of_rows
            )
        case 'psnr':
            return _Computation(
                part=image_quality.psnr_rows(number),
                value=whole_rows.mean_of_whole_rows,
                resampled=image_quality.resampled_psnr,
                undefined=_infinite,
            )
        case 'ssim':
            return _Computation(
                part=image_quality.ssim_rows(number), value=whole_rows.mean_of_whole_rows
            )
        case 'pinball_q':
            return _Computation(part=regression.pinball_rows(number), value=mean_of_rows)
        case 'interval_score_level':
            return _Computation(part=regression.interval_score_rows(number), value=mean_of_rows)
        case name:
            return _COMPUTATIONS[name]


def _metric(name: str, kind: TaskKind, classes: tuple[Any, ...] = ()) -> Metric | None:
    spec = metric_spec(name)
    if spec is None or not spec.in_evaluation or kind not in spec.tasks:
        return None
    number = class_position(name, classes) if spec.has_class else metric_number(name)
    if spec.has_class and number is None:
        return None
    return Metric(
        **_computation(spec, kind, number)._asdict(),
        kinds=spec.tasks,
        higher_is_better=spec.higher_is_better,
        default=spec.is_default,
        needs_probabilities=spec.needs_probabilities,
    )


def _metrics_of(kind: TaskKind) -> Mapping[str, Metric]:
    metrics = {name: _metric(name, kind) for name in metric_names(kind, in_evaluation=True)}
    return MappingProxyType({name: metric for name, metric in metrics.items() if metric})


METRICS: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {kind: _metrics_of(kind) for kind in get_args(TaskKind)}
)
"""The metrics by kind of task and name. Names with a number are valid too:
``'top_3_accuracy'``, ``'psnr_255'``, ``'pinball_0.9'``, ``'interval_score_0.8'``. So are those with
a class of the task: ``'iou_cat'``."""

_NAMES = tuple(dict.fromkeys(name for table in METRICS.values() for name in table))


@functools.lru_cache(maxsize=256)
def get_metric(name: str, kind: TaskKind, classes: tuple[Any, ...] | None = None) -> Metric | None:
    """Returns the metric of a name; None if there is none for this kind of task.

    Args:
        name: the name, which may contain a number or a class.
        kind: the kind of the task.
        classes: the classes of the task, or its labels; None knows no metrics of a class.
    """
    return METRICS[kind].get(name) or _metric(name, kind, classes or ())


def metrics_for(kind: TaskKind) -> list[str]:
    """Returns the names of all metrics that fit any model of a task.

    If a metric exists with several averages, only the default one is included.
    """
    names = [name for name in METRICS[kind] if METRIC_TABLE[name].in_analysis]
    return names or list(METRICS[kind])


def default_metrics(kind: TaskKind) -> list[str]:
    """Returns the names of the metrics that are computed if none are requested."""
    metrics = METRICS[kind]
    return [name for name, metric in metrics.items() if metric.default] or list(metrics)


def check_metrics(metrics: Collection[Any] | None, argument: str = 'metrics') -> list[Any] | None:
    """Returns the requested metrics as a list; names from a set get the order of `METRICS`.

    Raises:
        ConfigError: if ``metrics`` is not a list, tuple or set of known names and functions. The
            error names every problem.
    """
    if metrics is None:
        return None
    if isinstance(metrics, str):
        raise ConfigError(
            f'{argument}: got the string {metrics!r}, expected a list: [{metrics!r}].'
        )
    if not isinstance(metrics, list | tuple | set | frozenset):
        raise ConfigError(
            f'{argument}: got {type(metrics).__name__}, expected a list of names, or None for '
            'those that fit the task.'
        )
    _raise_errors(unknown_name(argument, n, _NAMES) for n in metrics if not _is_metric(n))
    if isinstance(metrics, list | tuple):
        return list(dict.fromkeys(metrics))
    return sorted(metrics, key=lambda name: _NAMES.index(name) if name in _NAMES else len(_NAMES))


def check_fit(
    metrics: Sequence[Any], kind: TaskKind, classes: tuple[Any, ...] | None = None
) -> None:
    """Checks that known metrics fit a task.

    Raises:
        ConfigError: names every metric that does not.
    """
    _raise_errors(
        (class_problem(name, classes) if classes else None)
        or f'metrics: got {name!r}, but the task is {kind}; expected some of '
        f'{", ".join(METRICS[kind])}.'
        for name in metrics
        if isinstance(name, str) and get_metric(name, kind, classes) is None
    )


def _is_metric(metric: Any) -> bool:
    if isinstance(metric, str):
        spec = metric_spec(metric)
        return spec is not None and spec.in_evaluation
    return callable(metric)


def _raise_errors(messages: Iterable[str]) -> None:
    errors = list(messages)
    if errors:
        raise ConfigError(errors[0] if len(errors) == 1 else problems('metrics:', errors))
