"""Reading of weight files from Keras: ``.weights.h5``, ``.h5`` and ``.keras``."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from thinkml.errors import WeightsError

_WEIGHTS = 'model.weights.h5'
_MAX_RATIO = 20  # of the size in memory to that in the file; Keras itself does not compress

# The names of arrays in the old format, in the order of the new format, which numbers them.
_OLD_NAMES = ('kernel', 'gamma', 'bias', 'beta', 'moving_mean', 'moving_variance')

Layers = list[tuple[str, list[np.ndarray]]]


def is_keras_file(path: Path) -> bool:
    """Returns True for an HDF5 file, or a zip file that contains one with Keras's name."""
    with open(path, 'rb') as file:
        if file.read(8) == b'\x89HDF\r\n\x1a\n':
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_keras_file(path: Path) -> Layers:
    """Returns the layers that have arrays, as pairs of a name and arrays in saved order.

    Raises:
        WeightsError: if the file is damaged.
        ImportError: without the package h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('h5py is not installed. Install it with pip install h5py.') from error
    try:
        with h5py.File(_content(path), 'r') as file:
            found: dict[str, dict[str, np.ndarray]] = {}

            def visit(name: str, item: Any) -> None:
                # The optimizer's groups contain arrays too.
                if isinstance(item, h5py.Dataset) and not name.startswith('optimizer'):
                    _check_stored(name, item)
                    layer, last = re.sub(r'/vars/', '/', f'/{name}').rsplit('/', 1)
                    found.setdefault(layer[1:], {})[last.partition(':')[0]] = np.asarray(item)

            file.visititems(visit)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(f'weights: {path} can not be read as a Keras file: {error}.') from error
    layers = [
        (name, [arrays[last] for last in sorted(arrays, key=_position)])
        for name, arrays in found.items()
    ]
    return sorted(layers, key=lambda layer: _natural_key(layer[0]))


def _position(name: str) -> tuple[int, list[tuple[bool, int | str]]]:
    position = _OLD_NAMES.index(name) if name in _OLD_NAMES else len(_OLD_NAMES)
    return position, _natural_key(name)


def _check_stored(name: str, dataset: Any) -> None:
    """Raises a `ValueError` for an array that is in another file or far larger than its data."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f'{name} is in another file')
    if (
        dataset.dtype.kind not in 'fiub'
        or dataset.nbytes > _MAX_RATIO * dataset.id.get_storage_size()
    ):
        raise ValueError(f'{name} is {dataset.dtype} of shape {dataset.shape}')


def _content(path: Path) -> Path | io.BytesIO:
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(_WEIGHTS)
        if entry.file_size > _MAX_RATIO * entry.compress_size:
            raise ValueError(f'{_WEIGHTS} in it has {entry.file_size} bytes')
        return io.BytesIO(archive.read(entry))


def _natural_key(name: str) -> list[tuple[bool, int | str]]:
    """Returns a key that sorts ``conv2d_10`` after ``conv2d_9``, and ``conv2d`` before both."""
    parts = re.split(r'(\d+)', name)
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in parts]
