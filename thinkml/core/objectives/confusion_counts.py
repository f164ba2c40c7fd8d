"""Metrics that are made of counts: how often each class was hit, was predicted and occurs.

The functions take arrays of NumPy and of JAX alike: they compute with the library the counts are
of. Where there is nothing to divide by they give 0, as scikit-learn does.
"""

from typing import Any, NamedTuple

from thinkml.model_record import TaskKind


class Counts(NamedTuple):
    """Counts by class (or label), floats ``[classes]``.

    Attributes:
        hits: examples of the class that were predicted to be.
        predicted: examples that were predicted to be of the class.
        actual: examples of the class.
        total: examples in all, a number.
    """

    true_positives: Any
    predicted: Any
    actual: Any
    total: Any


class Fraction(NamedTuple):
    """A ratio by class."""

    numerator: Any
    denominator: Any


def precision(counts: Counts) -> Fraction:
    """Of what was predicted to be a class, the share that is: ``tp / (tp + fp)``."""
    return Fraction(counts.true_positives, counts.predicted)


def recall(counts: Counts) -> Fraction:
    """Of what is a class, the share that was predicted to be: ``tp / (tp + fn)``."""
    return Fraction(counts.true_positives, counts.actual)


def f1(counts: Counts) -> Fraction:
    """The harmonic mean of precision and recall: ``2 tp / (2 tp + fp + fn)``."""
    return Fraction(2 * counts.true_positives, counts.predicted + counts.actual)


def specificity(counts: Counts) -> Fraction:
    """Of what is not a class, the share that was not predicted to be: ``tn / (tn + fp)``."""
    return Fraction(_rejected(counts), counts.total - counts.actual)


def npv(counts: Counts) -> Fraction:
    """Of what was not predicted to be a class, the share that is not: ``tn / (tn + fn)``."""
    return Fraction(_rejected(counts), counts.total - counts.predicted)


def _rejected(counts: Counts) -> Any:
    return counts.total - counts.predicted - counts.actual + counts.true_positives


def average(
    fraction: Fraction, counts: Counts, kind: TaskKind, how: str | None, which: Any = None
) -> Any:
    """One number from a ratio per class.

    Args:
        fraction: from `precision`, `recall` and the like.
        counts: the counts they are made from.
        kind: None as ``how`` is the positive class for ``'binary'``, ``'macro'`` else.
        how: ``'macro'`` (mean over the labels, or the classes that occur in labels or
            predictions), ``'weighted'`` (by how often each occurs in the labels) or ``'micro'``
            (ratio of the sums, over the classes of ``'macro'``).
        which: bool ``[classes]``, those that occur; None for those that have counts.
    """
    ratios = ratio(*fraction)
    if how is None and kind == 'binary':
        return ratios[1]
    which = occurring(counts, kind) if which is None else which
    if how == 'micro':
        return ratio(*((part * which).sum() for part in fraction))
    weight = counts.actual if how == 'weighted' else which.astype(ratios.dtype)
    return ratio((weight * ratios).sum(), weight.sum())


def occurring(counts: Counts, kind: TaskKind) -> Any:
    """Which classes a macro mean is over: those in labels or predictions; for multilabel all."""
    either = counts.actual + counts.predicted
    return either >= 0 if kind == 'multilabel' else either > 0


def balanced_accuracy(counts: Counts, kind: TaskKind) -> Any:
    """The mean recall of the classes that occur in the labels.

    For multilabel it is taken of each label's 0 and 1, then averaged over the labels.
    """
    recalls = ratio(*recall(counts))
    if kind != 'multilabel':
        return ratio(recalls.sum(), (counts.actual > 0).sum())
    absent = counts.total - counts.actual
    kinds = (counts.actual > 0) * 1.0 + (absent > 0)
    return ratio(recalls + ratio(*specificity(counts)), kinds).mean()


def mcc(counts: Counts) -> Any:
    """Matthews' correlation coefficient of labels and predictions, of any number of classes.

    0 where either is always the same.

    Reference:
        Gorodkin, 2004, *Comparing two K-category assignments by a K-category correlation
        coefficient*.
    """
    # Of shares, not counts: float32 has no room for a square of millions.
    true_positives, predicted, actual = _shares(counts)
    spread = (1 - (predicted**2).sum()) * (1 - (actual**2).sum())
    return ratio(true_positives.sum() - (predicted * actual).sum(), spread**0.5)


def kappa(counts: Counts) -> Any:
    """Cohen's kappa: agreement beyond chance, over the most there could be.

    NaN where labels and predictions are one and the same class.

    Reference:
        Cohen, 1960, *A coefficient of agreement for nominal scales*.
    """
    true_positives, predicted, actual = _shares(counts)
    chance = (predicted * actual).sum()
    xp = true_positives.__array_namespace__()
    apart = chance < 1
    return xp.where(apart, (true_positives.sum() - chance) / xp.where(apart, 1 - chance, 1), xp.nan)


def _shares(counts: Counts) -> tuple[Any, Any, Any]:
    true_positives, predicted, actual = (ratio(part, counts.total) for part in counts[:3])
    return true_positives, predicted, actual


def ratio(numerator: Any, denominator: Any) -> Any:
    """Divides; 0 where there is nothing to divide by."""
    xp = numerator.__array_namespace__()
    some = denominator > 0
    return xp.where(some, numerator / xp.where(some, denominator, 1), 0)


def ratio_or_nan(numerator: Any, denominator: Any) -> Any:
    """Divides; NaN where there is nothing to divide by."""
    xp = numerator.__array_namespace__()
    some = denominator > 0
    return xp.where(some, numerator / xp.where(some, denominator, 1), xp.nan)
