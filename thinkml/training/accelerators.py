"""Accelerators: memory, peak rates and links of GPUs and TPUs, from their datasheets."""

import dataclasses
from collections.abc import Mapping

from thinkml.errors import ConfigError, unknown_name


@dataclasses.dataclass(frozen=True)
class GpuCores:
    """The facts of a GPU's cores that XLA needs to compile for it.

    Attributes:
        count: the number of streaming multiprocessors.
        units: the number of float32 units in each.
        threads: the number of threads that each runs at a time.
        shared_memory: bytes of shared memory in each.
        l2_cache: bytes of the cache that all share.
        clock_ghz: the highest clock rate.
        compute_capability: NVIDIA's version number of the architecture.
    """

    count: int
    units: int
    shared_memory: int
    l2_cache: int
    clock_ghz: float
    compute_capability: tuple[int, int]
    threads: int = 2048


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """The facts of an accelerator that bound the time and the memory of a training step.

    Attributes:
        name: as in a target, such as ``'h200'`` or ``'v5e'``.
        platform: ``'gpu'`` or ``'tpu'``.
        memory_bytes: the memory of one device.
        usable_fraction: the fraction of it that JAX uses by default.
        cores: the cores of a GPU; None for a TPU, which its compiler knows.
        memory_bandwidth: bytes per second between the memory and the cores.
        peak_flops: operations per second by the dtype that products are computed in, without
            sparsity. JAX computes products of float32 in TF32 on these GPUs, and in bfloat16 on
            TPUs, unless ``jax_default_matmul_precision`` says otherwise. A T4 has neither TF32 nor
            bfloat16, and computes both in float32.
        link_bandwidth: bytes per second that one device sends to its neighbours.
        source: the documents that the numbers are from.
        device_kinds: JAX's names of the devices that have these peak rates, see `jax.Device`.
    """

    name: str
    platform: str
    memory_bytes: int
    memory_bandwidth: float
    peak_flops: Mapping[str, float]
    link_bandwidth: float
    source: str
    usable_fraction: float = 1.0
    cores: GpuCores | None = None
    device_kinds: tuple[str, ...] = ()

    @property
    def usable_bytes(self) -> int:
        """Returns the bytes of a device that JAX uses by default."""
        return int(self.memory_bytes * self.usable_fraction)


_GB, _GIB, _TERA = 10**9, 2**30, 1e12
_NVIDIA = (
    "NVIDIA's datasheet of the {}; the memory size and bandwidth are those of OpenXLA's device "
    'description (xla/backends/gpu/target_config/specs)'
)
_GOOGLE = 'Google Cloud documentation, "TPU {}": https://docs.cloud.google.com/tpu/docs/{}'


def _gpu(
    name: str,
    memory_bytes: int,
    *,
    bandwidth: float,
    float16: float,
    float32: float,
    link: float,
    source: str,
    cores: GpuCores,
    device_kinds: tuple[str, ...],
    bfloat16: float | None = None,
) -> Accelerator:
    return Accelerator(
        name, 'gpu', memory_bytes,
        memory_bandwidth=bandwidth * _GB,
        peak_flops={
            'float16': float16 * _TERA,
            'bfloat16': (bfloat16 or float16) * _TERA,
            'float32': float32 * _TERA,
        },
        link_bandwidth=link * _GB,
        source=source,
        device_kinds=device_kinds,
        usable_fraction=0.75,  # the default of XLA_PYTHON_CLIENT_MEM_FRACTION
        cores=cores,
    )  # fmt: skip


def _tpu(
    name: str,
    memory_bytes: int,
    *,
    bandwidth: float,
    flops: float,
    link: float,
    device_kinds: tuple[str, ...],
) -> Accelerator:
    return Accelerator(
        name, 'tpu', memory_bytes,
        memory_bandwidth=bandwidth * _GB,
        peak_flops={'bfloat16': flops * _TERA, 'float32': flops * _TERA},
        link_bandwidth=link * _GB,
        source=_GOOGLE.format(name, name),
        device_kinds=device_kinds,
    )  # fmt: skip


_HOPPER = GpuCores(
    132, 128, shared_memory=233_472, l2_cache=52_428_800, clock_ghz=1.98,
    compute_capability=(9, 0),
)  # fmt: skip

# Links: half of the bidirectional rate, which is what datasheets state.
ACCELERATORS: Mapping[str, Accelerator] = {
    accelerator.name: accelerator
    for accelerator in (
        _gpu(
            'a100', 85_100_068_864, bandwidth=2_039.04, float16=312, float32=156, link=300,
            source=_NVIDIA.format('A100 80GB SXM'),
            device_kinds=(
                'NVIDIA A100-SXM4-40GB', 'NVIDIA A100-SXM4-80GB', 'NVIDIA A100-PCIE-40GB',
                'NVIDIA A100 80GB PCIe',
            ),
            cores=GpuCores(
                108, 64, shared_memory=167_936, l2_cache=41_943_040, clock_ghz=1.41,
                compute_capability=(8, 0),
            ),
        ),
        _gpu(
            'h100', 84_942_979_072, bandwidth=3_352.32, float16=989, float32=494, link=450,
            source=_NVIDIA.format('H100 SXM'), cores=_HOPPER,
            device_kinds=('NVIDIA H100 80GB HBM3',),
        ),
        _gpu(
            'h200', 151_397_597_184, bandwidth=4_800, float16=989, float32=494, link=450,
            source=_NVIDIA.format('H200 SXM'), cores=_HOPPER,
            device_kinds=('NVIDIA H200',),
        ),
        _gpu(
            'b200', 191_514_411_008, bandwidth=7_672.32, float16=2_250, float32=1_125, link=900,
            source=_NVIDIA.format('HGX B200'), device_kinds=('NVIDIA B200',),
            cores=GpuCores(
                148, 128, shared_memory=233_472, l2_cache=132_644_864, clock_ghz=1.965,
                compute_capability=(10, 0),
            ),
        ),
        _gpu(
            'l4', 24 * _GB, bandwidth=300, float16=121, float32=60, link=32,
            source="NVIDIA's datasheet of the L4, and its Ada architecture whitepaper",
            device_kinds=('NVIDIA L4',),
            cores=GpuCores(
                58, 128, shared_memory=102_400, l2_cache=50_331_648, clock_ghz=2.04,
                compute_capability=(8, 9), threads=1536,
            ),
        ),
        _gpu(
            't4', 16 * _GB, bandwidth=320, float16=65, bfloat16=8.1, float32=8.1, link=16,
            source="NVIDIA's datasheet of the T4, and its Turing architecture whitepaper",
            device_kinds=('Tesla T4', 'NVIDIA T4'),
            cores=GpuCores(
                40, 64, shared_memory=65_536, l2_cache=4_194_304, clock_ghz=1.59,
                compute_capability=(7, 5), threads=1024,
            ),
        ),
        _tpu(
            'v4', 32 * _GIB, bandwidth=1_200, flops=275, link=300, device_kinds=('TPU v4',)
        ),
        _tpu(
            'v5e', 16 * _GB, bandwidth=819, flops=197, link=200,
            device_kinds=('TPU v5 lite', 'TPU v5e'),
        ),
        _tpu(
            'v5p', 95 * _GB, bandwidth=2_765, flops=459, link=600,
            device_kinds=('TPU v5', 'TPU v5p'),
        ),
        _tpu(
            'v6e', 32 * _GB, bandwidth=1_638, flops=918, link=400,
            device_kinds=('TPU v6 lite', 'TPU v6e'),
        ),
    )
}  # fmt: skip
"""The known accelerators by name."""


def find_accelerator(name: str) -> Accelerator:
    """Returns an accelerator by its name.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in ACCELERATORS:
        raise ConfigError(unknown_name('target', name, tuple(ACCELERATORS)))
    return ACCELERATORS[name]


def accelerator_of(device_kind: str) -> Accelerator | None:
    """Returns the accelerator of a device, by JAX's name of its kind; None if it is not known.

    Only devices with the peak rates of the table are known. An H100 for PCI Express, a part of a
    GPU (MIG) or an L40 has other rates.

    Args:
        device_kind: such as ``jax.devices()[0].device_kind``.

    Example:
        >>> from thinkml.training.accelerators import accelerator_of
        >>> accelerator_of('TPU v5 lite').name
        'v5e'
    """
    return _BY_KIND.get(device_kind)


_BY_KIND = {kind: found for found in ACCELERATORS.values() for kind in found.device_kinds}
