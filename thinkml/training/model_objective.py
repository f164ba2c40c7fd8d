"""The objective of a training whose loss calls the model, checked."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from thinkml.core import (
    Objective,
    ObjectiveLoss,
    functionalize,
    get_compute_dtype,
)
from thinkml.core.model.sown_values import Collected, SownValues, collecting_sown
from thinkml.core.objectives.metric_table import TRAINING_ONLY_METRICS
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.core.train.scoring import objective_apply
from thinkml.errors import ConfigError
from thinkml.training.config import TrainingConfig
from thinkml.training.metric_names import check_value_name
from thinkml.training.objective import TrainingObjective
from thinkml.training.objective_tracing import (
    make_row_augmentation,
    naming_failures,
    probe_batch,
)
from thinkml.training.training_data import TrainRequest, has_no_labels
from thinkml.typing import Model


def make_model_objective(
    model: Model,
    x: Any,
    y: np.ndarray,
    request: TrainRequest,
    config: TrainingConfig,
    training_metrics: Sequence[str] = (),
) -> tuple[TrainingObjective, SownValues]:
    """Returns the objective of a training whose loss calls the model, see `Objective`.

    The second value has the shapes and dtypes of what the model sows when it is called so.

    Args:
        model: the user's object.
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
        y: encoded targets, or the first of them.
        request: the arguments of ``train``.
        config: the settings.
        training_metrics: further metrics of training alone.

    Raises:
        ConfigError: if the function fails or returns something else than losses and values, or for
            arguments that do not go with an objective.
    """
    objective: Objective = request.loss_fn
    if objective.coupled and config.accumulate_steps > 1:
        raise ConfigError(
            f'accumulate_steps: got {config.accumulate_steps} beside a coupled objective, expected '
            '1: its loss depends on all rows of a batch together.'
        )
    of_step = [metric for metric in request.metrics or () if metric in TRAINING_ONLY_METRICS]
    if others := [metric for metric in request.metrics or () if metric not in of_step]:
        raise ConfigError(
            f'metrics: got {others[0]!r} beside an objective, expected none: the values that it '
            "returns beside the losses are recorded. Return (losses, {'name': values})."
        )
    augment = make_row_augmentation(request.augmentation, x, y)
    loss = ObjectiveLoss(objective, has_labels=not has_no_labels(request))
    names, sown = _trace(model, loss, x, y, get_compute_dtype(config.precision))
    for name in names:
        returned = f'loss_fn: {objective.name} returned a value called'
        check_value_name(name, returned, others=(*of_step, *training_metrics))
    traced = TrainingObjective(
        loss_fn=loss,
        loss_name=objective.name,
        is_custom_loss=True,
        is_default_loss=False,
        metrics=(),
        training_metrics=tuple(dict.fromkeys((*of_step, *training_metrics))),
        augment=augment,
        values=names,
    )
    return traced, sown


def _trace(
    model: Model, loss: ObjectiveLoss, x: Any, y: np.ndarray, dtype: Any
) -> tuple[tuple[str, ...], SownValues]:
    """Traces an objective in both modes; returns the names of its values, and the sown values."""
    batch = probe_batch(x, y, has_labels=loss.has_labels)
    names: list[tuple[str, ...]] = []
    found: list[SownValues] = []
    key = jax.eval_shape(lambda: jax.random.key(0))
    for train in (True, False):

        def run(key: jax.Array, batch: Any, train: bool = train) -> SownValues:
            functional = functionalize(model, batch.x, key, dtype)
            apply = collecting_sown(objective_apply(functional.apply, loss))
            arguments = (functional.params, functional.model_state, batch)
            result, state = apply(*arguments, key=key, train=train)
            names.append(tuple(loss.losses(result, PROBE_ROWS)[1]))
            return state.sown if isinstance(state, Collected) else {}

        mode = 'training' if train else 'evaluation'
        failed = f'loss_fn: {loss.objective.name} failed with the model in {mode} mode'
        with naming_failures(failed):
            found.append(jax.eval_shape(run, key, batch))
    if names[0] != names[-1]:
        raise ConfigError(
            f'loss_fn: {loss.objective.name} returned the values {", ".join(names[0])} in training '
            f'mode and {", ".join(names[-1])} in evaluation mode, expected the same.'
        )
    return names[0], found[0]
