"""Signals: Ctrl-C and SIGTERM during training."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@dataclasses.dataclass
class Signals:
    """The signals that were received.

    Attributes:
        interrupted: True after Ctrl-C.
        terminated: True after SIGTERM, which schedulers send some time before they kill a process.
        ends_process: True if SIGTERM is caught, and ends the process once it is forwarded.
    """

    interrupted: bool = False
    terminated: bool = False
    ends_process: bool = False
    _defers: bool = False
    _missed: bool = False

    def note_interrupt(self) -> None:
        """Records the first Ctrl-C.

        Raises:
            KeyboardInterrupt: for a later one.
        """
        if self.interrupted and not self._defers:
            raise KeyboardInterrupt
        self._missed = self.interrupted
        self.interrupted = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers a second Ctrl-C to the end of the block, which must not be interrupted."""
        self._defers = True
        try:
            yield
        finally:
            self._defers = False
        if self._missed:
            raise KeyboardInterrupt


@contextlib.contextmanager
def catch_signals(terminate: bool) -> Iterator[Signals]:
    """Records signals instead of acting on them at once.

    While a compiled chunk runs, its arrays belong to neither Python nor the device program: an
    exception raised then would lose them. So training checks for signals between chunks. A second
    Ctrl-C raises `KeyboardInterrupt`. A SIGTERM is forwarded to the previous handler at the end.

    Signals are caught on the main thread only. Ctrl-C is caught only if Python's default handler is
    installed: any other handler was installed on purpose.

    Args:
        terminate: True to catch SIGTERM as well.
    """
    signals = Signals()

    def interrupt(number: int, frame: FrameType | None) -> None:
        signals.note_interrupt()

    def note_termination(number: int, frame: FrameType | None) -> None:
        signals.terminated = True

    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                stack.enter_context(_handler(signal.SIGINT, interrupt))
            # A handler that was not set from Python can't be restored.
            if terminate and signal.getsignal(signal.SIGTERM) is not None:
                stack.callback(lambda: signals.terminated and signal.raise_signal(signal.SIGTERM))
                signals.ends_process = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
                stack.enter_context(_handler(signal.SIGTERM, note_termination))
        yield signals


@contextlib.contextmanager
def _handler(
    number: signal.Signals, handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
