"""The public door to evaluation."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Unpack, overload

import jax
import numpy as np

from thinkml.core import make_predict
from thinkml.data import is_batches, open_rows
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.evaluate import evaluate_model
from thinkml.evaluation.external_models import is_external
from thinkml.evaluation.metrics.registry import check_metrics, metrics_for
from thinkml.evaluation.report import Report
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.settings import EvaluationSettings, Settings
from thinkml.evaluation.speed import measure_speed
from thinkml.model_record import record_of


class ModelEvaluator:
    """Measures how well a model does on data it was not trained on.

    Args:
        devices: what computes the model's outputs, each a part of the rows, such as
            `DistributedTrainer.devices`; None for all of this process. Where they are of several
            processes, each of these evaluates, with the same arguments, and has the result. Models
            of other libraries compute where they do.

    Raises:
        ConfigError: if ``devices`` are no devices of JAX.

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
        self._devices = _checked_devices(devices)

    def __getstate__(self) -> dict[str, Any]:
        # Devices are those of a process, which a copy finds by their numbers.
        ids = None if self._devices is None else [device.id for device in self._devices]
        return vars(self) | {'_devices': ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._devices is not None:
            there = {device.id: device for device in jax.devices()}
            if missing := sorted(set(self._devices) - there.keys()):
                raise ConfigError(
                    f'devices: the evaluator is a copy of one that used device {missing[0]}, which '
                    f'this process does not have ({len(there)} devices). Make another one: '
                    'ModelEvaluator(devices=...).'
                )
            self._devices = [there[number] for number in self._devices]

    @overload
    def evaluate(  # pyright: ignore[reportOverlappingOverload]
        self,
        model: Any,
        X_test: Mapping[str, tuple[Any, Any]],
        y_test: None = None,
        metrics: Collection[Any] | None = None,
        **settings: Unpack[EvaluationSettings],
    ) -> dict[str, Evaluation]: ...

    @overload
    def evaluate(
        self,
        model: Any,
        X_test: Any,
        y_test: Any = None,
        metrics: Collection[Any] | None = None,
        **settings: Unpack[EvaluationSettings],
    ) -> Evaluation: ...

    def evaluate(
        self,
        model: Any,
        X_test: Any,
        y_test: Any = None,
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
        """Predicts ``X_test`` and compares with ``y_test``.

        The model and its mode stay as they are. Several data sets are evaluated one after another:
        ``evaluate(model, {'test': (X, y), 'site B': (X2, y2)})`` returns a dict of evaluations by
        name; ``sample_weight``, ``groups``, ``stratify`` and ``slices`` then are dicts by the same
        names.

        Args:
            model: a `flax.nnx.Module`, ``thinkml.models.from_linen(module)`` or
                ``from_functions(init, apply)``, or any object with ``predict`` and, for metrics of
                probabilities, ``predict_proba``, such as those of scikit-learn. What the outputs of
                the former mean is known from their training; for a model trained elsewhere it is
                inferred from ``y_test``.
            X_test: inputs, one row per example, of any kind that training takes: arrays, frames,
                what is stored on disk (see `thinkml.data.open_rows`), batches
                (`thinkml.data.open_batches`; weights in them count as ``sample_weight`` does). Of
                another library's model, what that takes.
            y_test: targets in the form used in training. None, or the name of a column, where
                ``X_test`` holds them (`thinkml.data.open_dataset`).
            metrics: names from `METRICS`, functions ``(logits, labels)`` and CLU metrics as in
                training. None computes accuracy, precision, recall, f1, roc_auc and log_loss for
                classification, rmse, mae and r2 for regression.
            sample_weight: what each row counts, ``(rows,)``, at least 0.
            confidence: the share of confidence intervals that are to cover the true value; None for
                no intervals. They are made when `Evaluation.confidence_intervals` is first read.
            num_resamples: of the bootstrap.
            groups: which rows belong together, ``(rows,)``: patients, sites. The bootstrap draws
                whole groups.
            stratify: True draws as many rows of each class as there are; an array ``(rows,)``
                names other strata.
            slices: parts of the rows to look at besides, by name: a mask ``(rows,)`` of bools, or
                ``(rows,)`` values, each of which is a slice of its own.
            min_support: rows a slice needs for its metrics to be computed.
            seed: of the bootstrap.

        Returns:
            an `Evaluation`, or a dict of them by name.

        Warns:
            ThinkMLWarning: where a metric is undefined (it is 0 then, or NaN, as in scikit-learn).

        Raises:
            ConfigError: if a metric is unknown or does not fit the task, or a setting is
                impossible.
            DataError: if the arrays don't fit each other or the model, or hold NaN; if the model
                returns NaN.
            ModelTypeError: if ``model`` is not a model.
        """
        settings = Settings(
            check_metrics(metrics), sample_weight, confidence, num_resamples, groups, stratify,
            slices, min_support, seed,
        )  # fmt: skip
        if _are_data_sets(X_test, y_test):
            return {
                name: evaluate_model(model, X, y, settings.of(name, X_test), self._devices, name)
                for name, (X, y) in X_test.items()
            }
        return evaluate_model(model, X_test, y_test, settings, self._devices)

    def generate_report(self, evaluation: Evaluation | dict[str, Evaluation]) -> Report:
        """Words an evaluation: ``print(report)``, ``report.save(path)``, ``report.to_html()``.

        Args:
            evaluation: what `evaluate` returned, of one data set or of several.

        Raises:
            ConfigError: if ``evaluation`` is something else.
        """
        found = list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation]
        if not (found and all(isinstance(one, Evaluation) for one in found)):
            raise ConfigError(
                f'evaluation: got {type(evaluation).__name__}, expected what '
                'evaluate(model, X_test, y_test) returned.'
            )
        return Report(evaluation)

    def analyze_performance(
        self, model: Any, X_test: Any, y_test: Any = None, **settings: Unpack[EvaluationSettings]
    ) -> PerformanceAnalysis:
        """Evaluates with every metric that fits the task, ready to be plotted.

        How fast the model predicts is measured too.

        Args:
            model: as in `evaluate`.
            X_test: as in `evaluate`, of one data set.
            y_test: as in `evaluate`.
            **settings: ``sample_weight``, ``confidence`` and so on, as in `evaluate`.

        Raises:
            ConfigError: as `evaluate` does.
            DataError: as `evaluate` does.
            ModelTypeError: as `evaluate` does.
        """
        if _are_data_sets(X_test, y_test):
            raise DataError('X_test: got several data sets, expected one. Analyse one at a time.')
        known = [field.name for field in dataclasses.fields(Settings) if field.name != 'metrics']
        if unknown := settings.keys() - set(known):
            raise ConfigError(
                f'analyze_performance: got {", ".join(sorted(unknown))}, expected some of '
                f'{", ".join(known)}. It computes all metrics that fit.'
            )
        checked = Settings(None, **settings)
        evaluation = evaluate_model(
            model, X_test, y_test, checked, self._devices, default=metrics_for
        )
        speed = None if is_batches(X_test) else measure_speed(*self._predictor(model, X_test))
        runs = () if is_external(model) else tuple(record_of(model).runs)
        return PerformanceAnalysis(evaluation, speed=speed, runs=runs)

    def _predictor(self, model: Any, X_test: Any) -> tuple[Callable[[Any], Any], Any]:
        """What predicts rows of the data, and some rows."""
        if is_external(model):
            return model.predict, X_test
        rows = open_rows(X_test, 'X_test', record_of(model).input_spec)
        some = rows.take(np.arange(min(len(rows), 1024)))
        return make_predict(model, some, devices=self._devices, argument='X_test'), some


def _checked_devices(devices: Any) -> list[Any] | None:
    if devices is None:
        return None
    found = list(devices) if isinstance(devices, Iterable) else []
    if not found or not all(isinstance(device, jax.Device) for device in found):
        raise ConfigError(
            f'devices: got {devices!r}, expected devices of JAX, such as trainer.devices of a '
            'DistributedTrainer or jax.devices()[:2]; None for all.'
        )
    return found


def _are_data_sets(X: Any, y: Any) -> bool:
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
            f'X_test: got a dict of {", ".join(map(repr, X))} with tuples that are no pairs, '
            'expected (X, y) under each name: {"test": (X, y), "site B": (X2, y2)}.'
        )
    if are_pairs and y is not None:
        raise DataError(
            f'y_test: got a {type(y).__name__} beside several data sets, expected None: each pair '
            'in X_test holds its labels.'
        )
    return are_pairs
