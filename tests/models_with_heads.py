"""Models with several heads, in a separate module so that model files can name them."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

TOKENS = 5


class DictModel(nnx.Module):
    """Returns a class, a number and a tag for each token, and an output without a target."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(4, 8, rngs=rngs)
        self.kind = nnx.Linear(8, 3, rngs=rngs)
        self.price = nnx.Linear(8, 1, rngs=rngs)
        self.tags = nnx.Linear(8, TOKENS * 2, rngs=rngs)

    def __call__(self, x):
        h = jnp.tanh(self.body(x))
        tags = self.tags(h).reshape(-1, TOKENS, 2)
        return {'kind': self.kind(h), 'price': self.price(h), 'tags': tags, 'features': h}


class TupleModel(nnx.Module):
    """Returns a tuple of a class and a number."""

    def __init__(self):
        self.inner = DictModel()

    def __call__(self, x):
        outputs = self.inner(x)
        return outputs['kind'], outputs['price']


class Both(NamedTuple):
    kind: object
    price: object


class NamedModel(TupleModel):
    """Returns a NamedTuple."""

    def __call__(self, x):
        return Both(*super().__call__(x))
