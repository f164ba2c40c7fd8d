"""Evaluations for tests, made from chosen labels and probabilities without a model."""

import dataclasses

import numpy as np

from thinkml.core.objectives.confusion_counts import f1, iou, precision, ratio, recall
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import class_counts, class_part, confusion_matrix
from thinkml.evaluation.metrics.registry import default_metrics, get_metric
from thinkml.evaluation.result import Evaluation
from thinkml.tasks import Task

FEW = Resampling(num_resamples=50)


def make_evaluation(task, data, metrics=None, *, resampling=FEW, **fields):
    """Returns the evaluation of labels and predictions."""
    names = default_metrics(data.kind) if metrics is None else metrics
    definitions = {name: get_metric(name, data.kind) for name in names}
    values = {name: metric.of(data) for name, metric in definitions.items()}
    labels, predictions = data.labels, data.predictions
    matrix = per_class = None
    if task.classes is not None:
        matrix = confusion_matrix(data)
        counts = class_counts(data.part(class_part), data.weights)
        columns = [ratio(*fraction(counts)) for fraction in (precision, recall, f1, iou)]
        per_class = {
            label: {
                'precision': float(columns[0][index]),
                'recall': float(columns[1][index]),
                'f1': float(columns[2][index]),
                'iou': float(columns[3][index]),
                'support': counts.actual[index].item(),
            }
            for index, label in enumerate(task.classes)
        }
        if data.weight is None:
            for row in per_class.values():
                row['support'] = int(row['support'])
        if data.kind != 'multilabel':
            labels, predictions = (np.asarray(task.classes)[a] for a in (labels, predictions))
    return Evaluation(
        task,
        values,
        per_class,
        matrix,
        predictions,
        labels,
        data,
        resampling=resampling,
        definitions=definitions,
        **fields,
    )


def logits(n, k, seed=0, strength=1.5):
    """Returns logits ``(n, k)`` that are correlated with the labels ``(n,)``, and these labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    return strength * np.eye(k)[labels] + rng.normal(size=(n, k)), labels


def softmax(values):
    probabilities = np.exp(values - values.max(axis=1, keepdims=True))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def classification(
    classes=('ant', 'bee', 'cat'), n=120, seed=0, metrics=None, weight=None, **fields
):
    """Returns an evaluation with one class per row: binary with two classes, else multiclass."""
    values, labels = logits(n, len(classes), seed)
    kind = 'binary' if len(classes) == 2 else 'multiclass'
    probabilities = softmax(values)
    data = EvaluationData(
        kind, len(classes), labels, probabilities.argmax(axis=1), probabilities, values, weight
    )
    return make_evaluation(Task(kind, tuple(classes), len(classes)), data, metrics, **fields)


def binary(labels, probabilities, weight=None, **fields):
    """Returns an evaluation with these labels, 0 and 1, and these probabilities of 1."""
    labels, p = np.asarray(labels), np.asarray(probabilities)
    probabilities = np.stack([1 - p, p], axis=1)
    data = EvaluationData(
        'binary', 2, labels, probabilities.argmax(axis=1), probabilities, None, weight
    )
    return make_evaluation(Task('binary', (0, 1), 2), data, ['accuracy'], **fields)


def without_probabilities(evaluation):
    """Returns the same evaluation for a model that only predicts."""
    names = [n for n, metric in evaluation.definitions.items() if not metric.needs_probabilities]
    data = dataclasses.replace(evaluation.scored, probabilities=None, outputs=None)
    return make_evaluation(evaluation.task, data, names, resampling=evaluation.resampling)


def multilabel(labels=('red', 'green', 'blue'), n=90, seed=0, metrics=None, weight=None, **fields):
    """Returns an evaluation with several labels per row, more frequent from left to right."""
    rng = np.random.default_rng(seed)
    k = len(labels)
    truth = (rng.random((n, k)) < np.linspace(0.2, 0.8, k)).astype(np.int64)
    values = 2 * truth - 1 + rng.normal(size=truth.shape)
    probabilities = 1 / (1 + np.exp(-values))
    predictions = (values > 0).astype(np.int64)
    data = EvaluationData('multilabel', k, truth, predictions, probabilities, values, weight)
    return make_evaluation(Task('multilabel', tuple(labels), k, (k,)), data, metrics, **fields)


def regression(targets=1, n=120, seed=0, metrics=None, weight=None, **fields):
    """Returns an evaluation of numbers around 50, predicted with an error of about 1."""
    rng = np.random.default_rng(seed)
    shape = (n,) if targets == 1 else (n, targets)
    truth = rng.normal(50, 10, size=shape)
    predictions = truth + rng.normal(size=shape)
    data = EvaluationData('regression', targets, truth, predictions, weight=weight)
    return make_evaluation(Task('regression', None, targets, shape[1:]), data, metrics, **fields)
