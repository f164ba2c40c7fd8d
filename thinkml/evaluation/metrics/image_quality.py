"""Image quality: the peak signal-to-noise ratio and the structural similarity of each row."""

import functools
import math
from collections.abc import Callable

import numpy as np

from thinkml.core.objectives.confusion_counts import ratio
from thinkml.core.objectives.image_quality import (
    check_range,
    image_problem,
    noise_ratio,
    similarity,
)
from thinkml.errors import ConfigError
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.regression import errors
from thinkml.evaluation.metrics.whole_rows import RowValues, mean_of_whole_rows, row_index
from thinkml.typing import Array


@functools.lru_cache(maxsize=256)
def psnr_rows(data_range: int) -> Callable[[EvaluationData], RowValues]:
    """Returns a function that gives each row's peak signal-to-noise ratio, in dB.

    It is ``10 log10(data_range^2 / mse)`` with the mean squared error of the row's numbers, and
    infinite for a row that is predicted exactly. The function raises a `ConfigError` if the targets
    have a larger range.
    """

    def rows(data: EvaluationData) -> RowValues:
        check_range('psnr', data_range, data.labels)
        row, example = data.part(row_index)
        squares = np.square(data.part(errors).error).mean(axis=1)
        mse = ratio(np.bincount(row, data.weights * squares), np.bincount(row, data.weights))
        return RowValues(noise_ratio(mse, data_range), example)

    return rows


def resampled_psnr(part: RowValues, weight: Array) -> Array:
    """Returns the mean over the rows of a resample, NaN if it is infinite."""
    mean = mean_of_whole_rows(part, weight)
    xp = mean.__array_namespace__()
    return xp.where(xp.isinf(mean), xp.nan, mean)


@functools.lru_cache(maxsize=256)
def ssim_rows(data_range: int) -> Callable[[EvaluationData], RowValues]:
    """Returns a function that gives each row's structural similarity.

    It is `thinkml.core.objectives.image_quality.similarity`. The function raises a `ConfigError`
    for rows that are not images, and if the targets have a larger range.
    """

    def rows(data: EvaluationData) -> RowValues:
        check_range('ssim', data_range, data.labels)
        shape = (*data.element_shape, data.num_classes)
        if problem := image_problem(shape):
            raise ConfigError(problem)
        weights = data.weights.reshape(-1, math.prod(data.element_shape))
        if (weights != weights[:, :1]).any():
            raise ConfigError(
                "metrics: 'ssim' compares whole images, got sample_weight of pixels; expected a "
                'weight for each row.'
            )
        # An image at a time, since the windows of all would take many times their memory.
        targets, predictions = (
            array.reshape(-1, 1, *shape).astype(np.float64)
            for array in (data.labels, data.predictions)
        )
        pairs = zip(targets, predictions, strict=True)
        values = [similarity(*pair, data_range) for pair in pairs]
        return RowValues(np.concatenate(values), data.part(row_index).example)

    return rows
