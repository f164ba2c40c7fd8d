"""Ctrl-C and SIGTERM during a training."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass
class Signals:
    """Which signals have come.

    Attributes:
        interrupted: Ctrl-C.
        terminated: SIGTERM, which schedulers send some time before they kill.
        ends_process: whether SIGTERM is noted, and ends the process once it is sent on.
    """

    interrupted: bool = False
    terminated: bool = False
    ends_process: bool = False
    _is_held: bool = False
    _missed: bool = False

    def note_interrupt(self) -> None:
        """Notes the first Ctrl-C.

        Raises:
            KeyboardInterrupt: for a later one.
        """
        if self.interrupted and not self._is_held:
            raise KeyboardInterrupt
        self._missed = self.interrupted
        self.interrupted = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lets a second Ctrl-C wait for the end of the block, which must not be cut short."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._missed:
            raise KeyboardInterrupt


@contextlib.contextmanager
def noted_signals(terminate: bool) -> Iterator[Signals]:
    """Notes signals instead of acting on them in the middle of things.

    While a compiled chunk runs, its arrays belong to neither side: an exception raised just then
    would lose them. So the training asks between chunks. A second Ctrl-C is raised; a SIGTERM is
    sent on to the handler that was there before, when all is done.

    Only on the main thread, and a Ctrl-C only where Python's own handler is in place: another is
    somebody's choice.

    Args:
        terminate: whether to note SIGTERM as well.
    """
    signals = Signals()

    def interrupt(number: int, frame: Any) -> None:
        signals.note_interrupt()

    def note_termination(number: int, frame: Any) -> None:
        signals.terminated = True

    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                stack.enter_context(_handler(signal.SIGINT, interrupt))
            # A handler that Python did not set can't be put back.
            if terminate and signal.getsignal(signal.SIGTERM) is not None:
                stack.callback(lambda: signals.terminated and signal.raise_signal(signal.SIGTERM))
                signals.ends_process = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
                stack.enter_context(_handler(signal.SIGTERM, note_termination))
        yield signals


@contextlib.contextmanager
def _handler(number: signal.Signals, handler: Callable[[int, Any], None]) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
