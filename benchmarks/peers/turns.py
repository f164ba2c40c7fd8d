"""A peer's side of taking turns: it trains an epoch when it is told to, and says what it took."""

import json
import sys
import time


class Turns:
    """What a peer calls at each epoch's border.

    Args:
        channel: where messages go, a line of JSON each.
        epochs: how many there will be.
        alone: whether nobody else is to have a turn.
        memory: tells the peaks of memory so far, by name.
    """

    def __init__(self, channel, epochs, alone, memory):
        self.channel, self.epochs, self.alone, self.memory = channel, epochs, alone, memory
        self.done = 0

    def send(self, **message):
        print(json.dumps(message), file=self.channel, flush=True)

    def start(self):
        """Called once, when nothing is left to be done before the first epoch."""
        self.send(ready=True)
        self._wait()

    def over(self, loss):
        """Called when an epoch has ended, with its mean loss, which must have been computed."""
        seconds, cpu = time.perf_counter() - self._begun, time.process_time() - self._cpu_begun
        self.done += 1
        self.send(seconds=seconds, cpu=cpu, loss=float(loss), **self.memory())
        if self.done < self.epochs:
            self._wait()

    def _wait(self):
        if not self.alone and not sys.stdin.readline():
            raise SystemExit('Nobody is there to say go.')
        self._begun, self._cpu_begun = time.perf_counter(), time.process_time()
