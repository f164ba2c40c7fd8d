"""Models as pure functions: ``apply(params, model_state, x, key, train)``.

Gradients are taken with respect to ``params``. Training updates ``model_state`` (BatchNorm
statistics) without gradients. Both are plain pytrees. ``apply`` is hashable and equal for two
models of the same structure, so that they share compiled programs.
"""

import functools
import inspect
import sys
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from thinkml.core.model.adapters import ApplyFn, FunctionalModel, functionalize_nnx
from thinkml.core.model.embedding_lookups import gathers
from thinkml.core.model.image_layout import layout_hint, likely_layout_hint
from thinkml.core.model.mixed_precision import DType
from thinkml.core.model.output_range import Range, output_ranges
from thinkml.core.model.sown_values import Collected, SownValues, collecting_sown
from thinkml.core.objectives.heads import named_outputs
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.core.xla.jit import trace_settings
from thinkml.core.xla.rematerialization import computed_bytes
from thinkml.errors import DataError, ModelTypeError
from thinkml.model_record import ArraySpec, record_of
from thinkml.typing import Model, PyTree


def functionalize(
    model: Model, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
) -> FunctionalModel:
    """Splits a model into a pure function and its arrays, without changing it.

    Args:
        model: a `flax.nnx.Module`, a result of `from_linen` or `from_functions`, or an
            `ExportedModel`.
        x: a batch of inputs (arrays or `jax.ShapeDtypeStruct`). Only models whose parameters
            don't exist yet use it, to find their shapes.
        key: PRNG key for parameters that don't exist yet.
        compute_dtype: the dtype that layers compute in, see `get_compute_dtype`; None for the one
            that the model was built with. Parameters, statistics and outputs stay in float32. In
            NNX and Linen modules, every layer whose ``dtype`` was left open computes in it. A
            layer with an explicit dtype keeps that dtype, and so do products outside of layers.
            Functions get their parameters and floating inputs cast.

    Raises:
        ModelTypeError: for any other object; the message says how to wrap it.
    """
    if isinstance(model, nnx.Module):
        return functionalize_nnx(model, compute_dtype)
    if is_model(model):
        return model.functionalize(x, key, compute_dtype)
    raise ModelTypeError(not_a_model(model))


def is_model(model: Any) -> bool:
    """Returns True for a `flax.nnx.Module`, and for an adapter, which has ``functionalize``."""
    return isinstance(model, nnx.Module) or (
        not inspect.isclass(model) and callable(getattr(model, 'functionalize', None))
    )


def num_outputs(model: Model, x: PyTree, argument: str = 'X_train') -> int:
    """Returns the number of outputs per example, without computing or compiling.

    Args:
        model: see `functionalize`.
        x: inputs; only the shape of a row and the dtype are read.
        argument: the name of the inputs in error messages.

    Raises:
        ModelTypeError: if the object is not a model, or does not return one array.
        DataError: if the model can't take these inputs, or returns a shape other than ``(rows,)``
            or ``(rows, outputs)``.
    """
    shape = outputs_of(model, x, argument).shape
    if len(shape) > 1:
        raise DataError(
            f'model: it returns shape (rows, {", ".join(map(str, shape))}), expected (rows,) or '
            '(rows, outputs). Flatten or pool the outputs.'
        )
    return shape[0] if shape else 1


def last_activation(model: Model, x: PyTree, argument: str = 'X_train') -> str | None:
    """Returns ``'sigmoid'`` or ``'softmax'`` if the model ends in one, else None.

    Args:
        model: see `functionalize`.
        x: inputs; only the shape of a row and the dtype are read.
        argument: the name of the inputs in error messages.

    Raises:
        ModelTypeError: see `num_outputs`.
        DataError: see `num_outputs`.
    """
    return outputs_of(model, x, argument).range.name


class Outputs(NamedTuple):
    """The properties of a model's output that a trace shows.

    Attributes:
        shape: the shape of the output of one row.
        range: the range of the output.
        gathers: True if the model reads arrays at computed indices, as an embedding does.
    """

    shape: tuple[int, ...]
    range: Range
    gathers: bool


class HeadOutputs(NamedTuple):
    """The properties of the outputs of a model with several heads.

    Attributes:
        heads: the properties of each output by name; for a tuple, by position.
        is_tuple: True if the model returns a tuple or list without names.
        gathers: see `Outputs`.
    """

    heads: dict[str, Outputs]
    is_tuple: bool
    gathers: bool


def outputs_of(model: Model, x: PyTree, argument: str = 'X_train') -> Outputs:
    """Returns the shape and other properties of a model's output, from a single trace.

    Raises:
        ModelTypeError: if the object is not a model, or does not return one array.
        DataError: if the model can't take these inputs, or its output has no axis of rows.
    """
    outputs = any_outputs_of(model, x, argument)
    if isinstance(outputs, HeadOutputs):
        raise ModelTypeError(
            f'model: it returns a {"tuple" if outputs.is_tuple else "dict"} of '
            f'{", ".join(map(repr, outputs.heads))}, expected one array of '
            'logits or predictions, (rows,) or (rows, outputs). Wrap it in a module whose '
            '__call__ returns one of them.'
        )
    return outputs


def any_outputs_of(model: Model, x: PyTree, argument: str = 'X_train') -> Outputs | HeadOutputs:
    """Returns the properties of a model's output, or of each of its outputs.

    Raises:
        ModelTypeError: if the object is not a model, or returns something else than an array or a
            dict or tuple of arrays.
        DataError: if the model can't take these inputs, or an output has no axis of rows.
    """
    call = _trace(model, x, argument, train=False)
    named = named_outputs(call.outputs)
    if named is None:
        return Outputs(_row_shape(call.outputs, 'it returns'), call.ranges[0], call.gathers)
    if not named or not all(
        isinstance(name, str) and isinstance(part, jax.ShapeDtypeStruct)
        for name, part in named.items()
    ):
        raise ModelTypeError(
            f'model: it returns a {type(call.outputs).__name__} of '
            f'{with_rows(jax.tree.map(lambda leaf: leaf.shape, call.outputs))}, expected one array '
            'of logits or predictions, (rows,) or (rows, outputs), or a dict with names or a tuple '
            'of such arrays.'
        )
    # The leaves of a dict are in the order of its sorted names.
    leaves = jax.tree.leaves(call.outputs)
    ranges = {id(leaf): span for leaf, span in zip(leaves, call.ranges, strict=True)}
    heads = {
        name: Outputs(_row_shape(part, f'its output {name!r} has'), ranges[id(part)], call.gathers)
        for name, part in named.items()
    }
    is_tuple = isinstance(call.outputs, tuple | list) and not hasattr(call.outputs, '_asdict')
    return HeadOutputs(heads, is_tuple, call.gathers)


def _row_shape(output: Any, what: str) -> tuple[int, ...]:
    if output.ndim == 0 or output.shape[0] != PROBE_ROWS:
        raise DataError(
            f'model: {what} shape {with_rows(output.shape)}, expected (rows,), (rows, outputs) or '
            'more axes. The first axis must have the rows.'
        )
    return output.shape[1:]


class Footprint(NamedTuple):
    """A rough estimate of the memory that a model needs.

    Attributes:
        params: bytes of its parameters.
        row: bytes of all arrays that its forward pass computes for an example, if none is freed.
    """

    params: int
    row: int


def check_trainable(
    model: Model,
    x: PyTree,
    outputs: Outputs | HeadOutputs,
    argument: str = 'X_train',
    compute_dtype: DType | None = None,
) -> Footprint:
    """Checks that a training step can be compiled, without compiling it.

    Args:
        model: see `functionalize`.
        x: inputs; only the shape of a row and the dtype are read.
        outputs: the outputs in evaluation mode, from `any_outputs_of`.
        argument: the name of the inputs in error messages.
        compute_dtype: see `functionalize`.

    Raises:
        ModelTypeError: if the model fails in training mode, or returns other outputs there than
            in evaluation mode. Also raised if a call changes the structure of its state, or if
            its parameters are not floats.
    """
    call = _trace(model, x, argument, train=True, compute_dtype=compute_dtype)
    _check_same_outputs(call.outputs, outputs)
    before, after = _shapes(call.model_state), _shapes(call.updated_state)
    if before != after:
        is_other = jax.tree.structure(before) != jax.tree.structure(after)
        raise ModelTypeError(
            f'model: a call in training mode turns its state from {before} into {after}, expected '
            f'the same shapes and dtypes.{_HOW_TO_SOW if is_other else ""}'
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(call.params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ModelTypeError(
                f'model: its parameter {jax.tree_util.keystr(path)} is {leaf.dtype}, expected '
                'floats, so that gradients exist. Keep constants out of the parameters.'
            )
    params_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(call.params))
    return Footprint(params_bytes, -(-call.computed_bytes // PROBE_ROWS))


_HOW_TO_SOW = (
    ' Values that a call sows are not state if they are nnx.Intermediate, or in the collection '
    "'losses' of Linen."
)


def sown_by(
    model: Model, x: PyTree, argument: str = 'X_train', compute_dtype: DType | None = None
) -> SownValues:
    """Returns the shapes and dtypes of the values that a call in training mode sows, by name.

    Args:
        model: see `functionalize`.
        x: inputs; only the shape of a row and the dtype are read.
        argument: the name of the inputs in error messages.
        compute_dtype: see `functionalize`.

    Raises:
        ModelTypeError: if the model fails.
    """
    return _trace(model, x, argument, train=True, compute_dtype=compute_dtype).sown


def _check_same_outputs(in_training: PyTree, in_evaluation: Outputs | HeadOutputs) -> None:
    """Raises a `ModelTypeError` if outputs in training mode have other shapes."""
    if isinstance(in_evaluation, HeadOutputs):
        expected = {name: (PROBE_ROWS, *one.shape) for name, one in in_evaluation.heads.items()}
        named = named_outputs(in_training) or {}
        shape = {name: getattr(part, 'shape', None) for name, part in named.items()}
    else:
        expected = (PROBE_ROWS, *in_evaluation.shape)
        shape = getattr(in_training, 'shape', None)
    one_each = ((PROBE_ROWS,), (PROBE_ROWS, 1))
    if shape != expected and not (shape in one_each and expected in one_each):
        raise ModelTypeError(
            f'model: it returns {with_rows(_shapes(in_training))} in training mode and '
            f'{with_rows(expected)} in evaluation mode, expected the same.'
        )


def probe(x: PyTree) -> PyTree:
    """Returns the shapes and dtypes of ``x`` with a few rows."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((PROBE_ROWS, *leaf.shape[1:]), leaf.dtype), x
    )


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape)}', tree)


class _Call(NamedTuple):
    """The trace of a call of a model on a few rows.

    Attributes:
        params: the shapes and dtypes of the model's parameters; all trees hold shapes and dtypes.
        model_state: its state before the call.
        updated_state: its state after the call.
        outputs: its outputs.
        sown: the values that it sows; none in evaluation mode.
        ranges: for each array of the outputs, a range that contains its values.
        gathers: see `Outputs`.
        computed_bytes: bytes of all arrays that the call computes.
    """

    params: PyTree
    model_state: PyTree
    updated_state: PyTree
    outputs: PyTree
    sown: SownValues
    ranges: tuple[Range, ...]
    gathers: bool
    computed_bytes: int


def _trace(
    model: Model, x: PyTree, argument: str, *, train: bool, compute_dtype: DType | None = None
) -> _Call:
    """Traces a call of the model, or returns the earlier trace of a model of equal structure."""
    apply_functions: list[ApplyFn] = []

    def arrays(key: jax.Array, x: PyTree) -> tuple[PyTree, PyTree]:
        functional = functionalize(model, x, key, compute_dtype)
        apply_functions.append(functional.apply)
        return functional.params, functional.model_state

    try:
        key = jax.eval_shape(lambda: jax.random.key(0))
        arguments = (*jax.eval_shape(arrays, key, probe(x)), probe(x), key)
        leaves, structure = jax.tree.flatten(arguments)
        return _traced_call(apply_functions[0], tuple(leaves), structure, train, trace_settings())
    except ModelTypeError:
        raise
    except Exception as error:
        sizes = {size for leaf in jax.tree.leaves(x) for size in leaf.shape[1:]}
        failure = f'{type(error).__name__}: {with_rows(error, others=sizes)}'
        is_code_error = isinstance(error, jax.errors.JAXTypeError)  # if x > 0, np.asarray(x)
        if is_code_error or ('shape' not in str(error) and 'dimension' not in str(error)):
            mode = 'training' if train else 'evaluation'
            raise ModelTypeError(
                f'model: called in {mode} mode, it fails with {failure}'
            ) from error
        rows = jax.tree.map(lambda leaf: f'{leaf.shape[1:]} {leaf.dtype}', x)
        raise DataError(
            f'{argument}: got rows of {rows}, which the model can not take.'
            f'{_expectation(model, x, argument, failure)} It failed with {failure}\n'
            f'Build the model for rows of this shape, or reshape {argument} to the shape that it '
            'was built for, such as (rows, features) or (rows, height, width, channels).'
        ) from error


# The cache holds no jaxpr, because a jaxpr may refer to large arrays that user code captures.
@functools.lru_cache(maxsize=64)
def _traced_call(
    apply: ApplyFn,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
    structure: Any,
    train: bool,
    settings: Hashable,
) -> _Call:
    def forward(params: PyTree, model_state: PyTree, x: PyTree, key: jax.Array) -> PyTree:
        return collecting(params, model_state, x, key=key, train=train)

    collecting = collecting_sown(apply)
    arguments = jax.tree.unflatten(structure, leaves)
    traced, (outputs, updated) = jax.make_jaxpr(forward, return_shape=True)(*arguments)
    params, model_state, *_ = arguments
    updated, sown = updated if isinstance(updated, Collected) else (updated, {})
    return _Call(
        params=params,
        model_state=model_state,
        updated_state=updated,
        outputs=outputs,
        sown=sown,
        ranges=output_ranges(traced.jaxpr, len(jax.tree.leaves(outputs))),
        gathers=gathers(traced.jaxpr),
        computed_bytes=computed_bytes(traced.jaxpr, PROBE_ROWS),
    )


def _expectation(model: Model, x: PyTree, argument: str, failure: str) -> str:
    """Returns sentences about the recorded input shape and how to convert images to it."""
    spec = record_of(model).input_spec
    got = x.shape[1:] if isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct) else None
    if spec is None:
        return '' if got is None else likely_layout_hint(got, argument, failure)
    expected = spec.arrays.shape if isinstance(spec.arrays, ArraySpec) else ()
    hint = '' if got is None else layout_hint(got, expected, argument)
    return f' It was trained on {spec}.{hint}'


def not_a_model(model: Any) -> str:
    """Returns an error message that says why an object is not a model, and how to wrap it."""
    linen = sys.modules.get('flax.linen')
    if linen is not None and isinstance(model, linen.Module):
        return (
            f'model: got the Linen module {type(model).__name__}, which holds no parameters. '
            'Wrap it once and keep the result: model = thinkml.models.from_linen(module).'
        )
    if inspect.isclass(model):
        return f'model: got the class {model.__name__}, expected an instance of it.'
    if isinstance(model, tuple) and len(model) == 2 and all(callable(part) for part in model):
        return (
            'model: got a pair of functions. '
            'Wrap it once and keep the result: model = thinkml.models.from_functions(init, apply).'
        )
    return (
        f'model: got {type(model).__module__}.{type(model).__qualname__}, expected a '
        'flax.nnx.Module, thinkml.models.from_linen(module) or '
        'thinkml.models.from_functions(init, apply).'
    )
