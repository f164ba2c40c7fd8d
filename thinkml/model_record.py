"""What ThinkML knows of a model: its task and classes, its input, its training runs.

A record is kept beside the model, keyed weakly by the object, so that a user's own class needs no
field of ours, and a model that is garbage takes its record with it. The object refers to the
record, so that copies of a model bring it along.
"""

import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
from flax.typing import HashableMapping

from thinkml.errors import ModelTypeError
from thinkml.history import History

TaskKind = Literal['binary', 'multiclass', 'multilabel', 'regression']


@dataclasses.dataclass(frozen=True)
class Task:
    """What a model's outputs mean.

    Attributes:
        kind: ``'binary'``, ``'multiclass'``, ``'multilabel'`` or ``'regression'``.
        classes: the user's own labels in the order of the model's outputs (for one-logit binary:
            negative, positive); None for regression.
        num_outputs: numbers the model returns per example: 1 or 2 for binary, one per class for
            multiclass, one per label for multilabel, one per target for regression.
        target_shape: shape of one example's target as the user writes it: ``()`` for a plain
            label or number, ``(k,)`` for a row of ``k`` values (one-hot, multilabel, several
            regression targets).
    """

    kind: TaskKind
    classes: tuple[Any, ...] | None
    num_outputs: int
    target_shape: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns everything by name; classes as they are, NumPy's own types too."""
        return {
            'kind': self.kind,
            'classes': None if self.classes is None else list(self.classes),
            'num_outputs': int(self.num_outputs),
            'target_shape': [int(size) for size in self.target_shape],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the task that `to_dict` was called on.

        Raises:
            ValueError: for values that no task has: classes that don't fit the kind or the number
                of outputs, for instance.

        Example:
            >>> task = Task('multiclass', ('a', 'b', 'c'), num_outputs=3)
            >>> Task.from_dict(task.to_dict()) == task
            True
        """
        if values['kind'] not in get_args(TaskKind):
            raise ValueError(f'{values["kind"]!r} is not a kind of task')
        kind, classes, num_outputs = (values[n] for n in ('kind', 'classes', 'num_outputs'))
        if _size(num_outputs) == 0:
            raise ValueError('a task of no outputs')
        if (classes is None) != (kind == 'regression'):
            raise ValueError(f'{kind} with the classes {classes!r}')
        if classes is not None:
            _check_classes(kind, classes, num_outputs)
            classes = tuple(classes)
        return cls(kind, classes, num_outputs, _sizes(values['target_shape']))

    @property
    def is_classification(self) -> bool:
        return self.kind != 'regression'

    @property
    def is_one_hot(self) -> bool:
        """Whether the user writes one label as a row with a single 1."""
        return self.kind in ('binary', 'multiclass') and self.target_shape not in ((), (1,))

    @property
    def in_words(self) -> str:
        """The task as a noun phrase, for messages."""
        kind, _, parts = str(self).partition(', ')
        return f'{kind}{" classification" if self.is_classification else ""} with {parts}'

    def __str__(self) -> str:
        if self.kind == 'regression':
            return f'regression, {self.num_outputs} target{"s" if self.num_outputs > 1 else ""}'
        classes = [str(label) for label in np.asarray(self.classes).tolist()]
        shown = classes if len(classes) <= 10 else [*classes[:4], '...', classes[-1]]
        singular, plural = (
            ('label', 'labels') if self.kind == 'multilabel' else ('class', 'classes')
        )
        noun = singular if len(classes) == 1 else plural
        return f'{self.kind}, {len(classes)} {noun} ({", ".join(shown)})'


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """What one array of a model's inputs looks like.

    Attributes:
        shape: of one example, without the axis of rows.
        dtype: name of the dtype the model is given, ``'float32'`` for instance.
        columns: names of the columns, the last axis, where the inputs were a frame.
        range: about the least and the largest value of the training, of arrays whose rows have
            axes and whose columns have no names; None where that is not known. Two descriptions
            that differ in it alone are equal.

    Example:
        >>> print(ArraySpec((2,), 'float32', ('age', 'income')))
        2 float32 (age, income)
    """

    shape: tuple[int, ...]
    dtype: str
    columns: tuple[str, ...] | None = None
    range: tuple[float, float] | None = dataclasses.field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything by name, as plain values; the range where it is known."""
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
        shape, dtype, columns = _sizes(values['shape']), values['dtype'], values['columns']
        if not isinstance(dtype, str) or not _is_numeric_name(dtype):
            raise ValueError(f'{dtype!r} is not a numeric dtype')
        span = _range(values.get('range'))
        if columns is None:
            return cls(shape, dtype, range=span)
        names = type(columns) is list and all(type(name) is str for name in columns)
        if not names or shape[-1:] != (len(columns),):
            raise ValueError(f'{columns!r} are not the names of {shape} columns')
        return cls(shape, dtype, tuple(columns), span)

    def __str__(self) -> str:
        sizes = ' x '.join(map(str, self.shape))
        numbers = f'{sizes} {self.dtype}' if sizes else self.dtype
        # Columns that are called by their places have no names worth showing.
        if self.columns is None or self.columns == tuple(map(str, range(len(self.columns)))):
            return numbers
        names = self.columns if len(self.columns) <= 10 else (*self.columns[:4], '...')
        return f'{numbers} ({", ".join(names)})'


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """The names of the columns of an array whose shape and dtype may be any.

    Attributes:
        columns: the names; None where the array had none.
    """

    columns: tuple[str, ...] | None

    def __str__(self) -> str:
        return 'one array' if self.columns is None else f'columns {", ".join(self.columns)}'


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a model's inputs look like.

    Attributes:
        arrays: an `ArraySpec`, or a dict or a tuple of them, as the model takes its inputs.

    Example:
        >>> spec = InputSpec({'image': ArraySpec((8, 8), 'uint8'), 'age': ArraySpec((), 'float32')})
        >>> print(spec)
        image: 8 x 8 uint8, age: float32
        >>> InputSpec.from_dict(spec.to_dict()) == spec
        True
    """

    arrays: Any

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
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
        """Returns True if the columns of an array have names."""
        return bool(_names_in(self.arrays))

    def map(self, function: Callable[..., Any], *others: Any) -> 'InputSpec':
        """Returns the same structure with ``function`` of each array's description.

        Args:
            function: gets the description, and the parts of ``others`` in its place.
            others: dicts, tuples or values of the same structure.
        """
        return InputSpec(_mapped(function, self.arrays, *others))

    def names_alone(self) -> 'InputSpec':
        """Returns the names of the columns, for inputs whose shapes and dtypes may be others."""
        return self.map(lambda array: ColumnNames(array.columns))

    def without_ranges(self) -> 'InputSpec':
        """Returns the same without the ranges of the values."""
        return self.map(
            lambda array: dataclasses.replace(array, range=None)
            if isinstance(array, ArraySpec) else array
        )  # fmt: skip

    def __str__(self) -> str:
        return _arrays_str(self.arrays)


def _names_in(arrays: Any) -> list[str]:
    if isinstance(arrays, dict | tuple):
        parts = arrays.values() if isinstance(arrays, dict) else arrays
        return [name for part in parts for name in _names_in(part)]
    return list(arrays.columns or ())


def _mapped(function: Callable[..., Any], arrays: Any, *others: Any) -> Any:
    # In the order of the user's own dicts, which jax.tree.map sorts.
    def at(place: Any) -> Any:
        return _mapped(function, arrays[place], *(other[place] for other in others))

    if isinstance(arrays, dict):
        return {name: at(name) for name in arrays}
    if isinstance(arrays, tuple):
        return tuple(map(at, range(len(arrays))))
    return function(arrays, *others)


def _arrays_to_dict(arrays: Any) -> dict[str, Any]:
    if isinstance(arrays, dict):
        return {'dict': {name: _arrays_to_dict(part) for name, part in arrays.items()}}
    if isinstance(arrays, tuple):
        return {'tuple': [_arrays_to_dict(part) for part in arrays]}
    return arrays.to_dict()


def _arrays_from_dict(values: Any) -> Any:
    match values:
        case {'dict': dict() as parts} if parts and len(values) == 1:
            return {name: _arrays_from_dict(part) for name, part in parts.items()}
        case {'tuple': list() as parts} if parts and len(values) == 1:
            return tuple(_arrays_from_dict(part) for part in parts)
        case {'shape': _, 'dtype': _, 'columns': _} if len(values) == 3 + ('range' in values):
            return ArraySpec.from_dict(values)
    raise ValueError(f'{values!r} does not describe inputs')


def _arrays_str(arrays: Any) -> str:
    def part(value: Any) -> str:
        return str(value) if isinstance(value, ArraySpec) else f'({_arrays_str(value)})'

    if isinstance(arrays, dict):
        return ', '.join(f'{name}: {part(value)}' for name, value in arrays.items())
    return ', '.join(map(part, arrays)) if isinstance(arrays, tuple) else str(arrays)


def _is_numeric_name(name: str) -> bool:
    if name == 'bfloat16':  # NumPy knows it only once ml_dtypes is imported
        return True
    try:
        dtype = np.dtype(name)
    except TypeError:
        return False
    return dtype.name == name and dtype.kind in 'biuf'


@dataclasses.dataclass
class ModelRecord:
    """What is known of one model. Empty until it is trained or loaded.

    Attributes:
        task: what the outputs mean.
        input_spec: what one example's inputs look like.
        runs: the histories of its training runs, oldest first.
        config: the settings of the latest run, as plain values.
        data_fingerprint: of the latest run's training data: rows, shapes and a hash.
        origin: the model file it was saved to or loaded from last: its path and a hash.
        optimizer: the optimizer's arrays at the end of the latest run, by name.
        continues: whether the next training begins with them.
    """

    task: Task | None = None
    input_spec: InputSpec | None = None
    runs: list[History] = dataclasses.field(default_factory=list)
    config: dict[str, Any] | None = None
    data_fingerprint: dict[str, Any] | None = None
    origin: dict[str, str] | None = dataclasses.field(default=None, compare=False)
    optimizer: dict[str, Any] | None = dataclasses.field(default=None, compare=False)
    continues: bool = dataclasses.field(default=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns what was learned of the task and the runs, by name, as plain values."""
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
            Exception: any, for values that `to_dict` does not return.
        """
        task, input_spec = values['task'], values['input_spec']
        described = [values[name] for name in ('config', 'data_fingerprint')]
        if not all(part is None or type(part) is dict for part in described):
            raise ValueError('its config or data_fingerprint is not a dict')
        if type(values['runs']) is not list:
            raise ValueError('its runs are not a list of histories')
        return cls(
            None if task is None else Task.from_dict(task),
            None if input_spec is None else InputSpec.from_dict(input_spec),
            [History.from_dict(run) for run in values['runs']],
            *described,
        )


def _check_classes(kind: TaskKind, classes: Any, num_outputs: int) -> None:
    is_label = [isinstance(label, bool | int | float | str | np.generic) for label in classes]
    if type(classes) is not list or not all(is_label) or len(set(classes)) != len(classes):
        raise ValueError(f'{classes!r} are not different labels')
    expected = (1, 2) if kind == 'binary' else (len(classes),)
    if num_outputs not in expected or (kind == 'binary' and len(classes) != 2):
        raise ValueError(f'{kind} with {len(classes)} classes and {num_outputs} outputs')


def _range(span: Any) -> tuple[float, float] | None:
    if span is None:
        return None
    is_pair = type(span) is list and [type(value) for value in span] == [float, float]
    if not (is_pair and -math.inf < span[0] <= span[1] < math.inf):
        raise ValueError(f'{span!r} is not a range of values')
    return span[0], span[1]


def _sizes(shape: Any) -> tuple[int, ...]:
    if type(shape) is not list:
        raise ValueError(f'{shape!r} is not a shape')
    return tuple(map(_size, shape))


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f'{value!r} is not a size')
    return value


# Keyed by id, not by the object: a model class may define __eq__ and so be unhashable.
_records: dict[int, ModelRecord] = {}
# What each model that is known refers to its record with.
_carried: 'dict[int, RecordReference]' = {}


def record_of(model: Any) -> ModelRecord:
    """Returns the model's record, an empty one the first time it is asked for.

    Raises:
        ModelTypeError: for plain values (numbers, text, lists), which can't be models.
    """
    key = id(model)
    carried = _carried.get(key)
    if key not in _records:
        try:
            weakref.finalize(model, _forget, key)
        except TypeError:
            raise ModelTypeError(f'model: got {type(model).__name__}, expected a model.') from None
        carried = _carried_by(model)
        if carried is not None:
            _carried[key] = carried
        return _records.setdefault(
            key, ModelRecord() if carried is None else _copied(carried.record)
        )
    if carried is not None and _carried_by(model) is not carried:
        _carry(model, carried)  # a function that flax has compiled left another model's
    return _records[key]


def attach_record(model: Any, record: ModelRecord) -> None:
    """Makes a copy of ``record`` the model's record; what was known before is dropped."""
    copied = _copied(record)
    vars(record_to_change(model)).update(vars(copied))


def record_to_change(model: Any) -> ModelRecord:
    """Returns the model's record, of which copies of the model made so far keep what it says now.

    Copies made from now on, by `copy`, `pickle` or flax, bring along what it will say.
    """
    record = record_of(model)
    before = _carried.get(id(model))
    if before is not None and before.record is record:
        before.record = _copied(record)
    _carried[id(model)] = RecordReference(record)
    _carry(model, _carried[id(model)])
    return record


def without_carried(graph: Any) -> Any:
    """Returns a copy of a `flax.nnx.GraphDef` that refers to no records."""
    attributes = [
        (name, dataclasses.replace(attribute, value=HashableMapping(attribute.value)))
        if isinstance(getattr(attribute, 'value', None), _CarryingNodes)
        else (name, attribute)
        for name, attribute in graph.attributes
    ]
    return dataclasses.replace(graph, attributes=attributes)


def _forget(key: int) -> None:
    del _records[key]
    _carried.pop(key, None)


def _carry(model: Any, carried: 'RecordReference') -> None:
    attributes = getattr(model, '__dict__', None)
    if isinstance(attributes, dict):
        nodes = attributes.get(_NODES)
        if isinstance(nodes, HashableMapping):
            attributes[_NODES] = _CarryingNodes(nodes, carried)
        else:
            attributes[_CARRIED] = carried


def _carried_by(model: Any) -> 'RecordReference | None':
    attributes = getattr(model, '__dict__', {})
    nodes = attributes.get(_NODES)
    return nodes.carried if isinstance(nodes, _CarryingNodes) else attributes.get(_CARRIED)


def _copied(record: ModelRecord) -> ModelRecord:
    optimizer = record.optimizer if record.continues else None
    return dataclasses.replace(record, runs=list(record.runs), optimizer=optimizer)


# The attribute in which an NNX module has the names of its children: every copy has it, too.
_NODES = '_pytree__nodes'
# The attribute of other models that refers to their record.
_CARRIED = '_thinkml_record'


class RecordReference:
    """A reference to a record, which copies of a model share until the record is to change.

    Equal where the models mean the same. JAX gives what a compiled function returns the static
    attributes of the model that it was compiled with, if those of another model are equal.

    Attributes:
        record: of the model, as it is now or as it was when the copies were made.
    """

    def __init__(self, record: ModelRecord):
        self.record = record

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordReference):
            return NotImplemented
        mine, its = self.record, other.record
        return mine is its or (mine.task, mine.input_spec) == (its.task, its.input_spec)

    def __hash__(self) -> int:
        return hash(RecordReference)

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordReference, (_copied(self.record),)


class _CarryingNodes(HashableMapping):
    """The names of a module's children, with a reference to its record.

    Equal to the names alone, so that a trained and an untrained model have one tree structure. A
    function that flax has compiled for one of them therefore leaves its names in the other, where
    `record_of` puts them right.
    """

    def __init__(self, nodes: Mapping[Any, bool], carried: RecordReference):
        super().__init__(nodes)
        self.carried = carried

    def __eq__(self, other: Any) -> bool:
        is_other = isinstance(other, _CarryingNodes) and self.carried != other.carried
        return super().__eq__(other) and not is_other

    __hash__ = HashableMapping.__hash__

    def update(self, other: Mapping[Any, bool]) -> '_CarryingNodes':
        return _CarryingNodes(super().update(other), self.carried)
