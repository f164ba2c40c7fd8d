"""Learning-rate schedules by name: multipliers of the peak rate, computed from traced numbers.

A schedule rises over the warm-up steps and falls over the others. Rise and fall are functions of
the finished fraction of their steps. The numbers of steps may be traced, so a run of another length
does not need a new compiled program.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Shape = Callable[[jax.Array], jax.Array]


def _cosine(start: float, end: float, progress: jax.Array) -> jax.Array:
    """Returns half a cosine from ``start`` to ``end`` as ``progress`` rises from 0 to 1."""
    return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * progress))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The shape of a schedule.

    Attributes:
        fall: the multiplier after the warm-up, a function of the finished fraction (0 to 1) of the
            steps after it.
        rise: the multiplier in the warm-up, a function of the finished fraction of its steps.
        warmup_percent: the default length of the warm-up, in percent of all steps.
    """

    fall: Shape
    rise: Shape = lambda progress: progress
    warmup_percent: int = 0

    def __call__(
        self, step: jax.Array | int, total_steps: jax.Array | int, warmup_steps: jax.Array | int
    ) -> jax.Array:
        """Returns the multiplier of the peak rate, float32 of the shape of ``step``.

        Args:
            step: the number of steps before this one.
            total_steps: the number of steps until the fall ends; the multiplier is constant after
                it.
            warmup_steps: the number of steps of the rise; negative for ``warmup_percent`` of all.
        """
        # Dividing first keeps the integers exact and below 2**31.
        hundreds, rest = jnp.divmod(jnp.asarray(total_steps, jnp.int32), 100)
        default = hundreds * self.warmup_percent + rest * self.warmup_percent // 100
        warmup_steps = jnp.where(jnp.asarray(warmup_steps) < 0, default, warmup_steps)
        falling_steps = jnp.maximum(total_steps - warmup_steps, 1)
        return jnp.where(
            step < warmup_steps,
            self.rise(step / jnp.maximum(warmup_steps, 1)),
            self.fall(jnp.clip((step - warmup_steps) / falling_steps, 0, 1)),
        )


# One-cycle: the rate starts at 1/25 of its peak and ends at 1/10,000 of its initial value.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4

# constant:      1.
# cosine:        half a cosine to 0 at the last step.
# warmup_cosine: the same after a linear warm-up from 0 over 5 % of the steps.
# linear:        a line to 0.
# exponential:   multiplied by the same factor in each step, to 1 % at the last.
# one_cycle:     half a cosine up over 30 % of the steps, half a cosine down over the others
#                (Smith, 2018, *Super-convergence*, with cosines instead of lines).
SCHEDULES: dict[str, Schedule] = {
    'constant': Schedule(fall=jnp.ones_like),
    'cosine': Schedule(fall=functools.partial(_cosine, 1.0, 0.0)),
    'warmup_cosine': Schedule(fall=functools.partial(_cosine, 1.0, 0.0), warmup_percent=5),
    'linear': Schedule(fall=lambda progress: 1 - progress),
    'exponential': Schedule(fall=lambda progress: 0.01**progress),
    'one_cycle': Schedule(
        fall=functools.partial(_cosine, 1.0, _ONE_CYCLE_END),
        rise=functools.partial(_cosine, _ONE_CYCLE_START, 1.0),
        warmup_percent=30,
    ),
}
