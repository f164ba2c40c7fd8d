"""The program of a run: its compiled functions and its first state."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Collection

from thinkml.core import (
    Batch,
    Feed,
    FunctionalModel,
    ObjectiveLoss,
    TrainState,
    init_state,
    make_eval_step,
    make_head_metrics,
    make_metrics,
    make_objective_metrics,
    make_train_step,
)
from thinkml.core.model.adapters import ApplyFn
from thinkml.core.model.frame_masks import masked_frames
from thinkml.core.objectives.heads import HeadLosses
from thinkml.core.objectives.losses import LossFn, with_chunks, without_chunks
from thinkml.core.parallel.sharding import Layout, unreplicate
from thinkml.core.train.custom_step import make_custom_step
from thinkml.core.train.dispatch import LOOP_LENGTH
from thinkml.core.train.step import TrainStep
from thinkml.core.xla.jit import Jit
from thinkml.data import capacity
from thinkml.data.sequences import mask_name
from thinkml.errors import ConfigError
from thinkml.tasks import AnyTask, Task, blanks_of
from thinkml.training.config import TrainingConfig
from thinkml.training.objective import TrainingObjective
from thinkml.training.optimizer_setup import hyperparams_of, needs_length
from thinkml.training.run import Program, Validation
from thinkml.training.training_setup import TrainingSetup
from thinkml.training.validation_sets import SetName, argument_of


class Steps(Protocol):
    """The steps of an epoch, see `thinkml.core.Feed`."""

    @property
    def steps_per_epoch(self) -> int | None: ...

    @property
    def batch_size(self) -> int: ...


class MemorySavings(NamedTuple):
    """The ways in which a training saves memory.

    Attributes:
        remat: True computes activations again for the gradient instead of keeping them.
        micro_batches: the number of parts in which each batch is computed, one after another.
        chunk: the number of elements whose logits are computed at a time; 0 for all.
    """

    remat: bool = False
    micro_batches: int = 1
    chunk: int = 0


def initial_state(
    functional: FunctionalModel,
    tx: optax.GradientTransformation,
    key: jax.Array,
    config: TrainingConfig,
    total_steps: int | None,
    layout: Layout,
) -> TrainState:
    """Returns the state before the first step."""
    return init_state(
        functional.params, functional.model_state, tx, key,
        ema_decay=config.ema_decay, layout=layout, **hyperparams_of(config, total_steps),
    )  # fmt: skip


def written_unreplicated(functional: FunctionalModel, layout: Layout) -> FunctionalModel:
    """Returns the model with parameters written as a training on one device would leave them."""

    def write(params: Any, model_state: Any) -> None:
        functional.write(*unreplicate(layout, (params, model_state)))

    return dataclasses.replace(functional, write=write)


def total_steps_of(feed: Feed, config: TrainingConfig) -> int | None:
    """Returns the number of steps of a run; None if only the end of an epoch tells.

    Raises:
        ConfigError: if the schedule needs a number that is unknown.
    """
    if feed.steps_per_epoch is not None:
        steps = config.epochs * feed.steps_per_epoch
        return steps if config.max_steps is None else min(steps, config.max_steps)
    if config.max_steps is None and needs_length(config):
        raise ConfigError(
            f'lr_schedule: got {config.lr_schedule!r} for batches whose number is unknown '
            'before they end. Set max_steps, give the source a __len__, or use '
            "'reduce_on_plateau'."
        )
    return config.max_steps


def make_program(
    setup: TrainingSetup,
    apply: ApplyFn,
    tx: Any,
    feed: Steps,
    validations: Mapping[SetName, Validation],
    config: TrainingConfig,
    layout: Layout,
    savings: MemorySavings,
) -> Program:
    """Returns the functions that a run compiles.

    Args:
        setup: the data, the task and the objective.
        apply: the model's forward pass.
        tx: the optimizer.
        feed: the batches; only their number and size are used.
        validations: what is evaluated after each epoch. All sets share one evaluation step, and
            sets of equal shapes one compiled program.
        config: the settings.
        layout: the devices.
        savings: how memory is saved.
    """
    blanks, mask = blanks_of(setup.task), mask_name(setup.spec)
    if blanks and mask:
        apply = masked_frames(apply, blanks, mask)
    train_step, model_step, metrics = _train_steps(setup, apply, tx, feed, config, layout, savings)
    eval_step, eval_metrics = None, metrics
    if validations:
        unknown = [name for name, one in validations.items() if one.capacity is None]
        capacity = max(one.capacity or 0 for one in validations.values())
        argument = argument_of(unknown[0] if unknown else None)
        eval_metrics = _metrics(setup, None if unknown else capacity, argument)
        eval_step = make_eval_step(
            apply, _loss_of(setup.objective, savings), eval_metrics,
            element_shape=_shape_of_loss(setup), layout=layout,
        )  # fmt: skip
    return Program(
        train_step=train_step,
        metrics=setup.objective.aux_losses.metrics_class(metrics),
        eval_step=eval_step,
        eval_metrics=eval_metrics,
        layout=layout,
        loop_length=_loop_length(setup, feed.batch_size),
        model_step=model_step,
        element_shapes=_element_shapes(setup),
    )


def _train_steps(
    setup: TrainingSetup,
    apply: ApplyFn,
    tx: Any,
    feed: Steps,
    config: TrainingConfig,
    layout: Layout,
    savings: MemorySavings,
) -> tuple[TrainStep, TrainStep, type[Collection]]:
    """Returns the training step, the one whose operations are counted, and their metrics."""
    objective = setup.objective
    if objective.step is not None:
        metrics = make_objective_metrics(objective.step.values)
        make_step = functools.partial(
            make_custom_step, apply, objective.step, tx, metrics, augment=objective.augment
        )
        return make_step(layout=layout), make_step(), metrics
    loss_fn = _loss_of(objective, savings)
    metrics = _metrics(setup, _rows_of_period(feed, config), 'X_train', objective.training_metrics)
    make_step = functools.partial(
        make_train_step, apply, tx=tx, metrics=metrics,
        augment=objective.augment, element_shape=_shape_of_loss(setup),
    )  # fmt: skip
    train_step = make_step(
        loss_fn=loss_fn, layout=layout, remat=savings.remat,
        accumulate_steps=num_parts(feed.batch_size, config, savings),
        aux_losses=objective.aux_losses,
    )  # fmt: skip
    return train_step, make_step(loss_fn=without_chunks(loss_fn)), metrics


def _loss_of(
    objective: TrainingObjective, savings: MemorySavings
) -> LossFn | HeadLosses | ObjectiveLoss:
    assert objective.loss_fn is not None, 'a training without a loss has a step and no validation'
    return with_chunks(objective.loss_fn, savings.chunk) if savings.chunk else objective.loss_fn


# A GPU with a bandwidth of 1 to 5 TB/s writes and reads so many bytes in about 0.1 ms, which is the
# time of a call.
_SHORT_STEP_BYTES = 2**26


def _loop_length(setup: TrainingSetup, batch_size: int) -> int:
    """Returns the steps of a call on a GPU.

    It must not depend on measured times: another length is another program, which may round
    differently.
    """
    is_short = batch_size * setup.footprint.row < _SHORT_STEP_BYTES
    return LOOP_LENGTH if is_short else 1


def _element_shape(task: AnyTask) -> tuple[int, ...]:
    """Returns the element shape of a model's output; those of heads are with their losses."""
    return task.element_shape if isinstance(task, Task) else ()


def _element_shapes(setup: TrainingSetup) -> dict[str | None, tuple[int, ...]]:
    """Returns the element shapes of the outputs whose rows have several labels, by head."""
    if isinstance(setup.objective.loss_fn, ObjectiveLoss):
        return {}
    task = setup.task
    heads = [(None, task)] if isinstance(task, Task) else task.heads
    return {name: head.element_shape for name, head in heads if head.element_shape}


def _shape_of_loss(setup: TrainingSetup) -> tuple[int, ...]:
    """Returns the element shape of the loss; an objective's is of rows."""
    is_objective = isinstance(setup.objective.loss_fn, ObjectiveLoss)
    return () if is_objective else _element_shape(setup.task)


def _metrics(
    setup: TrainingSetup, rows: int | None, argument: str, training_metrics: tuple[str, ...] = ()
) -> type[Collection]:
    objective, task = setup.objective, setup.task

    def metrics_of(
        one: TrainingObjective, task: Task, more: tuple[str, ...] = ()
    ) -> type[Collection]:
        if rows is not None:
            _check_score_bytes(one.metrics, task, rows * task.num_elements)
        return make_metrics(
            (*one.metrics, *more), kind=task.kind, num_outputs=task.num_outputs,
            capacity=None if rows is None else rows * task.num_elements, classes=task.classes,
            blank_id=task.blank_id,
        )  # fmt: skip

    if isinstance(objective.loss_fn, ObjectiveLoss):
        return make_objective_metrics(objective.values, training_metrics)
    try:
        if isinstance(task, Task):
            return metrics_of(objective, task, training_metrics)
        heads = {name: metrics_of(objective.heads[name], head) for name, head in task.heads}
        return make_head_metrics(heads, objective.loss_weights, training_metrics)
    except ConfigError as error:
        if rows is not None:
            raise
        raise ConfigError(
            f'{error}\n{argument}: got batches that have no length. Give their source a __len__'
            + (', or set limit_train_batches.' if argument == 'X_train' else '.')
        ) from error


# The scores of more than 100 million rows with one output.
_MOST_SCORE_BYTES = 2**30


def _check_score_bytes(metrics: tuple[Any, ...], task: Task, capacity: int) -> None:
    """Raises a `ConfigError` for metrics that would keep too many scores on the device."""
    keeping = [name for name in ('roc_auc', 'average_precision') if name in metrics]
    num_bytes = capacity * (4 * task.num_outputs + 5)
    if not keeping or num_bytes <= _MOST_SCORE_BYTES:
        return
    instead = (
        "Record 'roc_auc_binned', which keeps counts alone"
        if keeping[0] == 'roc_auc'
        else "Record 'f1' or 'log_loss'"
    )
    raise ConfigError(
        f'metrics: {keeping[0]!r} keeps the scores of {capacity:,} rows or elements on the device, '
        f'{num_bytes / 2**30:,.1f} GiB, more than {_MOST_SCORE_BYTES / 2**30:.0f} GiB. {instead}, '
        'and evaluate a sample of the rows with ModelEvaluator.'
    )


def _rows_of_period(feed: Steps, config: TrainingConfig) -> int | None:
    """Returns a capacity for the rows between two validations; None if it is unknown.

    Data sets of similar lengths share it.
    """
    steps: float | None = feed.steps_per_epoch
    if steps is None and isinstance(config.limit_train_batches, int):
        steps = config.limit_train_batches
    if config.period_steps is not None:
        whole_run = math.inf if steps is None else config.epochs * steps
        steps = min(config.period_steps, whole_run, config.max_steps or math.inf)
    if steps is None or math.isinf(steps):
        return None
    rows = capacity(int(steps) * feed.batch_size)
    return math.ceil(rows / feed.batch_size) * feed.batch_size


def num_parts(batch_size: int, config: TrainingConfig, savings: MemorySavings) -> int:
    """Returns the parts of a step; for a data set smaller than a step, a number that divides it."""
    parts = math.gcd(batch_size, config.accumulate_steps)
    return math.gcd(batch_size, parts * savings.micro_batches)


def step_memory(
    step: TrainStep,
    state: TrainState,
    setup: TrainingSetup,
    batch_size: int,
    layout: Layout,
) -> Any:
    """Returns XLA's memory analysis of the compiled step; None if the compiler has none.

    The step updates its state in place. Temporary memory is that of gradients and activations. Only
    shapes and dtypes of ``state`` are used.
    """
    arguments = step_arguments(state, setup, batch_size, layout)
    return lower_step(step, layout, arguments).compile().memory_analysis()


def lower_step(
    step: TrainStep, layout: Layout, arguments: tuple[TrainState, Batch]
) -> jax.stages.Lowered:
    """Returns a step, ready to be compiled, that updates its state in place."""
    options = layout.compiler_options()
    return Jit(step, donate_argnums=(0,), options=lambda *_: options).lower(*arguments)


def step_arguments(
    state: TrainState, setup: TrainingSetup, batch_size: int, layout: Layout
) -> tuple[TrainState, Batch]:
    """Returns the shapes and placements of the arguments of a step, to compile it."""

    def placed(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def rows(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype)

    weight: Any = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    x, y = jax.tree.map(rows, (setup.spec, setup.labels))
    batch = Batch(x, y, weight)
    if layout.mesh is not None:
        state = jax.tree.map(placed, state, layout.state_sharding(state))
        batch = jax.tree.map(lambda leaf: placed(leaf, layout.replicated), batch)
    return state, batch
