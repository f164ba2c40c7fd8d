"""Tokens: inputs and targets of a language model from a stream of token ids."""

import numpy as np
from numpy.typing import ArrayLike

from thinkml.errors import ConfigError, DataError, is_whole


def token_windows(
    tokens: ArrayLike, length: int, *, stride: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns windows of tokens, and for each token the one after it.

    Both are views, so a memory map stays on disk, and nothing is copied. Tokens at the end that
    fill no window are left out.

    Args:
        tokens: whole numbers, ``[tokens]``, such as ``np.memmap('train.bin', np.uint16)``.
        length: the number of tokens in a window.
        stride: the number of tokens from the start of a window to that of the next; None for
            ``length``, so that windows don't overlap.

    Returns:
        The inputs and the targets, ``[windows, length]``.

    Raises:
        DataError: for other arrays, and for fewer than ``length + 1`` tokens.
        ConfigError: for a ``length`` or ``stride`` below 1.

    Example:
        >>> import numpy as np
        >>> from thinkml.data import token_windows
        >>> X, y = token_windows(np.arange(8), length=3)
        >>> X.tolist(), y.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    stride = length if stride is None else stride
    for name, value in {'length': length, 'stride': stride}.items():
        if not is_whole(value) or value < 1:
            raise ConfigError(f'{name}: got {value!r}, expected a whole number of at least 1.')
    array = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens)
    if array.ndim != 1 or array.dtype.kind not in 'iu':
        raise DataError(
            f'tokens: got {array.dtype} of shape {array.shape}, expected whole numbers (tokens,). '
            'Concatenate the token ids of all texts.'
        )
    if len(array) <= length:
        raise DataError(
            f'tokens: got {len(array):,} of them for windows of {length:,}, expected at least '
            f'{length + 1:,}: a window and the token after it.'
        )
    windows = np.lib.stride_tricks.sliding_window_view(array, length, subok=True)
    return windows[:-1:stride], windows[1::stride]
