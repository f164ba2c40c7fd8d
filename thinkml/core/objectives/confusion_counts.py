"""Metrics from confusion counts: precision, recall, F1 and others, by class and averaged.

The functions take NumPy and JAX arrays, and compute with the library of their inputs. If the
denominator is 0 they return 0, like scikit-learn.
"""

from typing import NamedTuple

from thinkml.task_types import TASK_TYPES, TaskKind
from thinkml.typing import Array


class Counts(NamedTuple):
    """The confusion counts by class (or label), floats ``[classes]``.

    Attributes:
        true_positives: the number of examples of the class that were predicted as the class.
        predicted: the number of examples that were predicted as the class.
        actual: the number of examples of the class.
        total: the number of all examples, a scalar.
    """

    true_positives: Array
    predicted: Array
    actual: Array
    total: Array


class Fraction(NamedTuple):
    """A ratio by class."""

    numerator: Array
    denominator: Array


def precision(counts: Counts) -> Fraction:
    """Returns the fraction of a class's predictions that are correct: ``tp / (tp + fp)``."""
    return Fraction(counts.true_positives, counts.predicted)


def recall(counts: Counts) -> Fraction:
    """Returns the fraction of a class's examples that are predicted: ``tp / (tp + fn)``."""
    return Fraction(counts.true_positives, counts.actual)


def f1(counts: Counts) -> Fraction:
    """Returns the harmonic mean of precision and recall: ``2 tp / (2 tp + fp + fn)``."""
    return Fraction(2 * counts.true_positives, counts.predicted + counts.actual)


def iou(counts: Counts) -> Fraction:
    """Returns the intersection over the union, Jaccard's index: ``tp / (tp + fp + fn)``."""
    union = counts.predicted + counts.actual - counts.true_positives
    return Fraction(counts.true_positives, union)


def specificity(counts: Counts) -> Fraction:
    """Returns the fraction of other classes' examples not predicted: ``tn / (tn + fp)``."""
    return Fraction(_true_negatives(counts), counts.total - counts.actual)


def npv(counts: Counts) -> Fraction:
    """Returns the negative predictive value, ``tn / (tn + fn)``.

    It is the fraction of the examples not predicted as a class that are not of the class.
    """
    return Fraction(_true_negatives(counts), counts.total - counts.predicted)


def _true_negatives(counts: Counts) -> Array:
    return counts.total - counts.predicted - counts.actual + counts.true_positives


def average(
    fraction: Fraction,
    counts: Counts,
    kind: TaskKind,
    how: str | None,
    which: Array = None,
) -> Array:
    """Returns one number from a ratio per class.

    Args:
        fraction: the ratio, such as the result of `precision`.
        counts: the counts that the ratio was computed from.
        kind: the kind of the task.
        how: the average. ``'macro'`` is the mean over the labels, or over the classes that occur in
            labels or predictions. ``'weighted'`` weights them by their number in the labels.
            ``'micro'`` is the ratio of the sums over the classes of ``'macro'``. None takes the
            positive class for ``'binary'``, else ``'macro'``.
        which: bool ``[classes]``, True for the classes that occur; None for those with counts.
    """
    ratios = ratio(*fraction)
    if how is None and TASK_TYPES[kind].has_positive_class:
        return ratios[1]
    which = occurring(counts, kind) if which is None else which
    if how == 'micro':
        return ratio(*((part * which).sum() for part in fraction))
    weight = counts.actual if how == 'weighted' else which.astype(ratios.dtype)
    return ratio((weight * ratios).sum(), weight.sum())


def occurring(counts: Counts, kind: TaskKind) -> Array:
    """Returns a mask of the classes in a macro mean: those in labels or predictions.

    For multilabel tasks these are all labels.
    """
    either = counts.actual + counts.predicted
    return either >= 0 if TASK_TYPES[kind].has_many_labels else either > 0


def balanced_accuracy(counts: Counts, kind: TaskKind) -> Array:
    """Returns the mean recall of the classes that occur in the labels.

    For multilabel tasks it is computed for the values 0 and 1 of each label, then averaged over the
    labels.
    """
    recalls = ratio(*recall(counts))
    if not TASK_TYPES[kind].has_many_labels:
        return ratio(recalls.sum(), (counts.actual > 0).sum())
    absent = counts.total - counts.actual
    kinds = (counts.actual > 0) * 1.0 + (absent > 0)
    return ratio(recalls + ratio(*specificity(counts)), kinds).mean()


def mcc(counts: Counts) -> Array:
    """Returns Matthews' correlation coefficient of labels and predictions, for any classes.

    It is 0 if all labels or all predictions are the same.

    Reference:
        Gorodkin, 2004, *Comparing two K-category assignments by a K-category correlation
        coefficient*.
    """
    # From frequencies and not from counts: float32 can't represent squares of millions exactly.
    true_positives, predicted, actual = _frequencies(counts)
    # The weighted frequency of a single class may round to more than 1.
    spread = (1 - (predicted**2).sum()).clip(0) * (1 - (actual**2).sum()).clip(0)
    return ratio(true_positives.sum() - (predicted * actual).sum(), spread**0.5)


def kappa(counts: Counts) -> Array:
    """Returns Cohen's kappa: the agreement beyond chance, divided by its largest possible value.

    It is NaN if all labels and all predictions are the same class.

    Reference:
        Cohen, 1960, *A coefficient of agreement for nominal scales*.
    """
    true_positives, predicted, actual = _frequencies(counts)
    chance = (predicted * actual).sum()
    xp = true_positives.__array_namespace__()
    is_defined = chance < 1
    beyond_chance = true_positives.sum() - chance
    return xp.where(is_defined, beyond_chance / xp.where(is_defined, 1 - chance, 1), xp.nan)


def _frequencies(counts: Counts) -> tuple[Array, Array, Array]:
    true_positives, predicted, actual = (ratio(part, counts.total) for part in counts[:3])
    return true_positives, predicted, actual


def ratio(numerator: Array, denominator: Array) -> Array:
    """Returns the ratio, or 0 where the denominator is 0."""
    xp = numerator.__array_namespace__()
    is_defined = denominator > 0
    return xp.where(is_defined, numerator / xp.where(is_defined, denominator, 1), 0)


def ratio_or_nan(numerator: Array, denominator: Array) -> Array:
    """Returns the ratio, or NaN where the denominator is 0."""
    xp = numerator.__array_namespace__()
    is_defined = denominator > 0
    return xp.where(is_defined, numerator / xp.where(is_defined, denominator, 1), xp.nan)
