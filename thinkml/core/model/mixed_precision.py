"""Mixed precision: matrix products and convolutions in bfloat16, parameters in float32.

bfloat16 has the range of float32, so gradients don't vanish and the loss needs no scaling. All
accumulated values stay in float32: parameters, optimizer state, the statistics of norms, losses,
metrics.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.errors import ConfigError, unknown_name
from thinkml.typing import PyTree

DType = Any

PRECISIONS: dict[str, DType | None] = {
    'float32': None,
    'bf16': jnp.bfloat16,
    'bfloat16': jnp.bfloat16,
}
_HALF = ('fp16', 'f16', 'float16', 'half', '16', 16, '16-mixed', 'mixed16', 'mixed_float16')


def get_compute_dtype(precision: str) -> DType | None:
    """Returns the dtype for `functionalize`: None for ``'float32'``, bfloat16 for ``'bf16'``.

    None leaves a model as it was built.

    Raises:
        ConfigError: for an unknown name, and for float16.

    Example:
        >>> from thinkml.core.model.mixed_precision import get_compute_dtype
        >>> get_compute_dtype('bf16').dtype
        dtype(bfloat16)
    """
    if precision in _HALF:
        raise ConfigError(
            f"precision: got {precision!r}, expected 'float32' or 'bf16'. In float16 gradients "
            "below 6e-8 are 0, which needs loss scaling; bf16 has float32's range, is as fast, "
            "and needs none. Use precision='bf16'."
        )
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ConfigError(unknown_name('precision', precision, PRECISIONS))
    return PRECISIONS[precision]


def cast_floats(tree: PyTree, dtype: DType) -> PyTree:
    """Returns the tree with its floating arrays cast to ``dtype``; token ids and pixels stay."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def set_nnx_dtype(model: nnx.Module, dtype: DType) -> None:
    """Sets the compute dtype of an NNX module's layers in place, where the user left it open.

    An ``Embed`` without a dtype takes the dtype of its parameters, so this counts as open too.
    """
    for _, module in nnx.iter_modules(model):
        is_open = vars(module).get('dtype', dtype) is None
        if is_open or (isinstance(module, nnx.Embed) and module.dtype == module.param_dtype):
            vars(module)['dtype'] = dtype


def linen_dtype(dtype: DType | None) -> contextlib.AbstractContextManager:
    """Returns a context that sets the compute dtype of Linen layers where the user left it open.

    Layers inside compact methods exist only during their call, so the dtype is set at the call.
    """
    if dtype is None:
        return contextlib.nullcontext()
    from flax import linen

    def call(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if 'dtype' in module.__dataclass_fields__ and module.dtype is None:
            # The module is a temporary copy of the user's module, bound to this call.
            object.__setattr__(module, 'dtype', dtype)
        outputs = next_fun(*args, **kwargs)
        if isinstance(module, linen.RNNCellBase) and context.method_name == '__call__' and args:
            # The carry starts in the parameters' dtype, and a scan must return it unchanged.
            carry, y = outputs
            return jax.tree.map(lambda new, old: new.astype(old.dtype), carry, args[0]), y
        return outputs

    return linen.intercept_methods(call)
