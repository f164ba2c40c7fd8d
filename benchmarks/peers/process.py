"""The parent process of a race: one child process per peer."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .sides import SIDES

ROOT = Path(__file__).parents[1]


class PeerFailed(Exception):
    """An error of a peer whose process ended before it was done."""


def environment(cache):
    """Returns the variables of a peer's process, with a compilation cache in its own folder.

    Python compiles ThinkML once, like the packages that pip installs.
    """
    inherited = {
        name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'
    }
    return inherited | {
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # peers share a GPU
        'KERAS_BACKEND': 'jax',
    }


class Peer:
    """A running peer that has sent its first message, that it is ready.

    Attributes:
        start_seconds: from the start of the process until its first epoch could begin.
    """

    def __init__(self, name, workload, options, epochs, cache, rows=None, data=None, alone=False):
        self.name = name
        command = [
            sys.executable, '-m', 'peers.child', SIDES[name].module, workload,
            '--epochs', str(epochs), '--options', json.dumps(options),
        ]  # fmt: skip
        for flag, value in {'--rows': rows, '--data': data}.items():
            command += [flag, str(value)] if value else []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (close closes it)
        self._started_at = time.perf_counter()
        self._process = subprocess.Popen(
            command + ['--alone'] * alone, cwd=ROOT, env=environment(cache), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        try:
            self.read()
        except PeerFailed:
            self.close()
            raise
        self.start_seconds = self.seconds()

    def read(self):
        """Returns the next message.

        Raises:
            PeerFailed: if there is none.
        """
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            tail = self._log.read().decode(errors='replace')[-2000:]
            raise PeerFailed(f'{self.name}: ended with {self._process.returncode}\n{tail}')
        return json.loads(line)

    def epoch(self):
        """Lets the peer train an epoch; returns its message: seconds, CPU seconds, loss."""
        self._process.stdin.write('go\n')
        self._process.stdin.flush()
        return self.read()

    def seconds(self):
        """Returns the seconds since the start of the process."""
        return time.perf_counter() - self._started_at

    def end(self):
        """Waits for the end of the process; returns its CPU seconds."""
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise PeerFailed(f'{self.name}: ended with {self._process.returncode}')
        return usage.ru_utime + usage.ru_stime

    def close(self):
        """Ends the process, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            file.close()


class Busy:
    """The number of cores that other processes used meanwhile; None if it is not reported."""

    def __init__(self):
        self._begun = self._now()

    def cores(self):
        (total, ours, at), (total_before, ours_before, before) = self._now(), self._begun
        if total is None:
            return None
        return max(0.0, (total - total_before - (ours - ours_before)) / (at - before))

    def _now(self):
        times = os.times()
        ours = times.user + times.system + times.children_user + times.children_system
        try:
            user, nice, system, _, _, irq, softirq, steal = map(
                int, Path('/proc/stat').read_text().split()[1:9]
            )
        except OSError:
            return None, ours, time.perf_counter()
        ticks = user + nice + system + irq + softirq + steal
        return ticks / os.sysconf('SC_CLK_TCK'), ours, time.perf_counter()
