"""Checks of encoded targets and their weights, in training and validation data."""

from typing import Any

import jax

from thinkml.core.model.functional import HeadOutputs, Outputs
from thinkml.core.objectives.ctc import frame_positions
from thinkml.core.objectives.heads import part_of
from thinkml.core.objectives.whole_rows import check_target_ranges
from thinkml.core.train.augmentation_registry import moves_targets
from thinkml.data.head_targets import argument_of_head, by_head
from thinkml.data.targets import check_alignments
from thinkml.errors import ConfigError
from thinkml.tasks import AnyTask, Composite
from thinkml.training.data_warnings import warn_of_classes_only_in_validation, warn_of_one_class
from thinkml.training.objective import TrainingObjective
from thinkml.training.training_data import Examples, Stream, check_counted
from thinkml.training.validation_sets import SetName, labels_argument_of


def check_all_targets(
    task: AnyTask,
    objective: TrainingObjective,
    outputs: Outputs | HeadOutputs,
    y: Any,
    train: Examples | Stream,
    val: dict[SetName, Examples | Stream],
    *,
    is_split: bool,
    is_given: bool,
) -> None:
    """Checks the targets of the training and of each validation set.

    Args:
        task: the meaning of the outputs.
        objective: the loss and the metrics.
        outputs: the model's outputs.
        y: the encoded targets of the training, or the first of them.
        train: the training data.
        val: the validation sets.
        is_split: True if the validation set was held out from the training data.
        is_given: True if the user passed the task. Its classes then need not all occur.

    Raises:
        DataError: if no labels count, or if those of a sequence do not fit its frames.
        ConfigError: for targets beyond the range that the name of a metric contains.

    Warns:
        ThinkMLWarning: for classes that do not occur.
    """
    _check_labels(task, y, train, val, is_split=is_split, is_given=is_given)
    _check_ranges(task, objective, y, val)
    _check_frames(task, outputs, y, train, val)


def _check_labels(
    task: AnyTask,
    y: Any,
    train: Examples | Stream,
    val: dict[SetName, Examples | Stream],
    *,
    is_split: bool,
    is_given: bool,
) -> None:
    """Checks that some labels of each data set count, and warns of classes that do not occur."""
    for name, head, labels in by_head(task, y):
        of_train = _of_head(train, name)
        of_sets = {of_set: _of_head(data, name) for of_set, data in val.items()}
        if isinstance(train, Examples) and not is_given:
            warn_of_one_class(head, labels, argument_of_head('y_train', name))
        if isinstance(task, Composite) or head.element_shape:
            _check_counted(of_train, argument_of_head('y_train', name))
            for of_set, data in of_sets.items():
                _check_counted(data, argument_of_head(labels_argument_of(of_set), name))
        for of_set, data in of_sets.items():
            argument = 'validation_split' if is_split else labels_argument_of(of_set)
            warn_of_classes_only_in_validation(
                head, of_train, data, argument_of_head(argument, name)
            )


def _check_counted(data: Examples | Stream, argument: str) -> None:
    if isinstance(data, Examples):
        check_counted(data, argument)


def _of_head(data: Examples | Stream, head: str | None) -> Examples | Stream:
    """Returns a data set with the targets of one head."""
    if head is None or not isinstance(data, Examples):
        return data
    return data._replace(y=data.y[head], weight=part_of(data.weight, head))


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
                check_alignments(labels, frames, argument_of_head(argument, name))


def check_element_weights(train: Examples | Stream, objective: TrainingObjective) -> None:
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
