"""Arrays of Python objects: the kinds of values, missing values, and conversion to numbers."""

import decimal
import numbers
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_AS_FLOAT = 'convert with .astype("float64")'
_CONVERT = {bool: 'convert with .astype(bool)', int: 'convert with .astype("int64")'}


def holds_text(objects: np.ndarray, which: Callable[[Iterable[bool]], bool]) -> bool:
    """Returns True if ``any`` or ``all`` of the objects, as passed, are text."""
    return which(isinstance(value, str) for value in objects.ravel().tolist())


def is_missing(value: Any) -> bool:
    """Returns True for None, NaN, NaT, and the missing values of pandas."""
    if value is None or type(value).__name__ in ('NAType', 'NaTType'):
        return True
    differs = value != value  # is an array if the value is one
    return isinstance(differs, bool | np.bool_) and bool(differs)


def kinds_of(objects: np.ndarray) -> str:
    """Describes the types of the objects, with the first row of each if there are several."""
    first: dict[type, int] = {}
    values = objects.ravel().tolist()
    for index, value in enumerate(values):
        first.setdefault(type(value), index)
    if len(first) == 1:
        return next(iter(first)).__name__
    return ', '.join(
        f'{kind.__name__} ({reprlib.repr(values[index])} at row {row_of(index, objects)})'
        for kind, index in first.items()
    )


def how_to_convert(objects: np.ndarray) -> str:
    """Describes how to convert the objects to numbers."""
    kinds = set(map(type, objects.ravel().tolist()))
    if any(issubclass(kind, str | bytes) for kind in kinds):
        return 'encode the text, or repair these rows'
    if not all(issubclass(kind, numbers.Real | decimal.Decimal) for kind in kinds):
        return 'encode them as numbers'
    return _CONVERT.get(next(iter(kinds)), _AS_FLOAT) if len(kinds) == 1 else _AS_FLOAT


def row_of(index: int, array: np.ndarray) -> int:
    """Returns the row of the value at ``index`` of the flattened array."""
    return index * len(array) // array.size
