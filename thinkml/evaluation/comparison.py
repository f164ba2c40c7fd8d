"""Comparison: the differences between two models on the same rows."""

import dataclasses

import numpy as np

from thinkml.errors import ConfigError, DataError
from thinkml.evaluation.bootstrap import Interval, percentiles, resample_values_or_nan, shared_parts
from thinkml.evaluation.result import Evaluation, number


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of a metric between two models.

    Attributes:
        a: the value of the first model.
        b: the value of the second model.
        difference: ``a - b``.
        interval: the interval of the difference; NaN if it is undefined, as for a single row.
        p_value: the probability that a difference at least this large comes by chance if there is
            none, which is twice the fraction of resamples on the other side of 0. NaN if the
            interval is NaN.
    """

    a: float
    b: float
    difference: float
    interval: Interval
    p_value: float


@dataclasses.dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two classifiers on the same rows.

    Attributes:
        only_a: the number of rows that only the first model predicts correctly.
        only_b: the number of rows that only the second model predicts correctly.
        p_value: two-sided, from the binomial distribution.

    Reference:
        McNemar, 1947, *Note on the sampling error of the difference between correlated proportions
        or percentages*.
    """

    only_a: int
    only_b: int
    p_value: float


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """The comparison of two models on the same rows, returned by `compare`.

    Attributes:
        differences: the difference of each metric, by name.
        mcnemar: the test of the correctly predicted rows; None for regression, and if rows are
            weighted or belong to groups.
        confidence: the confidence of the intervals.
    """

    differences: dict[str, Difference]
    mcnemar: McNemar | None
    confidence: float

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        rows = [['', 'a', 'b', 'a - b', f'{self.confidence:.0%} interval', 'p']]
        rows += [
            [name, number(d.a), number(d.b), number(d.difference),
             f'{number(d.interval[0])} .. {number(d.interval[1])}', f'{d.p_value:.3g}']
            for name, d in self.differences.items()
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        ]
        if self.mcnemar is not None:
            test = self.mcnemar
            lines.append(
                f'Rows right in a alone: {test.only_a:,}, in b alone: {test.only_b:,} '
                f'(McNemar: p = {test.p_value:.3g}).'
            )
        return '\n'.join(lines)


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compares two models that were evaluated on the same rows, by a paired bootstrap.

    Both are evaluated on the same resamples, so rows that are hard or easy for both do not widen
    the interval. The resampling (confidence, groups, seed) is that of the first.

    Args:
        a: an evaluation.
        b: another evaluation, on the same data.

    Raises:
        ConfigError: if one is not an evaluation, they have no metric in common, or the first was
            evaluated without confidence.
        DataError: if their labels or weights differ.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.evaluation import ModelEvaluator, compare
        >>> X, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
        >>> a, b = (
        ...     ModelEvaluator().evaluate(nnx.Linear(4, 2, rngs=nnx.Rngs(seed)), X, y, ['accuracy'])
        ...     for seed in (0, 1))
        >>> comparison = compare(a, b)
        >>> comparison.differences['accuracy'].difference == a['accuracy'] - b['accuracy']
        True
    """
    for name, value in {'a': a, 'b': b}.items():
        if not isinstance(value, Evaluation):
            raise ConfigError(
                f'{name}: got {type(value).__name__}, expected the result of evaluate(model, '
                'X_test, y_test).'
            )
    if a.resampling.confidence is None:
        raise ConfigError(
            'a: it was evaluated with confidence=None, expected a fraction such as 0.95.'
        )
    same = a.scored.labels.shape == b.scored.labels.shape and a.task.classes == b.task.classes
    if not (same and np.array_equal(a.scored.labels, b.scored.labels)):
        raise DataError(
            f'b: its labels are not those of a ({a.headline()}; {b.headline()}), expected two '
            'models evaluated on the same rows in the same order.'
        )
    if not np.array_equal(a.scored.weights, b.scored.weights):
        raise DataError(
            'b: its rows have other weights than those of a, expected the same weights. Pass both '
            'evaluations the same sample_weight, or batches with the same weights.'
        )
    names = [name for name in a.definitions if name in b.definitions]
    if not names:
        raise ConfigError(
            f'b: it has none of the metrics of a ({", ".join(a.metrics)}), expected some in common.'
        )
    return Comparison(_differences(a, b, names), _mcnemar(a, b), a.resampling.confidence)


def _differences(a: Evaluation, b: Evaluation, names: list[str]) -> dict[str, Difference]:
    confidence = a.resampling.confidence
    assert confidence is not None
    samples = []
    for evaluation in (a, b):  # both use the same seed, and so the same resamples
        metrics = {name: evaluation.definitions[name] for name in names}
        values, parts = shared_parts(evaluation.scored, metrics)
        samples.append(
            resample_values_or_nan(values, parts, a.scored.weight, a.resampling, len(a.scored))
        )
    differences = {}
    for name, samples_a, samples_b in zip(names, *samples, strict=True):
        gaps = samples_a - samples_b
        if a.definitions[name].is_biased and not np.isnan(gaps).all():
            gaps += a[name] - b[name] - np.nanmedian(gaps)
        low, high = percentiles(gaps, confidence)
        gaps = gaps[~np.isnan(gaps)]
        tail = min((np.sum(gaps <= 0) + 1), (np.sum(gaps >= 0) + 1)) / (len(gaps) + 1)
        differences[name] = Difference(
            a=a[name],
            b=b[name],
            difference=a[name] - b[name],
            interval=(float(low), float(high)),
            p_value=min(1.0, 2 * tail) if len(gaps) else np.nan,
        )
    return differences


def _mcnemar(a: Evaluation, b: Evaluation) -> McNemar | None:
    are_independent = a.scored.weight is None and a.resampling.groups is None
    if not (a.task.is_classification and are_independent):
        return None
    from scipy.stats import binomtest

    right_a, right_b = (
        (e.scored.predictions == e.scored.labels).reshape(len(e.scored), -1).all(axis=1)
        for e in (a, b)
    )
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    total = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, total).pvalue) if total else 1.0)
