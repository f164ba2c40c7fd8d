"""ThinkMLRegressor: a scikit-learn regressor that trains a Flax model."""

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import column_or_1d

from thinkml.data import decode
from thinkml.sklearn.estimator import Estimator
from thinkml.sklearn.settings import with_settings
from thinkml.tasks import Task


@with_settings
class ThinkMLRegressor(RegressorMixin, Estimator):
    """A scikit-learn regressor that trains a Flax model.

    It predicts one number a row or several. Standardise large targets, for instance with
    scikit-learn's ``TransformedTargetRegressor``.

    Args:
        model: as in `ThinkMLClassifier`; ``num_classes`` is the number of targets.
        **settings: as in `ThinkMLClassifier`: the settings of `thinkml.training.TrainingConfig`,
            ``loss_fn``, ``random_state``, ``warm_start``, ``progress``, and ``model__...``.

    Attributes:
        model_: the trained model, for `thinkml.evaluation` and `thinkml.models`.
        history_: the `thinkml.monitoring.History` of the latest training.
        n_features_in_: the number of columns of the inputs.
        feature_names_in_: the names of the columns, if the inputs were a frame.

    Raises:
        ConfigError: for an unknown parameter; when it is fitted, for impossible values.

    Example:
        >>> import numpy as np
        >>> from thinkml.sklearn import ThinkMLRegressor
        >>> X = np.linspace(-1, 1, 64)[:, None]
        >>> regressor = ThinkMLRegressor(
        ...     model__hidden=(16,), epochs=50, learning_rate=0.02, random_state=0
        ... )
        >>> regressor.fit(X, np.abs(X[:, 0])).score(X, np.abs(X[:, 0])) > 0.9
        True
    """

    def __init__(self, model: Any = 'mlp', **settings: Any):
        self._set(model, settings)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains a model on all rows, from the initial weights unless ``warm_start`` is True.

        Args:
            X: inputs, ``[rows, features]`` or with more axes.
            y: numbers, ``[rows]`` or ``[rows, targets]``.
            sample_weight: the weight of each row; None if all are 1.

        Returns:
            The estimator.

        Raises:
            DataError: for data that can't be trained on.
            ConfigError: for settings that are impossible.
        """
        reset = not (self._is_fitted and self.warm_start)
        return self._fit_numbers(X, y, sample_weight, reset=reset)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains for one pass over some rows, from the weights and moments of the last call.

        Early stopping, the validation split and the number of epochs do not apply.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            sample_weight: as in `fit`.

        Returns:
            The estimator.

        Raises:
            DataError: for data that can't be trained on.
            ConfigError: as in `fit`.
        """
        reset = not self._is_fitted
        return self._fit_numbers(X, y, sample_weight, reset=reset, is_partial=True)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the predicted numbers, float64 ``[rows]`` or ``[rows, targets]``.

        Args:
            X: as in `fit`.
        """
        return decode(self._outputs(X), self._task).astype(np.float64)

    def _fit_numbers(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool, is_partial: bool = False
    ) -> Self:
        X, y, sample_weight = self._checked(X, y, sample_weight, reset=reset, y_numeric=True)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        width = 1 if y.ndim == 1 else y.shape[1]
        task = Task('regression', None, width, y.shape[1:])
        history = self._train(X, y, sample_weight, lambda _: task, is_partial=is_partial)
        return self._end(history)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
