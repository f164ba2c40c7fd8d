"""What a model makes of its inputs just before its last layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from thinkml.core.model.adapters import ApplyFn, FunctionalModel
from thinkml.core.model.functional import functionalize
from thinkml.core.model.layer_inspection import last_product
from thinkml.core.model.mixed_precision import DType
from thinkml.errors import ModelTypeError


class WithFeatures:
    """A model that returns its outputs and, behind them, what its last dense layer takes.

    Both come from one pass: ``[rows, outputs + features]``.

    Args:
        model: see `functionalize`.

    Raises:
        ModelTypeError: when it is applied, if its outputs are not a dense layer's.

    Example:
        >>> import jax, numpy as np
        >>> from flax import nnx
        >>> from thinkml.core import WithFeatures, predict_outputs
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs)
        ... )
        >>> both = predict_outputs(WithFeatures(model), np.ones((5, 4), np.float32))
        >>> outputs, features = both[:, :3], both[:, 3:]
        >>> features.shape
        (5, 8)
    """

    def __init__(self, model: Any):
        self.model = model

    def functionalize(
        self, x: Any, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """See `thinkml.core.functionalize`."""
        functional = functionalize(self.model, x, key, compute_dtype)
        return dataclasses.replace(functional, apply=_WithFeatures(functional.apply))


@dataclasses.dataclass(frozen=True)
class _WithFeatures:
    apply: ApplyFn

    def __call__(self, params, model_state, x, *, key, train):
        def forward(params: Any, x: Any) -> Any:
            return self.apply(params, model_state, x, key=key, train=train)

        closed, (outputs, state) = jax.make_jaxpr(forward, return_shape=True)(params, x)
        jaxpr, leaves = closed.jaxpr, jax.tree.leaves((params, x))
        parameters = set(jaxpr.invars[: len(jax.tree.leaves(params))])
        product = last_product(jaxpr, jaxpr.outvars[0], parameters)
        if product is None:
            raise ModelTypeError(
                'model: its outputs are not those of a dense layer, so it has no features before '
                'its last layer. Let it end in one, such as nnx.Linear.'
            )
        more = jaxpr.replace(
            outvars=[*jaxpr.outvars, product.invars[0]],
            debug_info=jaxpr.debug_info.with_unknown_names(),
        )
        *values, features = jaxpr_as_fun(closed.replace(jaxpr=more))(*leaves)
        outputs, state = jax.tree.unflatten(jax.tree.structure((outputs, state)), values)
        rows = len(outputs)
        both = [part.reshape(rows, -1).astype(jnp.float32) for part in (outputs, features)]
        return jnp.concatenate(both, axis=1), state
