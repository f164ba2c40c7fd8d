"""Matplotlib figures that need no display: made, shown in notebooks, saved."""

import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
