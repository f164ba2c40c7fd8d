"""The check that a resumed run is the run that was saved."""

from collections.abc import Mapping
from typing import Any

from thinkml.errors import ConfigError, problems
from thinkml.training.callback_states import callbacks_with_state
from thinkml.training.function_digests import changed_functions
from thinkml.training.metric_monitor import MetricMonitor, MonitoringCallback

# Settings that may differ between a saved run and the run that resumes it.
MAY_CHANGE = (
    'callbacks',
    'checkpoint_dir',
    'device_data_bytes',
    'epochs',
    'max_steps',
    'max_time',
    'on_nan',
    'remat',
    'steps_per_dispatch',
)
_LENGTH = ('epochs', 'max_steps')


def check_same_run(
    saved: Mapping[str, Any],
    settings: dict[str, Any],
    callbacks: list[Any],
    functions: dict[str, str],
    monitors: dict[str, str],
    *,
    fixed_length: bool,
    directory: str,
) -> None:
    """Compares a run with the saved run that it resumes.

    Args:
        saved: the metadata of the checkpoint.
        settings: the settings of the run, see `Run`.
        callbacks: the callbacks of the run.
        functions: the digests of its functions, from `function_digests`.
        monitors: the metrics that it monitors, from `monitored_metrics`.
        fixed_length: True if the learning rate depends on the length of the run.
        directory: where the checkpoint is, for the error.

    Raises:
        ConfigError: if they are different runs. Names each difference.
    """
    found = _differences(saved['settings'], settings, fixed_length)
    if not found:  # since the settings name functions, and numbers that a step computes with
        found = changed_functions(saved.get('functions', {}), functions)
    found += _changed_monitors(saved.get('watched', {}), monitors)
    before, now = sorted(saved['callbacks']), sorted(callbacks_with_state(callbacks))
    if before != now:
        found.append(
            f'callbacks: those with a state are {_listed(before)} in the checkpoint, '
            f'{_listed(now)} now.'
        )
    if found:
        headline = (
            f'resume: the run in {directory} is another one. Train with what it was begun '
            'with, pass the directory of the run you mean as checkpoint_dir, or begin a new '
            'run with resume=False:'
        )
        raise ConfigError(problems(headline, found))


def monitored_metrics(
    callbacks: list[Any], best: MetricMonitor, metric_names: tuple[str, ...]
) -> dict[str, str]:
    """Returns the metric and the mode that each callback monitors, by the callback's name.

    Args:
        callbacks: the callbacks of the run.
        best: the monitor that tells the best checkpoint.
        metric_names: the names that an epoch records.
    """
    monitors = {
        name: callback.monitor_among(metric_names)
        for name, callback in callbacks_with_state(callbacks).items()
        if isinstance(callback, MonitoringCallback)
    }
    monitors['Checkpoint'] = best
    return {name: f'{metric.name} ({metric.mode})' for name, metric in monitors.items()}


def _differences(saved: dict[str, Any], now: dict[str, Any], fixed_length: bool) -> list[str]:
    """Returns a sentence for each setting that differs and must not."""
    free = [name for name in MAY_CHANGE if not (fixed_length and name in _LENGTH)]
    saved, now = _flat(saved), _flat(now)
    different = [
        name
        for name in saved | now
        if name not in free and (name in saved, saved.get(name)) != (name in now, now.get(name))
    ]
    return [_difference(name, saved, now) for name in different]


def _difference(name: str, saved: dict[str, Any], now: dict[str, Any]) -> str:
    why = ''
    if name in _LENGTH:
        why = f', which lr_schedule={now["lr_schedule"]!r} depends on'
    elif name.endswith('.sha256'):
        why = ': other values, another order or other weights'
    return f'{name}: {saved.get(name)!r} in the checkpoint, {now.get(name)!r} now{why}.'


def _changed_monitors(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    """Returns a sentence for each callback that monitors another metric than before."""
    return [
        f'callbacks: {name} watched {saved[name]} in the checkpoint, {now[name]} now: the best '
        'value so far belongs to another metric.'
        for name in saved.keys() & now.keys()
        if saved[name] != now[name]
    ]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns each value by its name, values of a dict by both names."""
    return {
        f'{name}.{part}' if part else name: value
        for name, values in settings.items()
        for part, value in (values.items() if isinstance(values, dict) else [('', values)])
    }


def _listed(names: list[str]) -> str:
    return ', '.join(names) or 'none'
