"""What models say of rows: probabilities, features, and how they disagree."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from thinkml.core import (
    WithDropout,
    WithFeatures,
    make_predict,
    num_outputs,
    predict_outputs,
)
from thinkml.data import Rows, decode, log_probabilities, probabilities
from thinkml.errors import DataError, ModelTypeError
from thinkml.model_record import Task

# Passes with dropout are kept for this many rows at a time.
_DRAWN_ROWS = 2**16


@dataclasses.dataclass(frozen=True)
class PoolPredictions:
    """Models, and the rows they are asked about; each thing is computed when it is first read.

    Attributes:
        models: trained alike; several are an ensemble.
        task: what they predict; None where nothing was learned yet.
        rows: all rows of the pool.
        first: the rows that have labels from the beginning; None for none.
        num_draws: passes with dropout, where there is one model.
        key: of the dropout.
    """

    models: Sequence[Any]
    task: Task | None
    rows: Rows
    first: Rows | None
    num_draws: int
    key: jax.Array

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        """Raw outputs of each model, ``[models, rows, outputs]``.

        Raises:
            DataError: if they are not finite.
        """
        return _finite(np.stack([_flat(self._outputs_of(model)) for model in self.models]))

    def _outputs_of(self, model: Any) -> np.ndarray:
        return predict_outputs(model, self.rows, argument='X_unlabeled')

    @functools.cached_property
    def _outputs_and_features(self) -> np.ndarray:
        return _finite(self._outputs_of(WithFeatures(self.models[0])))

    @property
    def features(self) -> np.ndarray:
        """What the last layer of the (first) model takes, ``[rows, features]``."""
        return self._outputs_and_features[:, self.num_outputs :]

    @functools.cached_property
    def has_features(self) -> bool:
        """Whether the (first) model has any."""
        try:
            self.check_features()
        except ModelTypeError:
            return False
        return True

    def features_of_known(self, available: np.ndarray) -> np.ndarray:
        """Features of the rows that others are to be unlike: labelled, asked for, or skipped.

        Args:
            available: bool ``[rows]``, False for these rows of the pool.
        """
        of_pool = self.features[~available]
        return of_pool if self.first is None else np.concatenate([self._first_features, of_pool])

    @functools.cached_property
    def _first_features(self) -> np.ndarray:
        return predict_outputs(WithFeatures(self.models[0]), self.first)[:, self.num_outputs :]

    @functools.cached_property
    def num_outputs(self) -> int:
        """Numbers a model returns for a row."""
        return num_outputs(self.models[0], self.rows.spec, 'X_unlabeled')

    @property
    def _outputs_found(self) -> np.ndarray:
        """The outputs, from the pass that found the features if there was one."""
        known = '_outputs_and_features' in vars(self) and len(self.models) == 1
        return self._outputs_and_features[None, :, : self.num_outputs] if known else self.outputs

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """The mean of the models' probabilities of the classes, ``[rows, classes]``."""
        assert self.task is not None
        return mean_probabilities(self._outputs_found, self.task)

    @functools.cached_property
    def log_probabilities(self) -> np.ndarray:
        """The logarithms of the mean probabilities, as `log_probabilities` lays them out."""
        assert self.task is not None
        of_each = [log_probabilities(one, self.task) for one in self._outputs_found]
        return np.logaddexp.reduce(of_each) - np.log(len(of_each))

    @property
    def predictions(self) -> np.ndarray:
        """Labels or numbers, ``[rows, ...]``."""
        assert self.task is not None
        return mean_predictions(self.outputs, self.task)

    def check_features(self) -> None:
        """Raises a `ModelTypeError` for a model that has none."""
        num_outputs(WithFeatures(self.models[0]), self.rows.spec, 'X_unlabeled')

    def check_draws(self) -> None:
        """Raises a `ModelTypeError` for a single model without dropout."""
        if len(self.models) == 1:
            WithDropout(self.models[0], 1, self.key).functionalize(self.rows.spec, self.key)

    def by_draws(self, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Scores each row by how models or passes with dropout differ.

        Args:
            score: takes ``[draws, some rows, ...]``: logarithms of the classes' probabilities, as
                `thinkml.data.log_probabilities` has them, or outputs of a regression; returns
                ``[some rows]``.
        """
        if len(self.models) > 1:
            return score(self._meant(self.outputs))
        predict = make_predict(WithDropout(self.models[0], self.num_draws, self.key), self.rows)
        scores = []
        for start in range(0, len(self.rows), _DRAWN_ROWS):
            stop = min(start + _DRAWN_ROWS, len(self.rows))
            outputs = predict(self.rows.part(start, stop))
            outputs = outputs.reshape(stop - start, self.num_draws, -1)
            scores.append(score(self._meant(np.moveaxis(outputs, 1, 0))))
        return np.concatenate(scores)

    def _meant(self, outputs: np.ndarray) -> np.ndarray:
        assert self.task is not None
        if not self.task.is_classification:
            return outputs
        return np.stack([log_probabilities(one, self.task) for one in outputs])


def mean_probabilities(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Probabilities ``[rows, classes]`` of outputs ``[models, rows, outputs]``."""
    return np.mean([probabilities(one, task) for one in outputs], axis=0)


def mean_predictions(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Labels or numbers of outputs ``[models, rows, outputs]``, by the mean over the models."""
    if len(outputs) == 1 or not task.is_classification:
        return decode(outputs.mean(0), task)
    mean = mean_probabilities(outputs, task)
    # As outputs that decode the same: of one class or label, above 0 is yes.
    yes_or_no = task.kind == 'multilabel' or task.num_outputs == 1
    return decode(mean[:, -task.num_outputs :] - 0.5 if yes_or_no else mean, task)


class Ensemble:
    """Models that predict together: the mean of their probabilities, or of their numbers.

    Attributes:
        classes_: the labels in the order of the probabilities.
    """

    def __init__(self, models: Sequence[Any], task: Task, open_rows: Callable[[Any], Rows]):
        self._models, self._task, self._open = models, task, open_rows
        if task.classes is not None:
            self.classes_ = np.asarray(task.classes)

    def _outputs(self, X: Any) -> np.ndarray:
        rows = self._open(X)
        return np.stack([_flat(predict_outputs(model, rows)) for model in self._models])

    def predict_proba(self, X: Any) -> np.ndarray:
        """``[rows, classes]``."""
        return mean_probabilities(self._outputs(X), self._task)

    def predict(self, X: Any) -> np.ndarray:
        """``[rows]``."""
        return mean_predictions(self._outputs(X), self._task)


def _finite(outputs: np.ndarray) -> np.ndarray:
    if not np.isfinite(outputs).all():
        raise DataError(
            'model: it returns NaN or infinite values for the pool, so nothing can be chosen by '
            'them: its training has diverged. Lower the learning_rate.'
        )
    return outputs


def _flat(outputs: np.ndarray) -> np.ndarray:
    return outputs.reshape(len(outputs), -1)
