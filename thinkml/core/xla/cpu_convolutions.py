"""Convolutions and max-pooling at full speed on CPU: a pass over a traced function, and options.

Inside compiled loops XLA:CPU leaves the convolutions that compute weight gradients in layouts for
which it has no fast code (steps take 6 to 40 times as long as outside the loop), it multiplies by
the zeros between the elements of strided gradients, it has no fast code for depthwise
convolutions, and it differentiates max-pooling element by element.
`fast_convolutions` replaces those operations, one for one, by equal ones:

- any convolution: the same one between explicit transposes to NHWC and HWIO,
- one of an image with zeros between its elements: several without them,
- one with a single place in its result: a matrix product,
- a depthwise one: a sum over the places of its kernel, and so its gradients,
- the gradient of max-pooling: a sum over the places in a window.

`compiler_options` are for the program: with them convolutions use all cores.

On an accelerator, or with ``THINKML_FAST_CONVOLUTIONS=0`` in the environment, there is neither.
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
        if not _is_on():
            return fn(*args, **kwargs)
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        leaves = jaxpr_as_fun(_rewrite(closed))(*jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return fast


def compiler_options() -> dict[str, str]:
    """Returns options for ``jax.jit`` with which XLA:CPU computes convolutions on all cores.

    By default it takes those of two dimensions from YNNPACK, which uses one core; what it has
    besides, Eigen's, uses all. Nothing else is changed: one that only a sum reads stays with the
    sum, which is YNNPACK's. There are no options on accelerators, with
    ``THINKML_FAST_CONVOLUTIONS=0`` in the environment, in double precision, which Eigen's don't
    know, where ``XLA_FLAGS`` says what to take from YNNPACK, and where this XLA hasn't the option.

    Example:
        >>> import jax
        >>> from thinkml.core.xla.cpu_convolutions import compiler_options
        >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options())
        >>> int(step(1))
        2
    """
    decided = _YNNPACK in os.environ.get('XLA_FLAGS', '')
    if not _is_on() or decided or jax.config.read('jax_enable_x64'):
        return {}
    return {_YNNPACK: _ALL_BUT_CONVOLUTIONS} if _is_known() else {}


def _is_on() -> bool:
    return jax.default_backend() == 'cpu' and os.environ.get('THINKML_FAST_CONVOLUTIONS') != '0'


_YNNPACK = 'xla_cpu_experimental_ynn_fusion_type'
# XLA's default but for convolutions. With LIBRARY_FUSION_TYPE_DOT a ReLU after a product loses NaN.
_ALL_BUT_CONVOLUTIONS = 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'


@functools.cache
def _is_known() -> bool:
    def tried():
        return None

    options = {_YNNPACK: _ALL_BUT_CONVOLUTIONS}
    try:
        jax.jit(tried, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # INVALID_ARGUMENT: No such compile option
        return False
    return True


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
    if any(sum(_cuts(widths)) + n <= 0 for widths, n in zip(padding, lengths, strict=True)):
        return None  # nothing of the image is left
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


def _cuts(widths: tuple[int, int]) -> tuple[int, int]:
    """What negative padding takes away, as numbers below zero."""
    return min(widths[0], 0), min(widths[1], 0)


def _canonical_dimensions(rank: int) -> lax.ConvDimensionNumbers:
    """NHWC images and HWIO kernels, for any number of spatial axes."""
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
    """The canonical convolution, of an image that is cut first where the padding is negative.

    With a negative padding in front and a positive one behind, XLA:CPU (jax 0.10 and 0.11) reads
    beside the image.
    """
    is_depthwise = 1 < params['feature_group_count'] == image.shape[-1]
    if is_depthwise and math.prod(kernel.shape[:-2]) <= 49:
        return _depthwise(image, kernel, **params)
    if set(params['lhs_dilation']) == {1}:
        cuts = [(*_cuts(widths), 0) for widths in params['padding']]
        image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *cuts, (0, 0, 0)])
        padding = tuple((max(low, 0), max(high, 0)) for low, high in params['padding'])
        params = {**params, 'padding': padding}
    return primitives.conv_general_dilated_p.bind(image, kernel, **params)


def _depthwise(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """A convolution of each channel by itself, as a sum over the places of the kernel.

    For these Eigen has no code of its own.
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
        (length - (taps - 1) * apart - 1) // step + 1
        for length, taps, apart, step in zip(
            image.shape[1:-1], space, dilation, strides, strict=True
        )
    ]
    channels = image.shape[-1]
    kernel = kernel.reshape(*space, channels, features // channels).astype(dtype)
    total = jnp.zeros((len(image), *sizes, channels, features // channels), dtype)
    for place in itertools.product(*map(range, space)):
        start = [at * apart for at, apart in zip(place, dilation, strict=True)]
        seen = _every(image, start, strides, sizes)
        total += seen.astype(dtype)[..., None] * kernel[place]
    return total.reshape(*total.shape[:-2], features).astype(out_dtype)


def _depthwise_weight_gradient(eqn: JaxprEqn, image: jax.Array, grad: jax.Array) -> jax.Array:
    """The gradient of such a kernel: for each place of it a sum over image times gradient."""
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
    strides, apart = params['rhs_dilation'], jnp.array(params['window_strides'])
    spans = [(size - 1) * step + 1 for size, step in zip(sizes, strides, strict=True)]
    grad = grad.reshape(*grad.shape[:-1], channels, -1).astype(dtype)

    def of_place(place: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice(
            image, (0, *(place * apart), 0), (len(image), *spans, channels)
        )  # fmt: skip
        seen = _every(seen, [0] * len(sizes), strides, sizes).astype(dtype)
        return (seen[..., None] * grad).sum(tuple(range(grad.ndim - 2)))

    # One after another: as many sums in a program take seconds to compile.
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, kernel), indexing='ij'), -1)
    found = lax.map(of_place, places.reshape(-1, len(kernel)))
    found = found.reshape(*kernel, 1, -1).astype(out.dtype)
    return found.transpose(_inverse((*out_axes[2:], *out_axes[:2])))


def _every(
    x: jax.Array, start: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Of the space of ``[batch, *space, channels]``, ``sizes`` elements from ``start`` on."""
    stop = [at + (n - 1) * step + 1 for at, n, step in zip(start, sizes, strides, strict=True)]
    return lax.slice(x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1))


def _by_phase(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """The convolution of an image with zeros between its elements, without the zeros.

    Such is the gradient of an image that was convolved in strides. Neighbours in the result see
    different elements of the kernel; the same ones are seen again after ``lhs_dilation`` places.
    So there is a convolution for each of these phases, and their results are interleaved.
    """
    steps = np.array(params['lhs_dilation'])
    low, high = np.array(params['padding']).T
    length = np.array(image.shape[1:-1])
    size = low + (length - 1) * steps + high - np.array(kernel.shape[:-2]) + 2
    rows = -(-size // steps)

    def of_phase(phase: tuple[int, ...]) -> jax.Array:
        before, first = divmod(low - phase, steps)
        taps = kernel[tuple(slice(at, None, step) for at, step in zip(first, steps, strict=True))]
        after = rows + np.array(taps.shape[:-2]) - 1 - length - before
        seen = length + np.minimum(before, 0) + np.minimum(after, 0)
        if 0 in taps.shape or seen.min() <= 0:
            return jnp.zeros((len(image), *rows, kernel.shape[-1]), out_dtype)
        padding = tuple(zip(before.tolist(), after.tolist(), strict=True))
        changed = {'padding': padding, 'lhs_dilation': (1,) * len(steps)}
        return _convolution(image, taps, **{**params, **changed})

    out_dtype = params['preferred_element_type'] or image.dtype
    phases = jnp.stack([of_phase(phase) for phase in itertools.product(*map(range, steps))], 1)
    rank = len(steps)
    phases = phases.reshape(len(image), *steps, *rows, -1)
    interleaved = [axis for i in range(rank) for axis in (1 + rank + i, 1 + i)]
    out = phases.transpose(0, *interleaved, 1 + 2 * rank)
    out = out.reshape(len(image), *(rows * steps), -1)
    return lax.slice(out, (0,) * out.ndim, (len(out), *size, out.shape[-1]))


def _product(eqn: JaxprEqn, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with one place in its result, such as the weight gradient of a 1x1 kernel."""
    params = eqn.params
    image_axes, kernel_axes, out_axes = params['dimension_numbers']
    # Features first: those of a weight gradient are the examples, and nothing need be moved.
    image = image.transpose(image_axes[1], *image_axes[2:], image_axes[0])
    kernel = kernel.transpose(kernel_axes[1], *kernel_axes[2:], kernel_axes[0])
    space, dilation = kernel.shape[1:-1], params['rhs_dilation']
    padding = [(low, high, 0) for low, high in params['padding']]
    image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    seen = _every(image, [0] * len(space), dilation, space)
    contracted = tuple(range(kernel.ndim - 1))
    out = lax.dot_general(
        seen, kernel, ((contracted, contracted), ((), ())), precision=params['precision'],
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
