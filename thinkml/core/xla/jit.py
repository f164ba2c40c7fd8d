"""Compiled programs: `jax.jit` with options for the backend, and a bounded program cache."""

import contextlib
import contextvars
import functools
import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import jax
from jax._src import config  # the settings that programs depend on; there is no public access
from jax._src.core import trace_state_clean

from thinkml.core.xla.cpu_convolutions import compiler_options
from thinkml.core.xla.target import device_of, tracing_for

P = ParamSpec('P')
R = TypeVar('R')

# Linux limits a process to 65,530 memory maps; XLA:CPU uses about 20 for a small program.
MOST_KEPT = 128

# The user's programs use maps too: initializing a `flax.nnx` model compiles several per layer.
MOST_COMPILED = 512
_COMPILED = '/jax/core/compile/backend_compile_duration'


class Jit(Generic[P, R]):
    """A function under ``jax.jit`` with `compiler_options` and a bounded program cache.

    ``jax.jit`` keeps its programs for as long as the function lives. This class keeps the
    `MOST_KEPT` most recently used programs of all its functions, and those held by
    `holding_programs`. JAX's own caches (single operations on arrays, other functions) are
    cleared each time JAX has compiled `MOST_COMPILED` programs.

    Args:
        function: the function to compile. Inside another ``jax.jit`` it becomes a part of that.
        static_argnums: positions of arguments that are hashable values, not arrays. Each value
            needs a program.
        static_argnames: names of such arguments.
        donate_argnums: positions of arguments whose memory the results may reuse.
        options: a function of all arguments that returns more options for the compiler.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.xla.jit import Jit
        >>> double = Jit(lambda x: 2 * x)
        >>> double(jnp.arange(3)).tolist()
        [0, 2, 4]
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        static_argnums: int | Sequence[int] = (),
        static_argnames: Sequence[str] = (),
        donate_argnums: int | Sequence[int] = (),
        options: Callable[..., Mapping[str, Any]] | None = None,
    ):
        functools.update_wrapper(self, function)
        self._function: Callable[..., R] = function
        self._signature = inspect.signature(function)
        names = list(self._signature.parameters)
        self._static = {*_positions(static_argnums), *map(names.index, static_argnames)}
        self._donated = _positions(donate_argnums)
        self._options = options or (lambda *_: {})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not trace_state_clean() or config.disable_jit.value:
            return self._function(*args, **kwargs)
        positional = self._positional(args, kwargs)
        static, dynamic = self._split(positional)
        leaves, structure = jax.tree.flatten(dynamic)
        signatures = tuple(map(_array_signature, leaves))
        key = _Key((self, static, structure, signatures, trace_settings()))
        program = _programs.find(key) or _programs.add(key, self.lower(*positional).compile())
        return program.run(*dynamic)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Returns the uncompiled program for these arguments; it is not cached."""
        args = self._positional(args, kwargs)
        static, dynamic = self._split(args)

        # A new function each time: JAX drops its traces when the function is deleted.
        @functools.wraps(self._function)
        def function(*dynamic: Any) -> R:
            static_at = dict(static)
            rest = iter(dynamic)
            positions = range(len(args))
            return self._function(
                *(static_at[i] if i in static_at else next(rest) for i in positions)
            )

        del function.__wrapped__  # JAX takes argument names from its signature
        dynamic_positions = [i for i in range(len(args)) if i not in self._static]
        donated = tuple(dynamic_positions.index(i) for i in self._donated)
        with tracing_for(device_of(dynamic)):
            options = {**compiler_options(), **self._options(*args)}
            jitted = jax.jit(function, donate_argnums=donated, compiler_options=options)
            return jitted.lower(*dynamic)

    def _positional(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        return self._signature.bind(*args, **kwargs).args if kwargs else args

    def _split(self, args: tuple[Any, ...]) -> tuple[tuple[tuple[int, Any], ...], list[Any]]:
        """Returns the static arguments with their positions, and the other arguments."""
        static = tuple((i, arg) for i, arg in enumerate(args) if i in self._static)
        return static, [arg for i, arg in enumerate(args) if i not in self._static]


def trace_settings() -> Hashable:
    """Returns the JAX settings that programs depend on, such as precision and default device."""
    return config.trace_context(), config.default_device.value


def _positions(argnums: int | Sequence[int]) -> Sequence[int]:
    return (argnums,) if isinstance(argnums, int) else argnums


def _array_signature(leaf: Any) -> Hashable:
    """Returns an array's shape, dtype and, if committed, sharding: its part of a program's key."""
    if not _is_array(type(leaf)):
        return jax.typeof(leaf)
    aval: Hashable = getattr(leaf, 'aval')  # noqa: B009 (not in the types; jax.typeof takes 3 us)
    return (aval, leaf.sharding) if leaf.committed else aval


@functools.cache
def _is_array(leaf_type: type) -> bool:
    return issubclass(leaf_type, jax.Array)  # takes 0.4 us


class _Key:
    """The key of a program. Its hash covers all arrays, so it is computed only once."""

    __slots__ = ('_hash', 'parts')

    def __init__(self, parts: tuple[Hashable, ...]):
        self.parts, self._hash = parts, hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.parts == other.parts


class _Program:
    """A compiled program with its key; it supports weak references."""

    __slots__ = ('__weakref__', 'key', 'run')

    def __init__(self, key: _Key, run: Callable[..., Any]):
        self.key, self.run = key, run


class _Programs:
    """The programs of this process: the most recently used ones and those that are held."""

    def __init__(self):
        self._lock = threading.Lock()
        self._recent: OrderedDict[_Key, _Program] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[_Key, _Program] = weakref.WeakValueDictionary()
        self._num_compiled = 0

    def find(self, key: _Key) -> _Program | None:
        program = self._alive.get(key)
        if program is not None:
            self._use(program)
        return program

    def add(self, key: _Key, run: Callable[..., Any]) -> _Program:
        program = self._alive[key] = _Program(key, run)
        self._use(program)
        if self._num_compiled >= MOST_COMPILED:
            self._num_compiled = 0
            jax.clear_caches()  # these caches hold none of the programs of this class
        return program

    def count(self, event: str, *_: Any, **__: Any) -> None:
        """Counts each program that JAX compiles, for ThinkML or for the user."""
        self._num_compiled += event == _COMPILED

    def _use(self, program: _Program) -> None:
        with self._lock:
            self._recent[program.key] = program
            self._recent.move_to_end(program.key)
            while len(self._recent) > MOST_KEPT:
                self._recent.popitem(last=False)
        held = _held.get()
        if held is not None:
            held.add(program)

    def forget(self) -> None:
        with self._lock:
            self._recent.clear()


_programs = _Programs()
jax.monitoring.register_event_duration_secs_listener(_programs.count)
_held: contextvars.ContextVar[set[_Program] | None] = contextvars.ContextVar('held', default=None)


@contextlib.contextmanager
def holding_programs(is_held: bool = True) -> Iterator[None]:
    """Keeps all programs that are called in the block until it ends, beyond `MOST_KEPT`.

    Args:
        is_held: False for an inner block whose programs are not kept, such as a callback, which
            may use any number of programs.
    """
    before = _held.set(set() if is_held else None)
    try:
        yield
    finally:
        _held.reset(before)


def forget_programs() -> None:
    """Drops all programs except those that are held. Later calls compile their programs again."""
    _programs.forget()
