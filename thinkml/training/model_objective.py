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
    make_augmentation,
)
from thinkml.core.model.sown_values import Collected, SownValues, collecting_sown
from thinkml.core.objectives.metric_table import TRAINING_ONLY_METRICS
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.core.train.scoring import objective_apply
from thinkml.errors import ConfigError, ModelTypeError
from thinkml.training.config import TrainingConfig
from thinkml.training.objective import (
    TrainingObjective,
    augmented_labels,
    label_probe,
    name_problem,
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
    augment = make_augmentation(request.augmentation, x, 'regression', 1)
    if augment is not None:
        augmented_labels(augment, x, jax.tree.map(label_probe, y))
    loss = ObjectiveLoss(objective, has_labels=not has_no_labels(request))
    names, sown = _trace(model, loss, x, y, get_compute_dtype(config.precision))
    for name in names:
        if name in ('loss', *of_step, *training_metrics) or name_problem(name):
            raise ConfigError(
                f'loss_fn: {objective.name} returned a value called {name!r}, which is the name of '
                'something else in the history. Give it another name.'
            )
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
    rows = jax.tree.map(label_probe, x)
    batch = loss.batch(
        rows, jax.tree.map(label_probe, y), jax.ShapeDtypeStruct((PROBE_ROWS,), np.float32)
    )
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

        try:
            found.append(jax.eval_shape(run, key, batch))
        except (ConfigError, ModelTypeError) as error:
            raise type(error)(with_rows(error)) from error
        except Exception as error:
            mode = 'training' if train else 'evaluation'
            raise ConfigError(
                f'loss_fn: {loss.objective.name} failed with the model in {mode} mode: '
                f'{type(error).__name__}: {with_rows(error)}'
            ) from error
    if names[0] != names[-1]:
        raise ConfigError(
            f'loss_fn: {loss.objective.name} returned the values {", ".join(names[0])} in training '
            f'mode and {", ".join(names[-1])} in evaluation mode, expected the same.'
        )
    return names[0], found[0]
