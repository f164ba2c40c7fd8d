"""Model outputs: runs any model on any data, and pairs its predictions with the true labels."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from thinkml.core import make_predict, predict_outputs
from thinkml.core.model.functional import HeadOutputs, Outputs, any_outputs_of
from thinkml.core.model.output_range import misread_outputs
from thinkml.core.objectives.heads import Selection, part_of
from thinkml.data import (
    check_targets,
    concatenate_labels,
    decode,
    fingerprint,
    is_batches,
    open_batches,
    open_data,
    probabilities,
)
from thinkml.data.head_targets import infer_any_task, refuse_heads
from thinkml.data.predictions import decode_frames, decode_indices
from thinkml.data.sequences import pad_label_sequences, pad_sequences, with_frame_mask
from thinkml.errors import DataError, warn_user
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.evaluation_input import (
    EvaluationInput,
    check_finite,
    check_outputs,
    encode_labels,
    fingerprint_of_labels,
    make_evaluation_data,
    make_sequence_data,
)
from thinkml.evaluation.external_models import is_external, open_external
from thinkml.evaluation.score_summary import (
    LabeledRows,
    ScoreSummary,
    Summaries,
    WithLabels,
    is_summarized,
    summary_batch_size,
)
from thinkml.model_record import InputSpec, record_of
from thinkml.tasks import AnyTask, Composite, Task
from thinkml.typing import Inputs, Labels, Model, PyTree

Opened = EvaluationInput | dict[str, EvaluationInput]


def open_model(
    model: Model, X_test: Inputs, y_test: Labels, devices: Sequence[Any] | None = None
) -> Opened:
    """Checks a model and the data it is evaluated on; returns a dict by head for several heads.

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
    record = record_of(model)
    input_spec = record.input_spec
    if record.task is not None:
        y_test = _padded_sequences(y_test, record.task, 'y_test')
    X_test, y_test, *_ = pad_sequences(
        model, X_test, y_test,
        argument='X_test', label_argument='y_test', like=input_spec,
        ignore_label=_ignored(record.task),
    )  # fmt: skip
    if is_batches(X_test):
        return _open_batches(model, X_test, y_test, input_spec, devices)
    rows, labels = open_data(X_test, y_test, 'X_test', 'y_test', input_spec)
    if input_spec is None:
        any_outputs_of(model, rows.spec, 'X_test')
    task = _task_of(model, labels, rows.spec)

    tasks: dict[Any, Task] = {None: task} if isinstance(task, Task) else dict(task.heads)
    summarized = [name for name, head in tasks.items() if is_summarized(head, len(rows))]
    encoded_labels: dict[Any, np.ndarray] = {}

    @functools.cache
    def all_outputs() -> PyTree:
        predict = functools.partial(predict_outputs, devices=devices, argument='X_test')
        masked = with_frame_mask(model, task, rows.spec)
        heads = () if isinstance(task, Task) else tuple(labels)
        large = [name for name in summarized if name in encoded_labels]
        if not large:
            return predict(masked, rows, reduce=Selection(heads) if heads else None)
        encoded = {name: encoded_labels[name] for name in large} if heads else encoded_labels[None]
        return predict(
            WithLabels(masked), LabeledRows(rows, encoded),
            batch_size=summary_batch_size(tasks, rows.spec),
            reduce=Summaries(heads, tuple(large)),
        )  # fmt: skip

    def open_head(task: Task, labels: np.ndarray, head: str | None) -> EvaluationInput:
        encoded = encoded_labels[head] = encode_labels(labels, task, _named(head))
        is_large = head in summarized
        decode_outputs = _decode_summary if is_large else _decode_outputs
        return EvaluationInput(
            task=task,
            labels=labels,
            encoded=encoded,
            predict=lambda: decode_outputs(part_of(all_outputs(), head), encoded, task),
            fingerprint=fingerprint(rows, encoded),
            has_all_scores=not is_large,
        )

    return _by_head(open_head, task, labels, 'y_test')


def _ignored(task: AnyTask | None) -> int | dict[str, int | None] | None:
    """Returns the ignored label of a task, or those of several heads by name."""
    if isinstance(task, Composite):
        return {name: head.ignored for name, head in task.heads}
    return None if task is None else task.ignored


def _named(head: str | None) -> str:
    return 'y_test' if head is None else f'y_test[{head!r}]'


def _by_head(
    open_head: Callable[[Task, Any, str | None], EvaluationInput],
    task: AnyTask,
    labels: PyTree,
    argument: str,
) -> Opened:
    if isinstance(task, Task):
        refuse_heads(labels, argument)
        return open_head(task, labels, None)
    if not isinstance(labels, dict) or not labels.keys() <= task.by_name.keys():
        got = ', '.join(map(repr, labels)) if isinstance(labels, dict) else 'one array'
        raise DataError(
            f'{argument}: got {got}, expected the targets of heads of {task.in_words}. Pass a dict '
            'of arrays by head.'
        )
    return {
        name: open_head(head, labels[name], name) for name, head in task.heads if name in labels
    }


def _open_batches(
    model: Model,
    X_test: Inputs,
    y_test: Labels,
    input_spec: InputSpec | None,
    devices: Sequence[Any] | None,
) -> Opened:
    if not isinstance(y_test, str | None):
        raise DataError(
            f'y_test: got a {type(y_test).__name__} beside batches, expected None: the batches of '
            'X_test hold their labels, and batches may come in any order.'
        )
    batches = open_batches(X_test, 'X_test', label=y_test, like=input_spec)
    example = batches.peek().x
    if input_spec is None:
        any_outputs_of(model, example, 'X_test')
    known = record_of(model).task
    masked = model if known is None else with_frame_mask(model, known, example)
    predict = make_predict(masked, example, devices=devices, argument='X_test')
    outputs, labels, weights = [], [], []
    for batch in batches.iterate():
        outputs.append(predict(batch.x))
        labels.append(batch.y)
        weights.append(batch.weight)
    if isinstance(labels[0], dict):
        true = {
            name: _concatenate([y[name] for y in labels], f'X_test, labels[{name!r}]')
            for name in labels[0]
        }
    else:
        true = _concatenate(labels, 'X_test, labels')
    all_outputs = jax.tree.map(lambda *leaves: np.concatenate(leaves), *outputs)

    def open_head(task: Task, labels_of_head: np.ndarray, head: str | None) -> EvaluationInput:
        encoded = encode_labels(labels_of_head, task, _named(head))
        data = _decode_outputs(part_of(all_outputs, head), encoded, task)
        of_head = [weight.get(head) if isinstance(weight, dict) else weight for weight in weights]
        return EvaluationInput(
            task=task,
            labels=labels_of_head,
            encoded=encoded,
            predict=lambda: data,
            fingerprint=fingerprint_of_labels(encoded),
            weight=_concatenate_weights(of_head, [part_of(y, head) for y in labels]),
        )

    return _by_head(open_head, _task_of(model, true, example), true, 'X_test, labels')


def _concatenate(labels: list[np.ndarray], argument: str) -> np.ndarray:
    for y in labels:
        if y.shape[1:] != labels[0].shape[1:]:
            raise DataError(
                f'{argument}: got shape {labels[0].shape} in the first batch and {y.shape} in '
                'another, expected labels of the same form in all. Reshape them.'
            )
    return check_targets(concatenate_labels(labels), argument)


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


def _task_of(model: Model, labels: PyTree, example: PyTree) -> AnyTask:
    recorded = record_of(model).task
    if recorded is not None:
        return recorded
    outputs = any_outputs_of(model, example, 'X_test')
    task = infer_any_task(labels, outputs, argument='y_test')
    if isinstance(task, Task) and isinstance(outputs, Outputs):
        pairs = [(task, outputs)]
    else:
        assert isinstance(task, Composite) and isinstance(outputs, HeadOutputs)
        pairs = [(head, outputs.heads[name]) for name, head in task.heads]
    for head, output in pairs:
        if misread := misread_outputs(output.range, head):
            warn_user(misread)
    return task


def _padded_sequences(y: Labels, task: AnyTask, argument: str) -> Labels:
    """Returns targets with sequences of labels of one length, for the heads that have them."""
    if isinstance(task, Task):
        is_sequence = task.type.has_sequences
        return pad_label_sequences(y, argument, task.ignore_label) if is_sequence else y
    if not isinstance(y, Mapping):
        return y
    heads = task.by_name
    return {
        name: _padded_sequences(part, heads[name], f'{argument}[{name!r}]')
        if name in heads
        else part
        for name, part in y.items()
    }


def _decode_summary(
    summary: ScoreSummary, encoded: np.ndarray, task: Task
) -> tuple[np.ndarray, EvaluationData]:
    check_finite(summary.is_finite)
    predictions = decode_indices(summary.prediction, task)
    return predictions, make_evaluation_data(predictions, encoded, task, None, summary=summary)


def _decode_outputs(
    outputs: np.ndarray, encoded: np.ndarray, task: Task
) -> tuple[np.ndarray, EvaluationData]:
    check_outputs(outputs)
    if task.type.has_sequences:
        found = decode_frames(outputs.argmax(axis=-1), task)
        sequences = np.asarray(pad_label_sequences(found, 'predictions', task.ignore_label))
        return sequences, make_sequence_data(sequences, encoded, task, outputs)
    predictions = decode(outputs, task)
    class_probabilities = None if task.classes is None else probabilities(outputs, task)
    return predictions, make_evaluation_data(
        predictions, encoded, task, class_probabilities, outputs
    )
