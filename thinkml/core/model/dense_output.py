"""Dense output: a model's outputs as the last product of its forward pass, not yet computed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import struct
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from thinkml.core.model.adapters import ApplyFn
from thinkml.core.model.functional import functionalize
from thinkml.core.model.layer_inspection import last_dense_equations, origin, producers_of
from thinkml.core.model.mixed_precision import DType
from thinkml.core.objectives.losses import chunk_of
from thinkml.errors import ConfigError
from thinkml.typing import Model, PyTree


@struct.dataclass
class DenseOutput:
    """The outputs ``features @ kernel + bias`` of a model.

    Attributes:
        features: ``[rows, ..., features]``.
        kernel: ``[features, outputs]``, or ``[outputs, features]``, before changes of its dtype.
        bias: ``[outputs]``; None if the layer has none.
        kernel_axis: the axis of the kernel's features.
        product_dtype: the dtype in which the kernel is multiplied.
        product_options: the other options of the product.
        dtypes: the dtypes of the results: of the sum with the bias, and of the outputs.
    """

    features: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    kernel_axis: int = struct.field(pytree_node=False)
    product_dtype: Any = struct.field(pytree_node=False)
    product_options: tuple[tuple[str, Any], ...] = struct.field(pytree_node=False)
    dtypes: tuple[Any, Any] = struct.field(pytree_node=False)

    def outputs(self) -> jax.Array:
        """Returns the outputs, ``[rows, ..., outputs]``."""
        contracted = ((self.features.ndim - 1,), (self.kernel_axis,))
        values = jax.lax.dot_general(
            self.features, self.kernel.astype(self.product_dtype), (contracted, ((), ())),
            **dict(self.product_options),
        )  # fmt: skip
        sum_dtype, output_dtype = self.dtypes
        if self.bias is not None:
            values = values.astype(sum_dtype) + self.bias.astype(sum_dtype)
        return values.astype(output_dtype)


def with_dense_output(apply: ApplyFn) -> Callable[..., tuple[DenseOutput, PyTree]]:
    """Returns a forward pass that returns a `DenseOutput` in place of the outputs.

    It takes the arguments of ``apply``, and raises a `ConfigError` when it is traced if the outputs
    are not those of a dense layer.
    """

    @functools.wraps(apply)
    def forward(params: PyTree, model_state: PyTree, x: PyTree, *, key: Any, train: bool):
        def run(params: PyTree, model_state: PyTree, x: PyTree, key: Any) -> PyTree:
            return apply(params, model_state, x, key=key, train=train)

        arguments = (params, model_state, x, key)
        closed, (outputs, state) = jax.make_jaxpr(run, return_shape=True)(*arguments)
        jaxpr = closed.jaxpr
        if not hasattr(outputs, 'shape'):
            raise _not_dense('it returns several outputs')
        parameters = set(jaxpr.invars[: len(jax.tree.leaves((params, model_state)))])
        equations = last_dense_equations(jaxpr, jaxpr.outvars[0], parameters)
        dense, sources = _dense_output(jaxpr, equations)
        before = jaxpr.replace(
            eqns=_without(jaxpr, equations),
            outvars=[*sources, *jaxpr.outvars[1:]],
            debug_info=jaxpr.debug_info.with_unknown_names(),
        )
        leaves = jaxpr_as_fun(closed.replace(jaxpr=before))(*jax.tree.leaves(arguments))
        structure = jax.tree.structure((dense, state))
        return jax.tree.unflatten(structure, leaves)

    return forward


def check_chunk(
    loss_fn: object, model: Model, x: PyTree, compute_dtype: DType | None = None
) -> None:
    """Raises a `ConfigError` if a loss has chunks and a model does not end in a dense layer.

    Args:
        loss_fn: a loss.
        model: see `functionalize`.
        x: inputs; only shapes and dtypes are read.
        compute_dtype: see `functionalize`.
    """
    if chunk_of(loss_fn) is None:
        return
    functional = functionalize(model, x, jax.random.key(0), compute_dtype)
    forward = functools.partial(with_dense_output(functional.apply), train=False, key=None)
    jax.eval_shape(forward, functional.params, functional.model_state, x)


def _dense_output(jaxpr: Jaxpr, equations: list[JaxprEqn]) -> tuple[DenseOutput, list[Any]]:
    """Returns a dense output with placeholders as arrays, and the variables of its arrays."""
    if not equations:
        raise _not_dense('it computes more after its last product')
    product, *others = equations
    features, kernel, output, result = map(
        _shape_of, (*product.invars, product.outvars[0], jaxpr.outvars[0])
    )
    contracted, batched = product.params['dimension_numbers']
    if contracted[0] != (features.ndim - 1,) or any(batched) or kernel.ndim != 2:
        raise _not_dense('its last product is not one of features and a matrix')
    additions = [eqn for eqn in others if eqn.primitive.name == 'add']
    if len(additions) > 1 or result.shape[-1] != output.shape[-1]:
        raise _not_dense('it computes more after its last product')
    producers = producers_of(jaxpr)
    source, axis = product.invars[1], contracted[1][0]
    while source in producers and producers[source].primitive.name in _SAME_MATRIX:
        eqn = producers[source]
        if eqn.primitive.name == 'transpose':
            axis = eqn.params['permutation'][axis]
        [source] = eqn.invars
    added = [origin(v, producers) for eqn in additions for v in eqn.invars]
    biases = [v for v in added if v is not None and _shape_of(v).shape == output.shape[-1:]]
    if len(biases) != len(additions):
        raise _not_dense('it adds more than a bias to its last product')
    placeholder: Any = 0
    dense = DenseOutput(
        features=placeholder,
        kernel=placeholder,
        bias=placeholder if biases else None,
        kernel_axis=axis,
        product_dtype=kernel.dtype,
        product_options=tuple(
            (name, product.params[name]) for name in ('precision', 'preferred_element_type')
        ),
        dtypes=(_shape_of(additions[0].outvars[0]).dtype if additions else None, result.dtype),
    )
    return dense, [product.invars[0], source, *biases]


def _shape_of(variable: Any) -> Any:
    """Returns the shape and dtype of a variable."""
    return variable.aval


_SAME_MATRIX = ('convert_element_type', 'transpose')


def _without(jaxpr: Jaxpr, equations: list[JaxprEqn]) -> list[JaxprEqn]:
    """Returns the equations of a program without some, unless other values depend on these."""
    dropped = set(map(id, equations))
    kept = [eqn for eqn in jaxpr.eqns if id(eqn) not in dropped]
    reads = [v for eqn in kept for v in eqn.invars] + list(jaxpr.outvars[1:])
    read = {v for v in reads if not isinstance(v, Literal)}
    return jaxpr.eqns if any(v in read for eqn in equations for v in eqn.outvars) else kept


def _not_dense(found: str) -> ConfigError:
    return ConfigError(
        f'loss_fn: got CrossEntropy with a chunk for a model that does not end in a dense layer: '
        f'{found}. Chunks are computed from the inputs and the kernel of the last layer. End the '
        'model in nnx.Linear or nnx.Embed.attend, or leave chunk out.'
    )
