"""ModelEvaluator: the public interface for evaluating models."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Unpack, overload

import jax
import numpy as np

from thinkml.core import make_predict
from thinkml.data import is_batches, open_rows
from thinkml.data.sequences import pad_sequences
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.evaluate import evaluate_model
from thinkml.evaluation.external_models import is_external
from thinkml.evaluation.metrics.registry import check_metrics, metrics_for
from thinkml.evaluation.report import Report
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.score_summary import score_bytes
from thinkml.evaluation.settings import EvaluationSettings, Settings
from thinkml.evaluation.speed import measure_speed
from thinkml.model_record import record_of
from thinkml.typing import Inputs, Labels, Model

# The outputs of the rows with which predictions are timed take at most this size.
_TIMED_BYTES = 2**28


class ModelEvaluator:
    """An evaluator that measures how well a model does on data it was not trained on.

    Args:
        devices: the devices that compute the model's outputs, each for a part of the rows, such as
            `DistributedTrainer.devices`; None for all devices of this process. If they belong to
            several processes, each process must evaluate with the same arguments, and each gets
            the result. Models of other libraries choose their devices themselves.

    Raises:
        ConfigError: if ``devices`` are not JAX devices.

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

    def __init__(self, *, devices: Sequence[Any] | None = None):
        self._devices = _check_devices(devices)

    def __getstate__(self) -> dict[str, Any]:
        # Devices belong to a process, so a copy stores their ids and looks them up again.
        ids = None if self._devices is None else [device.id for device in self._devices]
        return vars(self) | {'_devices': ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._devices is not None:
            available = {device.id: device for device in jax.devices()}
            if missing := sorted(set(self._devices) - available.keys()):
                raise ConfigError(
                    f'devices: the evaluator is a copy of one that used device {missing[0]}, which '
                    f'this process does not have ({len(available)} devices). Make another one: '
                    'ModelEvaluator(devices=...).'
                )
            self._devices = [available[number] for number in self._devices]

    @overload
    def evaluate(  # pyright: ignore[reportOverlappingOverload]
        self,
        model: Model,
        X_test: Mapping[str, tuple[Inputs, Labels]],
        y_test: None = None,
        metrics: Collection[Any] | None = None,
        **settings: Unpack[EvaluationSettings],
    ) -> dict[str, Evaluation]: ...

    @overload
    def evaluate(
        self,
        model: Model,
        X_test: Inputs,
        y_test: Labels = None,
        metrics: Collection[Any] | None = None,
        **settings: Unpack[EvaluationSettings],
    ) -> Evaluation: ...

    def evaluate(
        self,
        model: Model,
        X_test: Inputs,
        y_test: Labels = None,
        metrics: Collection[Any] | None = None,
        *,
        sample_weight: Any = None,
        confidence: float | None = 0.95,
        num_resamples: int = 1000,
        groups: Any = None,
        stratify: Any = False,
        slices: Mapping[str, Any] | None = None,
        min_support: int = 30,
        seed: int = 0,
    ) -> Evaluation | dict[str, Evaluation]:
        """Predicts ``X_test`` and compares the predictions with ``y_test``.

        The model and its mode are not changed. Several data sets are evaluated one after another:
        ``evaluate(model, {'test': (X, y), 'site B': (X2, y2)})`` returns a dict of evaluations by
        name. ``sample_weight``, ``groups``, ``stratify`` and ``slices`` are then dicts by the same
        names.

        For a model with several heads ``y_test`` is a dict of targets by head, and the result a
        dict of evaluations by head. ``metrics`` and ``sample_weight`` may be such dicts.

        Args:
            model: a `flax.nnx.Module`, ``thinkml.models.from_linen(module)`` or
                ``from_functions(init, apply)``, or any object with ``predict`` and, for metrics of
                probabilities, ``predict_proba``, such as a scikit-learn model. The task of a model
                that ThinkML trained is recorded; for one that was trained elsewhere it is inferred
                from ``y_test``.
            X_test: inputs, one row per example, of any kind that training takes: arrays, frames,
                data on disk (see `thinkml.data.open_rows`) or batches
                (`thinkml.data.open_batches`; weights in them count as ``sample_weight`` does). For
                a model of another library, any inputs that it takes.
            y_test: targets in the form used in training. None, or the name of a column, if
                ``X_test`` holds them (`thinkml.data.open_dataset`).
            metrics: names from `METRICS`, functions ``(logits, labels)`` and CLU metrics as in
                training. None computes accuracy, precision, recall, f1, roc_auc and log_loss for
                classification, and rmse, mae and r2 for regression.
            sample_weight: the weight of each row, ``(rows,)``, at least 0.
            confidence: the fraction of confidence intervals that should cover the true value; None
                for no intervals. They are computed when `Evaluation.confidence_intervals` is first
                read.
            num_resamples: the number of resamples of the bootstrap.
            groups: the group of each row, ``(rows,)``: patients, sites. The bootstrap draws
                complete groups.
            stratify: True keeps the number of rows of each class in every resample; an array
                ``(rows,)`` names other strata.
            slices: parts of the rows to evaluate in addition, by name: a mask ``(rows,)`` of bools,
                or values ``(rows,)``, where each value is a separate slice.
            min_support: the number of rows a slice needs for its metrics to be computed.
            seed: the seed of the bootstrap.

        Returns:
            An `Evaluation`, or a dict of them by name.

        Warns:
            ThinkMLWarning: if a metric is undefined (it is then 0 or NaN, as in scikit-learn).

        Raises:
            ConfigError: if a metric is unknown or does not fit the task, or a setting is
                impossible.
            DataError: if the arrays do not fit each other or the model, or hold NaN; if the model
                returns NaN.
            ModelTypeError: if ``model`` is not a model.
        """
        settings = Settings(
            metrics=_check_metrics(metrics),
            sample_weight=sample_weight,
            confidence=confidence,
            num_resamples=num_resamples,
            groups=groups,
            stratify=stratify,
            slices=slices,
            min_support=min_support,
            seed=seed,
        )
        if _are_data_sets(X_test, y_test):
            evaluations: dict[str, Evaluation] = {}
            for name, (X, y) in X_test.items():
                of_set = settings.for_data_set(name, X_test)
                found = evaluate_model(model, X, y, of_set, self._devices, name)
                if isinstance(found, Evaluation):
                    evaluations[name] = found
                else:
                    evaluations |= {f'{name}, {head}': one for head, one in found.items()}
            return evaluations
        return evaluate_model(model, X_test, y_test, settings, self._devices)

    def generate_report(
        self, evaluation: Evaluation | dict[str, Evaluation], inputs: Any = None
    ) -> Report:
        """Writes an evaluation as a report that can be printed, saved or shown as a web page.

        Use ``print(report)``, ``report.save(path)`` or ``report.to_html()``.

        Args:
            evaluation: the result of `evaluate`, also the dict for several data sets or heads.
            inputs: the evaluated images ``(rows, height, width)`` or ``(rows, height, width,
                channels)``, which the web page shows beside targets that are images too; None to
                leave them out. For several data sets, a dict by their names.

        Raises:
            ConfigError: if ``evaluation`` is something else, or the targets are not images.
            DataError: if ``inputs`` are not images, or not one for each row.
        """
        evaluations = list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation]
        if not (evaluations and all(isinstance(one, Evaluation) for one in evaluations)):
            raise ConfigError(
                f'evaluation: got {type(evaluation).__name__}, expected the result of '
                'evaluate(model, X_test, y_test).'
            )
        return Report(evaluation, inputs)

    def analyze_performance(
        self,
        model: Model,
        X_test: Inputs,
        y_test: Labels = None,
        **settings: Unpack[EvaluationSettings],
    ) -> PerformanceAnalysis | dict[str, PerformanceAnalysis]:
        """Evaluates with every metric that fits the task, and returns an analysis that has plots.

        The speed of predictions is measured too. A model with several heads has an analysis for
        each, in a dict.

        Args:
            model: as in `evaluate`.
            X_test: as in `evaluate`, for one data set.
            y_test: as in `evaluate`.
            **settings: ``sample_weight``, ``confidence`` and so on, as in `evaluate`.

        Raises:
            ConfigError: as `evaluate` does.
            DataError: as `evaluate` does.
            ModelTypeError: as `evaluate` does.
        """
        if _are_data_sets(X_test, y_test):
            raise DataError('X_test: got several data sets, expected one. Analyse one at a time.')
        names = [field.name for field in dataclasses.fields(Settings) if field.name != 'metrics']
        if unknown := settings.keys() - set(names):
            raise ConfigError(
                f'analyze_performance: got {", ".join(sorted(unknown))}, expected some of '
                f'{", ".join(names)}. It computes all metrics that fit.'
            )
        checked = Settings(None, **settings)
        evaluation = evaluate_model(
            model, X_test, y_test, checked, self._devices, default=metrics_for
        )
        speed = (
            None
            if is_batches(X_test)
            else measure_speed(*self._predictor(model, X_test, evaluation))
        )
        runs = () if is_external(model) else tuple(record_of(model).runs)
        if isinstance(evaluation, dict):
            return {
                head: PerformanceAnalysis(one, speed=speed, runs=runs)
                for head, one in evaluation.items()
            }
        return PerformanceAnalysis(evaluation, speed=speed, runs=runs)

    def _predictor(
        self, model: Model, X_test: Inputs, evaluation: Evaluation | dict[str, Evaluation]
    ) -> tuple[Callable[[Any], Any], Inputs]:
        """Returns a function that predicts rows of the data, and some rows to time it with."""
        if is_external(model):
            return model.predict, X_test
        spec = record_of(model).input_spec
        X_test, *_ = pad_sequences(model, X_test, None, argument='X_test', like=spec)
        rows = open_rows(X_test, 'X_test', spec)
        first_rows = rows.take(np.arange(min(len(rows), _rows_to_time(evaluation))))
        predict = make_predict(model, first_rows, devices=self._devices, argument='X_test')
        return predict, first_rows


def _rows_to_time(evaluation: Evaluation | dict[str, Evaluation]) -> int:
    """Returns a number of rows whose outputs take little memory, at most 1,024."""
    evaluations = evaluation.values() if isinstance(evaluation, dict) else [evaluation]
    row_bytes = sum(score_bytes(one.task, 1) for one in evaluations)
    return int(np.clip(_TIMED_BYTES // max(1, row_bytes), 1, 1024))


def _check_metrics(metrics: Any) -> Any:
    if isinstance(metrics, Mapping):
        return {head: check_metrics(of_head) for head, of_head in metrics.items()}
    return check_metrics(metrics)


def _check_devices(devices: Sequence[Any] | None) -> list[Any] | None:
    if devices is None:
        return None
    checked = list(devices) if isinstance(devices, Iterable) else []
    if not checked or not all(isinstance(device, jax.Device) for device in checked):
        raise ConfigError(
            f'devices: got {devices!r}, expected JAX devices, such as the devices of a '
            'DistributedTrainer (trainer.devices) or jax.devices()[:2]; None for all.'
        )
    return checked


def _are_data_sets(X: Inputs, y: Labels) -> bool:
    are_pairs = (
        isinstance(X, dict)
        and bool(X)
        and all(
            isinstance(pair, tuple | list) and len(pair) == 2 and hasattr(pair[0], '__len__')
            for pair in X.values()
        )
    )
    if isinstance(X, dict) and not are_pairs and any(isinstance(p, tuple) for p in X.values()):
        raise DataError(
            f'X_test: got a dict of {", ".join(map(repr, X))} with tuples that are not pairs, '
            'expected (X, y) under each name: {"test": (X, y), "site B": (X2, y2)}.'
        )
    if are_pairs and y is not None:
        raise DataError(
            f'y_test: got a {type(y).__name__} beside several data sets, expected None: each pair '
            'in X_test holds its labels.'
        )
    return are_pairs
