"""Divergence: the last finite state before a loss became NaN or infinite, and likely causes."""

import numpy as np

from thinkml.core import Chunk, TrainState
from thinkml.core.train.dispatch import all_finite
from thinkml.core.xla.jit import Jit
from thinkml.training.run import copy_arrays


def is_finite(chunk: Chunk) -> bool:
    """Returns True if the losses of a chunk and the model after it are finite."""
    return chunk.is_finite and bool(chunk.state_is_finite)


def last_finite_state(chunk: Chunk, before: TrainState) -> tuple[TrainState, bool]:
    """Returns the last state whose parameters are finite.

    Args:
        chunk: a chunk that is not finite.
        before: a copy of the finite state before the chunk.

    Returns:
        The state, and True if in the step after it a gradient was not finite while the loss was.
    """

    def after(steps: int) -> TrainState:
        return chunk.rerun(copy_arrays(before), steps)

    # The state after the last finite loss. Parameters that few rows use (an embedding's) may be
    # NaN long before a loss is.
    last = int(chunk.num_done) - (not chunk.is_finite)
    state = after(last)
    if last == 0 or _is_finite(state):
        return state, False
    del state  # frees memory for the next one
    finite, not_finite = 0, last
    while not_finite - finite > 1:
        middle = (finite + not_finite) // 2
        if _is_finite(after(middle)):
            finite = middle
        else:
            not_finite = middle
    return after(finite), True


def likely_causes(losses: np.ndarray, gradient_was_bad: bool, precision: str) -> str:
    """Returns one or two sentences on the likely causes.

    Args:
        losses: the losses of the steps up to the one that is not finite.
        gradient_was_bad: True if a gradient was not finite while the loss still was.
        precision: the precision of the run.
    """
    before = losses[-21:-1]
    if gradient_was_bad:
        return (
            'The loss was finite: look for a square root, norm, division or logarithm that meets 0 '
            'in the model or the loss.'
        )
    if len(before) > 1 and before[-1] > 3 * max(float(losses[:-1].min()), 1e-6):
        return (
            f'The loss had risen from {losses[:-1].min():.3g} to {before[-1]:.3g} before: lower '
            'the learning_rate, or set gradient_clip_norm=1.0.'
        )
    if len(losses) == 1:
        so_far, remedy = 'No step was taken before', ''
    else:
        so_far, remedy = 'The step before was finite', 'lower the learning_rate, '
    if precision != 'float32':
        return f"{so_far}: try precision='float32' instead of {precision!r}."
    return (
        f'{so_far}: {remedy}scale the inputs and targets, and '
        'look for a logarithm, division or exponential in the model or the loss, and for ids '
        'beyond the rows of an embedding.'
    )


_all_finite = Jit(all_finite)


def _is_finite(state: TrainState) -> bool:
    return bool(_all_finite((state.params, state.model_state)))
