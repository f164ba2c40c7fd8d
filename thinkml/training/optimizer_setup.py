"""Optimizer setup: the optimizer that the settings name, and its numbers."""

from typing import Any

import jax
import optax

from thinkml.core import functionalize, make_optimizer
from thinkml.core.train.optimizers import check_update
from thinkml.training.config import TrainingConfig
from thinkml.typing import Model, PyTree


def optimizer_of(config: TrainingConfig) -> optax.GradientTransformation:
    """Returns the optax transformation that the settings name."""
    return make_optimizer(
        config.optimizer,
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


def hyperparams_of(config: TrainingConfig, total_steps: int | None) -> dict[str, float | None]:
    """Returns the numbers of the optimizer, see `thinkml.core.set_hyperparams`."""
    numbers: dict[str, float | None] = {'gradient_clip_norm': config.gradient_clip_norm}
    if hasattr(config.optimizer, 'update'):
        return numbers
    rate = config.learning_rate
    numbers |= {
        'learning_rate': rate if isinstance(rate, int | float) else None,
        'weight_decay': config.weight_decay,
    }
    if needs_length(config):
        numbers['total_steps'] = total_steps
    if not callable(config.learning_rate):
        numbers['warmup_steps'] = config.warmup_steps
    return numbers


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
    check_update(optimizer_of(config), params, **hyperparams_of(config, total_steps=1))
