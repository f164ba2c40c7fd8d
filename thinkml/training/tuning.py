"""Tuning: finds a learning rate and a batch size before training."""

import dataclasses
import os
from typing import TYPE_CHECKING

import jax
import numpy as np

from thinkml.core import set_learning_rate, train_chunks
from thinkml.core.parallel.sharding import Layout
from thinkml.data import device_budget
from thinkml.errors import ConfigError, warn_user
from thinkml.figures import give_to_pyplot, new_figure, save_figure
from thinkml.training.config import TrainingConfig
from thinkml.training.parameter_groups import follows_rate
from thinkml.training.program import MemorySavings, step_memory
from thinkml.training.run_parts import RunParts, make_parts
from thinkml.training.training_setup import TrainingSetup
from thinkml.typing import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOWEST, _HIGHEST, _STEPS = 1e-6, 10.0, 100
_SMOOTHING = 0.9
# A loss above this multiple of the lowest one will not recover.
_DIVERGED = 4.0


@dataclasses.dataclass(frozen=True)
class LearningRateRange:
    """The result of a learning-rate range test.

    Attributes:
        rates: the rate of each step, rising.
        losses: the loss of each step, smoothed.
        suggestion: the rate at which the loss falls fastest, or a tenth of the one at which it is
            lowest, whichever is smaller.

    Reference:
        Smith, 2017, *Cyclical learning rates for training neural networks*.
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float

    def plot(self, path: str | os.PathLike[str] | None = None) -> 'Figure':
        """Draws the loss over the rate, with the suggestion.

        Args:
            path: the file to save the figure to, in the format of its ending; None saves nothing.
        """
        figure = new_figure(6.4, 4)
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses)
        label = f'suggestion: {self.suggestion:.2g}'
        axes.axvline(self.suggestion, color='0.5', linestyle='--', label=label)
        axes.set(xscale='log', xlabel='learning rate', ylabel='loss (smoothed)')
        axes.grid(alpha=0.3)
        axes.legend()
        if path is not None:
            save_figure(figure, path)
        return give_to_pyplot(figure)


def learning_rate_range(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    layout: Layout,
    savings: MemorySavings,
) -> LearningRateRange:
    """Trains a copy of the model for 100 steps at rates from 1e-6 to 10, and records the loss.

    Raises:
        ConfigError: if the optimizer has its own learning rate.
    """
    if not follows_rate(config.optimizer):
        raise ConfigError(
            'optimizer: got an optax transformation, which has its own learning rate, or patterns '
            'that all have their own. Pass a name, or a function learning_rate -> transformation.'
        )
    constant = dataclasses.replace(
        config, learning_rate=_LOWEST, lr_schedule='constant', warmup_steps=None
    )
    parts = make_parts(model, setup, constant, layout, savings)
    rates, losses = _measure(parts)
    smooth = _smooth(losses)
    return LearningRateRange(rates, smooth, _suggest_rate(rates, smooth))


def _measure(parts: RunParts) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rates, and the loss of the step at each, until the loss diverges."""
    rates, losses = np.geomspace(_LOWEST, _HIGHEST, _STEPS), []
    chunks = train_chunks(
        parts.program.train_step, parts.program.metrics, parts.state, parts.feed,
        epochs=_STEPS, max_steps=_STEPS, steps_per_dispatch=1, loop_length=1,
        layout=parts.program.layout,
    )  # fmt: skip
    for rate, chunk in zip(np.append(rates[1:], _HIGHEST), chunks, strict=False):
        losses.append(float(chunk.step_losses()[0]))
        if not losses[-1] <= _DIVERGED * max(np.min(_smooth(np.array(losses))), 1e-6):
            break
        opt_state = set_learning_rate(chunk.state.opt_state, float(rate))
        chunk.state = chunk.state.replace(opt_state=opt_state)
    finite = np.isfinite(losses)
    return rates[: len(losses)][finite], np.array(losses)[finite]


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Returns an exponential moving average, corrected for the missing values before the first."""
    weights = _SMOOTHING ** np.arange(len(losses))
    sums = [np.dot(weights[: n + 1][::-1], losses[: n + 1]) for n in range(len(losses))]
    return np.array(sums) / np.cumsum(weights)


def _suggest_rate(rates: np.ndarray, losses: np.ndarray) -> float:
    lowest = int(np.argmin(losses)) if len(losses) else 0
    if lowest < 2:
        warn_user(
            f"learning_rate: got 'auto', but the loss falls at no rate from {_LOWEST:g} to "
            f'{_HIGHEST:g}, so 0.001 is used. Check that inputs and targets belong together and '
            'are scaled.'
        )
        return 0.001
    slopes = np.gradient(losses[: lowest + 1], np.log(rates[: lowest + 1]))
    # Smoothing shifts both candidates to higher rates.
    return float(min(rates[int(np.argmin(slopes))], rates[lowest] / 10))


def largest_batch_size(
    model: Model, setup: TrainingSetup, config: TrainingConfig, layout: Layout
) -> int:
    """Returns the largest power of two whose training step fits in device memory.

    The compiler reports what a step takes, so nothing runs out of memory on the way. The memory is
    nearly linear in the batch size: two sizes give an estimate.
    """
    # Only one of several accumulated batches is in memory at a time.
    savings = MemorySavings(remat=bool(config.remat))
    alone = dataclasses.replace(config, accumulate_steps=1)
    parts = make_parts(model, setup, alone, layout, savings)
    budget = device_budget(layout=layout)
    limit = parts.feed.batch_size * (parts.feed.steps_per_epoch or 1)
    limit //= config.accumulate_steps
    largest = 2 ** (max(1, limit).bit_length() - 1)
    small = 16 * layout.num_devices
    if budget is None or largest < 2 * small:
        return largest
    less, more = (_step_bytes(parts, setup, size, layout) for size in (small, 2 * small))
    per_row = max(1.0, (more - less) / small)
    fitting = max(1, int((budget - less) / per_row))
    size = min(largest, 2 ** (fitting.bit_length() - 1))
    while size > 1 and _step_bytes(parts, setup, size, layout) > budget:
        size //= 2
    return size


def _step_bytes(parts: RunParts, setup: TrainingSetup, batch_size: int, layout: Layout) -> int:
    """Returns the memory that a step takes beside its state: its own, and a copy of the state."""
    memory = step_memory(parts.program.train_step, parts.state, setup, batch_size, layout)
    if memory is None:
        raise ConfigError(
            f'find_batch_size: the compiler for {jax.devices()[0].platform} does not report how '
            'much memory a step takes. Try powers of two yourself.'
        )
    return memory.temp_size_in_bytes + memory.output_size_in_bytes
