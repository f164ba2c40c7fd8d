"""A user's model as a pure function: ``apply(params, model_state, x, key, train)``.

``params`` is what gradients are taken of, ``model_state`` what training updates without gradients
(BatchNorm statistics), both plain pytrees. ``apply`` is hashable and equal for two models of the
same structure, so that compiled programs are shared between them.
"""

import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.core.adapters import (
    FunctionalModel,
    FunctionModel,
    LinenModel,
    PyTree,
    functionalize_nnx,
)
from thinkml.errors import DataError, ModelTypeError


def functionalize(model: Any, x: PyTree, key: jax.Array) -> FunctionalModel:
    """Takes a model apart without changing it.

    Args:
        model: a `flax.nnx.Module`, or what `from_linen` or `from_functions` returned.
        x: a batch of inputs (arrays or `jax.ShapeDtypeStruct`), used only by models whose
            parameters don't exist yet, to find their shapes.
        key: PRNG key for parameters that don't exist yet.

    Raises:
        ModelTypeError: for anything else; the message says what to wrap it with.
    """
    if isinstance(model, nnx.Module):
        return functionalize_nnx(model)
    if isinstance(model, LinenModel | FunctionModel):
        return model.functionalize(x, key)
    raise ModelTypeError(not_a_model(model))


def output_shape(model: Any, x: PyTree, argument: str = 'X_train') -> tuple[int, ...]:
    """Returns the shape of the model's outputs for a batch, without computing or compiling.

    Args:
        model: see `functionalize`.
        x: a batch of inputs; only shapes and dtypes are read.
        argument: the name of the inputs in error messages.

    Returns:
        ``(batch,)`` or ``(batch, num_outputs)``.

    Raises:
        ModelTypeError: if the object is not a model, or does not return one array.
        DataError: if the model can't take these inputs, or returns another shape.
    """
    outputs, *_ = _trace(model, x, argument, train=False)
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise ModelTypeError(
            f'model: it returns a {type(outputs).__name__}, expected one array of logits or '
            'predictions. Return only that from the model.'
        )
    num_rows = len(jax.tree.leaves(x)[0])
    if outputs.ndim not in (1, 2) or outputs.shape[0] != num_rows:
        raise DataError(
            f'model: it returns shape {outputs.shape} for {num_rows} rows, expected '
            f'({num_rows},) or ({num_rows}, outputs). Flatten or pool what it returns.'
        )
    return outputs.shape


def check_trainable(model: Any, x: PyTree, argument: str = 'X_train') -> None:
    """Checks that a training step could be compiled, without compiling it.

    Args:
        model: see `functionalize`.
        x: a batch of inputs; only shapes and dtypes are read.
        argument: the name of the inputs in error messages.

    Raises:
        ModelTypeError: if the model fails in training mode, returns something else there than in
            evaluation mode, changes the structure of its state, or has parameters that are no
            floats.
    """
    expected, *_ = _trace(model, x, argument, train=False)
    outputs, state_before, state_after, params = _trace(model, x, argument, train=True)
    if _shapes(outputs) != _shapes(expected):
        raise ModelTypeError(
            f'model: it returns {_shapes(outputs)} in training mode and {_shapes(expected)} in '
            'evaluation mode, expected the same.'
        )
    if _shapes(state_before) != _shapes(state_after):
        raise ModelTypeError(
            f'model: a call in training mode turns its state from {_shapes(state_before)} into '
            f'{_shapes(state_after)}, expected the same shapes and dtypes.'
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ModelTypeError(
                f'model: its parameter {jax.tree_util.keystr(path)} is {leaf.dtype}, expected '
                'floats, which gradients are taken of. Keep constants out of the parameters.'
            )


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape)}', tree)


def _trace(model: Any, x: PyTree, argument: str, *, train: bool) -> tuple[Any, ...]:
    """Outputs, model state before and after, and params of a call, as shapes and dtypes."""

    def forward(key: jax.Array, x: PyTree) -> tuple[Any, ...]:
        functional = functionalize(model, x, key)
        outputs, model_state = functional.apply(
            functional.params, functional.model_state, x, key=key, train=train
        )
        return outputs, functional.model_state, model_state, functional.params

    try:
        return jax.eval_shape(forward, jax.eval_shape(lambda: jax.random.key(0)), x)
    except ModelTypeError:
        raise
    except Exception as error:
        failure = f'{type(error).__name__}: {error}'
        if 'shape' not in str(error) and 'dimension' not in str(error):
            mode = 'training' if train else 'evaluation'
            raise ModelTypeError(
                f'model: called in {mode} mode, it fails with {failure}'
            ) from error
        rows = jax.tree.map(lambda leaf: f'{leaf.shape[1:]} {leaf.dtype}', x)
        is_flat = any(leaf.ndim == 1 for leaf in jax.tree.leaves(x))
        hint = f'{argument}.reshape(-1, 1)' if is_flat else 'another shape'
        raise DataError(
            f'{argument}: got rows of {rows}, which the model could not take. It failed with '
            f'{failure}\nBuild the model for inputs of this shape, or pass {hint}.'
        ) from error


def not_a_model(model: Any) -> str:
    """Words why an object is not a model, with the adapter that would make it one."""
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
