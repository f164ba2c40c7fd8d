"""What is to be learned, checked and encoded before anything is compiled."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from thinkml.core import check_trainable, get_loss, last_activation, num_outputs
from thinkml.core.functional import PROBE_ROWS
from thinkml.core.losses import (
    CLASSIFICATION_LOSSES,
    REGRESSION_LOSSES,
    LossFn,
    binary_cross_entropy,
    cross_entropy,
)
from thinkml.core.metrics import CLASSIFICATION_METRICS, REGRESSION_METRICS
from thinkml.data import (
    as_dtype_of,
    check_fits,
    check_inputs,
    check_lengths,
    check_targets,
    encode_targets,
    infer_task,
    split_rows,
)
from thinkml.errors import ConfigError, DataError, ThinkMLWarning, unknown_name
from thinkml.record import Task, record_of


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model's data, task, loss and metrics, all checked.

    Attributes:
        x: training inputs (with the validation rows, where they were split off).
        y: encoded targets of the same rows.
        rows: the rows to train on.
        x_val: validation inputs; None where there are none, or where they are rows of ``x``.
        y_val: encoded validation targets, likewise.
        rows_val: the rows of ``x`` to validate on, where they were split off.
        task: what the outputs mean.
        loss_fn: per example.
        loss_name: for the record.
        metrics: names, accuracy first for classification.
    """

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray
    x_val: np.ndarray | None
    y_val: np.ndarray | None
    rows_val: np.ndarray | None
    task: Task
    loss_fn: LossFn
    loss_name: str
    metrics: tuple[str, ...]

    @property
    def num_val(self) -> int:
        """Rows to validate on; 0 for none."""
        rows = self.rows_val if self.x_val is None else self.x_val
        return 0 if rows is None else len(rows)


def make_problem(
    model: Any,
    X_train: Any,
    y_train: Any,
    X_val: Any,
    y_val: Any,
    *,
    loss_fn: str | LossFn | None,
    metrics: Sequence[str] | None,
    validation_split: float,
    seed: int,
) -> Problem:
    """Checks what the user passed and encodes it.

    Raises:
        DataError: for arrays that can't be trained on.
        ConfigError: for a loss or metric that is unknown or does not fit the task.
        ModelTypeError: for a model that is none.
    """
    x = check_inputs(X_train, 'X_train')
    targets = check_targets(y_train, 'y_train')
    check_lengths({'X_train': x, 'y_train': targets})
    known = record_of(model).task
    task = infer_task(
        targets,
        num_outputs(model, x, 'X_train'),
        decided=_decided_by(loss_fn),
        known=known,
    )
    _warn_of_new_classes(known, task)
    y = encode_targets(targets, task, 'y_train')
    if task.kind in ('binary', 'multiclass') and len(np.unique(y)) == 1:
        warnings.warn(
            f'y_train: got only one class ({len(y):,} rows of it), so there is nothing to tell '
            'apart. Check how the rows were selected.',
            ThinkMLWarning,
            stacklevel=3,
        )
    rows, rows_val = np.arange(len(x)), None
    validation = _check_validation(X_val, y_val, x, task)
    if validation is None and validation_split > 0:
        rows, rows_val = split_rows(y, task, validation_split, seed)
    arrays = {'X_train': x, 'y_train': y}
    if validation is not None:
        arrays |= {'X_val': validation[0], 'y_val': validation[1]}
    check_fits(arrays)
    check_trainable(model, x, task.num_outputs, 'X_train')
    if task.is_classification and not _is_own(loss_fn):
        _warn_of_probabilities(last_activation(model, x))
    return Problem(
        x=x,
        y=y,
        rows=rows,
        x_val=validation and validation[0],
        y_val=validation and validation[1],
        rows_val=rows_val,
        task=task,
        loss_fn=_choose_loss(loss_fn, task, y),
        loss_name=_loss_name(loss_fn, task),
        metrics=_choose_metrics(metrics, task),
    )


def _warn_of_new_classes(known: Task | None, task: Task) -> None:
    if known is not None and known.classes != task.classes:
        warnings.warn(
            f'y_train: the model was trained as {known} and now is trained as {task}: its outputs '
            'change their meaning. Make a new model if that is not intended.',
            ThinkMLWarning,
            stacklevel=4,
        )


def _is_own(loss_fn: Any) -> bool:
    return loss_fn is not None and _decided_by(loss_fn) is None


def _warn_of_probabilities(activation: str | None) -> None:
    if activation is not None:
        warnings.warn(
            f'model: it ends in a {activation}, which the loss and the predictions apply as well. '
            f'Return logits: remove the {activation} from the model.',
            ThinkMLWarning,
            stacklevel=4,
        )


def _check_validation(
    X_val: Any, y_val: Any, x: np.ndarray, task: Task
) -> tuple[np.ndarray, np.ndarray] | None:
    if X_val is None and y_val is None:
        return None
    if X_val is None or y_val is None:
        missing, given = ('X_val', 'y_val') if X_val is None else ('y_val', 'X_val')
        raise DataError(f'{missing}: got None together with {given}, expected both or neither.')
    x_val = check_inputs(X_val, 'X_val')
    targets = check_targets(y_val, 'y_val')
    check_lengths({'X_val': x_val, 'y_val': targets})
    if x_val.shape[1:] != x.shape[1:]:
        raise DataError(
            f'X_val: got rows of shape {x_val.shape[1:]}, expected {x.shape[1:]} as in X_train.'
        )
    return as_dtype_of(x_val, x.dtype, 'X_val'), encode_targets(targets, task, 'y_val')


def _decided_by(loss_fn: Any) -> Literal['regression', 'softmax', 'sigmoid'] | None:
    """What the loss tells of the task, if it is one of ours."""
    for name, function in REGRESSION_LOSSES.items():
        if loss_fn in (name, function):
            return 'regression'
    if loss_fn in ('cross_entropy', cross_entropy):
        return 'softmax'
    return 'sigmoid' if loss_fn in ('binary_cross_entropy', binary_cross_entropy) else None


def _loss_name(loss_fn: str | LossFn | None, task: Task) -> str:
    if isinstance(loss_fn, str):
        return loss_fn
    if loss_fn is not None:
        return getattr(loss_fn, '__name__', type(loss_fn).__name__)
    if task.kind == 'regression':
        return 'mse'
    one_logit = task.kind == 'multilabel' or task.num_outputs == 1
    return 'binary_cross_entropy' if one_logit else 'cross_entropy'


def _choose_loss(loss_fn: str | LossFn | None, task: Task, y: np.ndarray) -> LossFn:
    default = _loss_name(None, task)
    if isinstance(loss_fn, str) and loss_fn in CLASSIFICATION_LOSSES and loss_fn != default:
        raise ConfigError(
            f'loss_fn: got {loss_fn!r} for a model with {task.num_outputs} '
            f'output{"s" if task.num_outputs > 1 else ""} ({task}), expected {default!r}.'
        )
    if not (loss_fn is None or isinstance(loss_fn, str) or callable(loss_fn)):
        raise ConfigError(f'loss_fn: got {loss_fn!r}, expected a name or (logits, labels) -> loss.')
    chosen = get_loss(loss_fn or default)
    _try_loss(chosen, task, y)
    return chosen


def _try_loss(loss_fn: LossFn, task: Task, y: np.ndarray) -> None:
    """Traces the loss on the shapes it will get, so that it can't fail in a compiled program."""
    rows = PROBE_ROWS
    labels = jax.ShapeDtypeStruct((rows, *y.shape[1:]), y.dtype)
    width = () if y.ndim == 1 and task.num_outputs == 1 else (task.num_outputs,)
    logits = jax.ShapeDtypeStruct((rows, *width), np.float32)
    try:
        jax.eval_shape(loss_fn, logits, labels)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'loss_fn: it failed for logits {logits.shape} and labels {labels.shape} '
            f'{labels.dtype}: {type(error).__name__}: {error}'
        ) from error


def _choose_metrics(metrics: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    known = CLASSIFICATION_METRICS if task.is_classification else REGRESSION_METRICS
    is_list = isinstance(metrics, Sequence) and not isinstance(metrics, str)
    if metrics is not None and not (is_list and all(isinstance(name, str) for name in metrics)):
        raise ConfigError(f"metrics: got {metrics!r}, expected a list, for instance ['accuracy'].")
    always = ('accuracy',) if task.is_classification else ()
    asked = tuple(name for name in metrics or () if name not in (*always, 'loss'))
    for name in asked:
        if name not in known:
            raise ConfigError(f'{unknown_name("metrics", name, known)} The task is {task}.')
    return always + asked
