"""TrainingSetup: the checked data, task and objective of a training."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx

from thinkml.core import Objective, check_trainable, functionalize, get_compute_dtype
from thinkml.core.model.dense_output import check_chunk
from thinkml.core.model.embedding_lookups import check_lookups, has_lookups, lookups
from thinkml.core.model.functional import (
    Footprint,
    HeadOutputs,
    Outputs,
    any_outputs_of,
    is_model,
    not_a_model,
    sown_by,
)
from thinkml.core.model.output_range import misread_outputs
from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.core.model.sown_values import SownValues
from thinkml.core.objectives.ctc import frame_positions
from thinkml.core.objectives.heads import part_of
from thinkml.core.objectives.losses import blank_of, decides
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.core.objectives.whole_rows import check_target_ranges
from thinkml.core.train.augmentation_registry import moves_targets
from thinkml.data import (
    Rows,
    check_targets_held,
    is_batches,
    warn_of_other_ranges,
)
from thinkml.data.head_targets import encode_any_targets, infer_any_task, task_of_numbers
from thinkml.data.input_range import check_standardised
from thinkml.data.sequences import (
    PaddedData,
    bucket_lengths,
    length_spec,
    pad_label_sequences,
    pad_sequences,
    shorter_inputs,
)
from thinkml.data.targets import check_alignments
from thinkml.errors import (
    ConfigError,
    DataError,
    ModelTypeError,
    is_whole,
    unknown_name,
    warn_user,
)
from thinkml.model_record import ArraySpec, InputSpec, record_of
from thinkml.tasks import AnyTask, Composite, Task, TaskKind
from thinkml.training.aux_losses import with_aux_losses
from thinkml.training.config import TrainingConfig
from thinkml.training.custom_step import add_step, check_no_validation, make_step_objective
from thinkml.training.data_warnings import (
    warn_of_classes_only_in_validation,
    warn_of_label_column,
    warn_of_modes,
    warn_of_new_classes,
    warn_of_one_class,
    warn_of_unlabeled,
)
from thinkml.training.model_objective import make_model_objective
from thinkml.training.objective import (
    TrainingObjective,
    make_head_objective,
    make_objective,
)
from thinkml.training.optimizer_setup import check_optimizer
from thinkml.training.training_data import (
    Examples,
    InputData,
    Stream,
    TrainRequest,
    advising,
    check_counted,
    has_no_labels,
    identify,
    make_examples,
    make_stream,
    open_inputs,
    with_advice,
)
from thinkml.training.validation_sets import (
    SetName,
    argument_of,
    by_argument,
    identify_sets,
    labels_argument_of,
    masked_lengths,
    open_validation,
    split_sets,
)
from thinkml.typing import Model, PyTree

# Enough rows to see the range of values.
_SOME_ROWS = 1000
# The ids of so many rows are checked in one call.
_BLOCK_ROWS = 2**14


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """A model's data, task and objective, all checked.

    Attributes:
        train: the training data.
        val: the validation sets by name; the name of a single one is None.
        inputs: the shape and dtype of a row of inputs.
        task: the meaning of the outputs.
        labels: an encoded label, as `jax.ShapeDtypeStruct` of a row; a dict of them by head.
        objective: loss, metrics and augmentation.
        fingerprint: identifies the training data.
        val_fingerprint: identifies the validation sets; empty for none.
        footprint: a rough estimate of the memory that the model takes.
    """

    train: Examples | Stream
    val: dict[SetName, Examples | Stream]
    inputs: InputSpec
    task: AnyTask
    labels: PyTree
    objective: TrainingObjective
    fingerprint: dict[str, Any]
    val_fingerprint: dict[str, Any]
    footprint: Footprint

    @property
    def spec(self) -> Any:
        """Returns a row of the inputs, as `jax.ShapeDtypeStruct`."""
        return probe_of(self.inputs, 1)


def make_setup(
    model: Model,
    request: TrainRequest,
    config: TrainingConfig,
    training_metrics: tuple[str, ...] = (),
) -> TrainingSetup:
    """Checks and encodes what the user passed.

    Args:
        model: see `thinkml.core.functionalize`.
        request: the arguments of ``train``.
        config: the settings.
        training_metrics: metrics of training that callbacks need in the history.

    Raises:
        DataError: for data that can not be trained on.
        ConfigError: for a loss, metric or augmentation that is unknown or does not fit the task.
        ModelTypeError: for an object that is not a model.
    """
    if not is_model(model):
        raise ModelTypeError(not_a_model(model))
    known = record_of(model)
    if isinstance(model, nnx.Module):
        warn_of_modes(model)
    request, lengths, of_sets = _pad_sequences(model, request.with_text_names())
    before = request.known or known.input_spec
    if not is_batches(request.X_train):
        warn_of_label_column(request)
    data = open_inputs(request, config, None if before is None else before.names_alone())
    batches, x, inputs = data.batches, data.x, data.inputs
    if before is not None:
        warn_of_other_ranges(inputs, before, 'X_train')
    check_pixels_of(model.model if isinstance(model, PartlyFrozen) else model, inputs)
    probe = probe_of(inputs, PROBE_ROWS)
    outputs = any_outputs_of(model, probe, 'X_train')
    _check_lengths(model, inputs, lengths)
    task, y = _task_and_targets(data, outputs, request, known.task)
    dtype = get_compute_dtype(config.precision)
    footprint = check_trainable(model, probe, outputs, 'X_train', compute_dtype=dtype)
    some = _first_rows(x, probe)
    if request.sees_model:
        objective, sown = _objective_of_model(model, some, y, request, config, training_metrics)
    else:
        objective = _make_objective(task, some, y, request, training_metrics)
        _warn_of_outputs(outputs, task, objective)
        check_chunk(objective.loss_fn, model, probe, dtype)
        sown = sown_by(model, probe, 'X_train', dtype)
    objective = _with_updates(objective, sown, model, probe, y, request, config)
    if batches is not None:
        advice = '' if task == known.task else data.advice
        train, split = make_stream(batches, task, request, config, advice), None
    else:
        train, split = make_examples(x, y, task, request, config)
        train = train._replace(lengths=lengths)
        split = None if split is None else split._replace(lengths=lengths)
    _check_element_weights(train, objective)
    val = {} if split is None else {None: split}
    val |= open_validation(of_sets, request, inputs, task, config)
    check_no_validation(by_argument(val), objective, is_split=split is not None)
    if not request.sees_model:
        _check_labels(task, y, train, val, is_split=split is not None)
        _check_ranges(task, objective, y, val)
        _check_frames(task, outputs, y, train, val)
    if outputs.gathers:
        _check_ids(model, probe, {'X_train': train, **by_argument(val)})
    return TrainingSetup(
        train=train,
        val=val,
        inputs=inputs,
        task=task,
        labels=jax.tree.map(lambda one: jax.ShapeDtypeStruct((1, *one.shape[1:]), one.dtype), y),
        objective=objective,
        fingerprint=identify(train, in_part=request.rows is not None),
        val_fingerprint=identify_sets(val, in_part=split is not None),
        footprint=footprint,
    )


def _check_lengths(model: Model, inputs: InputSpec, lengths: np.ndarray | None) -> None:
    """Raises a `DataError` if the model can't take the shorter sequences of a bucket."""
    for length in [] if lengths is None else bucket_lengths(lengths):
        shorter = probe_of(shorter_inputs(inputs, int(length)), PROBE_ROWS)
        with advising(_FIXED_LENGTH):
            any_outputs_of(model, shorter, 'X_train')


def _task_and_targets(
    data: InputData,
    outputs: Outputs | HeadOutputs,
    request: TrainRequest,
    known: AnyTask | None,
) -> tuple[AnyTask, Any]:
    """Returns the meaning of the outputs, and the encoded targets."""
    if request.sees_model:
        return task_beside_objective(data, outputs, request)
    task = _infer_task(data, outputs, request, known)
    return task, encode_any_targets(data.targets, task, data.labels_from)


def _objective_of_model(
    model: Model,
    x: Any,
    y: Any,
    request: TrainRequest,
    config: TrainingConfig,
    training_metrics: tuple[str, ...],
) -> tuple[TrainingObjective, SownValues]:
    """Returns the objective of a training whose objective or step calls the model."""
    if isinstance(request.loss_fn, Objective):
        return make_model_objective(model, x, y, request, config, training_metrics)
    return make_step_objective(x, y, request, training_metrics), {}


def _with_updates(
    objective: TrainingObjective,
    sown: SownValues,
    model: Model,
    x: PyTree,
    y: Any,
    request: TrainRequest,
    config: TrainingConfig,
) -> TrainingObjective:
    """Returns an objective with its auxiliary losses, or with its custom step."""
    if request.step is not None:
        return add_step(objective, model, x, y, request, config)
    check_optimizer(model, x, config)
    return with_aux_losses(objective, config.aux_losses, sown)


def _check_labels(
    task: AnyTask,
    y: Any,
    train: Examples | Stream,
    val: dict[SetName, Examples | Stream],
    *,
    is_split: bool,
) -> None:
    """Checks that some labels of each data set count, and warns of classes that do not occur."""
    for name, head, labels in by_head(task, y):
        of_train = _of_head(train, name)
        of_sets = {of_set: _of_head(data, name) for of_set, data in val.items()}
        if isinstance(train, Examples):
            warn_of_one_class(head, labels, _named('y_train', name))
        if isinstance(task, Composite) or head.element_shape:
            _check_counted(of_train, _named('y_train', name))
            for of_set, data in of_sets.items():
                _check_counted(data, _named(labels_argument_of(of_set), name))
        for of_set, data in of_sets.items():
            argument = 'validation_split' if is_split else labels_argument_of(of_set)
            warn_of_classes_only_in_validation(head, of_train, data, _named(argument, name))


def _check_counted(data: Examples | Stream, argument: str) -> None:
    if isinstance(data, Examples):
        check_counted(data, argument)


def _check_ranges(
    task: AnyTask, objective: TrainingObjective, y: Any, val: dict[SetName, Examples | Stream]
) -> None:
    """Checks that the targets are within the ranges that the names of metrics contain."""
    for labels in (y, *(data.y for data in val.values() if isinstance(data, Examples))):
        for name, _, targets in by_head(task, labels):
            of_head = objective if name is None else objective.heads[name]
            check_target_ranges(of_head.metrics, targets)


def _check_frames(
    task: AnyTask,
    outputs: Outputs | HeadOutputs,
    y: Any,
    train: Examples | Stream,
    val: dict[SetName, Examples | Stream],
) -> None:
    """Checks that the labels of each sequence can be aligned to the frames of its row."""
    parts: list[tuple[str, Any, Examples | Stream]] = [('y_train', y, train)]
    parts += [
        (labels_argument_of(name), data.y, data)
        for name, data in val.items()
        if isinstance(data, Examples)
    ]
    for argument, targets, data in parts:
        for name, head, labels in by_head(task, targets):
            if head.type.has_sequences:
                one = outputs if isinstance(outputs, Outputs) else outputs.heads[name]
                frames: Any = one.shape[0]
                if isinstance(data, Examples) and data.lengths is not None:
                    longest = jax.tree.leaves(data.x.spec)[0].shape[1]
                    positions = frame_positions(frames, longest)
                    frames = (positions < data.lengths[:, None]).sum(axis=1)
                check_alignments(labels, frames, _named(argument, name))


def _pad_sequences(
    model: Model, request: TrainRequest
) -> tuple[TrainRequest, np.ndarray | None, dict[SetName, PaddedData]]:
    """Returns the request and the validation sets with rows of one length.

    The lengths of the training rows come with them if the model takes a mask.
    """
    length = request.max_length
    if length is not None and not (is_whole(length) and length >= 1):
        raise ConfigError(f'max_length: got {length!r}, expected a whole number of at least 1.')
    user_model = model.model if isinstance(model, PartlyFrozen) else model
    marker = request.ignore_label if is_whole(request.ignore_label) else None
    train = pad_sequences(
        user_model, request.X_train, _padded_targets(request, request.y_train, 'y_train'),
        max_length=length, ignore_label=marker,
    )  # fmt: skip
    if train.lengths is None and length is not None:
        raise ConfigError(
            f'max_length: got {length} for inputs that are not a list or column of sequences of '
            'different lengths, expected None. Cut arrays yourself: X[:, :max_length].'
        )
    arrays = next(iter(train.X.values())) if isinstance(train.X, dict) else train.X
    val = {
        name: pad_sequences(
            user_model, X, _padded_targets(request, y, labels_argument_of(name)),
            argument=argument_of(name), label_argument=labels_argument_of(name),
            ignore_label=marker, max_length=length,
            like=None if train.lengths is None else length_spec(arrays),
        )
        for name, (X, y) in split_sets(request).items()
    }  # fmt: skip
    return request._replace(X_train=train.X, y_train=train.y), masked_lengths(train), val


def _padded_targets(request: TrainRequest, y: Any, argument: str) -> Any:
    """Returns targets with sequences of labels of one length, for the heads that have them."""

    def padded(y: Any, loss_fn: Any, task: Any, marker: Any, argument: str) -> Any:
        if isinstance(y, Mapping):
            loss_fns, tasks, markers = (
                part if isinstance(part, Mapping) else dict.fromkeys(y, part)
                for part in (loss_fn, _tasks_by_head(task), marker)
            )
            return {
                name: padded(
                    part, loss_fns.get(name), tasks.get(name), markers.get(name),
                    _named(argument, name),
                )
                for name, part in y.items()
            }  # fmt: skip
        kind = task.kind if isinstance(task, Task) else task
        if 'sequence' not in (decides(loss_fn), kind):
            return y
        return pad_label_sequences(y, argument, marker if is_whole(marker) else None)

    return padded(y, request.loss_fn, request.task, request.ignore_label, argument)


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
        requested=lambda head: _check_task(of_head(_tasks_by_head(request.task), head)),
        ignore_label=lambda head: of_head(request.ignore_label, head),
    )  # fmt: skip
    _check_by_head(request, task)
    task = _with_blanks(task, request)
    before: dict[Any, Task] = {}
    if known is not None:
        before = {name: head for name, head, _ in by_head(known, None)}
    for name, head, targets in by_head(task, data.targets):
        of_request = request.of_head(name, task) if isinstance(task, Composite) else request
        where = _named(data.labels_from, name)
        if of_request.ignore_label not in (None, head.ignore_label):
            raise ConfigError(
                f'{_named("ignore_label", name)}: got {of_request.ignore_label} for '
                f'{head.in_words}, expected None: only whole numbers that are classes of elements '
                'can be ignored. Use sample_weight 0.'
            )
        warn_of_new_classes(before.get(name), head, where)
        warn_of_unlabeled(targets, head, of_request, where)
        check_targets_held(targets, head, where, is_first=data.batches is not None)
    return task


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


def task_beside_objective(
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
                f'{argument}: got {getattr(request, argument)!r} beside an objective, expected '
                'None: it computes its loss itself.'
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


def _tasks_by_head(task: Any) -> Any:
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


_FIXED_LENGTH = (
    'Rows of similar lengths share a batch, whose length is that of its longest row: let the model '
    'take shorter sequences, for instance by positions[: tokens.shape[1]].'
)
_KINDS = get_args(TaskKind)
_BY_HEAD = ('loss_fn', 'metrics', 'ignore_label', 'task')


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


def _make_objective(
    task: AnyTask, x: Any, y: Any, request: TrainRequest, training_metrics: tuple[str, ...]
) -> TrainingObjective:
    if isinstance(task, Composite):
        return make_head_objective(task, x, y, request, training_metrics)
    return make_objective(
        task, x, y,
        loss_fn=request.loss_fn, metrics=request.metrics, augmentation=request.augmentation,
        training_metrics=training_metrics,
    )  # fmt: skip


def _warn_of_outputs(
    outputs: Outputs | HeadOutputs, task: AnyTask, objective: TrainingObjective
) -> None:
    by_name: dict[Any, Outputs] = {None: outputs} if isinstance(outputs, Outputs) else outputs.heads
    for name, head, _ in by_head(task, None):
        of_head = objective if name is None else objective.heads[name]
        if misread := misread_outputs(by_name[name].range, head, of_head.is_custom_loss):
            warn_user(misread if name is None else f'output {name!r}: {misread}')


def _named(argument: str, head: str | None) -> str:
    return argument if head is None else f'{argument}[{head!r}]'


def by_head(task: AnyTask, values: Any) -> Iterator[tuple[Any, Task, Any]]:
    """Yields the name, the task and the value of each head; the name is None for one output."""
    if isinstance(task, Task):
        yield None, task, values
    else:
        yield from ((name, head, part_of(values, name)) for name, head in task.heads)


def _check_element_weights(train: Examples | Stream, objective: TrainingObjective) -> None:
    """Raises a `ConfigError` for weights of pixels beside an augmentation that moves pixels."""
    if not moves_targets(objective.augment):
        return
    if isinstance(train, Stream):
        has_classes = any(
            head.element_shape and table is not None
            for _, head, table in by_head(train.task, train.class_table)
        )
        differ = has_classes or any(jax.tree.leaves(train.has_element_weights))
    else:
        differ = any(weight.ndim > 1 for weight in jax.tree.leaves(train.weight))
    if differ:
        raise ConfigError(
            'augmentation: got one that moves pixels beside weights of pixels (class_weights, or '
            'sample_weight of elements), which would not move along. Use weights of rows, or an '
            'augmentation that moves nothing.'
        )


def _of_head(data: Examples | Stream, head: str | None) -> Examples | Stream:
    """Returns a data set with the targets of one head."""
    if head is None or not isinstance(data, Examples):
        return data
    return data._replace(y=data.y[head], weight=part_of(data.weight, head))


def _check_ids(model: Any, probe: Any, parts: dict[str, Examples | Stream]) -> None:
    """Checks the ids of all rows in memory, and of some rows on disk, see `check_lookups`."""
    functional = functionalize(model, probe, jax.random.key(0))
    if not has_lookups(functional, probe):
        return
    for argument, data in parts.items():
        check_lookups([lookups(functional, x) for x in _inputs_to_check(data)], argument)


def _inputs_to_check(data: Examples | Stream) -> Iterator[Any]:
    """Yields rows in blocks of one size; the last one is filled up."""
    if isinstance(data, Stream):
        yield data.batches.peek().x
        return
    rows = data.rows
    if not data.x.in_memory:
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SOME_ROWS)).astype(np.int64)]
    size = min(len(rows), _BLOCK_ROWS)
    for first in range(0, len(rows), size):
        yield data.x.take(np.resize(rows[first : first + size], size))


def check_pixels_of(model: Any, inputs: InputSpec) -> None:
    """Checks the images of a model that standardises them itself.

    Raises:
        DataError: see `thinkml.data.input_range.check_standardised`.
    """
    # By an attribute, since TransferModel's package is not imported for other models.
    standardises = getattr(model, 'standardises_pixels', False) is True
    if standardises and isinstance(inputs.arrays, ArraySpec):
        check_standardised(inputs.arrays, 'X_train')


def _first_rows(x: Any, probe: Any) -> Any:
    """Returns the first rows of inputs in memory, else the shapes and dtypes of some rows."""
    if not (isinstance(x, Rows) and x.in_memory):
        return probe
    return x.take(np.arange(min(len(x), _SOME_ROWS)))


def probe_of(inputs: InputSpec, rows: int) -> Any:
    """Returns a number of rows of the inputs, as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda part: jax.ShapeDtypeStruct((rows, *part.shape), jax.numpy.dtype(part.dtype)),
        inputs.arrays,
    )
