"""Reading of weight files from different libraries."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thinkml.errors import WeightsError
from thinkml.models.pretrained.torch_file import is_torch_file, read_torch_file
from thinkml.models.serialization.export import read_safetensors


def open_tensors(path: Path) -> Mapping[str, np.ndarray]:
    """Returns the tensors of a safetensors file or of a zip file from torch, by name.

    The kind of file is recognised by its content. Nothing in it is run.

    Raises:
        WeightsError: for a file that is damaged, or of another kind.
        OSError: if it can't be read.
        ImportError: if the package safetensors is needed and not installed.
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
        except Exception as error:  # the library's own type, or an OSError
            raise WeightsError(f'weights: {path} can not be read: {error}.') from error
    if start[:1] == b'\x80':
        raise WeightsError(
            f'weights: {path} has the format of torch before version 1.6, which can not be read. '
            'Convert it with torch: torch.save(torch.load(path, weights_only=True), path).'
        )
    raise WeightsError(
        f'weights: {path} is neither a safetensors file nor one that torch or Keras saved.'
    )
