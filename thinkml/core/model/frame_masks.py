"""Frame masks: the frames of padded inputs stand for no label."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from thinkml.core.model.adapters import ApplyFn, FunctionalModel
from thinkml.core.model.functional import functionalize
from thinkml.core.model.mixed_precision import DType
from thinkml.core.model.sown_values import collecting_sown
from thinkml.core.objectives.ctc import frame_positions
from thinkml.core.objectives.heads import named_outputs
from thinkml.typing import Model, PyTree

# exp of it is 0 in float32, and sums of many do not overflow.
_NEVER = -1e5


def masked_frames(apply: ApplyFn, blanks: tuple[tuple[str | None, int], ...], mask: str) -> ApplyFn:
    """Returns a forward pass whose frames of padding have the blank, with certainty.

    The CTC loss is then that of the other frames, and the best path has no labels in the padding. A
    frame is padding if its position of the inputs is, see `frame_positions`.

    Args:
        apply: the model's forward pass, whose inputs are a dict.
        blanks: the name and the blank of each output of frames; the name is None for one output.
        mask: the name of the input ``[rows, length]`` that is 0 or False for padding.
    """
    return _MaskedFrames(apply, blanks, mask)


@dataclasses.dataclass(frozen=True)
class _MaskedFrames:
    apply: Any
    blanks: tuple[tuple[str | None, int], ...]
    mask: str

    def __call__(
        self, params: PyTree, model_state: PyTree, x: Any, *, key: jax.Array | None, train: bool
    ) -> tuple[PyTree, PyTree]:
        outputs, state = self.apply(params, model_state, x, key=key, train=train)
        mask, named = x[self.mask], named_outputs(outputs)
        if named is None:
            ((_, blank_id),) = self.blanks
            return _masked(outputs, mask, blank_id), state
        frames = {str(name): _masked(named[str(name)], mask, blank) for name, blank in self.blanks}
        return named | frames, state

    def collecting(self) -> '_MaskedFrames':
        """Returns the same forward pass, which collects sown values if the model's can."""
        return dataclasses.replace(self, apply=collecting_sown(self.apply))


def _masked(logits: jax.Array, mask: jax.Array, blank_id: int) -> jax.Array:
    is_real = mask[:, frame_positions(logits.shape[1], mask.shape[1])] != 0
    blank = jnp.where(jnp.arange(logits.shape[-1]) == blank_id, 0, _NEVER).astype(logits.dtype)
    return jnp.where(is_real[..., None], logits, blank)


@dataclasses.dataclass(frozen=True)
class WithFrameMask:
    """A model whose frames of padding have the blank; see `masked_frames`."""

    model: Model
    blanks: tuple[tuple[str | None, int], ...]
    mask: str

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """Returns the model as a `FunctionalModel`, see `thinkml.core.functionalize`."""
        functional = functionalize(self.model, x, key, compute_dtype)
        apply = masked_frames(functional.apply, self.blanks, self.mask)
        return dataclasses.replace(functional, apply=apply)
