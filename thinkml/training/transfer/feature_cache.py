"""FeatureCache: features of a frozen base, computed once."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from thinkml.core import make_predict, num_outputs
from thinkml.data import Rows
from thinkml.models.transfer_model import PassThrough, TransferModel

_ROWS_PER_BLOCK = 8192


@contextlib.contextmanager
def open_feature_cache(max_bytes: int) -> Iterator['FeatureCache']:
    """Yields a feature cache; its files are removed on exit."""
    with tempfile.TemporaryDirectory(prefix='thinkml-features-') as folder:
        yield FeatureCache(Path(folder), max_bytes)


class FeatureCache:
    """A cache of features ``[rows, features]``, in memory up to a number of bytes, then in files.

    Attributes:
        free_bytes: the number of bytes that are still free in memory.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self._folder = folder
        self.free_bytes = max_bytes

    def compute(self, model: TransferModel, rows: Rows, name: str) -> np.ndarray:
        """Computes the features of all rows in evaluation mode; ``name`` is the file's name."""
        base = TransferModel(model.base, PassThrough(), model.mean, model.std)
        features = self._allocate((len(rows), num_outputs(base, rows.spec)), name)
        predict = make_predict(base, rows, argument='X_train')
        for start in range(0, len(rows), _ROWS_PER_BLOCK):
            stop = min(start + _ROWS_PER_BLOCK, len(rows))
            features[start:stop] = predict(rows.part(start, stop))
        return features

    def _allocate(self, shape: tuple[int, int], name: str) -> np.ndarray:
        num_bytes = 4 * shape[0] * shape[1]
        if num_bytes > self.free_bytes:
            path = self._folder / f'{name}.npy'
            return np.lib.format.open_memmap(path, 'w+', np.float32, shape)
        self.free_bytes -= num_bytes
        return np.empty(shape, np.float32)
