"""Objectives: losses that call the model themselves instead of getting its outputs."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.objectives.hashable import hashable
from thinkml.errors import ConfigError
from thinkml.typing import PyTree


class ObjectiveBatch(NamedTuple):
    """A batch of rows, as an objective gets it.

    Attributes:
        x: the inputs.
        y: encoded labels or targets, as other losses get them; None without any.
        weight: float32 ``[rows]``, the weight of each row; 0 for rows that fill up the batch.
    """

    x: PyTree
    y: PyTree
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss that calls the model itself, such as that of a VAE or of contrastive learning.

    ``fn(model, batch, key)`` returns the loss of each row, ``[rows]``, or a pair of it and a dict
    of other values to record, each ``[rows]`` or one number. The model is the user's object with
    the current parameters: an NNX module in training mode (in evaluation mode for validation), a
    bound Linen module, or the ``apply`` of `from_functions` with its parameters. Each of its
    methods may be called. The batch is an `ObjectiveBatch`, and the key is that of the step.

    Attributes:
        fn: the function.
        coupled: True if the loss of a row depends on other rows. ``fn`` then returns one number for
            the batch, and leaves out rows of weight 0.

    Raises:
        ConfigError: if ``fn`` is not a function, or ``coupled`` not a bool.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core import Objective
        >>> def with_noise(model, batch, key):
        ...     noisy = batch.x + 0.1 * jax.random.normal(key, batch.x.shape)
        ...     return jnp.square(model(noisy) - batch.x).mean(axis=1)
        >>> loss_fn = Objective(with_noise)
    """

    fn: Callable[..., Any] = dataclasses.field(compare=False)
    coupled: bool = False
    _key: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        if not callable(self.fn):
            raise ConfigError(
                f'Objective: got {self.fn!r}, expected a function (model, batch, key).'
            )
        if not isinstance(self.coupled, bool):
            raise ConfigError(f'coupled: got {self.coupled!r}, expected True or False.')
        object.__setattr__(self, '_key', hashable(self.fn))

    @property
    def name(self) -> str:
        """Returns the name of the function."""
        return getattr(self.fn, '__name__', type(self.fn).__name__)


@dataclasses.dataclass(frozen=True)
class ObjectiveLoss:
    """An objective beside what is known of its data.

    Attributes:
        objective: the objective.
        has_labels: False if the data has no labels.
    """

    objective: Objective
    has_labels: bool = True

    def batch(self, x: PyTree, y: PyTree, weight: Any) -> ObjectiveBatch:
        """Returns what the objective gets."""
        return ObjectiveBatch(x, y if self.has_labels else None, weight)

    def losses(self, result: Any, num_rows: int) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of each row and the other values, from the objective's result.

        Raises:
            ConfigError: for a result of another form.
        """
        losses: Any = result
        values: Any = {}
        if isinstance(result, tuple) and len(result) == 2:
            losses, values = result
        expected = () if self.objective.coupled else (num_rows,)
        if getattr(losses, 'shape', None) != expected:
            raise ConfigError(self._other_losses(losses, num_rows))
        if not jnp.issubdtype(losses.dtype, jnp.floating):
            raise ConfigError(
                f'loss_fn: {self.objective.name} returned {losses.dtype}, expected floats, which '
                'have gradients.'
            )
        is_named = isinstance(values, dict) and all(isinstance(name, str) for name in values)
        if not is_named or '' in values:
            raise ConfigError(
                f'loss_fn: {self.objective.name} returned a pair with a {type(values).__name__}, '
                'expected a dict of values to record, by names.'
            )
        of_rows = {name: self._of_rows(name, value, num_rows) for name, value in values.items()}
        return jnp.broadcast_to(losses.astype(jnp.float32), (num_rows,)), of_rows

    def _of_rows(self, name: str, value: Any, num_rows: int) -> jax.Array:
        start = f'loss_fn: {self.objective.name} returned {name!r}'
        is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
        if not is_array and not isinstance(value, bool | int | float):
            raise ConfigError(f'{start} as a {type(value).__name__}, expected numbers to record.')
        value = jnp.asarray(value)
        kinds = (jnp.bool_, jnp.integer, jnp.floating)
        if not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
            raise ConfigError(f'{start} as {value.dtype}, expected numbers to record.')
        if value.shape not in ((), (num_rows,)):
            raise ConfigError(
                f'{start} of shape {value.shape}, expected a number or one for each row, '
                f'({num_rows},).'
            )
        value = value.astype(jnp.float32)
        return jnp.broadcast_to(jax.lax.stop_gradient(value), (num_rows,))

    def _other_losses(self, losses: Any, num_rows: int) -> str:
        shape = getattr(losses, 'shape', None)
        got = _described(losses) if shape is None else f'shape {shape}'
        start = f'loss_fn: {self.objective.name} returned {got} for a batch of {num_rows} rows'
        if self.objective.coupled:
            return (
                f'{start}, expected one number, since it is coupled. Return the mean over the rows '
                'of weight above 0.'
            )
        if shape == ():
            return (
                f'{start}, expected a loss for each row. Return the losses without their mean, or '
                'Objective(..., coupled=True) for a loss that depends on several rows.'
            )
        start = f'{start}, expected a loss for each row, ({num_rows},)'
        if shape == (num_rows, 1):
            return f'{start}. Return losses[:, 0].'
        if shape and shape[0] == num_rows:
            return f'{start}. Return the sum or the mean over the other axes.'
        return f'{start}, or a pair of it and a dict of values.'


def _described(result: Any) -> str:
    """Returns the kind of a result that is not an array, in words."""
    if result is None:
        return 'None'
    if isinstance(result, tuple):
        return f'a tuple of {len(result)} values'
    return f'a {type(result).__name__}'
