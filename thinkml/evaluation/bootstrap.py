"""The bootstrap: metrics under many random weights of the rows, computed on the device.

To draw rows with replacement is to count how often each is drawn, and a count is a weight. So
rows are sorted once, and a resample costs one pass over them.

Reference:
    Efron and Tibshirani, 1993, *An introduction to the bootstrap*.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.xla.jit import Jit
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.registry import Metric
from thinkml.typing import Array, PyTree

Interval = tuple[float, float]
Values = tuple[Callable[[Any, Any], Any], ...]
# If rows are few, resamples are computed in batches of about this many numbers.
_BATCH_NUMBERS = 2**16


@dataclasses.dataclass(frozen=True)
class Resampling:
    """The settings that confidence intervals are computed with.

    Attributes:
        confidence: the fraction of intervals that should cover the true value; None for no
            intervals.
        num_resamples: the number of resamples of the bootstrap.
        groups: ``(n,)`` integers from 0; rows of the same group are drawn together. None draws each
            row alone.
        strata: ``(n,)`` integers from 0; every resample draws as many rows (or groups) of a stratum
            as it has. None for one stratum.
        seed: the seed of the draws.
    """

    confidence: float | None = 0.95
    num_resamples: int = 1000
    groups: np.ndarray | None = None
    strata: np.ndarray | None = None
    seed: int = 0


class Units(NamedTuple):
    """The units that are drawn: rows, or groups of rows.

    Attributes:
        first: ``(units,)``, the first position of the stratum that each draw chooses from.
        size: ``(units,)``, the number of units in that stratum.
        unit: ``(units,)``, the unit at each position.
        unit_of_row: ``(n,)``, the unit of each row; None if each row is a unit.
    """

    first: Array
    size: Array
    unit: Array
    unit_of_row: Array | None


def make_units(resampling: Resampling, num_rows: int) -> Units:
    """Returns the units that a resampling draws."""
    groups, strata = resampling.groups, resampling.strata
    num_units = num_rows if groups is None else int(groups.max()) + 1
    stratum = np.zeros(num_units, np.int64)
    if strata is not None:
        stratum[np.arange(num_rows) if groups is None else groups] = strata
    unit = np.argsort(stratum, kind='stable')
    sizes = np.bincount(stratum)
    ends = np.cumsum(sizes)[stratum[unit]]
    size = sizes[stratum[unit]]
    return Units(
        first=(ends - size).astype(np.int32),
        size=size.astype(np.uint32),
        unit=unit.astype(np.int32),
        unit_of_row=None if groups is None else groups.astype(np.int32),
    )


def can_vary(resampling: Resampling, weight: np.ndarray | None, num_rows: int) -> bool:
    """Returns True if resamples differ in more than their scale.

    At least two units must have a weight above 0, and not all of these may be alone in their
    stratum.
    """
    units = make_units(resampling, num_rows)
    counts = _weights(weight, num_rows) > 0
    counts = counts if units.unit_of_row is None else np.bincount(units.unit_of_row, counts)
    counted = counts[units.unit] > 0
    return int(counted.sum()) > 1 and bool((units.size[counted] > 1).any())


def resample_values(
    values: Values,
    parts: PyTree,
    weight: np.ndarray | None,
    resampling: Resampling,
    num_rows: int,
) -> list[np.ndarray]:
    """Returns each value under every resample, ``(num_resamples, ...)``.

    A value is NaN in a resample in which no row has a weight above 0.

    Args:
        values: functions ``(parts, weight) -> value`` of JAX arrays.
        parts: the arrays they take.
        weight: the weight of each row, ``(n,)``; None if all weights are 1.
        resampling: how rows are drawn.
        num_rows: the number of rows.
    """
    keys = jax.random.split(jax.random.key(resampling.seed), resampling.num_resamples)
    units = make_units(resampling, num_rows)
    parts = jax.tree.map(_narrow, parts)
    samples = _resample(values, keys, units, _weights(weight, num_rows), parts)
    return [np.asarray(sample, np.float64) for sample in samples]


def resample_values_or_nan(
    values: Values,
    parts: PyTree,
    weight: np.ndarray | None,
    resampling: Resampling,
    num_rows: int,
) -> list[np.ndarray]:
    """Returns the same as `resample_values`, but NaN if there are too few rows for an interval.

    See `can_vary`. With two rows (or groups) only one resample has both, so a value that is
    undefined for either of them alone does not vary.
    """
    samples = resample_values(values, parts, weight, resampling, num_rows)
    if not can_vary(resampling, weight, num_rows):
        return [np.full_like(sample, np.nan) for sample in samples]
    if len(make_units(resampling, num_rows).unit) > 2:
        return samples
    return [np.where(np.isnan(sample).any(axis=0), np.nan, sample) for sample in samples]


def _weights(weight: np.ndarray | None, num_rows: int) -> np.ndarray:
    """Returns the weights as the device takes them."""
    # Metrics are the same for any scale of the weights, but float32 has a limited range.
    return _narrow(np.ones(num_rows) if weight is None else weight / weight.max())


def _narrow(array: Array) -> np.ndarray:
    """Returns the array as the device computes: indices in 32 bits, numbers in float32."""
    array = np.asarray(array)
    if array.dtype.kind == 'f':
        return array.astype(np.float32)
    return array.astype(np.int32) if array.dtype.kind in 'iu' else array


@functools.partial(Jit, static_argnums=(0,))
def _resample(
    values: Values, keys: jax.Array, units: Units, weight: jax.Array, parts: PyTree
) -> list[jax.Array]:
    def one(key: jax.Array) -> list[jax.Array]:
        drawn = _draw(key, units)
        drawn = drawn if units.unit_of_row is None else drawn[units.unit_of_row]
        drawn = drawn * weight
        is_empty = drawn.sum() == 0
        return [jnp.where(is_empty, jnp.nan, value(parts, drawn)) for value in values]

    # A divisor of the number of resamples: a smaller last batch would be compiled separately.
    largest = max(len(weight), *(leaf.size for leaf in jax.tree.leaves(parts)), 1)
    most = min(len(keys), _BATCH_NUMBERS // largest)
    batch_size = next((n for n in range(most, 1, -1) if len(keys) % n == 0), None)
    return jax.lax.map(one, keys, batch_size=batch_size)


def _draw(key: jax.Array, units: Units) -> jax.Array:
    """Returns how often each unit is drawn, float32 ``(units,)``."""
    bits = jax.random.bits(key, units.size.shape, jnp.uint32)
    chosen = units.unit[units.first + _upper_half(bits, units.size).astype(jnp.int32)]
    return jnp.zeros(len(chosen), jnp.float32).at[chosen].add(1)


def _upper_half(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the upper half of the 64 bits of ``a * b``.

    That is ``a / 2**32`` of ``b``, rounded down.
    """
    half, low = jnp.uint32(16), jnp.uint32(0xFFFF)
    crossed = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    carried = (a & low) * (b >> half) + (crossed & low)
    return (a >> half) * (b >> half) + (crossed >> half) + (carried >> half)


def percentiles(samples: np.ndarray, confidence: float) -> np.ndarray:
    """Returns the bounds of the central fraction ``confidence`` of the resamples, ``(2, ...)``.

    Resamples in which a value is undefined are left out; if none is left, both bounds are NaN.
    """
    tail = (1 - confidence) / 2
    defined = ~np.isnan(samples)
    if not defined.all(axis=0).all():
        filled = np.where(defined.any(axis=0), samples, 0)
        bounds = np.nanquantile(filled, [tail, 1 - tail], axis=0)
        return np.where(defined.any(axis=0), bounds, np.nan)
    return np.quantile(samples, [tail, 1 - tail], axis=0)


def shared_parts(
    data: EvaluationData, metrics: Mapping[str, Metric]
) -> tuple[Values, tuple[PyTree, ...]]:
    """Returns the metrics as functions of one tuple of parts, and this tuple.

    Each part is in the tuple once, even if several metrics need it.
    """
    makers = tuple(dict.fromkeys(metric.part for metric in metrics.values()))
    values = tuple(
        _value_of_part(metric.resampled or metric.value, makers.index(metric.part))
        for metric in metrics.values()
    )
    return values, tuple(data.part(make) for make in makers)


@functools.lru_cache(maxsize=1024)
def _value_of_part(value: Callable[[Any, Any], Any], index: int) -> Callable[[Any, Any], Any]:
    # Cached, so that the same metrics have the same compiled program.
    return lambda parts, weight: value(parts[index], weight)
