"""The objective of a training: loss, metrics and augmentation, checked."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core import (
    ObjectiveLoss,
    check_augmentation,
    check_metric,
    get_loss,
    make_augmentation,
    metric_name,
)
from thinkml.core.objectives.elements import loss_of_elements
from thinkml.core.objectives.heads import Head, HeadLosses
from thinkml.core.objectives.losses import CLASSIFICATION_LOSSES, REGRESSION_LOSSES, LossFn, decides
from thinkml.core.objectives.metric_table import TRAINING_ONLY_METRICS
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.core.train.augmentation_registry import make_head_augmentation
from thinkml.core.train.aux_losses import NO_AUX_LOSSES, AuxLosses
from thinkml.core.train.custom_step import CheckedStep
from thinkml.core.train.step import AugmentFn
from thinkml.errors import ConfigError, is_number, problems, unknown_name
from thinkml.tasks import Composite, Task
from thinkml.training.metric_names import is_taken, name_problem
from thinkml.training.training_data import TrainRequest


@dataclasses.dataclass(frozen=True)
class TrainingObjective:
    """A loss, metrics and an augmentation that fit a task.

    Attributes:
        loss_fn: the loss of each example, or the losses of several heads; None beside a step.
        loss_name: the name of the loss, for the record.
        is_custom_loss: True if the user wrote the loss.
        is_default_loss: True if the user named none.
        metrics: the metrics of training and validation, accuracy first for classification.
        training_metrics: further metrics, of training alone.
        augment: the augmentation of training batches; None for none.
        heads: the objective of each head, by name; empty for a model with one output.
        values: the names of the values that an `thinkml.core.Objective` returns.
        aux_losses: the sown values that are added to the loss in training.
        step: the custom step of the training; None for ThinkML's.
    """

    loss_fn: LossFn | HeadLosses | ObjectiveLoss | None
    loss_name: str
    is_custom_loss: bool
    is_default_loss: bool
    metrics: tuple[Any, ...]
    training_metrics: tuple[str, ...]
    augment: AugmentFn | None
    heads: Mapping[str, 'TrainingObjective'] = dataclasses.field(default_factory=dict)
    values: tuple[str, ...] = ()
    aux_losses: AuxLosses = NO_AUX_LOSSES
    step: CheckedStep | None = None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Returns the names of the metrics of validation, and of training if it has no step."""
        of_heads = (
            f'{head}_{name}'
            for head, objective in self.heads.items()
            for name in ('loss', *objective.metric_names)
        )
        return (*map(metric_name, self.metrics), *of_heads, *self.values)

    @property
    def training_names(self) -> tuple[str, ...]:
        """Returns the names of the metrics that training alone records."""
        return (*self.training_metrics, *(name for name, _ in self.aux_losses.weights))

    @property
    def couples_rows(self) -> bool:
        """Returns True if a batch must not be computed in parts."""
        return isinstance(self.loss_fn, ObjectiveLoss) and self.loss_fn.objective.coupled

    @property
    def names_in_training(self) -> tuple[str, ...]:
        """Returns the names of the metrics that training records."""
        return (*self.metric_names, *self.training_names) if self.step is None else self.step.values

    @property
    def loss_weights(self) -> dict[str, float]:
        """Returns the factor of each head's loss."""
        assert isinstance(self.loss_fn, HeadLosses)
        return {name: head.loss_weight for name, head in self.loss_fn.heads}


def make_objective(
    task: Task,
    x: Any,
    y: np.ndarray,
    *,
    loss_fn: Any,
    metrics: Any,
    augmentation: Any,
    training_metrics: Sequence[str] = (),
) -> TrainingObjective:
    """Checks the loss, the metrics and the augmentation, and fills in defaults.

    Args:
        task: the meaning of the outputs.
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
        y: encoded targets, or the first of them.
        loss_fn: a name, a function, or None for the default of the task.
        metrics: a list of names, functions and classes, or None.
        augmentation: see `thinkml.core.make_augmentation`.
        training_metrics: further metrics of training alone.

    Raises:
        ConfigError: for one that is unknown, does not fit the task, or can not be traced.
    """
    recorded = _check_metrics(metrics, task)
    of_training = [metric for metric in recorded if metric in TRAINING_ONLY_METRICS]
    augment = make_augmentation(augmentation, x, task.kind, task.num_outputs, task.element_shape)
    labels = label_probe(y)
    augmented = labels if augment is None else augmented_labels(augment, x, labels)
    chosen = _choose_loss(loss_fn, task)
    has_axes = task.element_shape or task.type.has_sequences
    if has_axes and (augmented.shape, augmented.dtype) != (labels.shape, labels.dtype):
        raise ConfigError(
            f'augmentation: it turns labels {labels.dtype} into {augmented.dtype} of shape '
            f'{with_rows(augmented.shape)}, expected the same shape and dtype for a label of each '
            'element, in which -1 is ignored.'
        )
    if augmented.shape != labels.shape and decides(loss_fn) == 'classification':
        raise ConfigError(
            f'loss_fn: got {_loss_name(loss_fn, task)!r} beside an augmentation that mixes '
            "classes, whose probabilities it can't take. Use 'cross_entropy'."
        )
    for targets in {labels, augmented}:  # validation has labels without augmentation
        _try_loss(chosen, task, labels, targets)
    # A mean over the tokens that count is no mean of the rows' means, and a loss all the same.
    if loss_fn is not None and decides(loss_fn) is None and not task.element_shape:
        _check_rows_alone(loss_fn, task, y)
    return TrainingObjective(
        loss_fn=chosen,
        loss_name=_loss_name(loss_fn, task),
        is_custom_loss=loss_fn is not None and decides(loss_fn) is None,
        is_default_loss=loss_fn is None,
        metrics=tuple(metric for metric in recorded if metric not in TRAINING_ONLY_METRICS),
        training_metrics=tuple(dict.fromkeys((*of_training, *training_metrics))),
        augment=augment,
    )


def make_head_objective(
    task: Composite,
    x: Any,
    y: dict[str, np.ndarray],
    request: TrainRequest,
    training_metrics: Sequence[str] = (),
) -> TrainingObjective:
    """Returns the objective of a model with several heads, see `make_objective`.

    Args:
        task: the tasks of the heads.
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
        y: encoded targets by head, or the first of them.
        request: the arguments of ``train``: losses, metrics and weights by head, or for all.
        training_metrics: further metrics of training alone.

    Raises:
        ConfigError: see `make_objective`; also for a name that is not a head's.
    """
    weights = _check_loss_weights(request.loss_weights, task)
    shared = request.metrics if not isinstance(request.metrics, Mapping) else ()
    of_step = [metric for metric in shared or () if metric in TRAINING_ONLY_METRICS]
    objectives = {}
    for name, head in task.heads:
        of_head = request.of_head(name, task)
        metrics = of_head.metrics
        if isinstance(metrics, Sequence) and not isinstance(metrics, str):
            metrics = [metric for metric in metrics if metric not in of_step]
            if not head.is_classification:  # accuracy is always recorded for classes
                metrics = [metric for metric in metrics if metric != 'accuracy']
        try:
            objectives[name] = make_objective(
                head, x, y[name], loss_fn=of_head.loss_fn, metrics=metrics, augmentation=None
            )
        except ConfigError as error:
            raise ConfigError(f'head {name!r}: {error}{_advice(request, name, error)}') from error
        _check_head_names(name, objectives[name])
        if objectives[name].training_metrics:
            raise ConfigError(
                f'metrics: got {objectives[name].training_metrics[0]!r} for the head {name!r}, '
                'expected it for all heads, since it is one value of a step. Pass a list of '
                "metrics, or callbacks=['grad_norm']."
            )
    losses = HeadLosses(
        tuple(
            (name, Head(objectives[name].loss_fn, head.element_shape, weights[name]))
            for name, head in task.heads
        )
    )
    kinds = task.map(lambda head: (head.kind, head.element_shape))
    augment = make_head_augmentation(request.augmentation, x, kinds)
    if augment is not None:
        augmented_labels(augment, x, jax.tree.map(label_probe, y))
    factors = {name: '' if weight == 1 else f'{weight:g} ' for name, weight in weights.items()}
    return TrainingObjective(
        loss_fn=losses,
        loss_name=', '.join(
            f'{name}: {factors[name]}{one.loss_name}' for name, one in objectives.items()
        ),
        is_custom_loss=any(one.is_custom_loss for one in objectives.values()),
        is_default_loss=all(one.is_default_loss for one in objectives.values()),
        metrics=(),
        training_metrics=tuple(dict.fromkeys((*of_step, *training_metrics))),
        augment=augment,
        heads=objectives,
    )


def _advice(request: TrainRequest, head: str, error: ConfigError) -> str:
    is_list = str(error).startswith('metrics:') and not isinstance(request.metrics, Mapping)
    return f' Pass a dict by head: metrics={{{head!r}: [...]}}.' if is_list else ''


def _check_head_names(head: str, objective: TrainingObjective) -> None:
    """Raises a `ConfigError` for a head whose values in the history are those of something else."""
    names = [f'{head}_{name}' for name in ('loss', *objective.metric_names)]
    taken = [name for name in names if is_taken(name)]
    if not head or taken:
        reason = f'whose {taken[0]!r} means something else in the history' if head else 'no name'
        raise ConfigError(
            f'model: got an output called {head!r}, {reason}. Give the output another name.'
        )


def label_probe(y: np.ndarray) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a few encoded labels or other rows."""
    return jax.ShapeDtypeStruct((PROBE_ROWS, *y.shape[1:]), y.dtype)


def _check_loss_weights(loss_weights: Any, task: Composite) -> dict[str, float]:
    weights = dict.fromkeys(task.by_name, 1.0)
    if loss_weights is None:
        return weights
    if not isinstance(loss_weights, Mapping):
        raise ConfigError(
            f'loss_weights: got {loss_weights!r}, expected a dict of a number for each head.'
        )
    for name, value in loss_weights.items():
        if name not in weights:
            raise ConfigError(unknown_name('loss_weights', name, weights))
        if not is_number(value) or value < 0:
            raise ConfigError(
                f'loss_weights[{name!r}]: got {value!r}, expected a finite number of at least 0.'
            )
        weights[name] = float(value)
    if not any(weights.values()):
        raise ConfigError('loss_weights: got 0 for each head, expected some above 0.')
    return weights


def _loss_name(loss_fn: Any, task: Task) -> str:
    if isinstance(loss_fn, str):
        return loss_fn
    if dataclasses.is_dataclass(loss_fn):
        return repr(loss_fn)
    if loss_fn is not None:
        return getattr(loss_fn, '__name__', type(loss_fn).__name__)
    return task.type.default_loss(task.num_outputs)


def _choose_loss(loss_fn: Any, task: Task) -> LossFn:
    default = _loss_name(None, task)
    if not (loss_fn is None or isinstance(loss_fn, str) or callable(loss_fn)):
        raise ConfigError(f'loss_fn: got {loss_fn!r}, expected a name or (logits, labels) -> loss.')
    known = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
    if isinstance(loss_fn, str) and loss_fn not in known:
        raise ConfigError(unknown_name('loss_fn', loss_fn, known))
    if isinstance(loss_fn, type):
        raise ConfigError(
            f'loss_fn: got the class {loss_fn.__name__}, expected an object of it: '
            f'{loss_fn.__name__}().'
        )
    decision = decides(loss_fn)
    fitting = {decides(default), None}
    if task.is_classification:
        fitting.add('classification')
    if loss_fn is not None and decision not in fitting:
        raise ConfigError(
            f'loss_fn: got {_loss_name(loss_fn, task)!r} for a model with {task.num_outputs} '
            f'output{"s" if task.num_outputs > 1 else ""} ({task.in_words}), expected {default!r}.'
        )
    chosen: Any = default if loss_fn is None else loss_fn
    return get_loss(chosen, task.element_shape)


def augmented_labels(augment: AugmentFn, x: Any, labels: Any) -> Any:
    """Checks an augmentation; returns the shape and dtype of labels after it."""
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((PROBE_ROWS, *leaf.shape[1:]), leaf.dtype), x
    )
    check_augmentation(augment, rows, labels)
    return jax.eval_shape(augment, jax.eval_shape(lambda: jax.random.key(0)), rows, labels)[1]


def _try_loss(loss_fn: LossFn, task: Task, labels: Any, targets: Any) -> None:
    """Traces the loss on the shapes it will get, so that it does not fail in a compiled program."""
    logits = probe_logits(task, labels)
    try:
        jax.eval_shape(loss_of_elements(loss_fn, task.element_shape), logits, targets)
    except ConfigError:
        raise
    except Exception as error:
        others = {*logits.shape[1:], *targets.shape[1:]}
        shown = functools.partial(with_rows, others=others)
        after = '' if targets == labels else ' after augmentation'
        raise ConfigError(
            f'loss_fn: it failed for logits {shown(logits.shape)} and labels '
            f'{shown(targets.shape)} {targets.dtype}{after}: {type(error).__name__}: '
            f'{shown(error)}'
        ) from error


# A loss of a few rows and the mean of their losses differ by less if rows do not depend on others.
_ROUNDING = 1e-3


def _check_rows_alone(loss_fn: LossFn, task: Task, y: np.ndarray) -> None:
    """Raises a `ConfigError` for a loss of one number in which a row depends on other rows.

    Such a loss is computed for each row alone. It is compared with that of some rows together, for
    random outputs.
    """
    labels = jax.ShapeDtypeStruct((PROBE_ROWS, *y.shape[1:]), y.dtype)
    spec = probe_logits(task, labels)
    rows = np.unique(np.linspace(0, len(y) - 1, 4).astype(np.int64))
    if len(rows) < 2 or getattr(jax.eval_shape(loss_fn, spec, labels), 'shape', None) != ():
        return
    drawn = np.random.default_rng(0).normal(size=(len(rows), *spec.shape[1:]))
    logits, labels = jnp.asarray(drawn, jnp.float32), jnp.asarray(y[rows])
    try:
        together = loss_fn(logits, labels)
        alone = [float(loss_fn(logits[i : i + 1], labels[i : i + 1])) for i in range(len(rows))]
    except Exception as error:
        raise ConfigError(
            f'loss_fn: it failed for outputs {logits.shape} and labels {labels.shape}: '
            f'{type(error).__name__}: {error}'
        ) from error
    expected = float(np.mean(alone))
    is_near = [
        math.isclose(float(together), value, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        for value in (expected, expected * len(rows))  # a mean, or a sum
    ]
    if math.isfinite(float(together)) and not any(is_near):
        raise ConfigError(
            f'loss_fn: {_loss_name(loss_fn, task)!r} returns one number that depends on several '
            f'rows together: {float(together):.4g} for {len(rows)} rows, and {expected:.4g} as the '
            'mean of each alone. Return a loss for each row, or write Objective(fn, coupled=True).'
        )


def probe_logits(task: Task, labels: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of the logits of a few rows, which a loss gets with these labels."""
    if task.type.has_sequences:  # the number of frames changes no shape of a loss
        frames = 2 * labels.shape[1] + 1
        return jax.ShapeDtypeStruct((PROBE_ROWS, frames, task.num_outputs), np.float32)
    has_columns = labels.ndim > 1 + len(task.element_shape)
    width = (task.num_outputs,) if has_columns or task.num_outputs > 1 else ()
    return jax.ShapeDtypeStruct((PROBE_ROWS, *task.element_shape, *width), np.float32)


def _check_metrics(metrics: Any, task: Task) -> tuple[Any, ...]:
    """Returns the metrics to record, in the order of the list."""
    if metrics is not None and (isinstance(metrics, str) or not isinstance(metrics, Sequence)):
        raise ConfigError(f"metrics: got {metrics!r}, expected a list, for instance ['accuracy'].")
    always = ('accuracy',) if task.is_classification else ()
    given = [metric for metric in metrics or () if metric not in ('loss', *always)]
    found = [
        check_metric(metric, task.kind, task.num_outputs, task.element_shape, task.classes)
        for metric in given
    ]
    found = [problem for problem in found if problem]
    found = found or [problem for metric in given if (problem := name_problem(metric))]
    if found:
        raise ConfigError(found[0] if len(found) == 1 else problems('metrics:', found))
    return (*always, *dict.fromkeys(given))
