"""The task of a training: inferred from labels and outputs, and checked against the request."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from thinkml.core.model.functional import HeadOutputs, Outputs
from thinkml.core.objectives.losses import blank_of, decides
from thinkml.data import check_targets_held
from thinkml.data.head_targets import (
    argument_of_head,
    by_head,
    encode_any_targets,
    infer_any_task,
    task_of_numbers,
)
from thinkml.errors import ConfigError, DataError, is_whole, unknown_name
from thinkml.tasks import AnyTask, Composite, Task, TaskKind
from thinkml.training.data_warnings import warn_of_new_classes, warn_of_unlabeled
from thinkml.training.training_data import InputData, TrainRequest, has_no_labels, with_advice

_KINDS = get_args(TaskKind)
_BY_HEAD = ('loss_fn', 'metrics', 'ignore_label', 'task')


def infer_task_and_targets(
    data: InputData,
    outputs: Outputs | HeadOutputs,
    request: TrainRequest,
    known: AnyTask | None,
) -> tuple[AnyTask, Any]:
    """Returns the meaning of the outputs, and the encoded targets."""
    if request.sees_model:
        return _task_beside_objective(data, outputs, request)
    task = _infer_task(data, outputs, request, known)
    return task, encode_any_targets(data.targets, task, data.labels_from)


def _infer_task(
    data: InputData,
    outputs: Outputs | HeadOutputs,
    request: TrainRequest,
    known: AnyTask | None,
) -> AnyTask:
    """Infers the task from the labels and the outputs' shape, and checks the labels for it."""

    def of_head(value: Any, head: str | None) -> Any:
        return value.get(head) if isinstance(value, Mapping) else value

    markers = request.ignore_label
    for marker in markers.values() if isinstance(markers, Mapping) else [markers]:
        if not (marker is None or is_whole(marker)):
            raise ConfigError(f'ignore_label: got {marker!r}, expected a whole number.')
    task = with_advice(
        data.advice, infer_any_task, data.targets, outputs, argument=data.labels_from,
        decided=lambda head: decides(of_head(request.loss_fn, head)), known=known,
        requested=lambda head: _check_task(of_head(tasks_by_head(request.task), head)),
        ignore_label=lambda head: of_head(request.ignore_label, head),
    )  # fmt: skip
    _check_by_head(request, task)
    task = _with_blanks(task, request)
    before: dict[Any, Task] = {}
    if known is not None:
        before = {name: head for name, head, _ in by_head(known, None)}
    for name, head, targets in by_head(task, data.targets):
        of_request = request.of_head(name, task) if isinstance(task, Composite) else request
        where = argument_of_head(data.labels_from, name)
        if of_request.ignore_label not in (None, head.ignored):
            raise ConfigError(
                f'{argument_of_head("ignore_label", name)}: got {of_request.ignore_label} for '
                f'{head.in_words}, expected None: only whole numbers that are labels of classes '
                'can be ignored. Use sample_weight 0.'
            )
        warn_of_new_classes(before.get(name), head, where)
        warn_of_unlabeled(targets, head, of_request, where)
        check_targets_held(targets, head, where, is_first=data.batches is not None)
    return task


def tasks_by_head(task: Any) -> Any:
    """Returns the tasks of several heads as a dict, and any other value as it is."""
    return task.by_name if isinstance(task, Composite) else task


def _check_task(task: Any) -> Any:
    """Returns a task or the name of its kind; raises a `ConfigError` for anything else."""
    if task is None or isinstance(task, Task):
        return task
    if not isinstance(task, str):
        raise ConfigError(f'task: got {task!r}, expected a Task or {", ".join(_KINDS)}.')
    if task not in _KINDS:
        raise ConfigError(unknown_name('task', task, _KINDS))
    return task


def _check_by_head(request: TrainRequest, task: AnyTask) -> None:
    """Raises a `ConfigError` for arguments by head of a model with one output."""
    if isinstance(task, Composite):
        for argument in (*_BY_HEAD, 'class_weights', 'sample_weight'):
            request.check_names(argument, task)
        return
    for argument in (*_BY_HEAD, 'loss_weights'):
        if isinstance(getattr(request, argument), Mapping):
            raise ConfigError(
                f'{argument}: got a dict for a model that returns one array, expected one value. '
                'Let the model return a dict of outputs to train several heads.'
            )


def _with_blanks(task: AnyTask, request: TrainRequest) -> AnyTask:
    """Returns the task with the blanks of the losses."""

    def of_head(head: Task, loss_fn: Any) -> Task:
        if not head.type.has_sequences:
            return head
        blank_id = blank_of(loss_fn)
        if blank_id >= head.num_outputs:
            raise ConfigError(
                f'loss_fn: got CTC(blank_id={blank_id}) for {head.num_outputs} outputs, expected '
                f'the position of one of them, from 0 to {head.num_outputs - 1}.'
            )
        return dataclasses.replace(head, blank_id=blank_id)

    if isinstance(task, Task):
        return of_head(task, request.loss_fn)
    heads = ((name, of_head(h, request.of_head(name, task).loss_fn)) for name, h in task.heads)
    return dataclasses.replace(task, heads=tuple(heads))


def _task_beside_objective(
    data: InputData, outputs: Outputs | HeadOutputs, request: TrainRequest
) -> tuple[AnyTask, np.ndarray]:
    """Returns the meaning of the outputs for predictions, and the targets that an objective gets.

    Labels that fit the outputs are encoded, as for other losses. Other targets are numbers, and the
    outputs are predicted as numbers.
    """
    y = data.targets
    for argument in ('loss_weights', 'ignore_label'):
        if getattr(request, argument) is not None:
            raise ConfigError(
                f'{argument}: got {getattr(request, argument)!r} beside an objective or a step, '
                'expected None: it computes its loss itself.'
            )
    requested = _check_task(request.task)
    if not has_no_labels(request):
        try:
            task = infer_any_task(
                y, outputs, argument=data.labels_from, requested=lambda head: requested
            )
            return task, encode_any_targets(y, task, data.labels_from)
        except DataError:
            if requested is not None or isinstance(y, dict) or y.dtype.kind == 'U':
                raise
    dtype = np.float32 if y.dtype.kind == 'f' else np.int32
    return task_of_numbers(outputs), y.astype(dtype)
