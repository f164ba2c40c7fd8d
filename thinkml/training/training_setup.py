"""TrainingSetup: the checked data, task and objective of a training."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from thinkml.core import check_trainable, get_compute_dtype
from thinkml.core.model.functional import Footprint, any_outputs_of, is_model, not_a_model
from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import is_batches, warn_of_other_ranges
from thinkml.data.inputs import probe_of
from thinkml.errors import ModelTypeError
from thinkml.model_record import InputSpec, ModelRecord, record_of
from thinkml.tasks import AnyTask
from thinkml.training.config import TrainingConfig
from thinkml.training.custom_step import check_no_validation
from thinkml.training.data_warnings import warn_of_label_column, warn_of_modes
from thinkml.training.input_checks import check_ids, check_pixels_of, check_shorter_rows
from thinkml.training.objective import TrainingObjective
from thinkml.training.objective_setup import make_any_objective
from thinkml.training.sequence_padding import pad_request
from thinkml.training.target_checks import check_all_targets, check_element_weights
from thinkml.training.task_setup import infer_task_and_targets
from thinkml.training.training_data import (
    Examples,
    InputData,
    Stream,
    TrainRequest,
    identify,
    make_examples,
    make_stream,
    open_inputs,
)
from thinkml.training.validation_sets import (
    SetName,
    by_argument,
    identify_sets,
    open_validation,
)
from thinkml.typing import Model, PyTree


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """A model's data, task and objective, all checked.

    Attributes:
        train: the training data.
        val: the validation sets by name; the name of a single one is None.
        inputs: the shape and dtype of a row of inputs.
        task: the meaning of the outputs.
        labels: an encoded label, as `jax.ShapeDtypeStruct` of a row; a dict of them by head.
        objective: loss, metrics and augmentation.
        fingerprint: identifies the training data.
        val_fingerprint: identifies the validation sets; empty for none.
        footprint: a rough estimate of the memory that the model takes.
    """

    train: Examples | Stream
    val: dict[SetName, Examples | Stream]
    inputs: InputSpec
    task: AnyTask
    labels: PyTree
    objective: TrainingObjective
    fingerprint: dict[str, Any]
    val_fingerprint: dict[str, Any]
    footprint: Footprint

    @property
    def spec(self) -> Any:
        """Returns a row of the inputs, as `jax.ShapeDtypeStruct`."""
        return probe_of(self.inputs, 1)


def make_setup(
    model: Model,
    request: TrainRequest,
    config: TrainingConfig,
    training_metrics: tuple[str, ...] = (),
) -> TrainingSetup:
    """Checks and encodes what the user passed.

    Args:
        model: see `thinkml.core.functionalize`.
        request: the arguments of ``train``.
        config: the settings.
        training_metrics: metrics of training that callbacks need in the history.

    Raises:
        DataError: for data that can not be trained on.
        ConfigError: for a loss, metric or augmentation that is unknown or does not fit the task.
        ModelTypeError: for an object that is not a model.
    """
    if not is_model(model):
        raise ModelTypeError(not_a_model(model))
    known = record_of(model)
    if isinstance(model, nnx.Module):
        warn_of_modes(model)
    request, lengths, of_sets = pad_request(model, request.with_text_names())
    data = _open_inputs(model, request, config, known)
    probe = probe_of(data.inputs, PROBE_ROWS)
    outputs = any_outputs_of(model, probe, 'X_train')
    check_shorter_rows(model, data.inputs, lengths)
    task, y = infer_task_and_targets(data, outputs, request, known.task)
    dtype = get_compute_dtype(config.precision)
    footprint = check_trainable(model, probe, outputs, 'X_train', compute_dtype=dtype)
    objective = make_any_objective(model, data, outputs, task, y, request, config, training_metrics)
    train, held_out = _open_examples(data, task, y, lengths, request, config, known)
    check_element_weights(train, objective)
    is_split = bool(held_out)
    val = held_out | open_validation(of_sets, request, data.inputs, task, config)
    check_no_validation(by_argument(val), objective, is_split=is_split)
    if not request.sees_model:
        check_all_targets(
            task, objective, outputs, y, train, val, is_split=is_split,
            is_given=isinstance(request.task, AnyTask),
        )  # fmt: skip
    if outputs.gathers:
        check_ids(model, probe, {'X_train': train, **by_argument(val)})
    return TrainingSetup(
        train=train,
        val=val,
        inputs=data.inputs,
        task=task,
        labels=jax.tree.map(lambda one: jax.ShapeDtypeStruct((1, *one.shape[1:]), one.dtype), y),
        objective=objective,
        fingerprint=identify(train, in_part=request.rows is not None),
        val_fingerprint=identify_sets(val, in_part=is_split),
        footprint=footprint,
    )


def _open_inputs(
    model: Model, request: TrainRequest, config: TrainingConfig, known: ModelRecord
) -> InputData:
    """Opens the inputs and labels, and compares them with those of earlier trainings."""
    before = request.known or known.input_spec
    if not is_batches(request.X_train):
        warn_of_label_column(request)
    data = open_inputs(request, config, None if before is None else before.names_alone())
    if before is not None:
        warn_of_other_ranges(data.inputs, before, 'X_train')
    check_pixels_of(model.model if isinstance(model, PartlyFrozen) else model, data.inputs)
    return data


def _open_examples(
    data: InputData,
    task: AnyTask,
    y: Any,
    lengths: np.ndarray | None,
    request: TrainRequest,
    config: TrainingConfig,
    known: ModelRecord,
) -> tuple[Examples | Stream, dict[SetName, Examples | Stream]]:
    """Returns the training data, and the validation set that was held out from it, if any."""
    if data.batches is not None:
        advice = '' if task == known.task else data.advice
        return make_stream(data.batches, task, request, config, advice), {}
    train, split = make_examples(data.x, y, task, request, config)
    train = train._replace(lengths=lengths)
    return train, {} if split is None else {None: split._replace(lengths=lengths)}
