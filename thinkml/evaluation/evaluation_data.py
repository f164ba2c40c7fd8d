"""EvaluationData: encoded labels and predictions of a data set, with values that metrics share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from thinkml.evaluation.score_summary import ScoreSummary
from thinkml.task_types import TASK_TYPES, TaskKind, TaskType

Part = TypeVar('Part')


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EvaluationData:
    """The labels and predictions of a data set, encoded, one row per example.

    Attributes:
        kind: the kind of the task.
        num_classes: the number of classes, labels (multilabel) or targets (regression).
        labels: class indices ``(n,)`` for binary and multiclass, 0 or 1 in ``(n, k)`` for
            multilabel, numbers ``(n,)`` or ``(n, k)`` for regression, sequences of class indices
            ``(n, labels)`` with -1 after their ends.
        predictions: encoded as the labels are.
        probabilities: ``(n, 2)``, ``(n, classes)`` or ``(n, k)``; None for regression.
        outputs: the model's raw outputs, ``(n, ...)``; None for a model that only predicts.
        weight: the weight of each example, float64 ``(n,)``; None if all weights are 1.
        positions: ``(n,)``, if examples are elements of rows: their positions among all elements of
            all rows. If rows were left out whose label is ignored, the numbers of the others. None
            if each row is an example.
        element_shape: the axes of the elements of a row; ``()`` if each row is an example.
        custom: the values of custom metrics for each example, ``(n,)``, by name.
        summary: the summary of each example's outputs, if all of them are too large to be kept;
            probabilities and outputs are then None.
    """

    kind: TaskKind
    num_classes: int
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray | None = None
    outputs: np.ndarray | None = None
    weight: np.ndarray | None = None
    positions: np.ndarray | None = None
    element_shape: tuple[int, ...] = ()
    custom: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    summary: ScoreSummary | None = None
    _parts: dict[Callable[..., Any], Any] = dataclasses.field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def task_type(self) -> TaskType:
        """Returns the meaning of the labels and predictions."""
        return TASK_TYPES[self.kind]

    @property
    def weights(self) -> np.ndarray:
        """Returns the weight of each example, float64 ``(n,)``."""
        return np.ones(len(self)) if self.weight is None else self.weight

    @property
    def has_probabilities(self) -> bool:
        """Returns True if the probability of the predicted class of each example is known."""
        return self.probabilities is not None or self.summary is not None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_parts': {}}  # computed again on demand

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def part(self, make: 'Callable[[EvaluationData], Part]') -> Part:
        """Returns ``make(self)``, computed once and kept, since several metrics share a part."""
        if make not in self._parts:
            self._parts[make] = make(self)
        return self._parts[make]

    def take(self, rows: np.ndarray) -> 'EvaluationData':
        """Returns some of the rows, by index or as a mask."""
        chosen = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in ('labels', 'predictions', 'probabilities', 'outputs', 'weight', 'positions')
        }
        custom = {name: values[rows] for name, values in self.custom.items()}
        summary = None if self.summary is None else self.summary.map(lambda values: values[rows])
        return dataclasses.replace(self, **chosen, summary=summary, custom=custom)
