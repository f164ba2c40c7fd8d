"""Probe sizes: the shapes on which models, losses and metrics are traced before compilation."""

import re
from collections.abc import Iterable

# A number of rows that is unlikely to be the size of another axis. With 2, a loss that broadcasts
# rows against two outputs, or a layer that takes rows as features, would pass the check.
PROBE_ROWS = 13

_SHAPE = re.compile(r'[(\[]\s*\d+(?:\s*,\s*\d+)*,?\s*[)\]]')


def with_rows(text: object, rows: int = PROBE_ROWS, others: Iterable[int] = ()) -> str:
    """Returns a text whose shapes have the word ``rows`` in place of the number of probe rows.

    Users do not know that number. Outside of shapes, only the sizes of arrays, such as
    ``(size 26)``, are removed.

    Args:
        text: an error's message, or the shape of an array of rows.
        rows: the number of probe rows.
        others: the sizes of other axes. If ``rows`` is one of them, only the first axis is
            replaced, and in a message only that of shapes with two axes or more.

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
