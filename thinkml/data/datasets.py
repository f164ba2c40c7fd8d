"""Data sets that hold inputs and targets together."""

from collections.abc import Mapping

from thinkml.data.arrays import as_array, check_lengths
from thinkml.data.dataframes import column_names, is_frame, take_column, take_columns
from thinkml.data.head_targets import check_any_targets
from thinkml.data.map_style_datasets import (
    find_label,
    is_items,
    read_labels,
    refuse_several,
    split_example,
    without,
)
from thinkml.data.rows import Rows, open_items, open_rows
from thinkml.errors import DataError
from thinkml.model_record import InputSpec
from thinkml.typing import Inputs, Labels, PyTree


def open_data(
    X: Inputs,
    y: Labels | str | None,
    argument: str = 'X_train',
    label_argument: str = 'y_train',
    like: InputSpec | None = None,
) -> tuple[Rows, PyTree]:
    """Opens inputs and their targets, which are passed separately or are part of the inputs.

    The targets of several heads are a dict or tuple of arrays; they are returned as a dict.

    Args:
        X: the inputs, as `open_rows` takes them.
        y: the targets; the name of the column of ``X`` that holds them; or None to find it, see
            `open_dataset`.
        argument: the name of ``X`` used in error messages.
        label_argument: the name of ``y`` used in error messages.
        like: the description of the inputs the model was trained on, which ``X`` must match.

    Returns:
        the inputs, and the targets, checked but not encoded.

    Raises:
        DataError: as `open_rows` and `open_dataset` do.
    """
    if y is None or isinstance(y, str):
        return open_dataset(X, y, argument, label_argument, like)
    rows, targets = open_rows(X, argument, like), check_any_targets(y, label_argument)
    check_lengths({argument: rows, label_argument: targets})
    return rows, targets


def open_dataset(
    dataset: Inputs,
    label: str | None = None,
    argument: str = 'X_train',
    label_argument: str = 'y_train',
    like: InputSpec | None = None,
) -> tuple[Rows, PyTree]:
    """Opens a data set that holds inputs and labels.

    It is a frame, a dict of arrays, a Hugging Face data set, or a data set of examples that are
    pairs ``(inputs, label)`` or dicts. All labels are read now. For a data set of examples, this
    takes one pass over it.

    Args:
        dataset: the data set.
        label: the name of the labels. None splits pairs, and in other data sets looks for one of
            ``label``, ``labels``, ``target``, ``targets``, ``y``.
        argument: the name of the data set used in error messages.
        label_argument: the name of the labels used in error messages.
        like: the description of the inputs the model was trained on, which the inputs must match.

    Returns:
        the inputs, and the labels ``[rows]``. The data other than the labels is one input if it is
        a single array, else a dict; columns of a frame are one array ``[rows, columns]``.

    Raises:
        DataError: if there are no labels, or they can't be distinguished from the inputs.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import open_dataset
        >>> rows, y = open_dataset({'image': np.zeros((3, 8, 8)), 'label': ['cat', 'dog', 'cat']})
        >>> rows.take(np.array([1])).shape, y
        ((1, 8, 8), array(['cat', 'dog', 'cat'], dtype='<U3'))
    """

    def inputs_of(examples: PyTree) -> PyTree:
        return split_example(examples, label, label_argument)[0]

    if is_frame(dataset):
        names = column_names(dataset)
        position = names.index(find_label(names, label, label_argument))
        others = [other for other in range(len(names)) if other != position]
        inputs, labels = take_columns(dataset, others), take_column(dataset, position)
    elif isinstance(dataset, Mapping):
        refuse_several(dataset, argument)
        name = find_label(list(dataset), label, label_argument)
        inputs, labels = without(dataset, name), dataset[name]
    elif is_items(dataset):
        rows = open_items(dataset, argument, like, inputs_of)
        labels = read_labels(dataset, label, label_argument, argument)
        return rows, check_any_targets(labels, label_argument)
    else:
        as_array(dataset, argument)  # its error says what to call on a lazy frame first
        raise DataError(
            f'{label_argument}: got {label!r}, and {argument} is a {type(dataset).__name__} '
            'without named labels. Pass an array with one target per example.'
        )
    return open_data(inputs, labels, argument, label_argument, like)
