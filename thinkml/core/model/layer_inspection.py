"""The layers of a model, in the order in which it computes them."""

import dataclasses
import math
from collections.abc import Container, Iterator
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from thinkml.core.model.functional import functionalize, probe

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with parameters, together with what is only a part of it.

    A convolution, dense layer or embedding is a layer. What has parameters of another kind
    (normalisation, a scale) is a part of the layer that is computed before it.

    Attributes:
        name: the path of its module, joined by dots.
        params: the paths of its parameters in the model.
        num_parameters: numbers in them.
    """

    name: str
    params: tuple[Path, ...]
    num_parameters: int


def layers_in_order(model: nnx.Module, x: Any) -> list[Layer]:
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
    arrays: dict[Path, Any] = {path: variable.get_value() for path, variable in params}
    first_use = _first_uses(model, x)
    # Before all others: what is never used, which nothing can be learned for.
    modules = sorted({path[:-1] for path in arrays}, key=lambda m: first_use.get(m, -1))
    layers: list[list[Path]] = []
    waiting: list[Path] = []  # parts of a layer that comes first of all
    for module in modules:
        own = [path for path in arrays if path[:-1] == module]
        if any(_begins_layer(path, arrays[path].shape) for path in own):
            layers.append([*waiting, *own])
            waiting = []
        elif layers:
            layers[-1] += own
        else:
            waiting += own
    if waiting:
        layers.append(waiting)
    return [_layer(paths, arrays) for paths in layers]


def _layer(paths: list[Path], arrays: dict[Path, Any]) -> Layer:
    module = next((p for p in paths if _begins_layer(p, arrays[p].shape)), paths[0])[:-1]
    size = sum(math.prod(arrays[path].shape) for path in paths)
    return Layer('.'.join(map(str, module)), tuple(paths), size)


def _begins_layer(path: Path, shape: tuple[int, ...]) -> bool:
    return path[-1] in ('kernel', 'embedding') or sum(size > 1 for size in shape) >= 2


def last_dense(model: nnx.Module, x: Any) -> Path | None:
    """Returns the path of the dense layer whose result is the model's output, if there is one.

    Args:
        model: the model, in any mode.
        x: inputs; only the shape of a row and the dtype are read.
    """
    jaxpr, paths = _forward(model, x)
    product = last_product(jaxpr, jaxpr.outvars[0], paths)
    if product is None:
        return None
    path = paths[_origin(product.invars[1], _made_by(jaxpr))]
    return path[:-1] if path[-1] == 'kernel' else None


def last_product(jaxpr: Jaxpr, output: Any, parameters: Container[Any]) -> JaxprEqn | None:
    """Returns the product with a parameter that an output is, but for a bias, if it is one.

    Args:
        jaxpr: a forward pass.
        output: the variable of it that holds the outputs.
        parameters: the variables of it that are parameters.
    """
    made_by = _made_by(jaxpr)
    while not isinstance(output, Literal) and output in made_by:
        eqn = made_by[output]
        if eqn.primitive.name not in _AFTER_DENSE:
            return None
        if eqn.primitive.name == 'dot_general':
            return eqn if _origin(eqn.invars[1], made_by) in parameters else None
        others = [v for v in eqn.invars if _origin(v, made_by) not in parameters]  # no biases
        if len(others) != 1:
            return None
        [output] = others
    return None


def _made_by(jaxpr: Jaxpr) -> dict[Any, JaxprEqn]:
    return {variable: eqn for eqn in jaxpr.eqns for variable in eqn.outvars}


# What a dense layer does with its product, besides adding a bias.
_AFTER_DENSE = ('dot_general', 'add', 'reshape', 'squeeze', 'convert_element_type')


def _origin(variable: Any, made_by: dict[Any, Any]) -> Any:
    """What a variable was before its type and shape were changed."""
    same = ('convert_element_type', 'reshape', 'broadcast_in_dim')
    while not isinstance(variable, Literal) and variable in made_by:
        eqn = made_by[variable]
        if eqn.primitive.name not in same:
            break
        variable = eqn.invars[0]
    return None if isinstance(variable, Literal) else variable


def _forward(model: nnx.Module, x: Any) -> tuple[Jaxpr, dict[Any, Path]]:
    """The forward pass as equations, and the path of each variable that is a parameter."""
    functional = functionalize(model, x, jax.random.key(0))

    def forward(params: Any, model_state: Any, x: Any) -> Any:
        return functional.apply(params, model_state, x, key=None, train=False)[0]

    jaxpr = jax.make_jaxpr(forward)(functional.params, functional.model_state, probe(x)).jaxpr
    leaves = jax.tree_util.tree_leaves_with_path(functional.params)
    paths = [tuple(key.key for key in keys) for keys, _ in leaves]
    return jaxpr, dict(zip(jaxpr.invars, paths, strict=False))


def _first_uses(model: nnx.Module, x: Any) -> dict[Path, int]:
    """When the parameters of a module are first used, by the path of the module."""
    jaxpr, params = _forward(model, x)
    uses: dict[Path, int] = {}
    for time, path in enumerate(_reads(jaxpr, params)):
        uses.setdefault(path[:-1], time)
    return uses


def _reads(jaxpr: Jaxpr, known: dict[Any, Path]) -> Iterator[Path]:
    """The paths of the ``known`` variables in the order in which equations read them."""
    for eqn in jaxpr.eqns:
        inner = [
            value.jaxpr if isinstance(value, ClosedJaxpr) else value
            for value in eqn.params.values()
            if isinstance(value, ClosedJaxpr | Jaxpr)
        ]
        read = [known[v] for v in eqn.invars if not isinstance(v, Literal) and v in known]
        same = [part for part in inner if len(part.invars) == len(eqn.invars)]
        if same:
            within = {
                own: known[outer]
                for own, outer in zip(same[0].invars, eqn.invars, strict=True)
                if not isinstance(outer, Literal) and outer in known
            }
            yield from _reads(same[0], within)
        yield from read
