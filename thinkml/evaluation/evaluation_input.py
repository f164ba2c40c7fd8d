"""Evaluation input: a model and a data set, checked, with the function that predicts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.core.objectives.elements import IGNORED
from thinkml.data import WHY_NAN, encode_targets, fingerprint
from thinkml.errors import DataError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.score_summary import ScoreSummary
from thinkml.evaluation.scored_elements import counted_elements, has_positions, of_elements
from thinkml.tasks import Task


@dataclasses.dataclass(frozen=True)
class EvaluationInput:
    """A model and a data set that were checked and are ready to be evaluated.

    Attributes:
        task: the meaning of the outputs.
        labels: the true labels, as they were passed.
        encoded: the same labels, encoded.
        predict: returns the predictions in the form of the labels, and labels and predictions as
            `EvaluationData`.
        fingerprint: identifies the data.
        versions: the version of the model's library, for a model of another library.
        weight: the weight of each row, float64 ``(rows,)``, if the batches hold weights; else None.
        has_all_scores: False if the scores of all classes are too large to be kept, so that the
            data have a `ScoreSummary`.
    """

    task: Task
    labels: np.ndarray
    encoded: np.ndarray
    predict: Callable[[], tuple[np.ndarray, EvaluationData]]
    fingerprint: dict[str, Any]
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    weight: np.ndarray | None = None
    has_all_scores: bool = True


def encode_labels(labels: np.ndarray, task: Task, argument: str = 'y_test') -> np.ndarray:
    """Returns the labels encoded as in `EvaluationData`."""
    if task.classes is None and not task.type.has_sequences:
        return _regression_targets(labels, (len(labels), *task.row_shape), argument)
    return encode_targets(labels, task, argument=argument)


def _regression_targets(values: np.ndarray, shape: tuple[int, ...], argument: str) -> np.ndarray:
    """Returns regression targets in float64, which keeps all digits; float32 is for the device."""
    values = np.array(values, np.float64)  # a copy, since the caller may change the original
    if values.size != np.prod(shape):
        raise DataError(f'{argument}: got shape {values.shape}, expected {shape}.')
    return values.reshape(shape)


def make_evaluation_data(
    predictions: np.ndarray,
    encoded: np.ndarray,
    task: Task,
    probabilities: np.ndarray | None,
    outputs: np.ndarray | None = None,
    summary: ScoreSummary | None = None,
) -> EvaluationData:
    """Returns encoded labels and predictions as `EvaluationData`.

    Args:
        predictions: in the form of the labels; they are encoded here.
        encoded: the encoded labels.
        task: the task of the model.
        probabilities: as in `EvaluationData`.
        outputs: as in `EvaluationData`.
        summary: as in `EvaluationData`, with the axes of rows and elements.
    """
    # Only decode makes predictions from outputs, so ties at 0.5 are treated the same everywhere.
    if task.classes is None:
        encoded_predictions = _regression_targets(predictions, encoded.shape, 'predictions')
    else:
        encoded_predictions = encode_targets(predictions, task, argument='predictions')
    num_classes = task.num_outputs if task.classes is None else len(task.classes)
    positions = None
    if has_positions(encoded, task):
        positions = counted_elements(encoded, task)

        def counted(array: np.ndarray) -> np.ndarray:
            return of_elements(array, task, positions)

        encoded, encoded_predictions = counted(encoded), counted(encoded_predictions)
        probabilities = None if probabilities is None else counted(probabilities)
        outputs = None if outputs is None else counted(outputs)
        summary = None if summary is None else summary.map(counted)
    return EvaluationData(
        kind=task.kind,
        num_classes=num_classes,
        labels=encoded,
        predictions=encoded_predictions,
        probabilities=probabilities,
        outputs=outputs,
        summary=summary,
        positions=positions,
        element_shape=task.element_shape,
    )


def make_sequence_data(
    predictions: np.ndarray, encoded: np.ndarray, task: Task, outputs: np.ndarray
) -> EvaluationData:
    """Returns encoded sequences and their predictions as `EvaluationData`, in arrays of one width.

    Args:
        predictions: in the form of the labels; they are encoded here.
        encoded: the encoded labels, ``(rows, labels)``.
        task: a task of sequences.
        outputs: as in `EvaluationData`.
    """
    arrays = encoded, encode_targets(predictions, task, argument='predictions')
    width = max(array.shape[1] for array in arrays)
    labels, found = (
        np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=IGNORED)
        for array in arrays
    )
    return EvaluationData(
        kind=task.kind,
        num_classes=task.num_outputs,
        labels=labels,
        predictions=found,
        outputs=outputs,
    )


def fingerprint_of_labels(encoded: np.ndarray) -> dict[str, Any]:
    """Returns a fingerprint of the labels alone, if inputs are read once or are not arrays."""
    label_fingerprint = fingerprint(encoded.reshape(len(encoded), -1), encoded)
    return label_fingerprint | {'inputs': 'not looked at, the hash is of the labels'}


def check_outputs(outputs: np.ndarray) -> None:
    """Raises a `DataError` if a model returned NaN or infinite values."""
    check_finite(np.asarray(np.isfinite(outputs)))


def check_finite(is_finite: np.ndarray) -> None:
    """Raises a `DataError` if some values of rows ``(rows, ...)`` are not finite."""
    finite = is_finite.reshape(len(is_finite), -1).all(axis=1)
    if not finite.all():
        raise DataError(
            f'model: it returns NaN or infinite values for {np.sum(~finite):,} of '
            f'{len(is_finite):,} rows of X_test, expected finite numbers. {WHY_NAN}'
        )
