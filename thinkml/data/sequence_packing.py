"""Sequence packing: several short sequences in each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from thinkml.data.sequences import as_row
from thinkml.errors import DataError


def pack_sequences(sequences: Sequence[Any], length: int, *, pad: int = 0) -> dict[str, np.ndarray]:
    """Packs short sequences of token ids into rows of one length, whole and in order.

    Each sequence goes into the first row that has space for it. Longer ones are cut into pieces.

    Args:
        sequences: token ids, ``[tokens]`` each.
        length: the number of tokens in a row.
        pad: the id of unused positions.

    Returns:
        ``tokens``, ``segments`` (the number of the sequence within its row, from 1; 0 for unused
        positions) and ``positions`` (the position within the sequence), each ``[rows, length]``.

    Raises:
        DataError: for sequences that are not whole numbers.

    Example:
        >>> from thinkml.data import pack_sequences
        >>> packed = pack_sequences([[5, 6, 7], [8, 9], [4]], length=4)
        >>> packed['tokens'].tolist(), packed['segments'].tolist()
        ([[5, 6, 7, 4], [8, 9, 0, 0]], [[1, 1, 1, 2], [1, 1, 0, 0]])
    """
    pieces = []
    for index, sequence in enumerate(sequences):
        row = as_row(sequence, f'sequences, row {index}')
        if row.ndim != 1 or row.dtype.kind not in 'iu':
            raise DataError(
                f'sequences, row {index}: got {row.dtype} of shape {row.shape}, expected whole '
                'numbers (tokens,).'
            )
        pieces += [row[first : first + length] for first in range(0, len(row), length)]
    rows: list[list[np.ndarray]] = []
    free: list[int] = []
    first_open = 0
    for piece in pieces:
        while first_open < len(free) and not free[first_open]:
            first_open += 1
        fitting = (i for i in range(first_open, len(free)) if free[i] >= len(piece))
        at = next(fitting, None)
        if at is None:
            at = len(rows)
            rows.append([])
            free.append(length)
        rows[at].append(piece)
        free[at] -= len(piece)
    packed = {name: np.zeros((len(rows), length), np.int32) for name in ('segments', 'positions')}
    tokens = np.full((len(rows), length), pad, np.int64)
    for index, parts in enumerate(rows):
        start = 0
        for number, part in enumerate(parts, 1):
            span = slice(start, start + len(part))
            tokens[index, span] = part
            packed['segments'][index, span] = number
            packed['positions'][index, span] = np.arange(len(part))
            start += len(part)
    return {'tokens': tokens, **packed}
