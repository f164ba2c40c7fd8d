"""What the processes of one run do together: one of them writes what all share."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from thinkml.errors import CheckpointError


def is_first_process() -> bool:
    """Whether this process is the one that writes what all processes share."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Waits for all processes, so that each sees what the first one wrote."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f'thinkml-{name}')


def told_by_first(find: Callable[[], Any], error: type[Exception] = CheckpointError) -> Any:
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


def agreed(value: int) -> int:
    """Returns the first process's number in all of them: what a clock says differs in each."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def least_of_all(value: int | None) -> int | None:
    """Returns the least number of all processes; None where each has none."""
    if jax.process_count() == 1:
        return value
    most = np.iinfo(np.int64).max
    least = int(_gathered(most if value is None else value).min())
    return None if least == most else least


def most_of_all(value: int) -> int:
    """Returns the greatest number of all processes."""
    return value if jax.process_count() == 1 else int(_gathered(value).max())


def _gathered(value: int) -> np.ndarray:
    from jax.experimental import multihost_utils

    # As text of its bytes: without 64-bit mode, JAX would cut it.
    own = np.frombuffer(np.int64(value).tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(own), np.uint8)
    return np.frombuffer(gathered.tobytes(), np.int64)


def _broadcast(content: bytes) -> bytes:
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    own = np.frombuffer(content, np.uint8) if is_first_process() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes()
