"""Lower bounds of the time of a training step, from its compiled program and a datasheet."""

from collections.abc import Mapping
from typing import NamedTuple

from thinkml.core.xla.compiled_program import CompiledProgram, summed
from thinkml.training.accelerators import Accelerator


class StepBounds(NamedTuple):
    """The work of a step and the least time that each kind of it takes.

    A bound is no prediction: it holds if every unit of the device works at its peak rate and all
    of them at the same time. A real step takes longer.

    Attributes:
        flops: the operations of the products and convolutions of the model and its gradient, of
            all devices. Activations that are computed again do not count.
        moved_bytes: the bytes that a device must at least read and write: its part of the state
            and of the batch once before, and the state once after.
        collectives: the number and the bytes of the exchanges between devices by kind, for one
            device, see `thinkml.core.xla.compiled_program.Collective`.
        compute_seconds: the time of ``flops`` at the peak rate of all devices.
        memory_seconds: the time of ``moved_bytes`` at the bandwidth of the memory.
        link_seconds: the time of the exchanges, in a ring, at the bandwidth of the links.
    """

    flops: int
    moved_bytes: int
    collectives: Mapping[str, tuple[int, int]]
    compute_seconds: float
    memory_seconds: float
    link_seconds: float

    @property
    def seconds(self) -> float:
        """Returns the time that a step can't be shorter than."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

    @property
    def limited_by(self) -> str:
        """Returns which of the three bounds is the largest: compute, memory or links."""
        bounds = {
            'compute': self.compute_seconds,
            'memory': self.memory_seconds,
            'links': self.link_seconds,
        }
        return max(bounds, key=bounds.__getitem__)


def step_bounds(
    program: CompiledProgram, flops: int, accelerator: Accelerator, num_devices: int, dtype: str
) -> StepBounds:
    """Returns the bounds of a compiled training step.

    Args:
        program: the compiled step.
        flops: the operations of a step on all devices, see `count_flops`.
        accelerator: the kind of the devices.
        num_devices: the number of devices.
        dtype: the dtype of the products, ``'float32'`` or ``'bfloat16'``.
    """
    collectives = summed(program.collectives)
    moved = program.memory.argument_size_in_bytes + program.memory.output_size_in_bytes
    sent = sum(
        num_bytes * _RING_PASSES.get(kind, 1) * (num_devices - 1) / num_devices
        for kind, (_, num_bytes) in collectives.items()
    )
    return StepBounds(
        flops=flops,
        moved_bytes=moved,
        collectives=collectives,
        compute_seconds=flops / num_devices / accelerator.peak_flops[dtype],
        memory_seconds=moved / accelerator.memory_bandwidth,
        link_seconds=sent / accelerator.link_bandwidth,
    )


# In a ring of N devices each sends (N - 1) / N of the bytes, and for a sum that all get, twice.
_RING_PASSES = {'all-reduce': 2}
