"""Fast convolutions and max-pooling on CPU: a rewrite of traced functions, and compiler options.

XLA:CPU is slow for several operations:

- Inside compiled loops, it leaves the convolutions that compute weight gradients in layouts for
  which it has no fast code. Steps take 6 to 40 times as long as outside the loop.
- It multiplies by the zeros between the elements of strided gradients.
- It has no fast code for depthwise convolutions.
- It differentiates max-pooling element by element.

`fast_convolutions` replaces each of these operations by an equal one:

- any convolution: the same convolution between explicit transposes to NHWC and HWIO,
- a convolution of an image with zeros between its elements: several convolutions without them,
- a convolution with a result of one position: a matrix product,
- a depthwise convolution and its gradients: a sum over the positions of its kernel,
- the gradient of max-pooling: a sum over the positions in a window.

`compiler_options` applies to the whole program: with it, convolutions use all cores.

Both do nothing for an accelerator, or with ``THINKML_FAST_CONVOLUTIONS=0`` in the environment.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun, primitives

from thinkml.core.xla.target import target_platform
from thinkml.environment import FAST_CONVOLUTIONS, is_switched_off

# Computes an equation's result from the equation and its operands.
Rule = Callable[..., jax.Array]

# Primitives whose inner programs are rewritten too. Others (custom kernels, shard_map) are left
# alone, because their inner programs can have another meaning than in isolation.
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
    """Returns ``fn`` with convolutions and max-pool gradients in forms that XLA:CPU runs fast.

    The result computes the same values as ``fn``, up to rounding, with the same arguments and
    outputs. If several elements of a pooling window are the maximum, the gradient still goes to
    the first. A function without convolutions and max-pools is traced to the same jaxpr as before.

    Apply it outermost, to the differentiated function: the convolutions of the gradients are the
    slow ones, and they exist only after differentiation.

    Args:
        fn: a function that ``jax.jit`` accepts without static arguments: arrays in pytrees in and
            out. It is traced once per call, so call the result under ``jax.jit``, ``lax.scan`` or
            similar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax import lax
        >>> from thinkml.core.xla.cpu_convolutions import fast_convolutions
        >>> def loss(kernel, x):
        ...     return jnp.sum(lax.conv(x, kernel, (1, 1), 'SAME') ** 2)
        >>> step = jax.jit(fast_convolutions(jax.value_and_grad(loss)))
        >>> value, grad = step(jnp.ones((16, 1, 3, 3)), jnp.ones((8, 1, 28, 28)))
        >>> grad.shape
        (16, 1, 3, 3)
    """

    @functools.wraps(fn)
    def fast(*args, **kwargs):
        if not _is_enabled():
            return fn(*args, **kwargs)
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        leaves = jaxpr_as_fun(_rewrite(closed))(*jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return fast


def compiler_options() -> dict[str, str]:
    """Returns options for ``jax.jit`` with which XLA:CPU computes convolutions on all cores.

    By default, XLA:CPU computes two-dimensional convolutions with YNNPACK, which uses one core. The
    alternative, Eigen, uses all cores. Other operations are not changed. A convolution that only a
    sum reads stays with the sum in YNNPACK.

    The result is empty:

    - on accelerators,
    - with ``THINKML_FAST_CONVOLUTIONS=0`` in the environment,
    - in double precision, which Eigen's convolutions don't support,
    - if ``XLA_FLAGS`` sets what YNNPACK computes,
    - if this version of XLA lacks the option.

    Example:
        >>> import jax
        >>> from thinkml.core.xla.cpu_convolutions import compiler_options
        >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options())
        >>> int(step(1))
        2
    """
    is_user_set = _YNNPACK in os.environ.get('XLA_FLAGS', '')
    if not _is_enabled() or is_user_set or jax.config.read('jax_enable_x64'):
        return {}
    return {_YNNPACK: _ALL_BUT_CONVOLUTIONS} if _is_supported_option() else {}


def _is_enabled() -> bool:
    return target_platform() == 'cpu' and not is_switched_off(FAST_CONVOLUTIONS)


_YNNPACK = 'xla_cpu_experimental_ynn_fusion_type'
# XLA's default without convolutions. With LIBRARY_FUSION_TYPE_DOT a ReLU after a product loses NaN.
_ALL_BUT_CONVOLUTIONS = 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'


@functools.cache
def _is_supported_option() -> bool:
    def empty():
        return None

    options = {_YNNPACK: _ALL_BUT_CONVOLUTIONS}
    try:
        jax.jit(empty, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # INVALID_ARGUMENT: No such compile option
        return False
    return True


# --- rewriting --------------------------------------------------------------------------------


def _rewrite(value: Any) -> Any:
    """Rewrites every program in an equation's parameter; returns it unchanged if none changes."""
    if isinstance(value, Jaxpr):  # checked first: in jax 0.11 the two are one class
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
    # The replacement is a single equation too, a call, so the other equations need no change.
    traced = jax.make_jaxpr(jax.jit(functools.partial(rule, eqn)))(*_avals(eqn.invars))
    (call,) = traced.eqns
    if traced.out_avals != _avals(eqn.outvars):
        return eqn
    return eqn.replace(primitive=call.primitive, params=call.params)


def _avals(variables: Sequence[Any]) -> list[Any]:
    return [variable.aval for variable in variables]


def _rule_for(eqn: JaxprEqn) -> Rule | None:
    """Returns the replacement for an equation; None if it is not replaced."""
    rules = {
        primitives.conv_general_dilated_p: _rule_for_convolution,
        primitives.select_and_scatter_add_p: _rule_for_max_pool_gradient,
    }
    if eqn.primitive not in rules:
        return None
    supported = all(_is_supported(aval) for aval in _avals([*eqn.invars, *eqn.outvars]))
    return rules[eqn.primitive](eqn) if supported else None


def _is_supported(aval: Any) -> bool:
    """Returns True for real, non-empty arrays without axes whose sharding is part of the type."""
    is_real = jnp.issubdtype(aval.dtype, jnp.floating)
    return is_real and 0 not in aval.shape and not aval.sharding.mesh.explicit_axes


# --- convolutions -----------------------------------------------------------------------------
# A ConvDimensionNumbers holds the axes (batch, feature, *space) of the image and the result,
# and the axes (out feature, in feature, *space) of the kernel.


def _rule_for_convolution(eqn: JaxprEqn) -> Rule | None:
    params = eqn.params
    phases = math.prod(params['lhs_dilation'])
    if phases > 1:
        once = {*params['window_strides'], *params['rhs_dilation'], params['batch_group_count']}
        by_phase = once == {1} and phases <= 16
        return functools.partial(_in_canonical_layout, _by_phase if by_phase else _convolution)
    image, out = _avals([eqn.invars[0], *eqn.outvars])
    axes, _, out_axes = params['dimension_numbers']
    padding = params['padding']
    lengths = [image.shape[axis] for axis in axes[2:]]
    if any(sum(_cropping(widths)) + n <= 0 for widths, n in zip(padding, lengths, strict=True)):
        return None  # the padding removes the whole image
    groups = params['feature_group_count'], params['batch_group_count']
    if groups == (1, 1) and all(out.shape[axis] == 1 for axis in out_axes[2:]):
        return _product
    if 1 < groups[1] == image.shape[axes[0]]:
        return _depthwise_weight_gradient
    if 1 < groups[0] == image.shape[axes[1]]:
        return functools.partial(_in_canonical_layout, _convolution)
    canonical = params['dimension_numbers'] == _canonical_dimensions(len(lengths))
    if canonical and all(min(widths) >= 0 for widths in padding):
        return None
    return functools.partial(_in_canonical_layout, _convolution)


def _cropping(widths: tuple[int, int]) -> tuple[int, int]:
    """Returns the negative part of a padding: the elements that it removes, as negative numbers."""
    return min(widths[0], 0), min(widths[1], 0)


def _canonical_dimensions(rank: int) -> lax.ConvDimensionNumbers:
    """Returns the dimensions of NHWC images and HWIO kernels, for any number of spatial axes."""
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image)


def _in_canonical_layout(
    convolve: Callable[..., jax.Array], eqn: JaxprEqn, image: jax.Array, kernel: jax.Array
) -> jax.Array:
    image_axes, kernel_axes, out_axes = eqn.params['dimension_numbers']
    out = convolve(
        image.transpose(image_axes[0], *image_axes[2:], image_axes[1]),
        kernel.transpose(*kernel_axes[2:], kernel_axes[1], kernel_axes[0]),
        **{**eqn.params, 'dimension_numbers': _canonical_dimensions(image.ndim - 2)},
    )
    return out.transpose(_inverse((out_axes[0], *out_axes[2:], out_axes[1])))


def _convolution(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """Computes a convolution in the canonical layout, and crops the image for negative padding.

    With negative padding at the front and positive padding at the back, XLA:CPU (jax 0.10 and
    0.11) reads outside the image.
    """
    is_depthwise = 1 < params['feature_group_count'] == image.shape[-1]
    if is_depthwise and math.prod(kernel.shape[:-2]) <= 49:
        return _depthwise(image, kernel, **params)
    if set(params['lhs_dilation']) == {1}:
        cropping = [(*_cropping(widths), 0) for widths in params['padding']]
        image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *cropping, (0, 0, 0)])
        padding = tuple((max(low, 0), max(high, 0)) for low, high in params['padding'])
        params = {**params, 'padding': padding}
    return primitives.conv_general_dilated_p.bind(image, kernel, **params)


def _depthwise(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """Computes a convolution of each channel alone, as a sum over the positions of the kernel.

    Eigen has no special code for these convolutions.
    """
    out_dtype = params['preferred_element_type'] or image.dtype
    dtype = jnp.promote_types(out_dtype, jnp.float32)
    strides, dilation = params['window_strides'], params['rhs_dilation']
    widths = [(*pair, step - 1) for pair, step in zip(
        params['padding'], params['lhs_dilation'], strict=True
    )]  # fmt: skip
    image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
    *space, _, features = kernel.shape
    sizes = [
        (length - (taps - 1) * gap - 1) // step + 1
        for length, taps, gap, step in zip(image.shape[1:-1], space, dilation, strides, strict=True)
    ]
    channels = image.shape[-1]
    kernel = kernel.reshape(*space, channels, features // channels).astype(dtype)
    total = jnp.zeros((len(image), *sizes, channels, features // channels), dtype)
    for position in itertools.product(*map(range, space)):
        start = [at * gap for at, gap in zip(position, dilation, strict=True)]
        elements = _strided_slice(image, start, strides, sizes)
        total += elements.astype(dtype)[..., None] * kernel[position]
    return total.reshape(*total.shape[:-2], features).astype(out_dtype)


def _depthwise_weight_gradient(eqn: JaxprEqn, image: jax.Array, grad: jax.Array) -> jax.Array:
    """Computes the gradient of a depthwise kernel: sums of image times gradient per position."""
    params = eqn.params
    image_axes, grad_axes, out_axes = params['dimension_numbers']
    image = image.transpose(image_axes[1], *image_axes[2:], image_axes[0])
    grad = grad.transpose(grad_axes[1], *grad_axes[2:], grad_axes[0])
    (out,) = _avals(eqn.outvars)
    kernel = [out.shape[axis] for axis in out_axes[2:]]
    widths = [(low, high, 0) for low, high in params['padding']]
    image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
    dtype = jnp.promote_types(out.dtype, jnp.float32)
    channels, sizes = image.shape[-1], grad.shape[1:-1]
    strides, gaps = params['rhs_dilation'], jnp.array(params['window_strides'])
    spans = [(size - 1) * step + 1 for size, step in zip(sizes, strides, strict=True)]
    grad = grad.reshape(*grad.shape[:-1], channels, -1).astype(dtype)

    def kernel_gradient_at(position: jax.Array) -> jax.Array:
        window = lax.dynamic_slice(
            image, (0, *(position * gaps), 0), (len(image), *spans, channels)
        )  # fmt: skip
        elements = _strided_slice(window, [0] * len(sizes), strides, sizes).astype(dtype)
        return (elements[..., None] * grad).sum(tuple(range(grad.ndim - 2)))

    # A loop over the positions: that many sums in one program take seconds to compile.
    positions = jnp.stack(jnp.meshgrid(*map(jnp.arange, kernel), indexing='ij'), -1)
    gradients = lax.map(kernel_gradient_at, positions.reshape(-1, len(kernel)))
    gradients = gradients.reshape(*kernel, 1, -1).astype(out.dtype)
    return gradients.transpose(_inverse((*out_axes[2:], *out_axes[:2])))


def _strided_slice(
    x: jax.Array, start: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Returns ``sizes`` elements of the spatial axes of ``[batch, *space, channels]``.

    Args:
        x: the array.
        start: the first element along each spatial axis.
        strides: the steps along each spatial axis.
        sizes: the number of elements along each spatial axis.
    """
    stop = [at + (n - 1) * step + 1 for at, n, step in zip(start, sizes, strides, strict=True)]
    return lax.slice(x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1))


def _by_phase(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """Computes a convolution of an image with zeros between its elements, without the zeros.

    The gradient of the image of a strided convolution has this form. Neighbours in the result use
    different elements of the kernel, and the pattern repeats every ``lhs_dilation`` positions.
    So each of these phases has its own convolution, and the results are interleaved.
    """
    steps = np.array(params['lhs_dilation'])
    low, high = np.array(params['padding']).T
    length = np.array(image.shape[1:-1])
    size = low + (length - 1) * steps + high - np.array(kernel.shape[:-2]) + 2
    rows = -(-size // steps)

    def phase_result(phase: tuple[int, ...]) -> jax.Array:
        before, first = divmod(low - phase, steps)
        taps = kernel[tuple(slice(at, None, step) for at, step in zip(first, steps, strict=True))]
        after = rows + np.array(taps.shape[:-2]) - 1 - length - before
        remaining = length + np.minimum(before, 0) + np.minimum(after, 0)
        if 0 in taps.shape or remaining.min() <= 0:
            return jnp.zeros((len(image), *rows, kernel.shape[-1]), out_dtype)
        padding = tuple(zip(before.tolist(), after.tolist(), strict=True))
        changed = {'padding': padding, 'lhs_dilation': (1,) * len(steps)}
        return _convolution(image, taps, **{**params, **changed})

    out_dtype = params['preferred_element_type'] or image.dtype
    phases = jnp.stack([phase_result(phase) for phase in itertools.product(*map(range, steps))], 1)
    rank = len(steps)
    phases = phases.reshape(len(image), *steps, *rows, -1)
    interleaved = [axis for i in range(rank) for axis in (1 + rank + i, 1 + i)]
    out = phases.transpose(0, *interleaved, 1 + 2 * rank)
    out = out.reshape(len(image), *(rows * steps), -1)
    return lax.slice(out, (0,) * out.ndim, (len(out), *size, out.shape[-1]))


def _product(eqn: JaxprEqn, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a convolution whose result has one position, as a matrix product.

    The weight gradient of a 1x1 kernel has this form.
    """
    params = eqn.params
    image_axes, kernel_axes, out_axes = params['dimension_numbers']
    # Features first: in a weight gradient they are the examples, so no data has to be moved.
    image = image.transpose(image_axes[1], *image_axes[2:], image_axes[0])
    kernel = kernel.transpose(kernel_axes[1], *kernel_axes[2:], kernel_axes[0])
    space, dilation = kernel.shape[1:-1], params['rhs_dilation']
    padding = [(low, high, 0) for low, high in params['padding']]
    image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    elements = _strided_slice(image, [0] * len(space), dilation, space)
    contracted = tuple(range(kernel.ndim - 1))
    out = lax.dot_general(
        elements, kernel, ((contracted, contracted), ((), ())), precision=params['precision'],
        preferred_element_type=params['preferred_element_type'],
    )  # fmt: skip
    return out.reshape(*out.shape, *(1 for _ in space)).transpose(_inverse(out_axes))


def _inverse(permutation: Sequence[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


# --- max-pooling ------------------------------------------------------------------------------


def _rule_for_max_pool_gradient(eqn: JaxprEqn) -> Rule | None:
    is_max = eqn.params['select_prim'] is primitives.ge_p
    is_small = math.prod(eqn.params['window_dimensions']) <= 49
    return _max_pool_gradient if is_max and is_small else None


def _max_pool_gradient(eqn: JaxprEqn, grad: jax.Array, x: jax.Array) -> jax.Array:
    """Computes the gradient of max-pooling as a sum over the positions in a window.

    The gradient of each window goes to the first of its largest elements.
    """
    params = eqn.params
    strides, padding = params['window_strides'], params['padding']
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), [(low, high, 0) for low, high in padding])
    spans = [(n - 1) * step + 1 for n, step in zip(grad.shape, strides, strict=True)]
    positions = list(itertools.product(*map(range, params['window_dimensions'])))

    largest, first = None, jnp.zeros(grad.shape, jnp.uint8)
    for index, position in enumerate(positions):
        stop = [at + span for at, span in zip(position, spans, strict=True)]
        elements = lax.slice(padded, position, stop, strides)
        if largest is None:
            largest = elements
            continue
        is_larger = elements > largest
        largest = jnp.where(is_larger, elements, largest)
        first = jnp.where(is_larger, jnp.uint8(index), first)

    total = jnp.zeros(padded.shape, grad.dtype)
    for index, position in enumerate(positions):
        widths = [
            (at, n - at - span, step - 1)
            for at, n, span, step in zip(position, padded.shape, spans, strides, strict=True)
        ]
        total += lax.pad(jnp.where(first == index, grad, 0), jnp.zeros((), grad.dtype), widths)
    return lax.pad(total, jnp.zeros((), grad.dtype), [(-low, -high, 0) for low, high in padding])
