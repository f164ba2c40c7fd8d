"""Array store: pytrees of arrays on disk, through Orbax, which is imported only when needed.

Orbax converts integer keys to strings, rejects empty arrays and typed PRNG keys, and restores
flipped bits without an error. So a tree is stored as one flat mapping from ``'/'``-joined paths to
plain arrays, together with an index of their shapes and dtypes. The caller protects the bytes.
"""

import dataclasses
import errno
import functools
import json
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.checkpoint.fast_reader import read_stored
from thinkml.checkpoint.filesystem import read_bounded, readable, write_probe
from thinkml.core.parallel.multiprocess import barrier, is_first_process
from thinkml.errors import CheckpointError, CheckpointNotFoundError, problems
from thinkml.paths import local_path
from thinkml.typing import PyTree

Result = TypeVar('Result')

INDEX = 'index.json'
# A part of the names of directories that are not complete yet.
_INCOMPLETE = 'thinkml-new'
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ARRAYS = 'arrays'
MAX_INDEX_BYTES = 64 * 2**20
# Files of about this size are hashed in parallel.
_FILE_BYTES = 32 * 2**20

# The approximate overhead on disk: once, and per array.
_OVERHEAD_BYTES, _OVERHEAD_BYTES_PER_ARRAY = 64 * 2**10, 2**10

# Orbax finds its files by patterns, in which these characters have a meaning.
_PATTERN_CHARACTERS = frozenset('[]\\') if os.sep == '/' else frozenset('[]')

_ARRAY_LIKE = (jax.Array, jax.ShapeDtypeStruct)

# Orbax numbers its saves per process: two saves at once in different threads would wait for each
# other's signals forever.
_save_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Entry:
    """The index entry of one array."""

    shape: tuple[int, ...]
    dtype: str
    weak: bool = False
    key_impl: str | None = None
    numpy: bool = False

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    def __str__(self) -> str:
        dtype = f'key<{self.key_impl}>' if self.key_impl else self.dtype
        return f'{dtype}[{",".join(map(str, self.shape))}]'

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> 'Entry':
        entry = cls(**{**fields, 'shape': tuple(fields['shape'])})
        if not all(type(size) is int and size >= 0 for size in entry.shape):
            raise ValueError(f'impossible shape {entry.shape}')
        return entry


# The index of a pytree, and its arrays, both by name.
PackedTree = tuple[dict[str, Entry], dict[str, Any]]


def save_arrays(path: str | pathlib.Path, tree: PyTree) -> None:
    """Writes the arrays of a pytree into a new directory.

    Args:
        path: the directory, which is created.
        tree: any pytree of arrays, typed PRNG keys and Python numbers.

    Raises:
        CheckpointError: if the directory exists or can't be written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from thinkml.checkpoint import load_arrays, save_arrays
        >>> path = tempfile.mkdtemp() + '/weights'
        >>> save_arrays(path, {'layers': {0: {'kernel': jnp.ones((2, 3))}}})
        >>> {name: array.shape for name, array in load_arrays(path).items()}
        {'layers/0/kernel': (2, 3)}
    """
    path = pathlib.Path(os.path.abspath(local_path(path)))
    packed = pack(tree)

    def write() -> None:
        if is_first_process():
            path.mkdir(parents=True)
            check_disk(path, packed)
        barrier('arrays-begun')
        start_saving(path, packed)()

    as_checkpoint_error(write, f'path: {path} could not be written')


def check_disk(directory: pathlib.Path, packed: PackedTree) -> None:
    """Checks that a disk has space for arrays: on a full disk, Orbax logs a traceback per array.

    Raises:
        OSError: if there is not enough space, or the directory can't be written.
    """
    write_probe(directory)
    arrays = packed[1].values()
    needed = sum(array.nbytes for array in arrays)
    needed += _OVERHEAD_BYTES + _OVERHEAD_BYTES_PER_ARRAY * len(arrays)
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f'the disk is full: {readable(needed)} are needed, {readable(free)} are free'
        raise OSError(errno.ENOSPC, message)


def start_saving(path: pathlib.Path, packed: PackedTree) -> Callable[[], None]:
    """Copies arrays from the device, and starts writing them into an empty directory.

    In a run of several processes, each process calls this with the same shared directory. Within a
    process, it waits until the previous save is on disk.

    Returns:
        a function that waits until the arrays are on disk. It must be called, by any thread.

    Raises:
        Exception: any error of Orbax and the file system.
    """
    if unusable := set(str(path)) & _PATTERN_CHARACTERS:
        raise CheckpointError(
            f'path: {path} contains {min(unusable)!r}, which is a pattern to Orbax; it would write '
            'nothing there. Choose another path.'
        )
    index, arrays = packed
    entries = {name: entry.to_json() for name, entry in index.items()}
    _silence_orbax()
    writer = None
    if arrays:
        arrays = {name: _for_orbax(array) for name, array in arrays.items()}
        # Compression takes longer than all other work, and saves less than 10 % for weights.
        handler = _orbax().PyTreeCheckpointHandler(use_compression=False)
        args = _orbax().args.PyTreeSave(arrays, ocdbt_target_data_file_size=_FILE_BYTES)
        _save_lock.acquire()
        try:
            writer = _orbax().AsyncCheckpointer(handler)
            writer.save(path / _ARRAYS, args=args)
        except BaseException:
            _save_lock.release()
            raise

    def finish() -> None:
        if writer is not None:
            try:
                writer.close()
            finally:
                _save_lock.release()
        if is_first_process():
            # This file is not needed, and contains the directory's path on the writing machine.
            (path / _ARRAYS / 'commit_success.txt').unlink(missing_ok=True)
            (path / INDEX).write_text(json.dumps(entries, indent=1) + '\n', encoding='utf-8')

    return finish


@functools.cache
def _silence_orbax() -> None:
    """Keeps errors out of the log that Orbax also raises: a traceback from each of its threads."""
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(lambda record: not _is_save_error(record))


def _is_save_error(record: logging.LogRecord) -> bool:
    """Returns True for an error of a ThinkML save: it names the directory, or the disk is full."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return False
    is_full = isinstance(error, OSError) and error.errno in _DISK_IS_FULL
    is_from_orbax = 'orbax' in pathlib.PurePath(record.pathname).parts
    return (is_full and is_from_orbax) or _INCOMPLETE in f'{record.getMessage()} {error}'


def _for_orbax(array: Any) -> Any:
    """Returns an array for Orbax; with several processes, a local array must be NumPy's."""
    has_processes = jax.process_count() > 1
    is_local = has_processes and isinstance(array, jax.Array) and array.is_fully_addressable
    return np.asarray(array) if is_local else array


def load_arrays(
    path: str | pathlib.Path, template: PyTree = None, prefixes: tuple[str, ...] = ('',)
) -> PyTree:
    """Reads arrays that `save_arrays` wrote.

    Args:
        path: the directory.
        template: a pytree of arrays or `jax.ShapeDtypeStruct`, which sets the structure of the
            result and the sharding of each leaf; None for a flat dict.
        prefixes: prefixes of the names to read, if there is no template.

    Returns:
        the arrays in the structure of the template; without one, a flat dict from ``'/'``-joined
        path to array, on the default device. NumPy arrays are restored as NumPy arrays.

    Raises:
        CheckpointError: if there is nothing readable, or it doesn't fit the template. Names every
            leaf that doesn't, with both shapes.
    """
    path = pathlib.Path(os.path.abspath(local_path(path)))

    def read() -> tuple[dict[str, Entry], dict[str, Any]]:
        if not path.exists():
            raise CheckpointNotFoundError(f'path: {path} could not be read: it does not exist.')
        entries = json.loads(read_bounded(path / INDEX, MAX_INDEX_BYTES))
        index = {
            name: Entry.from_json(entry)
            for name, entry in entries.items()
            if template is not None or name.startswith(prefixes)
        }
        targets = {} if template is None else _targets(index, template, str(path))
        stored = {name: entry for name, entry in index.items() if not entry.is_empty}
        if not stored:
            return index, {}
        placed = {name for name in stored if _is_placed(targets.get(name), stored[name])}
        arrays = read_stored(path / _ARRAYS, {n: stored[n] for n in stored.keys() - placed})
        if placed:
            arrays |= _restore_placed(path / _ARRAYS, stored, {n: targets[n] for n in placed})
        return index, arrays

    index, arrays = as_checkpoint_error(read, f'path: {path} could not be read')
    return _unpack(index, arrays, template)


def _orbax() -> Any:
    """Imports Orbax on first use: the import takes as long as training a small model."""
    import orbax.checkpoint

    return orbax.checkpoint


def as_checkpoint_error(call: Callable[[], Result], message: str) -> Result:
    """Returns the result of ``call``, and raises every error as a `CheckpointError`.

    Orbax and tensorstore raise errors of many types.
    """
    try:
        return call()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f'{message}: {type(error).__name__}: {error}') from error


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        while name in named:  # {'a/b': 1, 'a': {'b': 2}}
            name += "'"
        named[name] = leaf if isinstance(leaf, _ARRAY_LIKE) else _as_array(name, leaf)
    return named


def _as_array(name: str, leaf: Any) -> jax.Array | np.ndarray:
    """Returns a leaf as an array; NumPy arrays stay, since JAX would cut 64 bits to 32 silently."""
    if not isinstance(leaf, np.ndarray | np.generic):
        return jnp.asarray(leaf)
    is_number = jnp.issubdtype(leaf.dtype, np.number) and leaf.dtype.char not in 'gG'
    if not is_number and leaf.dtype != np.bool_:
        raise CheckpointError(
            f'{name}: got an array of {leaf.dtype}, expected numbers or booleans.'
        )
    return np.asarray(leaf)


def _entry_of(leaf: Any) -> Entry:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        impls: list[str] = []

        def data_of(key: jax.Array) -> jax.Array:  # traced, since a leaf may have only a shape
            impls.append(str(jax.random.key_impl(key)))
            return jax.random.key_data(key)

        data = jax.eval_shape(data_of, leaf)
        return Entry(data.shape, data.dtype.name, key_impl=impls[0])
    return Entry(
        tuple(leaf.shape),
        jnp.dtype(leaf.dtype).name,
        weak=getattr(leaf, 'weak_type', False),
        numpy=isinstance(leaf, np.ndarray),
    )


def pack(tree: PyTree) -> PackedTree:
    """Returns the index of a pytree, and its arrays in a form that Orbax can store.

    Raises:
        CheckpointError: if a leaf is not an array.
    """
    index: dict[str, Entry] = {}
    arrays: dict[str, Any] = {}
    for name, leaf in _named_leaves(tree).items():
        index[name] = entry = _entry_of(leaf)
        if not entry.is_empty:
            arrays[name] = jax.random.key_data(leaf) if entry.key_impl else leaf
    return index, arrays


def _unpack(index: dict[str, Entry], arrays: Mapping[str, Any], template: PyTree) -> PyTree:
    empty = {n: np.zeros(e.shape, e.dtype) for n, e in index.items() if n not in arrays}
    arrays = {**arrays, **empty}
    on_host = {
        name: arrays[name]
        for name, entry in index.items()
        if not entry.numpy and not isinstance(arrays[name], jax.Array)
    }
    arrays |= jax.device_put(on_host, may_alias=True)  # one call takes half the time of many
    leaves = {name: _unpack_leaf(name, entry, arrays[name]) for name, entry in index.items()}
    if template is None:
        return leaves
    return jax.tree.unflatten(
        jax.tree.structure(template), [leaves[name] for name in _named_leaves(template)]
    )


def _unpack_leaf(name: str, entry: Entry, array: Any) -> jax.Array | np.ndarray:
    if entry.numpy:
        return np.asarray(array)
    if array.dtype != jnp.dtype(entry.dtype):
        raise CheckpointError(
            f'{name}: stored as {entry.dtype}, which this process converts to {array.dtype}. '
            "Switch 64-bit arrays on first: jax.config.update('jax_enable_x64', True)."
        )
    if entry.key_impl:
        return jax.random.wrap_key_data(array, impl=entry.key_impl)
    return _as_weak_type(array) if entry.weak else array


def _as_weak_type(array: jax.Array) -> jax.Array:
    """Returns the array with a weak type, which changes the dtype of results.

    A weak float32 times a bfloat16 is a bfloat16; with a strong float32 the product is a float32.
    """
    weak = jnp.full(array.shape, array.dtype.type(0).item())
    if weak.dtype != array.dtype:
        return array
    filled = weak.at[...].set(array)
    return filled if _is_default(array.sharding) else jax.device_put(filled, array.sharding)


def _is_default(sharding: jax.sharding.Sharding) -> bool:
    """Returns True for the device on which arrays are placed by default.

    Placing them there explicitly would commit them to the device, and programs would be compiled
    again for committed arrays.
    """
    return sharding == jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _targets(index: dict[str, Entry], template: PyTree, where: str) -> dict[str, Any]:
    """Returns the leaves of the template by name, checked against the index."""
    targets = _named_leaves(template)
    found = [f'{name}: only in the checkpoint' for name in index if name not in targets]
    found += [f'{name}: only in the template' for name in targets if name not in index]
    for name in index.keys() & targets.keys():
        stored, expected = index[name], _entry_of(targets[name])
        if str(stored) != str(expected):
            found.append(f'{name}: stored as {stored}, the template has {expected}')
    if found:
        raise CheckpointError(problems(f'template: does not fit {where}:', sorted(found)))
    return targets


def _is_placed(target: Any, entry: Entry) -> bool:
    """Returns True if the template places the array on devices other than the default one."""
    sharding = getattr(target, 'sharding', None)
    return not (sharding is None or entry.key_impl or _is_default(sharding))


def _restore_placed(
    path: pathlib.Path, index: Mapping[str, Entry], targets: Mapping[str, Any]
) -> dict[str, Any]:
    """Restores sharded arrays; each process reads only the shards of its devices."""
    ocp = _orbax()
    restore_args = {
        name: ocp.ArrayRestoreArgs(sharding=array.sharding) for name, array in targets.items()
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        _check_index(index, checkpointer.metadata(path).item_metadata.tree)
        item = {name: targets[name] for name in targets}
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
        return checkpointer.restore(path, args=args)


def _check_index(index: Mapping[str, Entry], stored: Mapping[str, Any]) -> None:
    """Checks shapes and dtypes against the index, before memory is allocated for the arrays."""
    expected = {name: (entry.shape, entry.dtype) for name, entry in index.items()}
    found = {name: (tuple(a.shape), jnp.dtype(a.dtype).name) for name, a in stored.items()}
    if expected != found:
        names = sorted(n for n in expected | found if expected.get(n) != found.get(n))
        raise ValueError(f'{INDEX} and the arrays differ in {", ".join(names[:5])}')
