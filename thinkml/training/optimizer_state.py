"""Optimizer state: its arrays by name for model files, and how a later run restores them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from thinkml.core import TrainState
from thinkml.core.parallel.sharding import put_like
from thinkml.errors import ConfigError, problems
from thinkml.typing import PyTree

Array = jax.Array | np.ndarray


def optimizer_arrays(state: TrainState) -> dict[str, Any]:
    """Returns an optimizer's arrays by name: moments and counts, without its settings."""
    paths = jax.tree_util.tree_leaves_with_path(_without_settings(state.opt_state))
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def restore_optimizer(state: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    """Returns the state with an optimizer's arrays from before; the settings are those of the run.

    A schedule starts from its beginning, as the run does.

    Raises:
        ConfigError: if the arrays belong to another optimizer or to other parameters. Names them.
    """
    expected = optimizer_arrays(state)
    differing = sorted(
        name
        for name in expected.keys() | arrays.keys()
        if _shape_and_dtype(expected.get(name)) != _shape_and_dtype(arrays.get(name))
    )
    if differing:
        raise ConfigError(
            problems(
                'optimizer: its state in the model file belongs to another optimizer or other '
                'parameters; load the model without include_optimizer=True, or train with the '
                'same optimizer and model. These differ:',
                differing[:10],
            )
        )
    opt_state = state.opt_state
    saved = jax.tree.unflatten(
        jax.tree.structure(_without_settings(opt_state)), [arrays[name] for name in expected]
    )
    copied = jax.tree.map(jax.numpy.copy, saved)  # training donates its arrays
    copied = jax.tree.map(put_like, copied, _without_settings(opt_state))
    if hasattr(opt_state, 'inner_state'):
        copied = opt_state._replace(inner_state=copied)
    return state.replace(opt_state=copied)


def _without_settings(opt_state: PyTree) -> PyTree:
    return getattr(opt_state, 'inner_state', opt_state)


def _shape_and_dtype(array: Array | None) -> tuple[tuple[int, ...], np.dtype] | None:
    return None if array is None else (array.shape, array.dtype)
