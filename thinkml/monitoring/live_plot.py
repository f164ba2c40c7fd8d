"""A picture that is drawn again while a training goes on."""

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
    """A picture that a thread draws again whenever there is something new.

    Made by `TrainingMonitor.watch`. It ends with `stop`, with the ``with`` block it is used in, or
    with the process.

    Args:
        look: tells whether there is something new, by returning something else than before.
        draw: draws the picture where it is seen.
        every_seconds: how often to look.
    """

    def __init__(
        self, look: Callable[[], Hashable], draw: Callable[[], None], every_seconds: float
    ) -> None:
        self._look, self._draw = look, draw
        self._every_seconds = every_seconds
        self._stopped = threading.Event()
        self._shown: Hashable = object()  # equal to nothing
        self._show_news()  # what fails, fails here and not in the thread
        self._thread = threading.Thread(target=self._run, name='thinkml-watch', daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Draws the last picture and ends the thread; does nothing the second time."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            atexit.unregister(self.stop)
            self._show_news_or_warn()

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
            self._show_news_or_warn()

    def _show_news_or_warn(self) -> None:
        try:
            self._show_news()
        except OSError as error:
            warn_user(f'watch: the plot could not be drawn ({error}). The training continues.')

    def _show_news(self) -> None:
        seen = self._look()  # before it is drawn: what comes in between is drawn the next time
        if seen != self._shown:
            self._draw()
            self._shown = seen


def notebook_display() -> Callable[['Figure'], None]:
    """A place below the notebook's cell, and what puts a picture there."""
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
    """What writes a picture to a file, whole at any moment it is looked at."""
    check_ending(path)
    path = local_file(path)
    new = path.with_name(f'.{path.stem}.new{path.suffix}')  # the ending picks the format

    def show(figure: 'Figure') -> None:
        save_figure(figure, new)
        os.replace(new, path)

    return show
