"""Device statistics: a callback that records the memory of the devices in the history."""

from typing import Any

from thinkml.errors import warn_user
from thinkml.training.callback import BuiltInCallback
from thinkml.training.run import Run


class DeviceStats(BuiltInCallback):
    """A callback that records the memory of the device; the largest values of several devices.

    ``history['bytes_in_use']`` is the memory in use at the end of an epoch, and
    ``history['peak_bytes_in_use']`` the peak since the process started.

    Warns:
        ThinkMLWarning: when training starts, if the device does not report its memory.
    """

    order = -1  # before callbacks that read what it records

    def on_train_start(self, run: Run) -> None:
        if not _memory(run):
            warn_user(
                "callbacks: 'device_stats' records nothing, since devices of the kind "
                f'{_devices(run)[0].platform!r} do not report their memory.'
            )

    def on_epoch_end(self, run: Run) -> None:
        run.history.add_to_epoch(_memory(run))


def _memory(run: Run) -> dict[str, float]:
    stats = [device.memory_stats() or {} for device in _devices(run)]
    names = ('bytes_in_use', 'peak_bytes_in_use')
    return {
        name: max(device[name] for device in stats)
        for name in names
        if all(name in device for device in stats)
    }


def _devices(run: Run) -> list[Any]:
    return [shard.device for shard in run.state.step.addressable_shards]
