"""Convolutions and max-pooling at full speed on CPU, as a pass over a traced function.

Inside compiled loops XLA:CPU leaves the convolutions that compute weight gradients in layouts for
which it has no fast code (6 to 17 times slower than outside the loop), and it differentiates
max-pooling element by element. The pass replaces those operations, one for one, by equal ones:

- any convolution: the same one between explicit transposes to NHWC and HWIO,
- a convolution that is a weight gradient: matrix products, where its shape says they are faster,
- max-pooling over windows that don't overlap, and its gradient: a reshape and a maximum.

On an accelerator, or with ``THINKML_FAST_CONVOLUTIONS=0`` in the environment, nothing is replaced.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun, primitives

Params = Mapping[str, Any]
Rule = Callable[..., jax.Array]

# Primitives whose inner programs are rewritten too. In others (custom kernels, shard_map) an
# inner program can mean something else than in isolation: they stay as they are.
_NESTING = frozenset(
    {
        primitives.jit_p,
        primitives.closed_call_p,
        primitives.custom_jvp_call_p,
        primitives.custom_vjp_call_p,
        primitives.remat_p,
        primitives.scan_p,
        primitives.while_p,
        primitives.cond_p,
    }
)


def fast_convolutions(fn: Callable) -> Callable:
    """Returns ``fn`` with its convolutions and max-pools in forms that XLA:CPU runs fast.

    The result computes the same as ``fn``, to rounding, with the same arguments and outputs;
    where several elements of a pooling window are the maximum, the gradient still goes to the
    first. A function without convolutions and max-pools is traced to the same jaxpr as before.

    Apply it outermost, to the differentiated function: the gradients' convolutions are the slow
    ones, and they don't exist before.

    Args:
        fn: what ``jax.jit`` accepts without static arguments: arrays in pytrees in and out. It is
            traced once per call, so call the result under ``jax.jit``, ``lax.scan`` or alike.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax import lax
        >>> from thinkml.core.convolutions import fast_convolutions
        >>> def loss(kernel, x):
        ...     return jnp.sum(lax.conv(x, kernel, (1, 1), 'SAME') ** 2)
        >>> step = jax.jit(fast_convolutions(jax.value_and_grad(loss)))
        >>> value, grad = step(jnp.ones((16, 1, 3, 3)), jnp.ones((8, 1, 28, 28)))
        >>> grad.shape
        (16, 1, 3, 3)
    """

    @functools.wraps(fn)
    def fast(*args, **kwargs):
        if jax.default_backend() != 'cpu' or os.environ.get('THINKML_FAST_CONVOLUTIONS') == '0':
            return fn(*args, **kwargs)
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        leaves = jaxpr_as_fun(_rewrite(closed))(*jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return fast


# --- the pass ---------------------------------------------------------------------------------


def _rewrite(value: Any) -> Any:
    """An equation's parameter with every program in it rewritten; itself where nothing changes."""
    if isinstance(value, ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if isinstance(value, Jaxpr):
        eqns = [_rewrite_equation(eqn) for eqn in value.eqns]
        unchanged = all(new is old for new, old in zip(eqns, value.eqns, strict=True))
        return value if unchanged else value.replace(eqns=eqns)
    if type(value) is tuple:
        items = tuple(_rewrite(item) for item in value)
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value


def _rewrite_equation(eqn: JaxprEqn) -> JaxprEqn:
    if eqn.primitive in _NESTING:
        params = {name: _rewrite(value) for name, value in eqn.params.items()}
        unchanged = all(params[name] is value for name, value in eqn.params.items())
        return eqn if unchanged else eqn.replace(params=params)
    rule = _rule_for(eqn)
    if rule is None:
        return eqn
    # The replacement is one equation as well, a call: its neighbours don't notice.
    replacement = jax.jit(functools.partial(rule, eqn.params))
    traced = jax.make_jaxpr(replacement)(*(var.aval for var in eqn.invars))
    (call,) = traced.eqns
    if traced.out_avals != [var.aval for var in eqn.outvars]:
        return eqn
    return eqn.replace(primitive=call.primitive, params=call.params)


def _rule_for(eqn: JaxprEqn) -> Rule | None:
    """The replacement for an equation, or None where the original stands."""
    rules = {
        primitives.conv_general_dilated_p: _rule_for_convolution,
        primitives.reduce_window_max_p: _rule_for_max_pool,
        primitives.select_and_scatter_add_p: _rule_for_max_pool_gradient,
    }
    if eqn.primitive not in rules:
        return None
    avals = [var.aval for var in (*eqn.invars, *eqn.outvars)]
    if any(0 in aval.shape or not jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals):
        return None
    return rules[eqn.primitive](eqn)


# --- convolutions -----------------------------------------------------------------------------
# A ConvDimensionNumbers holds the axes of (batch, feature, *space) of the image and the result,
# and of (out feature, in feature, *space) of the kernel.


def _rule_for_convolution(eqn: JaxprEqn) -> Rule | None:
    params = eqn.params
    if params['out_sharding'] is not None:
        return None
    rule = _rule_for_weight_gradient(eqn)
    canonical = _canonical_dimensions(len(params['window_strides']))
    return None if rule is None and params['dimension_numbers'] == canonical else rule or _canonical


def _rule_for_weight_gradient(eqn: JaxprEqn) -> Rule | None:
    """Picks the matrix products for a weight gradient, None where a convolution is faster.

    JAX writes the weight gradient as a convolution of the image with the output's gradient whose
    batch is the input's channels, whose result's space is the kernel's offsets, and that
    contracts over the batch: the first axis.

    The numbers are measured in whole training steps (small CNN, LeNet, VGG, ResNets), where a
    product's operands are in the cache more often than alone.
    """
    params = eqn.params
    image_axes, _, out_axes = params['dimension_numbers']
    ungrouped = params['feature_group_count'] == params['batch_group_count'] == 1
    if image_axes[1] != 0 or not ungrouped or any(step != 1 for step in params['lhs_dilation']):
        return None
    channels, features, *kernel = (eqn.outvars[0].aval.shape[axis] for axis in out_axes)
    offsets = math.prod(kernel)
    if offsets == 1:
        return _weight_gradient_by_offset
    if features < 16 or offsets > 49:
        return None
    if channels <= 4:
        return _weight_gradient_by_patches if channels * offsets <= 2 * features else None
    return _weight_gradient_by_offset if channels >= 16 else None


def _canonical_dimensions(rank: int) -> lax.ConvDimensionNumbers:
    """NHWC images and HWIO kernels, for any number of spatial axes."""
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image)


def _space_inside(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Brings the axes ``(first, last, *space)`` into the order (first, *space, last)."""
    return x.transpose(axes[0], *axes[2:], axes[1])


def _canonical(params: Params, image: jax.Array, kernel: jax.Array) -> jax.Array:
    image_axes, kernel_axes, out_axes = params['dimension_numbers']
    canonical = _canonical_dimensions(image.ndim - 2)
    out = primitives.conv_general_dilated_p.bind(
        _space_inside(image, image_axes),
        kernel.transpose(*kernel_axes[2:], kernel_axes[1], kernel_axes[0]),
        **{**params, 'dimension_numbers': canonical},
    )
    return out.transpose(_inverse((out_axes[0], *out_axes[2:], out_axes[1])))


def _inverse(permutation: Sequence[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


def _weight_gradient_by_offset(params: Params, image: jax.Array, grad: jax.Array) -> jax.Array:
    """For each offset of the kernel: the shifted image, transposed, times the gradient."""
    image, grad, kernel = _canonical_operands(params, image, grad)
    columns = grad.reshape(-1, grad.shape[-1])
    rows = [shifted.reshape(len(columns), -1) for shifted in _shifts(params, image, grad, kernel)]
    products = jnp.stack([_product(params, row, columns) for row in rows])
    return _from_canonical(params, products.reshape(*kernel, image.shape[-1], grad.shape[-1]))


def _weight_gradient_by_patches(params: Params, image: jax.Array, grad: jax.Array) -> jax.Array:
    """All offsets' shifted images side by side, transposed, times the gradient."""
    image, grad, kernel = _canonical_operands(params, image, grad)
    columns = grad.reshape(-1, grad.shape[-1])
    patches = jnp.concatenate(list(_shifts(params, image, grad, kernel)), axis=-1)
    product = _product(params, patches.reshape(len(columns), -1), columns)
    return _from_canonical(params, product.reshape(*kernel, image.shape[-1], grad.shape[-1]))
