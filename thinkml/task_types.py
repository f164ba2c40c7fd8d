"""Task types: the meaning of labels, outputs and predictions for each kind of task."""

from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np

from thinkml.errors import DataError

TaskKind = Literal['binary', 'multiclass', 'multilabel', 'regression', 'sequence']

Decision = Literal['regression', 'softmax', 'sigmoid', 'classification', 'sequence']
"""The reading of the outputs that a loss or a task requires.

They are numbers, the logits of one class each, a yes or no each, any of the last two, or the logits
of frames that are aligned to a sequence of classes.
"""


class TaskType(Protocol):
    """The meaning of the labels, outputs and predictions of one kind of task.

    An element is a row, token or pixel that has a target. Outputs are ``[elements, num_outputs]``.
    """

    @property
    def kind(self) -> TaskKind:
        """Returns the name of the kind."""
        ...

    @property
    def nouns(self) -> tuple[str, str]:
        """Returns what a column of the outputs is about, in singular and plural."""
        ...

    @property
    def decision(self) -> Decision:
        """Returns the reading of the outputs that the task requires."""
        ...

    @property
    def is_classification(self) -> bool:
        """Returns True if there are classes or labels, False if targets are numbers."""
        ...

    @property
    def has_one_class(self) -> bool:
        """Returns True if each element has one of the classes.

        Its encoded target is the index of the class. A class can have a weight, and rows can be
        stratified by it.
        """
        ...

    @property
    def has_many_labels(self) -> bool:
        """Returns True if each element has any number of the labels, encoded as a 0 or 1 each."""
        ...

    @property
    def has_positive_class(self) -> bool:
        """Returns True if the second of two classes is the one that scores are about."""
        ...

    @property
    def has_sequences(self) -> bool:
        """Returns True if the target of a row is a sequence of classes, of any length."""
        ...

    @property
    def has_threshold(self) -> bool:
        """Returns True if a threshold of the probability decides on each prediction."""
        ...

    @property
    def ranked(self) -> slice:
        """Returns the classes or labels that elements are ranked for, of all of them."""
        ...

    def output_counts(self, num_classes: int) -> tuple[int, ...]:
        """Returns the numbers of outputs that a model of so many classes or labels may have."""
        ...

    def num_classes(self, num_outputs: int) -> int:
        """Returns the number of classes or labels of a model with so many outputs."""
        ...

    def has_yes_no_outputs(self, num_outputs: int) -> bool:
        """Returns True if each output stands for yes above 0, and for no below."""
        ...

    def default_loss(self, num_outputs: int) -> str:
        """Returns the name of the loss that is used if none is requested."""
        ...

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        """Returns the predictions, encoded as the targets are.

        These are class indices ``[elements]``, a 0 or 1 for each label, or the outputs themselves.
        """
        ...

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Returns ``[elements, classes]`` or ``[elements, labels]``, computed from float64.

        Raises:
            DataError: for regression.
        """
        ...

    def log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Returns ``[elements, classes]``, or ``[elements, labels, 2]`` for no and yes.

        Raises:
            DataError: for regression.
        """
        ...


class _OneClass:
    """One class for each element, of two or of several."""

    nouns = ('class', 'classes')
    is_classification = True
    has_one_class = True
    has_many_labels = False
    has_sequences = False

    def num_classes(self, num_outputs: int) -> int:
        return max(2, num_outputs)

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        return _largest(outputs)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return _class_probabilities(outputs)

    def log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return _class_log_probabilities(outputs)


class BinaryTask(_OneClass):
    """One of two classes, from one logit of the second class or from a logit of each."""

    kind: TaskKind = 'binary'
    decision: Decision = 'classification'
    has_positive_class = True
    has_threshold = True
    ranked = slice(1, None)

    def output_counts(self, num_classes: int) -> tuple[int, ...]:
        return (1, 2) if num_classes == 2 else ()

    def has_yes_no_outputs(self, num_outputs: int) -> bool:
        return num_outputs == 1

    def default_loss(self, num_outputs: int) -> str:
        return 'binary_cross_entropy' if num_outputs == 1 else 'cross_entropy'


class MulticlassTask(_OneClass):
    """One of several classes, from a logit of each."""

    kind: TaskKind = 'multiclass'
    decision: Decision = 'softmax'
    has_positive_class = False
    has_threshold = False
    ranked = slice(None)

    def output_counts(self, num_classes: int) -> tuple[int, ...]:
        return (num_classes,)

    def has_yes_no_outputs(self, num_outputs: int) -> bool:
        return False

    def default_loss(self, num_outputs: int) -> str:
        return 'cross_entropy'


class MultilabelTask:
    """Any number of several labels, from a logit of each."""

    kind: TaskKind = 'multilabel'
    nouns = ('label', 'labels')
    decision: Decision = 'sigmoid'
    is_classification = True
    has_one_class = False
    has_many_labels = True
    has_sequences = False
    has_positive_class = False
    has_threshold = True
    ranked = slice(None)

    def output_counts(self, num_classes: int) -> tuple[int, ...]:
        return (num_classes,)

    def num_classes(self, num_outputs: int) -> int:
        return num_outputs

    def has_yes_no_outputs(self, num_outputs: int) -> bool:
        return True

    def default_loss(self, num_outputs: int) -> str:
        return 'binary_cross_entropy'

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        return (outputs > 0).astype(np.int64)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return _sigmoid(outputs)

    def log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        return _log_no_and_yes(outputs)


class RegressionTask:
    """Numbers, from an output for each."""

    kind: TaskKind = 'regression'
    nouns = ('target', 'targets')
    decision: Decision = 'regression'
    is_classification = False
    has_one_class = False
    has_many_labels = False
    has_sequences = False
    has_positive_class = False
    has_threshold = False
    ranked = slice(0)

    def output_counts(self, num_classes: int) -> tuple[int, ...]:
        return ()

    def num_classes(self, num_outputs: int) -> int:
        return 0

    def has_yes_no_outputs(self, num_outputs: int) -> bool:
        return False

    def default_loss(self, num_outputs: int) -> str:
        return 'mse'

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        raise DataError(_NO_PROBABILITIES)

    def log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        raise DataError(_NO_PROBABILITIES)


class SequenceTask:
    """A sequence of classes for each row, from the logits of frames that are not aligned to it.

    The outputs of a row are ``[frames, classes]``, of which one class is the blank. Labels are the
    positions of the outputs, so a task of this kind lists no classes.
    """

    kind: TaskKind = 'sequence'
    nouns = ('class', 'classes')
    decision: Decision = 'sequence'
    is_classification = False
    has_one_class = False
    has_many_labels = False
    has_sequences = True
    has_positive_class = False
    has_threshold = False
    ranked = slice(0)

    def output_counts(self, num_classes: int) -> tuple[int, ...]:
        return ()

    def num_classes(self, num_outputs: int) -> int:
        return 0

    def has_yes_no_outputs(self, num_outputs: int) -> bool:
        return False

    def default_loss(self, num_outputs: int) -> str:
        return 'ctc'

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.argmax(axis=-1)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        raise DataError(_NO_PROBABILITIES_OF_SEQUENCES)

    def log_probabilities(self, outputs: np.ndarray) -> np.ndarray:
        raise DataError(_NO_PROBABILITIES_OF_SEQUENCES)


_NO_PROBABILITIES = 'model: it was trained for regression, which has no probabilities.'
_NO_PROBABILITIES_OF_SEQUENCES = (
    'model: it was trained for sequences, which have no probability for each class. Call the model '
    'for the logits of its frames.'
)

_TYPES: tuple[TaskType, ...] = (
    BinaryTask(), MulticlassTask(), MultilabelTask(), RegressionTask(), SequenceTask()
)  # fmt: skip

TASK_TYPES: MappingProxyType[TaskKind, TaskType] = MappingProxyType({t.kind: t for t in _TYPES})
"""The types of tasks by kind."""


def kind_of_classes(num_classes: int) -> TaskKind:
    """Returns the kind of a task with one of so many classes for each element."""
    return 'binary' if num_classes == 2 else 'multiclass'


# --- one class --------------------------------------------------------------------------------


def _largest(outputs: np.ndarray) -> np.ndarray:
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > 0).astype(np.int64)
    return outputs.argmax(axis=1)


def _class_probabilities(outputs: np.ndarray) -> np.ndarray:
    if outputs.shape[1] == 1:
        return np.concatenate([_sigmoid(-outputs), _sigmoid(outputs)], axis=1)
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _class_log_probabilities(outputs: np.ndarray) -> np.ndarray:
    if outputs.shape[1] == 1:
        return _log_no_and_yes(outputs)[:, 0]
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# --- yes or no --------------------------------------------------------------------------------


def _sigmoid(outputs: np.ndarray) -> np.ndarray:
    # Exact to the last digit even for the smallest probabilities, which rank confident negatives.
    return np.exp(-np.logaddexp(0, -outputs))


def _log_no_and_yes(outputs: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, np.stack([outputs, -outputs], axis=-1))
