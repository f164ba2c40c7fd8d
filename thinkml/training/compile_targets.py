"""Compile targets: devices that are not attached, for which programs can still be compiled."""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax

from thinkml import compilation_cache
from thinkml.core.parallel.sharding import Layout, unconnected_mesh
from thinkml.core.xla.compiled_program import CompiledProgram
from thinkml.errors import ConfigError
from thinkml.training.accelerators import Accelerator, find_accelerator

_EXTRAS = {'gpu': ('jax_cuda13_plugin', 'plan-gpu'), 'tpu': ('libtpu', 'plan-tpu')}
# The two cores of a v4 are one device for JAX, as they are on a machine that has it.
_CHIP_OPTIONS = {'v4': {'chip_config_name': 'megacore'}}
# libtpu, on a machine without TPUs: it asks the network of Google Cloud for nothing, and lets other
# processes use it at the same time.
_LIBTPU_SETTINGS = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
_SHAPE = re.compile(r'\d+(x\d+)*')


class TargetMemoryError(ValueError):
    """The compiler for a target found that a program does not fit in its memory."""

    @property
    def needed_bytes(self) -> int:
        """Returns the bytes of temporaries that the program needs; 0 if the message has none."""
        found = _NEEDED.search(str(self))
        return 0 if found is None else int(float(found[1]) * 2 ** _UNITS[found[2]])


_NEEDED = re.compile(r'(?:temporaries \(|Used )([\d.]+)([KMG])')
_UNITS = {'K': 10, 'M': 20, 'G': 30}


class CompileTarget(NamedTuple):
    """Devices to compile for.

    Attributes:
        name: the name that the user gave, such as ``'v5e:4x4'``.
        accelerator: the kind of the devices.
        devices: descriptions of the devices, which JAX compiles for and can't run on.
    """

    name: str
    accelerator: Accelerator
    devices: list[Any]

    def layout(self, shards_state: bool) -> Layout:
        """Returns the placement of a training's arrays on all devices."""
        return Layout(
            unconnected_mesh(self.devices), shards_state=shards_state,
            device_bytes=self.accelerator.usable_bytes,
        )  # fmt: skip

    def compile(self, lowered: jax.stages.Lowered) -> CompiledProgram:
        """Compiles a program whose arguments are placed on these devices.

        Raises:
            TargetMemoryError: if the compiler gives up because the program needs too much memory.
        """
        # Kernels can't be tuned on a device that is not there.
        untuned = {'xla_gpu_autotune_level': 0}
        options: Any = untuned if self.accelerator.platform == 'gpu' else {}
        try:
            with compilation_cache.paused():
                return CompiledProgram(lowered.compile(compiler_options=options))
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise TargetMemoryError(str(error)) from error


def open_target(name: str) -> CompileTarget:
    """Returns the devices that a name such as ``'h200:8'`` or ``'v5e:4x4'`` describes.

    Args:
        name: an accelerator of `ACCELERATORS`; after a colon the number of GPUs, or the shape of a
            TPU slice. Without a colon it is one device.

    Raises:
        ConfigError: for an unknown accelerator or shape, or if the compiler is not installed.
    """
    if not isinstance(name, str):
        raise ConfigError(f'target: got {name!r}, expected a text such as {_examples()}.')
    kind, _, shape = name.partition(':')
    accelerator = find_accelerator(kind)
    if shape and not _SHAPE.fullmatch(shape):
        raise ConfigError(f'target: got {name!r}, expected a text such as {_examples()}.')
    module, extra = _EXTRAS[accelerator.platform]
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f'target: compiling for {kind!r} needs {module.replace("_", "-")}, which is not '
            f"installed. Run pip install '.[{extra}]' in a clone of ThinkML, with "
            '-c constraints.txt if you used it before.'
        )
    find = _gpus if accelerator.platform == 'gpu' else _tpus
    return CompileTarget(name, accelerator, find(accelerator, shape, name))


def _examples() -> str:
    return "'h200:8' (8 GPUs), 'v5e:4x4' (a slice of 16 TPUs) or 'v5e' (one)"


def _gpus(accelerator: Accelerator, shape: str, name: str) -> list[Any]:
    if 'x' in shape or shape == '0':
        raise ConfigError(
            f'target: got {name!r}, expected a number of GPUs, such as {accelerator.name}:8.'
        )
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        '', platform='cuda', target_config=_target_config(accelerator), topology=f'1x1x{shape or 1}'
    )
    return list(topology.devices)


def _tpus(accelerator: Accelerator, shape: str, name: str) -> list[Any]:
    from jax.experimental import topologies

    if jax.default_backend() != 'tpu':
        for setting, value in _LIBTPU_SETTINGS.items():
            os.environ.setdefault(setting, value)
    shape = shape or ('1x1x1' if accelerator.name in ('v4', 'v5p') else '1x1')
    try:
        topology = topologies.get_topology_desc(
            f'{accelerator.name}:{shape}', platform='tpu', **_CHIP_OPTIONS.get(accelerator.name, {})
        )
    except Exception as error:  # libtpu's errors have several types
        raise ConfigError(
            f'target: got {name!r}, expected the shape of a TPU slice that exists, such as '
            f"'v5e:4x4', 'v6e:8x8' or 'v5p:2x2x2'. libtpu says: {error}"
        ) from error
    return list(topology.devices)


def _target_config(accelerator: Accelerator) -> str:
    """Returns XLA's description of a GPU, a `GpuTargetConfigProto` as text."""
    cores = accelerator.cores
    assert cores is not None
    major, minor = cores.compute_capability
    facts = {
        'threads_per_block_limit': 1024,
        'threads_per_warp': 32,
        'shared_memory_per_block': 49152,
        'shared_memory_per_core': cores.shared_memory,
        'threads_per_core_limit': cores.threads,
        'core_count': cores.count,
        'fpus_per_core': cores.units,
        'block_dim_limit_x': 2**31 - 1,
        'block_dim_limit_y': 65535,
        'block_dim_limit_z': 65535,
        'memory_bandwidth': int(accelerator.memory_bandwidth),
        'l2_cache_size': cores.l2_cache,
        'clock_rate_ghz': cores.clock_ghz,
        'device_memory_size': accelerator.memory_bytes,
        'shared_memory_per_block_optin': cores.shared_memory - 1024,
        'registers_per_core_limit': 65536,
        'registers_per_block_limit': 65536,
    }
    lines = [f'  {name}: {value}' for name, value in facts.items()]
    return '\n'.join(
        [
            'gpu_device_info {',
            *lines,
            f'  cuda_compute_capability {{ major: {major} minor: {minor} }}',
            '}',
            'platform_name: "CUDA"',
            'dnn_version_info { major: 9 minor: 10 patch: 0 }',
            f'device_description_str: "NVIDIA {accelerator.name.upper()}"',
        ]
    )
