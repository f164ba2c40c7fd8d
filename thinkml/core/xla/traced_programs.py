"""Traced programs: equations that call inner programs, and equations as functions."""

from collections.abc import Callable
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

_CALLS = (
    'jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint', 'custom_jvp_call',
    'custom_vjp_call', 'custom_vjp_call_jaxpr',
)  # fmt: skip


def called_program(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Returns the program that an equation calls with its operands; None if it is not a call."""
    if eqn.primitive.name not in _CALLS:
        return None
    for program in inner_programs(eqn):
        if len(program.jaxpr.invars) == len(eqn.invars):
            return program
    return None


def inner_programs(eqn: JaxprEqn) -> list[ClosedJaxpr]:
    """Returns the programs among an equation's parameters: the body of a loop, all branches."""
    values = [
        item
        for value in eqn.params.values()
        for item in (value if isinstance(value, tuple) else (value,))
    ]
    programs = [ClosedJaxpr(p, ()) if isinstance(p, Jaxpr) else p for p in values]
    return [program for program in programs if isinstance(program, ClosedJaxpr)]


def function_of(jaxpr: Jaxpr, eqn: JaxprEqn) -> Callable[..., list[Any]]:
    """Returns a function that computes one equation of a program from all of its operands.

    Args:
        jaxpr: the program.
        eqn: the equation.
    """
    variables = list(dict.fromkeys(v for v in eqn.invars if not isinstance(v, Literal)))
    single = jaxpr.replace(
        constvars=(), invars=variables, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects,
        debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None),
    )  # fmt: skip
    run = jaxpr_as_fun(ClosedJaxpr(single, ()))

    def function(*operands: Any) -> list[Any]:
        pairs = zip(eqn.invars, operands, strict=True)
        values = {v: operand for v, operand in pairs if not isinstance(v, Literal)}
        return run(*(values[v] for v in variables))

    return function


def uses_last_input(closed: ClosedJaxpr) -> bool:
    """Returns True if an output of a program depends on its last input."""
    used = {v for v in closed.jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in reversed(closed.jaxpr.eqns):
        if not used.isdisjoint(eqn.outvars) or eqn.effects:
            used |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return closed.jaxpr.invars[-1] in used
