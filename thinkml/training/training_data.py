"""Training and validation data: opened, checked and encoded."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from thinkml.core import Objective
from thinkml.core.objectives.elements import IGNORED
from thinkml.core.objectives.heads import part_of
from thinkml.core.objectives.losses import decides
from thinkml.data import (
    Batches,
    Rows,
    check_lengths,
    class_weight_table,
    example_weights,
    fingerprint,
    is_batches,
    number_groups,
    open_batches,
    open_data,
    open_rows,
    some_rows,
    split_rows,
    with_ranges,
)
from thinkml.data.head_targets import (
    check_any_targets,
    naming_head,
    num_rows_of,
    rows_at,
)
from thinkml.data.sample_weights import shift_of
from thinkml.data.targets import counted_rows
from thinkml.errors import ConfigError, DataError, ModelTypeError, unknown_name
from thinkml.model_record import InputSpec
from thinkml.tasks import AnyTask, Composite, Task
from thinkml.training.config import TrainingConfig
from thinkml.typing import PyTree

R = TypeVar('R')


class Examples(NamedTuple):
    """Rows with their encoded targets.

    Attributes:
        x: the inputs of all rows.
        y: the encoded targets of all rows, or a dict of them by head.
        rows: the rows to use.
        weight: the weight of each row's loss, float32, for all rows, or a dict by head; None if all
            are 1.
        room: the number of rows that may be used in later trainings, if that number grows; else
            None.
        lengths: the number of positions of each row, for sequences that were padded and have a
            mask; else None.
    """

    x: Rows
    y: PyTree
    rows: np.ndarray
    weight: PyTree
    room: int | None = None
    lengths: np.ndarray | None = None


def rows_of_weight(examples: Examples) -> np.ndarray:
    """Returns the rows with an element that is not ignored and whose weight is above 0."""
    parts = examples.y if isinstance(examples.y, dict) else {None: examples.y}
    counts = [
        _counts(labels, part_of(examples.weight, name), examples.rows)
        for name, labels in parts.items()
    ]
    return examples.rows[np.stack(counts).any(axis=0)]


def _counts(labels: np.ndarray, weight: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    counts = np.ones((len(rows), 1), bool)
    if weight is not None:
        counts = weight[rows].reshape(len(rows), -1) > 0
    labels = labels[rows]
    if labels.ndim > 1 and labels.dtype.kind == 'i':
        counts = counts & (labels.reshape(len(rows), -1) != IGNORED)
    return np.asarray(counts.any(axis=1))


def check_counted(examples: Examples, argument: str) -> None:
    """Raises a `DataError` if all elements of a data set are ignored: no loss has a mean then."""
    if not len(rows_of_weight(examples)):
        raise DataError(
            f'{argument}: each element is ignored or has weight 0, expected some that count, whose '
            'mean the loss is. Choose other rows.'
        )


class Stream(NamedTuple):
    """Batches from a source, and how to encode them.

    Attributes:
        batches: the source.
        task: the meaning of the labels.
        class_table: the weight of each class, or a dict by head; None if all are 1.
        weight_shift: the power of 2 that the weights of all batches are multiplied by.
        advice: a sentence for errors about unknown labels; empty if the task was known before.
        has_element_weights: True if the batches hold a weight for each element of a row; a dict of
            bools by head if they hold weights by head.
        keeps_ignored: True if rows whose label is ignored are passed on, with the label -1, and not
            left out: an objective may learn from their inputs.
    """

    batches: Batches
    task: AnyTask
    class_table: PyTree = None
    weight_shift: int = 0
    advice: str = ''
    has_element_weights: bool | dict[str, bool] = False
    keeps_ignored: bool = False


class TrainRequest(NamedTuple):
    """The arguments of ``train`` that say what is to be learned, as the user passed them.

    Attributes:
        rows: the rows of ``X_train`` to use; None for all. Data sets that grow within an array of
            one size share compiled programs, also while they are smaller than a batch.
        known: the inputs of earlier trainings; None for those in the model's record.
    """

    X_train: Any
    y_train: Any
    X_val: Any = None
    y_val: Any = None
    loss_fn: Any = None
    metrics: Sequence[Any] | Mapping[str, Any] | None = None
    class_weights: Any = None
    sample_weight: Any = None
    augmentation: Any = None
    groups: Any = None
    rows: np.ndarray | None = None
    known: InputSpec | None = None
    ignore_label: Any = None
    loss_weights: Any = None
    max_length: int | None = None
    task: Any = None
    step: Any = None

    @property
    def sees_model(self) -> bool:
        """Returns True if the loss calls the model itself, so that targets need not fit outputs."""
        of_step = self.step is not None and self.loss_fn is None
        return of_step or isinstance(self.loss_fn, Objective)

    def with_text_names(self) -> 'TrainRequest':
        """Returns the request with positions of a tuple of outputs as text: ``'0'`` for 0."""

        def named(value: Any) -> Any:
            are_positions = isinstance(value, Mapping) and all(type(name) is int for name in value)
            return {str(name): part for name, part in value.items()} if are_positions else value

        arguments = (
            'loss_fn', 'metrics', 'loss_weights', 'sample_weight', 'ignore_label', 'task'
        )  # fmt: skip
        return self._replace(**{name: named(getattr(self, name)) for name in arguments})

    def check_names(self, argument: str, task: Composite) -> None:
        """Raises a `ConfigError` for a dict with names that are not those of heads."""
        value = getattr(self, argument)
        if isinstance(value, Mapping):
            unknown = [name for name in value if name not in task.by_name]
            if unknown:
                raise ConfigError(unknown_name(argument, unknown[0], task.by_name))

    def of_head(self, head: str, task: Composite) -> 'TrainRequest':
        """Returns the request for one head: its loss, metrics, weights and ignored label."""

        def part(argument: str) -> Any:
            self.check_names(argument, task)
            value = getattr(self, argument)
            return value.get(head) if isinstance(value, Mapping) else value

        if self.class_weights is not None and not isinstance(self.class_weights, Mapping):
            raise ConfigError(
                f'class_weights: got {self.class_weights!r} for {task.in_words}, expected a dict '
                f'by head, for instance {{{head!r}: {self.class_weights!r}}}.'
            )
        arguments = ('loss_fn', 'metrics', 'class_weights', 'sample_weight', 'ignore_label')
        return self._replace(**{argument: part(argument) for argument in arguments})


class InputData(NamedTuple):
    """Training inputs and labels, before the task is known.

    Attributes:
        batches: the source of batches; None for rows.
        x: the rows, or the inputs of the first batch.
        inputs: the shape, dtype and range of a row of inputs.
        targets: the labels, or those of the first batch; a dict of them for several heads.
        labels_from: the name of the labels, for errors.
        advice: a sentence for errors about labels, if only the first batch was looked at.
    """

    batches: Batches | None
    x: Rows | PyTree
    inputs: InputSpec
    targets: PyTree
    labels_from: str = 'y_train'
    advice: str = ''


def open_inputs(
    request: TrainRequest, config: TrainingConfig, names: InputSpec | None
) -> InputData:
    """Opens the inputs and labels of a training.

    Args:
        request: the arguments of ``train``.
        config: the settings.
        names: the names of columns that the model was trained on; None for any.

    Raises:
        DataError: for inputs or labels that can not be trained on.
    """
    if is_batches(request.X_train):
        batches, x, targets = open_stream(request, config, names)
        return InputData(
            batches=batches,
            x=x,
            inputs=with_ranges(batches.inputs, x),
            targets=targets,
            labels_from=f'{batches.argument}, batch 1',
            advice=first_batch_advice(request.loss_fn),
        )
    if has_no_labels(request):
        x = open_rows(request.X_train, 'X_train', names)
        return InputData(
            batches=None,
            x=x,
            inputs=with_ranges(x.inputs, some_rows(x)),
            targets=np.zeros(len(x), np.int32),
        )
    x, targets = open_data(request.X_train, request.y_train, like=names)
    check_lengths({'X_train': x, 'y_train': targets})
    return InputData(batches=None, x=x, inputs=with_ranges(x.inputs, some_rows(x)), targets=targets)


def has_no_labels(request: TrainRequest) -> bool:
    """Returns True for an objective or a custom step beside rows without labels."""
    return request.sees_model and request.y_train is None and not is_batches(request.X_train)


def open_stream(
    request: TrainRequest, config: TrainingConfig, names: InputSpec | None
) -> tuple[Batches, Any, PyTree]:
    """Returns the source of batches, and the inputs and labels of its first batch."""
    label = label_of_batches(request.y_train, 'y_train')
    for name in ('sample_weight', 'groups'):
        if getattr(request, name) is not None:
            raise DataError(
                f'{name}: got one beside batches, expected none. Let each batch be (inputs, '
                'labels, weights).'
                if name == 'sample_weight'
                else f'{name}: got them beside batches, which hold out no rows. Pass X_val.'
            )
    batches = open_batches(request.X_train, 'X_train', label=label, like=names)
    if config.learning_rate == 'auto':
        check_again(batches, "learning_rate='auto', which reads some of it before training")
    check_epochs(batches, config)
    first = batches.peek()
    return batches, first.x, check_any_targets(first.y, 'X_train, batch 1')


def label_of_batches(y: Any, argument: str) -> str | None:
    """Returns the name of the labels within batches; None to find them."""
    if not (y is None or isinstance(y, str)):
        raise DataError(
            f'{argument}: got a {type(y).__name__} beside batches, which hold their labels '
            'themselves. Leave it out, or pass the name of the labels; validation data goes by '
            'name, X_val=...'
        )
    return y


def check_epochs(batches: Batches, config: TrainingConfig) -> None:
    """Raises a `DataError` for an iterator beside several epochs."""
    # With max_steps the first epoch may be all there is.
    if config.epochs > 1 and config.max_steps is None:
        check_again(batches, f'epochs={config.epochs}')


def check_again(batches: Batches, needed_for: str) -> None:
    """Raises a `DataError` for an iterator that is needed more than once."""
    if batches.has_one_epoch:
        raise DataError(
            f'{batches.argument}: got an iterator, which is used up after one epoch, with '
            f'{needed_for}. Pass the function that makes it, without calling it, or an object '
            'with __iter__.'
        )


def first_batch_advice(loss_fn: Any) -> str:
    """Returns how labels may be misread, if only the first batch was looked at."""
    regression = (
        '' if decides(loss_fn) else "; where they are numbers to predict, pass loss_fn='mse'"
    )
    return (
        'The task is read from batch 1 alone: let it have each of the classes (shuffle the '
        f'source){regression}.'
    )


def with_advice(advice: str, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Calls a function that checks labels, and adds a sentence to its errors."""
    try:
        return function(*args, **kwargs)
    except DataError as error:
        if not advice:
            raise
        raise DataError(f'{error} {advice}') from error


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Adds a sentence to the errors about data and models that are raised within the block."""
    try:
        yield
    except (DataError, ModelTypeError) as error:
        raise type(error)(f'{error} {advice}') from error


def make_stream(
    batches: Batches, task: AnyTask, request: TrainRequest, config: TrainingConfig, advice: str
) -> Stream:
    """Returns a source of batches with the weights of its classes."""
    if config.validation_split != 0 and request.X_val is None:
        raise ConfigError(
            f'validation_split: got {config.validation_split!r} for batches, from which no rows '
            'can be held out. Pass X_val, another source of batches or arrays.'
        )
    table: PyTree = None
    if request.class_weights is None:
        pass
    elif isinstance(task, Composite):
        table = {}
        for name, head in task.heads:
            with naming_head(name):
                table[name] = _class_table(head, request.of_head(name, task).class_weights)
    else:
        table = _class_table(task, request.class_weights)
    return Stream(
        batches=batches,
        task=task,
        class_table=table,
        weight_shift=weight_shift(batches),
        advice=advice,
        has_element_weights=has_element_weights(batches),
        keeps_ignored=request.sees_model,
    )


def _class_table(task: Task, class_weights: Any) -> np.ndarray | None:
    if class_weights is None:
        return None
    if isinstance(class_weights, str) and class_weights == 'balanced':
        raise DataError(
            "class_weights: got 'balanced' for batches, whose classes can not be counted before "
            'training. Pass a dict of a weight for each label.'
        )
    return class_weight_table(np.zeros(0, np.int32), task, class_weights)


def has_element_weights(batches: Batches) -> bool | dict[str, bool]:
    """Returns True if the first batch has a weight for each element; the others must have, too."""
    weight = batches.peek().weight
    if isinstance(weight, dict):
        return {name: part.ndim > 1 for name, part in weight.items()}
    return weight is not None and weight.ndim > 1


def weight_shift(batches: Batches) -> int:
    """Returns the shift of the first batch, so that a resumed run has the same one."""
    weight = batches.peek().weight
    if weight is None:
        return 0
    return shift_of(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(weight)]))


def weights_of_examples(
    y: PyTree, task: AnyTask, request: TrainRequest, rows: np.ndarray | None = None
) -> PyTree:
    """Returns the weight of each row, see `example_weights`; a dict of them for several heads."""
    if request.sees_model and (isinstance(task, Composite) or task.element_shape):
        y, task = np.zeros(num_rows_of(y), np.float32), Task('regression', None, 1)  # of rows
    if isinstance(task, Task):
        return example_weights(y, task, request.class_weights, request.sample_weight, rows=rows)
    weights = {}
    for name, head in task.heads:
        of_head = request.of_head(name, task)
        with naming_head(name):
            weight = example_weights(
                y[name], head, of_head.class_weights, of_head.sample_weight, rows=rows
            )
        weights[name] = without_ignored(weight, y[name], head)
    if all(weight is None for weight in weights.values()):
        return None
    ones = np.ones(num_rows_of(y), np.float32)
    return {name: ones if weight is None else weight for name, weight in weights.items()}


def without_ignored(weight: np.ndarray | None, y: np.ndarray, task: Task) -> np.ndarray | None:
    """Returns the weights of the rows of a head, 0 for those whose one label is ignored."""
    counts = counted_rows(y, task)
    if counts.all():
        return weight
    return np.where(counts, np.float32(1) if weight is None else weight, np.float32(0))


def select_counted(y: PyTree, task: AnyTask, rows: np.ndarray, argument: str) -> np.ndarray:
    """Returns the rows that count: those whose one label is not ignored.

    A row of several heads stays, with weight 0 for the heads that ignore it.

    Raises:
        DataError: if no row is left.
    """
    if isinstance(task, Composite):
        return rows
    kept = rows[counted_rows(y[rows], task)]
    if not len(kept):
        raise DataError(
            f'{argument}: each label is {task.ignored}, which marks rows that are ignored, '
            'expected some others. Choose other rows.'
        )
    return kept


def make_examples(
    x: Rows, y: PyTree, task: AnyTask, request: TrainRequest, config: TrainingConfig
) -> tuple[Examples, Examples | None]:
    """Returns the rows to train on, and those held out for validation."""
    rows, rows_val = np.arange(len(x)) if request.rows is None else request.rows, None
    room, groups = None if request.rows is None else len(x), request.groups
    if not request.sees_model:
        all_rows, rows = rows, select_counted(y, task, rows, 'y_train')
        if groups is not None and len(rows) < len(all_rows):
            groups = number_groups(groups, len(all_rows), 'groups')[np.isin(all_rows, rows)]
    order, share = config.held_out
    if request.X_val is None and request.y_val is None and share > 0:
        parts = split_rows(rows_at(y, rows), task, share, config.seed, order=order, groups=groups)
        rows, rows_val = (rows[part] for part in parts)
    elif request.groups is not None:
        raise ConfigError(
            'groups: got them where no rows are held out, expected TrainingConfig('
            'validation_split=...) and no X_val.'
        )
    weight = weights_of_examples(y, task, request, rows)
    if rows_val is None:
        return Examples(x, y, rows, weight, room), None
    if weight is not None:
        # Class weights change what is learned, not what is true: validation ignores them.
        alone = weights_of_examples(y, task, request._replace(class_weights=None))
        if isinstance(weight, dict):
            for name, of_head in weight.items():
                with naming_head(name):
                    _set_weights(of_head, part_of(alone, name), rows_val)
        else:
            _set_weights(weight, alone, rows_val)
    return Examples(x, y, rows, weight, room), Examples(x, y, rows_val, weight)


def _set_weights(weight: np.ndarray, values: np.ndarray | None, rows: np.ndarray) -> None:
    """Sets the weights of rows held out for validation; 1 if there are no values."""
    weight[rows] = 1 if values is None else values[rows]
    if not weight[rows].any():
        raise DataError(
            f'sample_weight: got weight 0 for each of the {len(rows):,} rows held out for '
            'validation, expected some above 0, whose mean val_loss is. Hold out other '
            'rows (validation_split, seed), or pass X_val and y_val.'
        )


def identify(data: Examples | Stream, *, in_part: bool) -> dict[str, Any]:
    """Returns what identifies a data set: a fingerprint, or for batches their number and inputs."""
    if isinstance(data, Stream):
        # Without a hash: a source may yield another first batch in another process.
        return {'batches': data.batches.num_batches, 'inputs': str(data.batches.inputs)}
    return fingerprint(data.x, data.y, data.weight, rows=data.rows if in_part else None)
