"""Image quality: the peak signal-to-noise ratio and the structural similarity of each row."""

import functools
import math
from collections.abc import Callable

import numpy as np

from thinkml.core.objectives.confusion_counts import ratio
from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.regression import errors
from thinkml.evaluation.metrics.whole_rows import RowValues, mean_of_whole_rows, row_index
from thinkml.typing import Array

WINDOW = 7
"""The side of the windows of the structural similarity, in pixels."""


@functools.lru_cache(maxsize=256)
def psnr_rows(data_range: int) -> Callable[[EvaluationData], RowValues]:
    """Returns a function that gives each row's peak signal-to-noise ratio, in dB.

    It is ``10 log10(data_range^2 / mse)`` with the mean squared error of the row's numbers, and
    infinite for a row that is predicted exactly. The function raises a `ConfigError` if the targets
    have a larger range.
    """

    def rows(data: EvaluationData) -> RowValues:
        _check_range('psnr', data_range, data)
        row, example = data.part(row_index)
        squares = np.square(data.part(errors).error).mean(axis=1)
        mse = ratio(np.bincount(row, data.weights * squares), np.bincount(row, data.weights))
        with np.errstate(divide='ignore'):
            return RowValues(10 * np.log10(data_range**2 / mse), example)

    return rows


def resampled_psnr(part: RowValues, weight: Array) -> Array:
    """Returns the mean over the rows of a resample, NaN if it is infinite."""
    mean = mean_of_whole_rows(part, weight)
    xp = mean.__array_namespace__()
    return xp.where(xp.isinf(mean), xp.nan, mean)


@functools.lru_cache(maxsize=256)
def ssim_rows(data_range: int) -> Callable[[EvaluationData], RowValues]:
    """Returns a function that gives each row's structural similarity.

    Rows are images ``(height, width)`` or ``(height, width, channels)``, or volumes with channels.
    As by default in scikit-image, means and sample covariances are those of windows of 7 pixels a
    side, and the similarity is averaged over windows and channels. The function raises a
    `ConfigError` for other rows, and if the targets have a larger range.

    Reference:
        Wang et al., 2004, *Image quality assessment: from error visibility to structural
        similarity*.
    """

    def rows(data: EvaluationData) -> RowValues:
        _check_range('ssim', data_range, data)
        shape = (*data.element_shape, data.num_classes)
        has_channels = len(shape) > 2
        sides = shape[:-1] if has_channels else shape
        if len(sides) < 2 or min(sides) < WINDOW:
            raise ConfigError(
                "metrics: 'ssim' needs rows (height, width) or (height, width, channels) of at "
                f'least {WINDOW} x {WINDOW} pixels, got rows {shape}.'
            )
        weights = data.weights.reshape(-1, math.prod(data.element_shape))
        if (weights != weights[:, :1]).any():
            raise ConfigError(
                "metrics: 'ssim' compares whole images, got sample_weight of pixels; expected a "
                'weight for each row.'
            )
        targets, predictions = (
            array.reshape(-1, *sides, shape[-1] if has_channels else 1).astype(np.float64)
            for array in (data.labels, data.predictions)
        )
        pairs = zip(targets, predictions, strict=True)
        values = np.array([_similarity(*pair, data_range) for pair in pairs])
        return RowValues(values, data.part(row_index).example)

    return rows


def _similarity(a: np.ndarray, b: np.ndarray, data_range: int) -> float:
    """Returns the similarity of two images whose last axis is that of the channels."""
    window = WINDOW ** (a.ndim - 1)
    mean_a, mean_b = _window_means(a), _window_means(b)
    unbiased = window / (window - 1)
    var_a = unbiased * (_window_means(a * a) - mean_a**2)
    var_b = unbiased * (_window_means(b * b) - mean_b**2)
    cov = unbiased * (_window_means(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def _window_means(image: np.ndarray) -> np.ndarray:
    """Returns the means of all windows inside an image."""
    for axis in range(image.ndim - 1):
        image = np.lib.stride_tricks.sliding_window_view(image, WINDOW, axis).mean(axis=-1)
    return image


def _check_range(name: str, data_range: int, data: EvaluationData) -> None:
    low, high = data.labels.min(), data.labels.max()
    if high - low > data_range * (1 + 1e-6):
        requested = name if data_range == 1 else f'{name}_{data_range}'
        raise ConfigError(
            f'metrics: {requested!r} is for targets within a range of {data_range}, got targets '
            f'from {low:g} to {high:g}. {name!r} is for the range 1, and other ranges are part of '
            f"the name, as in '{name}_255'."
        )
