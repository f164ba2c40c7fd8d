"""What is to be learned, checked and encoded before anything is compiled."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from thinkml.core import check_trainable, functionalize, get_compute_dtype
from thinkml.core.model.embedding_lookups import check_lookups, has_lookups, lookups
from thinkml.core.model.functional import Footprint, is_model, not_a_model, outputs_of
from thinkml.core.model.output_range import misread_outputs
from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.core.model.train_eval_modes import frozen_by_hand, inner_switches
from thinkml.core.objectives.losses import decides
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import (
    Batches,
    Rows,
    check_lengths,
    check_targets,
    check_targets_held,
    class_weight_table,
    encode_targets,
    example_weights,
    find_marker,
    fingerprint,
    infer_task,
    is_batches,
    open_batches,
    open_data,
    some_rows,
    split_rows,
    unlabeled,
    warn_of_missing_text,
    warn_of_other_ranges,
    with_ranges,
)
from thinkml.data.dataframes import column_names, is_frame, take_column
from thinkml.data.input_range import check_standardised
from thinkml.data.sample_weights import shift_of
from thinkml.errors import ConfigError, DataError, ModelTypeError, warn_user
from thinkml.model_record import ArraySpec, InputSpec, Task, record_of
from thinkml.training.config import TrainingConfig
from thinkml.training.objective import Objective, make_objective

R = TypeVar('R')

# Enough to see what values there are.
_SOME_ROWS = 1000
# Few enough for any model's ids, many enough for a call to cost nothing beside them.
_BLOCK_ROWS = 2**14


class Examples(NamedTuple):
    """Rows with their encoded targets.

    Attributes:
        x: the inputs, of all rows.
        y: encoded targets, of all rows.
        rows: the rows to use.
        weight: float32, what each example's loss counts, of all rows; None where all count 1.
        room: rows up to which the rows to use grow from one training to the next; None where they
            don't.
    """

    x: Rows
    y: np.ndarray
    rows: np.ndarray
    weight: np.ndarray | None
    room: int | None = None


class Stream(NamedTuple):
    """Batches as they come, and how to encode them.

    Attributes:
        batches: the source.
        task: what the labels mean.
        class_table: the weight of each class; None where all count 1.
        weight_shift: the power of 2 that the weights of all batches are multiplied by.
        advice: a sentence on labels that the task does not have; empty where it was known before.
    """

    batches: Batches
    task: Task
    class_table: np.ndarray | None = None
    weight_shift: int = 0
    advice: str = ''


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """A model's data, task and objective, all checked.

    Attributes:
        train: what to train on.
        val: what to validate on; None for nothing.
        inputs: what a row of the inputs looks like.
        task: what the outputs mean.
        labels: an encoded label, as `jax.ShapeDtypeStruct` of a row.
        objective: loss, metrics and augmentation.
        fingerprint: identifies the training data.
        val_fingerprint: identifies the validation data; empty for none.
        footprint: what the model needs, roughly.
    """

    train: Examples | Stream
    val: Examples | Stream | None
    inputs: InputSpec
    task: Task
    labels: jax.ShapeDtypeStruct
    objective: Objective
    fingerprint: dict[str, Any]
    val_fingerprint: dict[str, Any]
    footprint: Footprint

    @property
    def spec(self) -> Any:
        """A row of the inputs, as `jax.ShapeDtypeStruct`."""
        return probe_of(self.inputs, 1)


class TrainRequest(NamedTuple):
    """The arguments of ``train`` that say what is to be learned, as the user wrote them.

    Attributes:
        rows: which rows of ``X_train`` there are; None for all. Data sets that grow within an
            array of one size share compiled programs, those smaller than a batch too.
        known: what the inputs were like before; None for what the model was trained on.
    """

    X_train: Any
    y_train: Any
    X_val: Any = None
    y_val: Any = None
    loss_fn: Any = None
    metrics: Sequence[Any] | None = None
    class_weights: Any = None
    sample_weight: Any = None
    augmentation: Any = None
    groups: Any = None
    rows: np.ndarray | None = None
    known: InputSpec | None = None


def make_setup(
    model: Any, asked: TrainRequest, config: TrainingConfig, training_metrics: tuple[str, ...] = ()
) -> TrainingSetup:
    """Checks what the user passed and encodes it.

    Args:
        model: see `thinkml.core.functionalize`.
        asked: what is to be learned.
        config: the settings.
        training_metrics: what callbacks want recorded of the training besides.

    Raises:
        DataError: for data that can't be trained on.
        ConfigError: for a loss, metric or augmentation that is unknown or does not fit the task.
        ModelTypeError: for a model that is none.
    """
    if not is_model(model):
        raise ModelTypeError(not_a_model(model))
    known = record_of(model)
    if isinstance(model, nnx.Module):
        _warn_of_modes(model)
    before = asked.known or known.input_spec
    names = None if before is None else before.names_alone()
    if is_batches(asked.X_train):
        batches, x, targets = _open_stream(asked, config, names)
        inputs = with_ranges(batches.inputs, x)
    else:
        batches = None
        _warn_of_answer(asked)
        x, targets = open_data(asked.X_train, asked.y_train, like=names)
        inputs = with_ranges(x.inputs, some_rows(x))
        targets = check_targets(targets, 'y_train')
        check_lengths({'X_train': x, 'y_train': targets})
    if before is not None:
        warn_of_other_ranges(inputs, before, 'X_train')
    check_pixels_of(model.model if isinstance(model, PartlyFrozen) else model, inputs)
    probe = probe_of(inputs, PROBE_ROWS)
    num_outputs, output_range, gathers = outputs_of(model, probe, 'X_train')
    of_labels = 'y_train' if batches is None else f'{batches.argument}, batch 1'
    advice = '' if batches is None else _of_first_batch(asked.loss_fn)
    task = with_advice(
        advice, infer_task, targets, num_outputs, argument=of_labels,
        decided=decides(asked.loss_fn), known=known.task,
    )  # fmt: skip
    _warn_of_new_classes(known.task, task)
    _warn_of_unlabeled(targets, task, asked)
    check_targets_held(targets, task, of_labels, is_first=batches is not None)
    y = encode_targets(targets, task, of_labels)
    dtype = get_compute_dtype(config.precision)
    footprint = check_trainable(model, probe, task.num_outputs, 'X_train', compute_dtype=dtype)
    objective = make_objective(
        task, _some_of(x) if isinstance(x, Rows) and x.in_memory else probe, y,
        loss_fn=asked.loss_fn, metrics=asked.metrics, augmentation=asked.augmentation,
        training_metrics=training_metrics,
    )  # fmt: skip
    if misread := misread_outputs(output_range, task, objective.is_own_loss):
        warn_user(misread)
    if batches is not None:
        advice = '' if task == known.task else advice
        train, split = _stream(batches, task, asked, config, advice), None
    else:
        _warn_of_one_class(task, y)
        train, split = _examples(x, y, task, asked, config)
    val = split or _open_validation(asked, inputs, task, config)
    if gathers:
        _check_ids(model, probe, {'X_train': train, 'X_val': val})
    _warn_of_classes_to_validate(task, train, val, 'validation_split' if split else 'y_val')
    labels = jax.ShapeDtypeStruct((1, *y.shape[1:]), y.dtype)
    return TrainingSetup(
        train, val, inputs, task, labels, objective,
        _identified(train, in_part=asked.rows is not None),
        _identified(val, in_part=split is not None),
        footprint,
    )  # fmt: skip


def _check_ids(model: Any, probe: Any, parts: dict[str, Examples | Stream | None]) -> None:
    """Checks the ids of all rows in memory, and of some others, see `check_lookups`."""
    functional = functionalize(model, probe, jax.random.key(0))
    if not has_lookups(functional, probe):
        return
    for argument, data in parts.items():
        blocks = () if data is None else _inputs_to_look_at(data)
        check_lookups([lookups(functional, x) for x in blocks], argument)


def _inputs_to_look_at(data: Examples | Stream) -> Iterator[Any]:
    """Rows in blocks of one size, the last one filled up."""
    if isinstance(data, Stream):
        yield data.batches.peek().x
        return
    rows = data.rows
    if not data.x.in_memory:
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SOME_ROWS)).astype(np.int64)]
    size = min(len(rows), _BLOCK_ROWS)
    for first in range(0, len(rows), size):
        yield data.x.take(np.resize(rows[first : first + size], size))


def check_pixels_of(model: Any, inputs: InputSpec) -> None:
    """Checks the pictures of a model that standardises them itself.

    Raises:
        DataError: see `thinkml.data.input_range.check_standardised`.
    """
    # Known by what it says: TransferModel's package is not imported for all other models.
    standardises = getattr(model, 'standardises_pixels', False) is True
    if standardises and isinstance(inputs.arrays, ArraySpec):
        check_standardised(inputs.arrays, 'X_train')


def _some_of(x: Rows) -> Any:
    """The first rows."""
    return x.take(np.arange(min(len(x), _SOME_ROWS)))


def _identified(data: Examples | Stream | None, *, in_part: bool) -> dict[str, Any]:
    if data is None:
        return {}
    if isinstance(data, Stream):
        # No hash: whether a source gives the same batch first in another process is up to it.
        return {'batches': data.batches.num_batches, 'inputs': str(data.batches.inputs)}
    return fingerprint(data.x, data.y, data.weight, rows=data.rows if in_part else None)


def _open_stream(
    asked: TrainRequest, config: TrainingConfig, names: InputSpec | None
) -> tuple[Batches, Any, np.ndarray]:
    """A source of batches, and the inputs and labels of its first one."""
    label = _label_of_batches(asked.y_train, 'y_train')
    for name in ('sample_weight', 'groups'):
        if getattr(asked, name) is not None:
            raise DataError(
                f'{name}: got one beside batches, expected none. Let each batch be (inputs, '
                'labels, weights).'
                if name == 'sample_weight'
                else f'{name}: got them beside batches, of which no rows are held out. Pass X_val.'
            )
    batches = open_batches(asked.X_train, 'X_train', label=label, like=names)
    if config.learning_rate == 'auto':
        _check_again(batches, "learning_rate='auto', which reads some of it before training")
    _check_epochs(batches, config)
    first = batches.peek()
    return batches, first.x, check_targets(first.y, 'X_train, batch 1')


def _label_of_batches(y: Any, argument: str) -> str | None:
    """The name of the labels within batches; None to find them."""
    if not (y is None or isinstance(y, str)):
        raise DataError(
            f'{argument}: got a {type(y).__name__} beside batches, which hold their labels '
            'themselves. Leave it out, or pass the name of the labels; validation data goes by '
            'name, X_val=...'
        )
    return y


def _check_epochs(batches: Batches, config: TrainingConfig) -> None:
    # With max_steps the first epoch may be all there is.
    if config.epochs > 1 and config.max_steps is None:
        _check_again(batches, f'epochs={config.epochs}')


def _check_again(batches: Batches, needed_for: str) -> None:
    """Raises a `DataError` for an iterator that is needed more than once."""
    if batches.has_one_epoch:
        raise DataError(
            f'{batches.argument}: got an iterator, which is used up after one epoch, with '
            f'{needed_for}. Pass the function that makes it, without calling it, or an object '
            'with __iter__.'
        )


def _of_first_batch(loss_fn: Any) -> str:
    """Words how labels come to be misread for which only the first batch was looked at."""
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


def _stream(
    batches: Batches, task: Task, asked: TrainRequest, config: TrainingConfig, advice: str
) -> Stream:
    if config.validation_split != 0 and asked.X_val is None:
        raise ConfigError(
            f'validation_split: got {config.validation_split!r} for batches, of which no rows can '
            'be held out. Pass X_val, another source of batches or arrays.'
        )
    shift = _shift_of(batches)
    if asked.class_weights is None:
        return Stream(batches, task, weight_shift=shift, advice=advice)
    if asked.class_weights == 'balanced':
        raise DataError(
            "class_weights: got 'balanced' for batches, whose classes can not be counted before "
            'training. Pass a dict of a weight for each label.'
        )
    table = class_weight_table(np.zeros(0, np.int32), task, asked.class_weights)
    return Stream(batches, task, table, shift, advice)


def _shift_of(batches: Batches) -> int:
    """Returns the shift of the first batch, so that a resumed run has the same one."""
    weight = batches.peek().weight
    return 0 if weight is None else shift_of(weight)


def _examples(
    x: Rows, y: np.ndarray, task: Task, asked: TrainRequest, config: TrainingConfig
) -> tuple[Examples, Examples | None]:
    """The rows to train on, and those held out for validation."""
    rows, rows_val = np.arange(len(x)) if asked.rows is None else asked.rows, None
    room = None if asked.rows is None else len(x)
    order, share = config.held_out
    if asked.X_val is None and asked.y_val is None and share > 0:
        parts = split_rows(y[rows], task, share, config.seed, order=order, groups=asked.groups)
        rows, rows_val = (rows[part] for part in parts)
    elif asked.groups is not None:
        raise ConfigError(
            'groups: got them where no rows are held out, expected TrainingConfig('
            'validation_split=...) and no X_val.'
        )
    weight = example_weights(y, task, asked.class_weights, asked.sample_weight, rows=rows)
    if rows_val is None:
        return Examples(x, y, rows, weight, room), None
    if weight is not None:
        # Class weights say how to learn, not what is true: validation goes without them.
        alone = example_weights(y, task, None, asked.sample_weight)
        weight[rows_val] = 1 if alone is None else alone[rows_val]
        if not weight[rows_val].any():
            raise DataError(
                f'sample_weight: got weight 0 for each of the {len(rows_val):,} rows held out for '
                'validation, expected some above 0, which val_loss is the mean of. Hold out other '
                'rows (validation_split, seed), or pass X_val and y_val.'
            )
    return Examples(x, y, rows, weight, room), Examples(x, y, rows_val, weight)


def _open_validation(
    asked: TrainRequest, inputs: InputSpec, task: Task, config: TrainingConfig
) -> Examples | Stream | None:
    X_val, y_val = asked.X_val, asked.y_val
    if X_val is None and y_val is None:
        return None
    if y_val is None and isinstance(asked.y_train, str):
        y_val = asked.y_train
    if X_val is not None and is_batches(X_val):
        batches = open_batches(X_val, 'X_val', label=_label_of_batches(y_val, 'y_val'), like=inputs)
        _check_epochs(batches, config)
        # Its labels now, and not after the first epoch.
        encode_targets(batches.peek().y, task, 'X_val, batch 1')
        return Stream(batches, task, weight_shift=_shift_of(batches))
    if X_val is None or (y_val is None and not _holds_labels(asked)):
        missing, given = ('X_val', 'y_val') if X_val is None else ('y_val', 'X_val')
        raise DataError(f'{missing}: got None together with {given}, expected both or neither.')
    x, targets = open_data(X_val, y_val, 'X_val', 'y_val', like=inputs)
    targets = check_targets(targets, 'y_val')
    check_lengths({'X_val': x, 'y_val': targets})
    return Examples(x, encode_targets(targets, task, 'y_val'), np.arange(len(x)), None)


def _holds_labels(asked: TrainRequest) -> bool:
    """Whether labels come with the inputs, as they did in the training data."""
    return asked.y_train is None or isinstance(asked.y_train, str)


def probe_of(inputs: InputSpec, rows: int) -> Any:
    """So many rows of the inputs, as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda part: jax.ShapeDtypeStruct((rows, *part.shape), jax.numpy.dtype(part.dtype)),
        inputs.arrays,
    )


def _warn_of_modes(model: nnx.Module) -> None:
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


def _warn_of_answer(asked: TrainRequest) -> None:
    name = getattr(asked.y_train, 'name', None)
    names = column_names(asked.X_train) if is_frame(asked.X_train) else ()
    if name is None or str(name) not in names:
        return
    column = take_column(asked.X_train, names.index(str(name)))
    if np.array_equal(np.asarray(column), np.asarray(asked.y_train)):
        warn_user(
            f'X_train: got the column {name!r}, which is also y_train: the model sees the answer. '
            f'Leave it out, or pass its name alone: y_train={name!r}.'
        )


def _warn_of_one_class(task: Task, y: np.ndarray) -> None:
    if task.kind in ('binary', 'multiclass') and len(np.unique(y)) == 1:
        warn_user(
            f'y_train: got only one class ({len(y):,} rows of it), so there is nothing to tell '
            'apart. Check how the rows were selected.'
        )


def _warn_of_classes_to_validate(
    task: Task, train: Examples | Stream, val: Examples | Stream | None, argument: str
) -> None:
    if task.classes is None or not (isinstance(train, Examples) and isinstance(val, Examples)):
        return
    counted = val.rows if val.weight is None else val.rows[val.weight[val.rows] > 0]
    alone = np.setdiff1d(_occurring(val.y[counted]), _occurring(train.y[train.rows]))
    if alone.size:
        shown = ', '.join(repr(task.classes[index]) for index in alone[:10])
        shown += ', ...' if alone.size > 10 else ''
        one = alone.size == 1
        nouns = ('label', 'labels') if task.kind == 'multilabel' else ('class', 'classes')
        warn_user(
            f'{argument}: the {nouns[0] if one else nouns[1]} {shown} '
            f'occur{"s" if one else ""} in the validation data only, so that no model can learn '
            f'{"it" if one else "them"}. Hold out fewer rows or others, or remove these.'
        )


def _occurring(y: np.ndarray) -> np.ndarray:
    """The numbers of the classes, or of the labels of a multilabel task, that occur."""
    return np.unique(y) if y.ndim == 1 else np.flatnonzero(y.any(axis=0))


def _warn_of_unlabeled(targets: np.ndarray, task: Task, asked: TrainRequest) -> None:
    """Warns of numbers and text that mark rows without a label elsewhere."""
    warn_of_missing_text(targets, 'y_train', 'a class')
    marker = find_marker(targets)
    if marker is None:
        return
    if task.kind == 'regression':
        # A loss of the user's own may know what to do with it.
        is_class = asked.loss_fn is None and set(np.unique(targets)) == {0, 1, marker}
    else:
        # Of two classes each may be any number; -1, 0 and 1 are signs; from 0 on they are indices.
        classes = task.classes or ()
        is_class = classes not in ((-1, 0, 1), tuple(range(len(classes)))) and (
            marker == -100 or len(classes) > 2
        )
    if is_class:
        what = 'a number to predict' if task.kind == 'regression' else 'a class'
        warn_user(
            f'y_train: {marker} is {what} like the others ({task.in_words}). {unlabeled(marker)}'
        )


def _warn_of_new_classes(known: Task | None, task: Task) -> None:
    if known is not None and known.classes != task.classes:
        warn_user(
            f'y_train: the model was trained for {known.in_words}, and now for {task.in_words}: '
            'its outputs change their meaning. Make a new model if that is not intended.'
        )
