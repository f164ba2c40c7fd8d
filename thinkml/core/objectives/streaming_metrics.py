"""CLU metric collections: accumulated on the device, merged exactly over an epoch.

`make_metrics` makes the collection of the loss and of any metrics: by name, as classes of
`clu.metrics.Metric`, or as functions ``(logits, labels)``. Definitions are those of
`thinkml.evaluation`, and so scikit-learn's.

Metrics that need the same sums share them, so a collection's fields are not its metrics: it is
read by ``compute()`` or, functions of a whole epoch included, by `compute`.
"""

# clu's collections read the annotations at run time, so no `from __future__ import annotations`.
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, get_args

import jax
import numpy as np
from clu import metrics as clu_metrics
from clu.values import Scalar, Value

from thinkml.core.objectives.accumulators import WeightedMean as WeightedMean
from thinkml.core.objectives.metric_entries import (
    Entry,
    Shape,
    check_per_example,
    entry_of,
    mean_of,
)
from thinkml.core.objectives.metric_names import CLASSIFICATION_METRICS as CLASSIFICATION_METRICS
from thinkml.core.objectives.metric_names import REGRESSION_METRICS as REGRESSION_METRICS
from thinkml.core.objectives.metric_names import TRAINING_ONLY_METRICS as TRAINING_ONLY_METRICS
from thinkml.core.objectives.metric_names import Metric, check_metric, metric_name
from thinkml.core.objectives.metric_names import is_higher_better as is_higher_better
from thinkml.core.objectives.per_example import class_indices
from thinkml.core.xla.jit import Jit
from thinkml.errors import ConfigError, is_whole, problems, unknown_name
from thinkml.model_record import TaskKind

_LOSS = mean_of(lambda losses, **_: losses, weight='weight')


class _Metrics(clu_metrics.Collection):
    """A collection whose metrics are read from fields that several of them may share."""

    kind: ClassVar[TaskKind | None]
    entries: ClassVar[Mapping[str, Entry]]

    @classmethod
    def _from_model_output(cls, *, labels, weight, mask=None, **step):
        return super()._from_model_output(
            labels=class_indices(labels, cls.kind),
            weight=weight,
            mask=(weight if mask is None else mask) != 0,
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
) -> type[clu_metrics.Collection]:
    """Returns the CLU collection class of the loss and the given metrics.

    A batch's ``single_from_model_output`` takes the keywords ``logits`` (float32, ``[batch]`` or
    ``[batch, k]``), ``labels`` (encoded), ``losses`` and ``weight`` (float32 ``[batch]``),
    ``mask`` (``[batch]``, not 0 for examples, 0 for rows that only fill the batch up; where it is
    left out, rows of weight 0 are those) and, for `TRAINING_ONLY_METRICS`, ``grads``, the
    ``updates`` and the ``params`` after them. The loss is weighted by ``weight``; in every metric
    each example counts once. Sums and counts are exact for up to 2**31 - 1 examples, however the
    epoch is cut.

    Names, for classification:

    - ``'accuracy'``, ``'log_loss'``, ``'brier'``, ``'top_k_accuracy'`` (``k`` is 5) and
      ``'top_3_accuracy'`` with any number;
    - ``'precision'``, ``'recall'``, ``'f1'``, of the class with index 1 for binary, the mean over
      the classes or labels else; ``'_macro'``, ``'_micro'`` or ``'_weighted'`` behind the name
      chooses the mean; ``'balanced_accuracy'``. They need ``kind`` and ``num_outputs``;
    - ``'roc_auc'``, ``'average_precision'``, exact by sorting all scores, one-vs-rest for
      multiclass. They need ``capacity`` too. ``'roc_auc'`` is NaN where a class has no examples
      or all of them.

    For regression: ``'mse'``, ``'mae'``, and the means over the targets of ``'rmse'`` and
    ``'r2'``, which need ``num_outputs``. In training also ``'grad_norm'``, the gradients' global
    norm, and ``'update_ratio'``, the norm of a step's update over that of the parameters (about
    1e-3 in a training that goes well), each the mean over the steps. Leave
    `TRAINING_ONLY_METRICS` out of an evaluation's.

    A function ``(logits, labels)`` that returns a value per example is averaged over the epoch. One
    that returns a number, or can't be traced by JAX as those of scikit-learn, is called once, on
    the host, with NumPy arrays of the whole epoch; it needs ``kind``, ``num_outputs`` and
    ``capacity``, and only `compute` gives its value. A class of `clu.metrics.Metric` gets the
    keywords above, with a boolean ``mask``. Labels of binary and multiclass tasks are class
    indices; where an example has shares of classes, that of the largest.

    The scores and labels that ranking metrics and functions of a whole epoch need are kept on the
    device, once for all: ``capacity * (4 * num_outputs + 5)`` bytes for class indices. Where an
    epoch has more rows than ``capacity`` the values are NaN.

    The same arguments return the same class, so that compiled programs are shared.

    Args:
        metrics: names, classes, functions.
        kind: ``'binary'``, ``'multiclass'``, ``'multilabel'`` or ``'regression'``. None tells by
            the shapes, where that suffices.
        num_outputs: numbers the model returns per example.
        capacity: rows of an epoch, those that only fill batches up included.

    Raises:
        ConfigError: for metrics that are unknown, don't fit the task, have the same name or need
            an argument that is None. Names every problem.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import make_metrics
        >>> metrics = make_metrics(('accuracy',)).single_from_model_output(
        ...     logits=jnp.array([[2.0, 0.0], [0.0, 1.0]]), labels=jnp.array([0, 0]),
        ...     losses=jnp.array([0.1, 1.3]), weight=jnp.array([1.0, 1.0]))
        >>> {name: round(float(value), 2) for name, value in metrics.compute().items()}
        {'loss': 0.7, 'accuracy': 0.5}
    """
    found = [check_metric(metric, kind, num_outputs) for metric in metrics]
    if kind not in (None, *get_args(TaskKind)):
        found = [unknown_name('kind', kind, get_args(TaskKind))]
    for name, value in {'num_outputs': num_outputs, 'capacity': capacity}.items():
        if value is not None and not (is_whole(value) and value >= 1):
            found.append(f'{name}: got {value!r}, expected a whole number of at least 1.')
    found = [problem for problem in found if problem] or _same_names(metrics)
    if found:
        raise ConfigError(found[0] if len(found) == 1 else problems('make_metrics:', found))
    return _make(tuple(metrics), Shape(kind, num_outputs, capacity))


def _same_names(metrics: Sequence[Metric]) -> list[str]:
    names = ['loss', *map(metric_name, metrics)]
    return [
        f'metrics: got two called {name!r}{" (the loss is one)" if name == "loss" else ""}, '
        'expected names that differ. Give each function a name of its own with def, each class '
        'with class.'
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]


@functools.lru_cache(maxsize=256)
def _make(metrics: tuple[Metric, ...], shape: Shape) -> type[clu_metrics.Collection]:
    entries = {'loss': Entry('loss', _LOSS, _LOSS.compute)}
    for index, metric in enumerate(metrics):
        entries[metric_name(metric)] = entry_of(metric, index, shape)
    fields = {entry.field: entry.state for entry in entries.values()}
    if shape.capacity is not None and '_collected' not in fields:
        return _make(metrics, shape._replace(capacity=None))
    members = {
        '__annotations__': fields,
        '__doc__': f"The epoch's {', '.join(entries)}.",
        'kind': shape.kind,
        'entries': MappingProxyType(entries),
    }
    return _registered(type('Metrics', (_Metrics,), members))


def _registered(cls: type[clu_metrics.Collection]) -> type[clu_metrics.Collection]:
    """Makes the class a frozen dataclass and a pytree, of a structure that no other one has.

    For JAX 0.10 the structures of two classes from `jax.tree_util.register_dataclass` (which
    `flax.struct` calls) are equal where their fields are. About one in seven calls of a jitted
    function then runs the program of another class; ``register_pytree_with_keys`` has no such gap.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]

    def flatten(metrics: Any) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(metrics, name) for name in names), None

    def flatten_with_keys(metrics: Any) -> tuple[tuple[Any, ...], None]:
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
    """Returns the values of a CLU collection as plain floats, in one transfer.

    Those of functions of a whole epoch are among them: the logits and labels collected for these
    come along, without the rows that only filled batches up.

    Args:
        metrics: of a class made by `make_metrics`, or any other collection.

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
    whole = {name: entry for name, entry in entries.items() if entry.on_host}
    collected = {entry.field: getattr(metrics, entry.field) for entry in whole.values()}
    values, collected = jax.device_get((_compute(metrics), collected))
    for name, entry in whole.items():
        values[name] = _of_epoch(entry.read, collected[entry.field])
    # jit has sorted the names
    return {
        name: one_number(name, values[name]) for name in entries or type(metrics).__annotations__
    }


def _of_epoch(function: Callable[..., Any], epoch: Any) -> Any:
    rows = epoch.mask
    if epoch.position > len(rows) or not rows.any():
        return np.nan
    return np.mean(value_of(function, epoch.logits[rows], epoch.labels[rows]))


def value_of(function: Callable[..., Any], logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns what a metric of the user's own gives: a number, or one per example or label.

    Raises:
        ConfigError: if it gives something else.
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
            f'metrics: {name!r} gave an array of shape {np.shape(value)}, expected one number.'
        )
    return float(value)
