"""ValidationClock: when the next validation is due, for runs that validate by time."""

import time

from thinkml.core.parallel.multiprocess import broadcast_number


class ValidationClock:
    """A clock of the time since the last validation.

    In a run of several processes, the clock of the first one decides for all.

    Args:
        seconds: the time from one validation to the next; None for runs that validate by steps,
            whose clock never says that one is due.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Begins to count again, after a validation, whose own time does not count."""
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """Returns True if a validation is due, in all processes or in none."""
        if self._seconds is None:
            return False
        return bool(broadcast_number(time.monotonic() - self._since >= self._seconds))
