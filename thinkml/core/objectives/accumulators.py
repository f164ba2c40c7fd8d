"""What epoch metrics are computed from: exact sums and counts, merged in any cut of the epoch.

Each is a `clu.metrics.Metric`: a pytree of arrays, from one batch, that merges with others. Float
sums are compensated (`add`), counts are int32, so 2**31 - 1 examples lose nothing. No two fields
of an empty one share an array, since all are donated to the compiled chunk.
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
    """Adds two numbers that are each a float32 and the rounding error it lacks.

    Returns:
        Likewise, the sum to about 48 bits. An infinite sum stays infinite.

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
    """``sum(weight * values) / sum(weight)`` over everything merged into it.

    Unlike `clu.metrics.Average`, whose mask is boolean, the weights are real numbers. Both sums
    are compensated: each is a float32 and what rounding has taken from it, so that millions of
    merges lose nothing. What has weight 0 counts nothing even if it is NaN. NaN if all weights
    are 0.

    Attributes:
        sums: ``[[values, weights], [what these two lack]]``: one array, since of a small net's
            step each one counts.
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

    def compute(self):
        total, weight = self.sums.sum(axis=0)
        return total / weight


@functools.lru_cache(maxsize=256)
def class_counts(num_classes: int) -> type[clu_metrics.Metric]:
    """Returns the class that counts how often each class was hit, was predicted and occurs.

    Its ``from_model_output`` takes ``truth`` and ``guess``, bool ``[batch, classes]``: which
    classes (or labels) an example has, and which were predicted.
    """

    @struct.dataclass
    class ClassCounts(clu_metrics.Metric):
        """The number of examples and counts ``[classes]``, int32."""

        num_examples: jax.Array
        true_positives: jax.Array
        predicted: jax.Array
        actual: jax.Array

        @classmethod
        def empty(cls):
            counts = (jnp.zeros((num_classes,), jnp.int32) for _ in range(3))
            return cls(jnp.zeros((), jnp.int32), *counts)

        @classmethod
        def from_model_output(cls, truth: jax.Array, guess: jax.Array, mask: jax.Array, **_):
            truth, guess = truth & mask[:, None], guess & mask[:, None]
            counts = (jnp.sum(which, 0, dtype=jnp.int32) for which in (truth & guess, guess, truth))
            return cls(jnp.sum(mask, dtype=jnp.int32), *counts)

        def merge(self, other):
            return jax.tree.map(jnp.add, self, other)

    return ClassCounts


@functools.lru_cache(maxsize=256)
def residuals(num_targets: int) -> type[clu_metrics.Metric]:
    """Returns the class of the sums of squares of errors and of targets around their mean.

    Its ``from_model_output`` takes ``predictions`` and ``targets``, ``[batch, targets]``.

    Reference:
        Chan, Golub and LeVeque, 1983, *Algorithms for computing the sample variance*.
    """

    @struct.dataclass
    class Residuals(clu_metrics.Metric):
        """Sums ``[targets]``; the mean is ``pivot + offset``.

        The pivot is one of the targets. So the offset is as small as the targets' spread, however
        large their mean, and float32 holds it well.
        """

        count: jax.Array
        pivot: jax.Array
        offset: jax.Array
        spread: jax.Array
        spread_low: jax.Array
        squares: jax.Array
        squares_low: jax.Array

        @classmethod
        def empty(cls):
            sums = (jnp.zeros((num_targets,), jnp.float32) for _ in range(6))
            return cls(jnp.zeros((), jnp.int32), *sums)

        @classmethod
        def from_model_output(
            cls, predictions: jax.Array, targets: jax.Array, mask: jax.Array, **_
        ):
            def total(values):
                return jnp.sum(jnp.where(mask[:, None], values, 0), axis=0)

            count = jnp.sum(mask, dtype=jnp.int32)
            pivot = jnp.where(count > 0, targets[jnp.argmax(mask)], 0)
            offset = total(targets - pivot) / jnp.maximum(count, 1)
            spread = total(jnp.square(targets - pivot - offset))
            squares = total(jnp.square(predictions - targets))
            low = jnp.zeros_like(spread)
            return cls(count, pivot, offset, spread, low, squares, low)

        def merge(self, other):
            count = self.count + other.count
            share = other.count / jnp.maximum(count, 1)
            apart = (other.pivot - self.pivot) + (other.offset - self.offset)
            apart = jnp.where((self.count > 0) & (other.count > 0), apart, 0)
            spread = add(self.spread, self.spread_low, other.spread, other.spread_low)
            between = jnp.square(apart) * self.count * share
            first = self.count == 0
            return type(self)(
                count,
                jnp.where(first, other.pivot, self.pivot),
                jnp.where(first, other.offset, self.offset + apart * share),
                *add(*spread, between, jnp.zeros_like(between)),
                *add(self.squares, self.squares_low, other.squares, other.squares_low),
            )

        def rmse(self):
            """The root of each target's mean squared error; the mean of these."""
            return jnp.mean(jnp.sqrt((self.squares + self.squares_low) / self.count))

        def r2(self):
            """``1 - sum(error^2) / sum((y - mean(y))^2)``; the mean over the targets.

            A constant target gives 1 if predicted exactly, else 0. NaN for fewer than two rows.
            """
            squares, spread = self.squares + self.squares_low, self.spread + self.spread_low
            varies = spread > 0
            scores = jnp.where(varies, 1 - squares / jnp.where(varies, spread, 1), squares == 0)
            return jnp.where(self.count < 2, jnp.nan, jnp.mean(scores))

    return Residuals


@functools.lru_cache(maxsize=256)
def collected(
    capacity: int, logits: jax.ShapeDtypeStruct, labels: jax.ShapeDtypeStruct
) -> type[clu_metrics.Metric]:
    """Returns the class that keeps all logits and labels of an epoch, on the device.

    It holds ``capacity`` rows, rows that only fill batches up included (they are flagged). More
    rows are not kept but still counted, so ``position > capacity`` tells that some are missing.

    Args:
        capacity: rows.
        logits: shape and dtype of one example's logits.
        labels: of one example's labels.
    """

    @struct.dataclass
    class Collected(clu_metrics.Metric):
        """Rows in the order they came, ``mask`` telling which are examples."""

        logits: jax.Array
        labels: jax.Array
        mask: jax.Array
        position: jax.Array

        @classmethod
        def empty(cls):
            return cls(
                jnp.zeros((capacity, *logits.shape), logits.dtype),
                jnp.zeros((capacity, *labels.shape), labels.dtype),
                jnp.zeros((capacity,), bool),
                jnp.zeros((), jnp.int32),
            )

        @classmethod
        def from_model_output(cls, **batch):
            rows = len(batch['mask'])
            return cls(
                batch['logits'].reshape(rows, *logits.shape).astype(logits.dtype),
                batch['labels'].reshape(rows, *labels.shape).astype(labels.dtype),
                batch['mask'],
                jnp.asarray(rows, jnp.int32),
            )

        def merge(self, other):
            if len(self.mask) != capacity:  # a batch, as yet without room for another
                return self.empty().merge(self).merge(other)
            write = functools.partial(_write, start=self.position)
            return type(self)(
                write(self.logits, other.logits),
                write(self.labels, other.labels),
                write(self.mask, other.mask),
                self.position + other.position,
            )

    return Collected


def _write(rows: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Puts ``new`` at ``start``; what does not fit falls off the end."""
    if len(new) < len(rows):
        return jax.lax.dynamic_update_slice_in_dim(rows, new, start, axis=0)
    # An update slice as long as the whole would be moved to the beginning.
    at = jnp.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(at < start, rows, jnp.roll(new[: len(rows)], start, axis=0))
