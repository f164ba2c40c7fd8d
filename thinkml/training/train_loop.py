"""The training loop: chunks of steps, epochs, callbacks, checkpoints, and how a run ends."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from clu.metrics import Collection

from thinkml.core import Chunk, Feed, evaluate, train_chunks
from thinkml.core.objectives.streaming_metrics import compute
from thinkml.core.parallel.multiprocess import all_gather
from thinkml.core.xla.jit import holding_programs
from thinkml.errors import DivergedError, warn_user
from thinkml.monitoring import ProgressBar
from thinkml.training.callback_states import load_states
from thinkml.training.callbacks.dispatch import after_chunk, after_epoch, started
from thinkml.training.divergence import is_finite, last_finite_state, likely_causes
from thinkml.training.metric_monitor import default_monitor
from thinkml.training.run import EpochEnd, Program, Run, Times, copy_arrays
from thinkml.training.run_checkpoints import Checkpoints
from thinkml.training.run_parts import RunParts
from thinkml.training.run_warnings import warn_of_validation, warn_of_waiting, warn_of_weights
from thinkml.training.signals import Signals
from thinkml.training.validation_clock import ValidationClock
from thinkml.training.validation_sets import prefix_of


class Training(NamedTuple):
    """A run with everything that its loop needs.

    Attributes:
        run: the run.
        parts: the program, the data and the first state.
        checkpoints: where the run is saved; None for nowhere.
        callback_states: what callbacks remembered in the checkpoint that the run is resumed from.
    """

    run: Run
    parts: RunParts
    checkpoints: Checkpoints | None
    callback_states: dict[str, list[Any]]


def fit(training: Training, progress: ProgressBar, signals: Signals) -> None:
    """Trains ``run.state`` from ``run.position`` to the end of the run, and records it.

    Ctrl-C ends the run after the chunk in progress: the state and the history stay as far as they
    got, and the history is marked as interrupted. SIGTERM does the same if it is caught.

    Raises:
        KeyboardInterrupt: for a second Ctrl-C, the run marked in the same way.
    """
    run, parts, checkpoints, callback_states = training
    started_at, seconds_before = time.perf_counter(), run.history.seconds
    failed = True
    try:
        with holding_programs(), started(run.callbacks, run), progress:
            load_states(run.callbacks, callback_states)
            _keep_state(run)
            ended_by, diverged = _train_chunks(
                training, progress, signals, started_at, seconds_before
            )
            if diverged is not None:
                _go_back(run, diverged)
            else:
                _finish(training, progress, ended_by)
            if ended_by is not None:
                _note_end(run, ended_by, checkpoints)
        failed = False
    except KeyboardInterrupt:
        is_second = signals.interrupted
        note_interrupt(run)
        if is_second:
            raise
    finally:
        # A process that fails alone must not wait for the others, which do not know of it.
        if checkpoints is not None and not (failed and parts.program.layout.spans_processes):
            checkpoints.wait()
        run.history.seconds = seconds_before + time.perf_counter() - started_at


def _train_chunks(
    training: Training,
    progress: ProgressBar,
    signals: Signals,
    started_at: float,
    seconds_before: float,
) -> tuple[str | None, Chunk | None]:
    """Trains and records chunk after chunk.

    Returns:
        The reason if the run was ended from outside, and the chunk in which it diverged, if it did.
    """
    run, parts, checkpoints, _ = training
    clock = ValidationClock(run.config.period_seconds)
    for chunk in _chunks(run, parts.program, parts.feed, checkpoints):
        _record_chunk(run, chunk, clock, progress)
        warn_of_waiting(run, parts.feed)
        if run.kept is not None and not is_finite(chunk):
            return None, chunk
        after_chunk(run.callbacks, run)
        if chunk.ends_period:
            _end_epoch(run, parts, chunk.metrics, progress)
            clock.restart()
        run.history.seconds = seconds_before + time.perf_counter() - started_at
        if checkpoints is not None:
            checkpoints.save_if_due(run)
        ended_by = _agreed_end(run, _ended_by(run, signals, started_at), parts.program)
        if ended_by is not None or run.stop_reason is not None:
            return ended_by, None
        chunk.state = run.state
        _keep_state(run)
    return None, None


def _finish(training: Training, progress: ProgressBar, ended_by: str | None) -> None:
    """Saves the run, and then ends an epoch that is only partly trained.

    In this order, because a run that is resumed from the checkpoint continues the epoch. The
    checkpoint is marked afterwards if its epoch is the best.
    """
    run, parts, checkpoints, _ = training
    if checkpoints is not None:
        checkpoints.save(run)
    partial = run.position.metrics
    if partial is not None and ended_by not in _SIGNALS:
        _end_epoch(run, parts, partial, progress)
        if checkpoints is not None:
            checkpoints.mark_if_best(run)


def _chunks(
    run: Run, program: Program, feed: Feed, checkpoints: Checkpoints | None
) -> Iterator[Chunk]:
    config = run.config
    if run.stop_reason is not None or _is_complete(run):
        return iter(())
    if run.resumed:
        run.history.resumed_at.append(run.step)
    return train_chunks(
        program.train_step, program.metrics, run.state, feed,
        epochs=config.epochs, start=run.position,
        max_steps=None if config.max_steps is None else config.max_steps - run.step,
        period=config.period_steps,
        border_every=None if checkpoints is None else checkpoints.border_every,
        stop_nonfinite=config.on_nan != 'ignore', steps_per_dispatch=config.steps_per_dispatch,
        loop_length=program.loop_length, layout=program.layout,
    )  # fmt: skip


def _is_complete(run: Run) -> bool:
    """Returns True if all requested epochs or steps are trained."""
    max_steps = run.config.max_steps
    return run.position.epoch >= run.config.epochs or (
        max_steps is not None and run.step >= max_steps
    )


def _keep_state(run: Run) -> None:
    """Keeps a copy to return to if the next chunk diverges, in place of the earlier copy."""
    run.kept = None  # first, so that there are never two copies
    if run.config.on_nan != 'ignore':
        run.kept = copy_arrays(run.state)


def _record_chunk(run: Run, chunk: Chunk, clock: ValidationClock, progress: ProgressBar) -> None:
    losses = chunk.step_losses()  # waits until the chunk is computed
    chunk.ends_period |= clock.is_due()
    run.chunk, run.state, run.position = chunk, chunk.state, chunk.position
    if run.compiled:
        seconds = time.perf_counter() - chunk.started_at
        run.times = run.times.plus(
            Times(len(losses), seconds, chunk.input_seconds, chunk.num_examples)
        )
    run.compiled = True
    run.history.add_steps(losses)
    shown = {'loss': float(losses.mean())}
    progress.advance(len(losses), chunk.num_examples, run.epoch + 1, shown)


def _end_epoch(run: Run, parts: RunParts, measured: Collection, progress: ProgressBar) -> None:
    """Computes and records the metrics of an epoch, and calls the callbacks."""
    metrics = compute(measured) | _validate(run, parts)
    run.epoch += 1
    run.history.add_epoch(metrics)
    loss = default_monitor(run.metric_names)
    if parts.validations and metrics[loss] < run.best_val_loss:
        run.best_val_loss, run.history.best_epoch = metrics[loss], run.epoch
    progress.advance(0, 0, run.epoch, metrics)
    warn_of_weights(run)
    warn_of_validation(run)
    rate, now = run.learning_rate, time.time()
    after_epoch(run.callbacks, run)
    progress.advance(0, 0, run.epoch, run.history.last())
    run.epoch_ends.append(EpochEnd(rate, now, len(run.history)))


def _validate(run: Run, parts: RunParts) -> dict[str, float]:
    """Returns the metrics of each validation set."""
    program, found = parts.program, {}
    for name, validation in parts.validations.items():
        assert program.eval_step is not None, 'a validation has a step'
        metrics = evaluate(
            program.eval_step, program.eval_metrics, run.state.eval_params, run.state.model_state,
            validation.read(), batch_size=validation.batch_size, layout=program.layout,
        )  # fmt: skip
        found |= {f'{prefix_of(name)}{metric}': value for metric, value in metrics.items()}
    return found


def _go_back(run: Run, chunk: Chunk) -> None:
    """Returns the run to its last finite state, and reports what happened.

    Raises:
        DivergedError: if the config asks for it.
    """
    assert run.kept is not None
    run.state = chunk.state = run.kept  # frees the memory of the broken state
    run.state, gradient_was_bad = last_finite_state(chunk, run.kept)
    step = int(run.state.step) + 1
    losses = run.history.step_loss[:step]
    causes = likely_causes(losses, gradient_was_bad, run.config.precision)
    what = 'the gradient is not finite' if gradient_was_bad else f'the loss is {losses[-1]}'
    kept = f'after {step - 1} step{"s" if step > 2 else ""}' if step > 1 else 'that it began with'
    reason = (
        f'{what} at step {step} (epoch {run.epoch + 1}): training has diverged. It is back at '
        f'the parameters {kept}. {causes}'
    )
    run.stop(reason)
    if run.config.on_nan == 'raise':
        raise DivergedError(reason)
    warn_user(reason)


_SIGNALS = ('interrupted', 'terminated')


def _ended_by(run: Run, signals: Signals, started_at: float) -> str | None:
    """Returns the reason if the run is ended from outside; else None."""
    if signals.interrupted:
        return 'interrupted'
    if signals.terminated:
        return 'terminated'
    limit = run.config.max_seconds
    if limit is not None and not _is_complete(run) and time.perf_counter() - started_at >= limit:
        return 'max_time is over'
    return None


# If processes differ, the later entry counts.
_ENDS = (None, 'max_time is over', 'terminated', 'interrupted')


def _agreed_end(run: Run, ended_by: str | None, program: Program) -> str | None:
    """Returns why the run ends in all processes: a signal, the clock or a callback of one."""
    if not program.layout.spans_processes:
        return ended_by
    codes = all_gather(2 * _ENDS.index(ended_by) + (run.stop_reason is not None))
    stopped = [process for process, code in enumerate(codes) if code % 2]
    if stopped and run.stop_reason is None:
        run.stop(f'process {stopped[0]} ended the run')
    return _ENDS[max(code // 2 for code in codes)]


def note_interrupt(run: Run) -> None:
    """Marks a run as interrupted that a Ctrl-C reached when it was about to end anyway."""
    if not run.history.interrupted:
        _note_end(run, 'interrupted', None)


def _note_end(run: Run, ended_by: str, checkpoints: Checkpoints | None) -> None:
    run.history.interrupted = ended_by in _SIGNALS
    where = '' if checkpoints is None else f', {checkpoints.end_of(run)}'
    run.history.events.append((run.epoch, ended_by))
    run.stop_reason = f'{ended_by}{where}'
