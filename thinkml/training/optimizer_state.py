"""An optimizer's state beyond its run: named, so that a file can hold it, and taken up again."""

from collections.abc import Mapping
from typing import Any

import jax

from thinkml.core import TrainState
from thinkml.core.parallel.sharding import put_like
from thinkml.errors import ConfigError, problems


def optimizer_arrays(state: TrainState) -> dict[str, Any]:
    """What an optimizer has learned of the gradients, by name: moments and counts, no settings."""
    paths = jax.tree_util.tree_leaves_with_path(_learned(state.opt_state))
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def take_up(state: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    """Returns the state with what an optimizer had learned before; settings are those of the run.

    A schedule begins anew, as the run does.

    Raises:
        ConfigError: if the arrays are of another optimizer or other parameters. Names them.
    """
    expected = optimizer_arrays(state)
    differing = sorted(
        name
        for name in expected.keys() | arrays.keys()
        if _like(expected.get(name)) != _like(arrays.get(name))
    )
    if differing:
        raise ConfigError(
            problems(
                'optimizer: its state in the model file is of another optimizer or other '
                'parameters; load the model without include_optimizer=True, or train with the '
                'same. These differ:',
                differing[:10],
            )
        )
    opt_state = state.opt_state
    learned = jax.tree.unflatten(
        jax.tree.structure(_learned(opt_state)), [arrays[name] for name in expected]
    )
    copied = jax.tree.map(jax.numpy.copy, learned)  # a training donates what it is given
    copied = jax.tree.map(put_like, copied, _learned(opt_state))
    if hasattr(opt_state, 'inner_state'):
        copied = opt_state._replace(inner_state=copied)
    return state.replace(opt_state=copied)


def _learned(opt_state: Any) -> Any:
    return getattr(opt_state, 'inner_state', opt_state)


def _like(array: Any) -> Any:
    return None if array is None else (array.shape, array.dtype)
