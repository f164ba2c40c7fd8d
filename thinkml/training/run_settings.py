"""Settings of a run as plain values, and a line that describes the run."""

import re
from typing import Any

import jax
import numpy as np

from thinkml.data.task_inference import other_reading
from thinkml.tasks import Task
from thinkml.training.config import TrainingConfig
from thinkml.training.metric_monitor import default_monitor
from thinkml.training.objective import TrainingObjective
from thinkml.training.program import MemorySavings
from thinkml.training.run import Run
from thinkml.training.run_checkpoints import Checkpoints
from thinkml.training.training_data import Examples, TrainRequest
from thinkml.training.training_setup import TrainingSetup


def run_settings(
    config: TrainingConfig, setup: TrainingSetup, request: TrainRequest, savings: MemorySavings
) -> dict[str, Any]:
    """Returns what a run is made of; a run that is resumed must agree with it."""
    objective = setup.objective
    settings = config.to_dict()
    del settings['remat']
    if settings['validate_every'] == 'epoch':
        del settings['validate_every']
    # Written only when not the default, so that runs saved by older versions still resume.
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
    """Returns one line on what is about to be trained, with what was inferred."""
    config = run.config
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(run.state.params))
    parts = [
        _task_of(setup),
        _rows_of(setup, run.metric_names),
        f'{parameters:,} parameters',
        f'{setup.objective.loss_name}, {_optimizer_of(config)}',
        jax.devices()[0].platform,
    ]
    if run.resumed and checkpoints is not None:
        parts.append(f'resumed after {run.step:,} steps from {checkpoints.directory}')
    return '; '.join(parts)


def _task_of(setup: TrainingSetup) -> str:
    """Returns the task, and how to have the targets read in another way if there is one."""
    if isinstance(setup.task, Task):
        return _with_other_reading(setup.task, setup.objective)
    heads = setup.objective.heads
    return ', '.join(
        f'{name} ({_with_other_reading(head, heads[name])})' for name, head in setup.task.heads
    )


def _with_other_reading(task: Task, objective: TrainingObjective) -> str:
    other = other_reading(task) if objective.is_default_loss else None
    return str(task) if other is None else f'{task}; {other}'


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


def _optimizer_of(config: TrainingConfig) -> str:
    if not isinstance(config.optimizer, str):
        return 'a custom optimizer'
    rate = config.learning_rate
    return f'{config.optimizer} {rate:g}' if isinstance(rate, int | float) else config.optimizer
