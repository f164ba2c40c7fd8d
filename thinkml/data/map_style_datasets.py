"""Map-style data sets, which return one example per index, inputs and label together.

Supported are Hugging Face data sets, torch's map-style data sets, Grain's data sources, and any
other object with a length and an example per index.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from thinkml.data.arrays import concatenate_labels
from thinkml.data.dataframes import frame_of_rows, is_frame, is_named_row
from thinkml.errors import DataError, unknown_name
from thinkml.typing import PyTree

LABELS = ('label', 'labels', 'target', 'targets', 'y')
_MAX_ROWS = 2**31 - 1  # rows are counted in int32 on the device

ExampleDataset: TypeAlias = Any
"""A data set with a length and an example per index, for which `is_items` returns True."""


def is_items(source: object) -> bool:
    """Returns True for a data set of examples with random access."""
    is_plain = isinstance(source, Sequence | Mapping) or is_frame(source) or is_array(source)
    is_indexed = all(hasattr(source, name) for name in ('__len__', '__getitem__'))
    return is_indexed and not is_plain and not hasattr(source, '__array__')


def is_array(values: object) -> bool:
    """Returns True for an array with an axis or more: of NumPy, JAX, torch, SciPy, HDF5, zarr."""
    return len(getattr(values, 'shape', ())) > 0 and hasattr(values, 'dtype')


def refuse_several(X: Mapping[str, Any], argument: str) -> None:
    """Raises a `DataError` for a dict of data sets, such as the splits of a data set."""
    found = [name for name, part in X.items() if is_items(part)]
    if found:
        raise DataError(
            f'{argument}: got a {type(X).__name__} of the data sets {", ".join(map(str, found))}, '
            f'expected one. Pass a single one: {argument}[{found[0]!r}].'
        )


def num_items(dataset: ExampleDataset, argument: str) -> int:
    """Returns the number of examples.

    Raises:
        DataError: if the data set is empty or endless.
    """
    count = len(dataset)
    if not 0 < count <= _MAX_ROWS:
        raise DataError(
            f'{argument}: got a data set of {count:,} examples, expected 1 to {_MAX_ROWS:,}. '
            'A repeated data set has no end: leave .repeat() out, epochs do that.'
        )
    return count


def read_items(
    dataset: ExampleDataset, indices: Sequence[int] | np.ndarray, argument: str
) -> PyTree:
    """Reads examples and stacks them, each part to ``[len(indices), ...]``.

    Returns:
        arrays, or dicts and tuples of them, in the structure of an example.

    Raises:
        DataError: if the examples differ in structure or shape.
    """
    if _is_hugging_face(dataset):
        return _read_columns(dataset, indices, argument)
    return collate([dataset[int(index)] for index in indices], argument)


def collate(items: list[Any], argument: str) -> PyTree:
    """Stacks examples, part by part; frames stay a list.

    Raises:
        DataError: if the examples differ in structure or shape.
    """
    first = items[0]
    try:
        if isinstance(first, Mapping):
            return {
                name: collate([item[name] for item in items], f'{argument}[{name!r}]')
                for name in first
            }
        if is_parts(first):
            columns = zip(*items, strict=True)
            return tuple(
                collate(list(column), f'{argument}[{index}]')
                for index, column in enumerate(columns)
            )
        if is_named_row(first):
            return frame_of_rows(items)
        if is_frame(first):
            return items  # frames keep their column names
        return concatenate_labels([np.asarray(item)[None] for item in items])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f'{argument}: got examples that are not arrays of one shape ({error}). Expected arrays '
            'or numbers, the same for each example; pad or cut them in the data set.'
        ) from error


def is_parts(item: object) -> bool:
    """Returns True for an example (or a batch) of several values that is not a list of numbers."""
    if isinstance(item, tuple):
        return True
    return isinstance(item, list) and any(is_array(part) for part in item)


def find_label(names: Sequence[str], label: str | None, argument: str) -> str:
    """Returns the name of the labels: ``label``, or the only name that is usual for labels.

    Raises:
        DataError: if that name is missing, or no or several names are usual for labels.
    """
    if label is not None:
        if label not in names:
            raise DataError(unknown_name(argument, label, names))
        return label
    found = [name for name in LABELS if name in names]
    if len(found) != 1:
        raise DataError(
            f'{argument}: got None, and {" and ".join(found) or "nothing"} among the columns '
            f'{", ".join(names)} looks like labels. Pass the name of the one that holds them.'
        )
    return found[0]


def without(parts: Mapping[str, Any], label: str) -> PyTree:
    """Returns the inputs without the labels; the value itself if there is only one."""
    rest = {name: value for name, value in parts.items() if name != label}
    return next(iter(rest.values())) if len(rest) == 1 else rest


def inputs_alone(example: PyTree, arrays: PyTree) -> PyTree:
    """Returns the inputs of an example, or a batch, that may also hold labels.

    Args:
        example: arrays, or a dict or tuple of them.
        arrays: the inputs of the model, ``InputSpec.arrays``; None if they are not known.
    """
    if is_parts(example) and len(example) == 1:
        example = example[0]
    if arrays is None:
        return example
    if is_parts(example):
        is_inputs = isinstance(arrays, tuple) and len(arrays) == len(example)
        return example if is_inputs else example[0]
    if isinstance(example, Mapping):
        names = arrays if isinstance(arrays, Mapping) else ()
        kept = {name: part for name, part in example.items() if name in names or name not in LABELS}
        return kept if names or len(kept) > 1 else next(iter(kept.values()))
    return example


def read_labels(
    dataset: ExampleDataset, label: str | None, label_argument: str, argument: str
) -> np.ndarray:
    """Returns the labels of all examples; a Hugging Face data set reads only their column.

    Raises:
        DataError: if the examples hold no label.
    """
    count = num_items(dataset, argument)
    if _is_hugging_face(dataset):
        name = find_label(dataset.column_names, label, label_argument)
        return np.asarray(dataset.with_format('numpy')[name][:])
    # One example at a time, so that only its label is kept in memory.
    labels = [split_example(dataset[index], label, label_argument)[1] for index in range(count)]
    return collate(labels, label_argument)


def split_example(example: PyTree, label: str | None, label_argument: str) -> tuple[PyTree, PyTree]:
    """Returns the inputs and the label of an example: a pair, or a dict with the label's name.

    Raises:
        DataError: for anything else.
    """
    if isinstance(example, Mapping):
        name = find_label(list(example), label, label_argument)
        return without(example, name), example[name]
    if is_parts(example) and len(example) == 2:
        return example[0], example[1]
    got = f'{len(example)} parts' if is_parts(example) else f'one {type(example).__name__}'
    raise DataError(
        f'{label_argument}: got None, and examples of {got}, expected pairs (inputs, label) or '
        'dicts that name the label. Pass the labels separately.'
    )


def _is_hugging_face(dataset: ExampleDataset) -> bool:
    return hasattr(dataset, 'with_format') and hasattr(dataset, 'column_names')


def _read_columns(
    dataset: ExampleDataset, indices: Sequence[int] | np.ndarray, argument: str
) -> dict[str, Any]:
    # A format or transform that the user has set stays in effect.
    if dataset.format['type'] is None:
        dataset = dataset.with_format('numpy')
    columns = dataset[[int(index) for index in indices]]
    return {name: _stacked(values, f'{argument}[{name!r}]') for name, values in columns.items()}


def _stacked(values: Any, argument: str) -> np.ndarray:
    is_stacked = isinstance(values, np.ndarray) and values.dtype.kind != 'O'
    return values if is_stacked else collate(list(values), argument)
