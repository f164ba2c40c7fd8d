"""ModelTrainer: training with everything checked before and recorded after."""

import contextlib
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from thinkml.core import (
    functionalize,
    init_state,
    make_eval_step,
    make_metrics,
    make_optimizer,
    make_train_step,
)
from thinkml.core.losses import LossFn
from thinkml.data import fingerprint, place, select
from thinkml.errors import ConfigError, NotTrainedError, ThinkMLWarning
from thinkml.monitoring import History, ProgressBar
from thinkml.record import record_of
from thinkml.training.callbacks import make_callbacks
from thinkml.training.config import TrainingConfig
from thinkml.training.fit import Program, fit
from thinkml.training.problem import Problem, make_problem
from thinkml.training.run import Run


class ModelTrainer:
    """Trains models on arrays.

    Args:
        config: the settings; None for the defaults of `TrainingConfig`.

    Raises:
        ConfigError: if ``config`` is something else.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.training import ModelTrainer, TrainingConfig
        >>> X = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> trainer = ModelTrainer(TrainingConfig(epochs=100, learning_rate=0.1))
        >>> history = trainer.train(model, X, 3 * X[:, 0], progress=False)
        >>> round(float(model.kernel[0, 0]), 2)
        3.0
    """

    def __init__(self, config: TrainingConfig | None = None):
        if not isinstance(config, TrainingConfig | None):
            raise ConfigError(
                f'config: got {type(config).__name__}, expected a TrainingConfig, for instance '
                'TrainingConfig(epochs=20).'
            )
        self.config = config or TrainingConfig()
        self._history: History | None = None

    def train(
        self,
        model: Any,
        X_train: Any,
        y_train: Any,
        X_val: Any = None,
        y_val: Any = None,
        *,
        loss_fn: str | LossFn | None = None,
        metrics: Sequence[str] | None = None,
        progress: bool = True,
    ) -> History:
        """Trains the model in place and leaves it in eval mode.

        The task and the classes are inferred from ``y_train`` and the model's outputs (see
        `thinkml.data.infer_task`), shown, and kept in the model's record. Everything is checked
        before anything is compiled; if that fails, the model is untouched. Ctrl-C ends the
        training early and keeps what was learned.

        Args:
            model: a `flax.nnx.Module`, or what `thinkml.models.from_linen` or
                `thinkml.models.from_functions` returned.
            X_train: inputs, one row per example.
            y_train: labels (integers, text, bool, one-hot or multilabel rows) or numbers.
            X_val: validation inputs. None holds out ``config.validation_split`` of the rows.
            y_val: validation targets.
            loss_fn: a name (``'cross_entropy'``, ``'binary_cross_entropy'``, ``'mse'``, ``'mae'``,
                ``'huber'``) or a function ``(logits, labels)`` that returns a scalar or a value
                per example. None: cross-entropy for classes, mean squared error for numbers.
            metrics: names to record besides the loss: ``'accuracy'`` (always recorded for
                classification), ``'mse'``, ``'mae'``.
            progress: show what is trained and a progress bar on stderr.

        Warns:
            ThinkMLWarning: if training diverges (the loss is NaN or infinite; it then stops), if
                the classes of a trained model change.

        Returns:
            the `thinkml.monitoring.History`: ``{'loss': [...], 'val_loss': [...], ...}`` by epoch,
            and the loss of each step.

        Raises:
            DataError: for arrays that can't be trained on, naming the argument and the fix.
            ConfigError: for a loss or metric that is unknown or does not fit.
            ModelTypeError: for an object that is not a model.
        """
        config = self.config
        problem = make_problem(
            model, X_train, y_train, X_val, y_val, loss_fn=loss_fn, metrics=metrics,
            validation_split=config.validation_split, seed=config.seed,
        )  # fmt: skip
        metric_names = _history_names(problem)
        callbacks = make_callbacks(config.callbacks, config.early_stopping, metric_names)
        init_key, step_key, shuffle_key = jax.random.split(jax.random.key(config.seed), 3)
        functional = functionalize(model, problem.x[:1], init_key)
        tx = make_optimizer(config.optimizer)
        program = _make_program(problem, functional.apply, tx)
        state = init_state(
            functional.params, functional.model_state, tx, step_key, config.learning_rate
        )
        data = place(problem.x, problem.y, problem.rows)
        validation = _place_validation(problem, data)

        run = Run(model, functional.write, config, History(), state, metric_names)
        self._history = run.history
        bar = ProgressBar(_num_steps(problem, config), progress)
        if progress:
            print(_describe(run, problem), file=sys.stderr)
        with _recorded(run, problem):
            try:
                fit(run, program, data, len(problem.rows), validation, shuffle_key, callbacks, bar)
            finally:
                _write_back(run)
        if progress and run.stop_reason is not None:
            print(f'After epoch {run.epoch}: {run.stop_reason}.', file=sys.stderr)
        return run.history

    def get_metrics(self) -> dict[str, float]:
        """Returns the last epoch's metrics of the latest run as plain floats.

        After early stopping the model holds the parameters of ``history.best_epoch``, not those
        of the last epoch.

        Raises:
            NotTrainedError: before the first epoch has ended.
        """
        if self._history is None or not self._history.epochs:
            raise NotTrainedError('get_metrics: no epoch was trained yet. Call train(...) first.')
        return self._history.last()


def _make_program(problem: Problem, apply: Any, tx: Any) -> Program:
    metrics = make_metrics(problem.metrics)
    return Program(
        make_train_step(apply, problem.loss_fn, tx, metrics),
        make_eval_step(apply, problem.loss_fn, metrics),
        metrics,
    )


def _place_validation(problem: Problem, data: Any) -> Any:
    if problem.rows_val is not None:
        return select(data, problem.rows_val)
    if problem.x_val is not None and problem.y_val is not None:
        return place(problem.x_val, problem.y_val)
    return None


def _history_names(problem: Problem) -> tuple[str, ...]:
    names = ('loss', *problem.metrics)
    return names + tuple(f'val_{name}' for name in names) if problem.num_val else names


@contextlib.contextmanager
def _recorded(run: Run, problem: Problem) -> Iterator[None]:
    """Notes the run in the model's record, and forgets it if it fails before its first step."""
    record = record_of(run.user_model)
    before = vars(record) | {'runs': list(record.runs)}
    record.task = problem.task
    record.input_shape = problem.x.shape[1:]
    record.input_dtype = problem.x.dtype.name
    record.runs.append(run.history)
    record.config = run.config.to_dict() | {
        'loss_fn': problem.loss_name,
        'metrics': list(problem.metrics),
    }
    record.data_fingerprint = fingerprint(problem.x, problem.y)
    try:
        yield
    except Exception:
        if not run.history.steps:
            vars(record).update(before)
        raise


def _num_steps(problem: Problem, config: TrainingConfig) -> int:
    num_rows = len(problem.rows)
    return config.epochs * math.ceil(num_rows / min(config.batch_size, num_rows))


def _describe(run: Run, problem: Problem) -> str:
    """One line on what is about to happen, with what was inferred."""
    config = run.config
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(run.state.params))
    device = jax.devices()[0]
    shape = ' x '.join(str(size) for size in problem.x.shape[1:])
    return (
        f'{problem.task}; {len(problem.rows):,} rows of {shape}'
        + (f', {problem.num_val:,} for validation' if problem.num_val else '')
        + f'; {parameters:,} parameters; {problem.loss_name}, {config.optimizer} '
        f'{config.learning_rate:g}; {device.platform}'
    )


def _write_back(run: Run) -> None:
    """Puts the trained arrays into the user's object."""
    params, model_state = run.state.params, run.state.model_state
    if any(leaf.is_deleted() for leaf in jax.tree.leaves((params, model_state))):
        # A dispatch that failed, or a second Ctrl-C, took the donated arrays with it.
        warnings.warn(
            'model: what was learned is lost with the step that failed; the model is as it was '
            "when last written. callbacks=['checkpoint'] keeps every epoch on disk.",
            ThinkMLWarning,
            stacklevel=3,
        )
        return
    run.write(params, model_state)
