"""The child process of a race: it trains an epoch on request and reports the time."""

import json
import sys
import time


class Turns:
    """The object a peer calls after each epoch.

    Args:
        channel: the file for messages, a line of JSON each.
        epochs: the number of epochs.
        alone: True if no other peer takes turns.
        memory: returns the peaks of memory so far, by name.
    """

    def __init__(self, channel, epochs, alone, memory):
        self.channel, self.epochs, self.alone, self.memory = channel, epochs, alone, memory
        self.done = 0

    def send(self, **message):
        print(json.dumps(message), file=self.channel, flush=True)

    def start(self):
        """Waits for the first turn; called once, when the first epoch can begin."""
        self.send(ready=True)
        self._wait()

    def over(self, loss):
        """Reports an epoch that has ended, with its mean loss, which must have been computed."""
        seconds, cpu = time.perf_counter() - self._begun, time.process_time() - self._cpu_begun
        self.done += 1
        self.send(seconds=seconds, cpu=cpu, loss=float(loss), **self.memory())
        if self.done < self.epochs:
            self._wait()

    def _wait(self):
        if not self.alone and not sys.stdin.readline():
            raise SystemExit('The parent process has ended.')
        self._begun, self._cpu_begun = time.perf_counter(), time.process_time()
