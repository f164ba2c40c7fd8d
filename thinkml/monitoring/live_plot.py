"""Live plot: a figure that is redrawn during training."""

import atexit
import importlib
import os
import threading
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from thinkml.errors import warn_user
from thinkml.figures import check_ending, save_figure
from thinkml.paths import local_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Watch:
    """A plot that a thread redraws whenever there are new values.

    It is created by `TrainingMonitor.watch`. It ends with `stop`, with the ``with`` block it is
    used in, or with the process.

    Args:
        look: returns a value that changes when there are new values to draw.
        draw: draws the plot on its display.
        every_seconds: the interval between looks, in seconds.
    """

    def __init__(
        self, look: Callable[[], Hashable], draw: Callable[[], None], every_seconds: float
    ) -> None:
        self._look, self._draw = look, draw
        self._every_seconds = every_seconds
        self._stopped = threading.Event()
        self._shown: Hashable = object()  # equal to nothing
        self._redraw_if_new()  # errors are raised here, not in the thread
        self._thread = threading.Thread(target=self._run, name='thinkml-watch', daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Draws the plot a last time and ends the thread; further calls do nothing."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            atexit.unregister(self.stop)
            self._redraw_or_warn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = 'stopped' if self._stopped.is_set() else f'every {self._every_seconds:g} s'
        return f'Watch({state})'

    def _run(self) -> None:
        while not self._stopped.wait(self._every_seconds):
            self._redraw_or_warn()

    def _redraw_or_warn(self) -> None:
        try:
            self._redraw_if_new()
        except OSError as error:
            warn_user(f'watch: the plot could not be drawn ({error}). The training continues.')

    def _redraw_if_new(self) -> None:
        state = self._look()  # before drawing: values that arrive meanwhile are drawn next time
        if state != self._shown:
            self._draw()
            self._shown = state


def notebook_display() -> Callable[['Figure'], None]:
    """Returns a function that shows a figure below the notebook's cell, and replaces it there."""
    display = importlib.import_module('IPython.display').display
    handle: Any = None

    def show(figure: 'Figure') -> None:
        nonlocal handle
        if handle is None:
            handle = display(figure, display_id=True)
        else:
            handle.update(figure)

    return show


def file_display(path: str | os.PathLike[str]) -> Callable[['Figure'], None]:
    """Returns a function that writes a figure to a file atomically, so viewers see no part of it.

    Args:
        path: the file; its ending chooses the format.
    """
    check_ending(path)
    path = local_file(path)
    new = path.with_name(f'.{path.stem}.new{path.suffix}')  # the ending chooses the format

    def show(figure: 'Figure') -> None:
        save_figure(figure, new)
        os.replace(new, path)

    return show
