"""External models: those of other libraries, with ``predict`` and perhaps ``predict_proba``."""

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
    make_evaluation_data,
)
from thinkml.task_types import kind_of_classes
from thinkml.tasks import IGNORE_LABEL, Task
from thinkml.typing import Inputs, Labels, Model

_BATCH_ROWS = 2**16
# The error that rounding to 16 bits can add to a sum of probabilities.
_ROUNDING = 1e-2


def is_external(model: Model) -> bool:
    """Returns True if it is a model of another library, with its own ``predict`` method."""
    return callable(getattr(model, 'predict', None)) and not is_model(model)


def open_external(model: Model, X_test: Inputs, y_test: Labels) -> EvaluationInput:
    """Checks a model of another library and its data, as `open_model` does.

    Raises:
        DataError: if the data or the model's results do not fit.
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
    def predictions() -> np.ndarray:
        values = _predict_in_batches(model.predict, X_test, num_rows)
        _check_length(values, num_rows, 'predict')
        return check_targets(values, 'predictions')

    task = _task_of(model, labels, predictions)
    encoded = encode_labels(labels, task)

    def predict() -> tuple[np.ndarray, EvaluationData]:
        probabilities = None
        if task.classes is not None and hasattr(model, 'predict_proba'):
            values = _predict_in_batches(model.predict_proba, X_test, num_rows)
            probabilities = _open_probabilities(values, model, task, num_rows)
        return predictions(), make_evaluation_data(predictions(), encoded, task, probabilities)

    return EvaluationInput(
        task=task,
        labels=labels,
        encoded=encoded,
        predict=predict,
        fingerprint=_fingerprint(X_test, encoded),
        versions=_library_version(model),
    )


def _predict_in_batches(predict: Callable[[Any], Any], X: Inputs, num_rows: int) -> Any:
    rows = getattr(X, 'iloc', X)
    if num_rows <= _BATCH_ROWS or not hasattr(rows, '__getitem__'):
        return predict(X)
    starts = range(0, num_rows, _BATCH_ROWS)
    parts = [predict(rows[first : first + _BATCH_ROWS]) for first in starts]
    if isinstance(parts[0], list):  # one array per label
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    return np.concatenate(parts)


def _check_length(values: np.ndarray | list[np.ndarray], num_rows: int, method: str) -> None:
    if (length := len(np.atleast_1d(values))) != num_rows:
        raise DataError(
            f'model: {method} returned {length:,} rows for {num_rows:,} of X_test, expected one '
            'for each.'
        )


def _fingerprint(X: Inputs, encoded: np.ndarray) -> dict[str, Any]:
    values = np.asarray(X)
    if values.dtype.kind in 'biuf' and len(values) == len(encoded):
        return fingerprint(values, encoded)
    return fingerprint_of_labels(encoded)


def _library_version(model: Model) -> dict[str, str]:
    library = type(model).__module__.split('.')[0]
    version = getattr(sys.modules.get(library), '__version__', None)
    return {library: version} if isinstance(version, str) else {}


# --- the task of a model ----------------------------------------------------------------------


def _task_of(model: Model, labels: np.ndarray, predictions: Callable[[], np.ndarray]) -> Task:
    classes, shape = getattr(model, 'classes_', None), labels.shape[1:]
    targets = int(np.prod(shape)) or 1
    if _is_regressor(model) or (classes is None and labels.dtype.kind == 'f'):
        return Task('regression', None, targets, shape)
    if targets > 1:
        if predictions().shape != labels.shape:
            raise DataError(
                f'y_test: got shape {labels.shape} for a model that predicts one of the classes '
                'for each row, expected one label for each row. Pass y_test.argmax(axis=1) or the '
                'labels it was trained on.'
            )
        return Task('multilabel', tuple(range(targets)), targets, shape)
    values = _infer_classes(labels, predictions()) if classes is None else np.unique(classes)
    if values is None:
        return Task('regression', None, targets, shape)
    return Task(kind_of_classes(len(values)), tuple(values.tolist()), len(values), shape)


def _is_regressor(model: Model) -> bool:
    tags = getattr(model, '__sklearn_tags__', None)
    return tags is not None and tags().estimator_type == 'regressor'


def _infer_classes(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray | None:
    """Returns the classes of a model without ``classes_``; None if it predicts numbers."""
    if predictions.dtype.kind == 'f' and labels.dtype.kind in 'iu':
        if np.isin(labels, (0, 1)).all():
            raise DataError(
                'model: predict returned floating-point numbers for labels that are 0 and 1, '
                'expected labels. Wrap the model: let predict return labels, and predict_proba '
                'these numbers.'
            )
        return None
    labels = labels if labels.dtype.kind == 'U' else labels[labels != IGNORE_LABEL]
    classes = np.union1d(labels, predictions)
    return np.arange(2) if np.isin(classes, (0, 1)).all() else classes


# --- probabilities ----------------------------------------------------------------------------


def _open_probabilities(
    probabilities: np.ndarray | list[np.ndarray], model: Model, task: Task, num_rows: int
) -> np.ndarray:
    known_classes = getattr(model, 'classes_', None)
    if isinstance(probabilities, list):  # for each label the probabilities of its classes
        if known_classes is None:
            known_classes = [np.arange(2)] * len(probabilities)
        pairs = zip(map(np.asarray, probabilities), map(np.asarray, known_classes), strict=True)
        # A label that was 0 in all training rows has no column for class 1.
        columns = [(values * (classes == 1)).sum(axis=1) for values, classes in pairs]
        probabilities = np.stack(columns, axis=1)
    probabilities, expected = np.asarray(probabilities), len(task.classes or ())
    if probabilities.ndim == 1 and expected == 2:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    if probabilities.shape[1:] != (expected,):
        raise DataError(
            f'model: predict_proba returned shape {probabilities.shape}, expected {expected} '
            f'columns, one for each of {expected} classes.'
        )
    _check_length(probabilities, num_rows, 'predict_proba')
    _check_probabilities(probabilities, task)
    if task.type.has_one_class and known_classes is not None:
        probabilities = probabilities[:, np.argsort(known_classes)]  # in the task's class order
    return probabilities.astype(np.float64 if probabilities.dtype == np.float64 else np.float32)


def _check_probabilities(probabilities: np.ndarray, task: Task) -> None:
    check_outputs(probabilities)
    low, high = probabilities.min(), probabilities.max()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise DataError(
            f'model: predict_proba returned values from {low:.4g} to {high:.4g}, '
            'expected probabilities. If these are logits, return their softmax.'
        )
    if task.type.has_many_labels:
        return
    sums = probabilities.sum(axis=1)
    if np.abs(sums - 1).max() > _ROUNDING:
        worst = sums[np.abs(sums - 1).argmax()]
        raise DataError(
            f'model: predict_proba returned rows that sum to {worst:.4g}, expected 1, as each row '
            'has one class. Divide the rows by their sums.'
        )
