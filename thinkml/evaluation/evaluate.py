"""A model, a data set and settings, made into an evaluation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from thinkml.core.objectives.confusion_counts import f1, precision, ratio, recall
from thinkml.core.objectives.metric_names import metric_name
from thinkml.errors import ConfigError, warn_user
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.evaluation_input import EvaluationInput
from thinkml.evaluation.metrics.class_counts import class_part, confusion_matrix
from thinkml.evaluation.metrics.custom import own_values, row_metric
from thinkml.evaluation.metrics.registry import check_fit, default_metrics, get_metric
from thinkml.evaluation.model_outputs import open_model
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.settings import Settings, open_resampling, open_weight
from thinkml.evaluation.slices import Mask, evaluate_slices, open_slices
from thinkml.model_record import TaskKind
from thinkml.versions import library_versions


def evaluate_model(
    model: Any,
    X_test: Any,
    y_test: Any,
    settings: Settings,
    devices: Sequence[Any] | None,
    name: str = '',
    *,
    default: Callable[[TaskKind], list[str]] = default_metrics,
) -> Evaluation:
    """Evaluates a model on a data set; see `ModelEvaluator.evaluate`.

    Args:
        model: of any kind that can be evaluated.
        X_test: its inputs.
        y_test: the true targets.
        settings: how to evaluate.
        devices: what computes the outputs; None for all of this process.
        name: of the data set.
        default: the names of the metrics where the settings ask for none.
    """
    opened = open_model(model, X_test, y_test, devices)
    task, labels = opened.task, opened.labels
    weight = open_weight(settings.sample_weight, opened)
    masks = open_slices(settings.slices, len(labels))
    resampling = open_resampling(settings, opened)
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
    opened: EvaluationInput,
    predictions: np.ndarray,
    scored: EvaluationData,
    asked: list[Any],
    resampling: Resampling,
    masks: dict[str, Mask],
    min_support: int,
    name: str,
) -> Evaluation:
    names = [metric_name(one) for one in asked]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f'metrics: got two called {twice[0]!r}, expected names that differ. Give each function '
            'a name of its own with def.'
        )
    own = {metric_name(one): own_values(one, scored) for one in asked if not isinstance(one, str)}
    of_rows = {name: found for name, found in own.items() if isinstance(found, np.ndarray)}
    scored = dataclasses.replace(scored, own=of_rows)
    definitions, values, notes = {}, {}, []
    for each in names:
        if isinstance(number := own.get(each), float):
            values[each] = number
            notes += _without_weights(each, scored, masks)
            continue
        metric = row_metric(each, scored) if each in own else get_metric(each, scored.kind)
        assert metric is not None
        definitions[each], values[each] = metric, metric.of(scored)
        notes += [note] if (note := metric.note(each, scored)) else []
    evaluation = Evaluation(
        task=opened.task, metrics=values, per_class=_per_class(scored, opened.task.classes),
        confusion_matrix=None if opened.task.classes is None else confusion_matrix(scored),
        # Copies: these arrays may be the caller's, or a model's of another library.
        predictions=predictions.copy(), labels=opened.labels.copy(), scored=scored,
        resampling=resampling,
        definitions=definitions, name=name,
        data_fingerprint=opened.fingerprint, versions=library_versions() | opened.versions,
    )  # fmt: skip
    slices, undefined = evaluate_slices(evaluation, masks, min_support)
    notes += undefined
    for note in notes:
        warn_user(f'{name}: {note}' if name else note)
    return dataclasses.replace(evaluation, slices=slices, warnings=tuple(notes))


def _without_weights(name: str, scored: EvaluationData, masks: dict[str, Mask]) -> list[str]:
    given = ['sample_weight'] if scored.weight is not None else []
    given += ['slices'] if masks else []
    if not given:
        return []
    return [
        f'{name}: it returned one number for all rows, so {" and ".join(given)} did not count. '
        'Return a value for each row to have it weighted.'
    ]


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
    scored: EvaluationData, classes: tuple[Any, ...] | None
) -> dict[Any, dict[str, float]] | None:
    if classes is None:
        return None
    counts = scored.part(class_part).whole
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
