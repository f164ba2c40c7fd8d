"""From a metric to the sums it needs and how it is read from them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax import struct

from thinkml.core.objectives import confusion_counts, per_example, ranking
from thinkml.core.objectives.accumulators import WeightedMean, class_counts, collected, residuals
from thinkml.core.objectives.confusion_counts import Counts
from thinkml.core.objectives.losses import mae, mse
from thinkml.core.objectives.metric_names import OF_A_STEP, Metric, check_metric, metric_name, top_k
from thinkml.core.objectives.per_example import classify
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.errors import ConfigError, problems
from thinkml.model_record import TaskKind

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
}
_RANKED = {'roc_auc': ranking.roc_auc, 'average_precision': ranking.average_precision}
_NEEDED = {
    'kind': f'one of {", ".join(get_args(TaskKind))}',
    'num_outputs': 'the numbers the model returns per example',
    'capacity': 'the rows of an epoch, those that only fill batches up included',
}


class Shape(NamedTuple):
    """What a metric's sums depend on: see `make_metrics`."""

    kind: TaskKind | None
    num_outputs: int | None
    capacity: int | None

    def require(self, metric: str, *fields: str) -> list[Any]:
        """Returns the values of the fields.

        Raises:
            ConfigError: if one is None.
        """
        values = [getattr(self, field) for field in fields]
        missing = [f for f, value in zip(fields, values, strict=True) if value is None]
        if missing:
            found = [f'{field}: got None, expected {_NEEDED[field]}.' for field in missing]
            raise ConfigError(problems(f'metrics: {metric!r} needs to know more.', found))
        return values

    def examples(self, rows: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """What ``rows`` logits and labels look like."""
        num_outputs = self.num_outputs or 1
        width = (num_outputs,) if num_outputs > 1 else ()
        logits = jax.ShapeDtypeStruct((rows, *width), jnp.float32)
        if self.kind in ('binary', 'multiclass'):
            return logits, jax.ShapeDtypeStruct((rows,), jnp.int32)
        return logits, logits


class Entry(NamedTuple):
    """A metric of a collection.

    Attributes:
        field: where its sums are; metrics that need the same sums share them.
        state: the class of the sums.
        read: the metric from the sums; ``on_host`` from an epoch's logits and labels.
        on_host: whether it is read on the host.
    """

    field: str
    state: type[clu_metrics.Metric]
    read: Callable[..., Any]
    on_host: bool = False


def entry_of(metric: Metric, index: int, shape: Shape) -> Entry:
    """The entry of any metric, the ``index``-th of its collection.

    Raises:
        ConfigError: if ``shape`` does not say all it needs, or a function fails.
    """
    if isinstance(metric, str):
        return _named(metric, shape)
    if isinstance(metric, type):
        _try_class(metric, shape)
        return Entry(f'_own_{index}', metric, _compute)
    return _own(metric, index, shape)


def mean_of(values: Callable[..., jax.Array], weight: str = 'mask') -> type[clu_metrics.Metric]:
    """The mean of values per example, made from a step's keywords."""

    def values_and_weight(**step: Any) -> dict[str, jax.Array]:
        return {'values': values(**step), 'weight': step[weight]}

    return WeightedMean.from_fun(values_and_weight)


def _compute(state: clu_metrics.Metric) -> jax.Array:
    return state.compute()


def _named(name: str, shape: Shape) -> Entry:
    if name in _OF_TRAINING:
        return Entry(name, _OF_TRAINING[name], _compute)
    if name in ('rmse', 'r2'):
        (num_targets,) = shape.require(name, 'num_outputs')
        return Entry('_residuals', _residuals(num_targets), lambda sums: getattr(sums, name)())
    if name in _ERRORS or name in _PER_EXAMPLE or top_k(name):
        return Entry(name, mean_of(_per_example(name, shape.kind)), _compute)
    if name in _RANKED:
        kind, *_ = shape.require(name, 'kind', 'num_outputs', 'capacity')
        return Entry('_collected', _collected(shape), functools.partial(_ranked, name, kind))
    kind, num_outputs = shape.require(name, 'kind', 'num_outputs')
    return Entry(
        '_class_counts', _class_counts(kind, num_outputs), functools.partial(_counted, name, kind)
    )


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


def _grad_norm(grads: Any = None, **_) -> dict[str, Any]:
    _check_is_training('grad_norm', grads)
    return _of_step(_norm(grads), True)


def _update_ratio(params: Any = None, updates: Any = None, **_) -> dict[str, Any]:
    _check_is_training('update_ratio', updates)
    size = _norm(params)
    return _of_step(
        _norm(updates) / size, size > 0
    )  # of parameters that are all zero there is none


def _check_is_training(name: str, of_training: Any) -> None:
    if of_training is None:
        raise ConfigError(
            f'metrics: {name!r} got no gradients, which only training has; leave it out of the '
            'metrics of an evaluation.'
        )


def _norm(tree: Any) -> jax.Array:
    squares = [jnp.square(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)]
    # On a CPU, XLA adds up numbers that end in one sum one by one, those of columns many at once.
    columns = [jnp.sum(square, axis=tuple(range(square.ndim - 1))) for square in squares]
    return jnp.sqrt(sum(jnp.sum(column) for column in jax.lax.optimization_barrier(columns)))


def _of_step(value: jax.Array, weight: Any) -> dict[str, Any]:
    # A step has one value, so the examples' mask says nothing about it.
    return {'value': value, 'weight': jnp.asarray(weight, jnp.float32), 'mask': None}


@struct.dataclass
class _StepMean(clu_metrics.Metric):
    """The mean over steps, whose two sums are one array: of a small net's step each one counts."""

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


_OF_TRAINING = {
    'grad_norm': _StepMean.from_fun(_grad_norm),
    'update_ratio': _StepMean.from_fun(_update_ratio),
}


def _residuals(num_outputs: int) -> type[clu_metrics.Metric]:
    def columns(logits, labels, **_):
        shape = (len(labels), num_outputs)
        predictions, targets = (a.reshape(shape).astype(jnp.float32) for a in (logits, labels))
        return {'predictions': predictions, 'targets': targets}

    return residuals(num_outputs).from_fun(columns)


def _class_counts(kind: TaskKind, num_outputs: int) -> type[clu_metrics.Metric]:
    def truth_and_prediction(logits, labels, **_):
        truth, guess = per_example.truth_and_prediction(classify(logits, labels, kind))
        return {'truth': truth, 'guess': guess}

    num_classes = num_outputs if kind == 'multilabel' else max(2, num_outputs)
    return class_counts(num_classes).from_fun(truth_and_prediction)


def _counted(name: str, kind: TaskKind, sums: Any) -> jax.Array:
    found = (sums.true_positives, sums.predicted, sums.actual, sums.num_examples)
    by_class = Counts(*(count.astype(jnp.float32) for count in found))
    if name == 'balanced_accuracy':
        return confusion_counts.balanced_accuracy(by_class, kind)
    fraction, _, how = name.partition('_')
    return confusion_counts.average(_FRACTIONS[fraction](by_class), by_class, kind, how or None)


def _collected(shape: Shape) -> type[clu_metrics.Metric]:
    logits, labels = (
        jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype) for rows in shape.examples(1)
    )
    assert shape.capacity is not None
    return collected(shape.capacity, logits, labels)


def _ranked(name: str, kind: TaskKind, sums: Any) -> jax.Array:
    outputs = classify(sums.logits, sums.labels, kind)
    (scores, low), positive = per_example.one_vs_rest(outputs)
    area = jnp.mean(_RANKED[name](scores, positive, sums.mask, low))
    return jnp.where(sums.position > len(sums.mask), jnp.nan, area)


# --- metrics of the user's own ----------------------------------------------------------------


def _own(function: Callable[..., Any], index: int, shape: Shape) -> Entry:
    if not _is_of_whole_epoch(function, shape):
        return Entry(f'_own_{index}', mean_of(functools.partial(_own_values, function)), _compute)
    shape.require(metric_name(function), 'capacity')
    return Entry('_collected', _collected(shape), function, on_host=True)


def _is_of_whole_epoch(function: Callable[..., Any], shape: Shape) -> bool:
    """Whether it returns one number, or can't be traced: NumPy and scikit-learn want values."""
    if shape.kind is None or shape.num_outputs is None:
        return False  # `_own_values` tells where it does return one number
    logits, labels = shape.examples(PROBE_ROWS + (shape.num_outputs == PROBE_ROWS))
    try:
        result = jax.eval_shape(function, logits, labels)
    except jax.errors.JAXTypeError:
        return True
    except Exception as error:
        shown = _with_rows_of(logits, labels)
        raise ConfigError(
            f'metrics: {metric_name(function)!r} failed for logits {shown(logits.shape)} and '
            f'labels {shown(labels.shape)} {labels.dtype}: {type(error).__name__}: {shown(error)}'
        ) from error
    if getattr(result, 'shape', None) == ():
        return True
    check_per_example(function, result, logits, labels)
    return False


def _try_class(metric: type[clu_metrics.Metric], shape: Shape) -> None:
    """Traces a class on the shapes it will get, so that it can't fail in a compiled program."""
    if shape.kind is None or shape.num_outputs is None:
        return
    logits, labels = shape.examples(PROBE_ROWS + (shape.num_outputs == PROBE_ROWS))
    number = jax.ShapeDtypeStruct(labels.shape[:1], jnp.float32)
    given = {'logits': logits, 'labels': labels, 'losses': number, 'weight': number, 'mask': number}

    def of_evaluation(given: dict[str, Any]) -> Any:
        return metric.from_model_output(**(dict.fromkeys(OF_A_STEP) | given))

    try:
        jax.eval_shape(of_evaluation, given)
    except Exception as error:
        if 'None' in str(error):  # it reads what only training has
            return
        shown = _with_rows_of(logits, labels)
        raise ConfigError(
            f'metrics: {metric_name(metric)!r} failed for logits {shown(logits.shape)} and '
            f'labels {shown(labels.shape)} {labels.dtype}: {type(error).__name__}: {shown(error)}. '
            f'Its class is called with the keywords {", ".join(OF_A_STEP)}.'
        ) from error


def _with_rows_of(logits: Any, labels: Any) -> Callable[[Any], str]:
    others = {*logits.shape[1:], *labels.shape[1:]}
    return functools.partial(with_rows, rows=labels.shape[0], others=others)


def _own_values(function: Callable[..., Any], *, logits, labels, **_) -> jax.Array:
    values = function(logits, labels)
    if getattr(values, 'shape', None) == ():
        raise ConfigError(
            f'metrics: {metric_name(function)!r} returned one number, so it needs the whole '
            'epoch: tell make_metrics kind, num_outputs and capacity.'
        )
    check_per_example(function, values, logits, labels)
    return values.reshape(len(labels), -1).mean(axis=1)


def check_per_example(function: Metric, values: Any, logits: Any, labels: Any) -> None:
    """Checks that a function's values are one for each example or for each label.

    Raises:
        ConfigError: if their shape is another.
    """
    shape = getattr(values, 'shape', None)
    if shape not in (labels.shape, labels.shape[:1]):
        shown = _with_rows_of(logits, labels)
        raise ConfigError(
            f'metrics: {metric_name(function)!r} returned '
            f'{"no array" if shape is None else f"shape {shown(shape)}"} for logits '
            f'{shown(logits.shape)} and labels {shown(labels.shape)}, expected a number, or one '
            'value per example or label.'
        )
