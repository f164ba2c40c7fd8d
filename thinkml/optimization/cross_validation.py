"""Cross-validation: a model trained and tested on several parts of a data set."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from thinkml.data import Rows, check_lengths, is_batches, open_data
from thinkml.errors import ConfigError, DataError, unknown_name
from thinkml.evaluation import ModelEvaluator
from thinkml.evaluation.metrics.registry import check_metrics
from thinkml.history import History
from thinkml.model_record import ArraySpec
from thinkml.models import predict_proba
from thinkml.models.model_creation import create_model
from thinkml.optimization.folds import Split, has_classes, make_folds
from thinkml.tasks import Task
from thinkml.text_table import aligned_lines
from thinkml.training.config import TrainingConfig
from thinkml.training.train import check_config, train
from thinkml.training.training_data import TrainRequest
from thinkml.typing import Inputs, Labels, Model

if TYPE_CHECKING:
    import pandas as pd

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """A training on some rows and its test on others.

    Attributes:
        train_rows: the rows that were trained on.
        test_rows: the rows that were tested on.
        metrics: the metrics of the test rows, by name.
        predictions: the predictions of the test rows, in the form of the labels.
        probabilities: their probabilities by class; None for numbers.
        task: the meaning of the model's outputs.
        history: the history of the training.
        model: the trained model; None unless models are kept.
    """

    train_rows: np.ndarray
    test_rows: np.ndarray
    metrics: dict[str, float]
    predictions: np.ndarray
    probabilities: np.ndarray | None
    task: Task
    history: History
    model: Model | None = None


class FoldDifference(NamedTuple):
    """The difference of a metric between two cross-validations of the same folds.

    Attributes:
        a: the mean of the first.
        b: the mean of the second.
        difference: the mean of the differences, first minus second.
        interval: its confidence interval.
        p_value: the two-sided p-value of no difference.
    """

    a: float
    b: float
    difference: float
    interval: Interval
    p_value: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CrossValidation:
    """The result of `cross_validate`; it prints as a table.

    Attributes:
        task: the meaning of the model's outputs.
        folds: the folds, those of the first repetition first.
        num_rows: the number of rows of the data set.
    """

    task: Task
    folds: tuple[Fold, ...]
    num_rows: int

    @property
    def metrics(self) -> dict[str, float]:
        """Returns the mean of each metric over the folds."""
        return {name: float(np.mean(self._values(name))) for name in self.folds[0].metrics}

    @property
    def models(self) -> list[Model]:
        """Returns the trained models.

        Raises:
            ConfigError: if they were not kept.
        """
        models = [fold.model for fold in self.folds]
        if any(model is None for model in models):
            raise ConfigError('models: none were kept. Pass cross_validate(..., keep_models=True).')
        return models

    @property
    def predictions(self) -> np.ndarray:
        """Returns the prediction of each row by a model that was not trained on it.

        It has the form of the labels, ``(rows, ...)``. With several repetitions it is
        ``(repetitions, rows, ...)``.

        Raises:
            DataError: if a row is in no test, or not in as many as the others.
        """
        return self._out_of_fold([fold.predictions for fold in self.folds])

    @property
    def probabilities(self) -> np.ndarray | None:
        """Returns the probabilities of each row, as `predictions`; None for numbers."""
        parts = [fold.probabilities for fold in self.folds]
        found = [part for part in parts if part is not None]
        return self._out_of_fold(found) if len(found) == len(parts) else None

    def interval(self, metric: str, confidence: float = 0.95) -> Interval:
        """Returns a confidence interval of a metric's mean.

        The folds share training rows, so their metrics depend on each other. The variance is
        corrected for that, as in the corrected resampled t-test.

        Args:
            metric: the name of the metric.
            confidence: the confidence, between 0 and 1.

        Reference:
            Nadeau and Bengio, 2003, *Inference for the generalization error*.
        """
        values = self._values(metric)
        radius = self._standard_error(values) * _quantile(confidence, len(values))
        return float(values.mean() - radius), float(values.mean() + radius)

    def compare(
        self, other: 'CrossValidation', confidence: float = 0.95
    ) -> dict[str, FoldDifference]:
        """Compares with another model or setting on the same folds, by differences of each fold.

        Args:
            other: a cross-validation of the same folds.
            confidence: the confidence of the intervals.

        Returns:
            The difference of each metric that both have.

        Raises:
            DataError: if the folds differ.

        Reference:
            See `interval`; Bouckaert and Frank, 2004, *Evaluating the replicability of significance
            tests for comparing learning algorithms* (repeated folds).
        """
        if not _have_same_rows(self.folds, other.folds):
            raise DataError(
                'other: its folds have other rows, expected the same. Pass both the same folds, '
                'stratify, repeats and config.seed.'
            )
        names = [name for name in self.folds[0].metrics if name in other.folds[0].metrics]
        return {name: self._difference(other, name, confidence) for name in names}

    def to_pandas(self) -> 'pd.DataFrame':
        """Returns the metrics as a table with a row for each fold."""
        import pandas as pd

        rows = [
            {'train': len(f.train_rows), 'test': len(f.test_rows), **f.metrics} for f in self.folds
        ]
        return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name='fold'))

    def __str__(self) -> str:
        rows = [('metric', 'mean', '95% interval', 'folds')]
        for name, mean in self.metrics.items():
            low, high = self.interval(name)
            values = self._values(name)
            rows.append(
                (
                    name, f'{mean:.4f}', f'{low:.4f} .. {high:.4f}',
                    f'{values.min():.4f} .. {values.max():.4f}',
                )
            )  # fmt: skip
        head = f'{self.task}; {self.num_rows:,} rows, {len(self.folds)} folds'
        return '\n'.join([head, *aligned_lines(rows, right=(1, 2, 3))])

    __repr__ = __str__

    def _values(self, metric: str) -> np.ndarray:
        if metric not in self.folds[0].metrics:
            names = ', '.join(self.folds[0].metrics)
            raise ConfigError(f'metric: got {metric!r}, expected one of {names}.')
        return np.array([fold.metrics[metric] for fold in self.folds])

    def _standard_error(self, values: np.ndarray) -> float:
        if len(values) < 2:
            return math.nan
        shares = [len(fold.test_rows) / len(fold.train_rows) for fold in self.folds]
        return math.sqrt((1 / len(values) + np.mean(shares)) * values.var(ddof=1))

    def _difference(self, other: 'CrossValidation', name: str, confidence: float) -> FoldDifference:
        a, b = self._values(name), other._values(name)
        mean, error = float(np.mean(a - b)), self._standard_error(a - b)
        radius = error * _quantile(confidence, len(a))
        return FoldDifference(
            a=float(a.mean()),
            b=float(b.mean()),
            difference=mean,
            interval=(mean - radius, mean + radius),
            p_value=_p_value(mean, error, len(a)),
        )

    def _out_of_fold(self, parts: list[np.ndarray]) -> np.ndarray:
        rows = np.concatenate([fold.test_rows for fold in self.folds])
        counts = np.bincount(rows, minlength=self.num_rows)
        if counts.min() != counts.max():
            raise DataError(
                f'predictions: row {counts.argmin():,} is in {counts.min()} tests and row '
                f'{counts.argmax():,} in {counts.max()}, expected each row in as many. Use those '
                'of the folds: result.folds[0].predictions.'
            )
        values = np.concatenate(parts)
        order = np.argsort(rows, kind='stable').reshape(self.num_rows, -1).T
        return values[order[0]] if len(order) == 1 else values[order]


def cross_validate(
    make_model: Model | Callable[..., Model],
    X: Inputs,
    y: Labels,
    config: TrainingConfig | None = None,
    *,
    folds: Any = 5,
    repeats: int = 1,
    groups: Any = None,
    stratify: bool = True,
    time: bool = False,
    scoring: Collection[Any] | None = None,
    model_parameters: Mapping[str, Any] | None = None,
    keep_models: bool = False,
    progress: bool = True,
    **arguments: Any,
) -> CrossValidation:
    """Trains a model on all folds but one and tests it on that one, for each fold in turn.

    All trainings share their compiled programs, since the rows of a fold are an argument of them.
    Each begins with the same seed: ``config.seed`` plus the number of the repetition.

    Args:
        make_model: a function that makes a model, called as
            ``make_model(rngs=nnx.Rngs(seed), **model_parameters)``; a name of the zoo, such as
            ``'mlp'``; or a model whose weights are the start of each training. The model itself is
            not changed.
        X: inputs, one row for each example, see `thinkml.training.ModelTrainer.train`.
        y: labels or targets.
        config: the settings of each training; None for the defaults.
        folds: the number of folds; a splitter of scikit-learn, such as ``ShuffleSplit(10)``; or
            pairs of training and test rows.
        repeats: the number of repetitions with other folds.
        groups: the group of each row, such as a patient. A group is never in both parts.
        stratify: True gives each fold the same share of each class. Not used for numbers.
        time: True for rows in the order of time: a fold is tested on the rows after those that it
            is trained on.
        scoring: the metrics, see `thinkml.evaluation.ModelEvaluator.evaluate`; None for those of
            the task.
        model_parameters: further arguments of ``make_model``.
        keep_models: True to keep the trained models.
        progress: True shows the folds that are done on stderr.
        **arguments: other arguments of `thinkml.training.ModelTrainer.train`, such as ``loss_fn``,
            ``class_weights`` and ``sample_weight``. Weights count in the training alone.

    Returns:
        The metrics and predictions of each fold, with means and intervals.

    Raises:
        ConfigError: for settings that are unknown or exclude each other.
        DataError: for data or folds that can't be used.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.optimization import cross_validate
        >>> from thinkml.training import TrainingConfig
        >>> X = np.random.default_rng(0).normal(size=(90, 4))
        >>> y = X.argmax(axis=1)
        >>> def make_model(rngs):
        ...     return nnx.Linear(4, 4, rngs=rngs)
        >>> config = TrainingConfig(epochs=50, learning_rate=0.1)
        >>> result = cross_validate(make_model, X, y, config, folds=3, progress=False)
        >>> result.metrics['accuracy'] > 0.8
        True
        >>> result.predictions.shape
        (90,)
    """
    config, scoring = check_config(config), check_metrics(scoring, 'scoring')
    check_arguments(arguments)
    x, targets = rows_with_targets(X, y)
    splits = make_folds(
        folds, targets, repeats=repeats, groups=groups, stratify=stratify, time=time,
        seed=config.seed,
    )  # fmt: skip
    per_repeat = len(splits) // repeats
    done: list[Fold] = []
    for index, split in _shown(splits, progress):
        settings = dataclasses.replace(config, seed=config.seed + index // per_repeat)
        split = np.sort(split[0]), np.sort(split[1])
        model = model_for(make_model, model_parameters or {}, x, targets, settings.seed)
        request = TrainRequest(X_train=X, y_train=y, rows=split[0], **arguments)
        history = train(model, request, settings).history
        if history.interrupted:
            raise KeyboardInterrupt
        fold = _tested(model, split, x, targets, history, scoring)
        done.append(fold if keep_models else dataclasses.replace(fold, model=None))
    return CrossValidation(done[0].task, tuple(done), len(x))


def rows_with_targets(X: Inputs, y: Labels) -> tuple[Rows, np.ndarray]:
    """Returns the rows of a data set and their targets.

    Raises:
        DataError: for batches, targets of several heads, and data that can't be used.
    """
    if is_batches(X):
        raise DataError('X: got batches, expected rows, from which folds are made.')
    x, targets = open_data(X, y, 'X', 'y')
    check_lengths({'X': x, 'y': targets})
    if isinstance(targets, dict):
        raise DataError(
            'y: got targets of several heads, expected one target for each row. Train each fold '
            'with ModelTrainer.'
        )
    return x, targets


def model_for(
    make_model: Any, parameters: Mapping[str, Any], x: Rows, targets: np.ndarray, seed: int
) -> Model:
    """Returns an untrained model for a data set, see `thinkml.models.model_creation`."""
    arrays = x.inputs.arrays
    row_shape = arrays.shape if isinstance(arrays, ArraySpec) else ()
    classes = has_classes(targets)
    num_outputs = len(np.unique(targets)) if classes else math.prod(targets.shape[1:])
    return create_model(make_model, parameters, row_shape, num_outputs, seed)


def _tested(
    model: Model,
    split: Split,
    x: Rows,
    targets: np.ndarray,
    history: History,
    scoring: list[Any] | None,
) -> Fold:
    """Returns a fold with the metrics and predictions of its test rows."""
    train_rows, test_rows = split
    inputs = x.take(test_rows)
    evaluation = ModelEvaluator().evaluate(
        model, inputs, targets[test_rows], metrics=scoring, confidence=None
    )
    probabilities = evaluation.scored.probabilities
    if probabilities is not None and evaluation.scored.positions is not None:
        # The evaluation has those of the rows, or elements, that are not ignored.
        probabilities = predict_proba(model, inputs)
    return Fold(
        train_rows=train_rows,
        test_rows=test_rows,
        metrics=evaluation.metrics,
        predictions=evaluation.predictions,
        probabilities=probabilities,
        task=evaluation.task,
        history=history,
        model=model,
    )


_SET_HERE = ('X_train', 'y_train', 'X_val', 'y_val', 'rows', 'known', 'groups')


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises a `ConfigError` for names that are no arguments of ``train``."""
    known = [name for name in TrainRequest._fields if name not in _SET_HERE]
    for name in arguments:
        if name not in known:
            raise ConfigError(unknown_name('arguments', name, known))


def _shown(splits: list[Any], progress: bool) -> Iterator[tuple[int, Any]]:
    if not progress:
        yield from enumerate(splits)
        return
    from tqdm import tqdm

    yield from enumerate(tqdm(splits, desc='folds', unit='fold'))


def _have_same_rows(a: tuple[Fold, ...], b: tuple[Fold, ...]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(one.test_rows, other.test_rows)
        and np.array_equal(one.train_rows, other.train_rows)
        for one, other in zip(a, b, strict=True)
    )


def _quantile(confidence: float, count: int) -> float:
    from scipy.stats import t

    if not 0 < confidence < 1:
        raise ConfigError(f'confidence: got {confidence!r}, expected a number between 0 and 1.')
    return float(t.ppf((1 + confidence) / 2, count - 1)) if count > 1 else math.nan


def _p_value(mean: float, error: float, count: int) -> float:
    from scipy.stats import t

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / error, count - 1)) if count > 1 else math.nan
