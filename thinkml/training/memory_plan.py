"""Memory plans: how much device memory a training will take, and how to reduce it."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from thinkml.checkpoint.filesystem import readable
from thinkml.core import Batch, TrainState
from thinkml.core.model.frozen_parameters import FROZEN
from thinkml.core.objectives.losses import with_chunks
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout
from thinkml.core.train.batch_feed import steps_of
from thinkml.data.device_placement import free_bytes
from thinkml.errors import ConfigError
from thinkml.tasks import Task
from thinkml.text_table import aligned_lines
from thinkml.training.config import TrainingConfig
from thinkml.training.data_feed import planned_placements
from thinkml.training.optimizer_setup import functional_of, optimizer_of
from thinkml.training.program import (
    MemorySavings,
    initial_state,
    lower_step,
    make_program,
    num_parts,
    step_arguments,
)
from thinkml.training.run import Program
from thinkml.training.training_data import Examples
from thinkml.training.training_setup import TrainingSetup
from thinkml.typing import Model, PyTree

_REPLICATED, _SHARDED = 'replicated', 'sharded'


class PlannedArray(NamedTuple):
    """One array of the state.

    Attributes:
        name: its path, such as ``'params/layers/0/kernel'``.
        shape: the shape of the whole array.
        dtype: the name of its dtype.
        placed: its placement on the devices, in words.
        num_bytes: the bytes of the whole array.
        bytes_per_device: the bytes that each device holds.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    placed: str
    num_bytes: int
    bytes_per_device: int


class PlannedPart(NamedTuple):
    """A part of the memory that a training needs.

    Attributes:
        name: a description.
        placed: its placement on the devices, in words.
        num_bytes: the bytes in all; None for a part that exists per device only.
        bytes_per_device: the bytes that each device holds.
    """

    name: str
    placed: str
    num_bytes: int | None
    bytes_per_device: int


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """The device memory that a training will take; it prints as a table.

    Attributes:
        parts: parameters, optimizer state, data, activations and what else is needed.
        arrays: each array of the state.
        num_devices: how many devices train.
        platform: the kind of the devices.
        free_bytes: the free memory of each device now; None if it is unknown.
        saving: how memory is saved so that the training fits.
    """

    parts: tuple[PlannedPart, ...]
    arrays: tuple[PlannedArray, ...]
    num_devices: int
    platform: str
    free_bytes: int | None
    saving: MemorySavings = MemorySavings()  # noqa: RUF009 (immutable)

    @property
    def bytes_per_device(self) -> int:
        """Returns the bytes that a device needs in all."""
        return sum(part.bytes_per_device for part in self.parts)

    @property
    def fits(self) -> bool | None:
        """Returns True if they are free; None if that is unknown."""
        return None if self.free_bytes is None else self.bytes_per_device <= self.free_bytes

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return {
            'parts': [part._asdict() for part in self.parts],
            'arrays': [array._asdict() for array in self.arrays],
            'num_devices': self.num_devices,
            'platform': self.platform,
            'free_bytes': self.free_bytes,
            'bytes_per_device': self.bytes_per_device,
            'fits': self.fits,
            **self.saving._asdict(),
        }

    def __str__(self) -> str:
        rows = [('', 'placed', 'in all', 'per device')]
        rows += [
            (
                part.name,
                part.placed,
                '' if part.num_bytes is None else readable(part.num_bytes),
                readable(part.bytes_per_device),
            )
            for part in self.parts
        ]
        rows.append(('together', '', '', readable(self.bytes_per_device)))
        devices = f'{self.num_devices} device{"s" * (self.num_devices > 1)} ({self.platform})'
        saving = [f'{sentence}.' for sentence in _savings(self.saving)]
        return '\n'.join(
            [
                devices,
                *(f'  {line}' for line in aligned_lines(rows, right=(2, 3))),
                *saving,
                self._verdict(),
            ]
        )

    __repr__ = __str__

    def _verdict(self) -> str:
        if self.free_bytes is None:
            return 'The free memory of a device is unknown.'
        free = f'{readable(self.free_bytes)} are free on each'
        return f'It fits: {free}.' if self.fits else f'It does not fit: {free}. {_remedies(self)}'


def _remedies(plan: Plan) -> str:
    largest = max(plan.parts, key=lambda part: part.bytes_per_device)
    if largest.name.startswith(('X_train', 'X_val')):
        return 'Most of it is data: bound that with TrainingConfig(device_data_bytes=...).'
    if largest.name == _ACTIVATIONS:
        return (
            'Most of it is activations: lower batch_size and raise accumulate_steps, or set '
            "precision='bfloat16'."
        )
    if largest.placed == _SHARDED:
        return 'Most of it is the model: use more devices.'
    return "Most of it is the model: use ModelTrainer(strategy='fsdp') on more devices."


_ACTIVATIONS = 'gradients, activations'


def make_plan(model: Model, setup: TrainingSetup, config: TrainingConfig, layout: Layout) -> Plan:
    """Plans a training as it would be done; nothing is put on the devices.

    Args:
        model: the user's object.
        setup: the data, the task and the objective.
        config: the settings.
        layout: the devices.
    """
    *_, plan = _plans(model, setup, config, layout)
    return plan


def reduce_memory(
    model: Model, setup: TrainingSetup, config: TrainingConfig, layout: Layout
) -> tuple[MemorySavings, str | None]:
    """Chooses how to save memory so that a training fits on the devices, before anything is placed.

    If it fits by far, as is usual, nothing is traced or compiled for that. Rematerialization comes
    first, since it changes no result; then batches are computed in parts. If nothing helps, the
    training is tried as it is: free memory is an estimate, and may grow.

    Returns:
        How memory is saved, and a sentence about it for the user; None if nothing is done.
    """
    default = MemorySavings(remat=bool(config.remat))
    free = free_bytes(layout)
    if free is None or _need_at_most(setup, config, layout) <= free:
        return default, None
    first, *others = _plans(model, setup, config, layout)
    plan = others[-1] if others else first
    if not plan.fits:
        return default, f'this training may not fit, it is tried as it is.\n{first}'
    if not others:
        return default, None
    sentence = ' and '.join(_savings(plan.saving))
    parts = ''
    if plan.saving.micro_batches > 1:
        aux = ' Auxiliary losses do so too.' if setup.objective.aux_losses.weights else ''
        parts = f' BatchNorm sees one part at a time.{aux}'
    return plan.saving, (
        f'{sentence}, so that the training takes {readable(plan.bytes_per_device)} of each device '
        f'instead of {readable(first.bytes_per_device)}; {readable(free)} are free.{parts}'
    )


# A step may take so many times the outputs of its forward pass: gradients, copies that XLA makes,
# the patches of a convolution.
_OF_FORWARD = 16
# The least rows of a part on a device: BatchNorm's means of fewer rows are too noisy.
_LEAST_ROWS = 8
# Parameters, the optimizer's moments, an average, gradients; and a copy to return to.
_OF_PARAMS = 10


def _need_at_most(setup: TrainingSetup, config: TrainingConfig, layout: Layout) -> int:
    """Returns a rough upper bound of the bytes per device, without tracing the training."""
    rows = _steps_of(setup, config).batch_size
    data = sum(of_device for *_, of_device in planned_placements(setup, config, layout))
    footprint = setup.footprint
    return data + _OF_PARAMS * footprint.params + _OF_FORWARD * rows * footprint.row


def _plans(
    model: Model, setup: TrainingSetup, config: TrainingConfig, layout: Layout
) -> Iterable[Plan]:
    """Yields plans that take less and less, until one fits; one alone if nothing would help."""
    plan = _plan(model, setup, config, layout, MemorySavings(remat=bool(config.remat)))
    yield plan
    if setup.objective.step is not None:  # which computes its batch itself
        return
    kept = plan.bytes_per_device - _activations_of(plan)
    if plan.fits is not False or plan.free_bytes is None or kept > plan.free_bytes:
        return
    in_chunks = _plan_in_chunks(model, setup, config, layout, plan.saving)
    if in_chunks is not None and in_chunks.bytes_per_device < plan.bytes_per_device:
        plan = in_chunks
        yield plan
        if plan.fits:
            return
    if config.remat is None:
        again = _plan(model, setup, config, layout, plan.saving._replace(remat=True))
        if again.bytes_per_device < plan.bytes_per_device:
            plan = again
            yield plan
    if setup.objective.couples_rows:
        return
    batch_size = _steps_of(setup, config).batch_size
    before = num_parts(batch_size, config, MemorySavings())
    num_devices = layout.num_devices
    for parts in range(2 * before, batch_size // (_LEAST_ROWS * num_devices) + 1, before):
        if plan.fits:
            return
        if batch_size % (parts * num_devices) or parts < 2 * before * plan.saving.micro_batches:
            continue
        saving = plan.saving._replace(micro_batches=parts // before)
        again = _plan(model, setup, config, layout, saving)
        if again.bytes_per_device >= plan.bytes_per_device:
            return
        plan = again
        yield plan


# A chunk of logits has about so many bytes, and fewer than two chunks are no reason for any.
_CHUNK_BYTES = 2**22


def _plan_in_chunks(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    layout: Layout,
    saving: MemorySavings,
) -> Plan | None:
    """Returns the plan with a cross-entropy in chunks; None if it can't be computed so."""
    task = setup.task
    if not isinstance(task, Task):
        return None
    elements = _steps_of(setup, config).batch_size * task.num_elements
    chunk = _CHUNK_BYTES // (4 * task.num_outputs)
    if not 1 <= chunk <= elements // 2 or with_chunks(setup.objective.loss_fn, chunk) is None:
        return None
    try:
        return _plan(model, setup, config, layout, saving._replace(chunk=chunk))
    except ConfigError:  # for a model that ends in no dense layer, or a metric of all logits
        return None


def _activations_of(plan: Plan) -> int:
    return next(p.bytes_per_device for p in plan.parts if p.name == _ACTIVATIONS)


def _savings(saving: MemorySavings) -> Iterable[str]:
    """Yields how memory is saved, in words."""
    if saving.chunk:
        yield f'the logits of {saving.chunk} rows or elements are computed at a time'
    if saving.remat:
        yield 'activations are computed again for the gradient (remat)'
    if saving.micro_batches > 1:
        yield f'each batch is computed in {saving.micro_batches} parts'


def _plan(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    layout: Layout,
    saving: MemorySavings,
) -> Plan:
    step = traced_step(model, setup, config, layout, saving)
    memory = step.lowered().compile().memory_analysis()
    temporaries = 0 if memory is None else memory.temp_size_in_bytes
    return plan_of_step(step, temporaries, setup, config)


class TracedStep(NamedTuple):
    """A training step with the shapes of its arguments.

    Attributes:
        program: the functions of the training.
        state: the shapes and dtypes of the state.
        arguments: the shapes and placements of the step's arguments.
        layout: the devices.
        saving: how memory is saved.
    """

    program: Program
    state: TrainState
    arguments: tuple[TrainState, Batch]
    layout: Layout
    saving: MemorySavings

    def lowered(self) -> jax.stages.Lowered:
        """Returns the step, ready to be compiled. It updates its state in place."""
        return lower_step(self.program.train_step, self.layout, self.arguments)


def traced_step(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    layout: Layout,
    saving: MemorySavings,
) -> TracedStep:
    """Returns the step of a training. The arrays of the model may be shapes only."""
    state, apply = _state_of(model, setup, config)
    steps = _steps_of(setup, config)
    program = make_program(setup, apply, optimizer_of(config), steps, {}, config, layout, saving)
    arguments = step_arguments(state, setup, steps.batch_size, layout)
    return TracedStep(program, state, arguments, layout, saving)


def plan_of_step(
    step: TracedStep, temporaries: int, setup: TrainingSetup, config: TrainingConfig
) -> Plan:
    """Returns the memory plan of a training, given the bytes of its step's temporaries."""
    layout = step.layout
    arrays = tuple(_planned(step.state, layout))
    metrics = jax.eval_shape(step.program.metrics.empty)
    of_metrics = sum(map(_num_bytes, jax.tree.leaves(metrics)))
    parts = [
        *_parts_of_state(arrays, config),
        *(
            PlannedPart(argument, where.value, whole, of_device)
            for argument, where, whole, of_device in planned_placements(setup, config, layout)
        ),
        PlannedPart('metrics of an epoch', _REPLICATED, of_metrics, of_metrics),
        PlannedPart(_ACTIVATIONS, 'sharded', None, temporaries),
    ]
    return Plan(
        tuple(parts), arrays,
        num_devices=layout.num_devices,
        platform=layout.platform,
        free_bytes=free_bytes(layout),
        saving=step.saving,
    )  # fmt: skip


class _Steps(NamedTuple):
    steps_per_epoch: int | None
    batch_size: int


def _steps_of(setup: TrainingSetup, config: TrainingConfig) -> _Steps:
    train = setup.train
    if isinstance(train, Examples):
        rows = train.room or len(train.rows)
        batch_size = min(config.batch_size * config.accumulate_steps, rows)
        return _Steps(steps_of(rows, batch_size), batch_size)
    rows = len(jax.tree.leaves(train.batches.peek().x)[0]) * config.accumulate_steps
    count = train.batches.num_batches
    return _Steps(None if count is None else math.ceil(count / config.accumulate_steps), rows)


def _state_of(model: Model, setup: TrainingSetup, config: TrainingConfig) -> tuple[TrainState, Any]:
    """Returns the shapes and dtypes of the state, and the forward pass."""
    found = []

    def arrays(key: jax.Array) -> tuple[PyTree, PyTree]:
        functional = functional_of(model, setup.spec, key, config)
        found.append(functional)
        return functional.params, functional.model_state

    def make(params: PyTree, model_state: PyTree, key: jax.Array) -> TrainState:
        functional = dataclasses.replace(found[0], params=params, model_state=model_state)
        return initial_state(functional, optimizer_of(config), key, config, 1, ONE_DEVICE)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(make, *jax.eval_shape(arrays, key), key), found[0].apply


def _planned(state: TrainState, layout: Layout) -> Iterable[PlannedArray]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        num_bytes = of_device = _num_bytes(leaf)
        placed = _REPLICATED
        if layout.mesh is not None:
            sharding: NamedSharding = layout.state_sharding(leaf)
            of_device = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            placed = _REPLICATED if sharding.is_fully_replicated else _SHARDED
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        yield PlannedArray(name, leaf.shape, leaf.dtype.name, placed, num_bytes, of_device)


_KINDS = {
    'params': 'parameters',
    f'model_state/{FROZEN}': 'frozen parameters',
    'model_state': 'statistics of the model',
    'opt_state': 'state of the optimizer',
    'ema': 'moving average',
}


def _parts_of_state(
    arrays: tuple[PlannedArray, ...], config: TrainingConfig
) -> Iterable[PlannedPart]:
    kinds = [
        next((n for prefix, n in _KINDS.items() if f'{array.name}/'.startswith(f'{prefix}/')), None)
        for array in arrays
    ]
    for name in _KINDS.values():
        found = [array for array, kind in zip(arrays, kinds, strict=True) if kind == name]
        if found:
            yield _summed(name, found)
    if config.on_nan != 'ignore':
        yield _summed('copy to return to', list(arrays))


def _summed(name: str, arrays: list[PlannedArray]) -> PlannedPart:
    placed = _SHARDED if any(array.placed == _SHARDED for array in arrays) else _REPLICATED
    return PlannedPart(
        name, placed,
        sum(array.num_bytes for array in arrays), sum(array.bytes_per_device for array in arrays),
    )  # fmt: skip


def _num_bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
