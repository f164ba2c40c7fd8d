"""Predictions of any model, as the labels it was trained on."""

import numpy as np

from thinkml.core import make_predict, predict_outputs
from thinkml.core.model.forward import Reduce, largest_output
from thinkml.data import decode, is_batches, open_batches, open_rows_of, probabilities
from thinkml.data.predictions import decode_indices
from thinkml.errors import NotTrainedError
from thinkml.model_record import record_of
from thinkml.tasks import Task
from thinkml.typing import Inputs, Model


def predict(model: Model, X: Inputs) -> np.ndarray:
    """Predicts labels (classification) or numbers (regression).

    The model and its mode are not changed. There may be any number of rows: they are read and sent
    to the device in batches.

    Args:
        model: a trained or loaded model.
        X: inputs, one row per example, of any kind that training takes: arrays, data frames, files
            (see `thinkml.data.open_rows`), batches (`thinkml.data.open_batches`). Labels in them
            are ignored.

    Returns:
        ``[rows]`` labels of the kind the model was trained on (text stays text), or one row per
        example if it was trained on these: one-hot, multilabel, several targets.

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
    if task.element_shape and task.num_outputs > 1 and task.kind in ('binary', 'multiclass'):
        # The outputs of tokens and pixels are many times larger than their labels.
        return decode_indices(_outputs(model, X, largest_output), task)
    return decode(_outputs(model, X), task)


def predict_proba(model: Model, X: Inputs) -> np.ndarray:
    """Predicts the probability of each class.

    Args:
        model: a trained or loaded classifier.
        X: inputs, as in `predict`.

    Returns:
        float64 ``[rows, classes]`` in the order of the sorted labels; for a multilabel model the
        probability of each label.

    Raises:
        NotTrainedError: if the model was neither trained by ThinkML nor loaded.
        DataError: for inputs the model can't take, or a regression model.
    """
    task = _task_of(model)
    return probabilities(_outputs(model, X), task)


def _outputs(model: Model, X: Inputs, reduce: Reduce | None = None) -> np.ndarray:
    if not is_batches(X):
        return predict_outputs(model, open_rows_of(model, X, 'X'), reduce=reduce)
    batches = open_batches(X, 'X', with_labels=False, like=record_of(model).input_spec)
    predict = make_predict(model, batches.peek().x, reduce=reduce)
    return np.concatenate([predict(batch.x) for batch in batches.iterate()])


def _task_of(model: Model) -> Task:
    task = record_of(model).task
    if task is None:
        raise NotTrainedError(
            f'model: this {type(model).__name__} has no task, expected a trained or loaded model. '
            'Train it with ModelTrainer or load it with ModelManager first. If it has the arrays '
            'of a trained model: thinkml.models.attach_record(model, '
            'thinkml.models.record_of(trained)).'
        )
    return task
