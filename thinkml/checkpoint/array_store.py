"""Arrays on disk, through Orbax. The only module that imports Orbax, and only where it is used.

Orbax turns integer keys into strings, refuses empty arrays and typed PRNG keys, and restores
flipped bits without a word. So a tree is stored as one flat mapping from ``'/'``-joined paths to
plain arrays, beside an index of their shapes and dtypes; what guards the bytes is the caller's.
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

PyTree = Any
Result = TypeVar('Result')

INDEX = 'index.json'
# In the names of directories that are not complete yet.
_UNFINISHED = 'thinkml-new'
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ARRAYS = 'arrays'
MAX_INDEX_BYTES = 64 * 2**20
# Files of about this size are hashed side by side.
_FILE_BYTES = 32 * 2**20

# What arrays take on disk beside their bytes, about.
_BYTES_BESIDE, _BYTES_BY_ARRAY = 64 * 2**10, 2**10

# Orbax looks for what it has written by patterns.
_NO_PATH = frozenset('[]\\') if os.sep == '/' else frozenset('[]')

_ARRAY_LIKE = (jax.Array, jax.ShapeDtypeStruct)

# Orbax numbers its saves for the process: those of two threads at the same time wait for each
# other's signals in vain.
_one_save = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array as the index has it."""

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


Packed = tuple[dict[str, Entry], dict[str, Any]]


def save_arrays(path: str | pathlib.Path, tree: PyTree) -> None:
    """Writes the arrays of a pytree into a new directory.

    Args:
        path: the directory, made here.
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


def check_disk(directory: pathlib.Path, packed: Packed) -> None:
    """Checks that a disk has room for arrays: Orbax writes a traceback for each that has none.

    Raises:
        OSError: if it has not, or the directory can't be written.
    """
    write_probe(directory)
    arrays = packed[1].values()
    needed = sum(array.nbytes for array in arrays) + _BYTES_BESIDE + _BYTES_BY_ARRAY * len(arrays)
    free = shutil.disk_usage(directory).free
    if free < needed:
        what = f'the disk is full: {readable(needed)} are needed, {readable(free)} are free'
        raise OSError(errno.ENOSPC, what)


def start_saving(path: pathlib.Path, packed: Packed) -> Callable[[], None]:
    """Copies arrays off the device, to be written into an empty directory.

    In a run of several processes each calls this, with a directory that all of them see. Within a
    process it waits until the save before it is on disk.

    Returns:
        a function that returns when they are on disk; another thread may call it, and one must.

    Raises:
        Exception: what Orbax and the file system raise.
    """
    if unusable := set(str(path)) & _NO_PATH:
        raise CheckpointError(
            f'path: {path} has {min(unusable)!r} in it, a pattern to Orbax, which would write '
            'nothing there. Choose another path.'
        )
    index, arrays = packed
    entries = {name: entry.to_json() for name, entry in index.items()}
    _silence_orbax()
    writer = None
    if arrays:
        arrays = {name: _shared(array) for name, array in arrays.items()}
        # Compression takes longer than all else; it spares less than a tenth of trained weights.
        handler = _orbax().PyTreeCheckpointHandler(use_compression=False)
        args = _orbax().args.PyTreeSave(arrays, ocdbt_target_data_file_size=_FILE_BYTES)
        _one_save.acquire()
        try:
            writer = _orbax().AsyncCheckpointer(handler)
            writer.save(path / _ARRAYS, args=args)
        except BaseException:
            _one_save.release()
            raise

    def finish() -> None:
        if writer is not None:
            try:
                writer.close()
            finally:
                _one_save.release()
        if is_first_process():
            # It is read by nobody here, and names the directory on the machine that wrote it.
            (path / _ARRAYS / 'commit_success.txt').unlink(missing_ok=True)
            (path / INDEX).write_text(json.dumps(entries, indent=1) + '\n', encoding='utf-8')

    return finish


@functools.cache
def _silence_orbax() -> None:
    """Keeps from the log what Orbax raises as well: a traceback from each of its threads."""
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(lambda record: not _is_of_save(record))


def _is_of_save(record: logging.LogRecord) -> bool:
    """Returns True for an error of a save of ThinkML's, which names it or the full disk."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return False
    is_full = isinstance(error, OSError) and error.errno in _DISK_IS_FULL
    is_of_orbax = 'orbax' in pathlib.PurePath(record.pathname).parts
    return (is_full and is_of_orbax) or _UNFINISHED in f'{record.getMessage()} {error}'


def _shared(array: Any) -> Any:
    """An array of several processes, or one that each of them has: Orbax wants that as NumPy's."""
    is_own = jax.process_count() > 1 and isinstance(array, jax.Array) and array.is_fully_addressable
    return np.asarray(array) if is_own else array


def load_arrays(
    path: str | pathlib.Path, template: PyTree = None, prefixes: tuple[str, ...] = ('',)
) -> PyTree:
    """Reads what `save_arrays` wrote.

    Args:
        path: the directory.
        template: a pytree of arrays or `jax.ShapeDtypeStruct`; its structure, and its leaves'
            shardings, are what comes back.
        prefixes: without a template, of the names to read.

    Returns:
        The arrays in the template's structure; without one a flat dict from ``'/'``-joined path
        to array, on the default device; NumPy's arrays stay NumPy's.

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
    """Orbax takes as long to import as a small model to train: not before it is needed."""
    import orbax.checkpoint

    return orbax.checkpoint


def as_checkpoint_error(call: Callable[[], Result], message: str) -> Result:
    """Orbax and tensorstore raise what they like; users see one type."""
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
    """NumPy's arrays stay NumPy's: JAX would cut 64 bits to 32 without a word."""
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

        def data_of(key: jax.Array) -> jax.Array:  # traced, for leaves that have only a shape
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


def pack(tree: PyTree) -> Packed:
    """The index of a pytree, and the arrays Orbax can hold.

    Raises:
        CheckpointError: if a leaf is no array.
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
    waiting = {
        name: arrays[name]
        for name, entry in index.items()
        if not entry.numpy and not isinstance(arrays[name], jax.Array)
    }
    arrays |= jax.device_put(waiting, may_alias=True)  # at once: half the time of one by one
    leaves = {name: _restored(name, entry, arrays[name]) for name, entry in index.items()}
    if template is None:
        return leaves
    return jax.tree.unflatten(
        jax.tree.structure(template), [leaves[name] for name in _named_leaves(template)]
    )


def _restored(name: str, entry: Entry, array: Any) -> jax.Array | np.ndarray:
    if entry.numpy:
        return np.asarray(array)
    if array.dtype != jnp.dtype(entry.dtype):
        raise CheckpointError(
            f'{name}: stored as {entry.dtype}, which this process turns into {array.dtype}. '
            "Switch 64-bit arrays on first: jax.config.update('jax_enable_x64', True)."
        )
    if entry.key_impl:
        return jax.random.wrap_key_data(array, impl=entry.key_impl)
    return _weakly_typed(array) if entry.weak else array


def _weakly_typed(array: jax.Array) -> jax.Array:
    """A weak float32 times a bfloat16 is a bfloat16, a strong one a float32: it decides results."""
    weak = jnp.full(array.shape, array.dtype.type(0).item())
    if weak.dtype != array.dtype:
        return array
    filled = weak.at[...].set(array)
    return filled if _is_default(array.sharding) else jax.device_put(filled, array.sharding)


def _is_default(sharding: jax.sharding.Sharding) -> bool:
    """Whether arrays are there anyway. Put there by name they would be committed to the device.

    A program is compiled anew for arrays that are committed.
    """
    return sharding == jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _targets(index: dict[str, Entry], template: PyTree, where: str) -> dict[str, Any]:
    """The template's leaves by name, checked against the index."""
    targets = _named_leaves(template)
    found = [f'{name}: only in the checkpoint' for name in index if name not in targets]
    found += [f'{name}: only in the template' for name in targets if name not in index]
    for name in index.keys() & targets.keys():
        stored, wanted = index[name], _entry_of(targets[name])
        if str(stored) != str(wanted):
            found.append(f'{name}: stored as {stored}, the template has {wanted}')
    if found:
        raise CheckpointError(problems(f'template: does not fit {where}:', sorted(found)))
    return targets


def _is_placed(target: Any, entry: Entry) -> bool:
    """Whether the template says on which devices an array is to be."""
    sharding = getattr(target, 'sharding', None)
    return not (sharding is None or entry.key_impl or _is_default(sharding))


def _restore_placed(
    path: pathlib.Path, index: Mapping[str, Entry], targets: Mapping[str, Any]
) -> dict[str, Any]:
    """Each process reads what its devices need."""
    ocp = _orbax()
    how = {name: ocp.ArrayRestoreArgs(sharding=array.sharding) for name, array in targets.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        _check_declared(index, checkpointer.metadata(path).item_metadata.tree)
        item = {name: targets[name] for name in targets}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        return checkpointer.restore(path, args=args)


def _check_declared(index: Mapping[str, Entry], stored: Mapping[str, Any]) -> None:
    """Shapes are compared before memory is taken for them."""
    declared = {name: (entry.shape, entry.dtype) for name, entry in index.items()}
    found = {name: (tuple(a.shape), jnp.dtype(a.dtype).name) for name, a in stored.items()}
    if declared != found:
        names = sorted(n for n in declared | found if declared.get(n) != found.get(n))
        raise ValueError(f'{INDEX} and the arrays differ in {", ".join(names[:5])}')
