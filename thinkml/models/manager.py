"""Saving models to directories and getting them back."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from thinkml import __version__
from thinkml.checkpoint import load_arrays, save_arrays
from thinkml.errors import ModelFileError
from thinkml.models.architecture import build, describe
from thinkml.models.files import (
    check_target,
    read_json,
    read_whole,
    verify,
    write_json,
    written_whole,
)
from thinkml.models.values import Json, decode, encode, plain
from thinkml.record import ModelRecord, Task, attach_record, record_of

FORMAT = 1
_MODEL, _RECORD, _METADATA, _WEIGHTS = 'model.json', 'record.json', 'metadata.json', 'weights'


class ModelManager:
    """Saves models and loads them, without pickle.

    A saved model is a directory: ``model.json`` describes the model's structure, ``weights`` holds
    its arrays, ``record.json`` what ThinkML knows of it (task and classes, training runs,
    settings), ``metadata.json`` what the user noted, ``manifest.json`` a hash of every file.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> from thinkml.models import ModelManager
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> manager = ModelManager()
        >>> path = manager.save_model(model, tempfile.mkdtemp() + '/v1', {'version': '1.0'})
        >>> loaded = manager.load_model(path)
        >>> bool((loaded.layers[0].kernel[...] == model.layers[0].kernel[...]).all())
        True
        >>> manager.load_metadata(path)
        {'version': '1.0'}
    """

    def save_model(
        self,
        model: Any,
        path: str | os.PathLike,
        metadata: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
    ) -> Path:
        """Writes a model into a new directory.

        The directory is written beside its place and moved there when it is complete. The model
        stays as it is.

        Args:
            model: a `flax.nnx.Module`, or what `from_linen` or `from_functions` returned. Its
                classes and functions must live in modules, not in the main program.
            path: the directory; its parents are made.
            metadata: what to note beside it. Numbers, text, dates, paths, NumPy and JAX arrays,
                dataclasses, and lists and dicts of them; kept as plain JSON values.
            overwrite: whether a model that is at ``path`` is replaced.

        Returns:
            The path.

        Raises:
            ModelTypeError: if ``model`` is not a model.
            ModelFileError: if the path is taken or can't be written, or a part of the model or of
                the metadata can't be. Names it. Nothing is written then.
        """
        target = Path(path).absolute()
        check_target(target, overwrite)
        try:
            structure, arrays = describe(model)
            record = _record_to_json(record_of(model))
            notes = _notes(metadata)
        except RecursionError as error:
            raise ModelFileError('model, metadata: one of them contains itself.') from error
        versions = {
            'thinkml': __version__,
            'jax': jax.__version__,
            'flax': flax.__version__,
            'numpy': np.__version__,
        }
        with written_whole(target, overwrite) as directory:
            about = {'format': FORMAT, 'versions': versions, 'model': structure}
            write_json(directory, _MODEL, about)
            write_json(directory, _RECORD, record)
            write_json(directory, _METADATA, notes)
            save_arrays(directory / _WEIGHTS, arrays)
        return Path(path)

    def load_model(self, path: str | os.PathLike, *, trusted: Sequence[str] = ()) -> Any:
        """Gives back a saved model, in eval mode, with what was known of it.

        Every file is checked against the manifest first, which finds damage, not forgery. A model
        file names classes and functions: module classes and functions of arrays of flax and jax,
        and those of your own modules, which must have been imported already. What an installed
        library brings must be trusted. The model's ``__init__`` is not called.

        Args:
            path: the directory.
            trusted: names of modules, with those inside them, that may be imported for this model
                and of which it may use everything.

        Returns:
            A model of the class that was saved.

        Raises:
            ModelFileError: if there is no model at ``path``, it is damaged or was written by a
                newer ThinkML, or it needs a class or function that is gone or not trusted. Names
                the file.
        """
        if isinstance(trusted, str):
            trusted = (trusted,)
        return read_whole(Path(path).absolute(), lambda directory: _load(directory, tuple(trusted)))

    def load_metadata(self, path: str | os.PathLike) -> dict[str, Any]:
        """Gives back the metadata a model was saved with, as plain values.

        Raises:
            ModelFileError: if there is no model at ``path``, or it is damaged.
        """
        return read_whole(Path(path).absolute(), _load_metadata)


def _load(directory: Path, trusted: tuple[str, ...]) -> Any:
    with _reading(directory):
        verify(directory)
        about, known = (read_json(directory, name) for name in (_MODEL, _RECORD))
    with _reading(directory, _MODEL):
        _check_format(about)
    with _reading(directory, _RECORD):
        record = ModelRecord.from_dict(decode(known))
    with _reading(directory, _WEIGHTS):
        arrays = load_arrays(directory / _WEIGHTS)
    with _reading(directory, _MODEL):
        model = build(about['model'], arrays, trusted)
    attach_record(model, record)
    return model


def _load_metadata(directory: Path) -> dict[str, Any]:
    with _reading(directory):
        verify(directory)
        notes = read_json(directory, _METADATA)
    with _reading(directory, _METADATA):
        return decode(notes)


@contextlib.contextmanager
def _reading(directory: Path, name: str = '') -> Iterator[None]:
    """Whatever goes wrong while a model is read, the named file is at fault, or says which is."""
    try:
        yield
    except Exception as error:
        problem = str(error) if isinstance(error, ModelFileError) else f'unreadable: {error!r}'
        file = f'{name}: ' if name else ''
        raise ModelFileError(f'path: {directory}: {file}{problem}.') from error


def _check_format(about: Mapping[str, Any]) -> None:
    if about['format'] != FORMAT:
        raise ModelFileError(
            f'format {about["format"]!r} was written by ThinkML {about["versions"]["thinkml"]}, '
            f'this is {__version__}, which reads format {FORMAT}. Install that version'
        )


def _notes(metadata: Any) -> Json:
    if not isinstance(metadata, Mapping | None):
        raise ModelFileError(f'metadata: got {type(metadata).__name__}, expected a dict.')
    path = ('metadata',)
    return encode(plain(dict(metadata or {}), path), path)


def _record_to_json(record: ModelRecord) -> Json:
    path = ('record',)
    values = record.to_dict()
    if record.task is not None:
        try:
            Task.from_dict(record.task.to_dict())
        except ValueError as error:
            raise ModelFileError(f'record.task: {error}.') from error
    for name in ('config', 'data_fingerprint'):  # to be read by people: objects as described
        values[name] = plain(values[name], path, special=lambda value, _: repr(value))
    return encode(values, path)
