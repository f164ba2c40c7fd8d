"""A model and a data set, opened: what is known before anything is predicted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.data import WHY_NAN, encode_targets, fingerprint
from thinkml.errors import DataError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.model_record import Task


@dataclasses.dataclass(frozen=True)
class EvaluationInput:
    """A model and a data set, checked, before anything is predicted.

    Attributes:
        task: what the outputs mean.
        labels: the true ones, as they were passed.
        encoded: the same, encoded.
        predict: returns the predictions in the form of the labels, and both as `EvaluationData`.
        fingerprint: identifies the data.
        versions: of the model's library, where it is another one.
        weight: what each row counts, where batches say it, float64 ``(rows,)``; else None.
    """

    task: Task
    labels: np.ndarray
    encoded: np.ndarray
    predict: Callable[[], tuple[np.ndarray, EvaluationData]]
    fingerprint: dict[str, Any]
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    weight: np.ndarray | None = None


def encode_labels(labels: np.ndarray, task: Task) -> np.ndarray:
    """The labels as `EvaluationData` has them."""
    if task.classes is None:
        return _numbers(labels, (len(labels), *task.target_shape), 'y_test')
    return encode_targets(labels, task, argument='y_test')


def _numbers(values: np.ndarray, shape: tuple[int, ...], argument: str) -> np.ndarray:
    """Targets of regression with all their digits: float32 is for the device."""
    values = np.array(values, np.float64)  # a copy: the caller's own may change
    if values.size != np.prod(shape):
        raise DataError(f'{argument}: got shape {values.shape}, expected {shape}.')
    return values.reshape(shape)


def set_beside(
    predictions: np.ndarray,
    encoded: np.ndarray,
    task: Task,
    shares: np.ndarray | None,
    outputs: np.ndarray | None = None,
) -> EvaluationData:
    """Predictions in the form of the labels, encoded, beside the encoded labels."""
    # One rule decides what is predicted, that of decode: ties at 0.5 count the same everywhere.
    if task.classes is None:
        guess = _numbers(predictions, encoded.shape, 'predictions')
    else:
        guess = encode_targets(predictions, task, argument='predictions')
    num_classes = task.num_outputs if task.classes is None else len(task.classes)
    return EvaluationData(task.kind, num_classes, encoded, guess, shares, outputs)


def fingerprint_of_labels(encoded: np.ndarray) -> dict[str, Any]:
    """Of data whose inputs are read once, or are no arrays."""
    found = fingerprint(encoded.reshape(len(encoded), -1), encoded)
    return found | {'inputs': 'not looked at, the hash is of the labels'}


def check_outputs(outputs: np.ndarray) -> None:
    """Raises a `DataError` where a model returned what is no number."""
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if not finite.all():
        raise DataError(
            f'model: it returns NaN or infinite values for {np.sum(~finite):,} of '
            f'{len(outputs):,} rows of X_test, expected finite numbers. {WHY_NAN}'
        )
