"""The public door to evaluation."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from thinkml.core import num_outputs, predict_outputs
from thinkml.data import (
    decode,
    encode_targets,
    infer_task,
    is_batches,
    open_batches,
    open_data,
    probabilities,
)
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.metrics import (
    check_fit,
    check_metrics,
    class_counts,
    compute_metrics,
    confusion_matrix,
    default_metrics,
    metrics_for,
    ratio,
)
from thinkml.evaluation.report import Report
from thinkml.evaluation.result import Evaluation
from thinkml.record import InputSpec, Task, TaskKind, record_of


class ModelEvaluator:
    """Measures how well a model does on data it was not trained on.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.evaluation import ModelEvaluator
        >>> X_test = np.eye(4, dtype=np.float32)
        >>> y_test = np.array([0, 1, 0, 1])
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> evaluator = ModelEvaluator()
        >>> evaluation = evaluator.evaluate(model, X_test, y_test, metrics=['accuracy'])
        >>> 0 <= evaluation['accuracy'] <= 1
        True
        >>> print('Evaluation Report:', evaluator.generate_report(evaluation))
        Evaluation Report: binary, 2 classes (0, 1), 4 rows
        ...
    """

    def evaluate(
        self, model: Any, X_test: Any, y_test: Any = None, metrics: Collection[str] | None = None
    ) -> Evaluation:
        """Predicts ``X_test`` and compares with ``y_test``.

        The model and its mode stay as they are.

        Args:
            model: a `flax.nnx.Module`, ``thinkml.models.from_linen(module)`` or
                ``from_functions(init, apply)``. What its outputs mean is known from its training;
                for a model trained elsewhere it is inferred from ``y_test``.
            X_test: inputs, one row per example, of any kind that training takes: arrays, frames,
                what is stored on disk (see `thinkml.data.open_rows`), batches
                (`thinkml.data.open_batches`; weights in them don't count here).
            y_test: targets in the form used in training. None, or the name of a column, where
                ``X_test`` holds them (`thinkml.data.open_dataset`).
            metrics: names from `METRICS`. None computes accuracy, precision, recall, f1, roc_auc
                and log_loss for classification, rmse, mae and r2 for regression.

        Raises:
            ConfigError: if ``metrics`` are no list, tuple or set of names, or one of them is
                unknown or does not fit the task.
            DataError: if the arrays don't fit each other or the model, or hold NaN; if the model
                returns NaN.
            ModelTypeError: if ``model`` is not a model.
        """
        return _evaluate(model, X_test, y_test, metrics, default_metrics)

    def generate_report(self, evaluation: Evaluation) -> Report:
        """Words an evaluation: ``print(report)``, ``report.save(path)``, ``report.to_dict()``.

        Raises:
            ConfigError: if ``evaluation`` is not what `evaluate` returned.
        """
        if not isinstance(evaluation, Evaluation):
            raise ConfigError(
                f'evaluation: got {type(evaluation).__name__}, expected what '
                'evaluate(model, X_test, y_test) returned.'
            )
        return Report(evaluation)

    def analyze_performance(
        self, model: Any, X_test: Any, y_test: Any = None
    ) -> PerformanceAnalysis:
        """Evaluates with every metric that fits the task, ready to be plotted.

        Takes and raises what `evaluate` does.
        """
        return PerformanceAnalysis(_evaluate(model, X_test, y_test, None, metrics_for))


def _evaluate(
    model: Any,
    X_test: Any,
    y_test: Any,
    metrics: Collection[str] | None,
    default: Callable[[TaskKind], list[str]],
) -> Evaluation:
    asked = check_metrics(metrics)
    example, labels, predict = _open(model, X_test, y_test)
    task = record_of(model).task
    if task is None:
        task = infer_task(labels, num_outputs(model, example, 'X_test'), argument='y_test')
    encoded = encode_targets(labels, task, argument='y_test')
    names = default(task.kind) if asked is None else asked
    check_fit(names, task.kind)
    outputs = predict()
    _check_outputs(outputs)
    return _compare(outputs, encoded, labels, task, names)


def _open(model: Any, X_test: Any, y_test: Any) -> tuple[Any, np.ndarray, Callable[[], np.ndarray]]:
    """What the inputs are like, the labels, and a function that predicts."""
    like = record_of(model).input_spec
    if is_batches(X_test):
        example, outputs, labels = _predict_batches(model, X_test, y_test, like)
        return example, labels, lambda: outputs
    rows, labels = open_data(X_test, y_test, 'X_test', 'y_test', like)
    if like is None:
        num_outputs(model, rows.spec, 'X_test')
    return rows.spec, labels, functools.partial(predict_outputs, model, rows)


def _predict_batches(
    model: Any, X_test: Any, y_test: Any, like: InputSpec | None
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Inputs of one batch, and the outputs and labels of all."""
    if not isinstance(y_test, str | None):
        raise DataError(
            f'y_test: got a {type(y_test).__name__} beside batches, expected None: the batches of '
            'X_test hold their labels, which may come in an order of their own.'
        )
    batches = open_batches(X_test, 'X_test', label=y_test, like=like)
    example = batches.peek().x
    if like is None:
        num_outputs(model, example, 'X_test')
    outputs, labels = [], []
    for batch in batches.iterate():
        outputs.append(predict_outputs(model, batch.x))
        labels.append(batch.y)
    return example, np.concatenate(outputs), np.concatenate(labels)


def _check_outputs(outputs: np.ndarray) -> None:
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if not finite.all():
        raise DataError(
            f'model: it returns NaN or infinite values for {np.sum(~finite):,} of '
            f'{len(outputs):,} rows of X_test, expected finite numbers. If it does so for all, its '
            'training has diverged: train again with a lower learning_rate.'
        )


def _compare(
    outputs: np.ndarray, encoded: np.ndarray, labels: np.ndarray, task: Task, names: Sequence[str]
) -> Evaluation:
    predictions = decode(outputs, task)
    # One rule decides what is predicted, that of decode: ties at 0.5 count the same everywhere.
    encoded_predictions = encode_targets(predictions, task, argument='predictions')
    if task.classes is None:
        matrix = per_class = shares = None
        encoded = labels.astype(np.float64).reshape(encoded.shape)
    else:
        matrix = confusion_matrix(encoded, encoded_predictions, len(task.classes))
        per_class = _per_class(encoded, encoded_predictions, task.classes)
        shares = probabilities(outputs, task)
    return Evaluation(
        task=task,
        metrics=compute_metrics(names, encoded, encoded_predictions, shares, task.kind),
        per_class=per_class,
        confusion_matrix=matrix,
        predictions=predictions,
        probabilities=shares,
        labels=labels,
        encoded_labels=encoded,
    )


def _per_class(
    labels: np.ndarray, predictions: np.ndarray, classes: tuple[Any, ...]
) -> dict[Any, dict[str, float]]:
    hits, predicted, actual = class_counts(labels, predictions, len(classes))
    table = {
        'precision': ratio(hits, predicted).tolist(),
        'recall': ratio(hits, actual).tolist(),
        'f1': ratio(2 * hits, predicted + actual).tolist(),
        'support': actual.tolist(),
    }
    rows = zip(*table.values(), strict=True)
    return {
        label: dict(zip(table, row, strict=True)) for label, row in zip(classes, rows, strict=True)
    }
