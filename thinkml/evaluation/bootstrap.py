"""The bootstrap, on the device: metrics under many random weights of the rows.

Drawing rows with replacement is counting how often each is drawn, and a count is a weight. So rows
are sorted once, and a resample costs a pass over them.

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

Interval = tuple[float, float]
Values = tuple[Callable[[Any, Any], Any], ...]
# Resamples computed side by side, where rows are few, come to about so many numbers.
_SIDE_BY_SIDE = 2**16


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How confidence intervals are made.

    Attributes:
        confidence: the share of intervals that are to cover the true value; None for no intervals.
        num_resamples: of the bootstrap.
        groups: ``(n,)`` whole numbers from 0, rows that are drawn together; None for each alone.
        strata: ``(n,)`` whole numbers from 0: as many rows (or groups) are drawn of each stratum
            as it has; None for one stratum.
        seed: of the draws.
    """

    confidence: float | None = 0.95
    num_resamples: int = 1000
    groups: np.ndarray | None = None
    strata: np.ndarray | None = None
    seed: int = 0


class Units(NamedTuple):
    """What is drawn: rows, or groups of rows.

    Attributes:
        first: ``(units,)``, where the units begin among which each draw chooses.
        size: ``(units,)``, how many they are.
        unit: ``(units,)``, which unit stands at each place.
        of_row: ``(n,)``, the unit of each row; None where each row is its own.
    """

    first: Any
    size: Any
    unit: Any
    of_row: Any


def units_of(resampling: Resampling, num_rows: int) -> Units:
    """What a resampling draws."""
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
        (ends - size).astype(np.int32), size.astype(np.uint32), unit.astype(np.int32),
        None if groups is None else groups.astype(np.int32),
    )  # fmt: skip


def can_vary(resampling: Resampling, weight: np.ndarray | None, num_rows: int) -> bool:
    """Returns True if resamples differ in more than their scale.

    At least two units count, and not each of those is alone in its stratum.
    """
    units = units_of(resampling, num_rows)
    counts = _weights(weight, num_rows) > 0
    counts = counts if units.of_row is None else np.bincount(units.of_row, counts)
    counted = counts[units.unit] > 0
    return int(counted.sum()) > 1 and bool((units.size[counted] > 1).any())


def resampled(
    values: Values, parts: Any, weight: np.ndarray | None, resampling: Resampling, num_rows: int
) -> list[np.ndarray]:
    """Returns each value under every resample, ``(num_resamples, ...)``.

    A value is NaN in a resample that leaves no row that counts.

    Args:
        values: functions ``(parts, weight) -> value`` of JAX arrays.
        parts: what they take, arrays.
        weight: of the rows, ``(n,)``; None where all count 1.
        resampling: how rows are drawn.
        num_rows: rows.
    """
    keys = jax.random.split(jax.random.key(resampling.seed), resampling.num_resamples)
    units = units_of(resampling, num_rows)
    parts = jax.tree.map(_narrow, parts)
    samples = _resample(values, keys, units, _weights(weight, num_rows), parts)
    return [np.asarray(sample, np.float64) for sample in samples]


def resampled_or_nan(
    values: Values, parts: Any, weight: np.ndarray | None, resampling: Resampling, num_rows: int
) -> list[np.ndarray]:
    """Returns the same as `resampled`, but NaN where rows are too few to say how others would be.

    See `can_vary`. With two rows (or groups) only one resample has both, so a value that is
    undefined for either of them alone does not vary.
    """
    samples = resampled(values, parts, weight, resampling, num_rows)
    if not can_vary(resampling, weight, num_rows):
        return [np.full_like(sample, np.nan) for sample in samples]
    if len(units_of(resampling, num_rows).unit) > 2:
        return samples
    return [np.where(np.isnan(sample).any(axis=0), np.nan, sample) for sample in samples]


def _weights(weight: np.ndarray | None, num_rows: int) -> np.ndarray:
    """Returns the weights as the device takes them."""
    # Metrics are the same for any scale of the weights, but float32 has room for some only.
    return _narrow(np.ones(num_rows) if weight is None else weight / weight.max())


def _narrow(array: Any) -> Any:
    """As the device computes: indices in 32 bits, numbers in float32."""
    array = np.asarray(array)
    if array.dtype.kind == 'f':
        return array.astype(np.float32)
    return array.astype(np.int32) if array.dtype.kind in 'iu' else array


@functools.partial(Jit, static_argnums=(0,))
def _resample(values: Values, keys: Any, units: Units, weight: Any, parts: Any) -> list[Any]:
    def one(key: jax.Array) -> list[Any]:
        drawn = _draw(key, units)
        drawn = drawn if units.of_row is None else drawn[units.of_row]
        drawn = drawn * weight
        is_empty = drawn.sum() == 0
        return [jnp.where(is_empty, jnp.nan, value(parts, drawn)) for value in values]

    # A divisor: what is left over would be compiled a second time.
    largest = max(len(weight), *(leaf.size for leaf in jax.tree.leaves(parts)), 1)
    most = min(len(keys), _SIDE_BY_SIDE // largest)
    batch_size = next((n for n in range(most, 1, -1) if len(keys) % n == 0), None)
    return jax.lax.map(one, keys, batch_size=batch_size)


def _draw(key: jax.Array, units: Units) -> jax.Array:
    """How often each unit is drawn, float32 ``(units,)``."""
    bits = jax.random.bits(key, units.size.shape, jnp.uint32)
    chosen = units.unit[units.first + _high(bits, units.size).astype(jnp.int32)]
    return jnp.zeros(len(chosen), jnp.float32).at[chosen].add(1)


def _high(a: jax.Array, b: jax.Array) -> jax.Array:
    """The upper half of the 64 bits of ``a * b``: ``a / 2**32`` of ``b``, rounded down."""
    half, low = jnp.uint32(16), jnp.uint32(0xFFFF)
    crossed = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
    carried = (a & low) * (b >> half) + (crossed & low)
    return (a >> half) * (b >> half) + (crossed >> half) + (carried >> half)


def percentiles(samples: np.ndarray, confidence: float) -> np.ndarray:
    """The bounds between which a share ``confidence`` of the resamples is, ``(2, ...)``.

    Resamples in which a value is undefined are left out; of none, both bounds are NaN.
    """
    tail = (1 - confidence) / 2
    defined = ~np.isnan(samples)
    if not defined.all(axis=0).all():
        filled = np.where(defined.any(axis=0), samples, 0)
        bounds = np.nanquantile(filled, [tail, 1 - tail], axis=0)
        return np.where(defined.any(axis=0), bounds, np.nan)
    return np.quantile(samples, [tail, 1 - tail], axis=0)


def shared_parts(scored: Any, metrics: Mapping[str, Any]) -> tuple[Values, tuple[Any, ...]]:
    """Functions of all parts at once, in place of those of a part each, and these parts."""
    makers = tuple(dict.fromkeys(metric.part for metric in metrics.values()))
    values = tuple(_of_part(m.resampled or m.value, makers.index(m.part)) for m in metrics.values())
    return values, tuple(scored.part(make) for make in makers)


@functools.lru_cache(maxsize=1024)
def _of_part(value: Callable[[Any, Any], Any], index: int) -> Callable[[Any, Any], Any]:
    # Cached, so that the same metrics are the same compiled program.
    return lambda parts, weight: value(parts[index], weight)
