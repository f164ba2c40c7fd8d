"""TrainingConfig: the settings of a training run."""

import dataclasses
import datetime
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from thinkml.errors import ConfigError, is_number, problems
from thinkml.training.config_validation import seconds_of, setting_problems, suggest_setting

_LAST_FRACTION = 0.2


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Immutable; equal settings give equal runs.

    Attributes:
        batch_size: the number of examples in a batch; a step takes
            ``batch_size * accumulate_steps`` of them. A smaller data set trains as one batch. Data
            sources that come in batches (a ``DataLoader``) set their own batch size.
        epochs: the number of passes over the training data.
        learning_rate: the learning rate of the optimizer, the peak of its schedule; ``'auto'``
            finds one by a range test before training; a function ``step -> rate`` is a custom
            schedule. A different number does not need a new compilation.
        optimizer: an optax optimizer by name (``'adam'``, ``'adamw'``, ``'sgd'``, ``'momentum'``,
            ``'lion'``, ``'muon'`` and others); a function ``learning_rate -> transformation``, such
            as ``optax.adamax``; an optax transformation that has its own learning rate; or a dict
            of these by pattern, such as ``{'head/.*': 'adamw', '.*': optax.sgd(0.1)}``. A parameter
            gets the optimizer of the first pattern, a regular expression, that matches its whole
            path, such as ``'layers/0/kernel'``. ``'frozen'`` leaves parameters as they are, and
            ``{'optimizer': 'adamw', 'learning_rate': 1e-4, 'weight_decay': 0.01}`` gives numbers
            that replace ``learning_rate`` and ``weight_decay``.
        early_stopping: True stops when the validation loss has not improved for 10 epochs and
            restores the best epoch's parameters; an `EarlyStopping` has more settings.
        validation_split: the fraction of the training rows, between 0 and 1, held out for
            validation if no validation data is passed: random rows, stratified by class. For rows
            in order of time, ``'last'`` holds out the last 20 % and ``('last', 0.1)`` another
            fraction of them. 0 holds out none.
        callbacks: ``'checkpoint'``, ``'tensorboard'``, ``'csv'``, ``'early_stopping'``,
            ``'lr_monitor'``, ``'throughput'``, ``'device_stats'``, ``'profiler'``, ``'progress'``,
            objects (see `Callback`), or functions called with the `Run` after each epoch.
        lr_schedule: the schedule of the learning rate: ``'constant'``, ``'cosine'``,
            ``'warmup_cosine'``, ``'linear'``, ``'exponential'``, ``'one_cycle'``, or
            ``'reduce_on_plateau'``, which is `ReduceLROnPlateau` with its defaults.
        warmup_steps: the number of steps in which the rate rises; None for the schedule's default.
        weight_decay: decoupled weight decay of matrices and kernels only (norms and biases are left
            out); None for the optimizer's default.
        gradient_clip_norm: the limit to which the gradients' global norm is clipped; None for no
            limit.
        accumulate_steps: the number of batches of ``batch_size`` whose gradients make one step.
            BatchNorm, dropout and augmentation treat each batch separately.
        aux_losses: weights of values that the model sows, such as ``{'balance': 0.01}`` for the
            balance of a mixture of experts. They are added to the loss and recorded; ``{}`` adds
            none. None does so too, and warns of a model that sows.
        ema_decay: the decay of a moving average of the parameters, which is evaluated and kept;
            None for none. 0.999 is usual. In a run's first steps the decay is smaller,
            ``t / (t + 9)`` after ``t`` steps, so that the initial parameters are not part of the
            average.
        precision: ``'float32'``, or ``'bf16'`` for matrix products and convolutions in bfloat16;
            parameters and their updates stay float32.
        on_nan: the action when a loss is NaN or infinite: ``'restore'`` stops with a warning, at
            the last finite state; ``'raise'`` raises a `DivergedError` there; ``'ignore'``
            continues, and keeps no copy of the state to return to.
        checkpoint_dir: the directory in which ``'checkpoint'`` saves, each run in ``run-1``,
            ``run-2`` and so on; ``resume=True`` continues the newest, or the one whose directory
            this is.
        max_steps: the number of steps after which the run ends; None for no limit.
        max_time: the time after which the run ends, at the end of the current dispatch: seconds, a
            `datetime.timedelta` or ``'HH:MM:SS'``; None for no limit.
        limit_train_batches: the number of steps after which an epoch ends, or a fraction (a float
            up to 1) of its steps. None for all.
        validate_every: when the model is validated: after each ``'epoch'``, after a number of
            steps, or after a time, such as ``'90s'``, ``'10m'`` or ``'2h'``, at the end of the
            dispatch in progress. With steps or a time, the epochs of the history, of callbacks and
            of plots are the periods from one validation to the next, through the passes over the
            data.
        fast_dev_run: True trains one step and evaluates one batch, without checkpoints and logs, to
            check that everything runs; a number trains that many steps.
        device_data_bytes: the device memory that training data may take; larger data is streamed.
            None for 70 % of the free memory.
        seed: the seed of the initialisation, the shuffling, dropout, augmentation and the split.
        steps_per_dispatch: the number of training steps per compiled call; None chooses a number
            that takes at most about two seconds.
        remat: True recomputes activations for the gradient instead of storing them, which takes
            less memory and a third more time; None does so only if training would not fit in memory
            otherwise.

    Raises:
        ConfigError: for unknown fields and impossible values. Names all of them at once.

    Example:
        >>> from thinkml.training import TrainingConfig
        >>> TrainingConfig(batch_size=64, optimizer='adamw').learning_rate
        0.001
    """

    batch_size: int = 32
    epochs: int = 100
    learning_rate: Any = 0.001
    optimizer: Any = 'adam'
    early_stopping: Any = False
    validation_split: Any = 0.0
    callbacks: Sequence[Any] = ()
    lr_schedule: str = 'constant'
    warmup_steps: int | None = None
    weight_decay: float | None = None
    gradient_clip_norm: float | None = None
    accumulate_steps: int = 1
    aux_losses: Mapping[str, float] | None = None
    ema_decay: float | None = None
    precision: str = 'float32'
    on_nan: str = 'restore'
    checkpoint_dir: str | Path = 'checkpoints'
    max_steps: int | None = None
    max_time: float | str | datetime.timedelta | None = None
    limit_train_batches: int | float | None = None
    validate_every: int | str = 'epoch'
    fast_dev_run: bool | int = False
    device_data_bytes: int | None = None
    seed: int = 0
    steps_per_dispatch: int | None = None
    remat: bool | None = None

    def __new__(cls, *args: Any, **settings: Any) -> 'TrainingConfig':
        # Before __init__, so that misspelt fields are reported together with bad values.
        defaults = _defaults(cls)
        names = list(defaults)
        found = [
            f'{name}: unknown setting.{suggest_setting(name, names)}'
            for name in settings
            if name not in names
        ]
        if found:
            passed = dict(zip(names, args, strict=False)) | settings
            values = {name: passed.get(name, defaults[name]) for name in names}
            found += setting_problems(values, defaults)
            raise ConfigError(problems('TrainingConfig can not be used:', found))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        found = setting_problems(vars(self), _defaults(type(self)))
        if found:
            raise ConfigError(problems('TrainingConfig can not be used:', found))
        # Plain numbers: numpy's would be recorded as text, and compiled for again.
        for name, kind in _NUMBERS.items():
            value = getattr(self, name)
            if is_number(value):
                object.__setattr__(self, name, kind(value))
        object.__setattr__(self, 'callbacks', tuple(self.callbacks))
        if isinstance(self.optimizer, Mapping):
            object.__setattr__(self, 'optimizer', dict(self.optimizer))
        if self.aux_losses is not None:
            weights = {name: float(weight) for name, weight in self.aux_losses.items()}
            object.__setattr__(self, 'aux_losses', weights)

    @property
    def max_seconds(self) -> float | None:
        """Returns ``max_time`` in seconds."""
        return None if self.max_time is None else seconds_of(self.max_time)

    @property
    def period_steps(self) -> float | None:
        """Returns the steps from one validation to the next; None for those of an epoch.

        It is infinite if the time decides.
        """
        if self.validate_every == 'epoch':
            return None
        return math.inf if isinstance(self.validate_every, str) else self.validate_every

    @property
    def period_seconds(self) -> float | None:
        """Returns the time from one validation to the next; None if steps decide."""
        return None if self.period_steps != math.inf else seconds_of(self.validate_every)

    @property
    def held_out(self) -> tuple[Literal['random', 'last'], float]:
        """Returns ``validation_split`` as ``('random' or 'last', fraction)``."""
        split = self.validation_split
        if split == 'last':
            return 'last', _LAST_FRACTION
        return ('last', split[1]) if isinstance(split, tuple | list) else ('random', split)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values; objects by their description."""
        return {name: _plain(value) for name, value in vars(self).items()}


# __new__ hides the fields from inspect.signature, which notebooks and editors show.
TrainingConfig.__signature__ = inspect.signature(  # pyright: ignore[reportAttributeAccessIssue]
    TrainingConfig.__init__
).replace(parameters=list(inspect.signature(TrainingConfig.__init__).parameters.values())[1:])


_NUMBERS = {
    'batch_size': int,
    'epochs': int,
    'learning_rate': float,
    'validation_split': float,
    'warmup_steps': int,
    'weight_decay': float,
    'gradient_clip_norm': float,
    'accumulate_steps': int,
    'ema_decay': float,
    'max_steps': int,
    'validate_every': int,
    'device_data_bytes': int,
    'seed': int,
    'steps_per_dispatch': int,
}


def _defaults(config: type[TrainingConfig]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_number(value):
        return float(value)
    if isinstance(value, Mapping):  # as text, since the order of patterns matters
        return _described(value)
    if isinstance(value, Path):
        return str(value)
    # The name of a function is the same in every process; its repr is not.
    return value.__qualname__ if inspect.isroutine(value) else re.sub(r' at 0x\w+', '', repr(value))


def _described(value: Any) -> str:
    if not isinstance(value, Mapping):
        return repr(_plain(value))
    return f'{{{", ".join(f"{name!r}: {_described(item)}" for name, item in value.items())}}}'
