"""Example rows: the rows of images that are predicted best, about as usual, and worst."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from thinkml.core.objectives.confusion_counts import ratio
from thinkml.core.objectives.image_quality import WINDOW
from thinkml.data import as_array
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation.metrics.per_row import accuracy_rows
from thinkml.evaluation.metrics.regression import errors
from thinkml.evaluation.result import Evaluation

_NUM_EACH = 2


def has_images(evaluation: Evaluation) -> bool:
    """Returns True if the targets of a row are an image: labels or some numbers for each pixel.

    Rows ``(height, width)`` of numbers may be a model's elements with several targets each. They
    count as images from the size on from which `ssim` compares them.
    """
    task = evaluation.task
    if evaluation.scored.positions is None:
        return False
    is_matrix = len(task.element_shape) == 1 and not task.is_classification
    if is_matrix and min(*task.element_shape, task.num_outputs) >= WINDOW:
        return True
    return len(task.element_shape) == 2


def example_rows(evaluation: Evaluation) -> dict[str, Any] | None:
    """Returns the best, median and worst rows by their scores; None if rows are not images.

    The score is the accuracy of the pixels of a row that count, or their mean squared error. A
    pixel with several labels is right if all of them are. Rows without such pixels are left out.
    """
    if not has_images(evaluation):
        return None
    is_class = evaluation.task.is_classification
    rows, scores, counts = _row_scores(evaluation)
    order = np.argsort(-scores if is_class else scores, kind='stable')
    return {
        'score': 'accuracy' if is_class else 'mse',
        'rows': [
            {
                'rank': rank,
                'row': int(rows[order[place]]),
                'score': float(scores[order[place]]),
                'num_elements': int(counts[order[place]]),
            }
            for place, rank in _places(len(order))
        ],
    }


def _row_scores(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows that count, the score of each, and the number of its elements that count."""
    data = evaluation.scored
    assert data.positions is not None
    row, weights = data.positions // math.prod(data.element_shape), data.weights
    values = (
        data.part(accuracy_rows)
        if evaluation.task.is_classification
        else np.square(data.part(errors).error).mean(axis=1)
    )
    counts = np.bincount(row, weights > 0)
    scores = ratio(np.bincount(row, weights * values), np.bincount(row, weights))
    rows = np.flatnonzero(counts)
    return rows, np.asarray(scores)[rows], counts[rows]


def _places(count: int) -> list[tuple[int, str]]:
    """Returns places in an order of rows, the best first, and the rank of each."""
    each = _NUM_EACH if count >= 3 * _NUM_EACH else 1
    first = (count - each) // 2
    ranks: dict[int, str] = dict.fromkeys(range(first, first + each), 'median')
    ranks |= dict.fromkeys(range(count - each, count), 'worst')
    ranks |= dict.fromkeys(range(each), 'best')
    return sorted(ranks.items())


def input_images(inputs: Any, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Returns the inputs to show for each evaluation of images, by its name.

    Args:
        inputs: images for all evaluations of images, or a dict of images by evaluation; None for
            none.
        evaluations: the evaluations by name.

    Raises:
        ConfigError: if none of the evaluations has images, or ``inputs`` name another one.
        DataError: if ``inputs`` are not images, or not one for each row.
    """
    if inputs is None:
        return {}
    named = [name for name, one in evaluations.items() if has_images(one)]
    if not named:
        raise ConfigError(
            'inputs: got inputs, but the targets are not images, expected None. Reports show '
            'inputs beside the targets of pixels.'
        )
    by_name = inputs if isinstance(inputs, Mapping) else dict.fromkeys(named, inputs)
    if unknown := [name for name in by_name if name not in named]:
        raise ConfigError(
            f'inputs: got some for {unknown[0]!r}, expected images, or a dict of images by '
            f'evaluation: {", ".join(map(repr, named))}.'
        )
    return {name: _as_images(images, evaluations[name]) for name, images in by_name.items()}


def _as_images(images: Any, evaluation: Evaluation) -> Any:
    """Returns images that can be read row by row; arrays on disk stay there."""
    images = images if hasattr(images, 'shape') else as_array(images, 'inputs')
    shape, rows = tuple(images.shape), evaluation.num_rows
    if len(shape) not in (3, 4) or shape[0] != rows or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise DataError(
            f'inputs: got shape {shape}, expected ({rows}, height, width) or ({rows}, height, '
            'width, channels) with 1 or 3 channels: the images that were evaluated. Choose the '
            'channels to show: X[..., :3].'
        )
    return images
