"""DistributedTrainer: the same training on several devices, of one machine or of many."""

from collections.abc import Sequence
from typing import Any, Literal

import jax

from thinkml.core.objectives.losses import LossFn
from thinkml.core.parallel.multiprocess import initialize
from thinkml.core.parallel.sharding import Layout, data_mesh
from thinkml.errors import ConfigError, DeviceCountWarning, is_whole, unknown_name, warn_user
from thinkml.monitoring import History
from thinkml.training.config import TrainingConfig
from thinkml.training.memory_plan import Plan, make_plan
from thinkml.training.train import Latest, Resume, check_config, check_switches, train
from thinkml.training.training_setup import TrainRequest
from thinkml.training.tuning import LearningRateRange

Strategy = Literal['mirrored', 'fsdp']
_STRATEGIES = ('mirrored', 'fsdp')


class DistributedTrainer:
    """Trains as `ModelTrainer` does, on several devices.

    What is trained does not depend on how many there are, but for rounding: ``batch_size`` is that
    of all devices together, BatchNorm sees all of the batch, sums are over all of it, and what is
    random is drawn for all of it. So the losses are those of one device, up to the order in which
    floats are summed (about 1e-6 of them, a step).

    Args:
        config: the settings; None for the defaults of `TrainingConfig`.
        strategy: ``'mirrored'``: each device has all parameters, computes its part of each batch,
            and the gradients are summed over the devices, in one exchange a step. ``'fsdp'``:
            parameters and the optimizer's state are in parts on the devices, for models that one
            does not hold; after the training they stay so.
        num_gpus: how many devices of all processes, of whatever kind JAX has; None for all.
        coordinator: ``'host:port'`` of process 0, in a run of several processes that are not
            started by SLURM, Kubernetes, Open MPI or on a TPU pod, of which JAX finds out itself.
        num_processes: how many there are, likewise.
        process_id: which one this is, likewise.

    Attributes:
        config: the settings.
        strategy: ``'mirrored'`` or ``'fsdp'``.
        devices: those that train, of all processes.

    Warns:
        DeviceCountWarning: if more are asked for than the one CPU there is, which then trains
            alone.

    Raises:
        ConfigError: for an unknown strategy, or more devices than there are.
        ProcessError: if this process can't join the others.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.training import DistributedTrainer, TrainingConfig
        >>> X = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> trainer = DistributedTrainer(TrainingConfig(epochs=100, learning_rate=0.1))
        >>> history = trainer.train(model, X, 3 * X[:, 0], progress=False)
        >>> round(float(model.kernel[0, 0]), 2)
        3.0
    """

    def __init__(
        self,
        config: TrainingConfig | None = None,
        *,
        strategy: Strategy = 'mirrored',
        num_gpus: int | None = None,
        coordinator: str | None = None,
        num_processes: int | None = None,
        process_id: int | None = None,
    ):
        if strategy not in _STRATEGIES:
            raise ConfigError(unknown_name('strategy', strategy, _STRATEGIES))
        self.config = check_config(config)
        initialize(coordinator, num_processes, process_id)
        self.strategy = strategy
        self.devices = _devices(num_gpus)
        self._num_gpus = num_gpus
        self._latest = Latest()

    def __getstate__(self) -> dict[str, Any]:
        # Devices are those of a process: a copy finds its own.
        return {name: value for name, value in vars(self).items() if name != 'devices'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.devices = _devices(self._num_gpus)

    @property
    def learning_rate_range(self) -> LearningRateRange | None:
        """What ``learning_rate='auto'`` measured last; None before."""
        return self._latest.learning_rate_range

    def train(
        self,
        model: Any,
        X_train: Any,
        y_train: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        loss_fn: str | LossFn | None = None,
        metrics: Sequence[Any] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        groups: Any = None,
        resume: Resume = False,
        progress: bool = True,
    ) -> History:
        """Trains the model in place and leaves it in eval mode, as `ModelTrainer.train` does.

        Where all data fits into each device it is there; else each has a part of the rows; else
        rows are streamed, to each device its own.

        A run that is resumed may have another number of devices, processes or another strategy
        than before.

        Args:
            model: as in `ModelTrainer.train`.
            X_train: as in `ModelTrainer.train`. In a run of several processes each passes the
                same; of what is stored on disk it reads the rows its devices need.
            y_train: as in `ModelTrainer.train`.
            X_val: as in `ModelTrainer.train`.
            y_val: as in `ModelTrainer.train`.
            loss_fn: as in `ModelTrainer.train`.
            metrics: as in `ModelTrainer.train`.
            class_weights: as in `ModelTrainer.train`.
            sample_weight: as in `ModelTrainer.train`.
            augmentation: as in `ModelTrainer.train`.
            groups: as in `ModelTrainer.train`.
            resume: as in `ModelTrainer.train`.
            progress: as in `ModelTrainer.train`; the first process shows it.

        Raises:
            ThinkMLError: as `ModelTrainer.train` does.
            ProcessError: if another process is lost.
            ConfigError: also if the processes were given different data, settings or models.
        """
        check_switches(resume=resume, progress=progress)
        asked = TrainRequest(
            X_train, y_train, X_val, y_val, loss_fn, metrics, class_weights, sample_weight,
            augmentation, groups,
        )  # fmt: skip
        return train(
            self._latest, model, asked, self.config, self._layout,
            resume=resume, progress=progress,
        )  # fmt: skip

    def plan(
        self,
        model: Any,
        X_train: Any,
        y_train: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        loss_fn: str | LossFn | None = None,
        metrics: Sequence[Any] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        groups: Any = None,
    ) -> Plan:
        """Returns what a training with these arguments would take of each device.

        The arguments are checked and a step is compiled, whose memory the compiler tells; nothing
        is put on the devices, so a model that does not fit can be planned as well.

        Args:
            model: as in `ModelTrainer.train`.
            X_train: as in `ModelTrainer.train`.
            y_train: as in `ModelTrainer.train`.
            X_val: as in `ModelTrainer.train`.
            y_val: as in `ModelTrainer.train`.
            loss_fn: as in `ModelTrainer.train`.
            metrics: as in `ModelTrainer.train`.
            class_weights: as in `ModelTrainer.train`.
            sample_weight: as in `ModelTrainer.train`.
            augmentation: as in `ModelTrainer.train`.
            groups: as in `ModelTrainer.train`.

        Example:
            >>> import numpy as np
            >>> from flax import nnx
            >>> from thinkml.training import DistributedTrainer
            >>> model = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
            >>> X, y = np.zeros((90, 8)), np.arange(90) % 3
            >>> plan = DistributedTrainer().plan(model, X, y)
            >>> plan.parts[0].name, plan.parts[0].bytes_per_device
            ('parameters', 108)
        """
        asked = TrainRequest(
            X_train, y_train, X_val, y_val, loss_fn, metrics, class_weights, sample_weight,
            augmentation, groups,
        )  # fmt: skip
        return make_plan(model, asked, self.config, self._layout)

    def get_metrics(self) -> dict[str, float]:
        """Returns the last epoch's metrics of the latest run, see `ModelTrainer.get_metrics`.

        Raises:
            NotTrainedError: before the first epoch has ended.
        """
        return self._latest.metrics()

    @property
    def _layout(self) -> Layout | None:
        """None for the device that trains anyway: then it is the same program."""
        if self.devices == [jax.devices()[0]] and jax.process_count() == 1:
            return None
        return Layout(data_mesh(self.devices), shards_state=self.strategy == 'fsdp')


def _devices(num_gpus: int | None) -> list[Any]:
    there = jax.devices()
    if num_gpus is None:
        return there
    if not (is_whole(num_gpus) and num_gpus >= 1):
        raise ConfigError(
            f'num_gpus: got {num_gpus!r}, expected a whole number of at least 1, or None for all '
            f'devices ({len(there)}).'
        )
    num_processes = jax.process_count()
    if num_gpus > len(there):
        return _too_few(num_gpus, there)
    if num_gpus % num_processes:
        raise ConfigError(
            f'num_gpus: got {num_gpus} for {num_processes} processes, expected a multiple: each '
            'trains on as many devices.'
        )
    of_each = num_gpus // num_processes
    by_process = [[d for d in there if d.process_index == p] for p in range(num_processes)]
    if any(len(devices) < of_each for devices in by_process):
        raise ConfigError(
            f'num_gpus: got {num_gpus} for {num_processes} processes with '
            f'{", ".join(str(len(devices)) for devices in by_process)} devices, expected at most '
            f'{num_processes * min(map(len, by_process))}: each trains on as many.'
        )
    return [device for devices in by_process for device in devices[:of_each]]


def _too_few(num_gpus: int, there: list[Any]) -> list[Any]:
    kind = there[0].platform
    how = (
        f"To simulate {num_gpus} on the CPU, set os.environ['XLA_FLAGS'] = "
        f"'--xla_force_host_platform_device_count={num_gpus}' before jax is imported."
    )
    if kind != 'cpu' or len(there) > 1:
        raise ConfigError(
            f'num_gpus: got {num_gpus}, but there are {len(there)} devices ({kind}). Pass '
            f'{len(there)}, or None for all. {how}'
        )
    warn_user(
        f'num_gpus: got {num_gpus}, but the only device is a CPU, which trains alone; the result '
        f'is the same. {how}',
        DeviceCountWarning,
    )
    return there
