"""Validation sets: one, or several by name, opened, checked and encoded."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from thinkml.data import check_lengths, is_batches, open_batches, open_data, open_rows
from thinkml.data.dataframes import is_frame
from thinkml.data.head_targets import encode_any_targets
from thinkml.data.map_style_datasets import is_array, is_items
from thinkml.data.sequences import PaddedData, mask_name
from thinkml.errors import ConfigError, DataError
from thinkml.history import split_name
from thinkml.model_record import InputSpec
from thinkml.tasks import AnyTask
from thinkml.training.config import TrainingConfig
from thinkml.training.training_data import (
    Examples,
    Stream,
    TrainRequest,
    check_again,
    check_epochs,
    has_element_weights,
    has_no_labels,
    identify,
    label_of_batches,
    select_counted,
    weight_shift,
    weights_of_examples,
)

Data = TypeVar('Data')
SetName = str | None
"""The name of a validation set; None for a single set, which has no name."""


def split_sets(request: TrainRequest) -> dict[SetName, tuple[Any, Any]]:
    """Returns the inputs and labels of each validation set, by its name.

    Raises:
        DataError: for a dict that is neither several sets nor inputs, and for impossible names.
    """
    X_val, y_val = request.X_val, request.y_val
    if X_val is None and y_val is None:
        return {}
    if not isinstance(X_val, Mapping) or not _are_sets(request, X_val):
        return {None: (X_val, y_val)}
    if not (y_val is None or isinstance(y_val, str)):
        raise DataError(
            f'y_val: got labels beside the validation sets {", ".join(map(repr, X_val))}, expected '
            'None: each set holds its labels. Pass X_val={name: (X, y), ...}.'
        )
    found: dict[SetName, tuple[Any, Any]] = {}
    for name, data in X_val.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise DataError(
                f'X_val: got a validation set named {name!r}, expected letters, digits and '
                "underscores, as in 'shifted': the history has a column val_shifted_loss."
            )
        if isinstance(data, tuple) and len(data) != 2:
            raise DataError(
                f'{argument_of(name)}: got {_described(data)}, expected (X, y): rows have no '
                'weights in validation. Weigh batches, (X, y, weights), or leave rows out.'
            )
        found[name] = data if isinstance(data, tuple) else (data, y_val)
    return found


def _are_sets(request: TrainRequest, X_val: Mapping[Any, Any]) -> bool:
    """Returns True if ``X_val`` is a dict of sets; False for inputs, which may be a dict of arrays.

    Raises:
        DataError: for a dict of both.
    """
    X_train, y_val = request.X_train, request.y_val
    if isinstance(X_train, Mapping) and X_train.keys() == X_val.keys():
        return False
    if has_no_labels(request) and is_array(X_train):  # then a dict can't be inputs
        return bool(X_val)
    has_labels = not (y_val is None or isinstance(y_val, str))
    if has_labels and (isinstance(X_train, Mapping) or is_batches(X_train)):
        return False
    sets = [name for name, part in X_val.items() if _is_set(part)]
    others = [name for name in X_val if name not in sets and not is_frame(X_val[name])]
    if sets and others:
        raise DataError(
            f'X_val: got a dict in which {sets[0]!r} is {_described(X_val[sets[0]])} and '
            f'{others[0]!r} is {_described(X_val[others[0]])}, expected validation sets alone, '
            '{name: (X, y), ...}, or the arrays of one set, with their labels as y_val.'
        )
    are_frames = bool(X_val) and not others and not isinstance(X_train, Mapping)
    return bool(sets) or are_frames


def _is_set(part: Any) -> bool:
    """Returns True for a tuple, such as ``(X, y)``, and for a source that holds its labels."""
    if isinstance(part, tuple):
        return len(part) > 0 and not np.isscalar(part[0])  # numbers would be a column
    return is_batches(part) or is_items(part)


def _described(part: Any) -> str:
    if isinstance(part, tuple):
        return f'a tuple of {len(part)}'
    return f'a {type(part).__name__}'


def argument_of(name: SetName) -> str:
    """Returns the argument of a set's inputs, for errors."""
    return 'X_val' if name is None else f'X_val[{name!r}]'


def by_argument(sets: Mapping[SetName, Data]) -> dict[str, Data]:
    """Returns a value of each set by the argument of its inputs."""
    return {argument_of(name): data for name, data in sets.items()}


def labels_argument_of(name: SetName) -> str:
    """Returns the argument of a set's labels, for errors."""
    return 'y_val' if name is None else f'X_val[{name!r}][1]'


def prefix_of(name: SetName) -> str:
    """Returns the beginning of the names that a set has in the history."""
    return 'val_' if name is None else f'val_{name}_'


def names_in_history(sets: Mapping[SetName, Any], metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names that validation records, those of the first set first.

    Raises:
        ConfigError: if one of them would stand for two values.
    """
    names = {f'{prefix_of(name)}{metric}': name for name in sets for metric in metrics}
    for name in sets:
        for metric in metrics:
            column = f'{prefix_of(name)}{metric}'
            if split_name(column, [*metrics, *names]) != (name or '', metric):
                raise ConfigError(
                    f'X_val: got a validation set named {name!r}, expected another name: '
                    f'{column} would also be the name of another value in the history.'
                )
    return tuple(names)


def open_validation(
    sets: Mapping[SetName, PaddedData],
    request: TrainRequest,
    inputs: InputSpec,
    task: AnyTask,
    config: TrainingConfig,
) -> dict[SetName, Examples | Stream]:
    """Opens and encodes the validation sets.

    Args:
        sets: the inputs and labels of each set.
        request: the arguments of ``train``.
        inputs: the inputs of the training.
        task: the meaning of the labels.
        config: the settings.

    Raises:
        DataError: for data that can't be evaluated.
    """
    return {
        name: _open_set(name, data, request, inputs, task, config) for name, data in sets.items()
    }


def _open_set(
    name: SetName,
    data: PaddedData,
    request: TrainRequest,
    inputs: InputSpec,
    task: AnyTask,
    config: TrainingConfig,
) -> Examples | Stream:
    X_val, y_val = data.X, data.y
    argument, labels = argument_of(name), labels_argument_of(name)
    if has_no_labels(request):
        if y_val is not None or is_batches(X_val):
            raise DataError(
                f'{labels}, {argument}: got labels or batches beside training rows without labels, '
                'expected rows without labels. Pass '
                + ('X_val alone.' if name is None else f'{{{name!r}: (X, None)}}.')
            )
        x = open_rows(X_val, argument, inputs)
        return Examples(x, np.zeros(len(x), np.int32), np.arange(len(x)), None)
    if y_val is None and isinstance(request.y_train, str):
        y_val = request.y_train
    if X_val is not None and is_batches(X_val):
        batches = open_batches(X_val, argument, label=label_of_batches(y_val, labels), like=inputs)
        check_epochs(batches, config)
        if config.validate_every != 'epoch':
            check_again(batches, f'validate_every={config.validate_every!r}')
        # The labels are checked now, and not after the first epoch.
        encode_any_targets(batches.peek().y, task, f'{argument}, batch 1')
        return Stream(
            batches, task,
            weight_shift=weight_shift(batches), has_element_weights=has_element_weights(batches),
            keeps_ignored=request.sees_model,
        )  # fmt: skip
    if X_val is None or (y_val is None and not _holds_labels(request)):
        missing, given = (argument, labels) if X_val is None else (labels, argument)
        several = isinstance(X_val, Mapping) and not isinstance(request.X_train, Mapping)
        raise DataError(
            f'{missing}: got None together with {given}, expected both or neither.'
            + (' Validation sets hold their labels: X_val={name: (X, y), ...}.' if several else '')
        )
    x, targets = open_data(X_val, y_val, argument, labels, like=inputs)
    check_lengths({argument: x, labels: targets})
    y = encode_any_targets(targets, task, labels)
    rows, weight = np.arange(len(x)), None
    if not request.sees_model:
        rows = select_counted(y, task, rows, labels)
        alone = request._replace(class_weights=None, sample_weight=None)
        weight = weights_of_examples(y, task, alone)
    return Examples(x, y, rows, weight, lengths=masked_lengths(data))


def masked_lengths(data: PaddedData) -> np.ndarray | None:
    """Returns the lengths of the rows if a mask tells the padding, and all inputs are padded.

    Inputs that are not sequences are not cut to the length of a bucket.
    """
    if not isinstance(data.X, dict) or mask_name(data.X) is None:
        return None
    shapes = {np.shape(part)[1:2] for part in data.X.values()}
    return data.lengths if shapes == {(data.length,)} else None


def _holds_labels(request: TrainRequest) -> bool:
    """Returns True if labels come with the inputs, as in the training data."""
    return request.y_train is None or isinstance(request.y_train, str)


def identify_sets(sets: Mapping[SetName, Examples | Stream], *, in_part: bool) -> dict[str, Any]:
    """Returns what identifies the validation sets, see `identify`."""
    return {
        key if name is None else f'{name}.{key}': value
        for name, data in sets.items()
        for key, value in identify(data, in_part=in_part).items()
    }
