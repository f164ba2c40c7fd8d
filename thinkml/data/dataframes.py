"""Data frames of pandas, polars, narwhals and pyarrow, recognised by their methods.

None of these packages is imported.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from thinkml.data.object_arrays import kinds_of
from thinkml.errors import DataError, did_you_mean

Frame: TypeAlias = Any
"""A table with named columns, for which `is_frame` returns True."""

Column: TypeAlias = Any
"""One column of a `Frame`."""

# The ``inferred_type`` in pandas of an index of text, or of tuples and other objects.
_NAME_KINDS = ('string', 'mixed', 'mixed-integer', 'categorical')
_ARROW_NUMBER = re.compile(r'u?int\d+|halffloat|float|double|bool')


def is_frame(values: object) -> bool:
    """Returns True for a table with named columns."""
    if _is_arrow(values):
        return True
    # In this order, since a lazy frame of polars warns when its columns are read.
    is_table = hasattr(values, 'to_numpy') and hasattr(values, 'columns')
    return is_table and (hasattr(values, 'dtypes') or hasattr(values, 'schema'))


def _is_arrow(values: object) -> bool:
    """Returns True for a table or a record batch of pyarrow."""
    return all(hasattr(values, name) for name in ('column_names', 'schema', 'to_pydict'))


def is_named_row(value: object) -> bool:
    """Returns True for a row of a pandas frame: a series whose index holds the column names.

    An index of numbers or times counts the values, for instance in a window of a longer series.
    """
    kind = getattr(getattr(value, 'index', None), 'inferred_type', None)
    return kind in _NAME_KINDS and hasattr(value, 'to_frame')


def frame_of_rows(rows: Sequence[Any]) -> Frame:
    """Returns a frame of `is_named_row` values, with the columns in the first row's order.

    Raises:
        KeyError: if a row has other names.
        ValueError: if a row has more or fewer names.
    """
    names, frame = rows[0].index, type(rows[0].to_frame())

    def in_order(row: Any) -> np.ndarray:
        is_permuted = len(row) == len(names) and not row.index.equals(names)
        return np.asarray(row[names] if is_permuted else row)

    return frame(np.stack(list(map(in_order, rows))), columns=names)


def are_frames(values: object) -> bool:
    """Returns True for a list of frames, each of them an example: windows of a longer frame."""
    return isinstance(values, list) and len(values) > 0 and all(map(is_frame, values))


def stack_frames(
    frames: Sequence[Frame], columns: tuple[str, ...], argument: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stacks the numbers of frames of equal length.

    Returns:
        the numbers, ``[frames, rows, columns]``, and the column names.

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


def column_names(frame: Frame) -> tuple[str, ...]:
    """Returns the column names as text: 3 and '3' are the same name, as in files."""
    return tuple(map(str, frame.column_names if _is_arrow(frame) else frame.columns))


def take_columns(frame: Frame, positions: Sequence[int]) -> Frame:
    """Returns a frame of the columns at these positions, in this order."""
    if _is_arrow(frame):
        return frame.select(positions)
    return frame.iloc[:, positions] if hasattr(frame, 'iloc') else frame[:, positions]


def take_column(frame: Frame, position: int) -> Column:
    """Returns the column at a position."""
    if _is_arrow(frame):
        return frame.column(position)
    return frame.iloc[:, position] if hasattr(frame, 'iloc') else frame[:, position]


def in_order_of(
    frame: Frame, columns: tuple[str, ...], argument: str
) -> tuple[Frame, tuple[str, ...]]:
    """Puts the columns of a frame into the order in which a model was trained on them.

    pandas names columns without names by the numbers from 0 on. If one side has such numbers and
    the other has names that are not numbers, columns are matched by position, as for arrays.

    Returns:
        the frame, and the names to remember: those of the training, if it had any.

    Raises:
        DataError: if a column is missing, unknown, or repeated.
    """
    names = column_names(frame)
    if names == columns:
        return frame, columns
    if len(names) == len(columns):
        if are_default_names(names) and not _are_numbers(columns):
            return frame, columns
        if are_default_names(columns) and not _are_numbers(names):
            return frame, names
    if sorted(names) == sorted(columns) and len(set(names)) == len(names):
        return take_columns(frame, [names.index(name) for name in columns]), columns
    missing = list((Counter(columns) - Counter(names)).elements())
    extra = list((Counter(names) - Counter(columns)).elements())
    unknown = [name for name in extra if name not in columns]
    repeated = sorted({name for name in extra if name in columns})
    parts = [
        f'{label} {", ".join(map(repr, found))}'
        for label, found in (
            ('no column', missing),
            ('the repeated column', repeated),
            ('the unknown', unknown),
        )
        if found
    ]
    got = ' and '.join(parts) or f'the columns {", ".join(names)}, some with the same name'
    close = did_you_mean(unknown[0], missing) if unknown else ''
    raise DataError(
        f'{argument}: got {got}, expected the columns the model was trained on: '
        f'{", ".join(columns)}.{close} Columns of a frame are matched by name: select and rename '
        'them, or pass frame.to_numpy() to match them by position.'
    )


def are_default_names(names: tuple[str, ...]) -> bool:
    """Returns True for the numbers from 0 on, by which pandas names columns without names."""
    return names == tuple(map(str, range(len(names))))


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in names)


def frame_values(frame: Frame, argument: str) -> np.ndarray:
    """Returns the numbers of a frame, ``[rows, columns]``; missing ones are NaN.

    Raises:
        DataError: if columns are not numeric. Names them.
    """
    dtypes = _dtypes(frame)
    others = [position for position, dtype in enumerate(dtypes) if not _is_numeric(dtype)]
    if others:
        shown = [_describe_column(frame, position) for position in others[:10]]
        more = ', ...' if len(others) > 10 else ''
        raise DataError(
            f'{argument}: got columns that are not numeric: {", ".join(shown)}{more}. Encode text, '
            "for instance with scikit-learn's OrdinalEncoder or OneHotEncoder; convert numbers "
            'among objects with .astype("float64"), and times to the days since a date; or drop '
            'these columns.'
        )
    if len(set(map(str, dtypes))) <= 1:
        array = np.asarray(frame)
        if array.dtype.kind != 'O':
            return array
    # Mixed columns (bool and float, or with missing values) would become objects: convert each one.
    columns = [_numbers(take_column(frame, position)) for position in range(len(dtypes))]
    return np.stack(columns, axis=1, dtype=np.result_type(*columns), casting='unsafe')


def _describe_column(frame: Frame, position: int) -> str:
    dtype, column = _dtypes(frame)[position], np.asarray(take_column(frame, position))
    is_objects = str(dtype) == 'object' and column.dtype.kind == 'O'
    content = f': {kinds_of(column)}' if is_objects else ''
    return f'{column_names(frame)[position]} ({dtype}{content})'


def _dtypes(frame: Frame) -> list[Any]:
    if _is_arrow(frame):
        return [field.type for field in frame.schema]
    return list(frame.dtypes if hasattr(frame, 'dtypes') else frame.schema.values())


def _is_numeric(dtype: Any) -> bool:
    if hasattr(dtype, 'is_numeric'):  # polars, narwhals
        return dtype.is_numeric() or str(dtype) == 'Boolean'
    if hasattr(dtype, 'kind'):
        return dtype.kind in 'biuf'
    return _ARROW_NUMBER.fullmatch(str(dtype)) is not None


def _numbers(column: Column) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype.kind != 'O':
        return array
    missing = column.isna() if hasattr(column, 'isna') else column.is_null()
    values = np.full(len(array), np.nan)
    present = ~np.asarray(missing, bool)
    values[present] = array[present].astype(np.float64)
    return values
