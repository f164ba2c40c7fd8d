"""Nested calls: equations of a traced program that run an inner program once."""

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

_CALLS = (
    'jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint', 'custom_jvp_call',
    'custom_vjp_call', 'custom_vjp_call_jaxpr',
)  # fmt: skip


def called_program(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Returns the program that an equation calls with its operands; None if it is not a call."""
    if eqn.primitive.name not in _CALLS:
        return None
    for value in eqn.params.values():
        program = ClosedJaxpr(value, ()) if isinstance(value, Jaxpr) else value
        if isinstance(program, ClosedJaxpr) and len(program.jaxpr.invars) == len(eqn.invars):
            return program
    return None
