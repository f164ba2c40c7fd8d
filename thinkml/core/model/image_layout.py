"""Pictures with other axes than a model takes, and how they become what it takes."""

import re

_CHANNELS = (1, 3, 4)
# How JAX says that a convolution takes other channels: those of the input, groups, those of one.
_MISMATCH = re.compile(r'but (\d+) // (\d+) != (\d+)')
Sizes = tuple[int | None, ...]


def layout_hint(got: tuple[int, ...], expected: Sizes, argument: str) -> str:
    """Returns how pictures become those that are expected, as a sentence; empty if nobody knows.

    Args:
        got: the shape of a picture.
        expected: height, width and channels it is to have; None for a size that may be any.
        argument: the name of the pictures, or of a part of them, ``'X, batch 1'``.
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
    """Returns `layout_hint` for a model of which no more is known than how it fails."""
    if len(got) == 3 and (mismatch := _MISMATCH.search(failure)):
        channels, groups, of_group = map(int, mismatch.groups())
        expected = (None, None, groups * of_group)
        if channels == got[2] and (hint := layout_hint(got, expected, argument)):
            return hint
    if len(got) == 3 and got[0] in (1, 3) and got[2] not in (1, 3):
        return f' They look like channels first: pass {argument}.transpose(0, 2, 3, 1).'
    if len(got) == 2:
        return f' If they are grey pictures, pass {argument}[..., None].'
    return ''


def fits(got: tuple[int, ...], expected: Sizes) -> bool:
    """Returns True if a shape is the one that is expected, where None stands for any size."""
    return len(got) == len(expected) and all(
        wanted is None or size == wanted for size, wanted in zip(got, expected, strict=True)
    )
