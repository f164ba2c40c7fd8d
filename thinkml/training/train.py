"""train: from what the user asked to a trained model, with everything checked before."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np

from thinkml.core import TrainState
from thinkml.core.model.adapters import arrays_in
from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.core.model.training_lock import training_lock
from thinkml.core.parallel.multiprocess import (
    all_gather_at_end,
    is_first_process,
    shutdown,
    translate_connection_errors,
)
from thinkml.core.parallel.sharding import Layout, unreplicate
from thinkml.core.train.loop import empty_metrics
from thinkml.errors import ConfigError, NotTrainedError, warn_user
from thinkml.model_record import record_of, record_to_change
from thinkml.monitoring import History, ProgressBar
from thinkml.training.callbacks.base import OWN, check_callbacks, make_callbacks, recorded_for
from thinkml.training.callbacks.checkpoint import Checkpoint
from thinkml.training.config import TrainingConfig
from thinkml.training.function_digests import function_digests
from thinkml.training.memory_plan import reduce_memory
from thinkml.training.optimizer_state import optimizer_arrays
from thinkml.training.process_consistency import check_same_everywhere
from thinkml.training.program import MemorySavings, PreparedRun, needs_length, prepare
from thinkml.training.run import Run
from thinkml.training.run_checkpoints import Checkpoints
from thinkml.training.run_warnings import warn_of_monitors
from thinkml.training.signals import noted_signals
from thinkml.training.train_loop import fit, note_interrupt
from thinkml.training.training_setup import Examples, TrainingSetup, TrainRequest, make_setup
from thinkml.training.tuning import LearningRateRange, learning_rate_range

Resume = bool | Literal['continue']


@dataclasses.dataclass
class Latest:
    """What a trainer knows of its latest run.

    Attributes:
        history: what was recorded; None before the first run.
        was_stopped: whether it was ended from outside (Ctrl-C, SIGTERM, ``max_time``), by
            ``run.stop`` or by a loss that is not finite, and not by early stopping.
        learning_rate_range: what ``learning_rate='auto'`` measured; None before.
    """

    history: History | None = None
    was_stopped: bool = False
    learning_rate_range: LearningRateRange | None = None

    def metrics(self) -> dict[str, float]:
        """The last epoch's metrics.

        Raises:
            NotTrainedError: before the first epoch has ended.
        """
        if self.history is None or not self.history.epochs:
            raise NotTrainedError('get_metrics: no epoch was trained yet. Call train(...) first.')
        return self.history.last()


def train(
    latest: Latest,
    model: Any,
    asked: TrainRequest,
    config: TrainingConfig,
    layout: Layout | None = None,
    *,
    resume: Resume,
    progress: bool,
) -> History:
    """Trains the model in place, see `ModelTrainer.train`.

    Args:
        latest: told of the run as soon as it begins.
        model: the user's object.
        asked: what is to be learned.
        config: the settings.
        layout: the devices, where there are several.
        resume: continue from the newest checkpoint; ``'continue'`` also where the run was stopped.
        progress: show what is trained and a progress bar on stderr.
    """
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(training_lock(_whole(model)))
        return _train(
            at_end, latest, model, asked, config, layout, resume=resume, progress=progress
        )


def _train(
    at_end: contextlib.ExitStack,
    latest: Latest,
    model: Any,
    asked: TrainRequest,
    config: TrainingConfig,
    layout: Layout | None,
    *,
    resume: Resume,
    progress: bool,
) -> History:
    config = _without_traces(config) if config.fast_dev_run else config
    callbacks, checkpoint = make_callbacks(
        config.callbacks, config.early_stopping, config.lr_schedule
    )
    problem = make_setup(model, asked, config, recorded_for(callbacks))
    metric_names = _history_names(problem)
    check_callbacks(callbacks, metric_names)
    checkpoints = _open_checkpoints(checkpoint, config, resume, metric_names)
    if checkpoints is not None:
        at_end.callback(checkpoints.close)
    resumed = None if checkpoints is None else checkpoints.resumed_settings
    saving, saved = _saving(model, problem, config, layout, resumed)
    if config.learning_rate == 'auto':
        if resumed is None:
            found = learning_rate_range(model, problem, config, layout, saving)
            latest.learning_rate_range, rate = found, found.suggestion
        else:
            rate = resumed['learning_rate']
        config = dataclasses.replace(config, learning_rate=rate)
    settings = _settings(config, problem, asked, saving)
    if checkpoints is not None:
        functions = function_digests(model, problem, asked, config)
        checkpoints.check_same_run(
            settings, callbacks, functions, fixed_length=needs_length(config)
        )
    prepared = prepare(model, problem, config, layout, saving)
    run = Run(
        _whole(model), prepared.functional.write, config, History(), prepared.state, metric_names,
        callbacks, settings, read=prepared.functional.read,
        shown=arrays_in(_whole(model)),
    )  # fmt: skip
    if layout is not None and layout.spans_processes:
        check_same_everywhere(settings, prepared.functional)
    states = _restored(run, checkpoints, prepared)
    if resume == 'continue' and run.stop_reason is not None:
        run.stop_reason, run.continued_at = None, run.epoch
        run.history.interrupted = False
    if saved is not None:
        warn_user(f'memory: {saved}')
        run.history.events.append((run.epoch, saved))
    latest.history = run.history

    shown = (progress or 'progress' in config.callbacks) and is_first_process()
    bar = ProgressBar(prepared.total_steps, shown, initial=run.step)
    if shown:
        print(_describe(run, problem, checkpoints), file=sys.stderr)
    # A SIGTERM that was noted is sent on at the end of this block.
    with (
        noted_signals(checkpoints is not None) as signals,
        _recorded(run, problem),
        translate_connection_errors(),
    ):
        first_step = run.step
        try:
            fit(
                run, prepared.program, prepared.feed, prepared.validation, bar, checkpoints,
                states, signals,
            )  # fmt: skip
        except BaseException:
            if run.step > first_step:
                with signals.held():
                    _write_back(run, layout)
            raise
        with signals.held():
            _write_back(run, layout)
        if signals.interrupted:
            note_interrupt(run)
        if checkpoints is not None and layout is not None and layout.spans_processes:
            signals.terminated = any(all_gather_at_end(signals.terminated))
        warn_of_monitors(run, checkpoints, _missing_labels(problem))
        latest.was_stopped = run.stop_reason is not None and not run.is_early_stopped
        if run.stop_reason is not None and (shown or signals.terminated):
            print(
                f'After epoch {run.epoch}: {run.stop_reason.rstrip(".")}.'
                + (" resume='continue' trains on." if run.step == first_step else ''),
                file=sys.stderr,
                flush=True,
            )
        if signals.terminated and signals.ends_process and jax.process_count() > 1:
            shutdown()
    return run.history


def _whole(model: Any) -> Any:
    """The user's object."""
    return model.model if isinstance(model, PartlyFrozen) else model


def check_config(config: TrainingConfig | None) -> TrainingConfig:
    """Returns the settings, the defaults for None."""
    if not isinstance(config, TrainingConfig | None):
        raise ConfigError(
            f'config: got {type(config).__name__}, expected a TrainingConfig, for instance '
            'TrainingConfig(epochs=20).'
        )
    return config or TrainingConfig()


def check_switches(**switches: Any) -> None:
    """Raises a `ConfigError` for one that is neither True nor False."""
    for name, value in switches.items():
        if not isinstance(value, bool) and (name, value) != ('resume', 'continue'):
            where = ' checkpoint_dir, in the config, says where from.' if name == 'resume' else ''
            switch = "True, False or 'continue'" if name == 'resume' else 'True or False'
            raise ConfigError(f'{name}: got {value!r}, expected {switch}.{where}')


def _without_traces(config: TrainingConfig) -> TrainingConfig:
    """The config of a trial run: one epoch, and of the callbacks only the user's own."""
    own = tuple(c for c in config.callbacks if not isinstance(c, str) and not isinstance(c, OWN))
    return dataclasses.replace(config, epochs=1, callbacks=own, early_stopping=False)


def _history_names(problem: TrainingSetup) -> tuple[str, ...]:
    shared = ('loss', *problem.objective.metric_names)
    names = (*shared, *problem.objective.training_metrics)
    return names if problem.val is None else (*names, *(f'val_{name}' for name in shared))


def _saving(
    model: Any,
    problem: TrainingSetup,
    config: TrainingConfig,
    layout: Layout | None,
    resumed: dict[str, Any] | None,
) -> tuple[MemorySavings, str | None]:
    """What is done to take less memory; by a run that goes on what it did before."""
    if resumed is None:
        return reduce_memory(model, problem, config, layout)
    remat = resumed.get('remat', False) if config.remat is None else config.remat
    return MemorySavings(remat, resumed.get('micro_batches', 1)), None


def _settings(
    config: TrainingConfig, problem: TrainingSetup, asked: TrainRequest, saving: MemorySavings
) -> dict[str, Any]:
    """What the run is made of, as plain values: what a run that goes on must have in common."""
    objective = problem.objective
    settings = config.to_dict()
    del settings['remat']
    # Named where there are some alone, so that runs from before there were any go on.
    saved = {name: value for name, value in saving._asdict().items() if value > 1 or value is True}
    return (
        settings
        | saved
        | {
            'loss_fn': objective.loss_name,
            'metrics': [*objective.metric_names, *objective.training_metrics],
            'class_weights': None if asked.class_weights is None else str(asked.class_weights),
            'augmentation': None if objective.augment is None else _described(asked.augmentation),
            'task': str(problem.task),
            'data': problem.fingerprint,
            'validation': problem.val_fingerprint,
        }
    )


def _described(augmentation: Any) -> str:
    if isinstance(augmentation, list | tuple):
        return f'[{", ".join(map(_described, augmentation))}]'
    # Without addresses, which are others in every process.
    return getattr(augmentation, '__qualname__', None) or re.sub(
        r' at 0x\w+', '', repr(augmentation)
    )


def _open_checkpoints(
    checkpoint: Checkpoint | None,
    config: TrainingConfig,
    resume: Resume,
    metric_names: tuple[str, ...],
) -> Checkpoints | None:
    if checkpoint is not None:
        return Checkpoints(checkpoint, config.checkpoint_dir, bool(resume), metric_names)
    if resume and not config.fast_dev_run:
        raise ConfigError(
            f"resume: got {resume!r} without checkpoints, expected callbacks=['checkpoint'] in the "
            'config.'
        )
    return None


def _restored(
    run: Run, checkpoints: Checkpoints | None, prepared: PreparedRun
) -> dict[str, list[Any]]:
    if checkpoints is None:
        return {}
    checkpoints.check_space(run.state)
    program = prepared.program
    return checkpoints.restore(run, empty_metrics(program.metrics, program.layout))


@contextlib.contextmanager
def _recorded(run: Run, problem: TrainingSetup) -> Iterator[None]:
    """Notes the run in the model's record, and forgets it if it fails before its first step."""
    record = record_to_change(run.user_model)
    before = vars(record) | {'runs': list(record.runs)}
    record.task = problem.task
    record.input_spec = problem.inputs
    if run.resumed and record.runs and run.history.continues(record.runs[-1]):
        record.runs.pop()  # the same run, which now goes on
    record.runs.append(run.history)
    data = ('data', 'validation')
    record.config = {name: value for name, value in run.settings.items() if name not in data}
    record.data_fingerprint = problem.fingerprint
    record.optimizer, record.continues = None, False
    try:
        yield
    except Exception:
        if not run.history.steps:
            vars(record).update(before)
        raise


def _describe(run: Run, problem: TrainingSetup, checkpoints: Checkpoints | None) -> str:
    """One line on what is about to happen, with what was inferred."""
    config = run.config
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(run.state.params))
    parts = [
        str(problem.task),
        _rows_of(problem),
        f'{parameters:,} parameters',
        f'{problem.objective.loss_name}, {_optimizer_of(config)}',
        jax.devices()[0].platform,
    ]
    if run.resumed and checkpoints is not None:
        parts.append(f'resumed after {run.step:,} steps from {checkpoints.directory}')
    return '; '.join(parts)


def _rows_of(problem: TrainingSetup) -> str:
    train, val = problem.train, problem.val
    rows = f'{len(train.rows):,} rows' if isinstance(train, Examples) else 'batches'
    shown = f'{rows} of {problem.inputs}'
    return shown + (f', {len(val.rows):,} for validation' if isinstance(val, Examples) else '')


def _optimizer_of(config: TrainingConfig) -> str:
    if not isinstance(config.optimizer, str):
        return 'an optimizer of your own'
    rate = config.learning_rate
    return f'{config.optimizer} {rate:g}' if isinstance(rate, int | float) else config.optimizer


def _missing_labels(problem: TrainingSetup) -> dict[str, list[Any]]:
    """The classes that no row has; of several labels in a row, those that all or none have."""
    classes = problem.task.classes or ()
    missing: dict[str, list[Any]] = {'train': [], 'val': []}
    for name, data in (('train', problem.train), ('val', problem.val)):
        if classes and isinstance(data, Examples):
            y = data.y[data.rows]
            several = y.ndim == 2
            found = y.min(0) != y.max(0) if several else np.isin(np.arange(len(classes)), y)
            missing[name] = [
                label for label, is_in in zip(classes, found, strict=True) if not is_in
            ]
    return missing


def _write_back(run: Run, layout: Layout | None) -> None:
    """Puts the trained arrays into the user's object."""
    # A dispatch that failed, or a second Ctrl-C, took the donated arrays with it.
    states = [state for state in (run.state, run.kept) if state is not None and _is_usable(state)]
    if run.best_arrays is None and not states:
        warn_user(
            'model: what was learned is lost with the step that failed; the model is as it was '
            "when last written. callbacks=['checkpoint'] keeps every epoch on disk."
        )
        return
    if run.best_arrays is None and states[0] is not run.state:
        warn_user(
            f'model: a step failed; the model has what was learned in the {int(states[0].step):,} '
            'steps before the dispatch it was in.'
        )
    if run.is_changed:
        warn_user(
            'model: its arrays were changed during the training, not through run.model: these '
            'changes are lost, since what was trained takes their place.'
        )
    run.write(*(run.best_arrays or (states[0].eval_params, states[0].model_state)))
    if states:
        learned = unreplicate(layout, optimizer_arrays(states[0]))
        record_of(run.user_model).optimizer = learned


def _is_usable(state: TrainState) -> bool:
    try:
        jax.block_until_ready(state)
    except RuntimeError:  # donated, or the outcome of a step that failed
        return False
    return True
