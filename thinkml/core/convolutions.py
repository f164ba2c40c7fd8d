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
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun, primitives

# Computes an equation's result from the equation and its operands.
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
    if isinstance(value, Jaxpr):  # asked first: in jax 0.11 the two are one class
        eqns = [_rewrite_equation(eqn) for eqn in value.eqns]
        unchanged = all(new is old for new, old in zip(eqns, value.eqns, strict=True))
        return value if unchanged else value.replace(eqns=eqns)
    if isinstance(value, ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
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
    traced = jax.make_jaxpr(jax.jit(functools.partial(rule, eqn)))(*_avals(eqn.invars))
    (call,) = traced.eqns
    if traced.out_avals != _avals(eqn.outvars):
        return eqn
    return eqn.replace(primitive=call.primitive, params=call.params)


def _avals(variables: Sequence[Any]) -> list[Any]:
    return [variable.aval for variable in variables]


def _rule_for(eqn: JaxprEqn) -> Rule | None:
    """The replacement for an equation, or None where the original stands."""
    rules = {
        primitives.conv_general_dilated_p: _rule_for_convolution,
        primitives.reduce_window_max_p: _rule_for_max_pool,
        primitives.select_and_scatter_add_p: _rule_for_max_pool_gradient,
    }
    if eqn.primitive not in rules:
        return None
    supported = all(_is_supported(aval) for aval in _avals([*eqn.invars, *eqn.outvars]))
    return rules[eqn.primitive](eqn) if supported else None


def _is_supported(aval: Any) -> bool:
    """Real, not empty, and without axes whose sharding is part of the type."""
    is_real = jnp.issubdtype(aval.dtype, jnp.floating)
    return is_real and 0 not in aval.shape and not aval.sharding.mesh.explicit_axes


# --- convolutions -----------------------------------------------------------------------------
# A ConvDimensionNumbers holds the axes of (batch, feature, *space) in the image and the result,
# and of (out feature, in feature, *space) in the kernel.


def _rule_for_convolution(eqn: JaxprEqn) -> Rule | None:
    rule = _rule_for_weight_gradient(eqn) if _is_weight_gradient(eqn) else None
    if rule is not None:
        return rule
    canonical = _canonical_dimensions(len(eqn.params['window_strides']))
    return None if eqn.params['dimension_numbers'] == canonical else _canonical_convolution


def _is_weight_gradient(eqn: JaxprEqn) -> bool:
    """Whether this is, as JAX writes it, the gradient of a plain convolution's kernel.

    That is a convolution of the image with the output's gradient. It contracts over the batch,
    the first axis; the image's channels are its batch; the kernel's offsets are the space of its
    result, and the strides its dilation.
    """
    params = eqn.params
    ungrouped = params['feature_group_count'] == params['batch_group_count'] == 1
    undilated = all(step == 1 for step in params['lhs_dilation'])
    return ungrouped and undilated and params['dimension_numbers'].lhs_spec[1] == 0


def _rule_for_weight_gradient(eqn: JaxprEqn) -> Rule | None:
    """Picks the kind of matrix products by shape; None where the convolution is faster.

    The numbers are measured in whole training steps (a small CNN, LeNet, VGG, ResNets), where
    the products do better than alone.
    """
    out_axes = eqn.params['dimension_numbers'].out_spec
    (out,) = _avals(eqn.outvars)
    channels, features, *kernel = (out.shape[axis] for axis in out_axes)
    offsets = math.prod(kernel)
    by_offset = functools.partial(_weight_gradient, as_patches=False)
    if offsets == 1:
        return by_offset
    if features < 16 or offsets > 49:
        return None
    if channels <= 4 and channels * offsets <= 2 * features:
        return functools.partial(_weight_gradient, as_patches=True)
    return by_offset if channels >= 16 else None


def _canonical_dimensions(rank: int) -> lax.ConvDimensionNumbers:
    """NHWC images and HWIO kernels, for any number of spatial axes."""
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image)


def _canonical_convolution(eqn: JaxprEqn, image: jax.Array, kernel: jax.Array) -> jax.Array:
    image_axes, kernel_axes, out_axes = eqn.params['dimension_numbers']
    out = primitives.conv_general_dilated_p.bind(
        image.transpose(image_axes[0], *image_axes[2:], image_axes[1]),
        kernel.transpose(*kernel_axes[2:], kernel_axes[1], kernel_axes[0]),
        **{**eqn.params, 'dimension_numbers': _canonical_dimensions(image.ndim - 2)},
    )
    return out.transpose(_inverse((out_axes[0], *out_axes[2:], out_axes[1])))


def _weight_gradient(
    eqn: JaxprEqn, image: jax.Array, grad: jax.Array, *, as_patches: bool
) -> jax.Array:
    """For every offset of the kernel, the image shifted by it, transposed, times the gradient.

    ``as_patches`` lays all shifted images side by side and takes one product. Else it is a loop, so
    that one shifted image is in memory at a time; XLA would make room for all of them.
    """
    params = eqn.params
    image_axes, grad_axes, out_axes = params['dimension_numbers']
    image = image.transpose(image_axes[1], *image_axes[2:], image_axes[0])
    grad = grad.transpose(grad_axes[1], *grad_axes[2:], grad_axes[0])
    (out,) = _avals(eqn.outvars)
    kernel = [out.shape[axis] for axis in out_axes[2:]]

    image = lax.pad(
        image,
        jnp.zeros((), image.dtype),
        [(0, 0, 0), *((low, high, 0) for low, high in params['padding']), (0, 0, 0)],
    )
    columns = grad.reshape(-1, grad.shape[-1])
    steps = params['rhs_dilation']
    spans = [(n - 1) * step + 1 for n, step in zip(grad.shape[1:-1], steps, strict=True)]
    starts = np.array(list(np.ndindex(*kernel)), np.int32) * params['window_strides']

    def shifted(start: Sequence[Any]) -> jax.Array:
        size = (image.shape[0], *spans, image.shape[-1])
        window = lax.dynamic_slice(image, (0, *start, 0), size)
        return lax.slice(window, (0,) * window.ndim, size, (1, *steps, 1))

    def product(rows: jax.Array) -> jax.Array:
        return lax.dot_general(
            rows.reshape(len(columns), -1),
            columns,
            (((0,), (0,)), ((), ())),
            precision=params['precision'],
            preferred_element_type=params['preferred_element_type'],
        )

    if as_patches:
        products = product(jnp.concatenate([shifted(start) for start in starts], axis=-1))
    else:
        products = lax.map(lambda start: product(shifted(list(start))), starts)
    stacked = products.reshape(*kernel, image.shape[-1], grad.shape[-1])
    return stacked.transpose(_inverse((*out_axes[2:], *out_axes[:2])))


def _inverse(permutation: Sequence[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


# --- max-pooling ------------------------------------------------------------------------------


def _rule_for_max_pool(eqn: JaxprEqn) -> Rule | None:
    dilations = (*eqn.params['base_dilation'], *eqn.params['window_dilation'])
    return _max_pool if _tiles(eqn) and all(step == 1 for step in dilations) else None


def _rule_for_max_pool_gradient(eqn: JaxprEqn) -> Rule | None:
    is_max = eqn.params['select_prim'] is primitives.ge_p
    return _max_pool_gradient if _tiles(eqn) and is_max else None


def _tiles(eqn: JaxprEqn) -> bool:
    """Whether the windows don't overlap, leave no gaps and start at the first element."""
    params = eqn.params
    at_start = all(low == 0 for low, _ in params['padding'])
    return at_start and params['window_dimensions'] == params['window_strides']


def _blocks(eqn: JaxprEqn, x: jax.Array, fill: float) -> tuple[jax.Array, tuple[int, ...]]:
    """Splits each axis into (windows, elements of a window); returns the axes of the latter.

    What reaches beyond the last element is ``fill``, what no window covers is cut off.
    """
    window = eqn.params['window_dimensions']
    ends = [high for _, high in eqn.params['padding']]
    counts = [(n + end) // size for n, end, size in zip(x.shape, ends, window, strict=True)]
    excess = [c * size - n for c, size, n in zip(counts, window, x.shape, strict=True)]
    x = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, more, 0) for more in excess])
    blocks = x.reshape([n for pair in zip(counts, window, strict=True) for n in pair])
    return blocks, tuple(range(1, blocks.ndim, 2))


def _first_maximum(blocks: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Marks in every window the first of its largest elements."""
    shape = [n if axis in axes else 1 for axis, n in enumerate(blocks.shape)]
    position = jnp.arange(math.prod(shape)).reshape(shape)
    lower = blocks < blocks.max(axes, keepdims=True)
    first = jnp.where(lower, position.size, position).min(axes, keepdims=True)
    return position == first


def _max_pool(eqn: JaxprEqn, x: jax.Array) -> jax.Array:
    @jax.custom_jvp  # the maximum's own derivative would share between equal elements
    def pool(x: jax.Array) -> jax.Array:
        blocks, axes = _blocks(eqn, x, -jnp.inf)
        return blocks.max(axes)

    @pool.defjvp
    def pool_jvp(primals, tangents):
        first = _first_maximum(*_blocks(eqn, primals[0], -jnp.inf))
        blocks, axes = _blocks(eqn, tangents[0], 0.0)
        return pool(*primals), jnp.where(first, blocks, 0).sum(axes)

    return pool(x)


def _max_pool_gradient(eqn: JaxprEqn, grad: jax.Array, x: jax.Array) -> jax.Array:
    blocks, axes = _blocks(eqn, x, -jnp.inf)
    spread = jnp.where(_first_maximum(blocks, axes), jnp.expand_dims(grad, axes), 0)
    sizes = [n * size for n, size in zip(grad.shape, eqn.params['window_dimensions'], strict=True)]
    excess = [size - n for size, n in zip(sizes, x.shape, strict=True)]
    zero = jnp.zeros((), grad.dtype)
    return lax.pad(spread.reshape(sizes), zero, [(0, -more, 0) for more in excess])
