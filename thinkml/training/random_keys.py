"""Random keys of a run, drawn from its seed."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from thinkml.core.xla.jit import Jit


class RunKeys(NamedTuple):
    """The keys of a run.

    Attributes:
        init: for parameters that the model draws when it is initialized.
        step: for what is random in training steps.
        shuffle: for the order of the rows.
    """

    init: jax.Array
    step: jax.Array
    shuffle: jax.Array


def run_keys(seed: int) -> RunKeys:
    """Returns the keys that belong to a seed."""
    settings: Any = jax.config  # its attributes are unknown to type checkers
    # The key of JAX's compiled programs does not include this setting, so it is an argument.
    return RunKeys(*_keys(np.uint32(seed), settings.jax_default_prng_impl))


@functools.partial(Jit, static_argnums=(1,))
def _keys(seed: jax.typing.ArrayLike, implementation: str) -> tuple[jax.Array, ...]:
    return tuple(jax.random.split(jax.random.key(seed, impl=implementation), 3))
