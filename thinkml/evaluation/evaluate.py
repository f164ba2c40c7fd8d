"""Evaluation of one model on one data set: predictions, metrics, slices and warnings."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from thinkml.core.objectives.confusion_counts import f1, iou, precision, ratio, recall
from thinkml.core.objectives.metric_table import metric_name
from thinkml.data.head_targets import naming_head
from thinkml.errors import ConfigError, DataError, warn_user
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.evaluation_input import EvaluationInput
from thinkml.evaluation.metrics.class_counts import class_part, confusion_matrix
from thinkml.evaluation.metrics.custom import custom_metric, custom_values
from thinkml.evaluation.metrics.registry import check_fit, default_metrics, get_metric
from thinkml.evaluation.model_outputs import open_model
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.score_summary import MOST_SCORE_BYTES, score_bytes
from thinkml.evaluation.scored_elements import (
    counted_elements,
    draw_rows,
    has_positions,
    weights_of_elements,
)
from thinkml.evaluation.settings import Settings, open_resampling, open_weight
from thinkml.evaluation.slices import Mask, evaluate_slices, open_slices
from thinkml.task_types import TASK_TYPES, TaskKind
from thinkml.typing import Inputs, Labels, Model
from thinkml.versions import library_versions


def evaluate_model(
    model: Model,
    X_test: Inputs,
    y_test: Labels,
    settings: Settings,
    devices: Sequence[Any] | None,
    name: str = '',
    *,
    default: Callable[[TaskKind], list[str]] = default_metrics,
) -> Evaluation | dict[str, Evaluation]:
    """Evaluates a model on a data set; see `ModelEvaluator.evaluate`.

    The result is a dict of evaluations by head for a model with several heads.

    Args:
        model: a model of any kind that can be evaluated.
        X_test: its inputs.
        y_test: the true targets.
        settings: how to evaluate.
        devices: the devices that compute the outputs; None for all of this process.
        name: the name of the data set.
        default: returns the names of the metrics to compute if the settings name none.
    """
    inputs = open_model(model, X_test, y_test, devices)
    if isinstance(inputs, dict):
        evaluations = {}
        for head, one in inputs.items():
            of_head = settings.for_head(head, inputs)
            with naming_head(head):
                evaluations[head] = _evaluate(
                    one, of_head, f'{name}, {head}' if name else head, default
                )
        return evaluations
    if isinstance(settings.metrics, Mapping):
        raise ConfigError('metrics: got a dict for a model with one output, expected a list.')
    return _evaluate(inputs, settings, name, default)


def _evaluate(
    inputs: EvaluationInput,
    settings: Settings,
    name: str,
    default: Callable[[TaskKind], list[str]],
) -> Evaluation:
    task, labels = inputs.task, inputs.labels
    weight = open_weight(settings.sample_weight, inputs)
    of_elements = task.element_shape if task.is_classification else ()
    masks = open_slices(settings.slices, len(labels), of_elements)
    resampling = open_resampling(settings, inputs)
    metrics = default(task.kind) if settings.metrics is None else settings.metrics
    check_fit(metrics, task.kind, task.classes)
    notes: list[str] = []
    if not inputs.has_all_scores:
        metrics, notes = _without_all_scores(metrics, inputs, settings.metrics is None)
    if has_positions(inputs.encoded, task):
        positions = counted_elements(inputs.encoded, task)
        rows = positions // task.num_elements
        weight = weights_of_elements(weight, task, positions)
        if not len(positions) or (weight is not None and not weight.any()):
            raise DataError(
                f'y_test: each {"element" if task.element_shape else "row"} is ignored or has '
                'weight 0, expected some that count.'
            )
        masks = {
            name: mask[rows] if mask.ndim == 1 else mask.reshape(-1)[positions]
            for name, mask in masks.items()
        }
        resampling = draw_rows(resampling, rows)
    predictions, data = inputs.predict()
    data = dataclasses.replace(data, weight=weight)
    if settings.metrics is None and not data.has_probabilities:
        metrics = [metric for metric in metrics if not _needs_probabilities(metric, task.kind)]
    elif not data.has_probabilities:
        _check_probabilities(metrics, task.kind)
    return _compute_evaluation(
        inputs, predictions, data, metrics, resampling, masks, settings.min_support, name, notes
    )


def _compute_evaluation(
    inputs: EvaluationInput,
    predictions: np.ndarray,
    data: EvaluationData,
    metrics: list[Any],
    resampling: Resampling,
    masks: dict[str, Mask],
    min_support: int,
    name: str,
    notes: list[str],
) -> Evaluation:
    names = [metric_name(metric) for metric in metrics]
    if duplicates := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f'metrics: got two called {duplicates[0]!r}, expected different names. Define each '
            'function with def, under a different name.'
        )
    custom = {
        metric_name(metric): custom_values(metric, data)
        for metric in metrics
        if not isinstance(metric, str)
    }
    row_values = {key: value for key, value in custom.items() if isinstance(value, np.ndarray)}
    data = dataclasses.replace(data, custom=row_values)
    definitions, values, notes = {}, {}, list(notes)
    classes = inputs.task.classes
    for key in names:
        if isinstance(number := custom.get(key), float):
            values[key] = number
            notes += _ignored_settings_notes(key, data, masks)
            continue
        metric = custom_metric(key, data) if key in custom else get_metric(key, data.kind, classes)
        assert metric is not None
        definitions[key], values[key] = metric, metric.of(data)
        notes += [note] if (note := metric.note(key, data)) else []
    evaluation = Evaluation(
        task=inputs.task,
        metrics=values,
        per_class=_per_class(data, classes),
        confusion_matrix=None if classes is None else confusion_matrix(data),
        # Copies, since these arrays may belong to the caller or to another library's model.
        predictions=predictions.copy(),
        labels=inputs.labels.copy(),
        scored=data,
        resampling=resampling,
        definitions=definitions,
        name=name,
        data_fingerprint=inputs.fingerprint,
        versions=library_versions() | inputs.versions,
    )
    slices, undefined = evaluate_slices(evaluation, masks, min_support)
    notes += undefined
    for note in notes:
        warn_user(f'{name}: {note}' if name else note)
    return dataclasses.replace(evaluation, slices=slices, warnings=tuple(notes))


def _ignored_settings_notes(name: str, data: EvaluationData, masks: dict[str, Mask]) -> list[str]:
    ignored = ['sample_weight'] if data.weight is not None else []
    ignored += ['slices'] if masks else []
    if not ignored:
        return []
    return [
        f'{name}: it returned one number for all rows, so {" and ".join(ignored)} did not count. '
        'Return a value for each row to have it weighted.'
    ]


def _without_all_scores(
    metrics: list[Any], inputs: EvaluationInput, is_default: bool
) -> tuple[list[Any], list[str]]:
    """Returns the metrics that need no scores of all classes, and notes on those left out.

    Raises:
        ConfigError: if others were requested.
    """

    def needs_all(metric: Any) -> bool:
        task, definition = inputs.task, None
        if isinstance(metric, str):
            definition = get_metric(metric, task.kind, task.classes)
        return definition is None or definition.needs_all_scores

    left_out = [metric_name(metric) for metric in metrics if needs_all(metric)]
    if not left_out:
        return metrics, []
    size = score_bytes(inputs.task, len(inputs.labels)) / 1e9
    reason = (
        f'the scores of {len(inputs.labels) * inputs.task.num_elements:,} examples and '
        f'{inputs.task.num_outputs:,} classes take {size:,.1f} GB, more than an evaluation keeps '
        f'({MOST_SCORE_BYTES / 1e9:.1f} GB)'
    )
    if not is_default:
        raise ConfigError(
            f'metrics: {", ".join(map(repr, left_out))} need the scores of all classes, but '
            f'{reason}. Use metrics such as accuracy, f1, log_loss, perplexity, brier, ece or '
            'top_5_accuracy, or evaluate fewer rows.'
        )
    kept = [metric for metric in metrics if not needs_all(metric)]
    return kept, [f'{", ".join(left_out)}: left out, since {reason}.']


def _needs_probabilities(metric: Any, kind: TaskKind) -> bool:
    if not isinstance(metric, str) or not TASK_TYPES[kind].is_classification:
        return False
    definition = get_metric(metric, kind)
    return definition is not None and definition.needs_probabilities


def _check_probabilities(metrics: list[Any], kind: TaskKind) -> None:
    if missing := [metric for metric in metrics if _needs_probabilities(metric, kind)]:
        raise ConfigError(
            f'metrics: {", ".join(map(repr, missing))} need probabilities, but the model has no '
            'predict_proba. Ask for metrics of predictions: accuracy, precision, recall, f1, mcc.'
        )


def _per_class(
    data: EvaluationData, classes: tuple[Any, ...] | None
) -> dict[Any, dict[str, float]] | None:
    if classes is None:
        return None
    counts = data.part(class_part).full_counts
    support = counts.actual if data.weight is not None else counts.actual.astype(np.int64)
    table = {
        'precision': ratio(*precision(counts)).tolist(),
        'recall': ratio(*recall(counts)).tolist(),
        'f1': ratio(*f1(counts)).tolist(),
        'iou': ratio(*iou(counts)).tolist(),
        'support': support.tolist(),
    }
    rows = zip(*table.values(), strict=True)
    return {
        label: dict(zip(table, row, strict=True)) for label, row in zip(classes, rows, strict=True)
    }
