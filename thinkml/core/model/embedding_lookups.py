"""Lookups: the rows that a model reads from its tables, such as embeddings, for its inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from thinkml.core.model.adapters import ApplyFn, FunctionalModel
from thinkml.core.xla.jit import Jit
from thinkml.core.xla.traced_programs import called_program, function_of
from thinkml.errors import DataError, warn_user
from thinkml.typing import PyTree


class Lookup(NamedTuple):
    """The reads of one table. All three numbers are ints, or arrays inside a compiled program.

    Attributes:
        num_rows: the number of rows of the table.
        lowest: the lowest row that is read; -1 is the last row of the table, as in NumPy.
        highest: the highest row that is read.
    """

    num_rows: int | jax.Array
    lowest: int | jax.Array
    highest: int | jax.Array


def gathers(jaxpr: Jaxpr) -> bool:
    """Returns True if a program reads arrays at computed indices, as an embedding does."""
    return any(
        eqn.primitive.name == 'gather'
        or any(
            gathers(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
            for value in eqn.params.values()
            if isinstance(value, ClosedJaxpr | Jaxpr)
        )
        for eqn in jaxpr.eqns
    )


def check_lookups(reads: Sequence[Sequence[Lookup]], argument: str) -> None:
    """Checks that the tables a model reads, such as embeddings, have a row for each id.

    Args:
        reads: the lookups for each batch of rows; every batch reads the same tables in order.
        argument: the name of the inputs in error messages.

    Raises:
        DataError: if a table lacks a row. A read beyond its end gives NaN, or its last row.

    Warns:
        ThinkMLWarning: for negative ids, which count from the end of a table.
    """
    for table_reads in zip(*reads, strict=True):
        num_rows = int(table_reads[0].num_rows)
        lowest = min(int(read.lowest) for read in table_reads)
        highest = max(int(read.highest) for read in table_reads)
        if highest >= num_rows or lowest < -num_rows:
            raise DataError(
                f'{argument}: got ids by which the model reads row '
                f'{highest if highest >= num_rows else lowest} of a table of {num_rows} rows, '
                f'expected 0 to {num_rows - 1}. Build the embedding with more rows, replace '
                'unknown ids by an id that it has, or clip them in the model: '
                f'jnp.clip(ids, 0, {num_rows - 1}).'
            )
        if lowest < 0:
            warn_user(
                f'{argument}: got ids by which the model reads row {lowest} of a table of '
                f'{num_rows} rows, which counts from its end. If {lowest} stands for something '
                'else, such as padding, give it an unused id of at least 0.'
            )


def has_lookups(functional: FunctionalModel, x: PyTree) -> bool:
    """Returns True if the model reads rows of a table that depend on its inputs.

    Args:
        functional: the model.
        x: the inputs, or their `jax.ShapeDtypeStruct`.
    """
    return bool(_table_sizes(functional, x))


def lookups(functional: FunctionalModel, x: PyTree) -> list[Lookup]:
    """Returns the rows that a model reads from its tables, without computing its outputs.

    Lookups that the model clips to the size of the table (``mode='clip'``) are left out.

    Args:
        functional: the model.
        x: inputs, ``[rows, ...]``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from thinkml.core import functionalize
        >>> from thinkml.core.model.embedding_lookups import lookups
        >>> x = jnp.array([[1], [7]])
        >>> functional = functionalize(nnx.Embed(5, 3, rngs=nnx.Rngs(0)), x, jax.random.key(0))
        >>> lookups(functional, x)
        [Lookup(num_rows=5, lowest=1, highest=7)]
    """
    ranges = _ranges(functional.apply, functional.params, functional.model_state, x)
    sizes = _table_sizes(functional, x)
    return [
        Lookup(size, int(low), int(high))
        for size, (low, high) in zip(sizes, jax.device_get(ranges), strict=True)
    ]


def with_lookups(
    forward: Callable[[PyTree, PyTree, PyTree], PyTree],
    params: PyTree,
    model_state: PyTree,
    x: PyTree,
) -> tuple[PyTree, list[Lookup]]:
    """Computes a model's outputs and its `lookups`, as arrays inside a ``jax.jit``.

    Args:
        forward: returns the outputs for ``(params, model_state, x)``.
        params: see `FunctionalModel`.
        model_state: see `FunctionalModel`.
        x: inputs, ``[rows, ...]``.
    """
    traced, shapes = jax.make_jaxpr(forward, return_shape=True)(params, model_state, x)
    structure = jax.tree.structure(shapes)
    if not gathers(traced.jaxpr):
        leaves = jaxpr_as_fun(traced)(*jax.tree.leaves((params, model_state, x)))
        return jax.tree.unflatten(structure, leaves), []
    leaves, found = _trace_reads(traced, (params, model_state), x)
    reads = [Lookup(jnp.array(size), rows.min(), rows.max()) for size, rows in found]
    return jax.tree.unflatten(structure, leaves), reads


def _table_sizes(functional: FunctionalModel, x: PyTree) -> list[int]:
    sizes: list[int] = []

    def collect(params: PyTree, model_state: PyTree, x: PyTree) -> None:
        sizes.extend(size for size, _ in _table_reads(functional.apply, params, model_state, x))

    jax.eval_shape(collect, functional.params, functional.model_state, x)
    return sizes


@functools.partial(Jit, static_argnums=0)
def _ranges(apply: ApplyFn, params: PyTree, model_state: PyTree, x: PyTree) -> list[jax.Array]:
    found = _table_reads(apply, params, model_state, x)
    return [jnp.stack([rows.min(), rows.max()]) for _, rows in found]


def _table_reads(
    apply: ApplyFn, params: PyTree, model_state: PyTree, x: PyTree
) -> list[tuple[int, jax.Array]]:
    """Returns the size of each table and the rows that are read from it."""

    def forward(params: PyTree, model_state: PyTree, x: PyTree) -> PyTree:
        return apply(params, model_state, x, key=None, train=False)[0]

    traced = jax.make_jaxpr(forward)(params, model_state, x)
    return _trace_reads(traced, (params, model_state), x)[1]


def _trace_reads(
    traced: ClosedJaxpr, arrays: PyTree, x: PyTree
) -> tuple[list[Any], list[tuple[int, jax.Array]]]:
    """Returns the outputs of a forward pass, and the size and the rows read of each table."""
    constants = [_Value(leaf, False) for leaf in jax.tree.leaves(arrays)]
    inputs = [_Value(leaf, True) for leaf in jax.tree.leaves(x)]
    found: list[tuple[int, jax.Array]] = []
    outputs = _interpret(traced.jaxpr, traced.consts, [*constants, *inputs], found)
    return [output.array for output in outputs], found


class _Value(NamedTuple):
    """An array of the forward pass.

    Attributes:
        array: its value.
        from_inputs: True if it depends on the inputs.
        row_ids: the row ids before negative ones were replaced by rows counted from the end. For
            a bool array, the row ids that it tests for being negative. None for other arrays.
    """

    array: Any
    from_inputs: bool
    row_ids: Any = None


def _interpret(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[_Value],
    found: list[tuple[int, jax.Array]],
) -> list[_Value]:
    """Computes all equations, nested ones too, and appends the table reads to ``found``."""
    values = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= {v: _Value(c, False) for v, c in zip(jaxpr.constvars, consts, strict=True)}

    def value(variable: Any) -> _Value:
        return _Value(variable.val, False) if isinstance(variable, Literal) else values[variable]

    for eqn in jaxpr.eqns:
        operands = [value(variable) for variable in eqn.invars]
        from_inputs = any(operand.from_inputs for operand in operands)
        inner = called_program(eqn)
        if inner is not None:
            results = _interpret(inner.jaxpr, inner.consts, operands, found)
        else:
            if _is_lookup(eqn, operands):
                table, index = operands[:2]
                [axis] = eqn.params['dimension_numbers'].start_index_map
                rows = index.array if index.row_ids is None else index.row_ids
                found.append((table.array.shape[axis], rows))
            row_ids = _row_ids(eqn, operands)
            arrays = function_of(jaxpr, eqn)(*(operand.array for operand in operands))
            results = [_Value(array, from_inputs, row_ids) for array in arrays]
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _row_ids(eqn: JaxprEqn, operands: Sequence[_Value]) -> Any:
    """Returns `_Value.row_ids` for an equation's result.

    It follows ``jnp.where(rows < 0, rows + size, rows)``, which comes before each lookup.
    """
    name = eqn.primitive.name
    if name == 'lt' and isinstance(eqn.invars[1], Literal) and eqn.invars[1].val == 0:
        return operands[0].array
    if name == 'select_n' and operands[0].row_ids is operands[1].array:
        return operands[1].array
    keeps_values = name in ('broadcast_in_dim', 'reshape', 'squeeze', 'convert_element_type')
    return operands[0].row_ids if keeps_values else None


def _is_lookup(eqn: JaxprEqn, operands: Sequence[_Value]) -> bool:
    """Returns True if an equation reads single rows of a table, with ids from the inputs.

    The table itself must not depend on the inputs.
    """
    if eqn.primitive.name != 'gather':
        return False
    table, index = operands[:2]
    if table.from_inputs or not index.from_inputs:
        return False
    numbers = eqn.params['dimension_numbers']
    return (
        len(numbers.start_index_map) == 1
        and eqn.params['slice_sizes'][numbers.start_index_map[0]] == 1
        and eqn.params['mode'] != jax.lax.GatherScatterMode.CLIP
    )
