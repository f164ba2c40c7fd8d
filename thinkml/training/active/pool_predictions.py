"""Predictions for a pool: probabilities, features, and how much models disagree."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

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
from thinkml.data.sequences import MASK_NAMES
from thinkml.errors import DataError, ModelTypeError
from thinkml.tasks import Task
from thinkml.typing import Inputs, Model

# Passes with dropout, and the outputs of elements, are in memory for this many rows or elements at
# a time. For elements with many outputs this many numbers are.
_ROWS_PER_BLOCK = 2**16
_NUMBERS_PER_BLOCK = 2**24

ElementScore = Literal['mean', 'max']


@dataclasses.dataclass(frozen=True)
class PoolPredictions:
    """Predictions of models for the rows of a pool; each is computed when it is first read.

    Attributes:
        models: models that were trained alike; several are an ensemble.
        task: the task they predict; None if nothing was learned yet.
        rows: all rows of the pool.
        initial_rows: the rows that have labels from the beginning; None for none.
        num_draws: passes with dropout if there is one model.
        key: the key of the dropout.
        element_score: the score of a row of elements: the mean or the largest of theirs.
    """

    models: Sequence[Model]
    task: Task | None
    rows: Rows
    initial_rows: Rows | None
    num_draws: int
    key: jax.Array
    element_score: ElementScore = 'mean'

    @property
    def has_elements(self) -> bool:
        """Returns True if a row has a target for each of its elements, such as tokens or pixels."""
        return self.task is not None and bool(self.task.element_shape)

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        """Returns the raw outputs of each model, ``[models, rows, outputs]``.

        Raises:
            DataError: if they are not finite.
        """
        outputs = [_flatten(self._predict(model)) for model in self.models]
        return _check_finite(np.stack(outputs))

    def _predict(self, model: Model) -> np.ndarray:
        return predict_outputs(model, self.rows, argument='X_unlabeled')

    @functools.cached_property
    def _outputs_and_features(self) -> np.ndarray:
        return _check_finite(self._predict(WithFeatures(self.models[0])))

    @property
    def features(self) -> np.ndarray:
        """Returns the inputs of the last layer of the (first) model, ``[rows, features]``."""
        return self._outputs_and_features[:, self.num_outputs :]

    @functools.cached_property
    def has_features(self) -> bool:
        """Returns True if the (first) model has features."""
        try:
            self.check_features()
        except ModelTypeError:
            return False
        return True

    def reference_features(self, available: np.ndarray) -> np.ndarray:
        """Returns features of the rows that a query is to differ from.

        These are the initial rows, and rows that were labelled, queried or skipped.

        Args:
            available: bool ``[rows]``, False for these rows of the pool.
        """
        pool_features = self.features[~available]
        if self.initial_rows is None:
            return pool_features
        return np.concatenate([self._initial_features, pool_features])

    @functools.cached_property
    def _initial_features(self) -> np.ndarray:
        outputs = predict_outputs(WithFeatures(self.models[0]), self.initial_rows)
        return outputs[:, self.num_outputs :]

    @functools.cached_property
    def num_outputs(self) -> int:
        """Returns the number of outputs of a model for a row."""
        return num_outputs(self.models[0], self.rows.spec, 'X_unlabeled')

    @property
    def _reused_outputs(self) -> np.ndarray:
        """Returns the outputs, from the pass that computed the features if there was one."""
        is_computed = '_outputs_and_features' in vars(self) and len(self.models) == 1
        if not is_computed:
            return self.outputs
        return self._outputs_and_features[None, :, : self.num_outputs]

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Returns the mean of the models' class probabilities, ``[rows, classes]``."""
        assert self.task is not None
        return mean_probabilities(self._reused_outputs, self.task)

    @functools.cached_property
    def log_probabilities(self) -> np.ndarray:
        """Returns logarithms of the mean probabilities, in the layout of `log_probabilities`."""
        assert self.task is not None
        return mean_log_probabilities(self._reused_outputs, self.task)

    @property
    def predictions(self) -> np.ndarray:
        """Returns the predicted labels or numbers, ``[rows, ...]``."""
        assert self.task is not None
        if not self.has_elements:
            return mean_predictions(self.outputs, self.task)
        parts = [
            mean_predictions(outputs.reshape(len(outputs), len(rows), -1), self.task)
            for rows, outputs in self._blocks(with_dropout=False)
        ]
        return np.concatenate(parts)

    def check_features(self) -> None:
        """Raises a `ModelTypeError` for a model without features."""
        num_outputs(WithFeatures(self.models[0]), self.rows.spec, 'X_unlabeled')

    def check_draws(self) -> None:
        """Raises a `ModelTypeError` for a single model without dropout."""
        if len(self.models) == 1:
            WithDropout(self.models[0], 1, self.key).functionalize(self.rows.spec, self.key)

    def score_probabilities(self, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns the logarithm of each row's score, by the probabilities of its classes.

        Args:
            score: a function that takes logarithms of mean probabilities, in the layout of
                `log_probabilities`, and returns the logarithm of a score for each row or element.
        """
        task = self.task
        assert task is not None
        if not self.has_elements:
            return score(self.log_probabilities)
        return self._score_elements(lambda outputs: score(mean_log_probabilities(outputs, task)))

    def score_draws(self, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns the logarithm of each row's score, by how models or passes with dropout differ.

        Args:
            score: a function that takes ``[draws, some rows, ...]`` and returns ``[some rows]``,
                or the same for elements. It gets the logarithms of the classes' probabilities, in
                the layout of `thinkml.data.log_probabilities`, or the outputs of a regression.
        """
        if self.has_elements:
            return self._score_elements(
                lambda outputs: score(self._score_inputs(outputs)), with_dropout=True
            )
        if len(self.models) > 1:
            return score(self._score_inputs(self.outputs))
        predict = make_predict(WithDropout(self.models[0], self.num_draws, self.key), self.rows)
        scores = []
        for start in range(0, len(self.rows), _ROWS_PER_BLOCK):
            stop = min(start + _ROWS_PER_BLOCK, len(self.rows))
            outputs = predict(self.rows.part(start, stop))
            outputs = outputs.reshape(stop - start, self.num_draws, -1)
            scores.append(score(self._score_inputs(np.moveaxis(outputs, 1, 0))))
        return np.concatenate(scores)

    def _score_elements(
        self, score: Callable[[np.ndarray], np.ndarray], *, with_dropout: bool = False
    ) -> np.ndarray:
        """Returns the logarithm of the mean or largest score of each row's elements.

        Args:
            score: a function that takes ``[models, some elements, outputs]`` and returns the
                logarithms of the elements' scores.
            with_dropout: True for several passes of a single model in place of one.
        """
        scores = []
        for rows, outputs in self._blocks(with_dropout=with_dropout):
            of_elements = score(outputs).reshape(len(rows), -1)
            is_counted = self._is_counted(rows)
            of_elements = np.where(is_counted, of_elements, -np.inf)
            if self.element_score == 'max':
                scores.append(of_elements.max(axis=1))
                continue
            counts = np.broadcast_to(is_counted, of_elements.shape).sum(axis=1)
            scores.append(np.logaddexp.reduce(of_elements, axis=1) - np.log(np.maximum(counts, 1)))
        return np.concatenate(scores)

    def _blocks(self, *, with_dropout: bool) -> Iterator[tuple[Rows, np.ndarray]]:
        """Yields some rows at a time, with the outputs of their elements.

        The outputs are ``[models, elements, outputs]``. Those of a pool of images would not fit in
        memory together.
        """
        task, rows, count = self.task, self.rows, len(self.models)
        assert task is not None
        models = list(self.models)
        if with_dropout and count == 1:
            models, count = [WithDropout(models[0], self.num_draws, self.key)], self.num_draws
        predict = [make_predict(model, rows, argument='X_unlabeled') for model in models]
        numbers = count * task.num_elements * task.num_outputs
        size = min(_ROWS_PER_BLOCK // task.num_elements, _NUMBERS_PER_BLOCK // numbers)
        for start in range(0, len(rows), max(size, 1)):
            part = rows.part(start, min(start + max(size, 1), len(rows)))
            # A model with dropout returns its passes side by side.
            outputs = np.stack([_flatten(one(part)) for one in predict], axis=1)
            outputs = outputs.reshape(len(outputs), count, -1, task.num_outputs)
            outputs = np.moveaxis(outputs, 1, 0).reshape(count, -1, task.num_outputs)
            yield part, _check_finite(outputs)

    def _is_counted(self, rows: Rows) -> np.ndarray:
        """Returns the elements that count, ``[rows, elements]``: those in the mask of the inputs.

        All of them count if the inputs are not a dict with a mask of the elements' shape.
        """
        assert self.task is not None
        spec = rows.spec if isinstance(rows.spec, dict) else {}
        for name in MASK_NAMES:
            if name in spec and spec[name].shape[1:] == self.task.element_shape:
                return rows.all()[name].reshape(len(rows), -1) != 0
        return np.ones((1, 1), bool)

    def _score_inputs(self, outputs: np.ndarray) -> np.ndarray:
        assert self.task is not None
        if not self.task.is_classification:
            return outputs
        return np.stack([log_probabilities(draw, self.task) for draw in outputs])


def mean_log_probabilities(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Returns logarithms of mean probabilities for outputs ``[models, rows, outputs]``."""
    per_model = [log_probabilities(one, task) for one in outputs]
    return np.logaddexp.reduce(per_model) - np.log(len(per_model))


def mean_probabilities(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Returns probabilities ``[rows, classes]`` for outputs ``[models, rows, outputs]``."""
    return np.mean([probabilities(one, task) for one in outputs], axis=0)


def mean_predictions(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Returns labels or numbers for outputs ``[models, rows, outputs]``, by the models' mean."""
    if len(outputs) == 1 or not task.is_classification:
        return decode(outputs.mean(0), task)
    mean = mean_probabilities(outputs, task)
    # Converted to outputs that decode to the same: for one class or label, above 0 means yes.
    yes_or_no = task.type.has_yes_no_outputs(task.num_outputs)
    return decode(mean[..., -task.num_outputs :] - 0.5 if yes_or_no else mean, task)


class Ensemble:
    """Models that predict together: by the mean of their probabilities, or of their numbers.

    Attributes:
        classes_: the labels in the order of the probabilities.
    """

    def __init__(self, models: Sequence[Model], task: Task, open_rows: Callable[[Inputs], Rows]):
        self._models, self._task, self._open_rows = models, task, open_rows
        if task.classes is not None:
            self.classes_ = np.asarray(task.classes)

    def _outputs(self, X: Inputs) -> np.ndarray:
        rows = self._open_rows(X)
        return np.stack([_flatten(predict_outputs(model, rows)) for model in self._models])

    def predict_proba(self, X: Inputs) -> np.ndarray:
        """Returns probabilities ``[rows, classes]``."""
        return mean_probabilities(self._outputs(X), self._task)

    def predict(self, X: Inputs) -> np.ndarray:
        """Returns predictions ``[rows]``."""
        return mean_predictions(self._outputs(X), self._task)


def _check_finite(outputs: np.ndarray) -> np.ndarray:
    if not np.isfinite(outputs).all():
        raise DataError(
            'model: it returns NaN or infinite values for the pool, so no rows can be chosen by '
            'them: its training has diverged. Lower the learning_rate.'
        )
    return outputs


def _flatten(outputs: np.ndarray) -> np.ndarray:
    return outputs.reshape(len(outputs), -1)
