"""Convolutions and max-pooling at full speed on CPU, as a pass over a traced function.

Inside compiled loops XLA:CPU leaves the convolutions that compute weight gradients in layouts for
which it has no fast code (6 to 17 times slower than outside the loop), and it differentiates
max-pooling element by element. The pass replaces those operations, one for one, by equal ones:

- any convolution: the same one between explicit transposes to NHWC and HWIO,
- a convolution that is a weight gradient: matrix products of shifted images and gradients,
- the gradient of max-pooling: a sum over the places in a window.

On an accelerator, or with ``THINKML_FAST_CONVOLUTIONS=0`` in the environment, nothing is replaced.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
    """Returns ``fn`` with convolutions and max-pools' gradients in forms that XLA:CPU runs fast.

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
    """Matrix products, unless the kernel is so large that their program would be."""
    out_axes = eqn.params['dimension_numbers'].out_spec
    (out,) = _avals(eqn.outvars)
    offsets = math.prod(out.shape[axis] for axis in out_axes[2:])
    return _weight_gradient if offsets <= 49 else None


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


def _weight_gradient(eqn: JaxprEqn, image: jax.Array, grad: jax.Array) -> jax.Array:
    """The products of `_of_examples`, over blocks of the batch that bound what the copies take."""
    image_axes, grad_axes, out_axes = eqn.params['dimension_numbers']
    image = image.transpose(image_axes[1], *image_axes[2:], image_axes[0])
    grad = grad.transpose(grad_axes[1], *grad_axes[2:], grad_axes[0])
    (out,) = _avals(eqn.outvars)
    kernel = [out.shape[axis] for axis in out_axes[2:]]
    blocks = _num_blocks(len(image), kernel, image.shape[-1], grad.shape[-1])

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _of_examples(eqn, kernel, *block, total.dtype), None

    total = jnp.zeros(
        (*kernel, image.shape[-1], grad.shape[-1]), jnp.promote_types(out.dtype, jnp.float32)
    )
    # Examples of zeros, which add nothing, make the blocks equal.
    missing = -len(image) % blocks
    parts = [
        lax.pad(x, jnp.zeros((), x.dtype), [(0, missing, 0)] + [(0, 0, 0)] * (x.ndim - 1))
        for x in (image, grad)
    ]
    parts = [x.reshape(blocks, -1, *x.shape[1:]) for x in parts]
    total, _ = lax.scan(add, total, (parts[0], parts[1]))
    return total.astype(out.dtype).transpose(_inverse((*out_axes[2:], *out_axes[:2])))


def _num_blocks(batch: int, kernel: Sequence[int], channels: int, features: int) -> int:
    """As many as let the copies of a block take no more than the image and the gradient do."""
    copies = min(_copies(kernel, channels, features))
    return min(batch, -(-copies // (channels + features)))


def _copies(kernel: Sequence[int], channels: int, features: int) -> tuple[int, int]:
    """Columns of both sides, where the image and the gradient or the image alone is shifted."""
    first, *others = kernel
    columns = math.prod(others) * channels
    return columns + first * features, first * columns + features


def _of_examples(
    eqn: JaxprEqn, kernel: Sequence[int], image: jax.Array, grad: jax.Array, dtype: Any
) -> jax.Array:
    """Products of copies of the image, shifted by offsets of the kernel, with the gradient.

    Instead of the image the gradient can be shifted, the other way. So for the offsets along the
    first axis it is: of a 3x3 kernel one product of three copies each does, instead of nine of
    the image. With few channels nine copies of the image are less.
    """
    params = eqn.params
    image = _pad(image, params['padding'])
    strides, dilation = params['rhs_dilation'], params['window_strides']
    first, *others = map(range, kernel)

    def shifted(offset: tuple[int, ...], rows: int) -> jax.Array:
        start = [at * step for at, step in zip(offset, dilation, strict=True)]
        return _every(image, start, strides, (rows, *grad.shape[2:-1]))

    def product(images: list[jax.Array], grads: list[jax.Array]) -> jax.Array:
        # The barrier keeps XLA from computing the gradient anew for each of its copies.
        sides = lax.optimization_barrier((jnp.stack(images, -2), jnp.stack(grads, -2)))
        left, right = (side.reshape(-1, side.shape[-2] * side.shape[-1]) for side in sides)
        found = lax.dot_general(
            left, right, (((0,), (0,)), ((), ())), precision=params['precision'],
            preferred_element_type=dtype,
        )  # fmt: skip
        return found.reshape(len(images), image.shape[-1], len(grads), grad.shape[-1])

    of_both, of_image = _copies(kernel, image.shape[-1], grad.shape[-1])
    if of_image < of_both:
        offsets = itertools.product(first, *others)
        by_offset = product([shifted(offset, grad.shape[1]) for offset in offsets], [grad])
    else:
        rows_of_kernel = {}
        for shifts in _shifts(len(first), strides[0], dilation[0]):
            last = max(shifts.values())
            offsets = itertools.product([min(shifts)], *others)
            of_group = product(
                [shifted(offset, grad.shape[1] + last) for offset in offsets],
                [_pad(grad, [(shift, last - shift)]) for shift in shifts.values()],
            )
            rows_of_kernel |= {row: of_group[:, :, i] for i, row in enumerate(shifts)}
        by_offset = jnp.stack([rows_of_kernel[row] for row in first])
    return by_offset.reshape(*kernel, image.shape[-1], grad.shape[-1])


def _shifts(num_offsets: int, stride: int, dilation: int) -> list[dict[int, int]]:
    """Groups offsets that see the same rows of the image; for each how much later it sees them."""
    groups: dict[int, dict[int, int]] = {}
    for offset in range(num_offsets):
        row, phase = divmod(offset * dilation, stride)
        group = groups.setdefault(phase, {})
        group[offset] = row - (min(group) * dilation // stride if group else row)
    return list(groups.values())


def _pad(x: jax.Array, widths: Sequence[tuple[int, int]]) -> jax.Array:
    """Pads the axes from the second on with zeros, or cuts them where a width is negative."""
    rest = [(0, 0)] * (x.ndim - 1 - len(widths))
    padding = [(low, high, 0) for low, high in ((0, 0), *widths, *rest)]
    return lax.pad(x, jnp.zeros((), x.dtype), padding)


def _every(
    x: jax.Array, start: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Of the space of ``[batch, *space, channels]``, ``sizes`` elements from ``start`` on."""
    stop = [at + (n - 1) * step + 1 for at, n, step in zip(start, sizes, strides, strict=True)]
    ends = (len(x), *stop, x.shape[-1])
    return lax.slice(x, (0, *start, 0), ends, (1, *strides, 1))


def _inverse(permutation: Sequence[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


# --- max-pooling ------------------------------------------------------------------------------


def _rule_for_max_pool_gradient(eqn: JaxprEqn) -> Rule | None:
    is_max = eqn.params['select_prim'] is primitives.ge_p
    is_small = math.prod(eqn.params['window_dimensions']) <= 49
    return _max_pool_gradient if is_max and is_small else None


def _max_pool_gradient(eqn: JaxprEqn, grad: jax.Array, x: jax.Array) -> jax.Array:
    """Finds in every window the first of its largest elements; sums over places in the window."""
    params = eqn.params
    strides, padding = params['window_strides'], params['padding']
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), [(low, high, 0) for low, high in padding])
    spans = [(n - 1) * step + 1 for n, step in zip(grad.shape, strides, strict=True)]
    places = list(itertools.product(*map(range, params['window_dimensions'])))

    largest, first = None, jnp.zeros(grad.shape, jnp.uint8)
    for index, place in enumerate(places):
        stop = [at + span for at, span in zip(place, spans, strict=True)]
        elements = lax.slice(padded, place, stop, strides)
        if largest is None:
            largest = elements
            continue
        is_larger = elements > largest
        largest = jnp.where(is_larger, elements, largest)
        first = jnp.where(is_larger, jnp.uint8(index), first)

    total = jnp.zeros(padded.shape, grad.dtype)
    for index, place in enumerate(places):
        widths = [
            (at, n - at - span, step - 1)
            for at, n, span, step in zip(place, padded.shape, spans, strides, strict=True)
        ]
        total += lax.pad(jnp.where(first == index, grad, 0), jnp.zeros((), grad.dtype), widths)
    return lax.pad(total, jnp.zeros((), grad.dtype), [(-low, -high, 0) for low, high in padding])
