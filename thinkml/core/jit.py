"""`jax.jit` with the compiler options that suit the backend."""

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import jax

from thinkml.core.convolutions import compiler_options

P = ParamSpec('P')
R = TypeVar('R')


class Jit(Generic[P, R]):
    """``jax.jit`` of a function with `compiler_options`, asked for when it is first called.

    Args:
        function: what to compile. It can't be called inside another ``jax.jit``.
        settings: further arguments of ``jax.jit``.

    Attributes:
        jitted: what ``jax.jit`` returned.
    """

    def __init__(self, function: Callable[P, R], **settings: Any):
        functools.update_wrapper(self, function)
        self._function, self._settings = function, settings

    @functools.cached_property
    def jitted(self) -> Any:
        return jax.jit(self._function, compiler_options=compiler_options(), **self._settings)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.jitted(*args, **kwargs)

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Lowered:
        return self.jitted.lower(*args, **kwargs)
