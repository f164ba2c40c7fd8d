"""What the processes of one run do together: they start, agree, and one writes what all share."""

import atexit
import contextlib
import functools
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from thinkml.errors import CheckpointError, ProcessError

# Seconds after which a process that says nothing counts as lost.
_SILENCE = 60
# Seconds that processes wait for one that is slow but alive.
_PATIENCE = 1800


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of a run's, if it is: by the arguments or by the environment.

    JAX finds the others where SLURM, Kubernetes, Open MPI or a TPU pod started them. Nothing is
    done where they have met already (``jax.distributed.initialize`` was called), or where
    nothing says that there are others.

    Args:
        coordinator: ``'host:port'`` of process 0, where the environment does not tell.
        num_processes: how many there are, likewise.
        process_id: which one this is, likewise.

    Raises:
        ProcessError: if JAX was used before, or the others can't be met.
    """
    if jax.distributed.is_initialized():
        _leave_after_failure()
    if jax.distributed.is_initialized() or not (coordinator or _is_one_of_several()):
        return
    # The only transport of XLA's CPU backend that every build has; other backends have their own.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=_SILENCE
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ProcessError(
            f'coordinator: this process could not join the others ({error}) Make the '
            'DistributedTrainer before the model and anything else that uses JAX; where the '
            "environment does not tell, pass coordinator='host:port', num_processes and process_id."
        ) from error
    _leave_after_failure()


@functools.cache
def _leave_after_failure() -> None:
    """Lets an exception that ends this process end it at once.

    JAX would wait for the others first, minutes, while they wait for this one.
    """

    def leave() -> None:
        if getattr(sys, 'last_value', None) is None or hasattr(sys, 'ps1'):
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(1)

    atexit.register(leave)


# Set in a step of a SLURM job (srun), not in a batch script or an interactive shell.
_OF_STEP = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID')
_OF_OTHERS = ('JAX_COORDINATOR_ADDRESS', 'JOB_COMPLETION_INDEX', 'MEGASCALE_COORDINATOR_ADDRESS')


def _is_one_of_several() -> bool:
    """Whether the environment names other processes, in one of the ways that JAX understands."""
    is_step = all(name in os.environ for name in _OF_STEP)
    return (
        (is_step and os.environ.get('SLURM_NTASKS', '1') != '1')
        or os.environ.get('OMPI_COMM_WORLD_SIZE', '1') != '1'
        or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
        or any(name in os.environ for name in _OF_OTHERS)
    )


# What XLA's transports say when they lose the other side.
_LOST = re.compile('gloo|nccl|coordination service|connection (reset|closed|refused)|peer', re.I)


@contextlib.contextmanager
def translate_connection_errors() -> Iterator[None]:
    """Words the failure of an exchange between processes.

    Raises:
        ProcessError: in its place.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        raise ProcessError(
            f'process {jax.process_index()} of {jax.process_count()} has lost another one, which '
            'has ended or can not be reached; its own output says why. Start all of them again, '
            f'with resume=True to go on from the newest checkpoint. ({str(error)[:300]})'
        ) from error


def is_first_process() -> bool:
    """Whether this process is the one that writes what all processes share."""
    # Alone, without asking for the devices, which would take them.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@functools.cache
def connect(mesh: Mesh) -> None:
    """Opens the connections between the devices of a mesh, where they are of several processes.

    The processes wait for each other before: XLA's transport of the CPU gives one up that comes
    half a minute later than the others, as one does that reads more or compiles longer.

    Raises:
        ProcessError: if one is lost, or does not come.
    """
    if not mesh.is_multi_process:
        return
    devices = list(mesh.devices.flat)
    name = zlib.crc32(str([device.id for device in devices]).encode())
    _wait_for(sorted({device.process_index for device in devices}), f'{len(devices)}-{name}')
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    ones = jax.make_array_from_callback(
        (mesh.size,), rows, lambda part: np.ones(mesh.size, np.float32)[part]
    )
    jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones).block_until_ready()


@functools.cache
def _multihost() -> Any:
    """JAX's exchanges between processes, the connections for them open, see `connect`."""
    from jax.experimental import multihost_utils

    _wait_for(list(range(jax.process_count())), 'processes')
    multihost_utils.sync_global_devices('thinkml-processes')
    return multihost_utils


def _wait_for(processes: list[int], name: str) -> None:
    # Private, and the only way to wait without an exchange between devices.
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:  # a TPU pod, where processes need not have met
        return
    try:
        client.wait_at_barrier(f'thinkml-{name}', _PATIENCE * 1000, processes)
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            f'process {jax.process_index()} of {jax.process_count()} has waited for the others, of '
            f'which one has ended or did not come in {_PATIENCE // 60} minutes; its own output '
            f'says why. All of them must train. ({str(error)[:300]})'
        ) from error


def barrier(name: str) -> None:
    """Waits for all processes, so that each sees what the first one wrote."""
    if jax.process_count() > 1:
        _multihost().sync_global_devices(f'thinkml-{name}')


def broadcast_result(find: Callable[[], Any], error: type[Exception] = CheckpointError) -> Any:
    """Returns what the first process finds, in all of them.

    Args:
        find: called by the first process alone; returns plain JSON values.
        error: raised by the others where ``find`` raises.

    Raises:
        Exception: what ``find`` raises, by the others as ``error``.
    """
    if jax.process_count() == 1:
        return find()
    caught, answer = None, b''
    if is_first_process():
        try:
            answer = json.dumps({'found': find()}).encode()
        except Exception as failure:  # the others wait for an answer
            caught, answer = failure, json.dumps({'failed': str(failure)}).encode()
    told = json.loads(_broadcast(answer))
    if caught is not None:
        raise caught
    if 'failed' in told:
        raise error(f'{told["failed"]} (process 0)')
    return told['found']


def broadcast_number(value: int) -> int:
    """Returns the first process's number in all of them: what a clock says differs in each."""
    if jax.process_count() == 1:
        return value
    return int(_multihost().broadcast_one_to_all(np.int32(value)))


def all_min(value: int | None) -> int | None:
    """Returns the least number of all processes; None where each has none."""
    if jax.process_count() == 1:
        return value
    most = np.iinfo(np.int64).max
    least = int(_gathered(most if value is None else value).min())
    return None if least == most else least


def all_gather(value: int) -> list[int]:
    """Returns the numbers of all processes, in their order."""
    return [value] if jax.process_count() == 1 else _gathered(value).tolist()


def all_gather_at_end(value: int) -> list[int]:
    """Returns what `all_gather` does, where a process may come long after the others."""
    if jax.process_count() > 1:
        _wait_for(list(range(jax.process_count())), f'end-{next(_ends)}')
    return all_gather(value)


_ends = itertools.count()


def leave() -> None:
    """Leaves the run once all processes do, so that each may end.

    Otherwise JAX aborts those that are still there when the first process, which coordinates
    them, has ended.
    """
    try:
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:  # there is nobody left to wait for
        print(f'process {jax.process_index()}: {str(error)[:300]}', file=sys.stderr)


def _gathered(value: int) -> np.ndarray:
    # As text of its bytes: without 64-bit mode, JAX would cut it.
    own = np.frombuffer(np.int64(value).tobytes(), np.uint8)
    gathered = np.asarray(_multihost().process_allgather(own), np.uint8)
    return np.frombuffer(gathered.tobytes(), np.int64)


def _broadcast(content: bytes) -> bytes:
    size = int(_multihost().broadcast_one_to_all(np.int32(len(content))))
    own = np.frombuffer(content, np.uint8) if is_first_process() else np.zeros(size, np.uint8)
    return np.asarray(_multihost().broadcast_one_to_all(own)).tobytes()
