"""The public door to evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from thinkml.core import predict_outputs
from thinkml.core.counts import f1, precision, ratio, recall
from thinkml.core.metric_names import metric_name
from thinkml.data import is_batches, open_rows
from thinkml.errors import ConfigError, DataError, is_number, is_whole, problems, warn_user
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.counting import class_counts, class_part, confusion_matrix
from thinkml.evaluation.foreign import is_foreign
from thinkml.evaluation.metrics import (
    Metric,
    check_fit,
    check_metrics,
    default_metrics,
    get_metric,
    metrics_for,
)
from thinkml.evaluation.opened import Opened
from thinkml.evaluation.own import own_metric
from thinkml.evaluation.predictors import open_model
from thinkml.evaluation.report import Report
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.scored import Scored
from thinkml.evaluation.slices import (
    Mask,
    check_none_missing,
    evaluate_slices,
    open_slices,
    undefined_in,
)
from thinkml.evaluation.speed import measure_speed
from thinkml.record import TaskKind, record_of
from thinkml.versions import library_versions


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
    ) -> Any:
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
                (`thinkml.data.open_batches`; weights in them don't count here). Of another
                library's model, what that takes.
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
        settings = _Settings(
            check_metrics(metrics), sample_weight, confidence, num_resamples, groups, stratify,
            slices, min_support, seed,
        )  # fmt: skip
        if _are_data_sets(X_test, y_test):
            return {
                name: _evaluate(model, X, y, settings.of(name, X_test), self._devices, name)
                for name, (X, y) in X_test.items()
            }
        return _evaluate(model, X_test, y_test, settings, self._devices)

    def generate_report(self, evaluation: Any) -> Report:
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
        self, model: Any, X_test: Any, y_test: Any = None, **settings: Any
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
        known = [field.name for field in dataclasses.fields(_Settings) if field.name != 'metrics']
        if unknown := settings.keys() - set(known):
            raise ConfigError(
                f'analyze_performance: got {", ".join(sorted(unknown))}, expected some of '
                f'{", ".join(known)}. It computes all metrics that fit.'
            )
        checked = _Settings(None, **settings)
        evaluation = _evaluate(model, X_test, y_test, checked, self._devices, default=metrics_for)
        speed = None if is_batches(X_test) else measure_speed(*self._predictor(model, X_test))
        runs = () if is_foreign(model) else tuple(record_of(model).runs)
        return PerformanceAnalysis(evaluation, speed=speed, runs=runs)

    def _predictor(self, model: Any, X_test: Any) -> tuple[Callable[[Any], Any], Any]:
        """What predicts rows of the data, and some rows."""
        if is_foreign(model):
            return model.predict, X_test
        rows = open_rows(X_test, 'X_test', record_of(model).input_spec)
        some = rows.take(np.arange(min(len(rows), 1024)))
        return functools.partial(predict_outputs, model, devices=self._devices), some


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


@dataclasses.dataclass(frozen=True)
class _Settings:
    """How to evaluate, checked as far as it can be without the data."""

    metrics: list[Any] | None = None
    sample_weight: Any = None
    confidence: float | None = 0.95
    num_resamples: int = 1000
    groups: Any = None
    stratify: Any = False
    slices: Mapping[str, Any] | None = None
    min_support: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        found = [
            f'{name}: got {value!r}, expected a whole number of at least {least}.'
            for name, least in (('num_resamples', 2), ('min_support', 1), ('seed', 0))
            if not (is_whole(value := getattr(self, name)) and least <= value < 2**63)
        ]
        level = self.confidence
        if level is not None and not (is_number(level) and 0 < level < 1):
            found.append(f'confidence: got {level!r}, expected a share such as 0.95, or None.')
        if not isinstance(self.slices, Mapping | None):
            found.append(
                f'slices: got {type(self.slices).__name__}, expected a dict of a mask or values '
                'for each name.'
            )
        if found:
            raise ConfigError(found[0] if len(found) == 1 else problems('evaluate:', found))

    def of(self, name: str, data_sets: Mapping[str, Any]) -> '_Settings':
        """Those of one of several data sets."""
        own: dict[str, Any] = {}
        for field in ('sample_weight', 'groups', 'stratify', 'slices'):
            value = getattr(self, field)
            if value is None or isinstance(value, bool):
                continue
            if not isinstance(value, Mapping) or not value.keys() <= data_sets.keys():
                raise ConfigError(
                    f'{field}: got {_keys_or_type(value)} beside several data sets, expected a '
                    f'dict by their names: {", ".join(map(repr, data_sets))}.'
                )
            own[field] = value.get(name, False if field == 'stratify' else None)
        return dataclasses.replace(self, **own)


def _keys_or_type(value: Any) -> str:
    if isinstance(value, Mapping):
        return f'a dict of {", ".join(map(repr, value))}'
    return type(value).__name__


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


def _evaluate(
    model: Any,
    X_test: Any,
    y_test: Any,
    settings: _Settings,
    devices: Sequence[Any] | None,
    name: str = '',
    *,
    default: Callable[[TaskKind], list[str]] = default_metrics,
) -> Evaluation:
    opened = open_model(model, X_test, y_test, devices)
    task, labels = opened.task, opened.labels
    weight = _open_weight(settings.sample_weight, len(labels))
    masks = open_slices(settings.slices, len(labels))
    resampling = _open_resampling(settings, opened)
    asked = default(task.kind) if settings.metrics is None else settings.metrics
    check_fit(asked, task.kind)
    predictions, scored = opened.predict()
    scored = dataclasses.replace(scored, weight=weight)
    if settings.metrics is None and scored.probabilities is None:
        asked = [one for one in asked if not _needs_probabilities(one, task.kind)]
    elif scored.probabilities is None:
        _check_probabilities(asked, task.kind)
    return _measured(
        opened, predictions, scored, asked, resampling, masks, settings.min_support, name
    )


def _measured(
    opened: Opened,
    predictions: np.ndarray,
    scored: Scored,
    asked: list[Any],
    resampling: Resampling,
    masks: dict[str, Mask],
    min_support: int,
    name: str,
) -> Evaluation:
    definitions, values, notes = {}, {}, []
    names = [metric_name(one) for one in asked]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f'metrics: got two called {twice[0]!r}, expected names that differ. Give each function '
            'a name of its own with def.'
        )
    for one in asked:
        metric = get_metric(one, scored.kind) if isinstance(one, str) else own_metric(one, scored)
        assert metric is not None
        if not isinstance(metric, Metric):
            values[metric_name(one)] = metric
            notes += _without_weights(metric_name(one), scored, masks)
            continue
        definitions[metric_name(one)], values[metric_name(one)] = metric, metric.of(scored)
        note = metric.note(metric_name(one), scored, scored.weights)
        notes += [] if note is None else [note]
    evaluation = Evaluation(
        task=opened.task, metrics=values, per_class=_per_class(scored, opened.task.classes),
        confusion_matrix=None if opened.task.classes is None else confusion_matrix(scored),
        predictions=predictions, labels=opened.labels, scored=scored, resampling=resampling,
        definitions=definitions, name=name,
        data_fingerprint=opened.fingerprint, versions=library_versions() | opened.versions,
    )  # fmt: skip
    slices = evaluate_slices(evaluation, masks, min_support)
    evaluation = dataclasses.replace(evaluation, slices=slices)
    notes += undefined_in(evaluation, masks)
    for note in notes:
        warn_user(f'{name}: {note}' if name else note)
    return dataclasses.replace(evaluation, warnings=tuple(notes))


def _without_weights(name: str, scored: Scored, masks: dict[str, Mask]) -> list[str]:
    given = ['sample_weight'] if scored.weight is not None else []
    given += ['slices'] if masks else []
    if not given:
        return []
    return [
        f'{name}: it returned one number for all rows, so {" and ".join(given)} did not count. '
        'Return a value for each row to have it weighted.'
    ]


def _open_weight(sample_weight: Any, num_rows: int) -> np.ndarray | None:
    if sample_weight is None:
        return None
    weight = _column(sample_weight, num_rows, 'sample_weight')
    if weight.dtype.kind not in 'biuf' or not (np.isfinite(weight) & (weight >= 0)).all():
        raise DataError('sample_weight: got values that are no numbers of at least 0.')
    if not weight.any():
        raise DataError('sample_weight: got nothing but 0, expected some rows that count.')
    return weight.astype(np.float64)


def _open_resampling(settings: _Settings, opened: Opened) -> Resampling:
    num_rows, stratify = len(opened.labels), settings.stratify
    groups = None
    if settings.groups is not None:
        groups = np.unique(_column(settings.groups, num_rows, 'groups'), return_inverse=True)[1]
        if not groups.any():
            raise DataError('groups: got one group of all rows, expected several to draw from.')
    strata = None
    if isinstance(stratify, bool | np.bool_) and stratify:
        if opened.task.kind not in ('binary', 'multiclass'):
            raise ConfigError(
                f'stratify: got True for a {opened.task.kind} task, expected an array that names '
                'the stratum of each row.'
            )
        strata = opened.encoded
    elif not (stratify is None or isinstance(stratify, bool | np.bool_)):
        strata = np.unique(_column(stratify, num_rows, 'stratify'), return_inverse=True)[1]
    if groups is not None and strata is not None:
        _check_nested(groups, strata)
    return Resampling(settings.confidence, settings.num_resamples, groups, strata, settings.seed)


def _check_nested(groups: np.ndarray, strata: np.ndarray) -> None:
    pairs = np.unique(np.stack([groups, strata]), axis=1)
    if pairs.shape[1] > groups.max() + 1:
        raise DataError(
            'stratify: got groups whose rows are of several strata, expected one for each group. '
            'Stratify by something that groups have in common, or leave it out.'
        )


def _column(values: Any, num_rows: int, argument: str) -> np.ndarray:
    values = np.asarray(values)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (num_rows,):
        raise DataError(
            f'{argument}: got shape {values.shape}, expected ({num_rows},), one for each row.'
        )
    check_none_missing(values, argument)
    return values


def _needs_probabilities(metric: Any, kind: TaskKind) -> bool:
    if not isinstance(metric, str) or kind == 'regression':
        return False
    found = get_metric(metric, kind)
    return found is not None and found.needs_probabilities


def _check_probabilities(asked: list[Any], kind: TaskKind) -> None:
    if missing := [one for one in asked if _needs_probabilities(one, kind)]:
        raise ConfigError(
            f'metrics: {", ".join(map(repr, missing))} need probabilities, but the model has no '
            'predict_proba. Ask for metrics of predictions: accuracy, precision, recall, f1, mcc.'
        )


def _per_class(
    scored: Scored, classes: tuple[Any, ...] | None
) -> dict[Any, dict[str, float]] | None:
    if classes is None:
        return None
    counts = class_counts(scored.part(class_part), scored.weights)
    support = counts.actual if scored.weight is not None else counts.actual.astype(np.int64)
    table = {
        'precision': ratio(*precision(counts)).tolist(),
        'recall': ratio(*recall(counts)).tolist(),
        'f1': ratio(*f1(counts)).tolist(),
        'support': support.tolist(),
    }
    rows = zip(*table.values(), strict=True)
    return {
        label: dict(zip(table, row, strict=True)) for label, row in zip(classes, rows, strict=True)
    }
