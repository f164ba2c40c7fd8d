"""Model records: the task, inputs and training runs of a model.

Records are kept in a table outside the models, keyed weakly by the object: a custom class needs no
extra field, and a record is removed with its model. The object also refers to its record, so copies
of a model keep it.
"""

import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from flax.typing import HashableMapping

from thinkml.errors import ModelTypeError
from thinkml.history import History
from thinkml.tasks import AnyTask, sizes_of, task_from_dict
from thinkml.typing import Model, PyTree


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """A description of one array of a model's inputs.

    Attributes:
        shape: the shape of one example, without the axis of rows.
        dtype: the name of the dtype that the model receives, such as ``'float32'``.
        columns: the names of the columns (the last axis) if the inputs were a frame, else None.
        range: approximately the least and the largest value in the training data, for arrays whose
            rows have axes and whose columns have no names; None if unknown. It is not compared:
            two descriptions that differ only in the range are equal.

    Example:
        >>> print(ArraySpec((2,), 'float32', ('age', 'income')))
        2 float32 (age, income)
    """

    shape: tuple[int, ...]
    dtype: str
    columns: tuple[str, ...] | None = None
    range: tuple[float, float] | None = dataclasses.field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns all attributes by name, as plain values. An unknown range is left out."""
        columns = None if self.columns is None else list(self.columns)
        shape = [int(size) for size in self.shape]
        values = {'shape': shape, 'dtype': self.dtype, 'columns': columns}
        return values if self.range is None else values | {'range': list(self.range)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the description that `to_dict` was called on.

        Raises:
            ValueError: for values that describe no array.
        """
        shape, dtype, columns = sizes_of(values['shape']), values['dtype'], values['columns']
        if not isinstance(dtype, str) or not _is_numeric_name(dtype):
            raise ValueError(f'{dtype!r} is not a numeric dtype')
        span = _range(values.get('range'))
        if columns is None:
            return cls(shape=shape, dtype=dtype, range=span)
        names = type(columns) is list and all(type(name) is str for name in columns)
        if not names or shape[-1:] != (len(columns),):
            raise ValueError(f'{columns!r} are not the names of {shape} columns')
        return cls(shape=shape, dtype=dtype, columns=tuple(columns), range=span)

    def __str__(self) -> str:
        sizes = ' x '.join(map(str, self.shape))
        numbers = f'{sizes} {self.dtype}' if sizes else self.dtype
        # Columns whose names are their indices have no names worth showing.
        if self.columns is None or self.columns == tuple(map(str, range(len(self.columns)))):
            return numbers
        names = self.columns if len(self.columns) <= 10 else (*self.columns[:4], '...')
        return f'{numbers} ({", ".join(names)})'


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """The column names of an array with any shape and dtype.

    Attributes:
        columns: the names; None if the array had none.
    """

    columns: tuple[str, ...] | None

    def __str__(self) -> str:
        return 'one array' if self.columns is None else f'columns {", ".join(self.columns)}'


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """A description of a model's inputs.

    Attributes:
        arrays: an `ArraySpec`, or a dict or a tuple of them, structured like the model's inputs.

    Example:
        >>> spec = InputSpec({'image': ArraySpec((8, 8), 'uint8'), 'age': ArraySpec((), 'float32')})
        >>> print(spec)
        image: 8 x 8 uint8, age: float32
        >>> InputSpec.from_dict(spec.to_dict()) == spec
        True
    """

    arrays: PyTree

    def to_dict(self) -> dict[str, Any]:
        """Returns the description as plain values."""
        return _arrays_to_dict(self.arrays)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the description that `to_dict` was called on.

        Raises:
            ValueError: for values that describe no inputs.
        """
        return cls(_arrays_from_dict(values))

    @property
    def has_columns(self) -> bool:
        """Returns True if at least one array has column names."""
        return bool(_column_names(self.arrays))

    def map(self, function: Callable[..., Any], *others: PyTree) -> 'InputSpec':
        """Returns a description with ``function`` applied to each array's description.

        Args:
            function: called with the array's description and the matching parts of ``others``.
            others: dicts, tuples or values of the same structure.
        """
        return InputSpec(_map_arrays(function, self.arrays, *others))

    def names_alone(self) -> 'InputSpec':
        """Returns only the column names, for inputs whose shapes and dtypes may differ."""
        return self.map(lambda array: ColumnNames(array.columns))

    def without_ranges(self) -> 'InputSpec':
        """Returns the description without the ranges of the values."""
        return self.map(
            lambda array: dataclasses.replace(array, range=None)
            if isinstance(array, ArraySpec) else array
        )  # fmt: skip

    def __str__(self) -> str:
        return _arrays_str(self.arrays)


def _column_names(arrays: PyTree) -> list[str]:
    if isinstance(arrays, dict | tuple):
        parts = arrays.values() if isinstance(arrays, dict) else arrays
        return [name for part in parts for name in _column_names(part)]
    return list(arrays.columns or ())


def _map_arrays(function: Callable[..., Any], arrays: PyTree, *others: PyTree) -> PyTree:
    # Keeps the order of the user's dicts; jax.tree.map would sort them.
    def map_part(key: str | int) -> PyTree:
        return _map_arrays(function, arrays[key], *(other[key] for other in others))

    if isinstance(arrays, dict):
        return {name: map_part(name) for name in arrays}
    if isinstance(arrays, tuple):
        return tuple(map(map_part, range(len(arrays))))
    return function(arrays, *others)


def _arrays_to_dict(arrays: PyTree) -> dict[str, Any]:
    if isinstance(arrays, dict):
        return {'dict': {name: _arrays_to_dict(part) for name, part in arrays.items()}}
    if isinstance(arrays, tuple):
        return {'tuple': [_arrays_to_dict(part) for part in arrays]}
    return arrays.to_dict()


def _arrays_from_dict(values: Any) -> PyTree:
    match values:
        case {'dict': dict() as parts} if parts and len(values) == 1:
            return {name: _arrays_from_dict(part) for name, part in parts.items()}
        case {'tuple': list() as parts} if parts and len(values) == 1:
            return tuple(_arrays_from_dict(part) for part in parts)
        case {'shape': _, 'dtype': _, 'columns': _} if len(values) == 3 + ('range' in values):
            return ArraySpec.from_dict(values)
    raise ValueError(f'{values!r} does not describe inputs')


def _arrays_str(arrays: PyTree) -> str:
    def part_str(part: PyTree) -> str:
        return str(part) if isinstance(part, ArraySpec) else f'({_arrays_str(part)})'

    if isinstance(arrays, dict):
        return ', '.join(f'{name}: {part_str(part)}' for name, part in arrays.items())
    return ', '.join(map(part_str, arrays)) if isinstance(arrays, tuple) else str(arrays)


def _is_numeric_name(name: str) -> bool:
    if name == 'bfloat16':  # NumPy has it only once ml_dtypes is imported
        return True
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    return dtype.name == name and dtype.kind in 'biuf'


@dataclasses.dataclass
class ModelRecord:
    """The record of one model. It is empty until the model is trained or loaded.

    Attributes:
        task: the meaning of the outputs.
        input_spec: a description of one example's inputs.
        runs: the histories of the model's training runs, oldest first.
        config: the settings of the latest run, as plain values.
        data_fingerprint: the number of rows, shapes and a hash of the latest run's training data.
        origin: the path and a hash of the model file it was last saved to or loaded from.
        optimizer: the optimizer's arrays at the end of the latest run, by name.
        continues: True if the next training run starts with these arrays.
    """

    task: AnyTask | None = None
    input_spec: InputSpec | None = None
    runs: list[History] = dataclasses.field(default_factory=list)
    config: dict[str, Any] | None = None
    data_fingerprint: dict[str, Any] | None = None
    origin: dict[str, str] | None = dataclasses.field(default=None, compare=False)
    optimizer: dict[str, Any] | None = dataclasses.field(default=None, compare=False)
    continues: bool = dataclasses.field(default=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns what files store of the record, by name, as plain values."""
        return {
            'task': None if self.task is None else self.task.to_dict(),
            'input_spec': None if self.input_spec is None else self.input_spec.to_dict(),
            'runs': [run.to_dict() for run in list(self.runs)],
            'config': self.config,
            'data_fingerprint': self.data_fingerprint,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the record that `to_dict` was called on.

        Raises:
            Exception: of any type, for values that `to_dict` does not return.
        """
        task, input_spec = values['task'], values['input_spec']
        config, data_fingerprint = values['config'], values['data_fingerprint']
        if not all(part is None or type(part) is dict for part in (config, data_fingerprint)):
            raise ValueError('its config or data_fingerprint is not a dict')
        if type(values['runs']) is not list:
            raise ValueError('its runs are not a list of histories')
        return cls(
            task=None if task is None else task_from_dict(task),
            input_spec=None if input_spec is None else InputSpec.from_dict(input_spec),
            runs=[History.from_dict(run) for run in values['runs']],
            config=config,
            data_fingerprint=data_fingerprint,
        )


def _range(span: Any) -> tuple[float, float] | None:
    if span is None:
        return None
    is_pair = type(span) is list and [type(value) for value in span] == [float, float]
    if not (is_pair and -math.inf < span[0] <= span[1] < math.inf):
        raise ValueError(f'{span!r} is not a range of values')
    return span[0], span[1]


# Keyed by id, not by the object: a model class may define __eq__ and so be unhashable.
_records: dict[int, ModelRecord] = {}
# The reference that each of these models holds to its record.
_references: 'dict[int, RecordReference]' = {}


def record_of(model: Model) -> ModelRecord:
    """Returns the model's record; an empty one for a model that has none yet.

    Raises:
        ModelTypeError: for plain values (numbers, text, lists), which can't be models.
    """
    key = id(model)
    reference = _references.get(key)
    if key not in _records:
        try:
            weakref.finalize(model, _forget, key)
        except TypeError:
            raise ModelTypeError(f'model: got {type(model).__name__}, expected a model.') from None
        reference = _reference_in(model)
        if reference is not None:
            _references[key] = reference
        return _records.setdefault(
            key, ModelRecord() if reference is None else _copy_record(reference.record)
        )
    if reference is not None and _reference_in(model) is not reference:
        _set_reference(model, reference)  # a compiled flax function has set another model's
    return _records[key]


def attach_record(model: Model, record: ModelRecord) -> None:
    """Replaces the model's record by a copy of ``record``."""
    copy = _copy_record(record)
    vars(record_to_change(model)).update(vars(copy))


def record_to_change(model: Model) -> ModelRecord:
    """Returns the model's record for a change that earlier copies of the model don't see.

    Copies made after this call, by `copy`, `pickle` or flax, share the changed record.
    """
    record = record_of(model)
    before = _references.get(id(model))
    if before is not None and before.record is record:
        before.record = _copy_record(record)
    _references[id(model)] = RecordReference(record)
    _set_reference(model, _references[id(model)])
    return record


def without_references(graph: Any) -> Any:
    """Returns a copy of a `flax.nnx.GraphDef` that does not refer to records."""
    attributes = [
        (name, dataclasses.replace(attribute, value=HashableMapping(attribute.value)))
        if isinstance(getattr(attribute, 'value', None), _CarryingNodes)
        else (name, attribute)
        for name, attribute in graph.attributes
    ]
    return dataclasses.replace(graph, attributes=attributes)


def _forget(key: int) -> None:
    del _records[key]
    _references.pop(key, None)


def _set_reference(model: Model, reference: 'RecordReference') -> None:
    attributes = getattr(model, '__dict__', None)
    if isinstance(attributes, dict):
        nodes = attributes.get(_NODES)
        if isinstance(nodes, HashableMapping):
            attributes[_NODES] = _CarryingNodes(nodes, reference)
        else:
            attributes[_REFERENCE] = reference


def _reference_in(model: Model) -> 'RecordReference | None':
    attributes = getattr(model, '__dict__', {})
    nodes = attributes.get(_NODES)
    return nodes.carried if isinstance(nodes, _CarryingNodes) else attributes.get(_REFERENCE)


def _copy_record(record: ModelRecord) -> ModelRecord:
    optimizer = record.optimizer if record.continues else None
    return dataclasses.replace(record, runs=list(record.runs), optimizer=optimizer)


# The attribute in which an NNX module keeps the names of its children. Copies keep it, too.
_NODES = '_pytree__nodes'
# The attribute in which other models keep the reference to their record.
_REFERENCE = '_thinkml_record'


class RecordReference:
    """A reference to a record, which copies of a model share until the record changes.

    References are equal if their models have the same task and inputs. The reason is compiled
    functions: one that JAX compiled for a model also runs for another with equal static attributes.
    It then returns a model with the attributes of the first one.

    Attributes:
        record: the model's record, either the current one or that at the time of the copies.
    """

    def __init__(self, record: ModelRecord):
        self.record = record

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordReference):
            return NotImplemented
        ours, theirs = self.record, other.record
        return ours is theirs or (ours.task, ours.input_spec) == (theirs.task, theirs.input_spec)

    def __hash__(self) -> int:
        return hash(RecordReference)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordReference, (_copy_record(self.record),)


class _CarryingNodes(HashableMapping):
    """The names of a module's children, with a reference to the module's record.

    It is equal to the names without a reference, so that a trained and an untrained model have the
    same tree structure. So a function that flax compiled for one of them sets its names in the
    other, and `record_of` restores them.
    """

    def __init__(self, nodes: Mapping[Any, bool], carried: RecordReference):
        super().__init__(nodes)
        self.carried = carried

    def __eq__(self, other: object) -> bool:
        differs = isinstance(other, _CarryingNodes) and self.carried != other.carried
        return super().__eq__(other) and not differs

    __hash__ = HashableMapping.__hash__

    def update(self, other: Mapping[Any, bool]) -> '_CarryingNodes':
        return _CarryingNodes(super().update(other), self.carried)
