"""Several processes of one run, on this machine."""

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
# Seconds that only processes which hang take, however busy the machine is.
LIMIT = 420
# Gloo greets on stdout from several threads at once, in the middle of lines: to stderr with it.
_APART = "import os, sys; sys.stdout = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)\n"


@contextlib.contextmanager
def started_together(code, count, *arguments, devices=1):
    """Starts ``count`` processes of Python as SLURM would, each with ``arguments`` in sys.argv.

    None of them outlives the block. They write to files: a pipe that nobody reads stops the one
    that fills it, and then all others.
    """
    # JAX makes the coordinator's port of the job's number.
    job = next(number for number in iter(_job, None) if _is_free(number % 4096 + 61440))
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
    """The environment of a process in which JAX sees so many devices."""
    number = f'--xla_force_host_platform_device_count={devices}'
    return {
        'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {number}',
    }  # fmt: skip


def _shared_programs():
    """Settings with which JAX keeps what such processes compile, which ThinkML's cache does not."""
    return {
        'JAX_COMPILATION_CACHE_DIR': os.path.join(os.environ['THINKML_TEST_RUN'], 'together'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }


@contextlib.contextmanager
def _started(code, arguments, environment):
    with tempfile.TemporaryFile('w+') as output, tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(
            [sys.executable, '-c', _APART + code, *map(str, arguments)],
            cwd=ROOT, stdout=output, stderr=errors, env={**os.environ, **environment},
        )  # fmt: skip
        process.stdout, process.stderr = output, errors
        try:
            yield process
        finally:
            end(process)


def end(process):
    """Kills it, if it is still there."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def run_together(code, count, *arguments, devices=1):
    """Runs the processes to their end; returns what each wrote to stdout and stderr."""
    with started_together(code, count, *arguments, devices=devices) as processes:
        wait_until(lambda: all(process.poll() == 0 for process in processes), processes)
        return [outputs_of(process) for process in processes]


def wait_until(holds, processes):
    """Waits, as long as none of the processes fails."""
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
    """What a process wrote to stdout and to stderr, once it has ended."""
    process.wait(LIMIT)
    return _written(process.stdout), _written(process.stderr)


def _written(file):
    file.seek(0)
    return file.read()


def _job():
    return secrets.randbelow(10**6)


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(('localhost', port)) != 0
