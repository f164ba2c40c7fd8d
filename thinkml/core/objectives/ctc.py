"""Connectionist temporal classification (CTC): sequences of labels that no frame is aligned to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from thinkml.errors import ConfigError, is_whole
from thinkml.typing import Array

_AFTER_END = -1  # the encoded label after the end of a sequence, as of elements that are ignored


@dataclasses.dataclass(frozen=True)
class CTC:
    """The CTC loss: minus the log-probability of a row's labels, over all alignments to its frames.

    The model returns logits ``(rows, frames, classes)``, and the targets are sequences of whole
    numbers, of any length up to that of the frames: the positions of the outputs, without that of
    the blank. In an alignment each frame has a label or the blank. Equal neighbours are one label,
    unless a blank is between them.

    Attributes:
        blank_id: the position of the output that stands for no label.

    Raises:
        ConfigError: for another ``blank_id``.

    Reference:
        Graves et al., 2006, *Connectionist temporal classification: labelling unsegmented sequence
        data with recurrent neural networks*.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import CTC
        >>> certain = 9 * jnp.eye(3)[jnp.array([[1, 1, 0, 2]])]
        >>> [round(loss, 2) for loss in CTC()(certain, jnp.array([[1, 2, -1]])).tolist()]
        [0.0]
    """

    blank_id: int = 0

    def __post_init__(self):
        if not (is_whole(self.blank_id) and self.blank_id >= 0):
            raise ConfigError(
                f'blank_id: got {self.blank_id!r}, expected the position of an output: a whole '
                'number of at least 0.'
            )

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of each row, ``[rows]``, in nats.

        Args:
            logits: ``[rows, frames, classes]``.
            labels: ``[rows, labels]``, -1 after the end of a sequence.
        """
        if logits.shape[-1] <= self.blank_id:
            raise ConfigError(
                f'blank_id: got {self.blank_id} for {logits.shape[-1]} outputs, expected the '
                'position of one of them.'
            )
        is_after_end = (labels < 0).astype(logits.dtype)
        no_frames = jnp.zeros(logits.shape[:2], logits.dtype)
        return optax.ctc_loss(
            logits, no_frames, jnp.maximum(labels, 0), is_after_end, blank_id=self.blank_id
        )


def best_path(path: Array, blank_id: int) -> Array:
    """Returns the labels of the most probable class of each frame: repeats and blanks are dropped.

    Args:
        path: the most probable classes, whole numbers ``[rows, frames]``, in NumPy or JAX.
        blank_id: the class that stands for no label.

    Returns:
        ``[rows, frames]``, -1 after the end of a sequence.

    Example:
        >>> import numpy as np
        >>> from thinkml.core.objectives.ctc import best_path
        >>> best_path(np.array([[0, 3, 3, 0, 3, 5]]), blank_id=0).tolist()
        [[3, 3, 5, -1, -1, -1]]
    """
    xp = path.__array_namespace__()
    is_new = path[:, 1:] != path[:, :-1]
    is_label = xp.concat([xp.ones_like(path[:, :1], dtype=bool), is_new], axis=1)
    is_label = is_label & (path != blank_id)
    order = xp.argsort(~is_label, axis=1, stable=True)
    labels = xp.take_along_axis(path, order, axis=1)
    count = is_label.sum(axis=1, keepdims=True)
    return xp.where(xp.arange(path.shape[1]) < count, labels, _AFTER_END)


def equal_sequences(a: Array, b: Array) -> Array:
    """Returns True for the rows of equal sequences, which may be padded to different lengths."""
    xp, width = a.__array_namespace__(), max(a.shape[1], b.shape[1])
    wide = [
        xp.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=_AFTER_END)
        for part in (a, b)
    ]
    return (wide[0] == wide[1]).all(axis=1)


def frame_positions(frames: int, length: int) -> np.ndarray:
    """Returns the position of the inputs that each frame is at, ``[frames]``.

    A model of fewer frames than positions has one at every second position, third and so on.

    Example:
        >>> from thinkml.core.objectives.ctc import frame_positions
        >>> frame_positions(3, 8).tolist(), frame_positions(4, 2).tolist()
        ([0, 3, 6], [0, 0, 1, 1])
    """
    if frames > length:
        return np.arange(frames) * length // frames
    return np.minimum(np.arange(frames) * -(-length // frames), length - 1)


def needed_frames(labels: np.ndarray) -> np.ndarray:
    """Returns the least number of frames for the labels of each row, ``[rows]``.

    It is one for each label, and one for the blank between equal neighbours.
    """
    are_equal = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] >= 0)
    return (labels >= 0).sum(axis=1) + are_equal.sum(axis=1)
