"""Sharding on several devices: sharded rows, and replicated or sharded training states."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
)

from thinkml.core.parallel.multiprocess import connect
from thinkml.core.xla.target import default_device, platform_of
from thinkml.typing import PyTree

_AXIS = 'data'
# Smaller arrays are replicated: sharding them costs more communication than it saves memory.
_SMALLEST_SHARDED = 1024
# Large enough for the bandwidth of the links, and small enough for overlap with computations.
_BUCKET_BYTES = 2**25
_GPU_BUCKET = 'xla_gpu_reduce_scatter_combine_threshold_bytes'
_TPU_BUCKET = 'xla_jf_crs_combiner_threshold_in_bytes'


def data_mesh(devices: Sequence[Any]) -> Mesh:
    """Returns a mesh with one axis, along which batches are sharded, and connects its devices."""
    mesh = unconnected_mesh(devices)
    connect(mesh)
    return mesh


def unconnected_mesh(devices: Sequence[Any]) -> Mesh:
    """Returns the mesh of `data_mesh`, also for devices that programs are only compiled for."""
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The placement of a run's arrays: on one device, or on a mesh with one axis.

    A step is written for one device and unsharded arrays. The compiler partitions it by these
    shardings: each device computes its rows of a batch, and sums over the batch are summed over the
    devices. The results equal those of one device, up to the order of summation.

    Attributes:
        mesh: the devices of all processes, see `data_mesh`; None for the device that JAX uses by
            default. Programs and arrays are then those of JAX without shardings.
        shards_state: True if the parameters and the optimizer's state are sharded too (FSDP), each
            array along its longest axis that the number of devices divides. False replicates them.
        device_bytes: the memory of a device that programs are only compiled for; None for devices
            that are attached and report their memory.

    Example:
        >>> import jax
        >>> from thinkml.core.parallel.sharding import Layout, data_mesh
        >>> layout = Layout(data_mesh(jax.devices()))
        >>> layout.replicated.is_fully_replicated
        True
        >>> Layout().num_devices
        1

    Reference:
        Xu et al., 2021, *GSPMD: general and scalable parallelization for ML computation graphs*.
    """

    mesh: Mesh | None = None
    shards_state: bool = False
    device_bytes: int | None = None

    @property
    def num_devices(self) -> int:
        """Returns the number of devices of all processes."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def local_devices(self) -> list[Any]:
        """Returns the devices of this process."""
        return [default_device()] if self.mesh is None else list(self.mesh.local_devices)

    @property
    def device(self) -> Any:
        """Returns one of the devices; None for the device that JAX uses by default."""
        return None if self.mesh is None else self.mesh.devices.flat[0]

    @property
    def platform(self) -> str:
        """Returns the kind of the devices: ``'cpu'``, ``'gpu'`` or ``'tpu'``."""
        return platform_of(default_device() if self.device is None else self.device)

    @property
    def spans_processes(self) -> bool:
        """Returns True if the devices belong to several processes, which must run the same code."""
        return self.mesh is not None and self.mesh.is_multi_process

    @property
    def rows(self) -> NamedSharding:
        """Returns the sharding of arrays along their first axis, on a mesh."""
        return self._sharding(_AXIS)

    @property
    def replicated(self) -> NamedSharding:
        """Returns the sharding of replicated arrays, on a mesh."""
        return self._sharding()

    def _sharding(self, *axes: str | None) -> NamedSharding:
        assert self.mesh is not None, 'one device has no shardings'
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def state_sharding(self, state: PyTree) -> PyTree:
        """Returns the sharding of each array of a training state, by its shape, on a mesh."""
        return jax.tree.map(lambda leaf: self._shape_sharding(leaf.shape), state)

    def _shape_sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(shape) if size % self.num_devices == 0]
        if not self.shards_state or not divisible or math.prod(shape) < _SMALLEST_SHARDED:
            return self.replicated
        longest = max(divisible, key=lambda axis: shape[axis])
        return self._sharding(*[None] * longest, _AXIS)

    def compiler_options(self) -> dict[str, int]:
        """Returns options for XLA with which the gradients of FSDP are exchanged in buckets.

        By default XLA joins the exchanges of as many gradients as the memory of a GPU allows, or of
        all on a TPU. All of them are then in memory at once, and none is exchanged while others
        are computed.
        """
        if not self.shards_state or self.num_devices == 1:
            return {}
        return {
            # The limit holds for the result, and each device gets a part of it.
            'gpu': {_GPU_BUCKET: _BUCKET_BYTES // self.num_devices},
            # On slices of 16 chips and more a reduce-scatter becomes an all-reduce.
            'tpu': {_TPU_BUCKET: _BUCKET_BYTES},
        }.get(self.platform, {})

    def put(self, tree: PyTree) -> PyTree:
        """Puts arrays, which every process must have, on the device, or on each of the mesh."""
        if self.mesh is None:
            return jax.tree.map(jax.device_put, tree)
        return jax.tree.map(lambda leaf: put_global(leaf, self.replicated), tree)

    def put_state(self, state: PyTree) -> PyTree:
        """Puts the arrays of a training state where they are trained."""
        if self.mesh is None:
            return state
        return jax.tree.map(put_global, state, self.state_sharding(state))

    def put_rows(self, batch: PyTree) -> PyTree:
        """Shards the rows of a batch, which every process must have, over the devices."""
        if self.mesh is None:
            return batch
        return jax.tree.map(lambda leaf: put_global(leaf, self.rows), batch)

    def sharded_rows(self, *, aligned: bool) -> 'ShardedRows | None':
        """Returns how rows are sharded over the devices; None for one device."""
        return None if self.mesh is None else ShardedRows(self.mesh, aligned=aligned)


ONE_DEVICE = Layout()
"""The layout of the device that JAX uses by default."""


def put_global(array: Any, sharding: Sharding) -> jax.Array:
    """Puts an array, or PRNG keys, on devices with the given sharding.

    Every process must have the full array, unless it is on the devices of several processes
    already; such an array is moved to the new sharding.
    """
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = put_global(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    full = np.asarray(array)
    return jax.make_array_from_callback(full.shape, sharding, lambda part: full[part])


def put_like(array: Any, old: Any) -> Any:
    """Gives an array the sharding of another one, if that one is on several devices."""
    if isinstance(old, Tracer) or not isinstance(old, jax.Array):
        return array
    is_on_one_device = len(old.sharding.device_set) == 1
    return array if is_on_one_device else put_global(array, old.sharding)


def unreplicate(layout: Layout, tree: PyTree) -> PyTree:
    """Returns replicated arrays on the default device, as after a training on one device.

    Each process can then use a model alone. Sharded arrays stay sharded.
    """
    if layout.mesh is None or layout.shards_state:
        return tree
    return jax.tree.map(_on_default_device, tree)


def _on_default_device(array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _on_default_device(jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    # Through the host: otherwise the array stays committed to its device.
    return jnp.asarray(np.asarray(array))


# --- in traced functions ----------------------------------------------------------------------


def split_rows(layout: Layout, tree: PyTree, axis: int = 0) -> PyTree:
    """Constrains the rows, which are along ``axis``, to be sharded over the devices."""
    if layout.mesh is None:
        return tree
    rows = NamedSharding(layout.mesh, PartitionSpec(*[None] * axis, _AXIS))
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: rows, tree))


def replicate(layout: Layout, tree: PyTree) -> PyTree:
    """Constrains arrays to be replicated on the devices."""
    if layout.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: layout.replicated, tree))


def pin_state(layout: Layout, state: PyTree) -> PyTree:
    """Constrains a training state to keep the shardings of the layout."""
    if layout.mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, layout.state_sharding(state))


def layout_of(tree: PyTree) -> Layout | None:
    """Returns the layout of arrays that a training with FSDP has left sharded; else None."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, 'sharding', None)
        if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
            continue
        if isinstance(sharding.mesh, Mesh) and sharding.mesh.axis_names == (_AXIS,):
            return Layout(sharding.mesh, shards_state=True)
    return None


@dataclasses.dataclass(frozen=True)
class ShardedRows:
    """Rows that are sharded over the devices along their first axis.

    Attributes:
        mesh: the devices.
        aligned: True if each device holds the rows of its part of every batch. False if a batch is
            gathered from all devices.
    """

    mesh: Mesh
    aligned: bool

    def take(self, array: jax.Array, rows: jax.Array) -> jax.Array:
        """Gathers ``rows`` ``[batch]`` of a sharded array; no device ever holds the full array."""
        num_devices = self.mesh.size
        is_even = len(rows) % num_devices == 0
        sharded, replicated = PartitionSpec(_AXIS), PartitionSpec()

        def take_from_shard(shard: jax.Array, rows: jax.Array) -> jax.Array:
            local = rows - jax.lax.axis_index(_AXIS) * len(shard)
            values = jnp.take(shard, local, axis=0, mode='clip')
            if self.aligned:
                return values
            is_local = ((local >= 0) & (local < len(shard))).reshape(-1, *[1] * (values.ndim - 1))
            summed = jnp.where(is_local, values, 0)
            summed = summed.astype(jnp.uint8) if values.dtype == bool else summed
            if is_even:
                summed = jax.lax.psum_scatter(summed, _AXIS, tiled=True)
            else:
                summed = jax.lax.psum(summed, _AXIS)
            return summed.astype(values.dtype)

        return jax.shard_map(
            take_from_shard, mesh=self.mesh,
            in_specs=(sharded, sharded if self.aligned else replicated),
            out_specs=sharded if self.aligned or is_even else replicated,
        )(array, rows)  # fmt: skip
