"""Training lock: only one training at a time may write to a model."""

import contextlib
import threading
from collections.abc import Iterator

from flax import nnx

from thinkml.errors import ConfigError
from thinkml.typing import Model

_lock = threading.Lock()
# The thread that trains each object and variable, by id: models may share layers.
_training_threads: dict[int, str] = {}


@contextlib.contextmanager
def training_lock(model: Model) -> Iterator[None]:
    """Locks a model, and all models that share a variable with it, against other trainings.

    Raises:
        ConfigError: if the model, or a part of it, is already being trained.
    """
    parts = _parts_of(model)
    with _lock:
        _check(parts)
        _training_threads.update(dict.fromkeys(parts, threading.current_thread().name))
    try:
        yield
    finally:
        with _lock:
            for part in parts:
                del _training_threads[part]


def check_not_trained(model: Model) -> None:
    """Raises a `ConfigError` if a model, or a part of it, is being trained."""
    with _lock:
        _check(_parts_of(model))


def _check(parts: set[int]) -> None:
    locked = parts & _training_threads.keys()
    if locked:
        raise ConfigError(
            f'model: it, or a layer of it, is being trained (by the thread '
            f'{_training_threads[locked.pop()]!r}), so one of the two trainings would lose its '
            'results. Wait until that training has ended, or use a copy: flax.nnx.clone(model), '
            'copy.copy(model).'
        )


def _parts_of(model: Model) -> set[int]:
    parts = {id(model)}
    if isinstance(model, nnx.Module):
        parts |= {id(node) for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)}
    return parts
