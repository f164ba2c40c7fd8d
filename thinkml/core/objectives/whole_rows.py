"""Whole rows: metrics of values that need all elements of a row, such as the exact match.

The definitions are those of `thinkml.evaluation.metrics.whole_rows`.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.objectives.confusion_counts import ratio
from thinkml.core.objectives.elements import ElementShape
from thinkml.core.objectives.image_quality import (
    check_range,
    image_problem,
    noise_ratio,
    similarity,
)
from thinkml.core.objectives.metric_table import Metric, metric_number, metric_spec
from thinkml.errors import ConfigError


def as_rows(array: jax.Array, shape: ElementShape) -> jax.Array:
    """Returns an array of elements as one of rows, ``[rows, *shape, ...]``."""
    return array.reshape(-1, *shape, *array.shape[1:])


def counted_rows(mask: jax.Array, shape: ElementShape) -> jax.Array:
    """Returns True for the rows with an element that counts, ``[rows]``."""
    return as_rows(mask, shape).any(axis=tuple(range(1, 1 + len(shape))))


def exact_match(is_right: jax.Array, mask: jax.Array, shape: ElementShape) -> jax.Array:
    """Returns 1 for each row whose elements that count are all right, ``[rows]``.

    Args:
        is_right: 1 or True for the elements that are predicted right, ``[elements]``.
        mask: True for the elements that count.
        shape: the axes of the elements of a row.
    """
    return ~counted_rows(mask & (is_right == 0), shape)


def psnr(
    predictions: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    shape: ElementShape,
    data_range: int,
) -> jax.Array:
    """Returns the peak signal-to-noise ratio of each row, in dB, ``[rows]``."""
    squares = jnp.square(predictions.reshape(targets.shape) - targets)
    of_elements = squares.reshape(len(squares), -1).mean(axis=1)
    axes = tuple(range(1, 1 + len(shape)))
    total = as_rows(jnp.where(mask, of_elements, 0), shape).sum(axis=axes)
    count = as_rows(mask, shape).sum(axis=axes)
    return noise_ratio(ratio(total, count), data_range)


def ssim(
    predictions: jax.Array, targets: jax.Array, row_shape: tuple[int, ...], data_range: int
) -> jax.Array:
    """Returns the structural similarity of each row, ``[rows]``.

    Raises:
        ConfigError: for rows that are not images.
    """
    if problem := image_problem(row_shape):
        raise ConfigError(problem)
    targets, predictions = (a.reshape(-1, *row_shape) for a in (targets, predictions))
    return similarity(targets, predictions, data_range)


def check_target_ranges(metrics: Iterable[Metric], targets: np.ndarray) -> None:
    """Checks that targets are within the ranges that are part of the metrics' names.

    Raises:
        ConfigError: for the first metric whose range is smaller.
    """
    for metric in metrics:
        spec = metric_spec(metric) if isinstance(metric, str) else None
        if spec is not None and spec.name in ('psnr', 'ssim'):
            number = metric_number(str(metric))
            assert isinstance(number, int)
            check_range(spec.name, number, targets)
