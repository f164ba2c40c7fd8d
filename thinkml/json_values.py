"""Conversion of values to those that JSON can hold."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def to_json_value(value: Any, convert: Callable[[Any], Any] | None = None) -> Any:
    """Returns a value with lists for arrays, text for keys, and None for NaN and infinity.

    Args:
        value: None, numbers, text, NumPy arrays and scalars, and lists, tuples and mappings of
            them.
        convert: a function for all other values. None keeps them, so that `json.dumps` refuses
            them.

    Example:
        >>> import numpy as np
        >>> from thinkml.json_values import to_json_value
        >>> to_json_value({1: (np.float32(0.5), np.nan), 'rows': np.arange(2)})
        {'1': [0.5, None], 'rows': [0, 1]}
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item, convert) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item, convert) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str) or convert is None:
        return value
    return convert(value)
