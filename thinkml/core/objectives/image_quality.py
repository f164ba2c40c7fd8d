"""Image quality: the peak signal-to-noise ratio and the structural similarity of images.

The functions take NumPy and JAX arrays, and compute with the library and the dtype of their inputs.
"""

from thinkml.errors import ConfigError
from thinkml.typing import Array

WINDOW = 7
"""The side of the windows of the structural similarity, in pixels."""


def noise_ratio(squares: Array, data_range: int) -> Array:
    """Returns the peak signal-to-noise ratio in dB, infinite for an error of 0.

    Args:
        squares: the mean squared errors of images, at least 0.
        data_range: the difference of the largest and the smallest value that a pixel may have.
    """
    xp = squares.__array_namespace__()
    is_exact = squares == 0
    return xp.where(is_exact, xp.inf, 10 * xp.log10(data_range**2 / xp.where(is_exact, 1, squares)))


def similarity(targets: Array, predictions: Array, data_range: int) -> Array:
    """Returns the structural similarity of images, ``[rows]``.

    As by default in scikit-image, means and sample covariances are those of windows of 7 pixels a
    side, and the similarity is averaged over windows and channels.

    Args:
        targets: ``[rows, *image]`` with the shape of an image that `image_problem` accepts.
        predictions: of the same shape.
        data_range: see `noise_ratio`.

    Reference:
        Wang et al., 2004, *Image quality assessment: from error visibility to structural
        similarity*.
    """
    if targets.ndim == 3:
        targets, predictions = targets[..., None], predictions[..., None]
    mean_a, mean_b = targets, predictions
    var_a = var_b = cov = 0 * targets
    # An axis at a time. Sums of squares less squares of sums would lose all digits in float32.
    for axis in range(1, targets.ndim - 1):
        parts_a, parts_b = _shifts(mean_a, axis), _shifts(mean_b, axis)
        mean_a, mean_b = _mean(parts_a), _mean(parts_b)
        a, b = [part - mean_a for part in parts_a], [part - mean_b for part in parts_b]
        var_a = _mean(_shifts(var_a, axis)) + _mean([x * x for x in a])
        var_b = _mean(_shifts(var_b, axis)) + _mean([x * x for x in b])
        cov = _mean(_shifts(cov, axis)) + _mean([x * y for x, y in zip(a, b, strict=True)])
    size = WINDOW ** (targets.ndim - 2)
    unbiased = size / (size - 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * unbiased * cov + c2)
    values = numerator / ((mean_a**2 + mean_b**2 + c1) * (unbiased * (var_a + var_b) + c2))
    return values.reshape(len(values), -1).mean(axis=1)


def _shifts(images: Array, axis: int) -> list[Array]:
    """Returns the pixels of each window along an axis: the first of each, the second, and so on."""
    before = (slice(None),) * axis
    count = images.shape[axis] - WINDOW + 1
    return [images[(*before, slice(first, first + count))] for first in range(WINDOW)]


def _mean(parts: list[Array]) -> Array:
    return sum(parts[1:], parts[0]) / len(parts)


def image_problem(shape: tuple[int, ...]) -> str | None:
    """Returns a sentence if rows of a shape have no structural similarity; else None.

    Rows are images ``(height, width)`` or ``(height, width, channels)``, or volumes with channels.
    """
    sides = shape[:-1] if len(shape) > 2 else shape
    if len(sides) >= 2 and min(sides) >= WINDOW:
        return None
    return (
        "metrics: 'ssim' needs rows (height, width) or (height, width, channels) of at least "
        f'{WINDOW} x {WINDOW} pixels, got rows {shape}.'
    )


def check_range(name: str, data_range: int, targets: Array) -> None:
    """Checks that targets are within the range that is part of a metric's name.

    Raises:
        ConfigError: if they are not.
    """
    low, high = targets.min(), targets.max()
    if high - low > data_range * (1 + 1e-6):
        requested = name if data_range == 1 else f'{name}_{data_range}'
        raise ConfigError(
            f'metrics: {requested!r} is for targets within a range of {data_range}, got targets '
            f'from {low:g} to {high:g}. {name!r} is for the range 1, and other ranges are part of '
            f"the name, as in '{name}_255'."
        )
