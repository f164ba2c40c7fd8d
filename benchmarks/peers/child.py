"""Runs one peer in its own process: ``python -m peers.child MODULE WORKLOAD --epochs 5``.

Messages go to the original stdout; the output of the peer itself goes to stderr.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from .turns import Turns
from .workloads import WORKLOADS, make_job


def memory():
    """Returns the peak resident memory of this process and of its device, in bytes."""
    status = Path('/proc/self/status').read_text()
    resident = int(status.split('VmHWM:')[1].split()[0]) * 1024
    device = 0
    if (jax := sys.modules.get('jax')) is not None:
        device = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
    if (torch := sys.modules.get('torch')) is not None and torch.cuda.is_available():
        device = max(device, torch.cuda.max_memory_allocated())
    return {'peak': resident, 'device_peak': device}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('module')
    parser.add_argument('workload')
    parser.add_argument('--epochs', type=int, required=True)
    parser.add_argument('--rows', type=int)
    parser.add_argument('--data')
    parser.add_argument('--options', type=json.loads, default={})
    parser.add_argument('--alone', action='store_true')
    asked = parser.parse_args()
    channel = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    turns = Turns(channel, asked.epochs, asked.alone, memory)
    job = make_job(WORKLOADS[asked.workload], asked.epochs, asked.rows, asked.data, asked.alone)
    importlib.import_module(f'peers.{asked.module}').train(job, turns, **asked.options)
    turns.send(done=True)


if __name__ == '__main__':
    main()
