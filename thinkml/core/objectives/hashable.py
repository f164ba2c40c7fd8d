"""Hashable functions: the users' functions as keys by which compiled programs are looked up."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar('Function', bound=Callable[..., Any])


def is_hashable(value: Any) -> bool:
    """Returns True if a value has a hash, which one that contains arrays has not."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def hashable(function: Function) -> 'Function | ByIdentity':
    """Returns a function itself if it has a hash, else one that is compared by identity.

    Example:
        >>> import dataclasses
        >>> from thinkml.core.objectives.hashable import hashable
        >>> @dataclasses.dataclass
        ... class Scaled:
        ...     factor: float
        ...     def __call__(self, x):
        ...         return self.factor * x
        >>> double = Scaled(2.0)
        >>> hashable(double)(3.0), hashable(double) == hashable(double), hashable(max) is max
        (6.0, True, True)
    """
    return function if is_hashable(function) else ByIdentity(function)


@dataclasses.dataclass(frozen=True, eq=False)
class ByIdentity:
    """A function that is compared and hashed by the identity of an object that has no hash."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)
