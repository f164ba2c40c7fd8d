"""Compiled programs: `jax.jit` with options that suit the backend, and a bound on what is kept."""

import contextlib
import contextvars
import functools
import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import jax
from jax._src import config  # what programs depend on besides their arguments, nowhere else to read
from jax._src.core import trace_state_clean

from thinkml.core.xla.cpu_convolutions import compiler_options

P = ParamSpec('P')
R = TypeVar('R')

# Linux gives a process 65,530 memory maps; XLA:CPU takes about 20 for a small program.
MOST_KEPT = 128

# The user's own programs take maps too: drawing a `flax.nnx` model compiles several for each layer.
MOST_COMPILED = 512
_COMPILED = '/jax/core/compile/backend_compile_duration'


class Jit(Generic[P, R]):
    """``jax.jit`` of a function with `compiler_options`, whose programs don't pile up.

    ``jax.jit`` keeps what it compiled for as long as the function lives. This class keeps the
    `MOST_KEPT` programs that all its functions used last, and those held by `holding_programs`.
    JAX's own caches (single operations on arrays, other functions) are cleared each time JAX has
    compiled `MOST_COMPILED` programs.

    Args:
        function: what to compile. Called inside another ``jax.jit`` it is a part of that.
        static_argnums: places of arguments that are not arrays but hashable values. Each value
            makes another program.
        static_argnames: names of such arguments.
        donate_argnums: places of arguments whose memory the results may take.

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
    ):
        functools.update_wrapper(self, function)
        self._function: Callable[..., R] = function
        self._signature = inspect.signature(function)
        names = list(self._signature.parameters)
        self._static = {*_places(static_argnums), *map(names.index, static_argnames)}
        self._donated = _places(donate_argnums)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not trace_state_clean() or config.disable_jit.value:
            return self._function(*args, **kwargs)
        placed = self._placed(args, kwargs)
        static, dynamic = self._split(placed)
        leaves, structure = jax.tree.flatten(dynamic)
        kinds = tuple(map(_kind, leaves))
        key = _Key((self, static, structure, kinds, trace_settings()))
        program = _programs.find(key) or _programs.add(key, self.lower(*placed).compile())
        return program.run(*dynamic)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Returns the program for these arguments, not yet compiled; it is not kept."""
        args = self._placed(args, kwargs)
        static, dynamic = self._split(args)

        # A new function each time: JAX forgets what it traced of it when it is gone.
        @functools.wraps(self._function)
        def function(*dynamic: Any) -> R:
            given = dict(static)
            rest = iter(dynamic)
            places = range(len(args))
            return self._function(*(given[i] if i in given else next(rest) for i in places))

        del function.__wrapped__  # JAX takes argument names from its signature
        numbers = [i for i in range(len(args)) if i not in self._static]
        donated = tuple(numbers.index(i) for i in self._donated)
        options = compiler_options()
        jitted = jax.jit(function, donate_argnums=donated, compiler_options=options)
        return jitted.lower(*dynamic)

    def _placed(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        return self._signature.bind(*args, **kwargs).args if kwargs else args

    def _split(self, args: tuple[Any, ...]) -> tuple[tuple[tuple[int, Any], ...], list[Any]]:
        """Returns the static arguments with their places, and the others."""
        static = tuple((i, arg) for i, arg in enumerate(args) if i in self._static)
        return static, [arg for i, arg in enumerate(args) if i not in self._static]


def trace_settings() -> Hashable:
    """Returns JAX's settings that programs depend on, such as those of precision and device."""
    return config.trace_context(), config.default_device.value


def _places(argnums: int | Sequence[int]) -> Sequence[int]:
    return (argnums,) if isinstance(argnums, int) else argnums


def _kind(leaf: Any) -> Hashable:
    """Returns what a program depends on: an array's shape, dtype and, if committed, sharding."""
    if not _is_array(type(leaf)):
        return jax.typeof(leaf)
    kind: Any = getattr(leaf, 'aval')  # noqa: B009 (not in the types; jax.typeof takes 3 us)
    return (kind, leaf.sharding) if leaf.committed else kind


@functools.cache
def _is_array(kind: type) -> bool:
    return issubclass(kind, jax.Array)  # takes 0.4 us


class _Key:
    """A key to find a program by. Its hash goes over all arrays, so it is computed once."""

    __slots__ = ('_hash', 'parts')

    def __init__(self, parts: tuple[Hashable, ...]):
        self.parts, self._hash = parts, hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.parts == other.parts


class _Program:
    """A compiled program with its key; it can be referred to weakly."""

    __slots__ = ('__weakref__', 'key', 'run')

    def __init__(self, key: _Key, run: Callable[..., Any]):
        self.key, self.run = key, run


class _Programs:
    """A table of the process's programs: those used last and those that are held."""

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
            jax.clear_caches()  # they hold none of these programs
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
    """Keeps the programs that are called in the block until it ends, however many others are used.

    Args:
        is_held: False for what is called in the block but is not part of it: a callback may use
            any number of programs.
    """
    before = _held.set(set() if is_held else None)
    try:
        yield
    finally:
        _held.reset(before)


def forget_programs() -> None:
    """Forgets all programs but those that are held. What is called next is compiled again."""
    _programs.forget()
