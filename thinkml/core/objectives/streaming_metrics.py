"""Streaming metrics: CLU collections, accumulated on the device and merged exactly over an epoch.

`make_metrics` returns a collection class for the loss and any metrics, given by name, as classes of
`clu.metrics.Metric`, or as functions ``(logits, labels)``. The definitions are those of
`thinkml.evaluation`, and so scikit-learn's.

Metrics that need the same accumulator share it, so the fields of a collection are not its metrics.
Read the values with the method ``compute()``, or with the function `compute`, which includes the
functions of an entire epoch.
"""

# clu's collections read the annotations at run time, so no `from __future__ import annotations`.
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from clu.values import Scalar, Value

from thinkml.core.objectives.accumulators import WeightedMean as WeightedMean
from thinkml.core.objectives.heads import weighted_sum
from thinkml.core.objectives.metric_entries import (
    COLLECTED,
    Entry,
    Shape,
    StepMean,
    check_per_example,
    make_entry,
    mean_class,
)
from thinkml.core.objectives.metric_table import (
    Metric,
    check_metric,
    metric_name,
    metric_spec,
)
from thinkml.core.objectives.per_example import class_indices
from thinkml.core.xla.jit import Jit
from thinkml.errors import ConfigError, is_whole, problems, unknown_name
from thinkml.task_types import TaskKind

_LOSS = mean_class(lambda losses, **_: losses, weight='weight')


class _Metrics(clu_metrics.Collection):
    """A collection whose metrics are computed from fields that several of them may share."""

    kind: ClassVar[TaskKind | None]
    entries: ClassVar[Mapping[str, Entry]]

    @classmethod
    def _from_model_output(cls, *, labels, weight, mask=None, element_shape=(), **step):
        return super()._from_model_output(
            labels=class_indices(labels, cls.kind),
            weight=weight,
            mask=(weight if mask is None else mask) != 0,
            element_shape=element_shape,
            **step,
        )

    def compute(self):
        entries = self.entries.items()
        return {name: e.read(getattr(self, e.field)) for name, e in entries if not e.on_host}

    def compute_values(self) -> dict[str, Value]:
        return {name: Scalar(value) for name, value in self.compute().items()}


def make_metrics(
    metrics: Sequence[Metric] = (),
    *,
    kind: TaskKind | None = None,
    num_outputs: int | None = None,
    capacity: int | None = None,
    classes: Sequence[Any] | None = None,
    blank_id: int | None = None,
) -> type[clu_metrics.Collection]:
    """Returns the CLU collection class of the loss and the given metrics.

    ``single_from_model_output`` takes these keywords for a batch: ``logits`` (float32, ``[batch]``
    or ``[batch, k]``), ``labels`` (encoded), ``losses`` and ``weight`` (float32 ``[batch]``), and
    ``mask`` (``[batch]``, 0 for padding, else not 0). Without a mask, rows of weight 0 are padding.
    If rows have elements, such as tokens, the arrays have one axis of ``rows * elements`` in place
    of the batch, and ``element_shape`` says how many there are, such as ``(tokens,)``.
    For the metrics of training only it also takes ``grads``, ``updates``, and the ``params`` after
    the update. The loss is weighted by ``weight``; in all metrics each example counts once. Sums
    and counts are exact for up to 2**31 - 1 examples and do not depend on the batches.

    Names for classification:

    - ``'accuracy'``, ``'log_loss'``, ``'brier'``, ``'top_k_accuracy'`` (``k`` is 5) and
      ``'top_3_accuracy'`` with any number.
    - ``'precision'``, ``'recall'`` and ``'f1'``: for binary tasks those of the class with index 1,
      else the mean over the classes or labels. ``'_macro'``, ``'_micro'`` or ``'_weighted'`` after
      the name selects the mean. These and ``'balanced_accuracy'`` need ``kind`` and
      ``num_outputs``.
    - ``'iou'`` with the same means, and ``'iou_cat'`` of one of the ``classes``.
    - ``'roc_auc'`` and ``'average_precision'``, which are exact because all scores are sorted.
      They are one-vs-rest for multiclass tasks. They need ``capacity``, too. ``'roc_auc'`` is NaN
      if a class has no examples or all of them.

    - ``'exact_match'``, the fraction of rows whose elements are all predicted right. For the
      logits of a sequence ``[batch, frames, k]``, these are the labels of the best path.

    Names for regression: ``'mse'``, ``'mae'``, and the means over the targets of ``'rmse'`` and
    ``'r2'``, which need ``num_outputs``. The means over the rows of ``'psnr'`` and ``'ssim'`` are
    for images with values from 0 to 1, and ``'psnr_255'`` and ``'ssim_255'`` for any other range.

    Names for training only: ``'grad_norm'``, the gradients' global norm, and ``'update_ratio'``,
    the norm of a step's update divided by that of the parameters (about 1e-3 if training goes
    well). Both are means over the steps. Leave them out of the metrics of an evaluation.

    The values of a function ``(logits, labels)`` that returns one per example are averaged over the
    epoch. A function may also return a single number, or be one that JAX can't trace, such as those
    of scikit-learn. It is then called once, on the host, with NumPy arrays of the entire epoch. It
    needs ``kind``, ``num_outputs`` and ``capacity``, and only `compute` returns its value. A class
    of `clu.metrics.Metric` receives the keywords above, with a boolean ``mask``. Labels of binary
    and multiclass tasks are class indices; for class probabilities, the index of the largest one.

    The scores and labels for ranking metrics and functions of an entire epoch are kept on the
    device, once for all of these: ``capacity * (4 * num_outputs + 5)`` bytes for class indices. If
    an epoch has more rows than ``capacity``, the values are NaN.

    Equal arguments return the same class, so compiled programs are shared.

    Args:
        metrics: names, classes and functions.
        kind: ``'binary'``, ``'multiclass'``, ``'multilabel'``, ``'regression'`` or ``'sequence'``.
            None infers the kind from the shapes, where they are sufficient.
        num_outputs: the number of values the model returns per example.
        capacity: the number of rows in an epoch, padding included.
        classes: the classes, or labels, that names such as ``'iou_cat'`` contain.
        blank_id: the position of the output that stands for no label, for sequences; see `CTC`.

    Raises:
        ConfigError: for metrics that are unknown, don't fit the task, have the same name or need
            an argument that is None. The message lists every problem.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import make_metrics
        >>> metrics = make_metrics(('accuracy',)).single_from_model_output(
        ...     logits=jnp.array([[2.0, 0.0], [0.0, 1.0]]), labels=jnp.array([0, 0]),
        ...     losses=jnp.array([0.1, 1.3]), weight=jnp.array([1.0, 1.0]))
        >>> {name: round(float(value), 2) for name, value in metrics.compute().items()}
        {'loss': 0.7, 'accuracy': 0.5}
    """
    found = [check_metric(metric, kind, num_outputs, classes=classes) for metric in metrics]
    if kind not in (None, *get_args(TaskKind)):
        found = [unknown_name('kind', kind, get_args(TaskKind))]
    for name, value in {'num_outputs': num_outputs, 'capacity': capacity}.items():
        if value is not None and not (is_whole(value) and value >= 1):
            found.append(f'{name}: got {value!r}, expected a whole number of at least 1.')
    found = [problem for problem in found if problem] or _same_names(metrics)
    if found:
        raise ConfigError(found[0] if len(found) == 1 else problems('make_metrics:', found))
    specs = [metric_spec(metric) for metric in metrics if isinstance(metric, str)]
    if classes is not None:  # only where they are needed, so that more tasks share programs
        classes = tuple(classes) if any(spec and spec.has_class for spec in specs) else None
    return _make(tuple(metrics), Shape(kind, num_outputs, capacity, classes, blank_id))


def _same_names(metrics: Sequence[Metric]) -> list[str]:
    names = ['loss', *map(metric_name, metrics)]
    return [
        f'metrics: got two called {name!r}{" (the loss is one)" if name == "loss" else ""}, '
        'expected different names. Give each function a different name with def, each class with '
        'class.'
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]


@functools.lru_cache(maxsize=256)
def _make(metrics: tuple[Metric, ...], shape: Shape) -> type[clu_metrics.Collection]:
    entries = {'loss': Entry('loss', _LOSS, _LOSS.compute)}
    for index, metric in enumerate(metrics):
        entries[metric_name(metric)] = make_entry(metric, index, shape)
    fields = {entry.field: entry.state for entry in entries.values()}
    if shape.capacity is not None and COLLECTED not in fields:
        return _make(metrics, shape._replace(capacity=None))
    members = {
        '__annotations__': fields,
        '__doc__': f"The epoch's {', '.join(entries)}.",
        'kind': shape.kind,
        'entries': MappingProxyType(entries),
    }
    return register_pytree(type('Metrics', (_Metrics,), members))


def make_head_metrics(
    heads: Mapping[str, type[clu_metrics.Collection]],
    loss_weights: Mapping[str, float],
    training_metrics: Sequence[str] = (),
) -> type[clu_metrics.Collection]:
    """Returns the CLU collection class of a model with several heads.

    Its ``loss`` is the weighted sum of the heads' losses. The other metrics have the head's name in
    front: ``kind_loss``, ``kind_accuracy``. ``single_from_model_output`` takes ``heads``, a dict of
    each head's keywords for the classes of `make_metrics`.

    Args:
        heads: a class from `make_metrics` for each head.
        loss_weights: the factor of each head's loss; 1 for those left out.
        training_metrics: names of metrics of training steps, such as ``'grad_norm'``.

    Raises:
        ConfigError: if two metrics have the same name, such as ``f1`` of a head ``a_b`` and
            ``b_f1`` of a head ``a``.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.objectives.streaming_metrics import make_head_metrics, make_metrics
        >>> both = make_head_metrics({'a': make_metrics(), 'b': make_metrics()}, {'a': 1, 'b': 0.5})
        >>> values = {'logits': jnp.zeros(2), 'labels': jnp.zeros(2), 'losses': jnp.array([1., 3.]),
        ...           'weight': jnp.ones(2)}
        >>> metrics = both.single_from_model_output(heads={'a': values, 'b': values})
        >>> {name: float(value) for name, value in metrics.compute().items()}
        {'loss': 3.0, 'a_loss': 2.0, 'b_loss': 2.0}
    """
    weights = tuple((name, float(loss_weights.get(name, 1))) for name in heads)
    return _make_heads(tuple(heads.items()), weights, tuple(training_metrics))


@functools.lru_cache(maxsize=64)
def make_objective_metrics(
    names: tuple[str, ...], training_metrics: tuple[str, ...] = ()
) -> type[clu_metrics.Collection]:
    """Returns the CLU collection class of an objective's loss and of the values it returns.

    All are weighted means over the rows. ``single_from_model_output`` takes ``values``, a dict of
    arrays ``[batch]``.

    Args:
        names: the names of the values.
        training_metrics: names of metrics of training steps, such as ``'grad_norm'``.
    """
    entries = {'loss': Entry('loss', _LOSS, _LOSS.compute)}
    for index, name in enumerate(names):
        state = mean_class(lambda values, name=name, **_: values[name], weight='weight')
        entries[name] = Entry(f'_value_{index}', state, state.compute)
    for index, name in enumerate(training_metrics):
        entries[name] = make_entry(name, index, Shape(None, None, None))
    members = {
        '__annotations__': {entry.field: entry.state for entry in entries.values()},
        '__doc__': f"The epoch's {', '.join(entries)}.",
        'kind': None,
        'entries': MappingProxyType(entries),
    }
    return register_pytree(type('ObjectiveMetrics', (_Metrics,), members))


class _HeadMetrics(_Metrics):
    """A collection whose fields are those of the heads' collections."""

    kind = None
    parts: ClassVar[Mapping[str, tuple[type[clu_metrics.Collection], Mapping[str, str]]]]
    loss_fields: ClassVar[tuple[tuple[float, str], ...]]
    step_fields: ClassVar[Mapping[str, type[clu_metrics.Metric]]]

    @property
    def losses(self) -> list[tuple[float, WeightedMean]]:
        """Returns the factor and the mean of each head's loss."""
        return [(factor, getattr(self, field)) for factor, field in self.loss_fields]

    @classmethod
    def _from_model_output(cls, *, heads, **step):
        counter = cls.empty()._reduction_counter
        values = {name: part.from_model_output(**step) for name, part in cls.step_fields.items()}
        for head, (part, fields) in cls.parts.items():
            collected = part._from_model_output(**heads[head], **step)
            values |= {name: getattr(collected, field) for field, name in fields.items()}
        return cls(**values, _reduction_counter=counter)  # pyright: ignore[reportCallIssue]


def _sum_of_losses(losses: list[tuple[float, WeightedMean]]) -> jax.Array:
    """Returns the weighted sum; a head without targets adds 0, as in a step."""
    has_targets = jnp.stack([mean.total_weight > 0 for _, mean in losses])
    total = weighted_sum(
        [(factor, jnp.where(mean.total_weight > 0, mean.compute(), 0)) for factor, mean in losses]
    )
    return jnp.where(has_targets.any(), total, jnp.nan)


@functools.lru_cache(maxsize=64)
def _make_heads(
    heads: tuple[tuple[str, type[_Metrics]], ...],
    weights: tuple[tuple[str, float], ...],
    training_metrics: tuple[str, ...],
) -> type[clu_metrics.Collection]:
    entries = {'loss': Entry('losses', clu_metrics.Metric, _sum_of_losses)}
    annotations, parts = {}, {}
    for index, (head, part) in enumerate(heads):
        # The name of a head may not be an identifier.
        fields = {field: f'_{index}_{field}' for field in part.__annotations__}
        annotations |= {fields[field]: state for field, state in part.__annotations__.items()}
        for name, entry in part.entries.items():
            full_name = f'{head}_{name}'
            if full_name in entries:
                raise ConfigError(
                    f'metrics: got two called {full_name!r}, expected different names. Rename one '
                    'of the heads.'
                )
            entries[full_name] = entry._replace(field=fields[entry.field])
        parts[head] = part, fields
    steps = {}
    for index, name in enumerate(training_metrics):
        entry = make_entry(name, index, Shape(None, None, None))
        steps[entry.field] = entry.state
        entries[name] = entry
    members = {
        '__annotations__': annotations | steps,
        '__doc__': f"The epoch's {', '.join(entries)}.",
        'entries': MappingProxyType(entries),
        'parts': MappingProxyType(parts),
        'loss_fields': tuple((weight, parts[head][1]['loss']) for head, weight in weights),
        'step_fields': MappingProxyType(steps),
    }
    return register_pytree(type('HeadMetrics', (_HeadMetrics,), members))


@functools.lru_cache(maxsize=256)
def row_metrics(metrics: type[clu_metrics.Collection]) -> type[clu_metrics.Collection]:
    """Returns a collection class without the metrics of a step, such as the gradients' norm.

    The others are sums over rows, so those of a batch can be merged from parts of it.
    """
    rows = {
        name: state for name, state in metrics.__annotations__.items()
        if not issubclass(state, StepMean)
    }  # fmt: skip
    if rows == metrics.__annotations__:
        return metrics
    kind = getattr(metrics, 'kind', None)
    members = {'__annotations__': rows, 'kind': kind, 'entries': MappingProxyType({})}
    return register_pytree(type('RowMetrics', (_Metrics,), members))


def with_step_metrics(
    metrics: type[clu_metrics.Collection], rows: clu_metrics.Collection, **step: Any
) -> clu_metrics.Collection:
    """Returns a collection from those of its class's `row_metrics` and the values of a step."""
    if type(rows) is metrics:
        return rows
    fields = {
        name: getattr(rows, name) if hasattr(rows, name) else state.from_model_output(**step)
        for name, state in metrics.__annotations__.items()
    }
    fields['_reduction_counter'] = rows._reduction_counter
    return metrics(**fields)


def metrics_of_all_scores(metrics: type[clu_metrics.Collection]) -> list[str]:
    """Returns the names of the metrics that keep the scores of an epoch."""
    entries: Mapping[str, Entry] = getattr(metrics, 'entries', {})
    return [name for name, entry in entries.items() if entry.field == COLLECTED]


def metrics_of_whole_rows(metrics: type[clu_metrics.Collection]) -> list[str]:
    """Returns the names of the metrics that need all elements of a row."""
    entries: Mapping[str, Entry] = getattr(metrics, 'entries', {})
    return [name for name, entry in entries.items() if entry.needs_rows]


def register_pytree(cls: type[clu_metrics.Collection]) -> type[clu_metrics.Collection]:
    """Makes the class a frozen dataclass and a pytree whose structure no other class has.

    In JAX 0.10, two classes registered by `jax.tree_util.register_dataclass` (which `flax.struct`
    calls) have equal structures if their fields are equal. About one in seven calls of a jitted
    function then runs the program of another class. ``register_pytree_with_keys`` does not have
    this fault.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]

    def flatten(metrics: clu_metrics.Collection) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(metrics, name) for name in names), None

    def flatten_with_keys(metrics: clu_metrics.Collection) -> tuple[tuple[Any, ...], None]:
        values, _ = flatten(metrics)
        return tuple(zip(map(jax.tree_util.GetAttrKey, names), values, strict=True)), None

    jax.tree_util.register_pytree_with_keys(
        cls, flatten_with_keys, lambda _, values: cls(*values), flatten
    )
    return cls


@Jit
def _compute(metrics: clu_metrics.Collection) -> dict[str, jax.Array]:
    return metrics.compute()


def compute(metrics: clu_metrics.Collection) -> dict[str, float]:
    """Returns the values of a CLU collection as plain floats, in one transfer from the device.

    They include the functions of an entire epoch. The logits and labels collected for these are
    transferred, too, and padding is removed.

    Args:
        metrics: a collection of a class from `make_metrics`, or any other collection.

    Raises:
        ConfigError: for a metric that is not one number.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.objectives.streaming_metrics import compute, make_metrics
        >>> def worst(logits, labels):
        ...     return abs(logits - labels).max()
        >>> metrics = make_metrics((worst,), kind='regression', num_outputs=1, capacity=8)
        >>> compute(metrics.single_from_model_output(
        ...     logits=jnp.array([1.0, 5.0]), labels=jnp.array([1.0, 1.0]),
        ...     losses=jnp.array([0.0, 1.0]), weight=jnp.array([1.0, 1.0])))
        {'loss': 0.5, 'worst': 4.0}
    """
    entries: Mapping[str, Entry] = getattr(metrics, 'entries', {})
    on_host = {name: entry for name, entry in entries.items() if entry.on_host}
    rows = {entry.field: getattr(metrics, entry.field) for entry in on_host.values()}
    values, rows = jax.device_get((_compute(metrics), rows))
    for name, entry in on_host.items():
        values[name] = _epoch_value(entry.read, rows[entry.field])
    # In the order of the metrics, because jit sorts the names.
    return {
        name: one_number(name, values[name]) for name in entries or type(metrics).__annotations__
    }


def _epoch_value(function: Callable[..., Any], epoch: Any) -> np.floating | float:
    mask = epoch.mask
    if epoch.position > len(mask) or not mask.any():
        return np.nan
    return np.mean(value_of(function, epoch.logits[mask], epoch.labels[mask]))


def value_of(function: Callable[..., Any], logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the result of a custom metric: one number, or one per example or label.

    Raises:
        ConfigError: if the result is something else.
    """
    try:
        value = np.asarray(function(logits, labels))
    except Exception as error:
        error.add_note(f'Raised by the metric {metric_name(function)!r}.')
        raise
    is_numeric = value.dtype.kind not in 'OSU'
    if value.ndim or not is_numeric:
        check_per_example(function, value if is_numeric else None, logits, labels)
    return value


def one_number(name: str, value: Any) -> float:
    """Returns the value of a metric as a plain float.

    Raises:
        ConfigError: if it is an array.
    """
    if np.shape(value) != ():
        raise ConfigError(
            f'metrics: {name!r} returned an array of shape {np.shape(value)}, expected one number.'
        )
    return float(value)
