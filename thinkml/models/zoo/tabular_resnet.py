"""ResidualMLP: a residual network for tables."""

from collections.abc import Mapping

import jax
from flax import nnx

from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.initializers import LINEAR_INIT
from thinkml.models.zoo.layers import (
    DType,
    apply_head,
    batch_norm,
    linear,
    make_dropout,
    make_head,
)
from thinkml.models.zoo.mlp import flat_rows


class ResidualMLP(nnx.Module):
    """A network of dense layers with residual connections, for tables of standardised columns.

    ``block(x) = x + dropout(dense(dropout(relu(dense(norm(x))))))`` and
    ``features(x) = relu(norm(block(...block(dense(x)))))``, with BatchNorm.

    Args:
        in_features: the number of columns.
        width: the number of values per row between blocks.
        depth: the number of blocks.
        hidden: the ratio of a block's hidden width to ``width``.
        num_classes: the number of outputs of the head; None for no head.
        dropout: the rate of dropout inside a block, in training.
        residual_dropout: the rate of dropout at the end of a block, in training.
        dtype: the dtype of the computation; parameters and statistics are float32.
        rngs: random streams; ``params``, and with one of the rates also ``dropout``, are used.

    Attributes:
        num_features: the number of features per example.
        head: the last dense layer, or None.

    Raises:
        DataError: when called, if ``x`` has another number of columns.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.models.zoo import create
        >>> model = create('residual_mlp', num_classes=3, in_features=8)
        >>> model(jnp.zeros((5, 8))).shape
        (5, 3)

    Reference:
        Gorishniy, Rubachev, Khrulkov, Babenko, 2021: Revisiting Deep Learning Models for Tabular
        Data
    """

    def __init__(
        self,
        in_features: int,
        width: int = 192,
        depth: int = 2,
        hidden: float = 2.0,
        *,
        num_classes: int | None,
        dropout: float = 0.15,
        residual_dropout: float = 0.0,
        dtype: DType | None = None,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        self.first = linear(in_features, width, kernel_init=LINEAR_INIT, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            Block(width, int(width * hidden), (dropout, residual_dropout), dtype=dtype, rngs=rngs)
            for _ in range(depth)
        )
        self.norm = batch_norm(width, dtype=dtype, rngs=rngs)
        self.num_features = width
        self.head = nnx.data(make_head(width, num_classes, dtype=dtype, rngs=rngs))

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the normalised outputs of the last block, ``[batch, num_features]``."""
        x = self.first(flat_rows(x, self.in_features))
        for block in self.blocks:
            x = block(x)
        return nnx.relu(self.norm(x))

    def __call__(self, x: jax.Array) -> jax.Array:
        return apply_head(self.head, self.features(x))


class Block(nnx.Module):
    """A block of two dense layers after BatchNorm, whose output is added to its input."""

    def __init__(
        self,
        width: int,
        hidden: int,
        rates: tuple[float, float],
        *,
        dtype: DType | None,
        rngs: nnx.Rngs,
    ):
        self.norm = batch_norm(width, dtype=dtype, rngs=rngs)
        self.fc1 = linear(width, hidden, kernel_init=LINEAR_INIT, dtype=dtype, rngs=rngs)
        self.dropout = make_dropout(rates[0], rngs)
        self.fc2 = linear(hidden, width, kernel_init=LINEAR_INIT, dtype=dtype, rngs=rngs)
        self.residual_dropout = make_dropout(rates[1], rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.dropout(nnx.relu(self.fc1(self.norm(x))))
        return x + self.residual_dropout(self.fc2(hidden))


ARCHITECTURES: Mapping[str, Architecture] = {'residual_mlp': Architecture(ResidualMLP)}
