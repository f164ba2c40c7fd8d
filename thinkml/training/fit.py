"""fit: the one ordered loop under everything that trains."""

import math
import time
import warnings
from typing import Any, NamedTuple

import jax
from clu.metrics import Collection

from thinkml.core import (
    Chunk,
    DeviceData,
    evaluate,
    inference_batch_size,
    train_chunks,
)
from thinkml.core.step import EvalStep, TrainStep
from thinkml.errors import ThinkMLWarning
from thinkml.monitoring import ProgressBar
from thinkml.training.callbacks import after_epoch, started
from thinkml.training.interrupt import noted_interrupt
from thinkml.training.run import Run


class Program(NamedTuple):
    """The functions a run is compiled from."""

    train_step: TrainStep
    eval_step: EvalStep
    metrics: type[Collection]


def fit(
    run: Run,
    program: Program,
    data: DeviceData,
    num_rows: int,
    validation: DeviceData | None,
    shuffle_key: jax.Array,
    callbacks: list[Any],
    progress: ProgressBar,
) -> None:
    """Trains ``run.state`` to the end of the run, recording on the way.

    Ctrl-C ends the run after the chunk in progress: the state and the history stay as far as they
    got, and the history is marked interrupted.
    """
    start_time = time.perf_counter()
    chunks = train_chunks(
        program.train_step, program.metrics, run.state, data,
        num_rows=num_rows, batch_size=run.config.batch_size, epochs=run.config.epochs,
        shuffle_key=shuffle_key, steps_per_dispatch=run.config.steps_per_dispatch,
    )  # fmt: skip
    try:
        with noted_interrupt() as interrupted, started(callbacks, run), progress:
            for chunk in chunks if run.stop_reason is None else ():
                _record_chunk(run, chunk, progress, num_rows)
                if chunk.ends_epoch:
                    metrics = chunk.epoch_metrics() | _validate(run, program, validation)
                    _record_epoch(run, metrics)
                    progress.advance(0, 0, run.epoch, metrics)
                    after_epoch(callbacks, run)
                if interrupted():
                    raise KeyboardInterrupt
                if chunk.ends_epoch and run.stop_reason is not None:
                    break
    except KeyboardInterrupt:
        run.history.interrupted = True
        run.history.events.append((run.epoch, 'interrupted'))
    finally:
        run.history.seconds = time.perf_counter() - start_time


def _record_chunk(run: Run, chunk: Chunk, progress: ProgressBar, num_rows: int) -> None:
    run.state = chunk.state
    losses = chunk.step_losses()
    run.history.add_steps(losses)
    batch_size = min(run.config.batch_size, num_rows)
    examples = min(num_rows, chunk.last * batch_size) - chunk.first * batch_size
    progress.advance(len(losses), examples, chunk.epoch + 1, {'loss': float(losses.mean())})


def _record_epoch(run: Run, metrics: dict[str, float]) -> None:
    run.epoch += 1
    run.history.add_epoch(metrics)
    if metrics.get('val_loss', math.inf) < run.best_val_loss:
        run.best_val_loss, run.history.best_epoch = metrics['val_loss'], run.epoch
    if not math.isfinite(metrics['loss']):
        reason = (
            f'the loss is {metrics["loss"]}: training has diverged. Lower the learning_rate, or '
            'scale the inputs and targets'
        )
        warnings.warn(f'{reason}.', ThinkMLWarning, stacklevel=4)
        run.stop(reason)


def _validate(run: Run, program: Program, validation: DeviceData | None) -> dict[str, float]:
    if validation is None:
        return {}
    metrics = evaluate(
        program.eval_step, program.metrics, run.state.params, run.state.model_state, validation,
        batch_size=min(inference_batch_size(validation.x), len(validation.rows)),
    )  # fmt: skip
    return {f'val_{name}': value for name, value in metrics.items()}
