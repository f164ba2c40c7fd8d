"""The content of a model's directory: written from a model, and read back.

- ``model.json``: the structure, versions, time and origin.
- ``weights``: the arrays. ``optimizer``: the optimizer's arrays, if they are included.
- ``forward.bin``: the exported forward pass, if the model's inputs are known.
- ``record.json``: task and classes, training runs, settings. ``metadata.json``: the user's
  metadata.
- ``manifest.json``: the size and the SHA-256 of each of these files.
"""

import contextlib
import dataclasses
import datetime
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.checkpoint import load_arrays, save_arrays
from thinkml.checkpoint.filesystem import read_bounded
from thinkml.core import functionalize
from thinkml.core.model.exported_forward import (
    ExportedModel,
    Forward,
    check_inputs,
    check_readable,
    export_forward,
)
from thinkml.core.model.forward import predict_outputs
from thinkml.core.objectives.heads import named_outputs
from thinkml.core.parallel.multiprocess import broadcast_result
from thinkml.errors import ModelFileError, ModelTypeError, NotStorableError, warn_user
from thinkml.model_record import ArraySpec, InputSpec, ModelRecord, attach_record, record_of
from thinkml.models.serialization.architecture import build, describe
from thinkml.models.serialization.directories import FORMAT, read_json, verify, write_json
from thinkml.models.serialization.import_allowlist import MissingNameError
from thinkml.models.serialization.json_values import Json, decode, encode, plain
from thinkml.models.serialization.source_hashes import changed_sources, source_hashes
from thinkml.models.serialization.weights import fill
from thinkml.tasks import task_from_dict
from thinkml.typing import Model, PyTree
from thinkml.versions import code_revision, library_versions

MODEL, RECORD, METADATA, FORWARD = 'model.json', 'record.json', 'metadata.json', 'forward.bin'
WEIGHTS, OPTIMIZER = 'weights', 'optimizer'
INDEX = f'{WEIGHTS}/index.json'
MAX_FORWARD_BYTES = 256 * 2**20
_MAX_DRAWN = 2**27  # random numbers, for the inputs of a comparison


@dataclasses.dataclass(frozen=True)
class Contents:
    """The content of a model's directory, checked before anything is written.

    Attributes:
        about: the content of ``model.json``, in which the parent's path is still absolute.
        record: the content of ``record.json``.
        notes: the content of ``metadata.json``.
        arrays: the arrays of the model, by name.
        forward: the exported forward pass; None if there is none.
        optimizer: the optimizer's arrays by name; None if they are not included.
    """

    about: Json
    record: Json
    notes: Json
    arrays: dict[str, Any]
    forward: bytes | None
    optimizer: dict[str, Any] | None


# --- writing ----------------------------------------------------------------------------------


def contents_of(
    model: Model, metadata: Mapping[str, Any] | None, include_optimizer: bool
) -> Contents:
    """Returns the content of a model's directory.

    Args:
        model: a model.
        metadata: the user's metadata.
        include_optimizer: True to include the optimizer's state.

    Raises:
        ModelTypeError: if it is not a model.
        ModelFileError: for a part of it that no file can hold. Names the part.
    """
    try:
        structure, arrays = describe(model)
        record = record_of(model)
        encoded_record, notes = _record_to_json(record), _notes(metadata)
    except RecursionError as error:
        raise NotStorableError(
            'model, metadata: one of them contains itself, or is nested hundreds of times.'
        ) from error
    if include_optimizer and record.optimizer is None:
        raise ModelFileError(
            'include_optimizer: this model has no optimizer state, expected a model that '
            'ModelTrainer trained in this process. Save without it.'
        )
    forward = _forward_of(model, record)
    about = {
        'format': FORMAT,
        'versions': library_versions(),
        'created': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'model': structure,
        'sources': source_hashes(structure),
        'trainable': _trainable(model, arrays),
        'forward': None if forward is None else _arguments(forward, arrays),
        'parent': record.origin,
        'code': code_revision(),
    }
    optimizer = record.optimizer if include_optimizer else None
    return Contents(
        about=about,
        record=encoded_record,
        notes=notes,
        arrays=arrays,
        forward=None if forward is None else forward.program,
        optimizer=optimizer,
    )


def write(directory: Path, contents: Contents, target: Path) -> None:
    """Writes the content into an empty directory, which is then moved to ``target``.

    In a run of several processes, each process calls this.
    """
    about = contents.about | {'parent': _relative_parent(target, contents.about['parent'])}

    def write_small_files() -> None:
        write_json(directory, MODEL, about)
        write_json(directory, RECORD, contents.record)
        write_json(directory, METADATA, contents.notes)
        if contents.forward is not None:
            (directory / FORWARD).write_bytes(contents.forward)

    broadcast_result(write_small_files, ModelFileError)
    save_arrays(directory / WEIGHTS, contents.arrays)
    if contents.optimizer is not None:
        save_arrays(directory / OPTIMIZER, contents.optimizer)


def _forward_of(model: Model, record: ModelRecord) -> Forward | None:
    if isinstance(model, ExportedModel):
        return model.forward
    if record.input_spec is None:
        return None
    try:
        forward = export_forward(model, _batch_like(record.input_spec))
    except ModelTypeError as error:
        problem = str(error)
    else:
        if len(forward.program) <= MAX_FORWARD_BYTES:
            return forward
        problem = (
            f'it has {len(forward.program):,} bytes, at most {MAX_FORWARD_BYTES:,} can be read'
        )
    warn_user(
        'model: its forward pass was not exported, so the file can be loaded only if its '
        f'classes are available. {problem}'
    )
    return None


def _trainable(model: Model, arrays: Mapping[str, Any]) -> Json:
    """Returns the names of the trainable arrays; None if they are unknown."""
    if isinstance(model, ExportedModel):
        return None
    params = functionalize(model, None, jax.random.key(0)).params
    names = {id(array): name for name, array in arrays.items()}
    return sorted(names[id(leaf)] for leaf in jax.tree.leaves(params) if id(leaf) in names)


def _batch_like(spec: InputSpec) -> PyTree:
    """Returns the shapes and dtypes of a batch of such inputs."""
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((1, *array.shape), jnp.dtype(array.dtype)),
        spec.arrays,
        is_leaf=lambda part: isinstance(part, ArraySpec),
    )


def _arguments(forward: Forward, arrays: Mapping[str, Any]) -> Json:
    names = {id(array): name for name, array in arrays.items()}
    return {'arrays': [names[id(array)] for array in forward.arrays], 'rows': forward.rows}


def _relative_parent(target: Path, origin: Mapping[str, str] | None) -> Json:
    """Returns the parent with its path relative to ``target``; None if ``target`` replaces it."""
    if origin is None or origin['path'] == str(target):
        return None
    path = Path(os.path.relpath(origin['path'], target)).as_posix()
    return {'path': path, 'sha256': origin['sha256']}


def _notes(metadata: Mapping[str, Any] | None) -> Json:
    if not isinstance(metadata, Mapping | None):
        raise NotStorableError(f'metadata: got {type(metadata).__name__}, expected a dict.')
    path = ('metadata',)
    return encode(plain(dict(metadata or {}), path), path)


def _record_to_json(record: ModelRecord) -> Json:
    path = ('record',)
    values = record.to_dict()
    if record.task is not None:
        try:
            task_from_dict(record.task.to_dict())
        except ValueError as error:
            raise ModelFileError(f'record.task: {error}.') from error
    for name in ('config', 'data_fingerprint'):  # people read these, so objects become their repr
        values[name] = plain(values[name], path, special=lambda value, _: repr(value))
    return encode(values, path)


# --- reading ----------------------------------------------------------------------------------


def read(
    directory: Path,
    trusted: Sequence[str] = (),
    into: Model | None = None,
    include_optimizer: bool = False,
) -> Model:
    """Reads a model, or fills the model ``into``.

    Raises:
        ModelFileError: if it is damaged, or names something that is not allowed. Names path and
            file.
    """
    with reading(directory):
        verify(directory)
        about, encoded_record = (read_json(directory, name) for name in (MODEL, RECORD))
    with reading(directory, MODEL):
        _check_format(about)
    with reading(directory, RECORD):
        record = ModelRecord.from_dict(decode(encoded_record))
    arrays = _read_arrays(directory)
    if include_optimizer:
        record.optimizer, record.continues = _read_optimizer(directory), True
    if into is not None:
        fill(into, arrays, str(directory))
        model = into
    else:
        model = _read_model(directory, about, record, arrays, trusted)
    attach_record(model, record)
    return model


def read_metadata(directory: Path) -> dict[str, Any]:
    """Returns the user's metadata."""
    with reading(directory):
        verify(directory, only=(METADATA,))
        notes = read_json(directory, METADATA)
    with reading(directory, METADATA):
        return decode_notes(notes)


def decode_notes(node: Json) -> dict[str, Any]:
    """Returns the user's metadata from the content of ``metadata.json``.

    Raises:
        Exception: of any type, if the content was not written by ThinkML.
    """
    notes = decode(node)
    if type(notes) is not dict:
        raise ModelFileError(f'got a {type(notes).__name__}, expected a dict')
    return notes


@contextlib.contextmanager
def reading(directory: Path, name: str = '') -> Iterator[None]:
    """Turns any exception into a `ModelFileError` that names the directory and the file."""
    try:
        yield
    except Exception as error:
        problem = str(error) if isinstance(error, ModelFileError) else f'unreadable: {error!r}'
        file = f'{name}: ' if name else ''
        raise ModelFileError(f'path: {directory}: {file}{problem.rstrip(".")}.') from error


def _check_format(about: Mapping[str, Any]) -> None:
    if about['format'] not in (1, FORMAT):
        raise ModelFileError(
            f'format {about["format"]!r} was written by ThinkML {about["versions"]["thinkml"]}, '
            f'this one reads formats up to {FORMAT}. Install that version'
        )


def _read_optimizer(directory: Path) -> dict[str, Any]:
    if not (directory / OPTIMIZER).is_dir():
        raise ModelFileError(
            f'include_optimizer: {directory} holds no optimizer. Save it with '
            'save_model(..., include_optimizer=True), or load the model without.'
        )
    with reading(directory, OPTIMIZER):
        return load_arrays(directory / OPTIMIZER)


def _read_model(
    directory: Path,
    about: Mapping[str, Any],
    record: ModelRecord,
    arrays: Mapping[str, Any],
    trusted: Sequence[str],
) -> Model:
    """Returns the model, or its exported forward pass if its classes are missing or changed."""
    with reading(directory, MODEL):
        is_exported = about['model']['kind'] == 'exported'
        changed = changed_sources(about.get('sources', {}))
    if is_exported:
        stand_in = _stand_in(directory, about, record, arrays)
        if stand_in is None:
            raise ModelFileError(f'path: {directory}: {MODEL}: it names no forward pass.')
        return stand_in
    try:
        with reading(directory, MODEL):
            model = build(about['model'], arrays, trusted)
    except ModelFileError as error:
        cause = error.__cause__
        is_gone = isinstance(cause, MissingNameError)
        stand_in = _stand_in(directory, about, record, arrays) if is_gone or changed else None
        if stand_in is None:
            raise
        why = str(cause) if is_gone else f'{_listed(changed)} changed since it was saved: {cause!r}'
        return _warned_stand_in(stand_in, directory, why)
    if not changed:
        return model
    if about.get('forward') is None:
        warn_user(
            f'path: {directory}: {_listed(changed)} changed since the model was saved. It may '
            'compute something else now: without its forward pass this can not be checked.'
        )
        return model
    stand_in = _stand_in(directory, about, record, arrays)
    spec = record.input_spec
    if stand_in is None or spec is None or _agree(model, stand_in, spec, directory):
        return model
    return _warned_stand_in(
        stand_in,
        directory,
        f'{_listed(changed)} changed since it was saved, and computes something else',
    )


def read_arrays(directory: Path) -> dict[str, Any]:
    """Returns the arrays of a model by name."""
    with reading(directory):
        verify(directory)
    return _read_arrays(directory)


def _read_arrays(directory: Path) -> dict[str, Any]:
    with reading(directory, WEIGHTS):
        return load_arrays(directory / WEIGHTS)


def read_forward(directory: Path) -> Forward:
    """Returns the exported forward pass, with its arrays."""
    arrays = read_arrays(directory)
    with reading(directory):
        about = read_json(directory, MODEL)
    stand_in = _read_forward(directory, about, arrays)
    if stand_in is None:
        raise ModelFileError(
            f'path: {directory} has no exported forward pass. Save the model after its training to '
            'include it.'
        )
    return stand_in.forward


def _read_forward(
    directory: Path, about: Mapping[str, Any], arrays: Mapping[str, Any]
) -> ExportedModel | None:
    with reading(directory, MODEL):
        arguments = about.get('forward')
    if arguments is None:
        return None
    with reading(directory, FORWARD):
        program = read_bounded(directory / FORWARD, MAX_FORWARD_BYTES)
        names, rows = arguments['arrays'], arguments['rows']
        check_readable(program)
        if not (rows is None or (type(rows) is int and 0 < rows <= 2**20)):
            raise ModelFileError(f'{rows!r} is not a number of rows')
        return ExportedModel(
            Forward(program, [arrays[name] for name in names], rows), names, arrays
        )


def _stand_in(
    directory: Path, about: Mapping[str, Any], record: ModelRecord, arrays: Mapping[str, Any]
) -> ExportedModel | None:
    """Returns the exported forward pass, if any, checked against the inputs in the record."""
    stand_in = _read_forward(directory, about, arrays)
    if stand_in is not None and record.input_spec is not None:
        with reading(directory, FORWARD):
            check_inputs(stand_in, _batch_like(record.input_spec))
    return stand_in


def _warned_stand_in(stand_in: ExportedModel, directory: Path, why: str) -> ExportedModel:
    warn_user(
        f'path: {directory}: {why.rstrip(".")}. Its exported forward pass stands in: it predicts '
        'and can be evaluated, but can not be trained, and has no layers to inspect. To get the '
        'model itself, restore its code, or fill another model: load_model(path, into=model).'
    )
    return stand_in


def _agree(model: Model, stand_in: ExportedModel, spec: InputSpec, directory: Path) -> bool:
    """Returns True if both give the same outputs for random inputs; False for very large inputs."""
    rows = jax.tree.leaves(_batch_like(spec))
    if sum(4 * math.prod(row.shape) for row in rows) > _MAX_DRAWN:
        return False
    rng = np.random.default_rng(0)

    def draw(array: jax.ShapeDtypeStruct) -> np.ndarray:
        shape = (4, *array.shape[1:])
        if jnp.issubdtype(array.dtype, jnp.inexact):
            return rng.normal(size=shape).astype(array.dtype)
        return rng.integers(0, 2, shape).astype(array.dtype)

    inputs = jax.tree.map(draw, _batch_like(spec))
    try:
        found = predict_outputs(model, inputs)
    except Exception:  # the changed code may raise anything
        return False
    with reading(directory, FORWARD):
        expected = predict_outputs(stand_in, inputs)
    if hasattr(found, '_fields'):  # the program returns a dict in place of a NamedTuple
        found = named_outputs(found)
    leaves, others = jax.tree.leaves(found), jax.tree.leaves(expected)
    return jax.tree.structure(found) == jax.tree.structure(expected) and all(
        leaf.shape == other.shape and np.allclose(leaf, other, rtol=1e-3, atol=1e-5, equal_nan=True)
        for leaf, other in zip(leaves, others, strict=True)
    )


def _listed(names: Sequence[str]) -> str:
    return ', '.join(names[:3])
