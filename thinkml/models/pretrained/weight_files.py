"""Tensors of a file of pretrained weights, whatever library wrote it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thinkml.errors import WeightsError
from thinkml.models.pretrained.torch_file import is_torch_file, read_torch_file
from thinkml.models.serialization.export import read_safetensors


def open_tensors(path: Path) -> Mapping[str, np.ndarray]:
    """Returns the tensors of a safetensors file or of a zip file of torch, by name.

    What kind of file it is, is told by its content. Nothing in it is run.

    Raises:
        WeightsError: for a file that is damaged, or of another kind.
        OSError: if it can't be read.
        ImportError: without the package safetensors, where it is needed.
    """
    with open(path, 'rb') as file:
        start = file.read(16)
    if start[:4] == b'PK\x03\x04' and is_torch_file(path):
        return read_torch_file(path)
    if start[8:9] == b'{':
        try:
            return read_safetensors(path)
        except ImportError:
            raise
        except Exception as error:  # the library's own type, and those of the file system
            raise WeightsError(f'weights: {path} can not be read: {error}.') from error
    if start[:1] == b'\x80':
        raise WeightsError(
            f'weights: {path} is of the format that torch wrote before version 1.6, which is not '
            'read. Convert it with torch: torch.save(torch.load(path, weights_only=True), path).'
        )
    raise WeightsError(
        f'weights: {path} is neither a safetensors file nor one that torch or Keras saved.'
    )
