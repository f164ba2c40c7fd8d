"""Devices of a training: chosen by number, by name, or all there are."""

from collections.abc import Sequence
from typing import Any

import jax

from thinkml.errors import ConfigError, DeviceCountWarning, is_whole, warn_user


def choose_devices(devices: int | Sequence[Any] | None, argument: str) -> list[Any]:
    """Returns the devices that train, of all processes.

    Args:
        devices: how many, as many of each process; the devices themselves; or None for all.
        argument: what the user calls it.

    Warns:
        DeviceCountWarning: if several are requested and the only one is a CPU, which then trains.

    Raises:
        ConfigError: if there are fewer.
    """
    there = jax.devices()
    if devices is None:
        return there
    if not isinstance(devices, int | str) and isinstance(devices, Sequence):
        return _checked(list(devices), there, argument)
    if not (is_whole(devices) and int(devices) >= 1):
        raise ConfigError(
            f'{argument}: got {devices!r}, expected a whole number of at least 1, or None for all '
            f'devices ({len(there)}).'
        )
    count = int(devices)
    num_processes = jax.process_count()
    if count > len(there):
        return _too_few(count, there, argument)
    if count % num_processes:
        raise ConfigError(
            f'{argument}: got {count} for {num_processes} processes, expected a multiple: each '
            'trains on as many devices.'
        )
    of_each = count // num_processes
    by_process = [[d for d in there if d.process_index == p] for p in range(num_processes)]
    if any(len(devices) < of_each for devices in by_process):
        raise ConfigError(
            f'{argument}: got {count} for {num_processes} processes with '
            f'{", ".join(str(len(devices)) for devices in by_process)} devices, expected at most '
            f'{num_processes * min(map(len, by_process))}: each trains on as many.'
        )
    return [device for devices in by_process for device in devices[:of_each]]


def _too_few(count: int, there: list[Any], argument: str) -> list[Any]:
    kind = there[0].platform
    how = (
        f"To simulate {count} on the CPU, set os.environ['XLA_FLAGS'] = "
        f"'--xla_force_host_platform_device_count={count}' before jax is imported."
    )
    if kind != 'cpu' or len(there) > 1:
        raise ConfigError(
            f'{argument}: got {count}, but there are {len(there)} devices ({kind}). Pass '
            f'{len(there)}, or None for all. {how}'
        )
    warn_user(
        f'{argument}: got {count}, but the only device is a CPU, which trains alone; the result '
        f'is the same. {how}',
        DeviceCountWarning,
    )
    return there


def _checked(devices: list[Any], there: list[Any], argument: str) -> list[Any]:
    if devices and all(device in there for device in devices):
        return devices
    raise ConfigError(
        f'{argument}: got {devices!r}, expected a number of devices, or some of jax.devices().'
    )
