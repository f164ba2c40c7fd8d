"""Optimizer setup: the optimizer that the settings name, its numbers, and what it trains."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from thinkml.core import FunctionalModel, functionalize, get_compute_dtype, make_optimizer
from thinkml.core.model.frozen_parameters import with_frozen
from thinkml.core.model.parameter_paths import first_matches
from thinkml.core.train.hyperparameters import GROUP_DECAYS, GROUP_RATES
from thinkml.core.train.optimizers import check_update
from thinkml.training.config import TrainingConfig
from thinkml.training.parameter_groups import (
    has_built_in_rate,
    parameter_groups,
    trained_groups,
    without_numbers,
)
from thinkml.typing import Model, PyTree


def optimizer_of(config: TrainingConfig) -> optax.GradientTransformation:
    """Returns the optax transformation that the settings name."""
    return make_optimizer(
        without_numbers(config.optimizer),
        schedule=_schedule(config),
        clip_gradients=config.gradient_clip_norm is not None,
    )


def needs_length(config: TrainingConfig) -> bool:
    """Returns True if the learning rate depends on the length of the run."""
    return _schedule(config) != 'constant' and not callable(config.learning_rate)


def _schedule(config: TrainingConfig) -> Any:
    if callable(config.learning_rate):
        return config.learning_rate
    plateau = config.lr_schedule == 'reduce_on_plateau'
    return 'constant' if plateau else config.lr_schedule


def hyperparams_of(config: TrainingConfig, total_steps: int | None) -> dict[str, Any]:
    """Returns the numbers of the optimizer, see `thinkml.core.set_hyperparams`."""
    numbers: dict[str, Any] = {'gradient_clip_norm': config.gradient_clip_norm}
    if has_built_in_rate(config.optimizer):
        return numbers
    rate = config.learning_rate
    numbers |= {
        'learning_rate': rate if isinstance(rate, int | float) else None,
        'weight_decay': config.weight_decay,
    }
    if isinstance(config.optimizer, Mapping):
        groups = trained_groups(config.optimizer).values()
        shared = [-1.0 if group.takes_rate else 0.0 for group in groups]
        numbers |= {
            GROUP_RATES: _or_shared([group.learning_rate for group in groups], shared),
            GROUP_DECAYS: _or_shared([group.weight_decay for group in groups], shared),
        }
    if needs_length(config):
        numbers['total_steps'] = total_steps
    if not callable(config.learning_rate):
        numbers['warmup_steps'] = config.warmup_steps
    return numbers


def _or_shared(numbers: list[float | None], shared: list[float]) -> list[float]:
    return [
        other if number is None else float(number)
        for number, other in zip(numbers, shared, strict=True)
    ]


def functional_of(
    model: Model, x: PyTree, key: jax.Array, config: TrainingConfig
) -> FunctionalModel:
    """Returns a model as functions and arrays, with its frozen parameters as part of its state.

    Args:
        model: the user's object.
        x: inputs, or their shapes.
        key: the PRNG key of parameters that are made.
        config: the settings.

    Raises:
        ConfigError: if patterns do not fit the paths of the parameters.
    """
    functional = functionalize(model, x, key, get_compute_dtype(config.precision))
    is_frozen = _is_frozen(functional.params, config)
    return functional if is_frozen is None else with_frozen(functional, is_frozen)


def _is_frozen(params: PyTree, config: TrainingConfig) -> PyTree:
    """Returns True for each parameter that is not trained; None if all are."""
    if not isinstance(config.optimizer, Mapping):
        return None
    groups = parameter_groups(config.optimizer)
    frozen = {number for number, group in enumerate(groups.values()) if group.is_frozen}
    numbers = first_matches(list(groups), params)
    return jax.tree.map(lambda number: number in frozen, numbers) if frozen else None


def check_optimizer(model: Model, x: PyTree, config: TrainingConfig) -> None:
    """Traces an update of the parameters; an optimizer by name is known to work.

    Args:
        model: the user's object.
        x: inputs, or their shapes.
        config: the settings.

    Raises:
        ConfigError: if the optimizer does not work for these parameters.
    """
    if isinstance(config.optimizer, str):
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key: functionalize(model, x, key).params, key)
    if (is_frozen := _is_frozen(params, config)) is not None:
        params = jax.tree.map(lambda frozen, leaf: None if frozen else leaf, is_frozen, params)
    check_update(optimizer_of(config), params, **hyperparams_of(config, total_steps=1))
