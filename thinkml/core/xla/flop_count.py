"""The number of floating point operations of a traced function, counted in its program."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the operations of the matrix products and convolutions of a program.

    A product and a sum count as two operations. Products that the gradient of `jax.checkpoint`
    computes again do not count, nor do those with padding, and with the zeros between the elements
    of a strided gradient. A loop with an unknown number of iterations counts once, and of the
    branches of a condition the largest counts. All other operations are left out: they are a few
    per cent of the time of a large network.

    Args:
        jaxpr: a traced program, such as ``jax.make_jaxpr(step)(state, batch).jaxpr``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.xla.flop_count import count_flops
        >>> product = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> count_flops(product.jaxpr)
        48
    """
    return flops_by_dtype(jaxpr).total()


def flops_by_dtype(jaxpr: Jaxpr) -> Counter[str]:
    """Returns the operations that `count_flops` counts, by the dtype that they are computed in.

    That is the dtype of the factors. Sums may be in a wider one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.xla.flop_count import flops_by_dtype
        >>> narrow = jnp.ones((2, 2), jnp.bfloat16)
        >>> dict(flops_by_dtype(jax.make_jaxpr(jnp.matmul)(narrow, narrow).jaxpr))
        {'bfloat16': 16}
    """
    return sum(map(_flops_of, jaxpr.eqns), Counter())


def _flops_of(eqn: JaxprEqn) -> Counter[str]:
    name = eqn.primitive.name
    if name in _PRODUCTS:
        factors: list[Any] = [variable.aval for variable in eqn.invars[:2]]
        return Counter({str(jnp.result_type(*factors)): _PRODUCTS[name](eqn)})
    if eqn.params.get('differentiated'):  # the gradient of `jax.checkpoint`
        return sum(map(_flops_of, _without_recomputation(eqn.params['jaxpr'])), Counter())
    inner = [flops_by_dtype(jaxpr) for jaxpr in _inner_programs(eqn)]
    if name == 'cond':
        return max(inner, key=Counter.total, default=Counter())
    times = eqn.params['length'] if name == 'scan' else 1
    return Counter({dtype: times * count for dtype, count in sum(inner, Counter()).items()})


def _inner_programs(eqn: JaxprEqn) -> Iterable[Jaxpr]:
    for name, value in eqn.params.items():
        if name in ('fwd_jaxpr_thunk', 'bwd', 'jvp_jaxpr_fun'):  # of derivatives taken already
            continue
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _without_recomputation(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """Returns the equations of a gradient that are not computed again.

    These are all that depend on the cotangents. The cotangents are the last inputs, and each output
    depends on one of them.
    """
    for count in range(1, 1 + len(jaxpr.invars)):
        depending, eqns = set(jaxpr.invars[-count:]), []
        for eqn in jaxpr.eqns:
            if any(isinstance(v, Var) and v in depending for v in eqn.invars):
                depending.update(eqn.outvars)
                eqns.append(eqn)
        if depending.issuperset(jaxpr.outvars):
            return eqns
    return jaxpr.eqns


def _dot_flops(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params['dimension_numbers']
    left: Any = eqn.invars[0].aval
    out: Any = eqn.outvars[0].aval
    return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)


def _convolution_flops(eqn: JaxprEqn) -> int:
    left, right = (variable.aval.shape for variable in eqn.invars)  # type: ignore[attr-defined]
    out: Any = eqn.outvars[0].aval
    numbers, params = eqn.params['dimension_numbers'], eqn.params
    taps = math.prod(
        _num_taps(
            inputs=left[numbers.lhs_spec[axis + 2]],
            kernel=right[numbers.rhs_spec[axis + 2]],
            outputs=out.shape[numbers.out_spec[axis + 2]],
            stride=params['window_strides'][axis],
            padding=params['padding'][axis][0],
            input_dilation=params['lhs_dilation'][axis],
            kernel_dilation=params['rhs_dilation'][axis],
        )
        for axis in range(len(numbers.lhs_spec) - 2)
    )
    rows = left[numbers.lhs_spec[0]] // params['batch_group_count']
    outputs, inputs = (right[axis] for axis in numbers.rhs_spec[:2])
    return 2 * rows * outputs * inputs * taps


_PRODUCTS = {'dot_general': _dot_flops, 'conv_general_dilated': _convolution_flops}


def _num_taps(
    *,
    inputs: int,
    kernel: int,
    outputs: int,
    stride: int,
    padding: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Returns the pairs of an output and a kernel position that meet an element of the input."""
    positions = (
        output * stride + tap * kernel_dilation - padding
        for output in range(outputs)
        for tap in range(kernel)
    )
    return sum(
        position % input_dilation == 0 and 0 <= position < inputs * input_dilation
        for position in positions
    )
