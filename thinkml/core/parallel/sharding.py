"""Where arrays are when there are several devices: rows apart, all else on each or in parts."""

import dataclasses
import math
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

PyTree = Any

_AXIS = 'data'
# Of smaller arrays a part is not worth its exchange.
_SMALLEST_SHARDED = 1024


def data_mesh(devices: Any) -> Mesh:
    """A mesh of one axis, along which batches are parted; its devices can exchange."""
    mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
    connect(mesh)
    return mesh


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of a run are, on a mesh of one axis (see `data_mesh`).

    A step is written for one device and whole arrays. The compiler cuts it up by these places: each
    device computes its rows of a batch, and sums over the batch are summed over the devices, so
    that what comes out is what one device computes, up to the order of summation.

    Attributes:
        mesh: the devices, of all processes.
        shards_state: whether the parameters and the optimizer's state are in parts too, each
            array along its longest axis that the devices divide (FSDP); else each device has all.

    Example:
        >>> import jax
        >>> from thinkml.core.parallel.sharding import Layout, data_mesh
        >>> layout = Layout(data_mesh(jax.devices()))
        >>> layout.everywhere.is_fully_replicated
        True

    Reference:
        Xu et al., 2021, *GSPMD: general and scalable parallelization for ML computation graphs*.
    """

    mesh: Mesh
    shards_state: bool = False

    @property
    def num_devices(self) -> int:
        """Devices of all processes."""
        return self.mesh.size

    @property
    def spans_processes(self) -> bool:
        """Whether the devices are those of several processes, which must do the same."""
        return self.mesh.is_multi_process

    @property
    def rows(self) -> NamedSharding:
        """Of arrays in parts along their first axis."""
        return NamedSharding(self.mesh, PartitionSpec(_AXIS))

    @property
    def everywhere(self) -> NamedSharding:
        """Of arrays that each device has."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of_state(self, state: PyTree) -> PyTree:
        """The sharding of each array of a training state, by its shape."""
        return jax.tree.map(lambda leaf: self._of_shape(leaf.shape), state)

    def _of_shape(self, shape: tuple[int, ...]) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(shape) if size % self.num_devices == 0]
        if not self.shards_state or not fitting or math.prod(shape) < _SMALLEST_SHARDED:
            return self.everywhere
        longest = max(fitting, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, _AXIS))

    def put(self, tree: PyTree) -> PyTree:
        """Puts arrays that every process has on every device."""
        return jax.tree.map(lambda leaf: put_global(leaf, self.everywhere), tree)


def put_global(array: Any, sharding: Sharding) -> jax.Array:
    """Puts an array, of which each process has all, where it is to be; keys too.

    Arrays that are on the devices of several processes already are moved there.
    """
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = put_global(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def put_like(array: Any, old: Any) -> Any:
    """Puts an array where another one is, if that is on several devices."""
    if isinstance(old, Tracer) or not isinstance(old, jax.Array):
        return array
    is_alone = len(old.sharding.device_set) == 1
    return array if is_alone else put_global(array, old.sharding)


def as_on_one_device(layout: Layout | None, tree: PyTree) -> PyTree:
    """Arrays that each device has, as a training on one device would leave them.

    A model can then be used by each process alone. Those that are in parts stay where they are.
    """
    if layout is None or layout.shards_state:
        return tree
    return jax.tree.map(_on_default_device, tree)


def _on_default_device(array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _on_default_device(jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jnp.asarray(np.asarray(array))  # through the host: else it is committed to its device


# --- within a traced function -----------------------------------------------------------------


def split_rows(layout: Layout | None, tree: PyTree, axis: int = 0) -> PyTree:
    """Says that each device computes its part of the rows, which are along ``axis``."""
    if layout is None:
        return tree
    rows = NamedSharding(layout.mesh, PartitionSpec(*[None] * axis, _AXIS))
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: rows, tree))


def replicate(layout: Layout | None, tree: PyTree) -> PyTree:
    """Says that each device has all of it."""
    if layout is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: layout.everywhere, tree))


def pin_state(layout: Layout | None, state: PyTree) -> PyTree:
    """Says that a training state stays where the layout has it."""
    return (
        state if layout is None else jax.lax.with_sharding_constraint(state, layout.of_state(state))
    )


def layout_of(tree: PyTree) -> Layout | None:
    """The layout of arrays that a training with FSDP has left in parts; None for all others."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, 'sharding', None)
        if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
            continue
        if isinstance(sharding.mesh, Mesh) and sharding.mesh.axis_names == (_AXIS,):
            return Layout(sharding.mesh, shards_state=True)
    return None


@dataclasses.dataclass(frozen=True)
class ShardedRows:
    """Rows that are in parts on the devices, along their first axis.

    Attributes:
        mesh: the devices.
        aligned: whether each device has the rows of its part of every batch; else a batch is put
            together from all devices.
    """

    mesh: Mesh
    aligned: bool

    def take(self, array: jax.Array, rows: jax.Array) -> jax.Array:
        """Gathers ``rows`` ``[batch]`` of an array in parts, of which no device ever has all."""
        num_devices = self.mesh.size
        is_even = len(rows) % num_devices == 0
        apart, whole = PartitionSpec(_AXIS), PartitionSpec()

        def of_part(part: jax.Array, rows: jax.Array) -> jax.Array:
            own = rows - jax.lax.axis_index(_AXIS) * len(part)
            taken = jnp.take(part, own, axis=0, mode='clip')
            if self.aligned:
                return taken
            is_own = ((own >= 0) & (own < len(part))).reshape(-1, *[1] * (taken.ndim - 1))
            summed = jnp.where(is_own, taken, 0)
            summed = summed.astype(jnp.uint8) if taken.dtype == bool else summed
            if is_even:
                summed = jax.lax.psum_scatter(summed, _AXIS, tiled=True)
            else:
                summed = jax.lax.psum(summed, _AXIS)
            return summed.astype(taken.dtype)

        return jax.shard_map(
            of_part, mesh=self.mesh,
            in_specs=(apart, apart if self.aligned else whole),
            out_specs=apart if self.aligned or is_even else whole,
        )(array, rows)  # fmt: skip
