"""Helpers that start several processes of one run on this machine."""

import contextlib
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
# Seconds that only a hanging process reaches, however busy the machine is.
LIMIT = 420
# Gloo prints a greeting to stdout from several threads, in the middle of lines: send it to stderr.
_REDIRECT_STDOUT = "import os, sys; sys.stdout = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)\n"


@contextlib.contextmanager
def started_together(code, count, *arguments, devices=1):
    """Starts ``count`` Python processes as SLURM would, each with ``arguments`` in sys.argv.

    All of them end with the block. They write to files: a full pipe that nobody reads would block
    its process, and then all others.
    """
    # JAX derives the coordinator's port from the job number.
    job = next(number for number in iter(_job_number, None) if _is_free(number % 4096 + 61440))
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(_started(code, arguments, {
                'PYTHONPATH': str(ROOT), **simulating(devices), **_shared_programs(),
                'SLURM_JOB_ID': str(job), 'SLURM_STEP_NODELIST': 'localhost',
                'SLURM_NTASKS': str(count), 'SLURM_PROCID': str(index),
                'SLURM_LOCALID': str(index),
            }))
            for index in range(count)
        ]  # fmt: skip


def simulating(devices):
    """Returns environment variables with which JAX sees this number of devices."""
    number = f'--xla_force_host_platform_device_count={devices}'
    return {
        'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {number}',
    }  # fmt: skip


def _shared_programs():
    """Returns settings for a JAX cache of programs that several processes compile together.

    ThinkML's own cache does not keep such programs.
    """
    return {
        'JAX_COMPILATION_CACHE_DIR': os.path.join(os.environ['THINKML_TEST_RUN'], 'together'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }


@contextlib.contextmanager
def _started(code, arguments, environment):
    with tempfile.TemporaryFile('w+') as output, tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(
            [sys.executable, '-c', _REDIRECT_STDOUT + code, *map(str, arguments)],
            cwd=ROOT, stdout=output, stderr=errors, env={**os.environ, **environment},
        )  # fmt: skip
        process.stdout, process.stderr = output, errors
        try:
            yield process
        finally:
            end(process)


def end(process):
    """Kills a process if it is still running."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def run_together(code, count, *arguments, devices=1):
    """Runs the processes to their end and returns the stdout and stderr of each."""
    with started_together(code, count, *arguments, devices=devices) as processes:
        wait_until(lambda: all(process.poll() == 0 for process in processes), processes)
        return [outputs_of(process) for process in processes]


def wait_until(holds, processes):
    """Waits until ``holds()`` is true; fails if a process fails or the time limit is over."""
    deadline = time.monotonic() + LIMIT
    while not holds():
        if any(process.poll() for process in processes) or time.monotonic() > deadline:
            codes = [process.poll() for process in processes]
            for process in processes:
                end(process)
            outputs = [[text[-6000:] for text in outputs_of(process)] for process in processes]
            raise AssertionError(f'ended with {codes}: {outputs}')
        time.sleep(0.05)


def outputs_of(process):
    """Waits for the end of a process and returns its stdout and stderr."""
    process.wait(LIMIT)
    return _content(process.stdout), _content(process.stderr)


def _content(file):
    file.seek(0)
    return file.read()


def _job_number():
    return secrets.randbelow(10**6)


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(('localhost', port)) != 0
