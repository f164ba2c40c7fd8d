"""Evaluations made by hand, of labels and probabilities a test says, without a model."""

import dataclasses

import numpy as np

from thinkml.core.objectives.confusion_counts import f1, precision, ratio, recall
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.class_counts import class_counts, class_part, confusion_matrix
from thinkml.evaluation.metrics.registry import default_metrics, get_metric
from thinkml.evaluation.result import Evaluation
from thinkml.model_record import Task

FEW = Resampling(num_resamples=50)


def made(task, scored, metrics=None, *, resampling=FEW, **fields):
    """The evaluation of labels and predictions."""
    names = default_metrics(scored.kind) if metrics is None else metrics
    definitions = {name: get_metric(name, scored.kind) for name in names}
    values = {name: metric.of(scored) for name, metric in definitions.items()}
    labels, predictions = scored.labels, scored.predictions
    matrix = per_class = None
    if task.classes is not None:
        matrix = confusion_matrix(scored)
        counts = class_counts(scored.part(class_part), scored.weights)
        columns = [ratio(*fraction(counts)) for fraction in (precision, recall, f1)]
        per_class = {
            label: {
                'precision': float(columns[0][index]),
                'recall': float(columns[1][index]),
                'f1': float(columns[2][index]),
                'support': counts.actual[index].item(),
            }
            for index, label in enumerate(task.classes)
        }
        if scored.weight is None:
            for row in per_class.values():
                row['support'] = int(row['support'])
        if scored.kind != 'multilabel':
            labels, predictions = (np.asarray(task.classes)[a] for a in (labels, predictions))
    return Evaluation(
        task,
        values,
        per_class,
        matrix,
        predictions,
        labels,
        scored,
        resampling=resampling,
        definitions=definitions,
        **fields,
    )


def logits(n, k, seed=0, strength=1.5):
    """Logits ``(n, k)`` that know something of the labels ``(n,)``."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    return strength * np.eye(k)[labels] + rng.normal(size=(n, k)), labels


def softmax(values):
    shares = np.exp(values - values.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def classification(
    classes=('ant', 'bee', 'cat'), n=120, seed=0, metrics=None, weight=None, **fields
):
    """An evaluation of one class per row: binary of two classes, else multiclass."""
    values, labels = logits(n, len(classes), seed)
    kind = 'binary' if len(classes) == 2 else 'multiclass'
    shares = softmax(values)
    scored = EvaluationData(
        kind, len(classes), labels, shares.argmax(axis=1), shares, values, weight
    )
    return made(Task(kind, tuple(classes), len(classes)), scored, metrics, **fields)


def binary(labels, probabilities, weight=None, **fields):
    """An evaluation of these labels, 0 and 1, and these probabilities of 1."""
    labels, p = np.asarray(labels), np.asarray(probabilities)
    shares = np.stack([1 - p, p], axis=1)
    scored = EvaluationData('binary', 2, labels, shares.argmax(axis=1), shares, None, weight)
    return made(Task('binary', (0, 1), 2), scored, ['accuracy'], **fields)


def without_probabilities(evaluation):
    """The same of a model that only predicts."""
    names = [n for n, metric in evaluation.definitions.items() if not metric.needs_probabilities]
    scored = dataclasses.replace(evaluation.scored, probabilities=None, outputs=None)
    return made(evaluation.task, scored, names, resampling=evaluation.resampling)


def multilabel(labels=('red', 'green', 'blue'), n=90, seed=0, metrics=None, weight=None, **fields):
    """An evaluation of several labels per row, more frequent from left to right."""
    rng = np.random.default_rng(seed)
    k = len(labels)
    truth = (rng.random((n, k)) < np.linspace(0.2, 0.8, k)).astype(np.int64)
    values = 2 * truth - 1 + rng.normal(size=truth.shape)
    shares = 1 / (1 + np.exp(-values))
    guess = (values > 0).astype(np.int64)
    scored = EvaluationData('multilabel', k, truth, guess, shares, values, weight)
    return made(Task('multilabel', tuple(labels), k, (k,)), scored, metrics, **fields)


def regression(targets=1, n=120, seed=0, metrics=None, weight=None, **fields):
    """An evaluation of numbers: around 50, predicted with an error of about 1."""
    rng = np.random.default_rng(seed)
    shape = (n,) if targets == 1 else (n, targets)
    truth = rng.normal(50, 10, size=shape)
    guess = truth + rng.normal(size=shape)
    scored = EvaluationData('regression', targets, truth, guess, weight=weight)
    return made(Task('regression', None, targets, shape[1:]), scored, metrics, **fields)
