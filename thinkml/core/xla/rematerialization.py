"""Rematerialization: the backward pass computes activations again instead of keeping them."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from thinkml.core.xla.target import target_platform

# More parts never saved memory: the arrays kept between parts grow with their number.
_MOST_PARTS = 32


def rematerialized(fn: Callable) -> Callable:
    """Returns ``fn`` with a gradient that keeps only the arrays between a few parts of ``fn``.

    The traced function is cut into parts of about equal size, where few bytes are alive. This works
    for functions written with any library. The backward pass computes each part again when it
    needs its gradient. The values are those of ``fn``. A gradient takes the time of one more call.

    Args:
        fn: a function that takes and returns arrays in pytrees. A single operation of its program
            (a scan) is not cut.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core.xla.rematerialization import rematerialized
        >>> def deep(w, x):
        ...     for _ in range(8):
        ...         x = jnp.tanh(x @ w)
        ...     return x.sum()
        >>> w, x = jnp.eye(3), jnp.ones((2, 3))
        >>> grad, again = jax.grad(deep)(w, x), jax.grad(rematerialized(deep))(w, x)
        >>> bool(jnp.allclose(grad, again))
        True

    Reference:
        Chen et al., 2016, *Training deep nets with sublinear memory cost*.
    """

    @functools.wraps(fn)
    def with_remat(*args):
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
        jaxpr = closed.jaxpr
        values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        values |= dict(zip(jaxpr.invars, jax.tree.leaves(args), strict=True))
        for part in _parts(jaxpr):
            inner = jaxpr.replace(
                constvars=[], invars=part.reads, outvars=part.writes, eqns=part.eqns,
                debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None),
            )  # fmt: skip
            results = _checkpoint(jaxpr_as_fun(ClosedJaxpr(inner, ())))(
                *(values[variable] for variable in part.reads)
            )
            values |= dict(zip(part.writes, results, strict=True))
        leaves = [_value(variable, values) for variable in jaxpr.outvars]
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return with_remat


def _checkpoint(part: Callable) -> Callable:
    """Returns a function of arrays that keeps only its arguments for its gradient.

    `jax.checkpoint` does this on accelerators. XLA's CPU backend removes the barriers of
    `jax.checkpoint` and then reuses the values of the forward pass, which saves no memory. On CPU
    the backward pass is therefore inside a condition that XLA can't evaluate.
    """
    if target_platform() != 'cpu':
        return jax.checkpoint(part)

    @jax.custom_vjp
    def computed(*values):
        return part(*values)

    def backward(values, cotangents):
        is_float = [jnp.issubdtype(value.dtype, jnp.inexact) for value in values]
        float_cotangents = [c for c in cotangents if jnp.issubdtype(c.dtype, jnp.inexact)]
        floats = [value for value, use in zip(values, is_float, strict=True) if use]
        if not float_cotangents or not floats:
            return (None,) * len(values)

        def float_outputs(*floats):
            rest = iter(floats)
            outputs = part(
                *(next(rest) if use else value for value, use in zip(values, is_float, strict=True))
            )
            return [out for out in outputs if jnp.issubdtype(out.dtype, jnp.inexact)]

        element = float_cotangents[0].reshape(-1)[0]
        gradients = jax.lax.cond(
            (element < 1) | (element >= 1) | (element != element),  # always true
            lambda: jax.vjp(float_outputs, *floats)[1](float_cotangents),
            lambda: tuple(map(jnp.zeros_like, floats)),
        )
        rest = iter(gradients)
        return tuple(next(rest) if use else None for use in is_float)

    computed.defvjp(lambda *values: (part(*values), values), backward)
    return computed


def _value(variable: Var | Literal, values: dict[Any, Any]) -> Any:
    return variable.val if isinstance(variable, Literal) else values[variable]


class _Part(NamedTuple):
    """Consecutive equations of a program, with the variables they read and write."""

    eqns: list[JaxprEqn]
    reads: list[Var]
    writes: list[Var]


def _parts(jaxpr: Jaxpr) -> list[_Part]:
    eqns, num_eqns = jaxpr.eqns, len(jaxpr.eqns)
    last_read = dict.fromkeys((v for v in jaxpr.outvars if isinstance(v, Var)), num_eqns)
    for index in reversed(range(num_eqns)):
        for variable in eqns[index].invars:
            if isinstance(variable, Var):
                last_read.setdefault(variable, index)
    defined_at = {v: index for index, eqn in enumerate(eqns) for v in eqn.outvars}
    parts = []
    for first, stop in itertools.pairwise(_cuts(eqns, defined_at, last_read)):
        inside = range(first, stop)
        read = dict.fromkeys(
            v for eqn in eqns[first:stop] for v in eqn.invars
            if isinstance(v, Var) and defined_at.get(v, -1) < first
        )  # fmt: skip
        written = [
            v for eqn in eqns[first:stop] for v in eqn.outvars if last_read.get(v, -1) >= stop
        ]
        assert all(defined_at[v] in inside for v in written)
        parts.append(_Part(list(eqns[first:stop]), list(read), written))
    return parts


def _cuts(
    eqns: Sequence[JaxprEqn], defined_at: dict[Any, int], last_read: dict[Any, int]
) -> list[int]:
    """Returns the indices where parts begin, and the end of the program.

    They minimize the bytes alive between parts plus the bytes of the largest part.
    """
    sizes = [_eqn_bytes(eqn) for eqn in eqns]
    before = [0, *itertools.accumulate(sizes)]
    change = [0] * (len(eqns) + 1)
    for variable, index in defined_at.items():
        if variable in last_read:
            change[index + 1] += _num_bytes(variable)
            change[min(last_read[variable] + 1, len(eqns))] -= _num_bytes(variable)
    alive = list(itertools.accumulate(change))  # bytes alive before each equation

    def candidate(num_parts: int) -> list[int]:
        # Each cut is within a quarter of a part of an even cut, where the fewest bytes are alive.
        even, cuts = before[-1] / num_parts, {0, len(eqns)}
        for number in range(1, num_parts):
            near = [
                index for index in range(1, len(eqns))
                if abs(before[index] - number * even) <= even / 4
            ]  # fmt: skip
            if near:
                cuts.add(min(near, key=alive.__getitem__))
        return sorted(cuts)

    def kept_bytes(cuts: list[int]) -> int:
        largest = max(before[stop] - before[first] for first, stop in itertools.pairwise(cuts))
        return largest + sum(alive[cut] for cut in cuts[1:-1])

    return min(map(candidate, range(1, _MOST_PARTS + 1)), key=kept_bytes) if eqns else [0]


def _eqn_bytes(eqn: JaxprEqn, num_rows: int | None = None) -> int:
    """Returns the bytes of an operation's results, or of its inner programs if those are more."""
    avals: list[Any] = [variable.aval for variable in eqn.outvars]
    counted = [aval for aval in avals if num_rows is None or num_rows in aval.shape]
    result_bytes = sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in counted)
    inner = [
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in eqn.params.values()
        if isinstance(value, ClosedJaxpr | Jaxpr)
    ]
    inner_bytes = sum(computed_bytes(jaxpr, num_rows) for jaxpr in inner)
    return max(result_bytes, inner_bytes * eqn.params.get('length', 1))


def computed_bytes(jaxpr: Jaxpr, num_rows: int | None = None) -> int:
    """Returns the bytes of all arrays that a program computes, if none is freed.

    Args:
        jaxpr: the program.
        num_rows: counts only arrays that have an axis of this length, which depend on the rows;
            None counts all arrays.
    """
    return sum(_eqn_bytes(eqn, num_rows) for eqn in jaxpr.eqns)


def _num_bytes(variable: Var) -> int:
    aval: Any = variable.aval
    return math.prod(aval.shape) * aval.dtype.itemsize
