"""Sown values: values that a model stores during a call, beside its outputs."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from thinkml.typing import PyTree

LINEN_COLLECTION = 'losses'
"""The collection of the values that a Linen module sows."""

SownValues = dict[str, tuple[jax.Array, ...]]
"""The sown values by name; several layers may sow the same name."""


class Collected(NamedTuple):
    """The state of a model after a call, and the values that it sowed.

    Attributes:
        model_state: the state, without sown values.
        sown: the sown values by name.
    """

    model_state: PyTree
    sown: SownValues


def sown_by_name(tree: Mapping[Any, Any]) -> SownValues:
    """Returns the arrays of nested dicts of sown values by their last name, in a fixed order.

    Objects that are not numbers or arrays are left out.
    """
    found: SownValues = {}
    for name, value in sorted(tree.items(), key=lambda item: str(item[0])):
        if isinstance(value, Mapping):
            parts = sown_by_name(value)
        else:
            numbers = jax.Array | np.ndarray | np.number | float | int
            leaves = [leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, numbers)]
            parts = {str(name): tuple(map(jax.numpy.asarray, leaves))}
        for part, arrays in parts.items():
            found[part] = (*found.get(part, ()), *arrays)
    return {name: arrays for name, arrays in found.items() if arrays}


def collecting_sown(apply: Any) -> Any:
    """Returns the forward pass whose updated state in training is a `Collected`.

    Args:
        apply: a forward pass, see `thinkml.core.ApplyFn`. It is returned itself if its model can
            not sow values, as a plain function can't.
    """
    return apply.collecting() if hasattr(apply, 'collecting') else apply


@contextlib.contextmanager
def sowing_allowed() -> Iterator[None]:
    """Hides flax's warning that a module sows outside of ``nnx.capture``.

    A capture adds variables to all modules, which the axes of an ``nnx.scan`` may not provide for.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', r"\s*Using 'Module.sow", DeprecationWarning)
        yield
