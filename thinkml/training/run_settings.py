"""Settings of a run as plain values, and lines that describe the run."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from thinkml.core.model.frozen_parameters import all_params
from thinkml.core.model.parameter_paths import first_matches
from thinkml.core.objectives.heads import part_of
from thinkml.core.train.custom_step import has_init, step_name
from thinkml.data.targets import num_ignored
from thinkml.data.task_inference import other_reading
from thinkml.tasks import Task
from thinkml.training.config import TrainingConfig
from thinkml.training.metric_monitor import default_monitor
from thinkml.training.objective import TrainingObjective
from thinkml.training.parameter_groups import FROZEN, ParameterGroup, parameter_groups
from thinkml.training.program import MemorySavings
from thinkml.training.run import Run
from thinkml.training.run_checkpoints import Checkpoints
from thinkml.training.training_data import Examples, TrainRequest
from thinkml.training.training_setup import TrainingSetup
from thinkml.typing import PyTree


def run_settings(
    config: TrainingConfig, setup: TrainingSetup, request: TrainRequest, savings: MemorySavings
) -> dict[str, Any]:
    """Returns what a run is made of; a run that is resumed must agree with it."""
    objective = setup.objective
    settings = config.to_dict()
    del settings['remat']
    if request.step is not None:
        settings['step'] = step_name(request.step)
    # Written only when not the default, so that runs saved by older versions still resume.
    if settings['validate_every'] == 'epoch':
        del settings['validate_every']
    if not config.aux_losses:
        del settings['aux_losses']
    saved = {name: value for name, value in savings._asdict().items() if value > 1 or value is True}
    return (
        settings
        | saved
        | {
            'loss_fn': objective.loss_name,
            'metrics': [*objective.metric_names, *objective.training_metrics],
            'class_weights': None if request.class_weights is None else str(request.class_weights),
            'augmentation': None if objective.augment is None else _described(request.augmentation),
            'task': str(setup.task),
            'data': setup.fingerprint,
            'validation': setup.val_fingerprint,
        }
    )


def _described(augmentation: Any) -> str:
    if isinstance(augmentation, list | tuple):
        return f'[{", ".join(map(_described, augmentation))}]'
    # Without addresses, which differ between processes.
    return getattr(augmentation, '__qualname__', None) or re.sub(
        r' at 0x\w+', '', repr(augmentation)
    )


def describe_run(run: Run, setup: TrainingSetup, checkpoints: Checkpoints | None) -> str:
    """Returns a line on what is trained, with what was inferred, and one for each pattern."""
    config = run.config
    params = all_params(run.state.params, run.state.model_state)
    parts = [
        _task_of(setup),
        _rows_of(setup, run.metric_names),
        f'{_num_parameters(params):,} parameters',
        _learned_by(setup, config),
        jax.devices()[0].platform,
    ]
    if run.resumed and checkpoints is not None:
        parts.append(f'resumed after {run.step:,} steps from {checkpoints.directory}')
    lines = ['; '.join(parts)]
    if isinstance(config.optimizer, Mapping):
        lines += _groups_of(config, params)
    return '\n'.join(lines)


def _groups_of(config: TrainingConfig, params: PyTree) -> Iterator[str]:
    """Yields a line for each pattern of the optimizer."""
    groups = parameter_groups(config.optimizer)
    numbers = jax.tree.leaves(first_matches(list(groups), params))
    for number, (pattern, group) in enumerate(groups.items()):
        found = [p for p, n in zip(jax.tree.leaves(params), numbers, strict=True) if n == number]
        yield f'  {pattern}: {_num_parameters(found):,} parameters, {_with_numbers(group, config)}'


def _num_parameters(params: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _with_numbers(group: ParameterGroup, config: TrainingConfig) -> str:
    """Returns the name of an optimizer with the numbers that it is given."""
    if group.is_frozen:
        return FROZEN
    name = group.optimizer if isinstance(group.optimizer, str) else 'a custom optimizer'
    rate = config.learning_rate if group.learning_rate is None else group.learning_rate
    shown = f'{name} {rate:g}' if group.takes_rate and isinstance(rate, int | float) else name
    decay = group.weight_decay
    return shown if decay is None else f'{shown}, weight decay {decay:g}'


def _task_of(setup: TrainingSetup) -> str:
    """Returns the task, the number of ignored labels, and another reading of the targets."""
    y = setup.train.y if isinstance(setup.train, Examples) else None
    if isinstance(setup.task, Task):
        return _in_words(setup.task, setup.objective, y)
    heads = setup.objective.heads  # none beside an objective or a step, which see all heads
    return ', '.join(
        f'{name} ({_in_words(head, heads.get(name, setup.objective), part_of(y, name))})'
        for name, head in setup.task.heads
    )


def _in_words(task: Task, objective: TrainingObjective, y: np.ndarray | None) -> str:
    other = other_reading(task) if objective.is_default_loss else None
    count = 0 if y is None else num_ignored(y, task)
    ignored = f', {count:,} of {y.size:,} labels ignored' if y is not None and count else ''
    return f'{task}{ignored}' if other is None else f'{task}{ignored}; {other}'


def _rows_of(setup: TrainingSetup, names: tuple[str, ...]) -> str:
    train, sets = setup.train, setup.val
    rows = f'{len(train.rows):,} rows' if isinstance(train, Examples) else 'batches'
    shown = f'{rows} of {setup.inputs}'
    sizes = [
        f'{len(val.rows):,}' if isinstance(val, Examples) else 'batches' for val in sets.values()
    ]
    if None in sets or not sets:
        return shown + ''.join(f', {size} for validation' for size in sizes if size != 'batches')
    of_sets = ', '.join(f'{name} ({size})' for name, size in zip(sets, sizes, strict=True))
    return f'{shown}, for validation {of_sets}; {default_monitor(names)} is monitored by default'


def _learned_by(setup: TrainingSetup, config: TrainingConfig) -> str:
    """Returns the loss or the step, and the optimizer."""
    step = setup.objective.step
    if step is None:
        return f'{setup.objective.loss_name}, {_optimizer_of(config)}'
    optimizer = 'its own optimizers' if has_init(step.function) else _optimizer_of(config)
    return f'step {step_name(step.function)}, {optimizer}'


def _optimizer_of(config: TrainingConfig) -> str:
    if isinstance(config.optimizer, Mapping):
        return 'optimizers by pattern'
    if not isinstance(config.optimizer, str):
        return 'a custom optimizer'
    rate = config.learning_rate
    return f'{config.optimizer} {rate:g}' if isinstance(rate, int | float) else config.optimizer
