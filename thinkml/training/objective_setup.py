"""The objective of a training: the one of the request, checked on the model, with its updates."""

from typing import Any

from thinkml.core import Objective, get_compute_dtype
from thinkml.core.model.dense_output import check_chunk
from thinkml.core.model.functional import HeadOutputs, Outputs, sown_by
from thinkml.core.model.output_range import misread_outputs
from thinkml.core.model.sown_values import SownValues
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data.head_targets import by_head
from thinkml.data.inputs import probe_of
from thinkml.errors import warn_user
from thinkml.tasks import AnyTask, Composite
from thinkml.training.aux_losses import with_aux_losses
from thinkml.training.config import TrainingConfig
from thinkml.training.custom_step import add_step, make_step_objective
from thinkml.training.input_checks import first_rows
from thinkml.training.model_objective import make_model_objective
from thinkml.training.objective import TrainingObjective, make_head_objective, make_objective
from thinkml.training.optimizer_setup import check_optimizer
from thinkml.training.training_data import InputData, TrainRequest
from thinkml.typing import Model, PyTree


def make_any_objective(
    model: Model,
    data: InputData,
    outputs: Outputs | HeadOutputs,
    task: AnyTask,
    y: Any,
    request: TrainRequest,
    config: TrainingConfig,
    training_metrics: tuple[str, ...],
) -> TrainingObjective:
    """Returns the objective of a request: of outputs and targets, of the model, or of a step.

    Args:
        model: the user's object.
        data: the inputs of the training.
        outputs: the model's outputs.
        task: the meaning of the outputs.
        y: encoded targets, or the first of them.
        request: the arguments of ``train``.
        config: the settings.
        training_metrics: metrics of training that callbacks need in the history.

    Raises:
        ConfigError: for a loss, metric, augmentation or step that is unknown or does not fit.

    Warns:
        ThinkMLWarning: for outputs that the loss misreads, and for sown values in no loss.
    """
    if request.step is not None:
        training_metrics = ()  # a step records its own values alone
    probe = probe_of(data.inputs, PROBE_ROWS)
    some = first_rows(data.x, probe)
    if request.sees_model:
        objective, sown = _objective_of_model(model, some, y, request, config, training_metrics)
    else:
        objective = _objective_of_outputs(task, some, y, request, training_metrics)
        _warn_of_outputs(outputs, task, objective)
        dtype = get_compute_dtype(config.precision)
        check_chunk(objective.loss_fn, model, probe, dtype)
        sown = sown_by(model, probe, 'X_train', dtype)
    return _with_updates(objective, sown, model, probe, y, request, config)


def _objective_of_model(
    model: Model,
    x: Any,
    y: Any,
    request: TrainRequest,
    config: TrainingConfig,
    training_metrics: tuple[str, ...],
) -> tuple[TrainingObjective, SownValues]:
    """Returns the objective of a training whose objective or step calls the model."""
    if isinstance(request.loss_fn, Objective):
        return make_model_objective(model, x, y, request, config, training_metrics)
    return make_step_objective(x, y, request), {}


def _objective_of_outputs(
    task: AnyTask, x: Any, y: Any, request: TrainRequest, training_metrics: tuple[str, ...]
) -> TrainingObjective:
    if isinstance(task, Composite):
        return make_head_objective(task, x, y, request, training_metrics)
    return make_objective(
        task, x, y,
        loss_fn=request.loss_fn, metrics=request.metrics, augmentation=request.augmentation,
        training_metrics=training_metrics,
    )  # fmt: skip


def _warn_of_outputs(
    outputs: Outputs | HeadOutputs, task: AnyTask, objective: TrainingObjective
) -> None:
    by_name: dict[Any, Outputs] = {None: outputs} if isinstance(outputs, Outputs) else outputs.heads
    for name, head, _ in by_head(task, None):
        of_head = objective if name is None else objective.heads[name]
        if misread := misread_outputs(by_name[name].range, head, of_head.is_custom_loss):
            warn_user(misread if name is None else f'output {name!r}: {misread}')


def _with_updates(
    objective: TrainingObjective,
    sown: SownValues,
    model: Model,
    x: PyTree,
    y: Any,
    request: TrainRequest,
    config: TrainingConfig,
) -> TrainingObjective:
    """Returns an objective with its auxiliary losses, or with its custom step."""
    if request.step is not None:
        return add_step(objective, model, x, y, request, config)
    check_optimizer(model, x, config)
    return with_aux_losses(objective, config.aux_losses, sown)
