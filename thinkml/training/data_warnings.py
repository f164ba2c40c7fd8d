"""Warnings about data and models that can be trained, but probably not as intended."""

import numpy as np
from flax import nnx

from thinkml.core.model.train_eval_modes import frozen_by_hand, inner_switches
from thinkml.core.objectives.elements import IGNORED
from thinkml.data import find_marker, unlabeled, warn_of_missing_text
from thinkml.data.dataframes import column_names, is_frame, take_column
from thinkml.errors import warn_user
from thinkml.tasks import Task
from thinkml.training.training_data import Examples, Stream, TrainRequest, rows_of_weight


def warn_of_modes(model: nnx.Module) -> None:
    """Warns of layers whose modes training changes, or does not reach."""
    how = (
        'Give the class of the model a method train(self, **attributes) that calls '
        'super().train(**attributes) and then'
    )
    if frozen := frozen_by_hand(model):
        warn_user(
            f'model: {_some_names(frozen)} in evaluation mode beside layers in training mode. '
            'Training switches them all: their dropout is on, their statistics move. To keep '
            f'these as they are: {how} self.layer.eval(); to train all of them, call model.train() '
            'before.'
        )
    if inner := inner_switches(model):
        warn_user(
            f'model: {_some_names(inner)} not called, since flax calls these methods of the '
            f'outermost module alone. {how} self.layer.train().'
        )


def _some_names(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(names[:3])}{more} {"is" if len(names) == 1 else "are"}'


def warn_of_label_column(request: TrainRequest) -> None:
    """Warns of a column of the inputs that is the label."""
    name = getattr(request.y_train, 'name', None)
    names = column_names(request.X_train) if is_frame(request.X_train) else ()
    if name is None or str(name) not in names:
        return
    column = take_column(request.X_train, names.index(str(name)))
    if np.array_equal(np.asarray(column), np.asarray(request.y_train)):
        warn_user(
            f'X_train: got the column {name!r}, which is also y_train: the model sees the answer. '
            f'Leave it out, or pass its name alone: y_train={name!r}.'
        )


def warn_of_one_class(task: Task, y: np.ndarray, argument: str) -> None:
    """Warns of labels that are all the same class."""
    if task.type.has_one_class and len(_occurring(y, task)) == 1:
        warn_user(
            f'{argument}: got only one class ({len(y):,} rows of it), so there is nothing to tell '
            'apart. Check how the rows were selected.'
        )


def warn_of_classes_only_in_validation(
    task: Task, train: Examples | Stream | None, val: Examples | Stream | None, argument: str
) -> None:
    """Warns of classes that occur in the validation data alone."""
    if task.classes is None or not (isinstance(train, Examples) and isinstance(val, Examples)):
        return
    counted = rows_of_weight(val)
    alone = np.setdiff1d(_occurring(val.y[counted], task), _occurring(train.y[train.rows], task))
    if alone.size:
        shown = ', '.join(repr(task.classes[index]) for index in alone[:10])
        shown += ', ...' if alone.size > 10 else ''
        one = alone.size == 1
        noun, nouns = task.type.nouns
        warn_user(
            f'{argument}: the {noun if one else nouns} {shown} '
            f'occur{"s" if one else ""} in the validation data only, so that no model can learn '
            f'{"it" if one else "them"}. Hold out fewer rows or others, or remove these.'
        )


def _occurring(y: np.ndarray, task: Task) -> np.ndarray:
    """Returns the indices of the classes, or of the labels of a multilabel task, that occur."""
    if task.type.has_many_labels:
        return np.flatnonzero(y.reshape(-1, y.shape[-1]).any(axis=0))
    found = np.unique(y)
    return found[found != IGNORED]


def warn_of_unlabeled(
    targets: np.ndarray, task: Task, request: TrainRequest, argument: str
) -> None:
    """Warns of numbers and text that mark rows without a label in other libraries."""
    warn_of_missing_text(targets, argument, 'a class')
    marker = find_marker(targets)
    if marker is None or marker == task.ignored:
        return
    if task.element_shape:
        warn_user(
            f'{argument}: {marker} counts like the other labels ({task.in_words}). If it marks '
            f'elements without a label, pass ignore_label={marker}.'
        )
        return
    if not task.is_classification:
        # A custom loss may handle it.
        is_class = request.loss_fn is None and set(np.unique(targets)) == {0, 1, marker}
    else:
        # Two classes may be any numbers; -1, 0 and 1 are signs; 0, 1, 2, ... are indices.
        classes = task.classes or ()
        is_class = len(classes) > 2 and classes not in ((-1, 0, 1), tuple(range(len(classes))))
    if is_class:
        what = 'a class' if task.is_classification else 'a number to predict'
        warn_user(
            f'{argument}: {marker} is {what} like the others ({task.in_words}). '
            + unlabeled(marker, is_class=task.is_classification)
        )


def warn_of_new_classes(known: Task | None, task: Task, argument: str) -> None:
    """Warns if a trained model is trained for other classes than before."""
    if known is not None and known.classes != task.classes:
        warn_user(
            f'{argument}: the model was trained for {known.in_words}, and now for {task.in_words}: '
            'its outputs change their meaning. Make a new model if that is not intended.'
        )
