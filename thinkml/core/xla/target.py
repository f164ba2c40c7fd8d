"""Target devices: the kind of device that the program being traced will run on."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from thinkml.typing import PyTree

_GPU_PLATFORMS = ('cuda', 'rocm')

_target: contextvars.ContextVar[tuple[Any, Mesh | None]] = contextvars.ContextVar(
    'target', default=(None, None)
)


def default_device() -> Any:
    """Returns the device that JAX uses by default, see `jax.default_device`."""
    settings: Any = jax.config  # its attributes are unknown to type checkers
    chosen = settings.jax_default_device
    if chosen is None:
        return jax.local_devices()[0]
    return jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen


def platform_of(device: Any) -> str:
    """Returns ``'cpu'``, ``'gpu'`` or ``'tpu'``, also for a device that is not attached."""
    return 'gpu' if device.platform in _GPU_PLATFORMS else device.platform


def target_platform() -> str:
    """Returns the platform that the program being traced is for.

    That is the platform of the innermost `tracing_for`, and outside of any that of JAX's default
    device. Code that computes something differently on each kind of device must ask this function
    and not `jax.default_backend`: programs can be compiled for devices that are not the default
    and not even attached.
    """
    return platform_of(target_device())


def target_device() -> Any:
    """Returns a device that the program being traced is for, see `target_platform`."""
    device, _ = _target.get()
    return default_device() if device is None else device


def target_mesh() -> Mesh | None:
    """Returns the mesh over which the rows of the program being traced are sharded, if any."""
    return _target.get()[1]


@contextlib.contextmanager
def tracing_for(device: Any, mesh: Mesh | None = None) -> Iterator[None]:
    """Sets the device that programs traced in the block are for; None changes nothing.

    Args:
        device: the device, or one of several.
        mesh: several devices with one axis, over which the rows are sharded.
    """
    before = _target.set(_target.get() if device is None else (device, mesh))
    try:
        yield
    finally:
        _target.reset(before)


def device_of(tree: PyTree) -> Any:
    """Returns a device on which arrays, or their shapes with shardings, are; None if it is open.

    A program is compiled for the devices of its arguments. Arrays that are not committed to a
    device leave the choice to JAX.
    """
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, 'sharding', None)
        if sharding is not None and getattr(leaf, 'committed', True):
            return next(iter(sharding.device_set))
    return None
