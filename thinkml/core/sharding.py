"""Where arrays are when there are several devices: rows apart, all else on each."""

import functools

import jax
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)


@functools.cache
def placements() -> tuple[Sharding, Sharding]:
    """Where the rows of a batch are, and what every device needs, on the devices of this process.

    Rows are parted evenly along their first axis, so their number must be a multiple of
    ``num_devices`` of the first.

    Example:
        >>> from thinkml.core.sharding import placements
        >>> rows, everywhere = placements()
        >>> rows.num_devices == everywhere.num_devices
        True
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        # As arrays are placed by default: not committed to a mesh that others know nothing of.
        alone = SingleDeviceSharding(devices[0])
        return alone, alone
    mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
