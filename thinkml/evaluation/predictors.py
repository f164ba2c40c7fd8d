"""What is evaluated: the outputs of any model on any data, beside the true labels."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.core import num_outputs, predict_outputs
from thinkml.data import (
    check_targets,
    decode,
    encode_targets,
    fingerprint,
    infer_task,
    is_batches,
    open_batches,
    open_data,
    probabilities,
)
from thinkml.errors import DataError, ModelTypeError
from thinkml.evaluation.scored import Scored
from thinkml.record import InputSpec, Task, record_of

# Rows a model of another library gets at a time.
_ROWS = 2**16


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model and a data set, checked, before anything is predicted.

    Attributes:
        task: what the outputs mean.
        labels: the true ones, as they were passed.
        encoded: the same, encoded.
        predict: returns the predictions in the form of the labels, and both as `Scored`.
        fingerprint: identifies the data.
    """

    task: Task
    labels: np.ndarray
    encoded: np.ndarray
    predict: Callable[[], tuple[np.ndarray, Scored]]
    fingerprint: dict[str, Any]


def is_foreign(model: Any) -> bool:
    """Whether it is a model of another library, which predicts by itself."""
    return callable(getattr(model, 'predict', None)) and not _is_ours(model)


def _is_ours(model: Any) -> bool:
    from flax import nnx

    from thinkml.core.adapters import FunctionModel, LinenModel

    return isinstance(model, nnx.Module | FunctionModel | LinenModel)


def open_model(model: Any, X_test: Any, y_test: Any) -> Opened:
    """Checks a model and the data it is evaluated on.

    Raises:
        DataError: if the data fit neither each other nor the model.
        ModelTypeError: if it is no model.
    """
    if is_foreign(model):
        return _open_foreign(model, X_test, y_test)
    like = record_of(model).input_spec
    if is_batches(X_test):
        return _open_batches(model, X_test, y_test, like)
    rows, labels = open_data(X_test, y_test, 'X_test', 'y_test', like)
    if like is None:
        num_outputs(model, rows.spec, 'X_test')
    task = _task_of(model, labels, rows.spec)
    encoded = _encoded(labels, task)

    def predict() -> tuple[np.ndarray, Scored]:
        return _scored(predict_outputs(model, rows), encoded, task)

    return Opened(task, labels, encoded, predict, fingerprint(rows, encoded))


def _open_batches(model: Any, X_test: Any, y_test: Any, like: InputSpec | None) -> Opened:
    if not isinstance(y_test, str | None):
        raise DataError(
            f'y_test: got a {type(y_test).__name__} beside batches, expected None: the batches of '
            'X_test hold their labels, which may come in an order of their own.'
        )
    batches = open_batches(X_test, 'X_test', label=y_test, like=like)
    example = batches.peek().x
    if like is None:
        num_outputs(model, example, 'X_test')
    outputs, labels = [], []
    for batch in batches.iterate():
        outputs.append(predict_outputs(model, batch.x))
        labels.append(batch.y)
    true = np.concatenate(labels)
    task = _task_of(model, true, example)
    encoded = _encoded(true, task)
    scored = _scored(np.concatenate(outputs), encoded, task)
    return Opened(task, true, encoded, lambda: scored, {'rows': len(true)})


def _task_of(model: Any, labels: np.ndarray, example: Any) -> Task:
    known = record_of(model).task
    if known is not None:
        return known
    return infer_task(labels, num_outputs(model, example, 'X_test'), argument='y_test')


def _encoded(labels: np.ndarray, task: Task) -> np.ndarray:
    if task.classes is None:
        return _numbers(labels, (len(labels), *task.target_shape), 'y_test')
    return encode_targets(labels, task, argument='y_test')


def _numbers(values: np.ndarray, shape: tuple[int, ...], argument: str) -> np.ndarray:
    """Targets of regression with all their digits: float32 is for the device."""
    values = np.asarray(values, np.float64)
    if values.size != np.prod(shape):
        raise DataError(f'{argument}: got shape {values.shape}, expected {shape}.')
    return values.reshape(shape)


def _scored(outputs: np.ndarray, encoded: np.ndarray, task: Task) -> tuple[np.ndarray, Scored]:
    _check_outputs(outputs)
    predictions = decode(outputs, task)
    shares = None if task.classes is None else probabilities(outputs, task)
    return predictions, _beside(predictions, encoded, task, shares, outputs)


def _beside(
    predictions: np.ndarray,
    encoded: np.ndarray,
    task: Task,
    shares: np.ndarray | None,
    outputs: np.ndarray | None = None,
) -> Scored:
    # One rule decides what is predicted, that of decode: ties at 0.5 count the same everywhere.
    if task.classes is None:
        guess = _numbers(predictions, encoded.shape, 'predictions')
    else:
        guess = encode_targets(predictions, task, argument='predictions')
    num_classes = task.num_outputs if task.classes is None else len(task.classes)
    return Scored(task.kind, num_classes, encoded, guess, shares, outputs)


def _check_outputs(outputs: np.ndarray) -> None:
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if not finite.all():
        raise DataError(
            f'model: it returns NaN or infinite values for {np.sum(~finite):,} of '
            f'{len(outputs):,} rows of X_test, expected finite numbers. If it does so for all, its '
            'training has diverged: train again with a lower learning_rate.'
        )


# --- models of other libraries ----------------------------------------------------------------


def _open_foreign(model: Any, X_test: Any, y_test: Any) -> Opened:
    if isinstance(model, type):
        raise ModelTypeError(
            f'model: got the class {model.__name__}, expected an instance of it that is trained.'
        )
    labels = check_targets(y_test, 'y_test')
    rows = X_test.shape[0] if hasattr(X_test, 'shape') else len(X_test)
    if rows != len(labels):
        raise DataError(
            f'X_test and y_test have different lengths: {rows} and {len(labels)}. Pass one label '
            'for each row.'
        )

    @functools.cache
    def guesses() -> np.ndarray:
        return check_targets(_by_rows(model.predict, X_test, rows), 'predictions')

    task = _foreign_task(model, labels, guesses)
    encoded = _encoded(labels, task)

    def predict() -> tuple[np.ndarray, Scored]:
        shares = None
        if task.classes is not None and hasattr(model, 'predict_proba'):
            shares = _foreign_shares(_by_rows(model.predict_proba, X_test, rows), model, task)
        return guesses(), _beside(guesses(), encoded, task, shares)

    return Opened(task, labels, encoded, predict, {'rows': rows})


def _by_rows(predict: Callable[[Any], Any], X: Any, num_rows: int) -> Any:
    if not isinstance(X, np.ndarray) or num_rows <= _ROWS:
        return predict(X)
    parts = [predict(X[first : first + _ROWS]) for first in range(0, num_rows, _ROWS)]
    if isinstance(parts[0], list):  # of several labels, an array each
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    return np.concatenate(parts)


def _foreign_task(model: Any, labels: np.ndarray, guesses: Callable[[], np.ndarray]) -> Task:
    known, shape = getattr(model, 'classes_', None), labels.shape[1:]
    targets = int(np.prod(shape)) or 1
    if _is_regressor(model) or (known is None and labels.dtype.kind == 'f'):
        return Task('regression', None, targets, shape)
    if targets > 1:
        if isinstance(known, np.ndarray) and known.ndim == 1 and len(known) == targets:
            raise DataError(
                f'y_test: got shape {labels.shape} for a model that predicts one of {targets} '
                'classes, expected one label for each row. Pass y_test.argmax(axis=1) or the '
                'labels it was trained on.'
            )
        return Task('multilabel', tuple(range(targets)), targets, shape)
    if known is not None:
        values = np.asarray(known)
    elif guesses().dtype.kind == 'f' and labels.dtype.kind in 'iu':
        if np.isin(labels, (0, 1)).all():
            raise DataError(
                'model: predict returned numbers with a point for labels that are 0 and 1, '
                'expected labels. Wrap the model: predict for labels, predict_proba for these.'
            )
        return Task('regression', None, targets, shape)
    else:
        found = np.union1d(labels, guesses())
        values = np.arange(2) if np.isin(found, (0, 1)).all() else found
    kind = 'binary' if len(values) == 2 else 'multiclass'
    return Task(kind, tuple(values.tolist()), len(values), shape)


def _is_regressor(model: Any) -> bool:
    tags = getattr(model, '__sklearn_tags__', None)
    return tags is not None and tags().estimator_type == 'regressor'


def _foreign_shares(shares: Any, model: Any, task: Task) -> np.ndarray:
    if isinstance(shares, list):  # of each label the shares of its classes
        known = getattr(model, 'classes_', [np.arange(2)] * len(shares))
        columns = zip(map(np.asarray, shares), map(np.asarray, known), strict=True)
        # A label that training saw only without has no column for it.
        shares = np.stack([(of * (classes == 1)).sum(axis=1) for of, classes in columns], axis=1)
    shares = np.asarray(shares)
    expected = len(task.classes or ())
    if shares.ndim == 1 and expected == 2:
        shares = np.stack([1 - shares, shares], axis=1)
    if shares.shape[1:] != (expected,):
        raise DataError(
            f'model: predict_proba returned shape {shares.shape}, expected {expected} columns, one '
            f'for each of {expected} classes.'
        )
    _check_outputs(shares)
    return shares if shares.dtype == np.float64 else shares.astype(np.float32)
