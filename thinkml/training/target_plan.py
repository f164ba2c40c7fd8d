"""Plans for devices that are not attached: memory, exchanges and bounds of a step's time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from thinkml.checkpoint.filesystem import readable
from thinkml.core.xla.compiled_program import CompiledProgram, UnreadableProgramError
from thinkml.training.compile_targets import CompileTarget, TargetMemoryError
from thinkml.training.config import TrainingConfig
from thinkml.training.memory_plan import Plan, TracedStep, plan_of_step, traced_step
from thinkml.training.model_flops import step_flops
from thinkml.training.program import MemorySavings
from thinkml.training.step_bounds import StepBounds, step_bounds
from thinkml.training.training_data import Examples
from thinkml.training.training_setup import TrainingSetup
from thinkml.typing import Model

# Compiling for a slice takes minutes for a large model, so few batch sizes are tried.
_MOST_TRIALS = 3


@dataclasses.dataclass(frozen=True, repr=False)
class TargetPlan:
    """A training on devices that are not attached; it prints as a table.

    The program is the one that the devices would run. Its memory and exchanges are exact. The
    times are bounds from the datasheet, and no predictions.

    Attributes:
        target: the name of the devices, such as ``'v5e:4x4'``.
        memory: the memory of each device, see `Plan`.
        bounds: the least time of a step, see `StepBounds`; None if the compiler made no program
            because the step does not fit, or one that JAX can't read.
        strategy: how the devices train together.
        batch_size: the rows of a step, of all devices.
        largest_batch_size: the largest power of two times ``batch_size`` that fits; None if
            ``batch_size`` does not, or if no larger one was tried.
        strategy_bytes: the bytes per device with each strategy.
        source: the datasheet.
    """

    target: str
    memory: Plan
    bounds: StepBounds | None
    strategy: str
    batch_size: int
    largest_batch_size: int | None
    strategy_bytes: Mapping[str, int]
    source: str

    @property
    def fits(self) -> bool:
        """Returns True if the training fits in the memory of the devices."""
        return bool(self.memory.fits)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            'memory': self.memory.to_dict(),
            'bounds': None
            if self.bounds is None
            else self.bounds._asdict() | {'seconds': self.bounds.seconds},
            'fits': self.fits,
        }

    def __str__(self) -> str:
        lines = [f'{self.target}, {self.strategy}, batches of {self.batch_size:,}: {self.memory}']
        if self.largest_batch_size is not None:
            lines.append(f'Batches of {self.largest_batch_size:,} fit as well.')
        if len(self.strategy_bytes) > 1:
            each = ', '.join(
                f'{readable(num_bytes)} with {name!r}'
                for name, num_bytes in self.strategy_bytes.items()
            )
            lines.append(f'A device needs {each}.')
        return '\n'.join([*lines, *self._bounds_lines()])

    __repr__ = __str__

    def _bounds_lines(self) -> list[str]:
        bounds = self.bounds
        if bounds is None:
            if self.fits:
                return [
                    'The exchanges and the bound are unknown: this version of JAX can not read the '
                    'program that the compiler made. Try another version of jax or libtpu.'
                ]
            return ['The compiler made no program, because the step does not fit.']
        exchanged = ', '.join(
            f'{count} {kind} of {readable(num_bytes)}'
            for kind, (count, num_bytes) in bounds.collectives.items()
        )
        return [
            f'A device exchanges in a step: {exchanged or "nothing"}.',
            f'A step can not be shorter than {_milliseconds(bounds.seconds)}, limited by '
            f'{bounds.limited_by}: {bounds.flops:.3g} operations take '
            f'{_milliseconds(bounds.compute_seconds)}, {readable(bounds.moved_bytes)} of memory '
            f'{_milliseconds(bounds.memory_seconds)}, exchanges '
            f'{_milliseconds(bounds.link_seconds)} at the peak rates of the datasheet. These are '
            'bounds and not predictions.',
        ]


def _milliseconds(seconds: float) -> str:
    return f'{1000 * seconds:.3g} ms'


def make_target_plan(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    target: CompileTarget,
    strategy: str | None,
) -> TargetPlan:
    """Compiles a training step for the target and plans its memory and time.

    Args:
        model: the user's object; its arrays may be shapes only.
        setup: the data, the task and the objective.
        config: the settings.
        target: the devices.
        strategy: ``'mirrored'`` or ``'fsdp'``; None for mirrored.
    """
    chosen = strategy or 'mirrored'
    memory, program, step = _compile(model, setup, config, target, chosen)
    strategy_bytes = {chosen: memory.bytes_per_device}
    if len(target.devices) > 1:
        other = 'fsdp' if chosen == 'mirrored' else 'mirrored'
        plan, *_ = _compile(model, setup, config, target, other)
        strategy_bytes[other] = plan.bytes_per_device
    rows = _rows_of(step)
    dtype = 'float32' if config.precision == 'float32' else 'bfloat16'
    flops = step_flops(step.program.model_step, *step.arguments).total()
    return TargetPlan(
        target=target.name,
        memory=memory,
        bounds=None
        if program is None
        else step_bounds(program, flops, target.accelerator, len(target.devices), dtype),
        strategy=chosen,
        batch_size=rows,
        largest_batch_size=_largest_batch(model, setup, config, target, chosen, memory, rows),
        strategy_bytes=strategy_bytes,
        source=target.accelerator.source,
    )


def _compile(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    target: CompileTarget,
    strategy: str,
) -> tuple[Plan, CompiledProgram | None, TracedStep]:
    layout = target.layout(shards_state=strategy == 'fsdp')
    step = traced_step(model, setup, config, layout, MemorySavings(remat=bool(config.remat)))
    try:
        program = target.compile(step.lowered())
        temporaries = program.memory.temp_size_in_bytes
    except TargetMemoryError as error:
        program, temporaries = None, error.needed_bytes or target.accelerator.memory_bytes
    except UnreadableProgramError as error:
        program, temporaries = None, error.memory.temp_size_in_bytes
    return plan_of_step(step, temporaries, setup, config), program, step


def _rows_of(step: TracedStep) -> int:
    return jax.tree.leaves(step.arguments[1].x)[0].shape[0]


def _largest_batch(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    target: CompileTarget,
    strategy: str,
    plan: Plan,
    rows: int,
) -> int | None:
    """Returns the largest batch that fits, of those that double the planned one.

    The memory is nearly linear in the batch, so a second size gives an estimate, which is then
    compiled.
    """
    if not plan.fits or plan.free_bytes is None:
        return None
    limit = len(setup.train.rows) if isinstance(setup.train, Examples) else rows

    def bytes_with(factor: int) -> int:
        larger = dataclasses.replace(config, batch_size=config.batch_size * factor)
        return _compile(model, setup, larger, target, strategy)[0].bytes_per_device

    if 2 * rows > limit:
        return rows
    added = max(1, bytes_with(2) - plan.bytes_per_device)
    fitting = 1 + (plan.free_bytes - plan.bytes_per_device) // added
    factor = 2 ** (int(min(fitting, limit // rows)).bit_length() - 1)
    for _ in range(_MOST_TRIALS):
        if factor <= 1 or bytes_with(factor) <= plan.free_bytes:
            break
        factor //= 2
    return rows * max(1, factor)
