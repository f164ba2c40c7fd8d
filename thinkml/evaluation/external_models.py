"""Models of other libraries: anything with ``predict`` and maybe ``predict_proba``."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.core import is_model
from thinkml.data import check_targets, fingerprint
from thinkml.errors import DataError, ModelTypeError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.evaluation_input import (
    EvaluationInput,
    check_outputs,
    encode_labels,
    fingerprint_of_labels,
    set_beside,
)
from thinkml.model_record import Task

# Rows a model gets at a time.
_ROWS = 2**16
# What rounding in 16 bits may do to a sum of probabilities.
_ROUNDING = 1e-2


def is_external(model: Any) -> bool:
    """Whether it is a model of another library, which predicts by itself."""
    return callable(getattr(model, 'predict', None)) and not is_model(model)


def open_external(model: Any, X_test: Any, y_test: Any) -> EvaluationInput:
    """Checks such a model and its data, as `open_model` does.

    Raises:
        DataError: if the data, or what the model returns, don't fit.
        ModelTypeError: if it is a class.
    """
    if isinstance(model, type):
        raise ModelTypeError(
            f'model: got the class {model.__name__}, expected an instance of it that is trained.'
        )
    labels = check_targets(y_test, 'y_test')
    num_rows = X_test.shape[0] if hasattr(X_test, 'shape') else len(X_test)
    if num_rows != len(labels):
        raise DataError(
            f'X_test and y_test have different lengths: {num_rows} and {len(labels)}. Pass one '
            'label for each row.'
        )

    @functools.cache
    def guesses() -> np.ndarray:
        found = _by_rows(model.predict, X_test, num_rows)
        _check_length(found, num_rows, 'predict')
        return check_targets(found, 'predictions')

    task = _task_of(model, labels, guesses)
    encoded = encode_labels(labels, task)

    def predict() -> tuple[np.ndarray, EvaluationData]:
        shares = None
        if task.classes is not None and hasattr(model, 'predict_proba'):
            found = _by_rows(model.predict_proba, X_test, num_rows)
            shares = _shares(found, model, task, num_rows)
        return guesses(), set_beside(guesses(), encoded, task, shares)

    return EvaluationInput(
        task, labels, encoded, predict, _fingerprint(X_test, encoded), _version_of(model)
    )


def _by_rows(predict: Callable[[Any], Any], X: Any, num_rows: int) -> Any:
    rows = getattr(X, 'iloc', X)
    if num_rows <= _ROWS or not hasattr(rows, '__getitem__'):
        return predict(X)
    parts = [predict(rows[first : first + _ROWS]) for first in range(0, num_rows, _ROWS)]
    if isinstance(parts[0], list):  # of several labels, an array each
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    return np.concatenate(parts)


def _check_length(found: Any, num_rows: int, method: str) -> None:
    if (length := len(np.atleast_1d(found))) != num_rows:
        raise DataError(
            f'model: {method} returned {length:,} rows for {num_rows:,} of X_test, expected one '
            'for each.'
        )


def _fingerprint(X: Any, encoded: np.ndarray) -> dict[str, Any]:
    values = np.asarray(X)
    if values.dtype.kind in 'biuf' and len(values) == len(encoded):
        return fingerprint(values, encoded)
    return fingerprint_of_labels(encoded)


def _version_of(model: Any) -> dict[str, str]:
    library = type(model).__module__.split('.')[0]
    version = getattr(sys.modules.get(library), '__version__', None)
    return {library: version} if isinstance(version, str) else {}


# --- what the outputs mean --------------------------------------------------------------------


def _task_of(model: Any, labels: np.ndarray, guesses: Callable[[], np.ndarray]) -> Task:
    known, shape = getattr(model, 'classes_', None), labels.shape[1:]
    targets = int(np.prod(shape)) or 1
    if _is_regressor(model) or (known is None and labels.dtype.kind == 'f'):
        return Task('regression', None, targets, shape)
    if targets > 1:
        if guesses().shape != labels.shape:
            raise DataError(
                f'y_test: got shape {labels.shape} for a model that predicts one of the classes '
                'for each row, expected one label for each row. Pass y_test.argmax(axis=1) or the '
                'labels it was trained on.'
            )
        return Task('multilabel', tuple(range(targets)), targets, shape)
    values = _classes_found(labels, guesses()) if known is None else np.unique(known)
    if values is None:
        return Task('regression', None, targets, shape)
    kind = 'binary' if len(values) == 2 else 'multiclass'
    return Task(kind, tuple(values.tolist()), len(values), shape)


def _is_regressor(model: Any) -> bool:
    tags = getattr(model, '__sklearn_tags__', None)
    return tags is not None and tags().estimator_type == 'regressor'


def _classes_found(labels: np.ndarray, guesses: np.ndarray) -> np.ndarray | None:
    """The classes of a model that does not tell them; None if it predicts numbers."""
    if guesses.dtype.kind == 'f' and labels.dtype.kind in 'iu':
        if np.isin(labels, (0, 1)).all():
            raise DataError(
                'model: predict returned numbers with a point for labels that are 0 and 1, '
                'expected labels. Wrap the model: predict for labels, predict_proba for these.'
            )
        return None
    found = np.union1d(labels, guesses)
    return np.arange(2) if np.isin(found, (0, 1)).all() else found


# --- probabilities ----------------------------------------------------------------------------


def _shares(shares: Any, model: Any, task: Task, num_rows: int) -> np.ndarray:
    known = getattr(model, 'classes_', None)
    if isinstance(shares, list):  # of each label the shares of its classes
        of_each = [np.arange(2)] * len(shares) if known is None else known
        columns = zip(map(np.asarray, shares), map(np.asarray, of_each), strict=True)
        # A label that training saw only without has no column for it.
        shares = np.stack([(of * (classes == 1)).sum(axis=1) for of, classes in columns], axis=1)
    shares, expected = np.asarray(shares), len(task.classes or ())
    if shares.ndim == 1 and expected == 2:
        shares = np.stack([1 - shares, shares], axis=1)
    if shares.shape[1:] != (expected,):
        raise DataError(
            f'model: predict_proba returned shape {shares.shape}, expected {expected} columns, one '
            f'for each of {expected} classes.'
        )
    _check_length(shares, num_rows, 'predict_proba')
    _check_shares(shares, task)
    if task.kind != 'multilabel' and known is not None:
        shares = shares[:, np.argsort(known)]  # in the order of the task's classes
    return shares.astype(np.float64 if shares.dtype == np.float64 else np.float32)


def _check_shares(shares: np.ndarray, task: Task) -> None:
    check_outputs(shares)
    if shares.min() < -_ROUNDING or shares.max() > 1 + _ROUNDING:
        raise DataError(
            f'model: predict_proba returned values from {shares.min():.4g} to {shares.max():.4g}, '
            'expected probabilities. Of logits, return their softmax.'
        )
    if task.kind == 'multilabel':
        return
    sums = shares.sum(axis=1)
    if np.abs(sums - 1).max() > _ROUNDING:
        worst = sums[np.abs(sums - 1).argmax()]
        raise DataError(
            f'model: predict_proba returned rows that sum to {worst:.4g}, expected 1, as each row '
            'is of one class. Divide them by their sums.'
        )
