"""Frames of pandas, polars, narwhals and pyarrow, told by what they can do: none is imported."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from thinkml.data.object_arrays import kinds_of
from thinkml.errors import DataError, did_you_mean

# What pandas calls an index of texts, or of tuples and other objects.
_NAMES = ('string', 'mixed', 'mixed-integer', 'categorical')
_ARROW_NUMBER = re.compile(r'u?int\d+|halffloat|float|double|bool')


def is_frame(values: Any) -> bool:
    """Returns True if it is a table with named columns."""
    if _is_arrow(values):
        return True
    # In this order: a frame of polars that is lazy warns where it is asked for its columns.
    is_table = hasattr(values, 'to_numpy') and hasattr(values, 'columns')
    return is_table and (hasattr(values, 'dtypes') or hasattr(values, 'schema'))


def _is_arrow(values: Any) -> bool:
    """Returns True for a table or a record batch of pyarrow."""
    return all(hasattr(values, name) for name in ('column_names', 'schema', 'to_pydict'))


def is_named_row(value: Any) -> bool:
    """Returns True for a row of a frame of pandas: a series whose index is the names.

    An index of numbers or times counts the values, as that of a window of a longer series does.
    """
    kind = getattr(getattr(value, 'index', None), 'inferred_type', None)
    return kind in _NAMES and hasattr(value, 'to_frame')


def frame_of_rows(rows: Sequence[Any]) -> Any:
    """Returns a frame of `is_named_row` values, in the order of the first one's names.

    Raises:
        KeyError: if one has other names.
        ValueError: if one has more or fewer.
    """
    names, frame = rows[0].index, type(rows[0].to_frame())

    def in_order(row: Any) -> np.ndarray:
        is_permuted = len(row) == len(names) and not row.index.equals(names)
        return np.asarray(row[names] if is_permuted else row)

    return frame(np.stack(list(map(in_order, rows))), columns=names)


def are_frames(values: Any) -> bool:
    """Returns True for a list of frames, each of them an example: windows of a longer one."""
    return isinstance(values, list) and len(values) > 0 and all(map(is_frame, values))


def stack_frames(
    frames: Sequence[Any], columns: tuple[str, ...], argument: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the numbers of frames of one length, ``[frames, rows, columns]``, and the names.

    Raises:
        DataError: as `in_order_of` and `frame_values` do, and for frames of different lengths.
    """
    arrays = []
    for frame in frames:
        ordered, columns = in_order_of(frame, columns, argument)
        arrays.append(frame_values(ordered, argument))
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) > 1:
        raise DataError(
            f'{argument}: got frames of {lengths[0]} to {lengths[-1]} rows as examples, expected '
            'frames of one length. Pad or cut them first.'
        )
    return np.stack(arrays), columns


def column_names(frame: Any) -> tuple[str, ...]:
    """Returns the names of the columns as texts: 3 and '3' are one name, as they are in files."""
    return tuple(map(str, frame.column_names if _is_arrow(frame) else frame.columns))


def take_columns(frame: Any, places: Sequence[int]) -> Any:
    """Returns a frame of the columns at these places, in this order."""
    if _is_arrow(frame):
        return frame.select(places)
    return frame.iloc[:, places] if hasattr(frame, 'iloc') else frame[:, places]


def take_column(frame: Any, place: int) -> Any:
    """Returns one column."""
    if _is_arrow(frame):
        return frame.column(place)
    return frame.iloc[:, place] if hasattr(frame, 'iloc') else frame[:, place]


def in_order_of(frame: Any, columns: tuple[str, ...], argument: str) -> tuple[Any, tuple[str, ...]]:
    """Puts a frame's columns into the order of those a model was trained on.

    The numbers from 0 on, which pandas gives to columns without names, name nothing: such columns
    go by their place beside names that are not numbers, as those of an array do.

    Returns:
        the frame, and the names to remember: those of the training, if it had any.

    Raises:
        DataError: if a column is missing, unknown, or there more than once.
    """
    names = column_names(frame)
    if names == columns:
        return frame, columns
    if len(names) == len(columns):
        if are_places(names) and not _are_numbers(columns):
            return frame, columns
        if are_places(columns) and not _are_numbers(names):
            return frame, names
    if sorted(names) == sorted(columns) and len(set(names)) == len(names):
        return take_columns(frame, [names.index(name) for name in columns]), columns
    missing = list((Counter(columns) - Counter(names)).elements())
    extra = list((Counter(names) - Counter(columns)).elements())
    unknown = [name for name in extra if name not in columns]
    doubled = sorted({name for name in extra if name in columns})
    parts = [
        f'{what} {", ".join(map(repr, found))}'
        for what, found in (
            ('no column', missing), ('more than once the column', doubled),
            ('the unknown', unknown),
        )
        if found
    ]  # fmt: skip
    got = ' and '.join(parts) or f'the columns {", ".join(names)}, of which some have one name'
    close = did_you_mean(unknown[0], missing) if unknown else ''
    raise DataError(
        f'{argument}: got {got}, expected the columns the model was trained on: '
        f'{", ".join(columns)}.{close} A frame goes by names: select and rename its columns, or '
        'pass frame.to_numpy() to go by place.'
    )


def are_places(names: tuple[str, ...]) -> bool:
    """Returns True for the numbers from 0 on, which pandas gives to columns without names."""
    return names == tuple(map(str, range(len(names))))


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in names)


def frame_values(frame: Any, argument: str) -> np.ndarray:
    """Returns the numbers of a frame, ``[rows, columns]``; missing ones are NaN.

    Raises:
        DataError: if a column holds no numbers. Names all of them.
    """
    kinds = _kinds(frame)
    others = [place for place, kind in enumerate(kinds) if not _is_numeric(kind)]
    if others:
        shown = [_described(frame, place) for place in others[:10]]
        more = ', ...' if len(others) > 10 else ''
        raise DataError(
            f'{argument}: got columns that hold no numbers: {", ".join(shown)}{more}. Encode text, '
            "for instance with scikit-learn's OrdinalEncoder or OneHotEncoder; convert numbers "
            'among objects with .astype("float64"), and times to the days since a date; or drop '
            'these columns.'
        )
    if len(set(map(str, kinds))) <= 1:
        array = np.asarray(frame)
        if array.dtype.kind != 'O':
            return array
    # Mixed columns (bool beside float, numbers beside missing ones) come as objects: one by one.
    columns = [_numbers(take_column(frame, place)) for place in range(len(kinds))]
    return np.stack(columns, axis=1, dtype=np.result_type(*columns), casting='unsafe')


def _described(frame: Any, place: int) -> str:
    kind, column = _kinds(frame)[place], np.asarray(take_column(frame, place))
    is_objects = str(kind) == 'object' and column.dtype.kind == 'O'
    held = f': {kinds_of(column)}' if is_objects else ''
    return f'{column_names(frame)[place]} ({kind}{held})'


def _kinds(frame: Any) -> list[Any]:
    if _is_arrow(frame):
        return [field.type for field in frame.schema]
    return list(frame.dtypes if hasattr(frame, 'dtypes') else frame.schema.values())


def _is_numeric(kind: Any) -> bool:
    if hasattr(kind, 'is_numeric'):  # polars, narwhals
        return kind.is_numeric() or str(kind) == 'Boolean'
    if hasattr(kind, 'kind'):
        return kind.kind in 'biuf'
    return _ARROW_NUMBER.fullmatch(str(kind)) is not None


def _numbers(column: Any) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype.kind != 'O':
        return array
    missing = column.isna() if hasattr(column, 'isna') else column.is_null()
    values = np.full(len(array), np.nan)
    present = ~np.asarray(missing, bool)
    values[present] = array[present].astype(np.float64)
    return values
