"""Lookups: the rows of its tables, such as embeddings, that a model reads for its inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from thinkml.core.model.adapters import ApplyFn, FunctionalModel
from thinkml.core.xla.jit import Jit
from thinkml.core.xla.nested_calls import called_program
from thinkml.errors import DataError, warn_user


class Lookup(NamedTuple):
    """Reads of one table.

    Attributes:
        num_rows: of the table; an int, or an array inside a compiled program, as all three are.
        lowest: the first of its rows that is read; -1 is its last row, as in NumPy.
        highest: the last one.
    """

    num_rows: Any
    lowest: Any
    highest: Any


def gathers(jaxpr: Jaxpr) -> bool:
    """Returns True if arrays are read at places that are computed, such as an embedding's."""
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
        reads: the lookups in each part of the rows, those of the same tables in each.
        argument: the name of the inputs in error messages.

    Raises:
        DataError: if one has not. What is read beyond its end is NaN, or its last row.

    Warns:
        ThinkMLWarning: for negative ids, which count from the end of a table.
    """
    for of_table in zip(*reads, strict=True):
        num_rows = int(of_table[0].num_rows)
        lowest = int(min(part.lowest for part in of_table))
        highest = int(max(part.highest for part in of_table))
        if highest >= num_rows or lowest < -num_rows:
            raise DataError(
                f'{argument}: got ids by which the model reads row '
                f'{highest if highest >= num_rows else lowest} of a table of {num_rows} rows, '
                f'expected 0 to {num_rows - 1}. Build the embedding with more rows, replace '
                'ids that it does not know by one that it knows, or clip them in the model: '
                f'jnp.clip(ids, 0, {num_rows - 1}).'
            )
        if lowest < 0:
            warn_user(
                f'{argument}: got ids by which the model reads row {lowest} of a table of '
                f'{num_rows} rows, which counts from its end. If {lowest} stands for something '
                'else, such as padding, give it an id from 0 on that nothing else has.'
            )


def has_lookups(functional: FunctionalModel, x: Any) -> bool:
    """Returns True if the model reads rows of a table that depend on its inputs.

    Args:
        functional: the model.
        x: inputs, or `jax.ShapeDtypeStruct` of them.
    """
    return bool(_table_sizes(functional, x))


def lookups(functional: FunctionalModel, x: Any) -> list[Lookup]:
    """Returns which rows of its tables a model reads, without computing its outputs.

    Rows that a model clips to those there are (``mode='clip'``) are not among them.

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
    forward: Callable[[Any, Any, Any], jax.Array], params: Any, model_state: Any, x: Any
) -> tuple[jax.Array, list[Lookup]]:
    """Computes a model's outputs and, inside a ``jax.jit``, its `lookups` as arrays.

    Args:
        forward: returns the outputs for ``(params, model_state, x)``.
        params: see `FunctionalModel`.
        model_state: see `FunctionalModel`.
        x: inputs, ``[rows, ...]``.
    """
    traced = jax.make_jaxpr(forward)(params, model_state, x)
    if not gathers(traced.jaxpr):
        [outputs] = jaxpr_as_fun(traced)(*jax.tree.leaves((params, model_state, x)))
        return outputs, []
    [outputs], found = _walked(traced, (params, model_state), x)
    return outputs, [Lookup(jnp.array(size), rows.min(), rows.max()) for size, rows in found]


def _table_sizes(functional: FunctionalModel, x: Any) -> list[int]:
    sizes: list[int] = []

    def note(params: Any, model_state: Any, x: Any) -> None:
        sizes.extend(size for size, _ in _read(functional.apply, params, model_state, x))

    jax.eval_shape(note, functional.params, functional.model_state, x)
    return sizes


@functools.partial(Jit, static_argnums=0)
def _ranges(apply: ApplyFn, params: Any, model_state: Any, x: Any) -> list[jax.Array]:
    found = _read(apply, params, model_state, x)
    return [jnp.stack([rows.min(), rows.max()]) for _, rows in found]


def _read(apply: ApplyFn, params: Any, model_state: Any, x: Any) -> list[tuple[int, jax.Array]]:
    """The size of each table, and the rows of it that are read."""

    def forward(params: Any, model_state: Any, x: Any) -> Any:
        return apply(params, model_state, x, key=None, train=False)[0]

    return _walked(jax.make_jaxpr(forward)(params, model_state, x), (params, model_state), x)[1]


def _walked(
    traced: ClosedJaxpr, arrays: Any, x: Any
) -> tuple[list[Any], list[tuple[int, jax.Array]]]:
    """The outputs of a forward pass, the size of each table, and the rows of it that are read."""
    known = [_Value(leaf, False) for leaf in jax.tree.leaves(arrays)]
    inputs = [_Value(leaf, True) for leaf in jax.tree.leaves(x)]
    found: list[tuple[int, jax.Array]] = []
    outputs = _walk(traced.jaxpr, traced.consts, [*known, *inputs], found)
    return [output.array for output in outputs], found


class _Value(NamedTuple):
    """An array of the forward pass.

    Attributes:
        array: its value.
        of_inputs: whether it depends on the inputs.
        given: the rows that were asked for, of rows that are counted from the end where they are
            negative; of a bool array the rows that it says are negative. Else None.
    """

    array: Any
    of_inputs: bool
    given: Any = None


def _walk(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[_Value],
    found: list[tuple[int, jax.Array]],
) -> list[_Value]:
    """Computes the equations once more, those inside of others too, and notes what tables give."""
    values = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= {v: _Value(c, False) for v, c in zip(jaxpr.constvars, consts, strict=True)}

    def value(variable: Any) -> _Value:
        return _Value(variable.val, False) if isinstance(variable, Literal) else values[variable]

    for eqn in jaxpr.eqns:
        given = [value(variable) for variable in eqn.invars]
        of_inputs = any(one.of_inputs for one in given)
        inner = called_program(eqn)
        if inner is not None:
            results = _walk(inner.jaxpr, inner.consts, given, found)
        else:
            if _is_lookup(eqn, given):
                [axis] = eqn.params['dimension_numbers'].start_index_map
                rows = given[1].array if given[1].given is None else given[1].given
                found.append((given[0].array.shape[axis], rows))
            rows = _rows_given(eqn, given)
            results = [_Value(array, of_inputs, rows) for array in _computed(jaxpr, eqn, given)]
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _computed(jaxpr: Jaxpr, eqn: JaxprEqn, given: Sequence[_Value]) -> list[Any]:
    """The results of one equation."""
    arrays = {
        variable: one.array
        for variable, one in zip(eqn.invars, given, strict=True)
        if not isinstance(variable, Literal)
    }
    alone = jaxpr.replace(
        constvars=(), invars=list(arrays), outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects,
        debug_info=jaxpr.debug_info._replace(arg_names=None, result_paths=None),
    )  # fmt: skip
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*arrays.values())


def _rows_given(eqn: JaxprEqn, given: Sequence[_Value]) -> Any:
    """Follows ``jnp.where(rows < 0, rows + size, rows)``, which comes before each lookup."""
    name = eqn.primitive.name
    if name == 'lt' and isinstance(eqn.invars[1], Literal) and eqn.invars[1].val == 0:
        return given[0].array
    if name == 'select_n' and given[0].given is given[1].array:
        return given[1].array
    same = name in ('broadcast_in_dim', 'reshape', 'squeeze', 'convert_element_type')
    return given[0].given if same else None


def _is_lookup(eqn: JaxprEqn, given: Sequence[_Value]) -> bool:
    """Returns True if it reads single rows, by the inputs, of a table without them."""
    if eqn.primitive.name != 'gather' or given[0].of_inputs or not given[1].of_inputs:
        return False
    numbers = eqn.params['dimension_numbers']
    return (
        len(numbers.start_index_map) == 1
        and eqn.params['slice_sizes'][numbers.start_index_map[0]] == 1
        and eqn.params['mode'] != jax.lax.GatherScatterMode.CLIP
    )
