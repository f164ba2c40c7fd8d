"""Models that are being trained: one training at a time may write to a model."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from flax import nnx

from thinkml.errors import ConfigError

_lock = threading.Lock()
# The thread that trains each object, and each variable, by id: models may share layers.
_trained: dict[int, str] = {}


@contextlib.contextmanager
def training_lock(model: Any) -> Iterator[None]:
    """Keeps other trainings from a model, and from all that have a variable of it.

    Raises:
        ConfigError: if one is at work already.
    """
    parts = _parts_of(model)
    with _lock:
        _check(parts)
        _trained.update(dict.fromkeys(parts, threading.current_thread().name))
    try:
        yield
    finally:
        with _lock:
            for part in parts:
                del _trained[part]


def check_not_trained(model: Any) -> None:
    """Raises a `ConfigError` if a model, or a part of it, is being trained."""
    with _lock:
        _check(_parts_of(model))


def _check(parts: set[int]) -> None:
    busy = parts & _trained.keys()
    if busy:
        raise ConfigError(
            f'model: it, or a layer of it, is being trained (by the thread '
            f'{_trained[busy.pop()]!r}), and one of the two would lose what it learns. Wait until '
            'that training has ended, or use a copy: flax.nnx.clone(model), copy.copy(model).'
        )


def _parts_of(model: Any) -> set[int]:
    parts = {id(model)}
    if isinstance(model, nnx.Module):
        parts |= {id(node) for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)}
    return parts
