"""RunParts: the model, the program, the data and the first state of a run."""

from typing import NamedTuple

import jax

from thinkml.core import Feed, FunctionalModel, TrainState
from thinkml.core.model.partly_frozen import learning_rates_of, scaled_updates
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout
from thinkml.errors import ModelTypeError
from thinkml.model_record import record_of
from thinkml.training.config import TrainingConfig
from thinkml.training.data_feed import make_feed
from thinkml.training.optimizer_setup import functional_of, optimizer_of
from thinkml.training.optimizer_state import restore_optimizer
from thinkml.training.program import (
    MemorySavings,
    initial_state,
    make_program,
    total_steps_of,
    written_unreplicated,
)
from thinkml.training.random_keys import run_keys
from thinkml.training.run import Program, Validation
from thinkml.training.training_setup import TrainingSetup
from thinkml.training.validation_sets import SetName
from thinkml.typing import Model


class RunParts(NamedTuple):
    """A run before its first step, in parts.

    Attributes:
        functional: the model as functions and arrays.
        program: the functions that are compiled.
        state: the state before the first step.
        feed: the training batches.
        validations: what is evaluated after each epoch, by the name of the set.
        total_steps: steps of the whole run; None if only the end of an epoch tells.
    """

    functional: FunctionalModel
    program: Program
    state: TrainState
    feed: Feed
    validations: dict[SetName, Validation]
    total_steps: int | None


def make_parts(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    layout: Layout = ONE_DEVICE,
    savings: MemorySavings = MemorySavings(),  # noqa: B008 (immutable)
) -> RunParts:
    """Places the data, and makes the program and the first state of a run.

    Args:
        model: the user's object.
        setup: the data, the task and the objective.
        config: the settings.
        layout: the devices.
        savings: how memory is saved.

    Raises:
        ConfigError: if the schedule needs a number of steps that is unknown.
        DataError: if the data can not be read.
        ModelTypeError: if the model has shapes instead of arrays.
    """
    keys = run_keys(config.seed)
    # Before the data, which may use the memory that the parameters leave.
    functional = functional_of(model, setup.spec, keys.init, config)
    leaves = jax.tree.leaves((functional.params, functional.model_state))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise ModelTypeError(
            'model: its arrays are only shapes, as nnx.eval_shape makes them. They are enough for '
            'trainer.plan; to train, make the model without nnx.eval_shape.'
        )
    feed, validations = make_feed(setup, config, keys.shuffle, layout)
    total_steps = total_steps_of(feed, config)
    tx = optimizer_of(config)
    rates = learning_rates_of(functional)
    tx = tx if rates is None else scaled_updates(tx, rates)
    state = initial_state(functional, tx, keys.step, config, total_steps, layout)
    record = record_of(model)
    if record.continues and record.optimizer is not None:
        state = restore_optimizer(state, record.optimizer)
    program = make_program(setup, functional.apply, tx, feed, validations, config, layout, savings)
    return RunParts(
        functional=written_unreplicated(functional, layout),
        program=program,
        state=state,
        feed=feed,
        validations=validations,
        total_steps=total_steps,
    )
