"""What adds values of the machine to the history: the time of a step, the device's memory."""

import math
from typing import Any

from thinkml.errors import warn_user
from thinkml.training.callback import BuiltInCallback
from thinkml.training.run import Run


class Throughput(BuiltInCallback):
    """Records how long a step took, and the share of the time that went by waiting for data.

    ``history['step_seconds']`` is the mean over an epoch's steps; validation, checkpoints and other
    callbacks are not in it. ``history['input_wait']`` is between 0 and 1. Both are NaN for an
    epoch of which nothing is left beside the run's first dispatch, which compiles.
    """

    order = -1  # before callbacks that read what it records

    def on_train_start(self, run: Run) -> None:
        self._before = run.times

    def on_epoch_end(self, run: Run) -> None:
        epoch, self._before = run.times.since(self._before), run.times
        run.history.add_to_epoch(
            {
                'step_seconds': epoch.step_seconds / epoch.steps if epoch.steps else math.nan,
                'input_wait': epoch.input_share if epoch.steps else math.nan,
            }
        )


class DeviceStats(BuiltInCallback):
    """Records the memory of the device, of the fullest where there are several.

    ``history['bytes_in_use']`` is what is taken when an epoch ends, and
    ``history['peak_bytes_in_use']`` the most that was, since the process began.

    Warns:
        ThinkMLWarning: when training starts, if the device does not tell.
    """

    order = -1  # before callbacks that read what it records

    def on_train_start(self, run: Run) -> None:
        if not _memory(run):
            warn_user(
                "callbacks: 'device_stats' records nothing, as a device of the kind "
                f'{_devices(run)[0].platform!r} does not tell how its memory is used.'
            )

    def on_epoch_end(self, run: Run) -> None:
        run.history.add_to_epoch(_memory(run))


def _memory(run: Run) -> dict[str, float]:
    stats = [device.memory_stats() or {} for device in _devices(run)]
    names = ('bytes_in_use', 'peak_bytes_in_use')
    return {
        name: max(of[name] for of in stats) for name in names if all(name in of for of in stats)
    }


def _devices(run: Run) -> list[Any]:
    return [shard.device for shard in run.state.step.addressable_shards]
