"""Tasks: the meaning of a model's outputs."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Self, get_args

import numpy as np

from thinkml.errors import ModelTypeError
from thinkml.task_types import TASK_TYPES, TaskKind, TaskType

IGNORE_LABEL = -100
"""The label of rows and elements that count nowhere, as in torch and transformers."""


@dataclasses.dataclass(frozen=True)
class Task:
    """The meaning of a model's outputs.

    Attributes:
        kind: ``'binary'``, ``'multiclass'``, ``'multilabel'``, ``'regression'`` or ``'sequence'``.
        classes: the user's labels in the order of the model's outputs (for one-logit binary:
            negative, positive); None for regression, and for sequences, whose labels are the
            positions of the outputs.
        num_outputs: the number of values the model returns per example: 1 or 2 for binary, one per
            class for multiclass, one per label for multilabel, one per target for regression.
        target_shape: the shape of one element's target as the user passes it: ``()`` for a plain
            label or number, ``(k,)`` for ``k`` values (one-hot, multilabel, several regression
            targets).
        element_shape: the axes of a row that have a target each: ``()`` for one target a row,
            ``(tokens,)``, ``(height, width)``. All other attributes are those of one element.
        ignore_label: the label of elements that count nowhere, and after the end of a sequence;
            None if there is none. For one target a row, None stands for -100, see `ignored`.
        blank_id: the position of the output that stands for no label in a frame, for sequences.
    """

    kind: TaskKind
    classes: tuple[Any, ...] | None
    num_outputs: int
    target_shape: tuple[int, ...] = ()
    element_shape: tuple[int, ...] = ()
    ignore_label: int | None = None
    blank_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns all attributes by name. Classes are not converted, so they may be NumPy types.

        Those of elements are left out for a task of one target a row, unless they are set.
        """
        values = {
            'kind': self.kind,
            'classes': None if self.classes is None else list(self.classes),
            'num_outputs': int(self.num_outputs),
            'target_shape': [int(size) for size in self.target_shape],
        }
        if self.element_shape:
            values['element_shape'] = [int(size) for size in self.element_shape]
        if self.element_shape or self.ignore_label is not None:
            values['ignore_label'] = self.ignore_label
        if self.type.has_sequences:
            values |= {'ignore_label': self.ignore_label, 'blank_id': self.blank_id}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the task that `to_dict` was called on.

        Raises:
            ValueError: for values that no task has, such as classes that don't fit the kind or the
                number of outputs.

        Example:
            >>> task = Task('multiclass', ('a', 'b', 'c'), num_outputs=3)
            >>> Task.from_dict(task.to_dict()) == task
            True
        """
        if values['kind'] not in get_args(TaskKind):
            raise ValueError(f'{values["kind"]!r} is not a kind of task')
        kind, classes, num_outputs = (values[n] for n in ('kind', 'classes', 'num_outputs'))
        if _size(num_outputs) == 0:
            raise ValueError('a task without outputs')
        if (classes is not None) != TASK_TYPES[kind].is_classification:
            raise ValueError(f'{kind} with the classes {classes!r}')
        if classes is not None:
            _check_classes(kind, classes, num_outputs)
            classes = tuple(classes)
        ignore_label = values.get('ignore_label')
        if type(ignore_label) not in (int, type(None)):
            raise ValueError(f'{ignore_label!r} is not a label')
        blank_id = values.get('blank_id')
        if TASK_TYPES[kind].has_sequences and not 0 <= _size(blank_id) < num_outputs:
            raise ValueError(f'{blank_id!r} is not one of {num_outputs} outputs')
        return cls(
            kind=kind,
            classes=classes,
            num_outputs=num_outputs,
            target_shape=sizes_of(values['target_shape']),
            element_shape=sizes_of(values.get('element_shape', [])),
            ignore_label=ignore_label,
            blank_id=blank_id,
        )

    @property
    def type(self) -> TaskType:
        """Returns the meaning of the labels and outputs of tasks of this kind."""
        return TASK_TYPES[self.kind]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Returns the shape of the targets of a row."""
        return (*self.element_shape, *self.target_shape)

    @property
    def num_elements(self) -> int:
        """Returns the number of elements of a row."""
        return math.prod(self.element_shape)

    @property
    def is_classification(self) -> bool:
        return self.type.is_classification

    @property
    def is_one_hot(self) -> bool:
        """Returns True if the user passes each label as a row with a single 1."""
        return self.type.has_one_class and self.target_shape not in ((), (1,))

    @property
    def ignored(self) -> int | None:
        """Returns the label that marks rows or elements that count nowhere; None if there is none.

        For one label a row it is `ignore_label`, or -100 if the labels are numbers and -100 is not
        one of the classes.

        Example:
            >>> Task('binary', (0, 1), num_outputs=1).ignored
            -100
            >>> Task('binary', ('no', 'yes'), num_outputs=1).ignored
        """
        if self.ignore_label is not None or self.element_shape or not self.has_row_labels:
            return self.ignore_label
        classes = self.classes or ()
        are_numbers = not any(isinstance(label, str | bool | np.bool_) for label in classes)
        return IGNORE_LABEL if are_numbers and IGNORE_LABEL not in classes else None

    @property
    def has_row_labels(self) -> bool:
        """Returns True if the target of a row is the label of one class."""
        return self.type.has_one_class and not self.is_one_hot and not self.element_shape

    @property
    def in_words(self) -> str:
        """Returns the task as a noun phrase for error messages."""
        kind, _, parts = str(self).partition(', ')
        return f'{kind}{" classification" if self.is_classification else ""} with {parts}'

    def __str__(self) -> str:
        if not self.element_shape:
            return self._element_in_words()
        sizes = ' x '.join(map(str, self.element_shape))
        return f'{self._element_in_words()}, for each of {sizes} elements'

    def _element_in_words(self) -> str:
        count = self.num_outputs if self.classes is None else len(self.classes)
        singular, plural = self.type.nouns
        columns = f'{self.kind}, {count} {singular if count == 1 else plural}'
        if self.type.has_sequences:
            return f'{columns} ({self.blank_id} is the blank)'
        if self.classes is None:
            return columns
        classes = [str(label) for label in np.asarray(self.classes).tolist()]
        shown = classes if len(classes) <= 10 else [*classes[:4], '...', classes[-1]]
        return f'{columns} ({", ".join(shown)})'


@dataclasses.dataclass(frozen=True)
class Composite:
    """The meaning of the outputs of a model with several heads.

    Attributes:
        heads: the task of each head that has targets, by name, as pairs. The names of a tuple of
            outputs are their positions.
        is_tuple: True if the model returns a tuple and not a dict.

    Example:
        >>> price = Task('regression', None, num_outputs=1)
        >>> kind = Task('binary', ('a', 'b'), num_outputs=2)
        >>> print(Composite((('price', price), ('kind', kind))))
        price (regression, 1 target), kind (binary, 2 classes (a, b))
    """

    heads: tuple[tuple[str, Task], ...]
    is_tuple: bool = False

    @property
    def by_name(self) -> dict[str, Task]:
        """Returns the tasks by the heads' names."""
        return dict(self.heads)

    def map(self, function: Callable[..., Any], *trees: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``function(task, *parts)`` for each head, by name."""
        return {name: function(task, *(tree[name] for tree in trees)) for name, task in self.heads}

    def restore(self, parts: Mapping[str, Any]) -> Any:
        """Returns values by head in the form of the model's outputs: as a dict or a tuple."""
        return tuple(parts.values()) if self.is_tuple else dict(parts)

    def to_dict(self) -> dict[str, Any]:
        """Returns all attributes by name. Classes are not converted, so they may be NumPy types."""
        heads = {name: task.to_dict() for name, task in self.heads}
        return {'heads': heads, 'is_tuple': self.is_tuple}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the task that `to_dict` was called on.

        Raises:
            ValueError: for values that no task has.
        """
        heads, is_tuple = values['heads'], values['is_tuple']
        if type(heads) is not dict or not heads or type(is_tuple) is not bool:
            raise ValueError(f'{heads!r} are not the tasks of heads')
        return cls(tuple((name, Task.from_dict(task)) for name, task in heads.items()), is_tuple)

    @property
    def in_words(self) -> str:
        """Returns the task as a noun phrase for error messages."""
        return f'a model with the heads {self}'

    def __str__(self) -> str:
        return ', '.join(f'{name} ({task})' for name, task in self.heads)


AnyTask = Task | Composite


def blanks_of(task: AnyTask) -> tuple[tuple[str | None, int], ...]:
    """Returns the name and the blank of each output of sequences, None and it for one output."""
    heads = ((None, task),) if isinstance(task, Task) else task.heads
    return tuple((name, head.blank_id) for name, head in heads if head.blank_id is not None)


def task_from_dict(values: Mapping[str, Any]) -> AnyTask:
    """Returns the task of one output or of several heads that ``to_dict`` was called on.

    Raises:
        ValueError: for values that no task has.
    """
    return Composite.from_dict(values) if 'heads' in values else Task.from_dict(values)


def with_heads_of(task: AnyTask, before: AnyTask | None) -> AnyTask:
    """Returns a task with the heads of an earlier one that it lacks, for dicts of outputs."""
    if not (isinstance(task, Composite) and isinstance(before, Composite)) or task.is_tuple:
        return task
    return dataclasses.replace(task, heads=tuple(sorted((before.by_name | task.by_name).items())))


def single_task(task: AnyTask | None, what: str) -> Task | None:
    """Returns the task of a model that returns one array; None stays None.

    Args:
        task: the task, or None.
        what: the start of an error message: the argument and what needs one output.

    Raises:
        ModelTypeError: for a model with several heads.
    """
    if isinstance(task, Composite):
        names = ', '.join(repr(name) for name, _ in task.heads)
        raise ModelTypeError(
            f'{what} a model that returns one array, got one with the heads {names}. Wrap it in a '
            'module whose __call__ returns one of them.'
        )
    return task


def _check_classes(kind: TaskKind, classes: Any, num_outputs: int) -> None:
    is_label = [isinstance(label, bool | int | float | str | np.generic) for label in classes]
    if type(classes) is not list or not all(is_label) or len(set(classes)) != len(classes):
        raise ValueError(f'{classes!r} are not different labels')
    if num_outputs not in TASK_TYPES[kind].output_counts(len(classes)):
        raise ValueError(f'{kind} with {len(classes)} classes and {num_outputs} outputs')


def sizes_of(shape: object) -> tuple[int, ...]:
    """Returns a shape that was read from JSON; raises a `ValueError` for anything else."""
    if type(shape) is not list:
        raise ValueError(f'{shape!r} is not a shape')
    return tuple(map(_size, shape))


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f'{value!r} is not a size')
    return value
