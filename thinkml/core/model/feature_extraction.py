"""Feature extraction: the inputs of a model's last dense layer."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from thinkml.core.model.adapters import ApplyFn, FunctionalModel
from thinkml.core.model.functional import functionalize
from thinkml.core.model.layer_inspection import last_product
from thinkml.core.model.mixed_precision import DType
from thinkml.errors import ModelTypeError
from thinkml.typing import Model, PyTree


class WithFeatures:
    """A model that returns its outputs followed by the inputs of its last dense layer.

    Both come from one pass: ``[rows, outputs + features]``.

    Args:
        model: see `functionalize`.

    Raises:
        ModelTypeError: on application, if its outputs do not come from a dense layer.

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

    def __init__(self, model: Model):
        self.model = model

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """Returns the model as a `FunctionalModel`, see `thinkml.core.functionalize`."""
        functional = functionalize(self.model, x, key, compute_dtype)
        return dataclasses.replace(functional, apply=_WithFeatures(functional.apply))


@dataclasses.dataclass(frozen=True)
class _WithFeatures:
    apply: ApplyFn

    def __call__(self, params, model_state, x, *, key, train):
        def forward(params: PyTree, x: PyTree) -> PyTree:
            return self.apply(params, model_state, x, key=key, train=train)

        closed, (outputs, state) = jax.make_jaxpr(forward, return_shape=True)(params, x)
        jaxpr, leaves = closed.jaxpr, jax.tree.leaves((params, x))
        parameters = set(jaxpr.invars[: len(jax.tree.leaves(params))])
        product = last_product(jaxpr, jaxpr.outvars[0], parameters)
        if product is None:
            raise ModelTypeError(
                'model: its outputs are not those of a dense layer, so it has no features before '
                'its last layer. End the model in a dense layer, such as nnx.Linear.'
            )
        with_features = jaxpr.replace(
            outvars=[*jaxpr.outvars, product.invars[0]],
            debug_info=jaxpr.debug_info.with_unknown_names(),
        )
        *values, features = jaxpr_as_fun(closed.replace(jaxpr=with_features))(*leaves)
        outputs, state = jax.tree.unflatten(jax.tree.structure((outputs, state)), values)
        rows = len(outputs)
        both = [part.reshape(rows, -1).astype(jnp.float32) for part in (outputs, features)]
        return jnp.concatenate(both, axis=1), state
