"""Input ranges: compares the range of pixels and other values with that of the training."""

import math

import jax
import numpy as np

from thinkml.errors import DataError, warn_user
from thinkml.model_record import ArraySpec

# Values this many times larger than those of the training are on another scale.
_FAR = 10
# Standardised pixels are a few standard deviations from 0.
LARGEST_STANDARDISED = 10
# If the training had values above this, and now only fractions of 1 come, it used 0 to 255.
_BYTES = 100
# Flattened pictures have at least this many pixels.
_MIN_PIXELS = 64


def range_of(array: np.ndarray | jax.Array) -> tuple[float, float]:
    """Returns the smallest and the largest value."""
    return float(array.min()), float(array.max())


def check_range(array: np.ndarray, like: ArraySpec, argument: str) -> None:
    """Checks that values are on the scale of the training.

    If a model was trained on floats, whole numbers are converted to floats. This is correct only
    on the same scale: pixels from 0 to 255 are rejected if the training had 0 to 1. Values in the
    dtype of the training only give a warning, since they may be intended.

    Args:
        array: some of the values, in their original dtype.
        like: the description of the training data.
        argument: the name used in error messages.

    Raises:
        DataError: for whole numbers on another scale than the floats of the training.

    Warns:
        ThinkMLWarning: for other values on another scale.
    """
    if like.range is None:
        return
    got = range_of(array)
    becomes_float = array.dtype.kind in 'iu' and like.dtype.startswith(('float', 'bfloat'))
    limit = _limit(like.range, is_white=becomes_float and _are_pictures(like.shape))
    name = argument.partition(',')[0]  # 'X, batch 1' belongs to X
    # A column of a table may have very different values.
    is_table = len(like.shape) < 2 and array.dtype != np.uint8
    if becomes_float and not is_table and _magnitude(got) > limit:
        raise DataError(
            f'{argument}: got {_described(array.dtype, got)}, expected '
            f'{_described(like.dtype, like.range)}, which the model was trained on. Scale them '
            f"like the training data, for instance {name}.astype('float32') / {_white(got)}; if "
            f"they are on its scale, pass {name}.astype('float32')."
        )
    if not _may_be_pixels(like.shape, got, like.range):
        return
    if _magnitude(got) > limit or _is_smaller(array, got, like.range):
        warn_user(
            f'{argument}: got {_described(array.dtype, got)}, and the model was trained on '
            f'{_described(like.dtype, like.range)}. Scale them like the training data.'
        )


def warn_of_other_range(now: ArraySpec, before: object, argument: str) -> None:
    """Warns if a model that was trained before now gets training data on another scale."""
    if not isinstance(before, ArraySpec) or now.range is None or before.range is None:
        return
    if 0 in map(_magnitude, (now.range, before.range)):
        return
    if not _may_be_pixels(now.shape, now.range, before.range):
        return
    factor = _magnitude(now.range) / _magnitude(before.range)
    if not 1 / _FAR <= factor <= _FAR:
        warn_user(
            f'{argument}: got {_described(now.dtype, now.range)}, and the model was trained on '
            f'{_described(before.dtype, before.range)} before. Scale both in the same way, or make '
            'a new model.'
        )


def check_standardised(pictures: ArraySpec, argument: str) -> None:
    """Checks pictures for a model that scales and standardises bytes itself, but not floats.

    Raises:
        DataError: for floats that are not standardised, and whole numbers that are not bytes.

    Warns:
        ThinkMLWarning: for floats from 0 to 1, which are probably not standardised.
    """
    if pictures.range is None:
        return
    low, high = pictures.range
    got = _described(pictures.dtype, pictures.range)
    if pictures.dtype.startswith(('int', 'uint')):
        if low < 0 or high > 255:
            raise DataError(
                f'{argument}: got {got}, expected pixel values from 0 to 255, which the model '
                'standardises itself. Scale them to this range and pass them as uint8.'
            )
    elif _magnitude(pictures.range) > LARGEST_STANDARDISED:
        raise DataError(
            f'{argument}: got {got}, expected uint8 pixels from 0 to 255, which the model '
            'standardises itself, or floats that are already standardised. Pass '
            f"{argument}.astype('uint8')."
        )
    elif low >= 0 and high <= 1 and high > 0:
        warn_user(
            f'{argument}: got {got}, which the model treats as standardised pixels, about -2 to '
            f"2. Pass them as uint8, ({argument} * 255).round().astype('uint8'), which it "
            'standardises itself.'
        )


def _are_pictures(shape: tuple[int, ...]) -> bool:
    """Returns True for three axes or more, and for squares; other shapes of two are sequences."""
    return len(shape) > 2 or (len(shape) == 2 and shape[0] == shape[1])


def _may_be_pixels(
    shape: tuple[int, ...], got: tuple[float, float], trained: tuple[float, float]
) -> bool:
    """Returns True if values may be pictures that were scaled in another way.

    Other numbers, such as sounds and prices, may be ten times larger than in the training.
    Pixels are not negative before the mean of each colour is subtracted.
    """
    if _are_pictures(shape):
        return got[0] >= 0 or shape[-1] in (3, 4)
    is_scaled = trained[0] >= 0 and trained[1] <= 1
    return math.prod(shape) >= _MIN_PIXELS and is_scaled and got[0] >= 0


def _limit(trained: tuple[float, float], *, is_white: bool) -> float:
    """Returns the magnitude beyond which values are on another scale.

    Args:
        trained: the range of the training data.
        is_white: True if 1 may stand for white.
    """
    magnitude = _magnitude(trained)
    if magnitude == 0:
        return np.inf  # the scale is not known
    return 1 if is_white and magnitude <= 1 else _FAR * magnitude


def _is_smaller(array: np.ndarray, got: tuple[float, float], trained: tuple[float, float]) -> bool:
    """Returns True for fractions of 1 after training on 0 to 255, and bytes after larger values."""
    if array.dtype.kind in 'iu':
        return np.iinfo(array.dtype).max * _FAR <= _magnitude(trained)
    if array.dtype.kind == 'b' or _magnitude(trained) < _BYTES or _magnitude(got) > 1:
        return False
    return bool((array % 1 != 0).any())


def _magnitude(span: tuple[float, float]) -> float:
    return max(abs(span[0]), abs(span[1]))


def _white(span: tuple[float, float]) -> str:
    """Returns the value of white for 8, 12 or 16 bits, or the largest value if it is larger."""
    largest = _magnitude(span)
    return _number(next((white for white in (255, 4095, 65535) if largest <= white), largest))


def _described(dtype: np.dtype | str, span: tuple[float, float]) -> str:
    return f'{dtype} from {_number(span[0])} to {_number(span[1])}'


def _number(value: float) -> str:
    return f'{value:.0f}' if value == round(value) and abs(value) < 1e9 else f'{value:.4g}'
