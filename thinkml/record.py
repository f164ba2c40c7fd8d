"""What ThinkML knows of a model: its task and classes, its input, its training runs.

A record is kept beside the model, keyed weakly by the object, so that a user's own class needs no
field of ours, and a model that is garbage takes its record with it.
"""

import dataclasses
import weakref
from typing import Any, Literal

import numpy as np

from thinkml.errors import ModelTypeError

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

    @property
    def is_classification(self) -> bool:
        return self.kind != 'regression'

    @property
    def is_one_hot(self) -> bool:
        """Whether the user writes one label as a row with a single 1."""
        return self.kind in ('binary', 'multiclass') and self.target_shape not in ((), (1,))

    def __str__(self) -> str:
        if self.kind == 'regression':
            return f'regression, {self.num_outputs} target{"s" if self.num_outputs > 1 else ""}'
        classes = [str(label) for label in np.asarray(self.classes).tolist()]
        shown = classes if len(classes) <= 10 else [*classes[:4], '...', classes[-1]]
        noun = 'labels' if self.kind == 'multilabel' else 'classes'
        return f'{self.kind}, {len(classes)} {noun} ({", ".join(shown)})'


@dataclasses.dataclass
class ModelRecord:
    """What is known of one model. Empty until it is trained or loaded.

    Attributes:
        task: what the outputs mean.
        input_shape: shape of one example, without the batch axis.
        input_dtype: name of the dtype the model was given, ``'float32'`` for instance.
        runs: the histories of its training runs, oldest first.
        config: the settings of the latest run, as plain values.
        data_fingerprint: of the latest run's training data: rows, shapes and a hash.
    """

    task: Task | None = None
    input_shape: tuple[int, ...] | None = None
    input_dtype: str | None = None
    runs: list[Any] = dataclasses.field(default_factory=list)
    config: dict[str, Any] | None = None
    data_fingerprint: dict[str, Any] | None = None


# Keyed by id, not by the object: a model class may define __eq__ and so be unhashable.
_records: dict[int, ModelRecord] = {}


def record_of(model: Any) -> ModelRecord:
    """Returns the model's record, an empty one the first time it is asked for.

    Raises:
        ModelTypeError: for plain values (numbers, text, lists), which can't be models.
    """
    key = id(model)
    if key not in _records:
        try:
            weakref.finalize(model, _records.pop, key, None)
        except TypeError:
            raise ModelTypeError(f'model: got {type(model).__name__}, expected a model.') from None
        _records[key] = ModelRecord()
    return _records[key]


def attach_record(model: Any, record: ModelRecord) -> None:
    """Makes ``record`` the model's record; what was known before is dropped."""
    record_of(model)
    _records[id(model)] = record
