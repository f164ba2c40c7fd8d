"""TransferModel: a pretrained base and a new head as one model."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.core.objectives.probe_sizes import with_rows
from thinkml.errors import ModelTypeError


class TransferModel(nnx.Module):
    """A model that computes ``head(base(x))``, where ``base`` returns features.

    Args:
        base: a module that maps inputs to features ``[batch, features]``.
        head: a module that maps features to outputs.
        mean: the mean of each channel, from 0 to 1, of the images the base was trained on. Images
            of whole numbers from 0 to 255 are scaled and normalised with it. Images of floats must
            be normalised already. None leaves inputs unchanged.
        std: the standard deviation of each channel, in the same units.

    Attributes:
        base: the base.
        head: the head.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from thinkml.models import TransferModel
        >>> rngs = nnx.Rngs(0)
        >>> model = TransferModel(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> model(jnp.ones((3, 4))).shape
        (3, 2)
    """

    def __init__(
        self,
        base: nnx.Module,
        head: nnx.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        self.base = base
        self.head = head
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)

    @property
    def standardises_pixels(self) -> bool:
        """Returns True if pixels from 0 to 255 are standardised; floats must be so already."""
        return self.mean is not None

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the base's features of the inputs, ``[batch, features]``."""
        features: Any = self.base  # any module that can be called
        found = features(self.normalised(x))
        if getattr(found, 'ndim', None) != 2:
            shape = getattr(found, 'shape', None)
            got = type(found).__name__ if shape is None else with_rows(shape, len(x))
            raise ModelTypeError(
                f'base_model: it returns {got}, expected '
                'features (rows, features). Flatten or pool its outputs.'
            )
        return found

    def __call__(self, x: jax.Array) -> jax.Array:
        head: Any = self.head
        return head(self.features(x))

    def normalised(self, x: jax.Array) -> jax.Array:
        """Normalises images of whole numbers for the base; returns other inputs unchanged."""
        if self.mean is None or not jnp.issubdtype(x.dtype, jnp.integer):
            return x
        return (x.astype(jnp.float32) / 255 - jnp.array(self.mean)) / jnp.array(self.std)


class PassThrough(nnx.Module):
    """A module that returns its input, in place of a last layer that was removed."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x
