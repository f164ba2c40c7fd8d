"""Image layouts: hints on how to convert images to the shape that a model takes."""

import re

_CHANNELS = (1, 3, 4)
# JAX's error for a wrong number of channels: those of the input, groups, channels per group.
_MISMATCH = re.compile(r'but (\d+) // (\d+) != (\d+)')
Sizes = tuple[int | None, ...]


def layout_hint(got: tuple[int, ...], expected: Sizes, argument: str) -> str:
    """Returns a sentence on how to convert images to the expected shape; empty if unknown.

    Args:
        got: the shape of an image.
        expected: the expected height, width and channels; None for a size that may be any.
        argument: the name of the images, or of a part of them, ``'X, batch 1'``.
    """
    if len(expected) != 3 or expected[2] not in _CHANNELS or fits(got, expected):
        return ''
    sides, channels, name = expected[:2], expected[2], argument.partition(',')[0]
    if fits(got, sides):
        grey = f'{name}[..., None]'
        if channels > 1:
            grey = f'numpy.repeat({grey}, {channels}, axis=-1)'
        return f' They have no axis of channels: pass {grey}.'
    if len(got) != 3:
        return ''
    if got[0] == channels and fits(got[1:], sides):
        return f' They are channels first: pass {name}.transpose(0, 2, 3, 1).'
    if not fits(got[:2], sides):
        return ''
    if got[2] == 1:
        return f' They are grey: pass numpy.repeat({name}, {channels}, axis=-1).'
    if (got[2], channels) == (4, 3):
        return f' The fourth channel is opacity: pass {name}[..., :3].'
    return f' They have {got[2]} channels instead of {channels}.'


def likely_layout_hint(got: tuple[int, ...], argument: str, failure: str) -> str:
    """Returns a hint like `layout_hint`, for a model whose input shape is not recorded.

    Args:
        got: the shape of an image.
        argument: the name of the images.
        failure: the message of the model's error.
    """
    if len(got) == 3 and (mismatch := _MISMATCH.search(failure)):
        channels, groups, group_size = map(int, mismatch.groups())
        expected = (None, None, groups * group_size)
        if channels == got[2] and (hint := layout_hint(got, expected, argument)):
            return hint
    if len(got) == 3 and got[0] in (1, 3) and got[2] not in (1, 3):
        return f' They look like channels first: pass {argument}.transpose(0, 2, 3, 1).'
    if len(got) == 2:
        return f' If they are grey images, pass {argument}[..., None].'
    return ''


def fits(got: tuple[int, ...], expected: Sizes) -> bool:
    """Returns True if a shape is the expected one, where None stands for any size."""
    return len(got) == len(expected) and all(
        target is None or size == target for size, target in zip(got, expected, strict=True)
    )
