"""ModelTrainer and DistributedTrainer, which check, train, record and plan."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax

from thinkml.core.objectives.losses import LossFn
from thinkml.core.parallel.multiprocess import initialize
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout, data_mesh
from thinkml.core.xla.target import default_device
from thinkml.errors import ConfigError, NotTrainedError, unknown_name
from thinkml.monitoring import History
from thinkml.training.callbacks.dispatch import make_callbacks, metrics_recorded_for
from thinkml.training.config import TrainingConfig
from thinkml.training.custom_step import settings_for_step
from thinkml.training.devices import choose_devices
from thinkml.training.memory_plan import Plan, make_plan, reduce_memory
from thinkml.training.train import (
    Resume,
    TrainResult,
    check_config,
    check_switches,
    open_training,
    run_training,
)
from thinkml.training.training_data import TrainRequest
from thinkml.training.training_setup import make_setup
from thinkml.training.tuning import LearningRateRange, largest_batch_size, learning_rate_range
from thinkml.typing import Inputs, Labels, Model

if TYPE_CHECKING:
    from thinkml.training.target_plan import TargetPlan

Strategy = Literal['mirrored', 'fsdp']
_STRATEGIES = ('mirrored', 'fsdp')


class ModelTrainer:
    """A trainer of models on arrays, frames, files and streams, on one device or several.

    The number of devices changes a result by rounding only: ``batch_size`` is the number of rows
    that all devices compute together, BatchNorm sees the whole batch, sums are over the whole
    batch, and random numbers are drawn for the whole batch. The losses are those of one device up
    to the order in which floats are summed (a relative difference of about 1e-6 a step).

    Args:
        config: the settings; None for the defaults of `TrainingConfig`.
        devices: how many devices train, or which (some of ``jax.devices()``). None: one, or all if
            there is a ``strategy``.
        strategy: how several devices train. ``'mirrored'``, the default for several devices,
            replicates parameters; each device computes its part of each batch, and gradients are
            summed over the devices once a step. ``'fsdp'`` shards parameters and the optimizer's
            state over the devices, for models too large for one of them; after the training they
            stay sharded.

    Attributes:
        config: the settings.
        devices: those that train, of all processes; read-only.
        strategy: ``'mirrored'`` or ``'fsdp'``; None if neither devices nor a strategy were passed.

    Warns:
        DeviceCountWarning: if several devices are requested and the only one is a CPU.

    Raises:
        ConfigError: for a wrong ``config``, an unknown strategy, or more devices than there are.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.training import ModelTrainer, TrainingConfig
        >>> X = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> trainer = ModelTrainer(TrainingConfig(epochs=100, learning_rate=0.1))
        >>> history = trainer.train(model, X, 3 * X[:, 0], progress=False)
        >>> round(float(model.kernel[0, 0]), 2)
        3.0
    """

    def __init__(
        self,
        config: TrainingConfig | None = None,
        *,
        devices: int | Sequence[Any] | None = None,
        strategy: Strategy | None = None,
    ):
        self._set_up(config, devices, strategy, 'devices')

    def _set_up(
        self,
        config: TrainingConfig | None,
        devices: int | Sequence[Any] | None,
        strategy: Strategy | None,
        argument: str,
    ) -> None:
        if strategy is not None and strategy not in _STRATEGIES:
            raise ConfigError(unknown_name('strategy', strategy, _STRATEGIES))
        self.config = check_config(config)
        is_single = devices is None and strategy is None
        self.strategy = None if is_single else strategy or 'mirrored'
        self._requested, self._argument = devices, argument
        self._devices = None if is_single else choose_devices(devices, argument)
        self._result: TrainResult | None = None
        self._learning_rate_range: LearningRateRange | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Devices belong to a process: a copy in another one finds its own.
        state = {name: value for name, value in vars(self).items() if name != '_devices'}
        if isinstance(self._requested, Sequence):
            state['_requested'] = [device.id for device in self._requested]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self._requested, Sequence):
            by_id = {device.id: device for device in jax.devices()}
            self._requested = [by_id.get(index, index) for index in self._requested]
        is_single = self.strategy is None
        self._devices = None if is_single else choose_devices(self._requested, self._argument)

    @property
    def devices(self) -> list[Any]:
        """Returns the devices that train, of all processes."""
        return [default_device()] if self._devices is None else self._devices

    @property
    def _layout(self) -> Layout:
        """Returns the placement of arrays. The default device alone has no mesh."""
        if self._devices is None or (
            self._devices == [default_device()] and jax.process_count() == 1
        ):
            return ONE_DEVICE
        return Layout(data_mesh(self._devices), shards_state=self.strategy == 'fsdp')

    @property
    def learning_rate_range(self) -> LearningRateRange | None:
        """Returns what ``learning_rate='auto'`` measured last; None before."""
        return self._learning_rate_range

    def train(
        self,
        model: Model,
        X_train: Inputs,
        y_train: Labels = None,
        X_val: Inputs = None,
        y_val: Labels = None,
        *,
        loss_fn: str | LossFn | Mapping[str, Any] | None = None,
        metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        groups: Any = None,
        ignore_label: int | Mapping[str, int] | None = None,
        max_length: int | None = None,
        task: Any = None,
        step: Any = None,
        resume: Resume = False,
        progress: bool = True,
    ) -> History:
        """Trains the model in place and leaves it in eval mode.

        The task and the classes are inferred from the labels and the model's outputs (see
        `thinkml.data.infer_task`), shown, and kept in the model's record. Everything is checked
        before anything is compiled; if that fails, the model is untouched. Ctrl-C ends the
        training early and keeps what was learned.

        A model with several heads returns a dict or tuple of arrays. ``y_train`` is then a dict or
        tuple of targets; outputs without targets are not trained. ``loss_fn``, ``metrics``,
        ``class_weights``, ``sample_weight`` and ``ignore_label`` may be dicts by the names of the
        heads, and the history holds ``kind_loss`` and ``kind_accuracy`` for a head ``kind``.

        The loss of a step is the weighted mean ``sum(weight * loss) / sum(weight)`` over its
        examples, where an example's weight is that of its class times its own.

        On several devices, data that fits into the memory of each is replicated. Otherwise its rows
        are sharded over the devices, and data that does not fit then is streamed, to each device
        the rows that it computes. In a run of several processes each passes the same arguments, and
        reads the rows that its devices need from arrays on disk.

        Args:
            model: a `flax.nnx.Module`, or the result of `thinkml.models.from_linen` or
                `thinkml.models.from_functions`.
            X_train: inputs, one row per example, in any form that `thinkml.data.open_rows` takes
                (arrays, frames, arrays on disk, a dict or tuple of them), or a source of batches,
                see `thinkml.data.open_batches`. Columns of frames are matched by the names that the
                model was trained on before.
            y_train: labels (integers, text, bool, one-hot or multilabel rows) or numbers, one for
                each row, or for each element of a row, such as a token or a pixel. If ``X_train``
                holds them: their name, or None to find them.
            X_val: validation inputs. None holds out ``config.validation_split`` of the rows.
                Several sets are a dict such as ``{'in': (X, y), 'shifted': (X2, y2)}``, of pairs or
                of sources that hold their labels; their values are ``val_in_loss``,
                ``val_shifted_loss`` and so on. The first set is monitored by default.
            y_val: validation targets; None for several sets.
            loss_fn: a name (``'cross_entropy'``, ``'binary_cross_entropy'``, ``'focal'``,
                ``'hinge'``, ``'dice'``, ``'mse'``, ``'mae'``, ``'huber'``, ``'log_cosh'``,
                ``'poisson'``, ``'quantile'``, ``'ctc'``), an object such as
                ``CrossEntropy(label_smoothing=0.1)``, or a function ``(logits, labels)`` that
                returns a scalar or a value per example. None: cross-entropy for classes, mean
                squared error for numbers.
            loss_weights: the factor of each head's loss in their sum; those left out count 1.
            metrics: values to record in addition to the loss: names, functions
                ``(logits, labels)`` and CLU metrics, see `thinkml.core.make_metrics`.
                ``'accuracy'`` is always recorded for classification. Weights count in the loss
                alone.
            class_weights: a dict of a weight for each label (those left out count 1), or
                ``'balanced'``. They count in training, not in validation.
            sample_weight: a weight for each row, or for each element of each row.
            augmentation: True for a default that suits the inputs, a name, an object such as
                ``MixUp(0.2)``, a function ``(key, x, y) -> (x, y)`` on a batch, or a list of these;
                see `thinkml.core.make_augmentation`.
            groups: a group for each row. ``validation_split`` holds out whole groups.
            ignore_label: the label of rows, or of elements of rows, that count nowhere; None for
                -100. Only labels of classes that are whole numbers can be ignored.
            max_length: the length that longer rows are cut to, if ``X_train`` is a list or column
                of sequences of different lengths; None pads to the longest row.
            task: ``'binary'``, ``'multiclass'``, ``'multilabel'``, ``'regression'`` or
                ``'sequence'``, a `thinkml.tasks.Task`, or a dict of these by head; None infers it.
            step: a training step in place of ThinkML's: a pure function ``(state, batch)`` of a
                `StepState` and a batch with ``x``, ``y`` and ``weight`` that returns the next state
                and a `StepOutput`. An object may also have ``init(params)``, which makes the state
                of optimizers that the step brings. ``loss_fn`` is then that of the validation.
            resume: True continues from the newest checkpoint of the newest run in
                ``checkpoint_dir``, or of the run whose directory that is, as if the training had
                never stopped; without a checkpoint a new run begins. Needs the ``'checkpoint'``
                callback. The number of devices, processes and the strategy may differ from before.
                A run that early stopping or ``run.stop`` has ended stays as it is; ``'continue'``
                continues it, and early stopping waits for an improvement from there.
            progress: True shows what is trained and a progress bar on stderr, in the first process.

        Warns:
            ThinkMLWarning: if training diverges (the loss is NaN or infinite; it then stops), if
                the classes of a trained model change.

        Returns:
            The `thinkml.monitoring.History`: ``{'loss': [...], 'val_loss': [...], ...}`` by epoch,
            and the loss of each step.

        Raises:
            DataError: for data that can't be trained on, naming the argument and the fix.
            ConfigError: for a setting, loss or metric that is unknown or does not fit; also if
                processes were given different data, settings or models.
            ModelTypeError: for an object that is not a model.
            CheckpointError: if checkpoints can't be written, or none can be read.
            DivergedError: if the loss is NaN or infinite and ``config.on_nan`` is ``'raise'``.
            ProcessError: if another process of the run is lost.
        """
        check_switches(resume=resume, progress=progress)
        request = TrainRequest(
            X_train=X_train, y_train=y_train, X_val=X_val, y_val=y_val,
            loss_fn=loss_fn, metrics=metrics, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation, groups=groups,
            ignore_label=ignore_label, loss_weights=loss_weights, max_length=max_length, task=task,
            step=step,
        )  # fmt: skip
        with open_training(model, request, self.config, self._layout, resume=resume) as opened:
            self._result = opened.result  # now, so that it is there after an interruption
            self._learning_rate_range = (
                opened.result.learning_rate_range or self._learning_rate_range
            )
            run_training(opened, progress=progress)
        return self._result.history

    def plan(
        self,
        model: Model,
        X_train: Inputs,
        y_train: Labels = None,
        X_val: Inputs = None,
        y_val: Labels = None,
        *,
        loss_fn: str | LossFn | Mapping[str, Any] | None = None,
        metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        groups: Any = None,
        ignore_label: int | Mapping[str, int] | None = None,
        max_length: int | None = None,
        task: Any = None,
        step: Any = None,
        target: str | None = None,
    ) -> 'Plan | TargetPlan':
        """Returns how much memory of each device a training with these arguments would take.

        The arguments are checked, and a step is compiled, whose memory the compiler reports.
        Nothing is put on the devices, so a model that does not fit can be planned as well.

        Args:
            model: as in `train`.
            X_train: as in `train`.
            y_train: as in `train`.
            X_val: as in `train`.
            y_val: as in `train`.
            loss_fn: as in `train`.
            metrics: as in `train`.
            loss_weights: as in `train`.
            class_weights: as in `train`.
            sample_weight: as in `train`.
            augmentation: as in `train`.
            groups: as in `train`.
            ignore_label: as in `train`.
            max_length: as in `train`.
            task: as in `train`.
            step: as in `train`.
            target: the devices to plan for, if they are not those of this machine: ``'h200:8'``
                for 8 GPUs, ``'v5e:4x4'`` for a slice of 16 TPUs. Their compiler must be installed,
                but no driver and no device. The model's arrays may be shapes only, such as those
                of ``nnx.eval_shape``, so a model too large for this machine can be planned.

        Returns:
            A `Plan`; for a ``target`` a `TargetPlan`, which also has the exchanges between the
            devices and bounds of the time of a step.

        Raises:
            ConfigError: for an unknown target, or if its compiler is not installed.

        Example:
            >>> import numpy as np
            >>> from flax import nnx
            >>> from thinkml.training import ModelTrainer
            >>> model = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
            >>> X, y = np.zeros((90, 8)), np.arange(90) % 3
            >>> plan = ModelTrainer().plan(model, X, y)
            >>> plan.parts[0].name, plan.parts[0].bytes_per_device
            ('parameters', 108)
        """
        request = TrainRequest(
            X_train=X_train, y_train=y_train, X_val=X_val, y_val=y_val,
            loss_fn=loss_fn, metrics=metrics, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation, groups=groups,
            ignore_label=ignore_label, loss_weights=loss_weights, max_length=max_length, task=task,
            step=step,
        )  # fmt: skip
        config = settings_for_step(step, self.config)
        callbacks, _ = make_callbacks(config)
        setup = make_setup(model, request, config, metrics_recorded_for(callbacks))
        if target is None:
            return make_plan(model, setup, config, self._layout)
        from thinkml.training.compile_targets import open_target
        from thinkml.training.target_plan import make_target_plan

        return make_target_plan(model, setup, config, open_target(target), self.strategy)

    def find_learning_rate(
        self,
        model: Model,
        X_train: Inputs,
        y_train: Labels = None,
        *,
        loss_fn: str | LossFn | Mapping[str, Any] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        ignore_label: int | Mapping[str, int] | None = None,
        max_length: int | None = None,
        task: Any = None,
        step: Any = None,
    ) -> LearningRateRange:
        """Tries rates from 1e-6 to 10 on a copy of the model, one for each of 100 steps.

        ``TrainingConfig(learning_rate='auto')`` does so before training and uses the suggestion.

        Args:
            model: as in `train`.
            X_train: as in `train`.
            y_train: as in `train`.
            loss_fn: as in `train`.
            loss_weights: as in `train`.
            class_weights: as in `train`.
            sample_weight: as in `train`.
            augmentation: as in `train`.
            ignore_label: as in `train`.
            max_length: as in `train`.
            task: as in `train`.
            step: as in `train`.

        Returns:
            The rates, the losses and the suggestion; ``.plot()`` draws them.
        """
        request = TrainRequest(
            X_train=X_train, y_train=y_train, loss_fn=loss_fn, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation, ignore_label=ignore_label,
            loss_weights=loss_weights, max_length=max_length, task=task, step=step,
        )  # fmt: skip
        config = settings_for_step(step, self.config)
        setup = make_setup(model, request, config)
        savings, _ = reduce_memory(model, setup, config, self._layout)
        return learning_rate_range(model, setup, config, self._layout, savings)

    def find_batch_size(
        self,
        model: Model,
        X_train: Inputs,
        y_train: Labels = None,
        *,
        loss_fn: str | LossFn | Mapping[str, Any] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        ignore_label: int | Mapping[str, int] | None = None,
        max_length: int | None = None,
        task: Any = None,
        step: Any = None,
    ) -> int:
        """Returns the largest power of two, as batch size, whose step fits in device memory.

        It is at most the number of rows. The compiler reports how much memory a step takes; nothing
        is trained. Larger batches are computed faster, but do not always train better.

        Args:
            model: as in `train`.
            X_train: as in `train`.
            y_train: as in `train`.
            loss_fn: as in `train`.
            loss_weights: as in `train`.
            class_weights: as in `train`.
            sample_weight: as in `train`.
            augmentation: as in `train`.
            ignore_label: as in `train`.
            max_length: as in `train`.
            task: as in `train`.
            step: as in `train`.
        """
        request = TrainRequest(
            X_train=X_train, y_train=y_train, loss_fn=loss_fn, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation, ignore_label=ignore_label,
            loss_weights=loss_weights, max_length=max_length, task=task, step=step,
        )  # fmt: skip
        config = settings_for_step(step, self.config)
        setup = make_setup(model, request, config)
        return largest_batch_size(model, setup, config, self._layout)

    def get_metrics(self) -> dict[str, float]:
        """Returns the last epoch's metrics of the latest run as plain floats.

        After early stopping the model holds the parameters of ``history.best_epoch``, not those
        of the last epoch.

        Raises:
            NotTrainedError: before the first epoch has ended.
        """
        if self._result is None:
            raise NotTrainedError('get_metrics: no epoch was trained yet. Call train(...) first.')
        return self._result.metrics()


class DistributedTrainer(ModelTrainer):
    """A `ModelTrainer` on several devices, of one process or of several.

    It adds to `ModelTrainer` that it connects this process to the others of its run, and uses all
    devices if none are named.

    Args:
        config: the settings; None for the defaults of `TrainingConfig`.
        strategy: ``'mirrored'`` or ``'fsdp'``, see `ModelTrainer`.
        num_gpus: how many devices of all processes train, of any kind that JAX has; None for all.
        coordinator: ``'host:port'`` of process 0, in a run of several processes that JAX does not
            detect automatically. It detects SLURM, Kubernetes, Open MPI and TPU pods.
        num_processes: how many processes there are, if JAX does not detect it.
        process_id: the number of this process from 0, if JAX does not detect it.

    Warns:
        DeviceCountWarning: if several devices are requested and the only one is a CPU.

    Raises:
        ConfigError: for an unknown strategy, or more devices than there are.
        ProcessError: if this process can not join the others.

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
        check_config(config)  # before the process waits for others
        initialize(coordinator, num_processes, process_id)
        self._set_up(config, num_gpus, strategy, 'num_gpus')
