"""Saving models to directories and getting them back."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import flax
import jax
import numpy as np

from thinkml import __version__
from thinkml.checkpoint import load_arrays, save_arrays
from thinkml.errors import ModelFileError
from thinkml.models.architecture import build, describe
from thinkml.models.files import (
    check_target,
    find,
    read_json,
    verify,
    write_json,
    written_whole,
)
from thinkml.models.values import Json, decode, encode, plain
from thinkml.record import ModelRecord, Task, TaskKind, attach_record, record_of

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
        with written_whole(target) as directory:
            about = {'format': FORMAT, 'versions': versions, 'model': structure}
            write_json(directory, _MODEL, about)
            write_json(directory, _RECORD, record)
            write_json(directory, _METADATA, notes)
            save_arrays(directory / _WEIGHTS, arrays)
        return Path(path)

    def load_model(self, path: str | os.PathLike, *, trusted: Sequence[str] = ()) -> Any:
        """Gives back a saved model, in eval mode, with what was known of it.

        Every file is checked against the manifest first. A model file names classes and functions:
        those of flax, jax, optax and thinkml are imported as needed, those of other modules must
        have been imported already or be trusted. The model's ``__init__`` is not called.

        Args:
            path: the directory.
            trusted: names of modules that may be imported for this model, with those inside them.

        Returns:
            A model of the class that was saved.

        Raises:
            ModelFileError: if there is no model at ``path``, it is damaged or was written by a
                newer ThinkML, or it needs a class or function that is gone or not trusted. Names
                the file.
        """
        if isinstance(trusted, str):
            trusted = (trusted,)
        directory = find(Path(path).absolute())
        with _reading(directory, 'its files'):
            verify(directory)
        with _reading(directory, _MODEL):
            about = _read_format(directory)
        with _reading(directory, _RECORD):
            record = _record_from_json(read_json(directory, _RECORD))
        with _reading(directory, _WEIGHTS):
            arrays = load_arrays(directory / _WEIGHTS)
        with _reading(directory, _MODEL):
            model = build(about['model'], arrays, tuple(trusted))
        attach_record(model, record)
        return model

    def load_metadata(self, path: str | os.PathLike) -> dict[str, Any]:
        """Gives back the metadata a model was saved with, as plain values.

        Raises:
            ModelFileError: if there is no model at ``path``, or it is damaged.
        """
        directory = find(Path(path).absolute())
        with _reading(directory, _METADATA):
            verify(directory)
            return decode(read_json(directory, _METADATA))


@contextlib.contextmanager
def _reading(directory: Path, name: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read, the file is at fault."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModelFileError) and str(error).startswith('path: '):
            raise
        problem = str(error) if isinstance(error, ModelFileError) else f'unreadable: {error!r}'
        raise ModelFileError(f'path: {directory}: {name}: {problem}.') from error


def _read_format(directory: Path) -> dict[str, Any]:
    about = read_json(directory, _MODEL)
    if about['format'] != FORMAT:
        raise ModelFileError(
            f'format {about["format"]!r} was written by ThinkML {about["versions"]["thinkml"]}, '
            f'this is {__version__}, which reads format {FORMAT}. Install that version'
        )
    return about


def _notes(metadata: Any) -> Json:
    if not isinstance(metadata, Mapping | None):
        raise ModelFileError(f'metadata: got {type(metadata).__name__}, expected a dict.')
    path = ('metadata',)
    return encode(plain(dict(metadata or {}), path), path)


def _record_to_json(record: ModelRecord) -> Json:
    runs = [run.to_dict() if hasattr(run, 'to_dict') else run for run in record.runs]
    return {
        'task': None if record.task is None else _task_to_json(record.task),
        'input_shape': None if record.input_shape is None else _sizes(record.input_shape),
        'input_dtype': record.input_dtype,
        'runs': [_described(run) for run in runs],
        'config': _described(record.config),
        'data_fingerprint': _described(record.data_fingerprint),
    }


def _task_to_json(task: Task) -> Json:
    classes = None if task.classes is None else list(task.classes)
    return {
        'kind': task.kind,
        'classes': encode(classes, ('record.task.classes',)),
        'num_outputs': int(task.num_outputs),
        'target_shape': _sizes(task.target_shape),
    }


def _sizes(shape: Sequence[Any]) -> list[int]:
    return [int(size) for size in shape]


def _described(value: Any) -> Json:
    """What is kept to be read by people: objects by their description."""
    path = ('record',)
    return encode(plain(value, path, special=lambda value, _: repr(value)), path)


def _record_from_json(node: Json) -> ModelRecord:
    shape, task = node['input_shape'], node['task']
    record = ModelRecord(
        task=None if task is None else _task_from_json(task),
        input_shape=None if shape is None else tuple(map(_size, shape)),
        input_dtype=node['input_dtype'],
        runs=decode(node['runs']),
        config=decode(node['config']),
        data_fingerprint=decode(node['data_fingerprint']),
    )
    if not isinstance(record.runs, list) or not all(isinstance(run, dict) for run in record.runs):
        raise ValueError('its runs are not a list of histories')
    return record


def _task_from_json(node: Json) -> Task:
    if node['kind'] not in get_args(TaskKind):
        raise ValueError(f'{node["kind"]!r} is not a kind of task')
    classes = node['classes']
    return Task(
        kind=node['kind'],
        classes=None if classes is None else tuple(decode(classes)),
        num_outputs=_size(node['num_outputs']),
        target_shape=tuple(map(_size, node['target_shape'])),
    )


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f'{value!r} is not a size')
    return value
