"""Attention by the fastest kernel of the device that a program is for."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from thinkml.core.xla.target import target_device, target_mesh, target_platform

# Shorter sequences are computed in the memory of a TPU's core anyway.
_SHORTEST_ON_TPU = 1024
_TPU_BLOCK = 512
_LARGEST_HEAD = 128
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_CAPABILITY = 8.0  # of an A100


def dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False
) -> jax.Array:
    """Computes ``softmax(query @ key / sqrt(size)) @ value`` for each head.

    The result is that of `jax.nn.dot_product_attention`. A program for a GPU uses the kernel of
    cuDNN, and one for a TPU the Pallas kernel of JAX, where they support the arrays. These never
    hold the ``[rows, heads, tokens, tokens]`` probabilities.

    - GPU: bfloat16 or float16, an A100 or newer, heads of at most 128 numbers, a multiple of 8.
    - TPU: sequences of at least 1,024 tokens, a multiple of 512. Shorter ones stay in the memory of
      the core without it.

    Args:
        query: ``[rows, tokens, heads, size]``.
        key: ``[rows, tokens of keys, heads, size]``.
        value: ``[rows, tokens of keys, heads, size]``.
        is_causal: True if a token attends only to itself and those before.

    Returns:
        ``[rows, tokens, heads, size]``, in the dtype of ``query``.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.model.attention import dot_product_attention
        >>> x = jnp.ones((2, 5, 3, 8))
        >>> dot_product_attention(x, x, x).shape
        (2, 5, 3, 8)

    Reference:
        Dao et al., 2022, *FlashAttention: fast and memory-efficient exact attention with
        IO-awareness*.
    """
    platform = target_platform()
    if platform == 'gpu' and _suits_cudnn(query, key):
        return _by_cudnn(query, key, value, is_causal)
    if platform == 'tpu' and _suits_tpu_kernel(query, key):
        return _by_tpu_kernel(query, key, value, is_causal)
    return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal)


def _suits_cudnn(query: jax.Array, key: jax.Array) -> bool:
    size = query.shape[-1]
    if query.dtype not in _CUDNN_DTYPES or size % 8 or size > _LARGEST_HEAD:
        return False
    capability = str(getattr(target_device(), 'compute_capability', ''))  # of AMD: 'gfx942'
    is_recent = (
        bool(re.fullmatch(r'\d+\.\d+', capability)) and float(capability) >= _CUDNN_CAPABILITY
    )
    return is_recent and _has_cudnn()


@functools.cache
def _has_cudnn() -> bool:
    """Returns True if cuDNN is installed. Programs for a GPU can be compiled without it."""
    x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(_cudnn_attention, is_causal=False), x, x, x)
    except RuntimeError:
        return False
    return True


def _by_cudnn(query: Any, key: Any, value: Any, is_causal: bool) -> jax.Array:
    """Computes attention by cuDNN, whose gradient needs even numbers of tokens."""
    lengths: dict[str, Any] = {}
    if query.shape[1] % 2 or key.shape[1] % 2:
        rows = query.shape[0]
        lengths = {
            'query_seq_lengths': jnp.full((rows,), query.shape[1], jnp.int32),
            'key_value_seq_lengths': jnp.full((rows,), key.shape[1], jnp.int32),
        }
    tokens = query.shape[1]
    query, key, value = map(_with_even_tokens, (query, key, value))
    return _cudnn_attention(query, key, value, is_causal=is_causal, **lengths)[:, :tokens]


def _with_even_tokens(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


_cudnn_attention = functools.partial(jax.nn.dot_product_attention, implementation='cudnn')


def _suits_tpu_kernel(query: jax.Array, key: jax.Array) -> bool:
    mesh, shortest = target_mesh(), min(query.shape[1], key.shape[1])
    rows_are_even = mesh is None or query.shape[0] % mesh.size == 0
    is_supported = not (query.shape[1] % _TPU_BLOCK or key.shape[1] % _TPU_BLOCK)
    return is_supported and shortest >= _SHORTEST_ON_TPU and rows_are_even


def _by_tpu_kernel(query: Any, key: Any, value: Any, is_causal: bool) -> jax.Array:
    """Computes attention by JAX's Pallas kernel, each device its rows."""
    from jax.experimental.pallas.ops.tpu import flash_attention as kernels

    block = _TPU_BLOCK
    sizes = kernels.BlockSizes(
        block_q=block, block_k_major=block, block_k=block, block_b=1,
        block_q_major_dkv=block, block_k_major_dkv=block, block_k_dkv=block, block_q_dkv=block,
        block_k_major_dq=block, block_k_dq=block, block_q_dq=block,
    )  # fmt: skip

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
        outputs = kernels.flash_attention(
            query, key, value,
            causal=is_causal, sm_scale=query.shape[-1] ** -0.5, block_sizes=sizes,
        )  # fmt: skip
        return outputs.transpose(0, 2, 1, 3)

    mesh = target_mesh()
    if mesh is not None:
        rows = PartitionSpec(mesh.axis_names)
        attend = jax.shard_map(attend, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return attend(query, key, value)
