"""MLP: a multilayer perceptron."""

import itertools
from collections.abc import Mapping, Sequence

import jax
from flax import nnx

from thinkml.errors import DataError
from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.initializers import Init
from thinkml.models.zoo.layers import DType, apply_head, linear, make_dropout, make_head

_INIT = Init(2.0, 'in')


class MLP(nnx.Module):
    """A network of dense layers with ReLU between them, for rows of standardised numbers.

    Args:
        in_features: the number of values per row; the product of the axes if rows have several.
        hidden: the width of each hidden layer.
        num_classes: the number of outputs of the head; None for no head.
        dropout: the rate of dropout after each hidden layer, in training.
        dtype: the dtype of the computation; parameters are float32.
        rngs: random streams; ``params``, and with a rate also ``dropout``, are used.

    Attributes:
        num_features: the number of features per example.
        head: the last dense layer, or None.

    Raises:
        DataError: when called, if ``x`` has rows of another size.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.models.zoo import create
        >>> model = create('mlp', num_classes=3, in_features=8, hidden=(32, 16))
        >>> model(jnp.zeros((5, 8))).shape, model.features(jnp.zeros((5, 8))).shape
        ((5, 3), (5, 16))
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (256, 256),
        *,
        num_classes: int | None,
        dropout: float = 0.0,
        dtype: DType | None = None,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        widths = (in_features, *hidden)
        self.layers = nnx.List(
            linear(before, width, kernel_init=_INIT, dtype=dtype, rngs=rngs)
            for before, width in itertools.pairwise(widths)
        )
        self.dropout = make_dropout(dropout, rngs)
        self.num_features = widths[-1]
        self.head = nnx.data(make_head(self.num_features, num_classes, dtype=dtype, rngs=rngs))

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the outputs of the last hidden layer, ``[batch, num_features]``."""
        x = flat_rows(x, self.in_features)
        for layer in self.layers:
            x = self.dropout(nnx.relu(layer(x)))
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_head(self.head, self.features(x))


def flat_rows(x: jax.Array, in_features: int) -> jax.Array:
    """Flattens each row to one axis.

    Raises:
        DataError: if a row does not have ``in_features`` numbers.
    """
    flat = x.reshape(x.shape[0], -1) if x.ndim > 1 else x
    if flat.ndim != 2 or flat.shape[1] != in_features:
        raise DataError(
            f'x: got shape {x.shape}, expected rows of {in_features} numbers. Pass '
            'in_features=X.shape[1] when you create the model.'
        )
    return flat


ARCHITECTURES: Mapping[str, Architecture] = {'mlp': Architecture(MLP)}
