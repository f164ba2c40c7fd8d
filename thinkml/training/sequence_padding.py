"""Padding of sequences: the rows and labels of a request, with one length."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.core.objectives.losses import decides
from thinkml.data.head_targets import argument_of_head
from thinkml.data.sequences import PaddedData, length_spec, pad_label_sequences, pad_sequences
from thinkml.errors import ConfigError, is_whole
from thinkml.tasks import Task
from thinkml.training.task_setup import tasks_by_head
from thinkml.training.training_data import TrainRequest
from thinkml.training.validation_sets import (
    SetName,
    argument_of,
    labels_argument_of,
    masked_lengths,
    split_sets,
)
from thinkml.typing import Model


def pad_request(
    model: Model, request: TrainRequest
) -> tuple[TrainRequest, np.ndarray | None, dict[SetName, PaddedData]]:
    """Returns the request and the validation sets with rows of one length.

    The lengths of the training rows come with them if the model takes a mask.
    """
    length = request.max_length
    if length is not None and not (is_whole(length) and length >= 1):
        raise ConfigError(f'max_length: got {length!r}, expected a whole number of at least 1.')
    user_model = model.model if isinstance(model, PartlyFrozen) else model
    marker = request.ignore_label
    marker = marker if is_whole(marker) or isinstance(marker, Mapping) else None
    train = pad_sequences(
        user_model, request.X_train, _padded_targets(request, request.y_train, 'y_train'),
        max_length=length, ignore_label=marker,
    )  # fmt: skip
    if train.lengths is None and length is not None:
        raise ConfigError(
            f'max_length: got {length} for inputs that are not a list or column of sequences of '
            'different lengths, expected None. Cut arrays yourself: X[:, :max_length].'
        )
    val = {
        name: pad_sequences(
            user_model, X, _padded_targets(request, y, labels_argument_of(name)),
            argument=argument_of(name), label_argument=labels_argument_of(name),
            ignore_label=marker, max_length=length,
            like=None if train.length is None else length_spec(train.length),
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
                for part in (loss_fn, tasks_by_head(task), marker)
            )
            return {
                name: padded(
                    part, loss_fns.get(name), tasks.get(name), markers.get(name),
                    argument_of_head(argument, name),
                )
                for name, part in y.items()
            }  # fmt: skip
        kind = task.kind if isinstance(task, Task) else task
        if 'sequence' not in (decides(loss_fn), kind):
            return y
        return pad_label_sequences(y, argument, marker if is_whole(marker) else None)

    return padded(y, request.loss_fn, request.task, request.ignore_label, argument)
