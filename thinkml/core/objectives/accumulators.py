"""Accumulators of epoch metrics: exact sums and counts that do not depend on the batches.

Each is a `clu.metrics.Metric`: a pytree of arrays from one batch that merges with others. Float
sums are compensated (`add`) and counts are int32, so up to 2**31 - 1 examples are exact. The fields
of an empty accumulator never share an array, because all are donated to the compiled chunk.
"""

# clu's collections read the annotations at run time, so no `from __future__ import annotations`.
import functools

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax import struct


def add(
    total: jax.Array, low: jax.Array, other: jax.Array, other_low: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds two numbers, each given as a float32 and its rounding error.

    Returns:
        The sum, also as a float32 and its rounding error, to about 48 bits. An infinite sum stays
        infinite.

    Reference:
        Knuth, 1969, *The Art of Computer Programming, vol. 2*, 4.2.2; Dekker, 1971, *A
        floating-point technique for extending the available precision*.
    """
    rounded = total + other
    part = rounded - total
    lost = (total - (rounded - part)) + (other - part)
    low = jnp.where(jnp.isfinite(rounded), low + other_low + lost, 0)
    total = rounded + low
    return total, jnp.where(jnp.isfinite(rounded), low - (total - rounded), 0)


@struct.dataclass
class WeightedMean(clu_metrics.Metric):
    """A weighted mean, ``sum(weight * values) / sum(weight)``, over all merged batches.

    Unlike in `clu.metrics.Average`, whose mask is boolean, the weights are real numbers. Both sums
    are compensated: each is a float32 and its rounding error, so millions of merges lose nothing.
    Values of weight 0 are ignored, even NaN. The mean is NaN if all weights are 0.

    Attributes:
        sums: ``[[values, weights], [their rounding errors]]``. One array, because each additional
            array costs time in the step of a small network.
    """

    sums: jax.Array

    @classmethod
    def empty(cls):
        return cls(jnp.zeros((2, 2), jnp.float32))

    @classmethod
    def from_model_output(cls, values: jax.Array, weight: jax.Array, **_):
        weight = weight.astype(jnp.float32)
        total = jnp.sum(jnp.where(weight == 0, 0, weight * values.astype(jnp.float32)))
        sums = jnp.stack([total, jnp.sum(weight)])
        return cls(jnp.stack([sums, jnp.zeros_like(sums)]))

    def merge(self, other):
        return type(self)(jnp.stack(add(*self.sums, *other.sums)))

    @property
    def total_weight(self):
        """Returns the sum of the weights."""
        return self.sums.sum(axis=0)[1]

    def compute(self):
        total, weight = self.sums.sum(axis=0)
        return total / weight


@functools.lru_cache(maxsize=256)
def class_counts(num_classes: int) -> type[clu_metrics.Metric]:
    """Returns a metric class that counts true positives, predictions and examples by class.

    Its ``from_model_output`` takes ``truth`` and ``prediction``, bool ``[batch, classes]``: the
    true and the predicted classes (or labels) of each example.
    """

    @struct.dataclass
    class ClassCounts(clu_metrics.Metric):
        """The number of examples and counts ``[classes]``, int32."""

        num_examples: jax.Array
        hits: jax.Array  # the true positives; checkpoints have this name
        predicted: jax.Array
        actual: jax.Array

        @classmethod
        def empty(cls):
            def zeros():
                return jnp.zeros((num_classes,), jnp.int32)

            return cls(
                num_examples=jnp.zeros((), jnp.int32),
                hits=zeros(),
                predicted=zeros(),
                actual=zeros(),
            )

        @classmethod
        def from_model_output(cls, truth: jax.Array, prediction: jax.Array, mask: jax.Array, **_):
            def count(is_counted):
                return jnp.sum(is_counted, 0, dtype=jnp.int32)

            truth, prediction = truth & mask[:, None], prediction & mask[:, None]
            return cls(
                num_examples=jnp.sum(mask, dtype=jnp.int32),
                hits=count(truth & prediction),
                predicted=count(prediction),
                actual=count(truth),
            )

        def merge(self, other):
            return jax.tree.map(jnp.add, self, other)

    return ClassCounts


@struct.dataclass
class Residuals(clu_metrics.Metric):
    """Sums ``[targets]``, with the mean of the targets as ``pivot + offset``.

    The pivot is one of the targets. So even if their mean is large, the offset is as small as
    their spread, and float32 is precise enough for it.
    """

    count: jax.Array
    pivot: jax.Array
    offset: jax.Array
    spread: jax.Array
    spread_low: jax.Array
    squares: jax.Array
    squares_low: jax.Array

    @classmethod
    def from_model_output(cls, predictions: jax.Array, targets: jax.Array, mask: jax.Array, **_):
        def total(values):
            return jnp.sum(jnp.where(mask[:, None], values, 0), axis=0)

        count = jnp.sum(mask, dtype=jnp.int32)
        pivot = jnp.where(count > 0, targets[jnp.argmax(mask)], 0)
        offset = total(targets - pivot) / jnp.maximum(count, 1)
        spread = total(jnp.square(targets - pivot - offset))
        squares = total(jnp.square(predictions - targets))
        low = jnp.zeros_like(spread)
        return cls(
            count=count,
            pivot=pivot,
            offset=offset,
            spread=spread,
            spread_low=low,
            squares=squares,
            squares_low=low,
        )

    def merge(self, other):
        count = self.count + other.count
        fraction = other.count / jnp.maximum(count, 1)
        difference = (other.pivot - self.pivot) + (other.offset - self.offset)
        difference = jnp.where((self.count > 0) & (other.count > 0), difference, 0)
        spread = add(self.spread, self.spread_low, other.spread, other.spread_low)
        between = jnp.square(difference) * self.count * fraction
        spread, spread_low = add(*spread, between, jnp.zeros_like(between))
        squares, squares_low = add(self.squares, self.squares_low, other.squares, other.squares_low)
        is_empty = self.count == 0
        return type(self)(
            count=count,
            pivot=jnp.where(is_empty, other.pivot, self.pivot),
            offset=jnp.where(is_empty, other.offset, self.offset + difference * fraction),
            spread=spread,
            spread_low=spread_low,
            squares=squares,
            squares_low=squares_low,
        )

    def rmse(self):
        """Returns the mean over the targets of the root mean squared error."""
        return jnp.mean(jnp.sqrt((self.squares + self.squares_low) / self.count))

    def r2(self):
        """Returns the mean over the targets of ``1 - sum(error^2) / sum((y - mean(y))^2)``.

        A constant target gives 1 if predicted exactly, else 0. NaN for fewer than two rows.
        """
        squares, spread = self.squares + self.squares_low, self.spread + self.spread_low
        varies = spread > 0
        scores = jnp.where(varies, 1 - squares / jnp.where(varies, spread, 1), squares == 0)
        return jnp.where(self.count < 2, jnp.nan, jnp.mean(scores))


@functools.lru_cache(maxsize=256)
def score_counts(num_columns: int, num_bins: int) -> type[clu_metrics.Metric]:
    """Returns a metric class that counts positive and negative rows by the bin of their score.

    Its ``from_model_output`` takes ``bins``, int32 ``[batch, columns]``, ``positive``, bool
    ``[batch, columns]``, and ``mask``.
    """

    @struct.dataclass
    class ScoreCounts(clu_metrics.Metric):
        """The counts, int32 ``[2, columns, bins]``: those of negative rows, then of positive."""

        counts: jax.Array

        @classmethod
        def empty(cls):
            return cls(jnp.zeros((2, num_columns, num_bins), jnp.int32))

        @classmethod
        def from_model_output(cls, bins, positive, mask=None, **_):
            counted = jnp.ones(len(bins), jnp.int32) if mask is None else mask.astype(jnp.int32)
            counted = jnp.broadcast_to(counted[:, None], bins.shape)
            columns = jnp.broadcast_to(jnp.arange(num_columns), bins.shape)
            indices = positive.astype(jnp.int32), columns, bins
            return cls(jnp.zeros((2, num_columns, num_bins), jnp.int32).at[indices].add(counted))

        def merge(self, other):
            return type(self)(self.counts + other.counts)

    return ScoreCounts


@functools.lru_cache(maxsize=256)
def residuals(num_targets: int) -> type[clu_metrics.Metric]:
    """Returns a metric class with the sums of squared errors and of squared deviations.

    The deviations are those of the targets from their mean. The class's ``from_model_output``
    takes ``predictions`` and ``targets``, ``[batch, targets]``.

    Reference:
        Chan, Golub and LeVeque, 1983, *Algorithms for computing the sample variance*.
    """

    @struct.dataclass
    class SizedResiduals(Residuals):
        @classmethod
        def empty(cls):
            def zeros():
                return jnp.zeros((num_targets,), jnp.float32)

            return cls(
                count=jnp.zeros((), jnp.int32),
                pivot=zeros(),
                offset=zeros(),
                spread=zeros(),
                spread_low=zeros(),
                squares=zeros(),
                squares_low=zeros(),
            )

    return SizedResiduals


@functools.lru_cache(maxsize=256)
def row_collector(
    capacity: int, logits: jax.ShapeDtypeStruct, labels: jax.ShapeDtypeStruct
) -> type[clu_metrics.Metric]:
    """Returns a metric class that keeps all logits and labels of an epoch on the device.

    It keeps ``capacity`` rows, including padding, which the mask marks. Further rows are counted
    but not kept, so ``position > capacity`` means that some are missing.

    Args:
        capacity: the number of rows.
        logits: the shape and dtype of one example's logits.
        labels: the shape and dtype of one example's labels.
    """

    @struct.dataclass
    class RowCollector(clu_metrics.Metric):
        """Rows in the order of arrival; ``mask`` is True for examples and False for padding."""

        logits: jax.Array
        labels: jax.Array
        mask: jax.Array
        position: jax.Array

        @classmethod
        def empty(cls):
            return cls(
                logits=jnp.zeros((capacity, *logits.shape), logits.dtype),
                labels=jnp.zeros((capacity, *labels.shape), labels.dtype),
                mask=jnp.zeros((capacity,), bool),
                position=jnp.zeros((), jnp.int32),
            )

        @classmethod
        def from_model_output(cls, **batch):
            rows = len(batch['mask'])
            return cls(
                logits=batch['logits'].reshape(rows, *logits.shape).astype(logits.dtype),
                labels=batch['labels'].reshape(rows, *labels.shape).astype(labels.dtype),
                mask=batch['mask'],
                position=jnp.asarray(rows, jnp.int32),
            )

        def merge(self, other):
            if len(self.mask) != capacity:  # one batch, without space for another
                return self.empty().merge(self).merge(other)
            write = functools.partial(_write, start=self.position)
            return type(self)(
                logits=write(self.logits, other.logits),
                labels=write(self.labels, other.labels),
                mask=write(self.mask, other.mask),
                position=self.position + other.position,
            )

    return RowCollector


def _write(rows: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Returns ``rows`` with ``new`` written at ``start``; rows beyond the end are dropped."""
    if len(new) < len(rows):
        return jax.lax.dynamic_update_slice_in_dim(rows, new, start, axis=0)
    # XLA clamps the start so that the slice fits, so a slice as long as `rows` would start at 0.
    index = jnp.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(index < start, rows, jnp.roll(new[: len(rows)], start, axis=0))
