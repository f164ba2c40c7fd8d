"""Model outputs: runs any model on any data, and pairs its predictions with the true labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from thinkml.core import make_predict, predict_outputs
from thinkml.core.model.functional import outputs_of
from thinkml.core.model.output_range import misread_outputs
from thinkml.data import (
    check_targets,
    concatenate_labels,
    decode,
    fingerprint,
    infer_task,
    is_batches,
    open_batches,
    open_data,
    probabilities,
)
from thinkml.errors import DataError, warn_user
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.evaluation_input import (
    EvaluationInput,
    check_outputs,
    encode_labels,
    fingerprint_of_labels,
    make_evaluation_data,
)
from thinkml.evaluation.external_models import is_external, open_external
from thinkml.model_record import InputSpec, record_of
from thinkml.tasks import Task
from thinkml.typing import Inputs, Labels, Model, PyTree


def open_model(
    model: Model, X_test: Inputs, y_test: Labels, devices: Sequence[Any] | None = None
) -> EvaluationInput:
    """Checks a model and the data it is evaluated on.

    Args:
        model: a model of any kind that can be evaluated.
        X_test: its inputs.
        y_test: the true targets.
        devices: the devices that compute the outputs; see `thinkml.core.predict_outputs`.

    Raises:
        DataError: if the data do not fit each other or the model.
        ModelTypeError: if it is not a model.
    """
    if is_external(model):
        return open_external(model, X_test, y_test)
    input_spec = record_of(model).input_spec
    if is_batches(X_test):
        return _open_batches(model, X_test, y_test, input_spec, devices)
    rows, labels = open_data(X_test, y_test, 'X_test', 'y_test', input_spec)
    if input_spec is None:
        outputs_of(model, rows.spec, 'X_test')
    task = _task_of(model, labels, rows.spec)
    encoded = encode_labels(labels, task)

    def predict() -> tuple[np.ndarray, EvaluationData]:
        outputs = predict_outputs(model, rows, devices=devices, argument='X_test')
        return _decode_outputs(outputs, encoded, task)

    return EvaluationInput(
        task=task,
        labels=labels,
        encoded=encoded,
        predict=predict,
        fingerprint=fingerprint(rows, encoded),
    )


def _open_batches(
    model: Model,
    X_test: Inputs,
    y_test: Labels,
    input_spec: InputSpec | None,
    devices: Sequence[Any] | None,
) -> EvaluationInput:
    if not isinstance(y_test, str | None):
        raise DataError(
            f'y_test: got a {type(y_test).__name__} beside batches, expected None: the batches of '
            'X_test hold their labels, and batches may come in any order.'
        )
    batches = open_batches(X_test, 'X_test', label=y_test, like=input_spec)
    example = batches.peek().x
    if input_spec is None:
        outputs_of(model, example, 'X_test')
    predict = make_predict(model, example, devices=devices, argument='X_test')
    outputs, labels, weights = [], [], []
    for batch in batches.iterate():
        outputs.append(predict(batch.x))
        labels.append(batch.y)
        weights.append(batch.weight)
    for y in labels:
        if y.shape[1:] != labels[0].shape[1:]:
            raise DataError(
                f'X_test, labels: got shape {labels[0].shape} in the first batch and {y.shape} in '
                'another, expected labels of the same form in all. Reshape them.'
            )
    true = check_targets(concatenate_labels(labels), 'X_test, labels')
    task = _task_of(model, true, example)
    encoded = encode_labels(true, task)
    data = _decode_outputs(np.concatenate(outputs), encoded, task)
    return EvaluationInput(
        task=task,
        labels=true,
        encoded=encoded,
        predict=lambda: data,
        fingerprint=fingerprint_of_labels(encoded),
        weight=_concatenate_weights(weights, labels),
    )


def _concatenate_weights(
    weights: list[np.ndarray | None], labels: list[np.ndarray]
) -> np.ndarray | None:
    """Returns the weight of each row, 1 in batches without weights; None if no batch has any."""
    if all(weight is None for weight in weights):
        return None
    return np.concatenate(
        [
            np.ones(len(y)) if weight is None else weight
            for weight, y in zip(weights, labels, strict=True)
        ]
    )


def _task_of(model: Model, labels: np.ndarray, example: PyTree) -> Task:
    recorded = record_of(model).task
    if recorded is not None:
        return recorded
    outputs = outputs_of(model, example, 'X_test')
    task = infer_task(labels, outputs.shape, argument='y_test')
    if misread := misread_outputs(outputs.range, task):
        warn_user(misread)
    return task


def _decode_outputs(
    outputs: np.ndarray, encoded: np.ndarray, task: Task
) -> tuple[np.ndarray, EvaluationData]:
    check_outputs(outputs)
    predictions = decode(outputs, task)
    class_probabilities = None if task.classes is None else probabilities(outputs, task)
    return predictions, make_evaluation_data(
        predictions, encoded, task, class_probabilities, outputs
    )
