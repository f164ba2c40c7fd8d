"""Frames of pandas and polars, told by what they can do: neither library is imported."""

from typing import Any

import numpy as np

from thinkml.data.object_arrays import kinds_of
from thinkml.errors import DataError, did_you_mean


def is_frame(values: Any) -> bool:
    """Whether it is a table with named columns."""
    # In this order: a frame of polars that is lazy warns where it is asked for its columns.
    return all(hasattr(values, name) for name in ('to_numpy', 'columns', 'dtypes'))


def column_names(frame: Any) -> tuple[str, ...] | None:
    """The names of the columns; None where they are not different texts, but numbers for instance.

    Columns without such names are told apart by their place alone.
    """
    names = tuple(frame.columns)
    is_named = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return tuple(map(str, names)) if is_named else None


def in_order_of(frame: Any, columns: tuple[str, ...], argument: str) -> Any:
    """The frame with the columns a model was trained on, in that order.

    Raises:
        DataError: if one is missing, or there is another one.
    """
    names = column_names(frame)
    if names is None or names == columns:
        return frame
    missing = [name for name in columns if name not in names]
    extra = [name for name in names if name not in columns]
    if missing or extra:
        got = f'no column {", ".join(map(repr, missing))}' if missing else 'all columns'
        also = f' and the unknown {", ".join(map(repr, extra))}' if extra else ''
        close = did_you_mean(extra[0], missing) if extra else ''
        raise DataError(
            f'{argument}: got {got}{also}, expected the columns the model was trained on: '
            f'{", ".join(columns)}.{close}'
        )
    return frame[list(columns)]


def frame_values(frame: Any, argument: str) -> np.ndarray:
    """The numbers of a frame, ``[rows, columns]``; missing ones are NaN.

    Raises:
        DataError: if a column holds no numbers. Names all of them.
    """
    kinds = list(frame.dtypes)
    others = [index for index, kind in enumerate(kinds) if not _is_numeric(kind)]
    if others:
        shown = [_described(frame, index) for index in others[:10]]
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
    columns = [_column(frame, index) for index in range(len(kinds))]
    return np.stack(columns, axis=1, dtype=np.result_type(*columns), casting='unsafe')


def _described(frame: Any, index: int) -> str:
    kind = list(frame.dtypes)[index]
    column = np.asarray(_series(frame, index))
    is_objects = str(kind) == 'object' and column.dtype.kind == 'O'
    held = f': {kinds_of(column)}' if is_objects else ''
    return f'{list(frame.columns)[index]} ({kind}{held})'


def _is_numeric(kind: Any) -> bool:
    if hasattr(kind, 'is_numeric'):  # polars
        return kind.is_numeric() or str(kind) == 'Boolean'
    return kind.kind in 'biuf'


def _series(frame: Any, index: int) -> Any:
    return frame.iloc[:, index] if hasattr(frame, 'iloc') else frame.to_series(index)


def _column(frame: Any, index: int) -> np.ndarray:
    column = _series(frame, index)
    array = np.asarray(column)
    if array.dtype.kind != 'O':
        return array
    missing = column.isna() if hasattr(column, 'isna') else column.is_null()
    values = np.full(len(array), np.nan)
    present = ~np.asarray(missing, bool)
    values[present] = array[present].astype(np.float64)
    return values
