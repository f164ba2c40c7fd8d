"""Predictions of any model, in the user's own labels."""

from typing import Any

import numpy as np

from thinkml.core import predict_outputs
from thinkml.data import check_inputs_of, decode, probabilities
from thinkml.errors import NotTrainedError
from thinkml.record import Task, record_of


def predict(model: Any, X: Any) -> np.ndarray:
    """Predicts labels (classification) or numbers (regression).

    The model and its mode stay as they were. Any number of rows: they are sent to the device in
    batches.

    Args:
        model: a trained or loaded model.
        X: inputs, one row per example.

    Returns:
        ``[rows]`` labels of the kind the model was trained on (text stays text), or rows where it
        was trained on rows: one-hot, multilabel, several targets.

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
    return decode(predict_outputs(model, check_inputs_of(model, X, 'X')), task)


def predict_proba(model: Any, X: Any) -> np.ndarray:
    """Predicts the probability of each class.

    Args:
        model: a trained or loaded classifier.
        X: inputs, one row per example.

    Returns:
        float32 ``[rows, classes]`` in the order of the sorted labels; for multilabel the
        probability of each label.

    Raises:
        NotTrainedError: if the model was neither trained by ThinkML nor loaded.
        DataError: for inputs the model can't take, or a regression model.
    """
    task = _task_of(model)
    return probabilities(predict_outputs(model, check_inputs_of(model, X, 'X')), task)


def _task_of(model: Any) -> Task:
    task = record_of(model).task
    if task is None:
        raise NotTrainedError(
            f'model: nothing is known of what this {type(model).__name__} predicts. Train it with '
            'ModelTrainer or load it with ModelManager first.'
        )
    return task
