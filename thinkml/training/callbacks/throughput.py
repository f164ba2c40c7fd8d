"""Throughput: a callback that records the time of a step and the work done in a second."""

import math
from collections import Counter
from collections.abc import Hashable

import jax
import numpy as np

from thinkml.core import Block
from thinkml.core.train.dispatch import batch_shapes, count_elements
from thinkml.training.accelerators import accelerator_of
from thinkml.training.callback import BuiltInCallback
from thinkml.training.model_flops import flop_utilization, step_flops
from thinkml.training.run import Run


class Throughput(BuiltInCallback):
    """A callback that records the time of a step, and what the training does in a second.

    All values are of an epoch's steps, without validation, checkpoints and other callbacks. The
    run's first dispatch is left out, since it compiles; an epoch without other steps has NaN.

    - ``history['step_seconds']`` is the mean time that a step computes.
    - ``history['input_wait']`` is the fraction of the time spent waiting for data.
    - ``history['examples_per_second']`` counts the rows, without those that fill up a batch. The
      time includes waiting.
    - ``history['elements_per_second']`` counts the tokens or pixels of rows with a label each,
      without those that are ignored, pad a sequence or have weight 0. For several heads, it counts
      those of the head with the most.
    - ``history['mfu']`` is the model FLOP utilization, see `flop_utilization`. It is only recorded
      on devices with a known peak rate, see `thinkml.training.accelerators`.
    """

    order = -1  # before callbacks that read what it records

    def on_train_start(self, run: Run) -> None:
        self._before, self._steps = run.times, run.times.steps
        self._has_peak = accelerator_of(_device_kind(run)) is not None
        self._flops_of_step: dict[Hashable, Counter[str]] = {}
        self._flops: Counter[str] = Counter()
        self._elements = np.zeros(len(run.program.element_shapes), np.int64)

    def on_chunk_end(self, run: Run) -> None:
        chunk = run.chunk
        assert chunk is not None
        steps, self._steps = run.times.steps - self._steps, run.times.steps
        if self._has_peak:
            flops = self._count_flops(run, chunk.block)
            self._flops.update({dtype: steps * count for dtype, count in flops.items()})
        if steps and len(self._elements):
            program = run.program
            self._elements += count_elements(
                program.element_shapes, program.layout, chunk.block, chunk.first, chunk.last
            )

    def on_epoch_end(self, run: Run) -> None:
        epoch, self._before = run.times.since(self._before), run.times
        recorded = {
            'step_seconds': _ratio(epoch.step_seconds, epoch.steps),
            'input_wait': epoch.input_share if epoch.steps else math.nan,
            'examples_per_second': _ratio(epoch.examples, epoch.seconds),
        }
        if len(self._elements):
            recorded['elements_per_second'] = _ratio(self._elements.max(), epoch.seconds)
        run.history.add_to_epoch(recorded | self._utilization(run, epoch.seconds))
        self._flops.clear()
        self._elements[:] = 0

    def _count_flops(self, run: Run, block: Block) -> Counter[str]:
        """Returns the operations of a step of a block, counted once for each program."""
        leaves, structure = jax.tree.flatten((block.data, block.plan))
        key = structure, tuple(leaf.shape for leaf in leaves)
        if key not in self._flops_of_step:
            state = jax.eval_shape(lambda state: state, run.state)
            self._flops_of_step[key] = step_flops(
                run.program.model_step, state, batch_shapes(block)
            )
        return self._flops_of_step[key]

    def _utilization(self, run: Run, seconds: float) -> dict[str, float]:
        if not self._has_peak:
            return {}
        devices = run.program.layout.num_devices
        mfu = flop_utilization(self._flops, seconds or math.nan, _device_kind(run), devices)
        return {} if mfu is None else {'mfu': mfu}


def _ratio(count: float, total: float) -> float:
    return count / total if total else math.nan


def _device_kind(run: Run) -> str:
    return next(iter(run.state.step.devices())).device_kind
