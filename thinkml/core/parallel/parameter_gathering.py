"""Gathering of sharded parameters: each is replicated for the operations that use it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from thinkml.core.parallel.sharding import Layout, pin_state, replicate
from thinkml.core.xla.traced_programs import called_program, function_of, inner_programs
from thinkml.typing import PyTree

_CALLS = ('jit', 'pjit', 'closed_call')
_REMATERIALIZED = ('checkpoint', 'remat', 'remat2')

Forward = Callable[..., Any]


def gathered_at_use(forward: Forward, layout: Layout, *, twice: bool = False) -> Forward:
    """Returns ``forward`` with sharded weights that are gathered where they are used.

    With FSDP a device holds a part of each parameter. The traced forward pass is run with the
    exchanges written into it: each operation that uses a parameter gathers it first, in the dtype
    of the operation. The gradients, which each device computes for its rows, are summed and sharded
    in one exchange (a reduce-scatter). Without these constraints the compiler would choose a
    placement of each activation.

    An exchange may begin when the operation before the one that needs it has its inputs. So it
    overlaps with that operation, and a device holds the large parameters of two operations, where
    the compiler would otherwise gather as many as the memory takes.

    Args:
        forward: a function ``(params, model_state, *args)`` of arrays in pytrees.
        layout: the devices. Without sharded parameters ``forward`` itself is returned.
        twice: True to gather large parameters again for the gradient. False keeps them from the
            forward pass.

    Reference:
        Rajbhandari et al., 2020, *ZeRO: memory optimizations toward training trillion parameter
        models*.
    """
    if layout.mesh is None or not layout.shards_state:
        return forward

    @functools.wraps(forward)
    def gathering(params: PyTree, model_state: PyTree, *args: PyTree) -> PyTree:
        closed, out = jax.make_jaxpr(forward, return_shape=True)(params, model_state, *args)
        weights = map(_as_weight, jax.tree.leaves((params, model_state)))
        run = _GatheringInterpreter(layout, twice, _unordered())
        outputs = run.program(closed, [*weights, *jax.tree.leaves(args)])
        return jax.tree.unflatten(jax.tree.structure(out), map(run.to_array, outputs))

    return gathering


class _Weight(NamedTuple):
    """A value that depends on sharded arrays alone.

    Attributes:
        shards: the sharded arrays.
        build: the function that computes the value from the gathered arrays; None for the identity.
    """

    shards: tuple[jax.Array, ...]
    build: Callable[..., jax.Array] | None = None


def _as_weight(leaf: jax.Array) -> _Weight | jax.Array:
    # Keys and counters are small, and what is computed from them must not be computed twice.
    return _Weight((leaf,)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


Value = Any  # an array or a `_Weight`


# Smaller weights are gathered without waiting, and only once.
_LARGE = 2**16


@dataclasses.dataclass
class _GatheringInterpreter:
    """An interpreter of traced programs that gathers weights; see `gathered_at_use`.

    Attributes:
        layout: the devices.
        twice: True to gather large weights again for the gradient.
        order: the zeros that the next operations wait for.
    """

    layout: Layout
    twice: bool
    order: 'Order'

    def program(self, closed: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
        """Returns the outputs of a program."""
        jaxpr = closed.jaxpr
        values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
            results = self._equation(eqn, function_of(jaxpr, eqn), operands)
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]

    def to_array(self, value: Value) -> jax.Array:
        """Returns a weight as an array, which stays sharded if it was not changed."""
        if not isinstance(value, _Weight):
            return value
        return value.shards[0] if value.build is None else self._use(_identity, [value])[0]

    def _equation(
        self, eqn: JaxprEqn, function: Callable[..., list[Any]], operands: list[Value]
    ) -> Sequence[Value]:
        weights = [value for value in operands if isinstance(value, _Weight)]
        if not weights:
            return function(*operands)
        called = called_program(eqn) if eqn.primitive.name in _CALLS else None
        if called is not None:
            return self.program(called, operands)
        if eqn.primitive.name == 'scan':
            return self._scan(eqn, operands)
        if _is_cast(eqn) and weights[0].build is None:  # what is narrower is exchanged faster
            return [_Weight((pin_state(self.layout, function(*weights[0].shards)[0]),))]
        if len(weights) == len(operands):
            return [_derived(function, i, weights) for i in range(len(eqn.outvars))]
        return self._use(function, operands, twice=self.twice and _is_cheap(eqn))

    def _scan(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
        """Runs a scan, for instance over the layers of a model, that gathers in its iterations."""
        names = ('num_consts', 'num_carry', 'length', 'reverse', 'unroll')
        num_consts, num_carry, length, reverse, unroll = (eqn.params[name] for name in names)
        scanned = operands[num_consts + num_carry :]
        is_weight = [isinstance(value, _Weight) and value.build is None for value in scanned]
        xs = [
            value.shards[0] if use else self._gathered(value)
            for value, use in zip(scanned, is_weight, strict=True)
        ]
        consts, init = (
            [self._gathered(value) for value in part]
            for part in (operands[:num_consts], operands[num_consts : num_consts + num_carry])
        )

        (body_program,) = inner_programs(eqn)

        def body(carry: list[jax.Array], xs: list[jax.Array]) -> tuple[list[Any], list[Any]]:
            slices = [_Weight((x,)) if use else x for x, use in zip(xs, is_weight, strict=True)]
            inside = dataclasses.replace(self, order=_unordered())
            outputs = inside.program(body_program, [*consts, *carry, *slices])
            arrays = [inside._gathered(value) for value in outputs]
            return arrays[:num_carry], arrays[num_carry:]

        carry, ys = jax.lax.scan(body, init, xs, length, reverse=reverse, unroll=unroll)
        return [*carry, *ys]

    def _gathered(self, value: Value) -> jax.Array:
        return self._use(_identity, [value])[0] if isinstance(value, _Weight) else value

    def _use(
        self, function: Callable[..., list[Any]], operands: list[Value], *, twice: bool = False
    ) -> list[jax.Array]:
        """Calls a function of arrays with operands that may be weights, which are gathered."""
        is_weight = [isinstance(value, _Weight) for value in operands]
        weights = [value for value in operands if isinstance(value, _Weight)]
        arrays = [value for value in operands if not isinstance(value, _Weight)]
        shards = [shard for weight in weights for shard in weight.shards]

        def compute(shards: list[jax.Array], arrays: list[jax.Array]) -> list[jax.Array]:
            built = _build(weights, (_gather(self.layout, shard) for shard in shards))
            rest = iter(arrays)
            return function(*(next(built) if use else next(rest) for use in is_weight))

        if sum(shard.size for shard in shards) < _LARGE:
            return compute(shards, arrays)
        run = functools.partial(_in_order, self.layout, compute)
        run = _computed_again(self.layout, compute, run) if twice else run
        self.order, results = run(self.order, shards, arrays)
        return results


def _identity(array: jax.Array) -> list[jax.Array]:
    return [array]


def _is_cast(eqn: JaxprEqn) -> bool:
    name = eqn.primitive.name
    return name == 'convert_element_type' and jnp.issubdtype(eqn.params['new_dtype'], jnp.floating)


def _is_cheap(eqn: JaxprEqn) -> bool:
    """Returns True if the gradient of an operation needs none of its results.

    Products and sums need only their operands, so that nothing is computed twice. A loop or a
    function with its own gradient keeps what it has computed.
    """
    return not inner_programs(eqn) or eqn.primitive.name in _REMATERIALIZED


def _derived(function: Callable[..., list[Any]], index: int, weights: list[_Weight]) -> _Weight:
    def build(*gathered: jax.Array) -> jax.Array:
        return function(*_build(weights, gathered))[index]

    return _Weight(tuple(shard for weight in weights for shard in weight.shards), build)


def _build(weights: list[_Weight], gathered: Iterable[jax.Array]) -> Iterator[jax.Array]:
    """Yields the values of weights from their gathered arrays."""
    rest = iter(gathered)
    for weight in weights:
        arrays = [next(rest) for _ in weight.shards]
        yield arrays[0] if weight.build is None else weight.build(*arrays)


def _gather(layout: Layout, shard: jax.Array) -> jax.Array:
    """Returns a replicated array whose gradient is sharded as ``shard`` is."""

    @jax.custom_vjp
    def gather(shard: jax.Array) -> jax.Array:
        return replicate(layout, shard)

    gather.defvjp(
        lambda shard: (replicate(layout, shard), None),
        lambda _, cotangent: (pin_state(layout, cotangent),),
    )
    return gather(shard)


Order = tuple[jax.Array, jax.Array]
"""Zeros that the gathering of the next operation and of the one after it wait for."""
Ordered = tuple[Order, list[jax.Array]]


def _unordered() -> Order:
    """Returns the order before the first operation."""
    return jnp.zeros(()), jnp.zeros(())


def _in_order(
    layout: Layout, compute: Callable[..., Any], order: Order, shards: list[Any], arrays: list[Any]
) -> Ordered:
    """Returns ``compute(shards, arrays)`` with the next `order`."""
    shards = _wait(layout, shards, order[0])
    if _waits_for_results(layout):
        after, results = _zero_after(compute(shards, arrays))
        return (order[1], after), results
    after, arrays = _zero_after(arrays)
    return (after, after), compute(shards, arrays)


def _waits_for_results(layout: Layout) -> bool:
    """Returns True if gathering waits for the results of an operation, not for its inputs.

    The results of the second last operation are there when the last one has its inputs. A barrier
    has the compiler write what it is around. On a TPU that would be the values of an activation
    function, which are computed again inside a product. A GPU writes them together with the product
    that they are computed from, and a barrier in between costs a kernel.
    """
    return layout.platform == 'tpu'


def _zero_after(arrays: list[Any]) -> tuple[jax.Array, list[Any]]:
    """Returns a zero that is computed when the arrays are, and the arrays."""
    return jax.lax.optimization_barrier((jnp.zeros(()), arrays))


def _zero_after_floats(cotangents: list[Any]) -> tuple[jax.Array, list[Any]]:
    """Returns the same for cotangents, of which those of integers are no arrays."""
    floats = [c if jnp.issubdtype(c.dtype, jnp.inexact) else None for c in cotangents]
    after, floats = _zero_after(floats)
    return after, [c if w is None else w for c, w in zip(cotangents, floats, strict=True)]


def _wait(layout: Layout, shards: list[Any], order: jax.Array) -> list[Any]:
    """Returns the shards plus a zero that they wait for, as shards."""
    order = jax.lax.stop_gradient(order)
    return pin_state(layout, [shard + order.astype(shard.dtype) for shard in shards])


def _computed_again(
    layout: Layout, compute: Callable[..., Any], run: Callable[..., Ordered]
) -> Callable[..., Ordered]:
    """Returns `_in_order` with a gradient that gathers the shards again, in its order."""

    @jax.custom_vjp
    def computed(order: Order, shards: list[Any], arrays: list[Any]) -> Ordered:
        return run(order, shards, arrays)

    def forward(order: Order, shards: list[Any], arrays: list[Any]) -> tuple[Ordered, Any]:
        return run(order, shards, arrays), (shards, arrays)

    def backward(saved: tuple[list[Any], list[Any]], cotangents: Ordered) -> Any:
        shards, arrays = saved
        (first, second), cotangent = cotangents  # in the order of the forward pass

        def gradient(cotangent: list[Any], order: jax.Array) -> tuple[list[Any], list[Any]]:
            return jax.vjp(compute, _wait(layout, shards, order), arrays)[1](cotangent)

        if _waits_for_results(layout):
            of_shards, of_arrays = gradient(cotangent, second)
            after, of_arrays = _zero_after_floats(of_arrays)
            return (after, first), of_shards, of_arrays
        after, cotangent = _zero_after_floats(cotangent)
        return (after, jnp.zeros(())), *gradient(cotangent, first)

    computed.defvjp(forward, backward)
    return computed
