"""Estimator: the part of the estimators that does not depend on the task."""

from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from thinkml.core import inference_batch_size, predict_outputs
from thinkml.core.model.functional import is_model, num_outputs
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import open_rows_of
from thinkml.errors import ConfigError, is_whole
from thinkml.model_record import record_of, record_to_change
from thinkml.models.model_bytes import ModelBytes
from thinkml.models.model_creation import create_model
from thinkml.monitoring import History
from thinkml.sklearn.settings import DEFAULTS, PREFIX, check_names, make_config
from thinkml.tasks import Task
from thinkml.training.train import check_switches, train
from thinkml.training.training_data import TrainRequest
from thinkml.typing import Model

_MIN_PADDED_ROWS = 64
# Larger data sets are not padded: the memory of a copy counts for more than a program.
_MAX_PADDED_BYTES = 2**28


class Estimator(BaseEstimator):
    """The base of `ThinkMLClassifier` and `ThinkMLRegressor`."""

    model: Any
    loss_fn: Any
    random_state: Any
    warm_start: bool
    progress: bool
    model_: Model

    def _set(self, model: Any, settings: dict[str, Any]) -> None:
        """Stores the parameters as they are, which scikit-learn requires of ``__init__``."""
        check_names(settings, self._get_param_names(), type(self).__name__)
        vars(self).update({'model': model, **DEFAULTS})
        self._model_parameters: dict[str, Any] = {}
        self._update(settings)

    def _update(self, params: dict[str, Any]) -> None:
        of_model = {name: value for name, value in params.items() if name.startswith(PREFIX)}
        self._model_parameters = self._model_parameters | of_model
        vars(self).update({name: params[name] for name in params.keys() - of_model})

    # --- parameters ---------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the parameters by name, with the arguments of the model, ``model__...``.

        Args:
            deep: as in scikit-learn.
        """
        return super().get_params(deep) | self._model_parameters

    def set_params(self, **params: Any) -> Self:
        """Sets parameters by name, and returns the estimator.

        Args:
            **params: settings, or ``model__...`` for arguments of the model.

        Raises:
            ConfigError: for an unknown name.
        """
        check_names(params, self._get_param_names(), type(self).__name__)
        self._update(params)
        return self

    # --- training -----------------------------------------------------------------------------

    @property
    def history_(self) -> History:
        """Returns the history of the latest training."""
        check_is_fitted(self)
        return record_of(self.model_).runs[-1]

    @property
    def _is_fitted(self) -> bool:
        return hasattr(self, 'model_')

    def _checked(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool, y_numeric: bool = False
    ) -> tuple[Any, Any, Any]:
        """Returns the data as arrays of one length."""
        X, y = validate_data(
            self, X, y, reset=reset, dtype=(np.float64, np.float32), accept_sparse='csr',
            allow_nd=True, multi_output=True, y_numeric=y_numeric,
        )  # fmt: skip
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        return X, y, sample_weight

    def _train(
        self,
        X: Any,
        y: np.ndarray,
        sample_weight: np.ndarray | None,
        make_task: Callable[[int | None], Task],
        *,
        is_partial: bool = False,
        class_weights: Any = None,
    ) -> History:
        """Trains the model of the last fit or a new one, and returns the history.

        Args:
            X: checked inputs.
            y: checked targets.
            sample_weight: checked weights; None if all are 1.
            make_task: returns the task of a model with a number of outputs; None for the usual
                number.
            is_partial: True for one pass over the rows, which continues the optimizer as well.
            class_weights: see `ModelTrainer.train`.
        """
        check_switches(warm_start=self.warm_start, progress=self.progress)
        continues = self._is_fitted and (is_partial or self.warm_start)
        seed = self._draw_seed()
        if continues:
            model = self.model_
            seed = (seed + len(record_of(model).runs)) % 2**32  # other orders and draws
        else:
            model = self._create_model(X.shape[1:], make_task(None).num_outputs, seed)
        changes = {'epochs': 1, 'early_stopping': False, 'validation_split': 0.0}
        config = make_config(vars(self), seed, **(changes if is_partial else {}))
        count = num_outputs(model, jax.ShapeDtypeStruct((PROBE_ROWS, *X.shape[1:]), np.float32))
        rows = _padded_rows(X)
        request = TrainRequest(
            X_train=X[rows], y_train=y[rows],
            sample_weight=None if sample_weight is None else sample_weight[rows],
            loss_fn=self.loss_fn, class_weights=class_weights, task=make_task(count),
            rows=np.arange(len(y)),
        )  # fmt: skip
        if continues:
            record_to_change(model).continues = is_partial
        history = train(model, request, config, progress=self.progress).history
        self.model_ = model
        return history

    def _end(self, history: History) -> Self:
        """Returns the estimator; raises after Ctrl-C, since a search is to end as well."""
        if history.interrupted:
            raise KeyboardInterrupt
        return self

    def _create_model(self, row_shape: tuple[int, ...], num_outputs: int, seed: int) -> Model:
        parameters = {
            name.removeprefix(PREFIX): value for name, value in self._model_parameters.items()
        }
        return create_model(self.model, parameters, row_shape, num_outputs, seed, prefix=PREFIX)

    def _draw_seed(self) -> int:
        if is_whole(self.random_state):
            if not 0 <= self.random_state < 2**32:
                raise ConfigError(
                    f'random_state: got {self.random_state}, expected a whole number from 0 to '
                    '2**32 - 1, a numpy.random.RandomState or None.'
                )
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    # --- predictions --------------------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        """Returns the outputs of the model, ``[rows, outputs]``."""
        check_is_fitted(self)
        X = validate_data(
            self, X, reset=False, dtype=(np.float64, np.float32), accept_sparse='csr',
            allow_nd=True,
        )  # fmt: skip
        rows = open_rows_of(self.model_, X, 'X')
        # XLA:CPU rounds products of few rows in another way: a row's prediction would depend on the
        # number of rows beside it.
        size = min(inference_batch_size(rows.spec), _padded_size(len(rows)))
        outputs = predict_outputs(self.model_, rows, batch_size=size)
        return outputs.reshape(len(outputs), -1)

    @property
    def _task(self) -> Task:
        task = record_of(self.model_).task
        assert isinstance(task, Task)
        return task

    # --- scikit-learn's protocols -------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_fitted  # a fit that fails on the model has set n_features_in_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # A model travels in ThinkML's own format, not as a pickle of its arrays.
        state: Any = super().__getstate__()
        return {
            name: ModelBytes.from_model(value) if is_model(value) else value
            for name, value in state.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({
            name: value.to_model() if isinstance(value, ModelBytes) else value
            for name, value in state.items()
        })  # fmt: skip


def _padded_rows(X: Any) -> np.ndarray:
    """Returns the rows of padded data, a power of two of them, if it is not large.

    Folds of different sizes, and the fit on all of them, then share compiled programs.
    """
    num_rows = X.shape[0]
    padded = _padded_size(num_rows)
    if padded * np.prod(X.shape[1:]) * 4 > _MAX_PADDED_BYTES:
        padded = num_rows
    return np.arange(padded) % num_rows


def _padded_size(num_rows: int) -> int:
    return max(_MIN_PADDED_ROWS, 2 ** (num_rows - 1).bit_length())
