"""ThinkMLClassifier: a scikit-learn classifier that trains a Flax model."""

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

from thinkml.data import decode, probabilities
from thinkml.errors import ConfigError, DataError
from thinkml.sklearn.estimator import Estimator
from thinkml.sklearn.settings import with_settings
from thinkml.task_types import kind_of_classes
from thinkml.tasks import Task


@with_settings
class ThinkMLClassifier(ClassifierMixin, Estimator):
    """A scikit-learn classifier that trains a Flax model.

    Labels may be numbers, bools or text, of two classes or more; rows of 0 and 1 are several labels
    a row. Inputs are numbers, dense or sparse, with any number of axes; frames give their names.

    Args:
        model: the name of an architecture (``'mlp'``, see `thinkml.models.list_models`); a factory
            that is called as ``make_model(rngs=..., **model_parameters)``; or a model, whose
            weights are the start of every fit and stay as they are. An architecture or factory
            that takes ``in_features`` or ``num_classes`` gets them from the data.
        class_weight: a dict of a weight for each class (those left out count 1), or
            ``'balanced'``. Not for several labels a row.
        **settings: the settings of `thinkml.training.TrainingConfig`, by their names and with
            their defaults, except ``seed``; ``loss_fn``, as in
            `thinkml.training.ModelTrainer.train`; ``random_state``, the seed, None for another one
            in each fit, or a ``numpy.random.RandomState``; ``warm_start``, True to begin each fit
            with the weights of the last one; and ``progress``, True to show a progress bar on
            stderr. Arguments of the model begin with ``model__``: ``model__hidden=(64,)``.

    Attributes:
        model_: the trained model, for `thinkml.evaluation` and `thinkml.models`.
        history_: the `thinkml.monitoring.History` of the latest training.
        classes_: the labels, sorted; the positions of the columns if a row has several labels.
        n_features_in_: the number of columns of the inputs.
        feature_names_in_: the names of the columns, if the inputs were a frame.

    Raises:
        ConfigError: for an unknown parameter; when it is fitted, for impossible values.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from thinkml.sklearn import ThinkMLClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = ThinkMLClassifier(
        ...     'mlp', model__hidden=(16,), epochs=20, learning_rate=0.01, random_state=0
        ... )
        >>> pipeline = make_pipeline(StandardScaler(), classifier).fit(X, y)
        >>> pipeline.score(X, y) > 0.9
        True
        >>> pipeline.predict_proba(X[:2]).shape
        (2, 3)
    """

    def __init__(self, model: Any = 'mlp', *, class_weight: Any = None, **settings: Any):
        self.class_weight = class_weight
        self._set(model, settings)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains a model on all rows, from the initial weights unless ``warm_start`` is True.

        Args:
            X: inputs, ``[rows, features]`` or with more axes.
            y: labels, ``[rows]``, or 0 and 1 for each of several labels, ``[rows, labels]``.
            sample_weight: the weight of each row; None if all are 1.

        Returns:
            The estimator.

        Raises:
            DataError: for data that can't be trained on.
            ConfigError: for settings that are impossible, or a model that does not fit the data.
        """
        continues = self._is_fitted and self.warm_start
        X, y, sample_weight = self._checked(X, y, sample_weight, reset=not continues)
        labels = _checked_labels(y)
        classes = self.classes_ if continues else _classes_of(labels)
        return self._fit_labels(X, labels, classes, sample_weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Trains for one pass over some rows, from the weights and moments of the last call.

        Early stopping, the validation split and the number of epochs do not apply.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            classes: all classes that will come; needed in the first call if ``y`` lacks some.
            sample_weight: as in `fit`.

        Returns:
            The estimator.

        Raises:
            DataError: for data that can't be trained on, and for labels that are no class.
            ConfigError: as in `fit`.
        """
        is_first = not self._is_fitted
        X, y, sample_weight = self._checked(X, y, sample_weight, reset=is_first)
        labels = _checked_labels(y)
        if is_first:
            takes_labels = classes is None or labels.ndim > 1
            known = _classes_of(labels if takes_labels else np.asarray(classes))
        else:
            known = self.classes_
            if classes is not None and not np.array_equal(np.unique(classes), known):
                raise DataError(
                    f'classes: got {np.unique(classes).tolist()}, expected those of the first '
                    f'call, {known.tolist()}, or None.'
                )
        return self._fit_labels(X, labels, known, sample_weight, is_partial=True)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the label of each row, ``[rows]``; 0 and 1 for each of several labels a row.

        Args:
            X: as in `fit`.
        """
        return decode(self._outputs(X), self._task).astype(self.classes_.dtype)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probability of each class, float64 ``[rows, classes]``.

        Args:
            X: as in `fit`.
        """
        return probabilities(self._outputs(X), self._task)

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns the logit of each class; for two classes ``[rows]``, the log-odds of the second.

        Args:
            X: as in `fit`.
        """
        outputs = self._outputs(X)
        if self._task.kind != 'binary':
            return outputs
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]

    def _fit_labels(
        self,
        X: Any,
        labels: np.ndarray,
        classes: np.ndarray,
        sample_weight: Any,
        *,
        is_partial: bool = False,
    ) -> Self:
        _check_labels_known(labels, classes)

        def make_task(num_outputs: int | None) -> Task:
            if labels.ndim > 1:
                count = labels.shape[1]
                return Task('multilabel', tuple(range(count)), count, (count,))
            kind_of_task = kind_of_classes(len(classes))
            task = Task(kind_of_task, tuple(classes.tolist()), num_outputs or len(classes))
            if task.num_outputs not in task.type.output_counts(len(classes)):
                raise ConfigError(
                    f'model: it returns {num_outputs} outputs, but y has {len(classes)} classes. '
                    'Let it return one for each class: a factory that takes num_classes gets their '
                    'number.'
                )
            return task

        history = self._train(
            X, labels, sample_weight, make_task, is_partial=is_partial,
            class_weights=self.class_weight,
        )  # fmt: skip
        self.classes_ = classes
        return self._end(history)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _checked_labels(y: Any) -> np.ndarray:
    """Returns labels ``[rows]``, or 0 and 1 ``[rows, labels]``."""
    check_classification_targets(y)
    kind = type_of_target(y)
    if kind == 'multiclass-multioutput':
        raise DataError(
            f'y: got {y.shape[1]} columns of classes, expected one column, or 0 and 1 in each. '
            'Train several outputs with thinkml.training.ModelTrainer.'
        )
    if kind == 'multilabel-indicator':
        return np.asarray(y.toarray() if hasattr(y, 'toarray') else y).astype(np.int64)
    return column_or_1d(y, warn=True)


def _classes_of(labels: np.ndarray) -> np.ndarray:
    """Returns the sorted classes of labels; the positions of the columns for several labels."""
    if labels.ndim > 1:
        return np.arange(labels.shape[1])
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError(
            f'y: got one class, {classes.tolist()[0]!r}, expected at least two classes. Check how '
            'the rows were selected; in the first partial_fit, pass all of them as classes.'
        )
    return classes


def _check_labels_known(labels: np.ndarray, classes: np.ndarray) -> None:
    if labels.ndim > 1:
        if labels.shape[1] != len(classes):
            raise DataError(f'y: got {labels.shape[1]} labels a row, expected {len(classes)}.')
        return
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise DataError(
            f'y: got the labels {unknown[:10].tolist()}, expected some of {classes.tolist()}, the '
            'classes of the first fit. Pass all of them as classes to the first partial_fit, or '
            'fit without warm_start.'
        )
