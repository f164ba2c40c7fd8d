"""States of callbacks: what they remember, as arrays in checkpoints."""

from typing import Any, TypeGuard

import jax
import numpy as np

from thinkml.errors import ConfigError


def load_states(callbacks: list[Any], saved: dict[str, list[Any]]) -> None:
    """Restores what callbacks remembered, after they were started.

    Args:
        callbacks: the callbacks of the run.
        saved: the states of the same callbacks, from `Checkpoints.restore`; empty for none.

    Raises:
        ConfigError: if the structure of a state differs from the saved one, or it can not be saved.
    """
    now = states_of(callbacks)  # an error before the first step if one can not be saved
    for name, leaves in saved.items():
        if len(now[name]) != len(leaves):
            raise ConfigError(
                f'callbacks: the state_dict() of {name} has {len(now[name])} values, expected '
                f'{len(leaves)} as in the checkpoint: its structure must stay the same.'
            )
        callback = callbacks_with_state(callbacks)[name]
        before, structure = jax.tree.flatten(callback.state_dict())
        restored = [_as_before(*pair) for pair in zip(before, leaves, strict=True)]
        callback.load_state_dict(jax.tree.unflatten(structure, restored))


def callbacks_with_state(callbacks: list[Any]) -> dict[str, Any]:
    """Returns the callbacks that have a state, by a name that is the same in each run."""
    found: dict[str, Any] = {}
    for callback in callbacks:
        if hasattr(callback, 'state_dict'):
            name = type(callback).__name__
            count = sum(known.split(' ')[0] == name for known in found)
            found[f'{name} {count + 1}' if count else name] = callback
    return found


def states_of(callbacks: list[Any]) -> dict[str, list[Any]]:
    """Returns the leaves of their states; only the callbacks know the structure."""
    return {
        name: [_as_array(name, leaf) for leaf in jax.tree.leaves(callback.state_dict())]
        for name, callback in callbacks_with_state(callbacks).items()
    }


def _as_array(name: str, value: Any) -> Any:
    """Returns Python numbers with all their digits, which JAX would cut, and keys as numbers."""
    if isinstance(value, bool | int | float):
        return np.asarray(value)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise ConfigError(
            f'callbacks: the state_dict() of {name} holds a {type(value).__name__}, expected '
            'arrays and numbers.'
        )
    return jax.random.key_data(value) if _is_key(value) else value


def _as_before(before: Any, restored: Any) -> Any:
    if isinstance(before, bool | int | float | np.generic):
        return type(before)(restored)
    if _is_key(before):
        return jax.random.wrap_key_data(restored, impl=jax.random.key_impl(before))
    return restored


def _is_key(value: Any) -> TypeGuard[jax.Array]:
    return isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
