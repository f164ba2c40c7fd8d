"""Features of a frozen base, computed once."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from thinkml.core import make_predict, num_outputs
from thinkml.data import Rows
from thinkml.models.transfer_model import PassThrough, TransferModel

_ROWS_AT_ONCE = 8192


@contextlib.contextmanager
def kept_features(max_bytes: int) -> Iterator['FeatureCache']:
    """Gives what computes features and keeps them, of which files are removed at the end."""
    with tempfile.TemporaryDirectory(prefix='thinkml-features-') as folder:
        yield FeatureCache(Path(folder), max_bytes)


class FeatureCache:
    """Features ``[rows, features]``, in memory up to a number of bytes, then in files.

    Attributes:
        free_bytes: how many more may be in memory.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self._folder = folder
        self.free_bytes = max_bytes

    def of(self, model: TransferModel, rows: Rows, name: str) -> np.ndarray:
        """Computes those of all rows, in evaluation mode; ``name`` is that of their file."""
        base = TransferModel(model.base, PassThrough(), model.mean, model.std)
        features = self._empty((len(rows), num_outputs(base, rows.spec)), name)
        predict = make_predict(base, rows, argument='X_train')
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(rows))
            features[start:stop] = predict(rows.part(start, stop))
        return features

    def _empty(self, shape: tuple[int, int], name: str) -> np.ndarray:
        num_bytes = 4 * shape[0] * shape[1]
        if num_bytes > self.free_bytes:
            path = self._folder / f'{name}.npy'
            return np.lib.format.open_memmap(path, 'w+', np.float32, shape)
        self.free_bytes -= num_bytes
        return np.empty(shape, np.float32)
