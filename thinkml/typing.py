"""Types that recur in signatures: pytrees, models, inputs, labels and arrays.

They are names for readers. A type checker takes each as `typing.Any`; values are checked when a
function is called, with an error that names the argument.
"""

from typing import Any, TypeAlias

PyTree: TypeAlias = Any
"""Arrays in any nesting of containers, as `jax.tree.map` takes them."""

Model: TypeAlias = Any
"""A model that `thinkml.core.functionalize` takes: a `flax.nnx.Module` or a wrapped one."""

Inputs: TypeAlias = Any
"""Inputs that `thinkml.data.open_rows` takes, one row per example: arrays, frames, files, trees."""

Labels: TypeAlias = Any
"""Labels or targets, one row per example: an array, a list, a column of a frame."""

Array: TypeAlias = Any
"""An array of NumPy, or of JAX inside a compiled function."""
