"""Multi-process runs: initialization, collectives on the host, and connection errors."""

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
from types import ModuleType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from thinkml.errors import CheckpointError, ProcessError

T = TypeVar('T')

# Seconds without a heartbeat after which a process counts as lost.
_HEARTBEAT_SECONDS = 60
# Seconds that the processes wait for one that is slow but alive.
_BARRIER_SECONDS = 1800


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process to the other processes of its run, if there are any.

    The arguments or the environment name the other processes. JAX finds them if SLURM, Kubernetes,
    Open MPI or a TPU pod started them. This function does nothing if the processes are connected
    already (``jax.distributed.initialize`` was called), or if this is the only process.

    Args:
        coordinator: ``'host:port'`` of process 0; None takes it from the environment.
        num_processes: the number of processes; None takes it from the environment.
        process_id: the number of this process; None takes it from the environment.

    Raises:
        ProcessError: if JAX was used before, or if the other processes can't be reached.
    """
    if jax.distributed.is_initialized():
        _exit_on_failure()
    if jax.distributed.is_initialized() or not (coordinator or _has_other_processes()):
        return
    # The only transport that every build of XLA's CPU backend has; other backends have others.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ProcessError(
            f'coordinator: this process could not join the others ({error}) Create the '
            'DistributedTrainer before the model and anything else that uses JAX. If the '
            "environment does not name the processes, pass coordinator='host:port', "
            'num_processes and process_id.'
        ) from error
    _exit_on_failure()


@functools.cache
def _exit_on_failure() -> None:
    """Ends this process at once after an uncaught exception.

    Otherwise JAX waits minutes for the other processes, while they wait for this one.
    """

    def exit_after_exception() -> None:
        if getattr(sys, 'last_value', None) is None or hasattr(sys, 'ps1'):
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(1)

    atexit.register(exit_after_exception)


# These are set in a step of a SLURM job (srun), but not in a batch script or an interactive shell.
_SLURM_STEP_VARIABLES = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID')
_COORDINATOR_VARIABLES = (
    'JAX_COORDINATOR_ADDRESS',
    'JOB_COMPLETION_INDEX',
    'MEGASCALE_COORDINATOR_ADDRESS',
)


def _has_other_processes() -> bool:
    """Returns True if the environment names other processes in a way that JAX understands."""
    is_step = all(name in os.environ for name in _SLURM_STEP_VARIABLES)
    return (
        (is_step and os.environ.get('SLURM_NTASKS', '1') != '1')
        or os.environ.get('OMPI_COMM_WORLD_SIZE', '1') != '1'
        or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
        or any(name in os.environ for name in _COORDINATOR_VARIABLES)
    )


# Matches the errors of XLA's transports after a lost connection.
_CONNECTION_LOST = re.compile(
    'gloo|nccl|coordination service|connection (reset|closed|refused)|peer', re.I
)


@contextlib.contextmanager
def translate_connection_errors() -> Iterator[None]:
    """Translates connection errors between processes into a `ProcessError`.

    Raises:
        ProcessError: if the block fails because the connection to another process was lost.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _CONNECTION_LOST.search(str(error)):
            raise
        raise ProcessError(
            f'process {jax.process_index()} of {jax.process_count()} has lost the connection to '
            'another process, which has ended or can not be reached; the output of that process '
            'says why. Start all processes again, with resume=True to continue from the newest '
            f'checkpoint. ({str(error)[:300]})'
        ) from error


def is_first_process() -> bool:
    """Returns True in the process that writes the shared files."""
    # A single process does not query JAX, because that would allocate the devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@functools.cache
def connect(mesh: Mesh) -> None:
    """Opens the connections between the devices of a mesh, if they span several processes.

    All processes wait for each other first. XLA's CPU transport drops a process that connects half
    a minute after the others, for instance because it reads more data or compiles longer.

    Raises:
        ProcessError: if a process is lost, or does not connect in time.
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
def _multihost() -> ModuleType:
    """Returns JAX's collectives on the host, after opening their connections; see `connect`."""
    from jax.experimental import multihost_utils

    _wait_for(list(range(jax.process_count())), 'processes')
    multihost_utils.sync_global_devices('thinkml-processes')
    return multihost_utils


def _wait_for(processes: list[int], name: str) -> None:
    # A private module: there is no public way to wait without a collective between devices.
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:  # on a TPU pod, processes may run without jax.distributed.initialize
        return
    try:
        client.wait_at_barrier(f'thinkml-{name}', _BARRIER_SECONDS * 1000, processes)
    except jax.errors.JaxRuntimeError as error:
        raise ProcessError(
            f'process {jax.process_index()} of {jax.process_count()} has waited for another '
            f'process, which has ended or did not arrive in {_BARRIER_SECONDS // 60} minutes; the '
            'output of that process says why. All processes must train. '
            f'({str(error)[:300]})'
        ) from error


def barrier(name: str) -> None:
    """Waits until all processes have called it, so that each sees the first one's files."""
    if jax.process_count() > 1:
        _multihost().sync_global_devices(f'thinkml-{name}')


def broadcast_result(find: Callable[[], T], error: type[Exception] = CheckpointError) -> T:
    """Calls ``find`` in the first process and broadcasts its result to all processes.

    Args:
        find: a function that returns plain JSON values.
        error: the exception that the other processes raise if ``find`` fails.

    Raises:
        Exception: the exception of ``find`` in the first process, ``error`` in the others.
    """
    if jax.process_count() == 1:
        return find()
    caught, message = None, b''
    if is_first_process():
        try:
            message = json.dumps({'result': find()}).encode()
        except Exception as failure:  # must be broadcast too: the others wait for a message
            caught, message = failure, json.dumps({'error': str(failure)}).encode()
    reply = json.loads(_broadcast(message))
    if caught is not None:
        raise caught
    if 'error' in reply:
        raise error(f'{reply["error"]} (process 0)')
    return reply['result']


def broadcast_number(value: int) -> int:
    """Broadcasts a number of the first process to all, such as a time, which differs in each."""
    if jax.process_count() == 1:
        return value
    return int(_multihost().broadcast_one_to_all(np.int32(value)))


def all_min(value: int | None) -> int | None:
    """Returns the minimum over all processes, ignoring None; None if all are None."""
    if jax.process_count() == 1:
        return value
    largest = np.iinfo(np.int64).max
    minimum = int(_gather(largest if value is None else value).min())
    return None if minimum == largest else minimum


def all_gather(value: int) -> list[int]:
    """Returns the numbers of all processes, in the order of the processes."""
    return [value] if jax.process_count() == 1 else _gather(value).tolist()


def all_gather_at_end(value: int) -> list[int]:
    """Returns `all_gather` after a barrier: a process may arrive long after the others."""
    if jax.process_count() > 1:
        _wait_for(list(range(jax.process_count())), f'end-{next(_ends)}')
    return all_gather(value)


_ends = itertools.count()


def shutdown() -> None:
    """Disconnects this process once all processes have called it, so that each can end.

    Otherwise JAX aborts the remaining processes when the first process, the coordinator, ends.
    """
    try:
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:  # all other processes have ended
        print(f'process {jax.process_index()}: {str(error)[:300]}', file=sys.stderr)


def _gather(value: int) -> np.ndarray:
    # Sent as bytes: without 64-bit mode, JAX would truncate the number.
    data = np.frombuffer(np.int64(value).tobytes(), np.uint8)
    gathered = np.asarray(_multihost().process_allgather(data), np.uint8)
    return np.frombuffer(gathered.tobytes(), np.int64)


def _broadcast(content: bytes) -> bytes:
    size = int(_multihost().broadcast_one_to_all(np.int32(len(content))))
    data = np.frombuffer(content, np.uint8) if is_first_process() else np.zeros(size, np.uint8)
    return np.asarray(_multihost().broadcast_one_to_all(data)).tobytes()
