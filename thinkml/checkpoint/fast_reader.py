"""Reading what Orbax wrote without Orbax, which takes four times as long as the disk.

Orbax stores each array as Zarr in an OCDBT database; both are open formats of TensorStore, which
reads them straight into memory that JAX takes over without a copy.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

# What XLA asks of memory that it takes over.
_ALIGNMENT = 64
_CACHE_BYTES = 100 * 2**20
_MAX_ARRAYS = 100_000


class StoredArray(Protocol):
    """What is known of an array before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


def read_stored(path: pathlib.Path, index: Mapping[str, StoredArray]) -> dict[str, np.ndarray]:
    """Reads arrays into memory.

    Args:
        path: the directory that Orbax wrote.
        index: the arrays wanted, by name.

    Raises:
        ValueError: if one is missing, or not as the index has it; before memory is taken for it.
    """
    if not index:
        return {}
    if len(index) > _MAX_ARRAYS:
        raise ValueError(f'{len(index):,} arrays, at most {_MAX_ARRAYS:,} are read')
    import tensorstore

    context = tensorstore.Context({
        'cache_pool': {'total_bytes_limit': _CACHE_BYTES}, 'file_io_mode': {'mode': 'memmap'},
    })  # fmt: skip
    base = {'driver': 'file', 'path': f'{path}/'}
    opened = {
        name: tensorstore.open(
            {
                'driver': 'zarr',
                'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'},
                'fill_missing_data_reads': False,
            },
            open=True, read=True, context=context,
        )
        for name in index
    }  # fmt: skip
    stores = {name: store.result() for name, store in opened.items()}
    differing = [
        name
        for name, store in stores.items()
        if (tuple(store.shape), store.dtype.numpy_dtype)
        != (index[name].shape, jnp.dtype(index[name].dtype))
    ]
    if differing:
        raise ValueError(f'index.json and the arrays differ in {", ".join(sorted(differing)[:5])}')
    for name, store in stores.items():  # memory is taken for a whole chunk
        chunk = store.chunk_layout.read_chunk.shape or ()
        if any((part or 0) > size for part, size in zip(chunk, store.shape, strict=True)):
            raise ValueError(f'{name} is stored in parts that are larger than it')
    _check_memory(index)
    arrays = {name: _empty(entry.shape, jnp.dtype(entry.dtype)) for name, entry in index.items()}
    reads = [tensorstore.array(arrays[name]).write(store) for name, store in stores.items()]
    for read in reads:
        read.result()
    return arrays


def _check_memory(index: Mapping[str, StoredArray]) -> None:
    needed = sum(
        int(np.prod(entry.shape, dtype=object)) * jnp.dtype(entry.dtype).itemsize
        for entry in index.values()
    )
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        there_is = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        if needed > there_is:
            raise ValueError(
                f'the arrays take {needed:,} bytes, the memory of this machine is {there_is:,}'
            )


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array whose memory begins where JAX wants it."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)
