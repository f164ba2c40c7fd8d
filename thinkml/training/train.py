"""train: a training from its arguments to the trained model.

`open_training` checks the arguments, opens the checkpoints and prepares the run. `run_training`
trains to the end, writes the result into the model, and reports how the run ended.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

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
from thinkml.core.parallel.sharding import ONE_DEVICE, Layout, unreplicate
from thinkml.core.train.loop import empty_metrics
from thinkml.data.head_targets import by_head
from thinkml.errors import ConfigError, NotTrainedError, warn_user
from thinkml.model_record import record_of, record_to_change
from thinkml.monitoring import History, ProgressBar
from thinkml.tasks import Task, with_heads_of
from thinkml.training.callbacks.checkpoint import Checkpoint
from thinkml.training.callbacks.dispatch import (
    check_callbacks,
    make_callbacks,
    metrics_recorded_for,
)
from thinkml.training.config import TrainingConfig
from thinkml.training.custom_step import settings_for_step
from thinkml.training.function_digests import function_digests
from thinkml.training.memory_plan import reduce_memory
from thinkml.training.metric_monitor import MetricNames
from thinkml.training.optimizer_setup import needs_length
from thinkml.training.optimizer_state import optimizer_arrays
from thinkml.training.process_consistency import check_same_everywhere
from thinkml.training.program import MemorySavings
from thinkml.training.run import Run
from thinkml.training.run_checkpoints import Checkpoints
from thinkml.training.run_parts import make_parts
from thinkml.training.run_settings import describe_run, run_settings
from thinkml.training.run_warnings import warn_of_monitors
from thinkml.training.same_run import check_same_run, monitored_metrics
from thinkml.training.signals import Signals, catch_signals
from thinkml.training.train_loop import Training, fit, note_interrupt
from thinkml.training.training_data import Examples, TrainRequest
from thinkml.training.training_setup import TrainingSetup, make_setup
from thinkml.training.tuning import LearningRateRange, learning_rate_range
from thinkml.training.validation_sets import names_in_history
from thinkml.typing import Model

Resume = bool | Literal['continue']


@dataclasses.dataclass
class TrainResult:
    """The result of a run, which grows while the run is in progress.

    Attributes:
        history: what was recorded.
        was_stopped: True if the run was ended from outside (Ctrl-C, SIGTERM, ``max_time``), by
            ``run.stop`` or by a loss that is not finite, and not by early stopping.
        learning_rate_range: what ``learning_rate='auto'`` measured; None for another setting.
    """

    history: History
    was_stopped: bool = False
    learning_rate_range: LearningRateRange | None = None

    def metrics(self) -> dict[str, float]:
        """Returns the last epoch's metrics.

        Raises:
            NotTrainedError: before the first epoch has ended.
        """
        if not self.history.epochs:
            raise NotTrainedError('get_metrics: no epoch was trained yet. Call train(...) first.')
        return self.history.last()


class OpenTraining(NamedTuple):
    """A training before its first step.

    Attributes:
        setup: the data, the task and the objective.
        training: the run and what its loop needs.
        result: the result so far.
    """

    setup: TrainingSetup
    training: Training
    result: TrainResult


def train(
    model: Model,
    request: TrainRequest,
    config: TrainingConfig,
    layout: Layout = ONE_DEVICE,
    *,
    resume: Resume = False,
    progress: bool = False,
) -> TrainResult:
    """Trains the model in place, see `ModelTrainer.train`.

    Args:
        model: the user's object.
        request: the arguments that say what is to be learned.
        config: the settings.
        layout: the devices.
        resume: True continues from the newest checkpoint; ``'continue'`` does so also if that run
            was stopped.
        progress: True shows what is trained and a progress bar on stderr.
    """
    with open_training(model, request, config, layout, resume=resume) as opened:
        run_training(opened, progress=progress)
        return opened.result


@contextlib.contextmanager
def open_training(
    model: Model,
    request: TrainRequest,
    config: TrainingConfig,
    layout: Layout = ONE_DEVICE,
    *,
    resume: Resume = False,
) -> Iterator[OpenTraining]:
    """Checks the arguments of `train`, opens the checkpoints and prepares the run.

    The model and the checkpoints are locked until the block ends. Errors in the arguments are
    raised before anything is compiled.
    """
    config = _trial_config(config) if config.fast_dev_run else config
    config = settings_for_step(request.step, config)
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(training_lock(_unfrozen(model)))
        callbacks, checkpoint = make_callbacks(config)
        setup = make_setup(model, request, config, metrics_recorded_for(callbacks))
        names = _history_names(setup)
        check_callbacks(callbacks, names)
        checkpoints = _open_checkpoints(checkpoint, config, resume, names)
        if checkpoints is not None:
            at_end.callback(checkpoints.close)
        saved = None if checkpoints is None else checkpoints.saved
        resumed = None if saved is None else saved['settings']
        savings, note = _memory_savings(model, setup, config, layout, resumed)
        config, rates = _with_learning_rate(model, setup, config, layout, savings, resumed)
        settings = run_settings(config, setup, request, savings)
        functions = {}
        if checkpoints is not None:
            functions = function_digests(model, setup, request, config)
            _check_resumed(checkpoints, config, settings, callbacks, functions, names)
        parts = make_parts(model, setup, config, layout, savings)
        if layout.spans_processes:
            check_same_everywhere(settings, parts.functional)
        run = Run(
            user_model=_unfrozen(model),
            write=parts.functional.write,
            config=config,
            history=History(),
            state=parts.state,
            program=parts.program,
            metric_names=names,
            callbacks=callbacks,
            settings=settings,
            functions=functions,
            read=parts.functional.read,
            shown=arrays_in(_unfrozen(model)),
        )
        callback_states: dict[str, list[Any]] = {}
        if checkpoints is not None:
            checkpoints.check_space(run.state)
            callback_states = checkpoints.restore(run, empty_metrics(parts.program.metrics, layout))
        _begin(run, resume, note)
        training = Training(
            run=run, parts=parts, checkpoints=checkpoints, callback_states=callback_states
        )
        result = TrainResult(run.history, learning_rate_range=rates)
        yield OpenTraining(setup=setup, training=training, result=result)


def _unfrozen(model: Model) -> Model:
    """Returns the user's object, also if some of its parameters are frozen."""
    return model.model if isinstance(model, PartlyFrozen) else model


def _trial_config(config: TrainingConfig) -> TrainingConfig:
    """Returns the config of a trial run: one epoch, and no callbacks that leave traces."""
    callbacks = tuple(
        item
        for item in config.callbacks
        if not isinstance(item, str) and getattr(item, 'in_trial_runs', True)
    )
    return dataclasses.replace(
        config, epochs=1, callbacks=callbacks, early_stopping=False, validate_every='epoch'
    )


def _history_names(setup: TrainingSetup) -> MetricNames:
    """Returns the names of the values that an epoch records."""
    shared = ('loss', *setup.objective.metric_names)
    names = ('loss', *setup.objective.names_in_training)
    found = MetricNames((*names, *names_in_history(setup.val, shared)))
    found.heads = tuple(setup.objective.heads)
    return found


def _open_checkpoints(
    checkpoint: Checkpoint | None,
    config: TrainingConfig,
    resume: Resume,
    names: tuple[str, ...],
) -> Checkpoints | None:
    if checkpoint is not None:
        return Checkpoints(checkpoint, config.checkpoint_dir, bool(resume), names)
    if resume and not config.fast_dev_run:
        raise ConfigError(
            f"resume: got {resume!r} without checkpoints, expected callbacks=['checkpoint'] in the "
            'config.'
        )
    return None


def _check_resumed(
    checkpoints: Checkpoints,
    config: TrainingConfig,
    settings: dict[str, Any],
    callbacks: list[Any],
    functions: dict[str, str],
    names: tuple[str, ...],
) -> None:
    """Raises a `ConfigError` if the run that is resumed is another one."""
    if checkpoints.saved is None:
        return
    check_same_run(
        checkpoints.saved, settings, callbacks, functions,
        monitored_metrics(callbacks, checkpoints.monitor, names),
        fixed_length=needs_length(config), directory=str(checkpoints.directory),
    )  # fmt: skip


def _memory_savings(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    layout: Layout,
    resumed: dict[str, Any] | None,
) -> tuple[MemorySavings, str | None]:
    """Returns how memory is saved, with a note on it. A resumed run saves it as it did before."""
    if resumed is None:
        return reduce_memory(model, setup, config, layout)
    remat = resumed.get('remat', False) if config.remat is None else config.remat
    return MemorySavings(remat, resumed.get('micro_batches', 1), resumed.get('chunk', 0)), None


def _with_learning_rate(
    model: Model,
    setup: TrainingSetup,
    config: TrainingConfig,
    layout: Layout,
    savings: MemorySavings,
    resumed: dict[str, Any] | None,
) -> tuple[TrainingConfig, LearningRateRange | None]:
    """Returns the config with a number for ``'auto'``, and the measurement that it comes from.

    A resumed run keeps the rate that it was started with.
    """
    if config.learning_rate != 'auto':
        return config, None
    if resumed is not None:
        return dataclasses.replace(config, learning_rate=resumed['learning_rate']), None
    found = learning_rate_range(model, setup, config, layout, savings)
    return dataclasses.replace(config, learning_rate=found.suggestion), found


def _begin(run: Run, resume: Resume, note: str | None) -> None:
    """Marks a stopped run as continued, and notes in the history how memory is saved."""
    if resume == 'continue' and run.stop_reason is not None:
        run.stop_reason, run.continued_at = None, run.epoch
        run.history.interrupted = False
    if note is not None:
        warn_user(f'memory: {note}')
        run.history.events.append((run.epoch, note))


def run_training(opened: OpenTraining, *, progress: bool) -> None:
    """Trains to the end of the run, and leaves the model trained and in eval mode.

    Args:
        opened: from `open_training`.
        progress: True shows what is trained and a progress bar on stderr.
    """
    run, parts, checkpoints, _ = opened.training
    is_shown = (progress or 'progress' in run.config.callbacks) and is_first_process()
    bar = ProgressBar(parts.total_steps, is_shown, initial=run.step)
    if is_shown:
        print(describe_run(run, opened.setup, checkpoints), file=sys.stderr)
    # A SIGTERM that was caught is sent again at the end of this block.
    with (
        catch_signals(checkpoints is not None) as signals,
        _recorded(run, opened.setup),
        translate_connection_errors(),
    ):
        first_step = run.step
        try:
            fit(opened.training, bar, signals)
        except BaseException:
            if run.step > first_step:
                with signals.deferred():
                    _write_back(run, parts.program.layout)
            raise
        with signals.deferred():
            _write_back(run, parts.program.layout)
        _close(opened, signals, is_shown=is_shown, was_trained=run.step > first_step)


def _close(opened: OpenTraining, signals: Signals, *, is_shown: bool, was_trained: bool) -> None:
    """Reports how a run ended, and leaves a run of several processes after SIGTERM."""
    run, parts, checkpoints, _ = opened.training
    if signals.interrupted:
        note_interrupt(run)
    if checkpoints is not None and parts.program.layout.spans_processes:
        signals.terminated = any(all_gather_at_end(signals.terminated))
    warn_of_monitors(run, checkpoints, _missing_labels(opened.setup))
    opened.result.was_stopped = run.stop_reason is not None and not run.is_early_stopped
    if run.stop_reason is not None and (is_shown or signals.terminated):
        advice = '' if was_trained else " resume='continue' trains on."
        print(
            f'After epoch {run.epoch}: {run.stop_reason.rstrip(".")}.{advice}',
            file=sys.stderr,
            flush=True,
        )
    if signals.terminated and signals.ends_process and jax.process_count() > 1:
        shutdown()


@contextlib.contextmanager
def _recorded(run: Run, setup: TrainingSetup) -> Iterator[None]:
    """Writes the run into the model's record, and removes it if it fails before its first step."""
    record = record_to_change(run.user_model)
    before = vars(record) | {'runs': list(record.runs)}
    record.task = with_heads_of(setup.task, record.task)
    record.input_spec = setup.inputs
    if run.resumed and record.runs and run.history.continues(record.runs[-1]):
        record.runs.pop()  # the same run, which is resumed
    record.runs.append(run.history)
    data = ('data', 'validation')
    record.config = {name: value for name, value in run.settings.items() if name not in data}
    record.data_fingerprint = setup.fingerprint
    record.optimizer, record.continues = None, False
    try:
        yield
    except Exception:
        if not run.history.steps:
            vars(record).update(before)
        raise


def _missing_labels(setup: TrainingSetup) -> dict[str | None, list[Any]]:
    """Returns the classes that no row has; for multilabel, the labels that all or none have.

    They are by validation set, as `thinkml.history.split_name` names it; None is the training data.
    """
    missing: dict[str | None, list[Any]] = {}
    of_sets = {name or '': data for name, data in setup.val.items()}
    for name, data in ({None: setup.train} | of_sets).items():
        if isinstance(data, Examples):
            for _, task, y in by_head(setup.task, data.y):
                missing.setdefault(name, []).extend(_missing_in(y[data.rows], task))
    return missing


def _missing_in(y: np.ndarray, task: Task) -> list[Any]:
    if task.type.has_many_labels:
        y = y.reshape(-1, y.shape[-1])
        found = y.min(0) != y.max(0)
    else:
        found = np.isin(np.arange(len(task.classes or ())), y)
    return [label for label, is_in in zip(task.classes or (), found, strict=True) if not is_in]


def _write_back(run: Run, layout: Layout) -> None:
    """Writes the trained arrays into the user's object."""
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


def check_config(config: TrainingConfig | None) -> TrainingConfig:
    """Returns the config, or one with the defaults for None."""
    if not isinstance(config, TrainingConfig | None):
        raise ConfigError(
            f'config: got {type(config).__name__}, expected a TrainingConfig, for instance '
            'TrainingConfig(epochs=20).'
        )
    return config or TrainingConfig()


def check_switches(**switches: Any) -> None:
    """Raises a `ConfigError` for a switch that is neither True nor False."""
    for name, value in switches.items():
        if not isinstance(value, bool) and (name, value) != ('resume', 'continue'):
            where = ' checkpoint_dir, in the config, says where from.' if name == 'resume' else ''
            switch = "True, False or 'continue'" if name == 'resume' else 'True or False'
            raise ConfigError(f'{name}: got {value!r}, expected {switch}.{where}')
