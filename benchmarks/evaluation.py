"""Evaluation against scikit-learn: five metrics, and confidence intervals by the bootstrap.

Both sides start from the same arrays (labels, predictions, probabilities in float32) and take turns
in one process, after a warm-up of each. The script prints medians, and ThinkML's speed as a
multiple of scikit-learn's.

    python benchmarks/evaluation.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import sklearn.metrics as sk

from thinkml.evaluation.bootstrap import Resampling, percentiles, resample_values, shared_parts
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.registry import get_metric

FIVE = ('accuracy', 'precision', 'recall', 'f1', 'roc_auc')
THREE = ('accuracy', 'f1', 'roc_auc')


def binary(num_rows: int) -> EvaluationData:
    rng = np.random.default_rng(0)
    labels = (rng.random(num_rows) < 0.4).astype(np.int32)
    positive = 1 / (1 + np.exp(-rng.normal(labels - 0.5, 1)))
    probabilities = np.stack([1 - positive, positive], axis=1).astype(np.float32)
    return EvaluationData(
        'binary', 2, labels, probabilities.argmax(axis=1).astype(np.int32), probabilities
    )


def multiclass(num_rows: int, num_classes: int) -> EvaluationData:
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=num_rows).astype(np.int32)
    scores = np.exp(2 * np.eye(num_classes)[labels] + rng.normal(size=(num_rows, num_classes)))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    predictions = probabilities.argmax(axis=1).astype(np.int32)
    return EvaluationData(
        'multiclass', num_classes, labels, predictions, probabilities.astype(np.float32)
    )


def ours(case: EvaluationData) -> list[float]:
    """Computes the metrics from a new `EvaluationData`, without results of the turn before."""
    case = case.take(np.s_[:])
    return [get_metric(name, case.kind).of(case) for name in FIVE]


def theirs(case: EvaluationData) -> list[float]:
    labels, predictions, probabilities = case.labels, case.predictions, case.probabilities
    average = 'binary' if case.kind == 'binary' else 'macro'
    scores = probabilities[:, 1] if case.kind == 'binary' else probabilities
    return [
        sk.accuracy_score(labels, predictions),
        sk.precision_score(labels, predictions, average=average),
        sk.recall_score(labels, predictions, average=average),
        sk.f1_score(labels, predictions, average=average),
        sk.roc_auc_score(labels, scores, multi_class='ovr'),
    ]


def our_intervals(case: EvaluationData, num_resamples: int) -> np.ndarray:
    """Computes all three by the bootstrap; `Evaluation` uses Wilson's formula for accuracy."""
    case = case.take(np.s_[:])
    values, parts = shared_parts(case, {name: get_metric(name, case.kind) for name in THREE})
    samples = resample_values(
        values, parts, None, Resampling(num_resamples=num_resamples), len(case)
    )
    return np.array([percentiles(sample, 0.95) for sample in samples])


def their_intervals(case: EvaluationData, num_resamples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    labels, predictions, scores = case.labels, case.predictions, case.probabilities[:, 1]
    values = []
    for _ in range(num_resamples):
        rows = rng.integers(len(labels), size=len(labels))
        own_labels, own_guess = labels[rows], predictions[rows]
        values.append(
            (
                sk.accuracy_score(own_labels, own_guess),
                sk.f1_score(own_labels, own_guess),
                sk.roc_auc_score(own_labels, scores[rows]),
            )
        )
    return np.quantile(values, [0.025, 0.975], axis=0).T


def measure(name: str, a: Callable, b: Callable, *arguments, rounds: int, tolerance: float) -> None:
    np.testing.assert_allclose(a(*arguments), b(*arguments), rtol=tolerance)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, seconds in zip((a, b), times, strict=True):
            started = time.perf_counter()
            function(*arguments)
            seconds.append(time.perf_counter() - started)
    mine, other = map(statistics.median, times)
    print(f'{name:44} ThinkML {mine:7.3f} s   scikit-learn {other:7.3f} s   {other / mine:5.1f} x')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--scale', type=float, default=1.0, help='share of the rows, to try it out')
    options = parser.parse_args()
    rows = [int(n * options.scale) for n in (1_000_000, 200_000, 10_000)]
    five = {'rounds': options.rounds, 'tolerance': 1e-6}
    measure(f'five metrics, {rows[0]:,} binary rows', ours, theirs, binary(rows[0]), **five)
    case = multiclass(rows[1], 10)
    measure(f'five metrics, {rows[1]:,} rows of 10 classes', ours, theirs, case, **five)
    measure(
        f'three intervals, 1,000 resamples, {rows[2]:,} rows', our_intervals, their_intervals,
        binary(rows[2]), 1000, rounds=options.rounds, tolerance=0.02,
    )  # fmt: skip


if __name__ == '__main__':
    main()
