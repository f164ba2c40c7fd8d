"""Shapes on which models, losses and metrics are tried before anything is compiled."""

import re
from collections.abc import Iterable

# A number of rows unlikely to be anything else: with 2, a loss that broadcasts rows against two
# outputs, or a layer that takes rows for features, would pass.
PROBE_ROWS = 13

_SHAPE = re.compile(r'[(\[]\s*\d+(?:\s*,\s*\d+)*,?\s*[)\]]')


def with_rows(text: object, rows: int = PROBE_ROWS, others: Iterable[int] = ()) -> str:
    """Returns a text in which shapes say ``rows`` for the number of rows that were tried.

    Users have never seen that number. Outside of shapes nothing is changed, but that sizes of
    whole arrays, which tell as little, are left out.

    Args:
        text: an error's message, or the shape of an array of rows.
        rows: how many were tried.
        others: sizes of other axes. Where ``rows`` is among them, only the first axis is rows, and
            in a message only that of two axes or more.

    Example:
        >>> from thinkml.core.objectives.probe_sizes import with_rows
        >>> with_rows('got (13, 2) and float32[2,13]'), with_rows((13, 13), others=(13,))
        ('got (rows, 2) and float32[2,rows]', '(rows, 13)')
    """
    number = rf'(?<!\d){rows}(?!\d)'
    if rows in set(others):
        number = rf'(?<=[(\[]){rows}(?!\d)' + ('' if isinstance(text, tuple) else r'(?=,\s*\d)')
    text = re.sub(r' \(size \d+\)', '', str(text))
    return _SHAPE.sub(lambda shape: re.sub(number, 'rows', shape[0]), text)
