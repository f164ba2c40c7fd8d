"""Model FLOPs: the operations of a training step, and their fraction of the peak rate."""

import types
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax

from thinkml.core.xla.flop_count import flops_by_dtype
from thinkml.core.xla.target import tracing_for
from thinkml.training.accelerators import accelerator_of

# A program for none of the known platforms has no kernels whose operations a trace does not show.
_NO_DEVICE = types.SimpleNamespace(platform='none')


def step_flops(step: Callable[..., Any], *arguments: Any) -> Counter[str]:
    """Returns the operations of the products and convolutions of a step, by their dtype.

    The step is traced and not compiled. XLA's count of a compiled program does not serve here: it
    counts the body of a loop once, kernels such as cuDNN's attention not at all, and what is
    computed again for the gradient. In the trace a loop counts as often as it runs, attention is
    plain products, and what is computed again can be left out, see `count_flops`.

    Args:
        step: a function of arrays.
        arguments: its arguments; shapes and dtypes are enough.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.training.model_flops import step_flops
        >>> dict(step_flops(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 4))))
        {'float32': 48}
    """

    def not_traced_before(*arguments: Any) -> Any:  # JAX would return a trace for another device
        return step(*arguments)

    with tracing_for(_NO_DEVICE):
        return flops_by_dtype(jax.make_jaxpr(not_traced_before)(*arguments).jaxpr)


def flop_utilization(
    flops: Mapping[str, float], seconds: float, device_kind: str, num_devices: int = 1
) -> float | None:
    """Returns the model FLOP utilization (MFU), between 0 and 1.

    It is the time that the operations would take at the peak rates of their dtypes, divided by the
    time that they took.

    Args:
        flops: the operations on all devices by dtype, from `step_flops`.
        seconds: the time.
        device_kind: JAX's name of the devices.
        num_devices: the number of devices.

    Returns:
        The utilization; None if the devices have no known peak rate for one of the dtypes.

    Example:
        >>> from thinkml.training.model_flops import flop_utilization
        >>> flop_utilization({'bfloat16': 989e12}, 2.0, 'NVIDIA H200')
        0.5

    Reference:
        Chowdhery et al., 2022, *PaLM: scaling language modeling with pathways*, appendix B.
    """
    accelerator = accelerator_of(device_kind)
    if accelerator is None or not flops.keys() <= accelerator.peak_flops.keys():
        return None
    least = sum(count / accelerator.peak_flops[dtype] for dtype, count in flops.items())
    return least / (num_devices * seconds)
