"""Arrays on disk, through Orbax. The only module that imports Orbax, and only where it is used.

Orbax turns integer keys into strings, refuses empty arrays and typed PRNG keys, and restores
flipped bits without a word. So a tree is stored as one flat mapping from ``'/'``-joined paths to
plain arrays, beside an index of their shapes and dtypes; what guards the bytes is the caller's.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.errors import CheckpointError, problems

PyTree = Any
Result = TypeVar('Result')

_INDEX = 'index.json'
_ARRAYS = 'arrays'
MAX_INDEX_BYTES = 64 * 2**20

_ARRAY_LIKE = (jax.Array, jax.ShapeDtypeStruct)


@dataclasses.dataclass(frozen=True)
class _Entry:
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
    def from_json(cls, fields: Mapping[str, Any]) -> '_Entry':
        entry = cls(**{**fields, 'shape': tuple(fields['shape'])})
        if not all(type(size) is int and size >= 0 for size in entry.shape):
            raise ValueError(f'impossible shape {entry.shape}')
        return entry


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
    path = pathlib.Path(path).absolute()
    index, arrays = _pack(tree)

    def write() -> None:
        path.mkdir(parents=True)
        entries = {name: entry.to_json() for name, entry in index.items()}
        (path / _INDEX).write_text(json.dumps(entries, indent=1) + '\n', encoding='utf-8')
        if arrays:
            with _orbax().Checkpointer(_orbax().PyTreeCheckpointHandler()) as checkpointer:
                checkpointer.save(path / _ARRAYS, args=_orbax().args.PyTreeSave(arrays))
            # It is read by nobody here, and names the directory on the machine that wrote it.
            (path / _ARRAYS / 'commit_success.txt').unlink(missing_ok=True)

    _guarded(write, f'path: {path} could not be written')


def load_arrays(path: str | pathlib.Path, template: PyTree = None) -> PyTree:
    """Reads what `save_arrays` wrote.

    Args:
        path: the directory.
        template: a pytree of arrays or `jax.ShapeDtypeStruct`; its structure, and its leaves'
            shardings, are what comes back.

    Returns:
        The arrays in the template's structure; without one a flat dict from ``'/'``-joined path
        to array, on the default device; NumPy's arrays stay NumPy's.

    Raises:
        CheckpointError: if there is nothing readable, or it doesn't fit the template. Names every
            leaf that doesn't, with both shapes.
    """
    path = pathlib.Path(path).absolute()

    def read() -> tuple[dict[str, _Entry], dict[str, Any]]:
        if (path / _INDEX).stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f'{_INDEX} is larger than {MAX_INDEX_BYTES} bytes')
        entries = json.loads((path / _INDEX).read_text(encoding='utf-8'))
        index = {name: _Entry.from_json(entry) for name, entry in entries.items()}
        targets = {} if template is None else _targets(index, template, str(path))
        stored = {name: entry for name, entry in index.items() if not entry.is_empty}
        if not stored:
            return index, {}
        with _orbax().Checkpointer(_orbax().PyTreeCheckpointHandler()) as checkpointer:
            _check_declared(stored, checkpointer.metadata(path / _ARRAYS).item_metadata.tree)
            return index, checkpointer.restore(path / _ARRAYS, args=_restore(stored, targets))

    index, arrays = _guarded(read, f'path: {path} could not be read')
    return _unpack(index, arrays, template)


class Checkpointer:
    """Numbered checkpoints of a training state in one directory, written in the background.

    A save returns once the state is copied off the device: the caller may donate it to the next
    step. A process killed in the middle of a save leaves a checkpoint that is not listed.

    Args:
        directory: where they live; made with its parents.
        keep: how many of the latest to keep; None keeps all.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from thinkml.checkpoint import Checkpointer
        >>> checkpointer = Checkpointer(tempfile.mkdtemp(), keep=2)
        >>> for step in (10, 20, 30):
        ...     checkpointer.save(step, {'w': jnp.full(3, step)}, {'epoch': step // 10})
        >>> checkpointer.wait()
        >>> state, metadata = checkpointer.restore(30, template={'w': jnp.zeros(3, int)})
        >>> checkpointer.steps(), metadata
        ([20, 30], {'epoch': 3})
        >>> checkpointer.close()
    """

    def __init__(self, directory: str | pathlib.Path, keep: int | None = 3):
        self.directory = pathlib.Path(directory).absolute()
        ocp = _orbax()
        self._manager = _guarded(
            lambda: ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
                item_names=('state', 'about'),
            ),
            f'directory: {self.directory} could not be opened',
        )

    def save(self, step: int, state: PyTree, metadata: Mapping[str, Any] | None = None) -> None:
        """Starts to write a checkpoint; waits for the one before it.

        Checkpoints of this step and of later ones are dropped first: the run went back, and they
        are no longer its future.

        Args:
            step: its number.
            state: any pytree of arrays, typed PRNG keys and Python numbers.
            metadata: plain JSON values.

        Raises:
            CheckpointError: if this save can't be started, or the one before it failed.
        """
        message = f'step: {step} could not be written to {self.directory}'
        index, arrays = _pack(state)
        about = {
            'index': {name: entry.to_json() for name, entry in index.items()},
            'metadata': dict(metadata or {}),
        }
        _guarded(lambda: json.dumps(about), message)  # now, not in the background
        self.wait()
        for later in self.steps():
            if later >= step:
                self._manager.delete(later)
        args = _orbax().args.Composite(
            state=_orbax().args.PyTreeSave(arrays), about=_orbax().args.JsonSave(about)
        )
        _guarded(lambda: self._manager.save(step, args=args), message)

    def wait(self) -> None:
        """Blocks until every save is on disk.

        Raises:
            CheckpointError: if one failed.
        """
        _guarded(
            self._manager.wait_until_finished,
            f'directory: a checkpoint could not be written to {self.directory}',
        )

    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The highest step that can be restored; None where there is none."""
        return max(self.steps(), default=None)

    def restore(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
            step: one of `steps`.
            template: a pytree of arrays or `jax.ShapeDtypeStruct`; its structure, and its leaves'
                shardings, are what comes back.

        Returns:
            The state and its metadata.

        Raises:
            CheckpointError: if there is no such step, it can't be read, or it doesn't fit the
                template. Names every leaf that doesn't, with both shapes.
        """
        if step not in self.steps():
            raise CheckpointError(
                f'step: got {step}, expected one of {self.steps()} in {self.directory}.'
            )

        def read() -> tuple[dict[str, _Entry], dict[str, Any], dict[str, Any]]:
            args = _orbax().args
            composite = args.Composite(about=args.JsonRestore())
            about = self._manager.restore(step, args=composite)['about']
            index = {name: _Entry.from_json(entry) for name, entry in about['index'].items()}
            targets = _targets(index, template, f'step {step} of {self.directory}')
            stored = {name: entry for name, entry in index.items() if not entry.is_empty}
            composite = args.Composite(state=_restore(stored, targets))
            return index, self._manager.restore(step, args=composite)['state'], about['metadata']

        message = f'step: {step} could not be read from {self.directory}'
        index, arrays, metadata = _guarded(read, message)
        return _unpack(index, arrays, template), metadata

    def close(self) -> None:
        """Waits for what is being written and lets go of the directory.

        Raises:
            CheckpointError: if a save failed.
        """
        self.wait()
        self._manager.close()


def _orbax() -> Any:
    """Orbax takes as long to import as a small model to train: not before it is needed."""
    import orbax.checkpoint

    return orbax.checkpoint


def _guarded(call: Callable[[], Result], message: str) -> Result:
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


def _entry_of(leaf: Any) -> _Entry:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        impls: list[str] = []

        def data_of(key: jax.Array) -> jax.Array:  # traced, for leaves that have only a shape
            impls.append(str(jax.random.key_impl(key)))
            return jax.random.key_data(key)

        data = jax.eval_shape(data_of, leaf)
        return _Entry(data.shape, data.dtype.name, key_impl=impls[0])
    return _Entry(
        tuple(leaf.shape),
        jnp.dtype(leaf.dtype).name,
        weak=getattr(leaf, 'weak_type', False),
        numpy=isinstance(leaf, np.ndarray),
    )


def _pack(tree: PyTree) -> tuple[dict[str, _Entry], dict[str, Any]]:
    """The index, and the arrays Orbax can hold."""
    index: dict[str, _Entry] = {}
    arrays: dict[str, Any] = {}
    for name, leaf in _named_leaves(tree).items():
        index[name] = entry = _entry_of(leaf)
        if not entry.is_empty:
            arrays[name] = jax.random.key_data(leaf) if entry.key_impl else leaf
    return index, arrays


def _unpack(index: dict[str, _Entry], arrays: Mapping[str, Any], template: PyTree) -> PyTree:
    leaves = {name: _restored(name, entry, arrays.get(name)) for name, entry in index.items()}
    if template is None:
        return leaves
    return jax.tree.unflatten(
        jax.tree.structure(template), [leaves[name] for name in _named_leaves(template)]
    )


def _restored(name: str, entry: _Entry, value: Any) -> jax.Array | np.ndarray:
    value = np.zeros(entry.shape, entry.dtype) if value is None else value
    if entry.numpy:
        return np.asarray(value)
    array = jnp.asarray(value)
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
    return jax.device_put(weak.at[...].set(array), array.sharding)


def _targets(index: dict[str, _Entry], template: PyTree, where: str) -> dict[str, Any]:
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


def _restore(index: dict[str, _Entry], targets: Mapping[str, Any]) -> Any:
    """Arguments that restore arrays onto the targets' shardings, or into numpy arrays.

    Without either, Orbax puts them where they were saved from, which may not exist here.
    """
    ocp = _orbax()

    def how(name: str, entry: _Entry) -> Any:
        sharding = getattr(targets.get(name), 'sharding', None)
        if sharding is None or entry.key_impl:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=sharding)

    return ocp.args.PyTreeRestore(restore_args={n: how(n, entry) for n, entry in index.items()})


def _check_declared(index: dict[str, _Entry], stored: Mapping[str, Any]) -> None:
    """Shapes are compared before memory is taken for them."""
    declared = {name: (entry.shape, entry.dtype) for name, entry in index.items()}
    found = {name: (tuple(a.shape), jnp.dtype(a.dtype).name) for name, a in stored.items()}
    if declared != found:
        names = sorted(n for n in declared | found if declared.get(n) != found.get(n))
        raise ValueError(f'{_INDEX} and the arrays differ in {", ".join(names[:5])}')
