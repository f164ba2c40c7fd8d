"""Inspection: the contents of a model's directory, without reading its weights."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from thinkml.model_record import InputSpec, ModelRecord
from thinkml.models.serialization.directories import read_json, verify
from thinkml.models.serialization.json_values import Json, decode, dtype_named
from thinkml.models.serialization.model_file import (
    INDEX,
    METADATA,
    MODEL,
    OPTIMIZER,
    RECORD,
    decode_notes,
    reading,
)
from thinkml.tasks import AnyTask

_FILES = (MODEL, RECORD, METADATA, INDEX)
_MAX_LINES = 60
_MAX_SIZE = 2**63


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of a model.

    Attributes:
        name: its path in the model.
        kind: the class of its variable (``'Param'``, ``'BatchStat'``), Linen's collection, or the
            kind of model that holds it.
        shape: the length of each axis.
        dtype: the name of its dtype.
        trainable: True if training takes gradients for it; None if this is unknown.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool | None

    @property
    def size(self) -> int:
        """Returns the number of its elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Returns the number of bytes it takes in memory."""
        return self.size * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection:
    """The contents of a model's directory, except the weights. ``print`` shows them as a table.

    Attributes:
        path: the directory.
        model: the class, or the kind of model.
        parameters: the model's arrays.
        task: the meaning of the outputs; None if the model was not trained.
        inputs: the shapes and dtypes of the inputs; None if the model was not trained.
        record: everything in ThinkML's record: training runs, settings, the data's fingerprint.
        metadata: the user's metadata.
        created: the time of the save, in UTC; None in the first format.
        versions: the versions of the libraries it was saved with.
        parent: the relative path and the hash of the model it was made from; None if there is none.
        code: the Git commit of the code that saved it; None outside of Git.
        forward_arrays: the names of the arrays that the exported forward pass takes, in order; None
            without a forward pass.
        has_optimizer: True if training can be resumed with the optimizer's state.
        num_bytes: the size of all files.
        format: the version of the file format.
    """

    path: Path
    model: str
    parameters: tuple[Parameter, ...]
    task: AnyTask | None
    inputs: InputSpec | None
    record: ModelRecord
    metadata: dict[str, Any]
    created: str | None
    versions: dict[str, str]
    parent: dict[str, str] | None
    code: str | None
    forward_arrays: tuple[str, ...] | None
    has_optimizer: bool
    num_bytes: int
    format: int

    @property
    def num_parameters(self) -> int:
        """Returns the number of trainable parameters, or of all if this is unknown."""
        return sum(p.size for p in self.parameters if p.trainable is not False)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [f'{name + ":":<13} {value}' for name, value in self._facts().items()]
        rows = [('array', 'kind', 'shape', 'dtype', 'size')]
        rows += [
            (p.name, p.kind, ' x '.join(map(str, p.shape)) or '-', p.dtype, f'{p.size:,}')
            for p in self.parameters[:_MAX_LINES]
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append('')
        for *texts, size in rows:
            lines.append('  '.join([*map(str.ljust, texts, widths), size.rjust(widths[-1])]))
        if len(self.parameters) > _MAX_LINES:
            lines.append(f'... and {len(self.parameters) - _MAX_LINES} more')
        return '\n'.join(lines)

    def _facts(self) -> dict[str, Any]:
        arrays = sum(p.num_bytes for p in self.parameters)
        found: dict[str, Any] = {
            'path': self.path,
            'model': self.model,
            'task': self.task or 'not known',
            'inputs': self.inputs or 'not known',
            'training': str(self.record.runs[-1]) if self.record.runs else None,
            'parameters': f'{self.num_parameters:,}, all arrays {arrays:,} bytes',
            'size': f'{self.num_bytes:,} bytes',
            'saved': self.created or 'not known',
            'versions': ', '.join(f'{name} {v}' for name, v in self.versions.items()),
            'parent': None if self.parent is None else self.parent['path'],
            'code': self.code,
            'without code': 'can not be used' if self.forward_arrays is None else 'predicts',
            'optimizer': 'included' if self.has_optimizer else None,
        }
        found |= {f'  {name}': value for name, value in self.metadata.items()}
        return {name: value for name, value in found.items() if value is not None}


def inspect_file(directory: Path) -> Inspection:
    """Reads a model's directory, except the weights, whose hashes are not checked.

    Raises:
        ModelFileError: if it is damaged.
    """
    with reading(directory):
        verify(directory, only=_FILES)
        about, saved_record, notes, index = (read_json(directory, name) for name in _FILES)
    with reading(directory, RECORD):
        record = ModelRecord.from_dict(decode(saved_record))
    with reading(directory, METADATA):
        metadata = decode_notes(notes)
    with reading(directory, INDEX):
        parameters = tuple(_parameters(index, about))
    with reading(directory, MODEL):
        return Inspection(
            path=directory,
            model=_class_of(about['model']),
            parameters=parameters,
            task=record.task,
            inputs=record.input_spec,
            record=record,
            metadata=metadata,
            created=about.get('created'),
            versions=dict(about['versions']),
            parent=_parent(about),
            code=about.get('code'),
            forward_arrays=_forward_arrays(about),
            has_optimizer=(directory / OPTIMIZER).is_dir(),
            num_bytes=sum(path.stat().st_size for path in directory.rglob('*') if path.is_file()),
            format=about['format'],
        )


def _parameters(index: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Parameter]:
    structure = about['model']
    kinds, model_kind = dict(_kinds(structure)), structure['kind']
    trained = about.get('trainable')
    for name, entry in index.items():
        kind = kinds.get(name) or (name.split('/')[0] if model_kind == 'linen' else model_kind)
        is_trained = (
            kind in ('Param', 'params', 'functions') if trained is None else name in trained
        )
        trainable = None if model_kind == 'exported' else is_trained
        yield _parameter(name, kind, trainable, entry)


def _parameter(name: str, kind: str, trainable: bool | None, entry: Mapping[str, Any]) -> Parameter:
    shape = tuple(entry['shape'])
    if not all(type(size) is int and 0 <= size < _MAX_SIZE for size in (*shape, math.prod(shape))):
        raise ValueError(f'{name!r} has an impossible shape')
    dtype = dtype_named(entry['dtype']).name
    return Parameter(name=name, kind=kind, shape=shape, dtype=dtype, trainable=trainable)


def _parent(about: Mapping[str, Any]) -> dict[str, str] | None:
    parent = about.get('parent')
    if parent is None or (type(parent) is dict and type(parent['path']) is str):
        return parent
    raise ValueError(f'{parent!r} does not describe a parent')


def _forward_arrays(about: Mapping[str, Any]) -> tuple[str, ...] | None:
    forward = about.get('forward')
    return None if forward is None else tuple(map(str, forward['arrays']))


def _class_of(structure: Mapping[str, Any]) -> str:
    match structure['kind']:
        case 'nnx':
            return structure['graph']['module']
        case 'linen':
            return structure['module']['$linen'][0]
        case 'functions':
            return str(next(iter(structure['apply'].values())))
    return str(structure['kind'])


def _kinds(node: Json) -> Iterator[tuple[str, str]]:
    """Yields the name of each array in a variable, with the class of the variable."""
    if isinstance(node, list):
        for item in node:
            yield from _kinds(item)
    elif isinstance(node, dict):
        value = node.get('value')
        if 'variable' in node and isinstance(value, dict) and '$array' in value:
            yield value['$array'], node['variable'].partition(':')[2]
        for item in node.values():
            yield from _kinds(item)
