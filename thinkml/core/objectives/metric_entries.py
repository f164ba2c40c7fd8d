"""Metric entries: the accumulator of each metric, and the function that computes its value."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from clu import metrics as clu_metrics
from flax import struct

from thinkml.core.objectives import confusion_counts, per_example, ranking, whole_rows
from thinkml.core.objectives.accumulators import (
    WeightedMean,
    class_counts,
    residuals,
    row_collector,
    score_counts,
)
from thinkml.core.objectives.confusion_counts import Counts
from thinkml.core.objectives.ctc import best_path, equal_sequences
from thinkml.core.objectives.losses import mae, mse
from thinkml.core.objectives.metric_table import (
    METRIC_TABLE,
    STEP_KEYWORDS,
    Metric,
    MetricSpec,
    check_metric,
    class_position,
    metric_name,
    metric_number,
    metric_spec,
    top_k,
)
from thinkml.core.objectives.per_example import classify
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.errors import ConfigError, problems
from thinkml.task_types import TASK_TYPES, TaskKind
from thinkml.typing import PyTree

_Shaped: TypeAlias = jax.Array | jax.ShapeDtypeStruct | np.ndarray

_ERRORS = {'mse': mse, 'mae': mae}
_PER_EXAMPLE = {
    'accuracy': per_example.accuracy,
    'log_loss': per_example.log_loss,
    'brier': per_example.brier,
}
_FRACTIONS = {
    'precision': confusion_counts.precision,
    'recall': confusion_counts.recall,
    'f1': confusion_counts.f1,
    'dice': confusion_counts.f1,
    'iou': confusion_counts.iou,
    'mean_iou': confusion_counts.iou,
}
_FROM_LOG_LOSS = {'perplexity': jnp.exp, 'bits_per_token': lambda nats: nats / math.log(2)}
_RANKINGS = {'roc_auc': ranking.roc_auc, 'average_precision': ranking.average_precision}
_EXPECTED = {
    'kind': f'one of {", ".join(get_args(TaskKind))}',
    'num_outputs': 'the number of values the model returns per example',
    'capacity': 'the number of rows in an epoch, padding included',
    'classes': 'the classes in the order of the outputs',
    'blank_id': 'the position of the output that stands for no label',
}


COLLECTED = '_collected'
"""The field of a collection that holds the scores of an epoch."""


class Shape(NamedTuple):
    """The task and sizes that a metric's accumulator depends on, see `make_metrics`."""

    kind: TaskKind | None
    num_outputs: int | None
    capacity: int | None
    classes: tuple[Any, ...] | None = None
    blank_id: int | None = None

    @property
    def is_known(self) -> bool:
        """Returns True if `examples` has the shapes of a batch; those of sequences are unknown."""
        if self.kind is None or self.num_outputs is None:
            return False
        return not TASK_TYPES[self.kind].has_sequences

    def require(self, metric: str, *fields: str) -> list[Any]:
        """Returns the values of the fields.

        Raises:
            ConfigError: if one of them is None.
        """
        values = [getattr(self, field) for field in fields]
        missing = [f for f, value in zip(fields, values, strict=True) if value is None]
        if missing:
            found = [f'{field}: got None, expected {_EXPECTED[field]}.' for field in missing]
            raise ConfigError(problems(f'metrics: {metric!r} needs more arguments.', found))
        return values

    def examples(self, rows: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of ``rows`` logits and labels."""
        num_outputs = self.num_outputs or 1
        width = (num_outputs,) if num_outputs > 1 else ()
        logits = jax.ShapeDtypeStruct((rows, *width), jnp.float32)
        if self.kind is not None and TASK_TYPES[self.kind].has_one_class:
            return logits, jax.ShapeDtypeStruct((rows,), jnp.int32)
        return logits, logits


class Entry(NamedTuple):
    """A metric of a collection.

    Attributes:
        field: the collection's field that holds the accumulator. Metrics that need the same
            accumulator share it.
        state: the class of the accumulator.
        read: a function that computes the metric from the accumulator. If ``on_host``, it computes
            it from an epoch's logits and labels.
        on_host: True if the metric is computed on the host.
        needs_rows: True if the metric needs all elements of a row together.
    """

    field: str
    state: type[clu_metrics.Metric]
    read: Callable[..., Any]
    on_host: bool = False
    needs_rows: bool = False


def make_entry(metric: Metric, index: int, shape: Shape) -> Entry:
    """Returns the entry of any metric, which has position ``index`` in its collection.

    Raises:
        ConfigError: if ``shape`` lacks a value that the metric needs, or if a function fails.
    """
    if isinstance(metric, str):
        return _named_entry(metric, shape)
    if isinstance(metric, type):
        _check_class(metric, shape)
        return Entry(f'_own_{index}', metric, _compute)
    return _function_entry(metric, index, shape)


def mean_class(values: Callable[..., jax.Array], weight: str = 'mask') -> type[clu_metrics.Metric]:
    """Returns a metric class for the mean over examples of a function of a step's keywords."""

    def values_and_weight(**step: PyTree) -> dict[str, Any]:
        found = {'values': values(**step), 'weight': step[weight]}
        # A mask of elements does not fit the losses of rows, whose weights are 0 for padding.
        return found if len(found['values']) == len(step['mask']) else found | {'mask': None}

    return WeightedMean.from_fun(values_and_weight)


def _compute(state: clu_metrics.Metric) -> jax.Array:
    return state.compute()


def _named_entry(name: str, shape: Shape) -> Entry:
    spec = metric_spec(name)
    assert spec is not None  # `check_metric` accepted the name
    return _COMPUTATIONS[spec.base_name](name, shape)


def _step_entry(name: str, shape: Shape) -> Entry:
    del shape  # a step has one value
    return Entry(name, _TRAINING_METRICS[name], _compute)


def _residuals_entry(name: str, shape: Shape) -> Entry:
    (num_targets,) = shape.require(name, 'num_outputs')
    return Entry('_residuals', _residuals(num_targets), lambda sums: getattr(sums, name)())


def _mean_entry(name: str, shape: Shape) -> Entry:
    return Entry(name, mean_class(_per_example(name, shape.kind)), _compute)


def _log_loss_entry(name: str, shape: Shape) -> Entry:
    state = _mean_entry('log_loss', shape).state
    return Entry('log_loss', state, lambda mean: _FROM_LOG_LOSS[name](mean.compute()))


def _whole_rows_entry(name: str, shape: Shape) -> Entry:
    values = _row_values(name, shape)

    def values_and_weight(mask, element_shape, **step: Any) -> dict[str, Any]:
        return {
            'values': values(mask=mask, element_shape=element_shape, **step),
            'weight': whole_rows.counted_rows(mask, element_shape),
            'mask': None,  # that of elements does not fit
        }

    return Entry(name, WeightedMean.from_fun(values_and_weight), _compute, needs_rows=True)


def _row_values(name: str, shape: Shape) -> Callable[..., jax.Array]:
    """Returns a function of a step's keywords that computes a value of each row."""
    if name == 'exact_match' and shape.kind and TASK_TYPES[shape.kind].has_sequences:
        (blank_id,) = shape.require(name, 'blank_id')
        return lambda logits, labels, **_: equal_sequences(
            best_path(logits.argmax(axis=-1), blank_id), labels
        )
    if name == 'exact_match':
        accuracy = _per_example('accuracy', shape.kind)
        return lambda mask, element_shape, **step: whole_rows.exact_match(
            accuracy(**step), mask, element_shape
        )
    spec, number = metric_spec(name), metric_number(name)
    assert spec is not None and isinstance(number, int)
    if spec.name == 'psnr':
        return lambda logits, labels, mask, element_shape, **_: whole_rows.psnr(
            logits, labels, mask, element_shape, number
        )
    (channels,) = shape.require(name, 'num_outputs')
    return lambda logits, labels, element_shape, **_: whole_rows.ssim(
        logits, labels, (*element_shape, channels), number
    )


def _ranking_entry(name: str, shape: Shape) -> Entry:
    kind, *_ = shape.require(name, 'kind', 'num_outputs', 'capacity')
    read = functools.partial(_ranking_value, name, kind)
    return Entry(COLLECTED, _row_collector(shape), read)


def _counts_entry(name: str, shape: Shape) -> Entry:
    kind, num_outputs = shape.require(name, 'kind', 'num_outputs')
    read = functools.partial(_counts_value, METRIC_TABLE[name], kind)
    return Entry('_class_counts', _class_counts(kind, num_outputs), read)


def _class_entry(name: str, shape: Shape) -> Entry:
    (classes,) = shape.require(name, 'classes')
    position = class_position(name, classes)
    assert position is not None  # `check_metric` accepted the name

    def read(sums: Any) -> jax.Array:
        return confusion_counts.ratio(*confusion_counts.iou(_counts(sums)))[position]

    return _counts_entry('iou', shape)._replace(read=read)


def _per_example(name: str, kind: TaskKind | None) -> Callable[..., jax.Array]:
    if name in _ERRORS:
        return lambda logits, labels, **_: _ERRORS[name](logits, labels)
    if name in _PER_EXAMPLE:
        return lambda logits, labels, **_: _PER_EXAMPLE[name](classify(logits, labels, kind))
    return lambda logits, labels, **_: _top_accuracy(name, classify(logits, labels, kind))


def _top_accuracy(name: str, outputs: per_example.ClassLogits) -> jax.Array:
    kind = 'multilabel' if outputs.is_multilabel else 'multiclass'
    if problem := check_metric(name, kind, outputs.logits.shape[1]):
        raise ConfigError(problem)
    return per_example.top_accuracy(outputs, top_k(name) or 1)


def _grad_norm(grads: PyTree = None, **_) -> dict[str, Any]:
    _check_is_training('grad_norm', grads)
    return _step_value(_norm(grads), True)


def _update_ratio(params: PyTree = None, updates: PyTree = None, **_) -> dict[str, Any]:
    _check_is_training('update_ratio', updates)
    size = _norm(params)
    return _step_value(_norm(updates) / size, size > 0)  # undefined if all parameters are zero


def _check_is_training(name: str, training_value: PyTree) -> None:
    if training_value is None:
        raise ConfigError(
            f'metrics: {name!r} got no gradients, which only training has; leave it out of the '
            'metrics of an evaluation.'
        )


def _norm(tree: PyTree) -> jax.Array:
    squares = [jnp.square(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)]
    # On a CPU, XLA adds one number at a time for a sum to a scalar, and many for sums of columns.
    columns = [jnp.sum(square, axis=tuple(range(square.ndim - 1))) for square in squares]
    return jnp.sqrt(sum(jnp.sum(column) for column in jax.lax.optimization_barrier(columns)))


def _step_value(value: jax.Array, weight: npt.ArrayLike) -> dict[str, Any]:
    # A step has one value, so the examples' mask does not apply.
    return {'value': value, 'weight': jnp.asarray(weight, jnp.float32), 'mask': None}


@struct.dataclass
class StepMean(clu_metrics.Metric):
    """A mean over steps.

    Both sums are in one array, because each additional array costs time in the step of a small
    network.
    """

    sums: jax.Array

    @classmethod
    def empty(cls):
        return cls(jnp.zeros(2, jnp.float32))

    @classmethod
    def from_model_output(cls, value: jax.Array, weight: jax.Array, **_):
        return cls(jnp.stack([jnp.where(weight > 0, value, 0), weight]))

    def merge(self, other):
        return type(self)(self.sums + other.sums)

    def compute(self):
        return self.sums[0] / self.sums[1]


_TRAINING_METRICS = {
    'grad_norm': StepMean.from_fun(_grad_norm),
    'update_ratio': StepMean.from_fun(_update_ratio),
}


def _residuals(num_outputs: int) -> type[clu_metrics.Metric]:
    def columns(logits, labels, **_):
        shape = (len(labels), num_outputs)
        predictions, targets = (a.reshape(shape).astype(jnp.float32) for a in (logits, labels))
        return {'predictions': predictions, 'targets': targets}

    return residuals(num_outputs).from_fun(columns)


def _class_counts(kind: TaskKind, num_outputs: int) -> type[clu_metrics.Metric]:
    def truth_and_prediction(logits, labels, **_):
        truth, prediction = per_example.truth_and_prediction(classify(logits, labels, kind))
        return {'truth': truth, 'prediction': prediction}

    return class_counts(TASK_TYPES[kind].num_classes(num_outputs)).from_fun(truth_and_prediction)


def _counts(sums: Any) -> Counts:
    return Counts(
        true_positives=sums.hits.astype(jnp.float32),
        predicted=sums.predicted.astype(jnp.float32),
        actual=sums.actual.astype(jnp.float32),
        total=sums.num_examples.astype(jnp.float32),
    )


def _counts_value(spec: MetricSpec, kind: TaskKind, sums: Any) -> jax.Array:
    by_class = _counts(sums)
    if spec.name == 'balanced_accuracy':
        return confusion_counts.balanced_accuracy(by_class, kind)
    fraction = _FRACTIONS[spec.base_name](by_class)
    return confusion_counts.average(fraction, by_class, kind, spec.average)


def _row_collector(shape: Shape) -> type[clu_metrics.Metric]:
    logits, labels = (
        jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype) for rows in shape.examples(1)
    )
    assert shape.capacity is not None
    return row_collector(shape.capacity, logits, labels)


def _ranking_value(name: str, kind: TaskKind, rows: Any) -> jax.Array:
    outputs = classify(rows.logits, rows.labels, kind)
    (scores, low), positive = per_example.one_vs_rest(outputs)
    area = jnp.mean(_RANKINGS[name](scores, positive, rows.mask, low))
    return jnp.where(rows.position > len(rows.mask), jnp.nan, area)


def _binned_entry(name: str, shape: Shape) -> Entry:
    kind, num_outputs = shape.require(name, 'kind', 'num_outputs')

    def bins_and_positives(logits, labels, **_):
        outputs = classify(logits, labels, kind)
        (scores, low), positive = per_example.one_vs_rest(outputs)
        scores = scores if low is None else scores + low
        return {'bins': ranking.bins_of(scores), 'positive': positive}

    columns = 1 if TASK_TYPES[kind].has_positive_class else num_outputs
    state = score_counts(columns, ranking.NUM_BINS).from_fun(bins_and_positives)
    return Entry(name, state, _mean_binned_area)


def _mean_binned_area(sums: Any) -> jax.Array:
    negatives, positives = sums.counts
    return ranking.binned_roc_auc(positives, negatives).mean()


# By the names of the metric table, without averages.
_COMPUTATIONS: dict[str, Callable[[str, Shape], Entry]] = {
    **dict.fromkeys((*_FRACTIONS, 'balanced_accuracy'), _counts_entry),
    'iou_<class>': _class_entry,
    **dict.fromkeys((*_PER_EXAMPLE, *_ERRORS, 'top_k_accuracy'), _mean_entry),
    **dict.fromkeys(_FROM_LOG_LOSS, _log_loss_entry),
    **dict.fromkeys(_RANKINGS, _ranking_entry),
    'roc_auc_binned': _binned_entry,
    **dict.fromkeys(('exact_match', 'psnr', 'ssim'), _whole_rows_entry),
    **dict.fromkeys(('rmse', 'r2'), _residuals_entry),
    **dict.fromkeys(_TRAINING_METRICS, _step_entry),
}


# --- custom metrics ---------------------------------------------------------------------------


def _function_entry(function: Callable[..., Any], index: int, shape: Shape) -> Entry:
    if not _needs_whole_epoch(function, shape):
        values = functools.partial(_values_per_example, function)
        return Entry(f'_own_{index}', mean_class(values), _compute)
    shape.require(metric_name(function), 'capacity')
    return Entry(COLLECTED, _row_collector(shape), function, on_host=True)


def _needs_whole_epoch(function: Callable[..., Any], shape: Shape) -> bool:
    """Returns True if a metric returns one number or, like NumPy functions, can't be traced."""
    if not shape.is_known:
        return False  # `_values_per_example` raises an error if it returns one number
    logits, labels = shape.examples(PROBE_ROWS + (shape.num_outputs == PROBE_ROWS))
    try:
        result = jax.eval_shape(function, logits, labels)
    except jax.errors.JAXTypeError:
        return True
    except Exception as error:
        shown = _with_named_rows(logits, labels)
        raise ConfigError(
            f'metrics: {metric_name(function)!r} failed for logits {shown(logits.shape)} and '
            f'labels {shown(labels.shape)} {labels.dtype}: {type(error).__name__}: {shown(error)}'
        ) from error
    if getattr(result, 'shape', None) == ():
        return True
    check_per_example(function, result, logits, labels)
    return False


def _check_class(metric: type[clu_metrics.Metric], shape: Shape) -> None:
    """Traces a class on the shapes of its inputs, to find errors before a program is compiled."""
    if not shape.is_known:
        return
    logits, labels = shape.examples(PROBE_ROWS + (shape.num_outputs == PROBE_ROWS))
    floats = jax.ShapeDtypeStruct(labels.shape[:1], jnp.float32)
    inputs = {
        'logits': logits, 'labels': labels, 'losses': floats, 'weight': floats, 'mask': floats,
        'element_shape': (),
    }  # fmt: skip

    def evaluation_metric(inputs: dict[str, Any]) -> clu_metrics.Metric:
        return metric.from_model_output(**(dict.fromkeys(STEP_KEYWORDS) | inputs))

    try:
        jax.eval_shape(evaluation_metric, inputs)
    except Exception as error:
        if 'None' in str(error):  # it uses values that exist only in training
            return
        shown = _with_named_rows(logits, labels)
        raise ConfigError(
            f'metrics: {metric_name(metric)!r} failed for logits {shown(logits.shape)} and '
            f'labels {shown(labels.shape)} {labels.dtype}: {type(error).__name__}: {shown(error)}. '
            f'Its class is called with the keywords {", ".join(STEP_KEYWORDS)}.'
        ) from error


def _with_named_rows(logits: _Shaped, labels: _Shaped) -> Callable[[object], str]:
    """Returns `with_rows` for the number of rows of these logits and labels."""
    others = {*logits.shape[1:], *labels.shape[1:]}
    return functools.partial(with_rows, rows=labels.shape[0], others=others)


def _values_per_example(function: Callable[..., Any], *, logits, labels, **_) -> jax.Array:
    values = function(logits, labels)
    if getattr(values, 'shape', None) == ():
        raise ConfigError(
            f'metrics: {metric_name(function)!r} returned one number, so it needs the whole '
            'epoch: pass kind, num_outputs and capacity to make_metrics.'
        )
    check_per_example(function, values, logits, labels)
    return values.reshape(len(labels), -1).mean(axis=1)


def check_per_example(function: Metric, values: object, logits: _Shaped, labels: _Shaped) -> None:
    """Checks that a function returned one value per example or per label.

    Raises:
        ConfigError: if the values have another shape.
    """
    shape = getattr(values, 'shape', None)
    if shape not in (labels.shape, labels.shape[:1]):
        shown = _with_named_rows(logits, labels)
        raise ConfigError(
            f'metrics: {metric_name(function)!r} returned '
            f'{"no array" if shape is None else f"shape {shown(shape)}"} for logits '
            f'{shown(logits.shape)} and labels {shown(labels.shape)}, expected a number, or one '
            'value per example or label.'
        )
