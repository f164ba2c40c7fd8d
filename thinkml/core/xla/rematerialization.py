"""Rematerialisation: activations are computed again in the backward pass, not kept for it."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

# More parts than this never paid: what is kept between them grows with their number.
_MOST_PARTS = 32


def rematerialized(fn: Callable) -> Callable:
    """Returns ``fn``, whose gradient keeps what lies between a few parts of it, and no more.

    The traced function is cut into parts of about equal size where little is alive, whatever
    library it is written with. Differentiated, each part is computed again when its gradient is
    due. The values are those of ``fn``; a gradient takes the time of one more call of it.

    Args:
        fn: takes and returns arrays in pytrees. What is a single operation of its program (a scan)
            is not cut.

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
    def computed_again(*args):
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
        jaxpr = closed.jaxpr
        values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        values |= dict(zip(jaxpr.invars, jax.tree.leaves(args), strict=True))
        for part in _parts(jaxpr):
            inner = jaxpr.replace(
                constvars=[], invars=part.reads, outvars=part.writes, eqns=part.eqns,
                debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None),
            )  # fmt: skip
            results = _computed_again(jaxpr_as_fun(ClosedJaxpr(inner, ())))(
                *(values[variable] for variable in part.reads)
            )
            values |= dict(zip(part.writes, results, strict=True))
        leaves = [_value(variable, values) for variable in jaxpr.outvars]
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return computed_again


def _computed_again(part: Callable) -> Callable:
    """A function of arrays that keeps its arguments alone for its gradient.

    `jax.checkpoint` does that for accelerators. XLA's CPU backend removes its barriers and then
    finds that all is computed already, so that nothing is saved: there a condition that it can't
    see through is in between.
    """
    if jax.default_backend() != 'cpu':
        return jax.checkpoint(part)

    @jax.custom_vjp
    def computed(*values):
        return part(*values)

    def backward(values, cotangents):
        is_float = [jnp.issubdtype(value.dtype, jnp.inexact) for value in values]
        known = [c for c in cotangents if jnp.issubdtype(c.dtype, jnp.inexact)]
        floats = [value for value, use in zip(values, is_float, strict=True) if use]
        if not known or not floats:
            return (None,) * len(values)

        def of_floats(*floats):
            rest = iter(floats)
            outputs = part(
                *(next(rest) if use else value for value, use in zip(values, is_float, strict=True))
            )
            return [out for out in outputs if jnp.issubdtype(out.dtype, jnp.inexact)]

        some = known[0].reshape(-1)[0]
        gradients = jax.lax.cond(
            (some < 1) | (some >= 1) | (some != some),  # always
            lambda: jax.vjp(of_floats, *floats)[1](known),
            lambda: tuple(map(jnp.zeros_like, floats)),
        )
        found = iter(gradients)
        return tuple(next(found) if use else None for use in is_float)

    computed.defvjp(lambda *values: (part(*values), values), backward)
    return computed


def _value(variable: Any, values: dict[Any, Any]) -> Any:
    return variable.val if isinstance(variable, Literal) else values[variable]


class _Part(NamedTuple):
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
    made_at = {v: index for index, eqn in enumerate(eqns) for v in eqn.outvars}
    parts = []
    for first, stop in itertools.pairwise(_cuts(eqns, made_at, last_read)):
        inside = range(first, stop)
        read = dict.fromkeys(
            v for eqn in eqns[first:stop] for v in eqn.invars
            if isinstance(v, Var) and made_at.get(v, -1) < first
        )  # fmt: skip
        written = [
            v for eqn in eqns[first:stop] for v in eqn.outvars if last_read.get(v, -1) >= stop
        ]
        assert all(made_at[v] in inside for v in written)
        parts.append(_Part(list(eqns[first:stop]), list(read), written))
    return parts


def _cuts(
    eqns: Sequence[JaxprEqn], made_at: dict[Any, int], last_read: dict[Any, int]
) -> list[int]:
    """Where parts begin, and the end: those whose borders and largest part take the least."""
    sizes = [_eqn_bytes(eqn) for eqn in eqns]
    before = [0, *itertools.accumulate(sizes)]
    change = [0] * (len(eqns) + 1)
    for variable, index in made_at.items():
        if variable in last_read:
            change[index + 1] += _num_bytes(variable)
            change[min(last_read[variable] + 1, len(eqns))] -= _num_bytes(variable)
    alive = list(itertools.accumulate(change))  # across the border before each equation

    def cuts_of(num_parts: int) -> list[int]:
        # Of the places within a quarter of a part of an even cut the one where least is alive.
        even, cuts = before[-1] / num_parts, {0, len(eqns)}
        for number in range(1, num_parts):
            near = [
                index for index in range(1, len(eqns))
                if abs(before[index] - number * even) <= even / 4
            ]  # fmt: skip
            if near:
                cuts.add(min(near, key=alive.__getitem__))
        return sorted(cuts)

    def taken(cuts: list[int]) -> int:
        largest = max(before[stop] - before[first] for first, stop in itertools.pairwise(cuts))
        return largest + sum(alive[cut] for cut in cuts[1:-1])

    return min(map(cuts_of, range(1, _MOST_PARTS + 1)), key=taken) if eqns else [0]


def _eqn_bytes(eqn: JaxprEqn, num_rows: int | None = None) -> int:
    """What an operation makes, with what the program within it does."""
    avals: list[Any] = [variable.aval for variable in eqn.outvars]
    counted = [aval for aval in avals if num_rows is None or num_rows in aval.shape]
    own = sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in counted)
    inner = [
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in eqn.params.values()
        if isinstance(value, ClosedJaxpr | Jaxpr)
    ]
    within = sum(computed_bytes(jaxpr, num_rows) for jaxpr in inner)
    return max(own, within * eqn.params.get('length', 1))


def computed_bytes(jaxpr: Jaxpr, num_rows: int | None = None) -> int:
    """Bytes of all that a program computes on its way, if nothing were freed.

    With ``num_rows`` only of arrays that have an axis of this length: what depends on the rows.
    """
    return sum(_eqn_bytes(eqn, num_rows) for eqn in jaxpr.eqns)


def _num_bytes(variable: Any) -> int:
    aval = variable.aval
    return math.prod(aval.shape) * aval.dtype.itemsize
