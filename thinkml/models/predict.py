"""Predictions of any model, as the labels it was trained on."""

import dataclasses
from typing import Any

import jax
import numpy as np

from thinkml.core import make_predict, predict_outputs
from thinkml.core.model.forward import Reduce, largest_output
from thinkml.core.objectives.heads import Selection
from thinkml.data import decode, is_batches, open_batches, open_rows_of, probabilities
from thinkml.data.predictions import decode_frames, decode_indices
from thinkml.data.sequences import PaddedData, pad_sequences, with_frame_mask
from thinkml.errors import ConfigError, DataError, NotTrainedError, is_whole
from thinkml.model_record import record_of
from thinkml.tasks import AnyTask, Task
from thinkml.typing import Inputs, Model, PyTree


def predict(model: Model, X: Inputs, *, seed: int = 0) -> PyTree:
    """Predicts labels (classification) or numbers (regression).

    The model and its mode are not changed. There may be any number of rows: they are read and sent
    to the device in batches.

    Args:
        model: a trained or loaded model.
        X: inputs, one row per example, of any kind that training takes: arrays, data frames, files
            (see `thinkml.data.open_rows`), batches (`thinkml.data.open_batches`). Labels in them
            are ignored.
        seed: the seed of a model that draws random numbers when it predicts. Each row has its own
            draws, whatever the number of rows and devices.

    Returns:
        ``[rows]`` labels of the kind the model was trained on (text stays text), or one row per
        example if it was trained on these: one-hot, multilabel, several targets. A model of
        sequences (see `thinkml.core.CTC`) returns a list of arrays of labels. A model with
        several heads returns a dict of them by head, or a tuple if it returns a tuple.

    Raises:
        NotTrainedError: if the model was neither trained by ThinkML nor loaded.
        DataError: for inputs the model can't take.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.models import predict
        >>> from thinkml.training import ModelTrainer, TrainingConfig
        >>> X = np.array([[-1.0], [-2.0], [1.0], [2.0]])
        >>> model = nnx.Linear(1, 2, rngs=nnx.Rngs(0))
        >>> trainer = ModelTrainer(TrainingConfig(epochs=50, learning_rate=0.1))
        >>> _ = trainer.train(model, X, ['no', 'no', 'yes', 'yes'], progress=False)
        >>> predict(model, [[-3.0], [3.0]]).tolist()
        ['no', 'yes']
    """
    task = _task_of(model)
    padded = pad_sequences(model, X, None, argument='X', like=record_of(model).input_spec)
    if isinstance(task, Task):
        reduction = largest_output if _chooses_on_device(task) else None
        reduced = _outputs(model, padded.X, reduction, seed)
        return _cut(_decoded(reduced, task), task, padded)
    outputs = _outputs(model, padded.X, _Reduction(task.heads), seed)
    return task.restore(
        task.map(lambda head, part: _cut(_decoded(part, head), head, padded), outputs)
    )


def predict_proba(model: Model, X: Inputs, *, seed: int = 0) -> PyTree:
    """Predicts the probability of each class.

    Args:
        model: a trained or loaded classifier.
        X: inputs, as in `predict`.
        seed: as in `predict`.

    Returns:
        float64 ``[rows, classes]`` in the order of the sorted labels; for a multilabel model the
        probability of each label. A model with several heads returns a dict of those of its
        classifying heads; a tuple has None for the others.

    Raises:
        NotTrainedError: if the model was neither trained by ThinkML nor loaded.
        DataError: for inputs the model can't take, or a regression model.
    """
    task = _task_of(model)
    padded = pad_sequences(model, X, None, argument='X', like=record_of(model).input_spec)
    if isinstance(task, Task):
        return _cut(probabilities(_outputs(model, padded.X, None, seed), task), task, padded)
    outputs = _outputs(model, padded.X, Selection(tuple(task.by_name)), seed)
    found = task.map(
        lambda head, part: (
            _cut(probabilities(part, head), head, padded) if head.is_classification else None
        ),
        outputs,
    )
    if all(values is None for values in found.values()):
        raise DataError('model: its heads predict numbers, which have no probabilities.')
    if not task.is_tuple:
        found = {name: values for name, values in found.items() if values is not None}
    return task.restore(found)


def _chooses_on_device(task: Task) -> bool:
    """Returns True if labels are chosen on the device.

    The outputs of tokens and pixels are many times larger than their labels.
    """
    has_classes = task.num_outputs > 1 and task.type.has_one_class
    return task.type.has_sequences or (bool(task.element_shape) and has_classes)


def _cut(values: np.ndarray, task: Task, padded: PaddedData) -> Any:
    """Returns values of positions as a list of arrays without padding, for padded sequences."""
    if padded.lengths is None or task.element_shape[:1] != (padded.length,):
        return values
    return [row[:length] for row, length in zip(values, padded.lengths, strict=True)]


def _decoded(outputs: np.ndarray, task: Task) -> Any:
    if task.type.has_sequences:
        return decode_frames(outputs, task)
    return decode_indices(outputs, task) if _chooses_on_device(task) else decode(outputs, task)


@dataclasses.dataclass(frozen=True)
class _Reduction:
    """A function that keeps the outputs with a task, and chooses labels where they are large."""

    heads: tuple[tuple[str, Task], ...]

    def __call__(self, outputs: PyTree) -> dict[str, Any]:
        parts = Selection(tuple(name for name, _ in self.heads))(outputs)
        return {
            name: largest_output(parts[name]) if _chooses_on_device(task) else parts[name]
            for name, task in self.heads
        }


def _outputs(model: Model, X: Inputs, reduce: Reduce | None, seed: int) -> PyTree:
    if not (is_whole(seed) and 0 <= seed < 2**32):
        raise ConfigError(f'seed: got {seed!r}, expected a whole number from 0 to 2**32 - 1.')
    task = _task_of(model)
    if not is_batches(X):
        rows = open_rows_of(model, X, 'X')
        model = with_frame_mask(model, task, rows.spec)
        return predict_outputs(model, rows, reduce=reduce, seed=seed)
    batches = open_batches(X, 'X', with_labels=False, like=record_of(model).input_spec)
    model = with_frame_mask(model, task, batches.peek().x)
    predict = make_predict(model, batches.peek().x, reduce=reduce, seed=seed)
    parts, first_row = [], 0
    for batch in batches.iterate():
        parts.append(predict(batch.x, first_row))
        first_row += len(jax.tree.leaves(batch.x)[0])
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _task_of(model: Model) -> AnyTask:
    task = record_of(model).task
    if task is None:
        raise NotTrainedError(
            f'model: this {type(model).__name__} has no task, expected a trained or loaded model. '
            'Train it with ModelTrainer or load it with ModelManager first. If it has the arrays '
            'of a trained model: thinkml.models.attach_record(model, '
            'thinkml.models.record_of(trained)).'
        )
    return task
