"""Learning-rate schedules by name: multipliers of the peak rate, computed from traced numbers.

A schedule is a rise over the warm-up steps, then a fall over the others, both functions of the
share of their steps that has passed. The numbers of steps may be traced, so that another length
needs no new compiled program.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Shape = Callable[[jax.Array], jax.Array]


def _cosine(start: float, end: float, passed: jax.Array) -> jax.Array:
    """Half a cosine from ``start`` to ``end`` as ``passed`` goes from 0 to 1."""
    return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * passed))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The shape of a schedule.

    Attributes:
        fall: the multiplier after the warm-up, of the share of the remaining steps, 0 to 1.
        rise: the multiplier in the warm-up, of the share of its steps.
        warmup_percent: of all steps, where no other number is given.
    """

    fall: Shape
    rise: Shape = lambda passed: passed
    warmup_percent: int = 0

    def __call__(
        self, step: jax.Array | int, total_steps: jax.Array | int, warmup_steps: jax.Array | int
    ) -> jax.Array:
        """Returns the multiplier of the peak rate, float32 of the shape of ``step``.

        Args:
            step: steps taken before this one.
            total_steps: steps until the fall ends; the multiplier then stays as it is.
            warmup_steps: steps of the rise; below 0 for the schedule's own share.
        """
        # Divided first: whole numbers stay below 2**31, and exact.
        whole, rest = jnp.divmod(jnp.asarray(total_steps, jnp.int32), 100)
        share = whole * self.warmup_percent + rest * self.warmup_percent // 100
        warmup_steps = jnp.where(jnp.asarray(warmup_steps) < 0, share, warmup_steps)
        falling_steps = jnp.maximum(total_steps - warmup_steps, 1)
        return jnp.where(
            step < warmup_steps,
            self.rise(step / jnp.maximum(warmup_steps, 1)),
            self.fall(jnp.clip((step - warmup_steps) / falling_steps, 0, 1)),
        )


# One-cycle: the rate starts at 1/25 of its peak and ends at 1/10,000 of where it started.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4

# constant:      1.
# cosine:        half a cosine to 0 at the last step.
# warmup_cosine: the same after a linear warm-up from 0 over 5 % of the steps.
# linear:        a line to 0.
# exponential:   by the same factor each step, to 1 % at the last.
# one_cycle:     half a cosine up over 30 % of the steps, half a cosine down over the others
#                (Smith, 2018, *Super-convergence*, with cosines for lines).
SCHEDULES: dict[str, Schedule] = {
    'constant': Schedule(fall=jnp.ones_like),
    'cosine': Schedule(fall=functools.partial(_cosine, 1.0, 0.0)),
    'warmup_cosine': Schedule(fall=functools.partial(_cosine, 1.0, 0.0), warmup_percent=5),
    'linear': Schedule(fall=lambda passed: 1 - passed),
    'exponential': Schedule(fall=lambda passed: 0.01**passed),
    'one_cycle': Schedule(
        fall=functools.partial(_cosine, 1.0, _ONE_CYCLE_END),
        rise=functools.partial(_cosine, _ONE_CYCLE_START, 1.0),
        warmup_percent=30,
    ),
}
