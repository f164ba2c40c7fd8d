"""Validation of `TrainingConfig`: finds all problems with the settings before training."""

import datetime
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thinkml.core import OPTIMIZERS, SCHEDULES, make_optimizer
from thinkml.core.model.mixed_precision import get_compute_dtype
from thinkml.errors import ConfigError, did_you_mean, is_number, is_whole, unknown_name
from thinkml.paths import path_problem
from thinkml.training.callback import CALLBACKS, HOOKS, BuiltInCallback, has_hooks, hook_of
from thinkml.training.parameter_groups import follows_rate, group_problems, has_built_in_rate

ON_NAN = ('ignore', 'raise', 'restore')

# Names of our settings in other libraries.
NAMES_ELSEWHERE = {
    'accumulate_grad_batches': 'accumulate_steps',
    'bf16': "precision='bf16'",
    'clipnorm': 'gradient_clip_norm',
    'default_root_dir': 'checkpoint_dir',
    'fp16': "precision='bf16'",
    'global_clipnorm': 'gradient_clip_norm',
    'gradient_accumulation_steps': 'accumulate_steps',
    'gradient_checkpointing': 'remat',
    'gradient_clip_val': 'gradient_clip_norm',
    'lr': 'learning_rate',
    'lr_scheduler_type': 'lr_schedule',
    'max_epochs': 'epochs',
    'max_grad_norm': 'gradient_clip_norm',
    'num_train_epochs': 'epochs',
    'output_dir': 'checkpoint_dir',
    'patience': 'early_stopping=EarlyStopping(patience=...)',
    'per_device_train_batch_size': 'batch_size',
    'save_steps': 'callbacks=[Checkpoint(every_steps=...)]',
    'save_total_limit': 'callbacks=[Checkpoint(keep=...)]',
    'steps_per_epoch': 'limit_train_batches',
    'terminate_on_nan': 'on_nan',
    'eval_steps': 'validate_every',
    'use_ema': 'ema_decay',
    'val_check_interval': 'validate_every',
    'warmup_ratio': 'warmup_steps',
}
TRAIN_ARGUMENTS = {
    'augmentation': 'augmentation',
    'class_weight': 'class_weights',
    'class_weights': 'class_weights',
    'groups': 'groups',
    'loss': 'loss_fn',
    'loss_fn': 'loss_fn',
    'metrics': 'metrics',
    'progress': 'progress',
    'resume': 'resume',
    'resume_from_checkpoint': 'resume',
    'sample_weight': 'sample_weight',
    'validation_data': 'X_val, y_val',
    'verbose': 'progress',
}


def suggest_setting(name: str, names: list[str]) -> str:
    """Returns a sentence with the setting that an unknown name may stand for."""
    if name in NAMES_ELSEWHERE:
        return f' Here it is {NAMES_ELSEWHERE[name]}.'
    if name in TRAIN_ARGUMENTS:
        return f' It is an argument of train: train(..., {TRAIN_ARGUMENTS[name]}=...).'
    return did_you_mean(name, names)


def setting_problems(settings: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Returns a sentence for each problem with the settings.

    Args:
        settings: the settings of a `TrainingConfig`, by name.
        defaults: the defaults of all settings.
    """
    found = _value_problems(settings)
    if (problem := path_problem(settings['checkpoint_dir'], 'checkpoint_dir')) is not None:
        found.append(problem)
    if settings['on_nan'] not in ON_NAN:
        found.append(unknown_name('on_nan', settings['on_nan'], ON_NAN))
    found += _precision_problems(settings['precision'])
    found += _schedule_problems(settings)
    found += _optimizer_problems(settings, defaults)
    return found + _callback_problems(settings['callbacks'])


def _value_problems(settings: dict[str, Any]) -> list[str]:
    count = 'a whole number of at least 1'
    checks: list[tuple[str, Callable[[Any], bool], str]] = [
        ('batch_size', _is_count, count),
        ('epochs', _is_count, count),
        ('learning_rate', _is_rate, "a number above 0, 'auto' or a function step -> rate"),
        (
            'validation_split',
            _is_split,
            "a fraction from 0 up to but not including 1 (0.2 is 20 %), 'last' or "
            "('last', fraction)",
        ),
        (
            'early_stopping',
            _is_early_stopping,
            'True, False or an object, for instance EarlyStopping(patience=5)',
        ),
        ('warmup_steps', _or_none(_is_natural), 'None or a whole number of at least 0'),
        ('weight_decay', _or_none(_is_not_negative), 'None or a number of at least 0'),
        ('gradient_clip_norm', _or_none(_is_positive), 'None or a number above 0'),
        ('accumulate_steps', _is_count, count),
        (
            'aux_losses',
            _or_none(_are_weights),
            "None or a dict of a number for each sown value, for instance {'balance': 0.01}",
        ),
        ('ema_decay', _or_none(_is_fraction), 'None or a number between 0 and 1'),
        ('max_steps', _or_none(_is_count), f'None or {count}'),
        (
            'validate_every',
            _is_period,
            f"'epoch', {count}, or a time above 0 such as '90s', '10m' or '2h'",
        ),
        (
            'max_time',
            _or_none(_is_time),
            "None or a time above 0: seconds, a timedelta or 'HH:MM:SS'",
        ),
        (
            'limit_train_batches',
            _or_none(_is_limit),
            'None, a whole number of steps of at least 1, or a fraction above 0 and up to 1.0',
        ),
        ('fast_dev_run', _is_natural_or_bool, 'True, False or a number of steps'),
        ('device_data_bytes', _or_none(_is_count), 'None or a number of bytes'),
        ('seed', _is_seed, 'a whole number from 0 to 2**32 - 1'),
        ('steps_per_dispatch', _or_none(_is_count), f'None or {count}'),
        ('remat', _or_none(lambda value: isinstance(value, bool)), 'None, True or False'),
    ]
    return [
        f'{name}: got {settings[name]!r}, expected {expected}.'
        for name, is_valid, expected in checks
        if not is_valid(settings[name])
    ]


def _precision_problems(precision: Any) -> list[str]:
    try:
        get_compute_dtype(precision)
    except ConfigError as error:
        return [str(error)]
    return []


def _schedule_problems(settings: dict[str, Any]) -> list[str]:
    schedule, rate = settings['lr_schedule'], settings['learning_rate']
    names = (*SCHEDULES, 'reduce_on_plateau')
    if callable(schedule):
        return [f'lr_schedule: got {schedule!r}, expected a name. Pass it as learning_rate=...']
    if schedule not in names:
        return [unknown_name('lr_schedule', schedule, names)]
    if not callable(rate):
        return []
    found = [
        f'{name}: got {settings[name]!r} together with a learning_rate that is a function of the '
        f'step, expected one of the two. Leave {name} out, or pass a number as learning_rate.'
        for name, allowed in (
            ('lr_schedule', ('constant', 'reduce_on_plateau')),
            ('warmup_steps', (None,)),
        )
        if settings[name] not in allowed
    ]
    try:
        make_optimizer('sgd', schedule=rate)
    except ConfigError as error:
        found.append(f'learning_rate: {str(error).removeprefix("schedule: ")}')
    return found


def _optimizer_problems(settings: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    optimizer = settings['optimizer']
    if isinstance(optimizer, str):
        is_known = optimizer in OPTIMIZERS
        return [] if is_known else [unknown_name('optimizer', optimizer, OPTIMIZERS)]
    if isinstance(optimizer, Mapping):
        if found := group_problems(optimizer):
            return found
    else:
        try:
            make_optimizer(optimizer)
        except ConfigError as error:
            return [str(error)]
    changed = [name for name in _NUMBERS_OF_RATE if settings[name] != defaults[name]]
    if has_built_in_rate(optimizer):
        return [
            f'{name}: got {settings[name]!r}, but the optimizer is an optax transformation, which '
            f'has its own. Leave {name} out, or pass a function learning_rate -> transformation.'
            for name in changed
        ]
    if 'learning_rate' in changed and not follows_rate(optimizer):
        return [
            f'learning_rate: got {settings["learning_rate"]!r}, but each pattern has its own. '
            'Leave it out here, or for one pattern.'
        ]
    return []


_NUMBERS_OF_RATE = ('learning_rate', 'lr_schedule', 'warmup_steps', 'weight_decay')


def _callback_problems(callbacks: Any) -> list[str]:
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        return [f"callbacks: got {callbacks!r}, expected a list, for instance ['checkpoint']."]
    found = []
    for callback in callbacks:
        if isinstance(callback, str):
            names = (*CALLBACKS, 'progress')  # the progress bar belongs to the trainer
            if callback not in names:
                found.append(unknown_name('callbacks', callback, names))
        elif unknown := [n for n in dir(callback) if n.startswith('on_') and n not in HOOKS]:
            found.append(unknown_name('callbacks', unknown[0], HOOKS))
        elif isinstance(callback, type):
            name = callback.__name__
            found.append(f'callbacks: got the class {name}, expected an instance of it: {name}().')
        elif wrong := [hook for hook in _hooks_of(callback) if not _takes_run(hook)]:
            found.append(
                f'callbacks: got {wrong[0]!r} with the signature {inspect.signature(wrong[0])}, '
                'expected one argument, the run.'
            )
        elif not _is_callback(callback):
            found.append(
                f'callbacks: got {callback!r}, expected a name, a function of the run, or an '
                f'object with {", ".join(HOOKS)}.'
            )
    return found


def _is_callback(value: Any) -> bool:
    return callable(value) or has_hooks(value)


def _hooks_of(callback: object) -> list[Callable[..., Any]]:
    """Returns the functions that will be called with the run."""
    hooks = [getattr(callback, hook) for hook in HOOKS if hasattr(callback, hook)]
    return hooks or ([callback] if callable(callback) else [])


def _takes_run(function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C has no signature
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


_UNITS = {'s': 1, 'm': 60, 'h': 3600}


def seconds_of(time: Any) -> float:
    """Returns a time in seconds."""
    if isinstance(time, datetime.timedelta):
        return time.total_seconds()
    if isinstance(time, str) and time[-1] in _UNITS:
        return float(time[:-1]) * _UNITS[time[-1]]
    if isinstance(time, str):
        hours, minutes, seconds = map(int, time.split(':'))
        return 3600 * hours + 60 * minutes + seconds
    return float(time)


def _or_none(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_not_negative(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_fraction(value: Any) -> bool:
    return is_number(value) and 0 < value < 1


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 1


def _is_natural(value: Any) -> bool:
    return is_whole(value) and value >= 0


def _is_natural_or_bool(value: Any) -> bool:
    return isinstance(value, bool) or _is_natural(value)


def _is_rate(value: Any) -> bool:
    return _is_positive(value) or value == 'auto' or callable(value)


def _is_split(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) == 2 and value[0] == 'last' and _is_fraction(value[1])
    return value == 'last' if isinstance(value, str) else is_number(value) and 0 <= value < 1


def _is_limit(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, float) and 0 < value <= 1)


def _is_period(value: Any) -> bool:
    if not isinstance(value, str):
        return _is_count(value)
    is_time = re.fullmatch(r'\d+(\.\d+)?[smh]', value) is not None
    return value == 'epoch' or (is_time and seconds_of(value) > 0)


def _is_time(value: Any) -> bool:
    if isinstance(value, str) and not re.fullmatch(r'\d+:[0-5]\d:[0-5]\d', value):
        return False
    is_time = isinstance(value, str | datetime.timedelta) or is_number(value)
    return is_time and seconds_of(value) > 0


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and is_number(weight) and math.isfinite(weight)
        for name, weight in value.items()
    )


def _is_seed(value: Any) -> bool:
    return is_whole(value) and 0 <= value < 2**32


def _is_early_stopping(value: Any) -> bool:
    if isinstance(value, bool | type):
        return isinstance(value, bool)
    has_hook = hook_of(value, 'on_epoch_end') is not None
    return has_hook and (hasattr(value, 'monitor') or not isinstance(value, BuiltInCallback))
