"""Layer inspection: a model's layers in the order of computation, and its last dense layer."""

import dataclasses
import math
from collections.abc import Container, Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from thinkml.core.model.adapters import VariablePath
from thinkml.core.model.functional import functionalize, probe
from thinkml.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with parameters, including the modules that count as a part of it.

    A convolution, dense layer or embedding is a layer. A module with other parameters
    (normalisation, a scale) is a part of the layer that is computed before it.

    Attributes:
        name: the path of its module, joined by dots.
        params: the paths of its parameters in the model.
        num_parameters: the number of values in its parameters.
    """

    name: str
    params: tuple[VariablePath, ...]
    num_parameters: int


def layers_in_order(model: nnx.Module, x: PyTree) -> list[Layer]:
    """Returns the layers with parameters in the order of their first use, without computing.

    Args:
        model: the model, in any mode.
        x: inputs; only the shape of a row and the dtype are read.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from thinkml.core.model.layer_inspection import layers_in_order
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), jax.nn.relu,
        ...     nnx.Linear(8, 2, rngs=rngs),
        ... )
        >>> layers = layers_in_order(model, jnp.ones((1, 4)))
        >>> [(layer.name, layer.num_parameters) for layer in layers]
        [('layers.0', 56), ('layers.3', 18)]
    """
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    arrays: dict[VariablePath, Any] = {path: variable.get_value() for path, variable in params}
    first_use = _first_uses(model, x)
    # Unused modules come before all others: they can't learn anything.
    modules = sorted({path[:-1] for path in arrays}, key=lambda m: first_use.get(m, -1))
    layers: list[list[VariablePath]] = []
    pending: list[VariablePath] = []  # parameters before the first layer, which become part of it
    for module in modules:
        paths = [path for path in arrays if path[:-1] == module]
        if any(_begins_layer(path, arrays[path].shape) for path in paths):
            layers.append([*pending, *paths])
            pending = []
        elif layers:
            layers[-1] += paths
        else:
            pending += paths
    if pending:
        layers.append(pending)
    return [_layer(paths, arrays) for paths in layers]


def _layer(paths: list[VariablePath], arrays: dict[VariablePath, Any]) -> Layer:
    module = next((p for p in paths if _begins_layer(p, arrays[p].shape)), paths[0])[:-1]
    size = sum(math.prod(arrays[path].shape) for path in paths)
    return Layer('.'.join(map(str, module)), tuple(paths), size)


def _begins_layer(path: VariablePath, shape: tuple[int, ...]) -> bool:
    return path[-1] in ('kernel', 'embedding') or sum(size > 1 for size in shape) >= 2


def last_dense(model: nnx.Module, x: PyTree) -> VariablePath | None:
    """Returns the path of the dense layer that computes the model's output, if there is one.

    Args:
        model: the model, in any mode.
        x: inputs; only the shape of a row and the dtype are read.
    """
    jaxpr, paths = _forward(model, x)
    product = last_product(jaxpr, jaxpr.outvars[0], paths)
    if product is None:
        return None
    path = paths[origin(product.invars[1], producers_of(jaxpr))]
    return path[:-1] if path[-1] == 'kernel' else None


def last_product(
    jaxpr: Jaxpr, output: Var | Literal, parameters: Container[Any]
) -> JaxprEqn | None:
    """Returns the product with a parameter that computes an output, up to a bias.

    Args:
        jaxpr: a forward pass.
        output: its variable that holds the outputs.
        parameters: its variables that are parameters.

    Returns:
        the equation of the product; None if the output is not such a product.
    """
    equations = last_dense_equations(jaxpr, output, parameters)
    return equations[0] if equations else None


def last_dense_equations(
    jaxpr: Jaxpr, output: Var | Literal, parameters: Container[Any]
) -> list[JaxprEqn]:
    """Returns the equations of the dense layer that computes an output, its product first.

    The list is empty if the output is not that of a dense layer. See `last_product`.
    """
    producers = producers_of(jaxpr)
    equations = []
    while not isinstance(output, Literal) and output in producers:
        eqn = producers[output]
        if eqn.primitive.name not in _AFTER_DENSE:
            return []
        equations.append(eqn)
        if eqn.primitive.name == 'dot_general':
            is_dense = origin(eqn.invars[1], producers) in parameters
            return equations[::-1] if is_dense else []
        others = [v for v in eqn.invars if origin(v, producers) not in parameters]  # no biases
        if len(others) != 1:
            return []
        [output] = others
    return []


def producers_of(jaxpr: Jaxpr) -> dict[Any, JaxprEqn]:
    """Returns the equation that computes each variable."""
    return {variable: eqn for eqn in jaxpr.eqns for variable in eqn.outvars}


# The operations of a dense layer: the product, the bias, and changes of shape and dtype.
_AFTER_DENSE = ('dot_general', 'add', 'reshape', 'squeeze', 'convert_element_type')


def origin(variable: Var | Literal, producers: Mapping[Any, JaxprEqn]) -> Any:
    """Returns the variable that another one was before changes of dtype and shape."""
    keeps_values = ('convert_element_type', 'reshape', 'broadcast_in_dim', 'transpose')
    while not isinstance(variable, Literal) and variable in producers:
        eqn = producers[variable]
        if eqn.primitive.name not in keeps_values:
            break
        variable = eqn.invars[0]
    return None if isinstance(variable, Literal) else variable


def _forward(model: nnx.Module, x: PyTree) -> tuple[Jaxpr, dict[Any, VariablePath]]:
    """Returns the equations of the forward pass, and the path of each parameter variable."""
    functional = functionalize(model, x, jax.random.key(0))

    def forward(params: PyTree, model_state: PyTree, x: PyTree) -> PyTree:
        return functional.apply(params, model_state, x, key=None, train=False)[0]

    jaxpr = jax.make_jaxpr(forward)(functional.params, functional.model_state, probe(x)).jaxpr
    leaves = jax.tree_util.tree_leaves_with_path(functional.params)
    paths = [tuple(key.key for key in keys) for keys, _ in leaves]
    return jaxpr, dict(zip(jaxpr.invars, paths, strict=False))


def _first_uses(model: nnx.Module, x: PyTree) -> dict[VariablePath, int]:
    """Returns the time at which each module's parameters are first used, by its path."""
    jaxpr, params = _forward(model, x)
    uses: dict[VariablePath, int] = {}
    for time, path in enumerate(_reads(jaxpr, params)):
        uses.setdefault(path[:-1], time)
    return uses


def _reads(jaxpr: Jaxpr, paths: dict[Any, VariablePath]) -> Iterator[VariablePath]:
    """Yields the paths of variables in the order in which equations read them.

    Args:
        jaxpr: a program.
        paths: the path of each of its variables that is a parameter.
    """
    for eqn in jaxpr.eqns:
        inner = [
            value.jaxpr if isinstance(value, ClosedJaxpr) else value
            for value in eqn.params.values()
            if isinstance(value, ClosedJaxpr | Jaxpr)
        ]
        read = [paths[v] for v in eqn.invars if not isinstance(v, Literal) and v in paths]
        called = [part for part in inner if len(part.invars) == len(eqn.invars)]
        if called:
            inner_paths = {
                variable: paths[operand]
                for variable, operand in zip(called[0].invars, eqn.invars, strict=True)
                if not isinstance(operand, Literal) and operand in paths
            }
            yield from _reads(called[0], inner_paths)
        yield from read
