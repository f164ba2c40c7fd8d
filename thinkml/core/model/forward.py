"""The batched forward pass, for any model and any number of rows."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.model.adapters import ApplyFn
from thinkml.core.model.embedding_lookups import Lookup, check_lookups, with_lookups
from thinkml.core.model.functional import functionalize
from thinkml.core.parallel.sharding import Layout, data_mesh, layout_of, put_global, replicate
from thinkml.core.xla.cpu_convolutions import fast_convolutions
from thinkml.core.xla.jit import Jit

# Inputs of one batch are kept to about this size; activations are a small multiple of it.
_BATCH_BYTES = 8 * 2**20
_MAX_BATCH = 1024
_MIN_BATCH = 16


def inference_batch_size(x: Any) -> int:
    """Rows at a time for a forward pass over ``x``: a power of two from 16 to 1,024.

    It depends on the size of one row alone, so that results don't depend on how training was
    batched.
    """
    row_bytes = sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in jax.tree.leaves(x))
    fitting = _BATCH_BYTES // max(1, row_bytes)
    return int(np.clip(2 ** int(math.log2(max(1, fitting))), _MIN_BATCH, _MAX_BATCH))


class RowSource(Protocol):
    """Inputs that are read by rows, such as `thinkml.data.Rows`.

    Attributes:
        spec: shape ``[rows, ...]`` and dtype of each array, as `jax.ShapeDtypeStruct`.
    """

    @property
    def spec(self) -> Any: ...

    def take(self, indices: np.ndarray) -> Any:
        """Reads the rows of these indices."""
        ...


def eval_outputs(apply: ApplyFn, params: Any, model_state: Any, x: Any) -> jax.Array:
    """What the model returns in evaluation mode."""

    @fast_convolutions
    def forward(params: Any, model_state: Any, x: Any) -> jax.Array:
        outputs, _ = apply(params, model_state, x, key=None, train=False)
        return outputs

    return forward(params, model_state, x)


def predict_outputs(
    model: Any,
    x: Any,
    *,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    argument: str = 'X',
) -> np.ndarray:
    """Returns the model's raw outputs for ``x`` in eval mode, float32 ``[rows, ...]``.

    The model and its mode stay as they were. Rows are read and sent to the devices a batch at a
    time, each device a part of it; the last batch is filled up, so that every batch runs the same
    program.

    Args:
        model: see `functionalize`.
        x: checked inputs, arrays ``[rows, ...]``, or a `RowSource`.
        batch_size: rows at a time; None picks one by the size of a row.
        devices: what computes; None for all of this process. A model in parts computes where its
            parts are. Where they are of several processes, each of these calls it with the same
            rows.
        argument: the name of the inputs in error messages.

    Raises:
        DataError: if the model reads rows that its tables, such as embeddings, do not have.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.core import predict_outputs
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> predict_outputs(model, np.ones((5, 4), np.float32)).shape
        (5, 2)
    """
    return make_predict(model, x, batch_size=batch_size, devices=devices, argument=argument)(x)


def make_predict(
    model: Any,
    x: Any,
    *,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    argument: str = 'X',
) -> Callable[[Any], np.ndarray]:
    """Returns `predict_outputs` of a model as it is now, for many calls.

    Taking a model apart and sending it to the devices costs milliseconds, once here. Changes of its
    parameters are not seen afterwards.

    Args:
        model: see `predict_outputs`.
        x: inputs such as those it will be called with.
        batch_size: see `predict_outputs`.
        devices: see `predict_outputs`.
        argument: see `predict_outputs`.

    Raises:
        DataError: what it returns raises it, see `predict_outputs`.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.core import make_predict
        >>> x = np.ones((5, 4), np.float32)
        >>> predict = make_predict(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), x)
        >>> predict(x[:1]).shape
        (1, 2)
    """
    functional = functionalize(model, getattr(x, 'spec', x), jax.random.key(0))
    arrays = (functional.params, functional.model_state)
    layout = layout_of(arrays) or _layout_on(devices)
    if layout is None:
        arrays = jax.device_put(arrays, jax.local_devices()[0])
    else:  # what is in parts stays so
        arrays = jax.tree.map(put_global, arrays, layout.of_state(arrays))
    return functools.partial(_by_batches, functional.apply, layout, arrays, batch_size, argument)


def _by_batches(
    apply: ApplyFn,
    layout: Layout | None,
    arrays: Any,
    batch_size: int | None,
    argument: str,
    x: Any,
) -> np.ndarray:
    spec, take = (x.spec, x.take) if hasattr(x, 'spec') else (x, functools.partial(_take, x))
    num_rows = jax.tree.leaves(spec)[0].shape[0]
    if batch_size is None:
        # A power of two for few rows as well, so that nearby numbers of rows share a program.
        batch_size = min(inference_batch_size(spec), 2 ** (num_rows - 1).bit_length())
    if layout is not None:
        batch_size = -(-batch_size // layout.num_devices) * layout.num_devices
    parts = []
    for first in range(0, num_rows, batch_size):
        batch = _filled(take(np.arange(first, min(first + batch_size, num_rows))), batch_size)
        if layout is not None:
            batch = jax.tree.map(lambda leaf: put_global(leaf, layout.rows), batch)
        parts.append(_forward(apply, layout, *arrays, batch))
        if len(parts) > 1:  # waits for the batch before, so that inputs don't pile up
            parts[-2] = jax.device_get(parts[-2])
    outputs, reads = zip(*jax.device_get(parts), strict=True)
    check_lookups(reads, argument)
    return np.concatenate(outputs)[:num_rows]


def _layout_on(devices: Sequence[Any] | None) -> Layout | None:
    """None for the device that computes anyway."""
    local = jax.local_devices()
    devices = local if devices is None else list(devices)
    return None if devices == local[:1] else Layout(data_mesh(devices))


def _take(x: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: np.take(leaf, rows, axis=0), x)


def _filled(x: Any, batch_size: int) -> Any:
    """Repeats rows until there are ``batch_size`` of them."""
    num_rows = len(jax.tree.leaves(x)[0])
    return x if num_rows == batch_size else _take(x, np.arange(batch_size) % num_rows)


@functools.partial(Jit, static_argnums=(0, 1))
def _forward(
    apply: ApplyFn, layout: Layout | None, params: Any, model_state: Any, x: Any
) -> tuple[jax.Array, list[Lookup]]:
    forward = functools.partial(eval_outputs, apply)
    outputs, reads = with_lookups(forward, params, model_state, x)
    return replicate(layout, (outputs.astype(jnp.float32), reads))
