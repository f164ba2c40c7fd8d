"""TrainingConfig: the settings of a training run."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from thinkml.core import OPTIMIZERS
from thinkml.errors import ConfigError, did_you_mean, is_number, is_whole, problems, unknown_name

# What these names stand for is in callbacks.py, which needs to know a config.
CALLBACKS = ('checkpoint', 'early_stopping', 'tensorboard')
HOOKS = ('on_train_start', 'on_epoch_end', 'on_train_end')


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Immutable; equal settings give equal runs.

    Attributes:
        batch_size: examples a step. A smaller data set trains as one batch.
        epochs: passes over the training data.
        learning_rate: of the optimizer; may be changed without recompiling.
        optimizer: an optax optimizer by name: ``'adam'``, ``'adamw'``, ``'sgd'``,
            ``'momentum'``, ``'lion'`` and others.
        early_stopping: True stops when the validation loss has not fallen for 10 epochs and puts
            the best epoch's parameters back; an `EarlyStopping` says it in detail.
        validation_split: share of the training rows, between 0 and 1, held out for validation
            where no validation data is passed. 0 holds out none.
        callbacks: ``'checkpoint'``, ``'tensorboard'``, ``'early_stopping'``, objects (see
            `Callback`), or functions called with the `Run` after each epoch.
        seed: of the initialisation, the shuffling, dropout and the split.
        steps_per_dispatch: training steps per compiled call; None picks about a second's worth.

    Raises:
        ConfigError: naming every unknown field and impossible value at once.

    Example:
        >>> from thinkml.training import TrainingConfig
        >>> TrainingConfig(batch_size=64, optimizer='adamw').learning_rate
        0.001
    """

    batch_size: int = 32
    epochs: int = 100
    learning_rate: float = 0.001
    optimizer: str = 'adam'
    early_stopping: Any = False
    validation_split: float = 0.0
    callbacks: Sequence[Any] = ()
    seed: int = 0
    steps_per_dispatch: int | None = None

    def __new__(cls, *args: Any, **settings: Any) -> 'TrainingConfig':
        # Ahead of __init__, so that misspelt fields are reported together with bad values.
        known = [field.name for field in dataclasses.fields(cls)]
        found = [
            f'{name}: unknown setting.{did_you_mean(name, known)}'
            for name in settings
            if name not in known
        ]
        if found:
            given = dict(zip(known, args, strict=False)) | settings
            fields = dataclasses.fields(cls)
            found += _problems({f.name: given.get(f.name, f.default) for f in fields})
            raise ConfigError(problems('TrainingConfig can not be used:', found))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        found = _problems(vars(self))
        if found:
            raise ConfigError(problems('TrainingConfig can not be used:', found))
        # Plain numbers: numpy's would be recorded as text, and compiled for anew.
        for name, kind in _NUMBERS.items():
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else kind(value))
        object.__setattr__(self, 'callbacks', tuple(self.callbacks))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; objects by their description."""
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
    'seed': int,
    'steps_per_dispatch': int,
}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _problems(settings: dict[str, Any]) -> list[str]:
    """All that is wrong with the settings, a sentence each."""
    checks: list[tuple[str, Callable[[Any], bool], str]] = [
        ('batch_size', _is_positive_int, 'a whole number of at least 1'),
        ('epochs', _is_positive_int, 'a whole number of at least 1'),
        ('learning_rate', _is_positive_number, 'a number above 0'),
        ('validation_split', _is_fraction, 'a number from 0 up to but not including 1'),
        ('early_stopping', _is_early_stopping, 'True, False or an EarlyStopping'),
        ('seed', _is_seed, 'a whole number from 0 to 2**32 - 1'),
        ('steps_per_dispatch', _is_positive_int_or_none, 'None or a whole number of at least 1'),
    ]
    found = [
        f'{name}: got {settings[name]!r}, expected {expected}.'
        for name, is_valid, expected in checks
        if not is_valid(settings[name])
    ]
    if not isinstance(settings['optimizer'], str) or settings['optimizer'] not in OPTIMIZERS:
        found.append(unknown_name('optimizer', settings['optimizer'], OPTIMIZERS))
    return found + _callback_problems(settings['callbacks'])


def _callback_problems(callbacks: Any) -> list[str]:
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        return [f"callbacks: got {callbacks!r}, expected a list, for instance ['checkpoint']."]
    found = []
    for callback in callbacks:
        if isinstance(callback, str):
            if callback not in CALLBACKS:
                found.append(unknown_name('callbacks', callback, CALLBACKS))
        elif unknown := [n for n in dir(callback) if n.startswith('on_') and n not in HOOKS]:
            found.append(unknown_name('callbacks', unknown[0], HOOKS))
        elif isinstance(callback, type) or not (
            callable(callback) or any(hasattr(callback, hook) for hook in HOOKS)
        ):
            found.append(
                f'callbacks: got {callback!r}, expected a name, a function of the run, or an '
                f'object with {", ".join(HOOKS)}.'
            )
    return found


def _is_positive_number(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_fraction(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_positive_int(value: Any) -> bool:
    return is_whole(value) and value >= 1


def _is_positive_int_or_none(value: Any) -> bool:
    return value is None or _is_positive_int(value)


def _is_seed(value: Any) -> bool:
    return is_whole(value) and 0 <= value < 2**32


def _is_early_stopping(value: Any) -> bool:
    return isinstance(value, bool) or (
        hasattr(value, 'on_epoch_end') and not isinstance(value, type)
    )
