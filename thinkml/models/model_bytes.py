"""Model bytes: a model file as one value, for pickles and databases."""

import dataclasses
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Self

from thinkml.model_record import record_of
from thinkml.models.serialization import model_file
from thinkml.models.serialization.directories import atomic_directory
from thinkml.typing import Model


@dataclasses.dataclass(frozen=True)
class ModelBytes:
    """A model file as bytes, which a pickle can hold.

    Attributes:
        model_type: the class of the model. A pickle stores its name, so that reading the pickle
            imports its module; the model file itself imports nothing.
        data: the files of the model's directory, as a zip archive.
    """

    model_type: type
    data: bytes

    @classmethod
    def from_model(cls, model: Model) -> Self:
        """Returns the bytes of a model, with the optimizer's state if there is one.

        Raises:
            ModelFileError: for a part of the model that no file can hold. Names the part.
        """
        contents = model_file.contents_of(model, None, record_of(model).optimizer is not None)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / 'model'
            with atomic_directory(place, overwrite=False) as directory:
                model_file.write(directory, contents, place)
            return cls(type(model), _archive(place))

    def to_model(self) -> Model:
        """Returns the model, in eval mode, with its record and the optimizer's state.

        Raises:
            ModelFileError: if the bytes are damaged, or name a class that is missing.
        """
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            with model_file.reading(directory), zipfile.ZipFile(io.BytesIO(self.data)) as archive:
                archive.extractall(directory)
            has_optimizer = (directory / model_file.OPTIMIZER).is_dir()
            return model_file.read(directory, include_optimizer=has_optimizer)


def _archive(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for path in sorted(directory.rglob('*')):
            if path.is_file():
                archive.write(path, path.relative_to(directory))
    return buffer.getvalue()
