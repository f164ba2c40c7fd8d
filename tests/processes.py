"""Several processes of one run, on this machine."""

import os
import pathlib
import random
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def start_together(code, count, *arguments, devices=1):
    """Starts ``count`` processes of Python as SLURM would, each with ``arguments`` in sys.argv."""
    # JAX makes the coordinator's port of the job's number.
    job = next(number for number in iter(_job, None) if _is_free(number % 4096 + 61440))
    return [
        subprocess.Popen(
            [sys.executable, '-c', code, *map(str, arguments)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={
                **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
                'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
                'SLURM_JOB_ID': str(job), 'SLURM_STEP_NODELIST': 'localhost',
                'SLURM_NTASKS': str(count), 'SLURM_PROCID': str(index),
                'SLURM_LOCALID': str(index),
            },
        )
        for index in range(count)
    ]  # fmt: skip


def run_together(code, count, *arguments, devices=1, timeout=240):
    """Runs the processes to their end; returns what each wrote to stdout and stderr."""
    processes = start_together(code, count, *arguments, devices=devices)
    try:
        outputs = [outputs_of(process, timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, (output[-2000:], errors[-6000:])
    return outputs


def outputs_of(process, timeout=120):
    """What a process writes to stdout, without Gloo's greeting, and to stderr."""
    output, errors = process.communicate(timeout=timeout)
    lines = [line for line in output.splitlines(keepends=True) if not line.startswith('[Gloo]')]
    return ''.join(lines), errors


def _job():
    return random.randrange(10**6)


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(('localhost', port)) != 0
