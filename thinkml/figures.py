"""Matplotlib figures that need no display: made, shown in notebooks, saved."""

import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from thinkml.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
"""Colours that the colour-blind tell apart (Okabe and Ito, 2008)."""


def new_figure(width: float, height: float) -> 'Figure':
    """Makes an empty figure, sizes in inches, without touching pyplot's global state.

    A notebook shows it when it is a cell's value.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    # IPython shows figures by itself only once pyplot is imported.
    figure._repr_png_ = functools.partial(_png, figure)  # pyright: ignore[reportAttributeAccessIssue]
    return figure


def _png(figure: 'Figure') -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


def save_figure(figure: 'Figure', path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file, whose ending picks the format; missing folders are made."""
    from thinkml.core.processes import is_first_process

    check_ending(path)
    if not is_first_process():
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def check_ending(path: str | os.PathLike[str]) -> None:
    """Raises a `ConfigError` for a file whose ending is no format that can be written."""
    from matplotlib.figure import Figure

    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            f'path: got {type(path).__name__}, expected the name of a file. Axes to draw into are '
            'ax=...'
        )
    formats = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in formats:
        raise ConfigError(
            f'path: got {os.fspath(path)!r}, expected a file that ends in .png, .svg or .pdf'
            f' (or {", ".join(sorted(formats.keys() - {"png", "svg", "pdf"}))}).'
        )
