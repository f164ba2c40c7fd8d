"""The batched forward pass for any model and any number of rows."""

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
from thinkml.core.parallel.parameter_gathering import gathered_at_use
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout, data_mesh, layout_of, replicate
from thinkml.core.xla.cpu_convolutions import fast_convolutions
from thinkml.core.xla.jit import Jit
from thinkml.core.xla.target import tracing_for
from thinkml.core.xla.traced_programs import uses_last_input
from thinkml.typing import Model, PyTree

# The inputs of one batch take about this size; activations take a small multiple of it.
_BATCH_BYTES = 8 * 2**20
_MAX_BATCH = 1024
_MIN_BATCH = 16


def inference_batch_size(x: PyTree) -> int:
    """Returns the batch size for a forward pass over ``x``: a power of two from 16 to 1,024.

    It depends only on the size of one row, so results don't depend on the batch size in training.
    """
    row_bytes = sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in jax.tree.leaves(x))
    most_rows = _BATCH_BYTES // max(1, row_bytes)
    return int(np.clip(2 ** int(math.log2(max(1, most_rows))), _MIN_BATCH, _MAX_BATCH))


Reduce = Callable[[PyTree], PyTree]


class RowSource(Protocol):
    """Inputs that are read row by row, such as `thinkml.data.Rows`.

    Attributes:
        spec: the shape ``[rows, ...]`` and dtype of each array, as `jax.ShapeDtypeStruct`.
    """

    @property
    def spec(self) -> PyTree: ...

    def take(self, indices: np.ndarray) -> PyTree:
        """Reads the rows at these indices."""
        ...


def eval_outputs(
    apply: ApplyFn, params: PyTree, model_state: PyTree, x: PyTree, layout: Layout = ONE_DEVICE
) -> PyTree:
    """Returns the model's outputs in evaluation mode."""

    def forward(params: PyTree, model_state: PyTree, x: PyTree) -> PyTree:
        outputs, _ = apply(params, model_state, x, key=None, train=False)
        return outputs

    forward = fast_convolutions(gathered_at_use(forward, layout))
    return forward(params, model_state, x)


def _drawn_outputs(
    apply: ApplyFn, params: PyTree, model_state: PyTree, x: PyTree, keys: jax.Array, layout: Layout
) -> PyTree:
    """Returns the outputs of a model that draws random numbers in evaluation mode.

    Each row is computed with its own key, so its draws do not depend on the other rows.
    """

    def forward(params: PyTree, model_state: PyTree, x: PyTree, keys: jax.Array) -> PyTree:
        def of_row(row: PyTree, key: jax.Array) -> PyTree:
            batch = jax.tree.map(lambda leaf: leaf[None], row)
            outputs, _ = apply(params, model_state, batch, key=key, train=False)
            return jax.tree.map(lambda leaf: leaf[0], outputs)

        return jax.vmap(of_row)(x, keys)

    return fast_convolutions(gathered_at_use(forward, layout))(params, model_state, x, keys)


def _draws(apply: ApplyFn, params: PyTree, model_state: PyTree, x: PyTree) -> bool:
    """Returns True if the outputs in evaluation mode depend on the key."""

    def forward(params: PyTree, model_state: PyTree, x: PyTree, key: jax.Array) -> PyTree:
        return apply(params, model_state, x, key=key, train=False)[0]

    return uses_last_input(jax.make_jaxpr(forward)(params, model_state, x, jax.random.key(0)))


def predict_outputs(
    model: Model,
    x: PyTree | RowSource,
    *,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    argument: str = 'X',
    reduce: Reduce | None = None,
    seed: int = 0,
) -> PyTree:
    """Returns the model's raw outputs for ``x`` in eval mode, float32 ``[rows, ...]``.

    A model with several heads returns a dict or tuple of such arrays. The model and its mode are
    not changed. Rows are read and sent to the devices one batch at a time, and each device gets a
    part of the batch. The last batch is padded, so that every batch runs the same program.

    Args:
        model: see `functionalize`.
        x: checked inputs, arrays ``[rows, ...]``, or a `RowSource`.
        batch_size: rows at a time; None chooses it by the size of a row.
        devices: the devices to compute on; None for all of this process. A sharded model computes
            on the devices of its shards. If these belong to several processes, each process must
            call this function with the same rows.
        argument: the name of the inputs in error messages.
        reduce: a function that makes smaller arrays of the outputs, on the device; None returns the
            outputs.
        seed: the seed of a model that draws random numbers in evaluation mode. Each row has its own
            draws, whatever the batch size and the devices.

    Raises:
        DataError: if the model reads rows that its tables, such as embeddings, lack.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.core import predict_outputs
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> predict_outputs(model, np.ones((5, 4), np.float32)).shape
        (5, 2)
    """
    predict = make_predict(
        model, x, batch_size=batch_size, devices=devices, argument=argument, reduce=reduce,
        seed=seed,
    )  # fmt: skip
    return predict(x)


def make_predict(
    model: Model,
    x: PyTree | RowSource,
    *,
    batch_size: int | None = None,
    devices: Sequence[Any] | None = None,
    argument: str = 'X',
    reduce: Reduce | None = None,
    seed: int = 0,
) -> Callable[..., PyTree]:
    """Returns `predict_outputs` of a model with its current parameters, for many calls.

    Splitting a model and sending it to the devices takes milliseconds; here it happens only once.
    The returned function does not see later changes of the parameters. Its second argument,
    ``first_row``, is the number of the first of the rows, for the draws of models that draw.

    Args:
        model: see `predict_outputs`.
        x: inputs like those that the returned function will get.
        batch_size: see `predict_outputs`.
        devices: see `predict_outputs`.
        argument: see `predict_outputs`.
        reduce: see `predict_outputs`.
        seed: see `predict_outputs`.

    Raises:
        DataError: when the returned function is called, see `predict_outputs`.

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
    layout = layout_of(arrays) or _layout_on(devices)  # sharded arrays stay sharded
    if layout.num_devices == 1:
        arrays = jax.device_put(arrays, layout.local_devices[0])
    arrays = layout.put_state(arrays)
    return functools.partial(
        _by_batches, functional.apply, layout, arrays, batch_size, argument, reduce, seed
    )


def _by_batches(
    apply: ApplyFn,
    layout: Layout,
    arrays: PyTree,
    batch_size: int | None,
    argument: str,
    reduce: Reduce | None,
    seed: int,
    x: PyTree | RowSource,
    first_row: int = 0,
) -> PyTree:
    spec, take = (x.spec, x.take) if hasattr(x, 'spec') else (x, functools.partial(_take, x))
    num_rows = jax.tree.leaves(spec)[0].shape[0]
    if batch_size is None:
        # For few rows it is a power of two as well, so that similar numbers share a program.
        batch_size = min(inference_batch_size(spec), 2 ** (num_rows - 1).bit_length())
    batch_size = -(-batch_size // layout.num_devices) * layout.num_devices
    parts = []
    for first in range(0, num_rows, batch_size):
        batch = _padded(take(np.arange(first, min(first + batch_size, num_rows))), batch_size)
        rows = np.uint32(first_row + first), np.uint32(seed)
        parts.append(_forward(apply, layout, reduce, *arrays, layout.put_rows(batch), *rows))
        if len(parts) > 1:  # waits for the previous batch, so that inputs don't pile up
            parts[-2] = jax.device_get(parts[-2])
    outputs, reads = zip(*jax.device_get(parts), strict=True)
    check_lookups(reads, argument)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_rows], *outputs)


def _layout_on(devices: Sequence[Any] | None) -> Layout:
    """Returns the layout on some devices; None for those of this process."""
    local = jax.local_devices()
    devices = local if devices is None else list(devices)
    return ONE_DEVICE if devices == local[:1] else Layout(data_mesh(devices))


def _take(x: PyTree, rows: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: np.take(leaf, rows, axis=0), x)


def _padded(x: PyTree, batch_size: int) -> PyTree:
    """Repeats rows until there are ``batch_size`` of them."""
    num_rows = len(jax.tree.leaves(x)[0])
    return x if num_rows == batch_size else _take(x, np.arange(batch_size) % num_rows)


@functools.partial(Jit, static_argnums=(0, 1, 2))
def _forward(
    apply: ApplyFn,
    layout: Layout,
    reduce: Reduce | None,
    params: PyTree,
    model_state: PyTree,
    x: PyTree,
    first_row: jax.Array,
    seed: jax.Array,
) -> tuple[PyTree, list[Lookup]]:
    forward = functools.partial(eval_outputs, apply, layout=layout)
    with tracing_for(layout.device, layout.mesh):
        outputs, reads = with_lookups(forward, params, model_state, x)
        if _draws(apply, params, model_state, x):
            rows = first_row + jnp.arange(len(jax.tree.leaves(x)[0]), dtype=jnp.uint32)
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(rows)
            outputs = _drawn_outputs(apply, params, model_state, x, keys, layout)
    outputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)
    outputs = outputs if reduce is None else reduce(outputs)
    return replicate(layout, (outputs, reads))


def largest_output(outputs: jax.Array) -> jax.Array:
    """Returns the index of the largest output along the last axis, int32; -1 if one is NaN."""
    largest = jnp.argmax(outputs, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isnan(outputs).any(axis=-1), -1, largest)
