"""Report content: all values of a report, computed once as plain values that renderers lay out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from thinkml.evaluation.metrics.class_counts import class_part
from thinkml.evaluation.report.diagnostics import baseline, calibration, thresholds
from thinkml.evaluation.report.example_rows import example_rows
from thinkml.evaluation.report.largest_errors import confusions, errors, surprises
from thinkml.evaluation.result import Evaluation
from thinkml.json_values import to_json_value

SCHEMA = 1
MAX_CLASSES = 30  # in the table of a task of elements; the others share a line
_SCORES = ('precision', 'recall', 'f1')


def describe_evaluation(evaluation: Evaluation, name: str | None = None) -> dict[str, Any]:
    """Gathers the content of a report on an evaluation.

    Args:
        evaluation: the evaluation to report.
        name: the name of the data set; None for the name in the evaluation.

    Returns:
        Values that JSON can hold: text, numbers, lists and dicts with text as keys; NaN is None.
    """
    task, resampling = evaluation.task, evaluation.resampling
    name = evaluation.name if name is None else name
    classes = None if task.classes is None else [str(label) for label in task.classes]
    return to_json_value(
        {
            'schema': SCHEMA,
            'headline': dataclasses.replace(evaluation, name=name).headline(),
            'name': name,
            'task': task.kind,
            'classes': classes,
            'num_outputs': task.num_outputs,
            'num_rows': evaluation.num_rows,
            'num_elements': len(evaluation.scored),
            'element_shape': task.element_shape,
            'is_weighted': evaluation.scored.weight is not None,
            'confidence': resampling.confidence,
            'metrics': evaluation.metrics,
            'confidence_intervals': evaluation.confidence_intervals,
            'baseline': baseline(evaluation),
            'notes': _notes(evaluation, classes),
            'warnings': evaluation.warnings,
            'per_class': evaluation.per_class,
            'per_class_intervals': _class_intervals(evaluation),
            'averages': _averages(evaluation),
            'other_classes': _other_classes(evaluation),
            'confusion_matrix': evaluation.confusion_matrix,
            'confusions': confusions(evaluation),
            'calibration': calibration(evaluation),
            'thresholds': thresholds(evaluation),
            'errors': errors(evaluation),
            'surprises': surprises(evaluation),
            'examples': example_rows(evaluation),
            'slices': [dataclasses.asdict(part) for part in evaluation.slices.values()],
            'data_fingerprint': evaluation.data_fingerprint,
            'versions': evaluation.versions,
            'seed': resampling.seed,
        },
        convert=str,
    )


def describe_evaluations(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Gathers the content of a report on several data sets or heads, each under its name."""
    evaluations = {str(name): part for name, part in evaluations.items()}
    plural = 's' if len(evaluations) > 1 else ''
    return {
        'schema': SCHEMA,
        'headline': f'{len(evaluations)} evaluation{plural}: {", ".join(evaluations)}',
        'data_sets': {name: describe_evaluation(part, name) for name, part in evaluations.items()},
    }


def _class_intervals(evaluation: Evaluation) -> dict[Any, dict[str, tuple[float, float]]]:
    return {} if evaluation.per_class is None else evaluation.per_class_intervals


def _averages(evaluation: Evaluation) -> dict[str, dict[str, float]] | None:
    """Returns the means of the table by class, as in scikit-learn."""
    if evaluation.per_class is None:
        return None
    scores, support = _class_table(evaluation.per_class)
    occurs = evaluation.scored.part(class_part).occurs
    weights = support / (support.sum() or 1)
    means = {'macro mean': scores[occurs].mean(axis=0), 'weighted mean': weights @ scores}
    total = {'support': support.sum()}
    return {name: dict(zip(_SCORES, mean, strict=True)) | total for name, mean in means.items()}


def _class_table(per_class: Mapping[Any, Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores ``(classes, 3)`` and the support ``(classes,)``."""
    rows = per_class.values()
    scores = np.array([[row[name] for name in _SCORES] for row in rows])
    return scores, np.array([row['support'] for row in rows])


def _other_classes(evaluation: Evaluation) -> dict[str, Any] | None:
    """Returns the mean scores of the classes with little support, for tokens and pixels.

    The vocabulary of a language model has thousands of classes, and most occur a few times only.
    Classes that neither occur nor are predicted are left out of the means, as in the macro mean.

    Returns:
        The names of the classes with the largest support as ``'shown'``, and for the others their
        number, mean scores and total support; None if all classes are shown.
    """
    per_class = evaluation.per_class
    if per_class is None or not evaluation.task.element_shape or len(per_class) <= MAX_CLASSES:
        return None
    scores, support = _class_table(per_class)
    order = np.argsort(-support, kind='stable')
    shown, others = order[:MAX_CLASSES], order[MAX_CLASSES:]
    counted = others[evaluation.scored.part(class_part).occurs[others]]
    means = scores[counted].mean(axis=0) if len(counted) else np.full(len(_SCORES), np.nan)
    names = [str(name) for name in per_class]
    return {
        'shown': [names[index] for index in shown],
        'count': len(others),
        **dict(zip(_SCORES, means, strict=True)),
        'support': support[others].sum(),
    }


def _notes(evaluation: Evaluation, classes: list[str] | None) -> list[str]:
    """Returns notes on the metrics, the baseline and the intervals."""
    task_type, data = evaluation.task.type, evaluation.scored
    if classes is None:
        scope = [] if evaluation.task.num_outputs == 1 else ['Metrics: means over the targets.']
        base = 'Baseline: always the mean of the true values.'
    elif task_type.has_many_labels:
        scope = ['Metrics: means over the labels; accuracy: all labels right.']
        base = "Baseline: each label's most frequent value; probabilities: the labels' frequencies."
    else:
        has_positive = task_type.has_positive_class
        target = f'of class {classes[1]}' if has_positive else 'means over the classes'
        scope = [f'Precision, recall and similar metrics: {target}.']
        most = classes[int(np.bincount(data.labels, data.weights).argmax())]
        base = (
            f'Baseline: always class {most}, the most frequent; '
            "probabilities: the classes' frequencies."
        )
    weighted = ['Rows count by their weights.'] if data.weight is not None else []
    return [*scope, base, *weighted, *_interval_notes(evaluation)]


def _interval_notes(evaluation: Evaluation) -> list[str]:
    resampling = evaluation.resampling
    if resampling.confidence is None:
        return []
    groups, positions = resampling.groups, evaluation.scored.positions
    units = 'rows' if groups is None else 'groups of rows'
    if groups is not None and positions is not None and evaluation.task.element_shape:
        rows = positions // evaluation.task.num_elements
        is_grouped = len(np.unique(groups)) < len(np.unique(rows))
        units = f'{"groups of " if is_grouped else ""}rows with all their elements'
    stratified = '' if resampling.strata is None else ', with the size of each stratum kept'
    is_simple = resampling.groups is resampling.strata is evaluation.scored.weight is None
    has_proportions = is_simple and any(
        metric.proportion for metric in evaluation.definitions.values()
    )
    wilson = "; simple proportions by Wilson's formula" if has_proportions else ''
    return [
        f'{percent(resampling.confidence)} intervals: percentiles of {resampling.num_resamples:,} '
        f'bootstrap resamples of {units}{stratified} (seed {resampling.seed}){wilson}.'
    ]


def percent(fraction: float) -> str:
    """Returns a fraction as text: ``95%``."""
    return f'{100 * fraction:.6g}%'
