"""Ctrl-C during a training."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def noted_interrupt() -> Iterator[Callable[[], bool]]:
    """Notes a Ctrl-C instead of raising it in the middle of things; a second one is raised.

    While a compiled chunk runs, its arrays belong to neither side: an exception raised just then
    would lose them. So the training asks between chunks whether it was interrupted.

    Only on the main thread, and only where Python's own handler is in place: another is somebody's
    choice.

    Yields:
        a function that says whether there was one.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    noted = threading.Event()

    def note(number, frame):
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
