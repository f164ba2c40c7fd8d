"""ModelTrainer: training with everything checked before and recorded after."""

import contextlib
import dataclasses
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from thinkml.core import TrainState
from thinkml.core.loop import empty_metrics
from thinkml.core.losses import LossFn
from thinkml.errors import ConfigError, NotTrainedError, ThinkMLWarning
from thinkml.monitoring import History, ProgressBar
from thinkml.record import record_of
from thinkml.training.callbacks import OWN, check_callbacks, make_callbacks, recorded_for
from thinkml.training.checkpointing import Checkpoint, Checkpoints
from thinkml.training.config import TrainingConfig
from thinkml.training.continuing import optimizer_arrays
from thinkml.training.fit import fit
from thinkml.training.preparation import Prepared, needs_length, prepare
from thinkml.training.problem import Asked, Examples, Problem, make_problem
from thinkml.training.run import Run
from thinkml.training.signals import noted_signals
from thinkml.training.tuning import LearningRateRange, largest_batch_size, learning_rate_range


class ModelTrainer:
    """Trains models on arrays, frames, files and streams.

    Args:
        config: the settings; None for the defaults of `TrainingConfig`.

    Attributes:
        config: the settings.
        learning_rate_range: what ``learning_rate='auto'`` measured last; None before.

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
        self.learning_rate_range: LearningRateRange | None = None
        self._history: History | None = None

    def train(
        self,
        model: Any,
        X_train: Any,
        y_train: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        loss_fn: str | LossFn | None = None,
        metrics: Sequence[Any] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        groups: Any = None,
        resume: bool = False,
        progress: bool = True,
    ) -> History:
        """Trains the model in place and leaves it in eval mode.

        The task and the classes are inferred from the labels and the model's outputs (see
        `thinkml.data.infer_task`), shown, and kept in the model's record. Everything is checked
        before anything is compiled; if that fails, the model is untouched. Ctrl-C ends the
        training early and keeps what was learned.

        The loss of a step is the weighted mean ``sum(weight * loss) / sum(weight)`` over its
        examples, where an example's weight is that of its class times its own.

        Args:
            model: a `flax.nnx.Module`, or what `thinkml.models.from_linen` or
                `thinkml.models.from_functions` returned.
            X_train: inputs, one row per example: whatever `thinkml.data.open_rows` takes (arrays,
                frames, stored arrays, a dict or tuple of them), or a source of batches, see
                `thinkml.data.open_batches`.
            y_train: labels (integers, text, bool, one-hot or multilabel rows) or numbers. Where
                ``X_train`` holds them: their name, or None to find them.
            X_val: validation inputs. None holds out ``config.validation_split`` of the rows.
            y_val: validation targets.
            loss_fn: a name (``'cross_entropy'``, ``'binary_cross_entropy'``, ``'focal'``,
                ``'hinge'``, ``'mse'``, ``'mae'``, ``'huber'``, ``'log_cosh'``), an object such as
                ``CrossEntropy(label_smoothing=0.1)``, or a function ``(logits, labels)`` that
                returns a scalar or a value per example. None: cross-entropy for classes, mean
                squared error for numbers.
            metrics: what to record besides the loss: names, functions ``(logits, labels)`` and
                CLU metrics, see `thinkml.core.make_metrics`. ``'accuracy'`` is always recorded for
                classification. Weights count in the loss alone.
            class_weights: a dict of a weight for each label (those left out count 1), or
                ``'balanced'``. They count in training, not in validation.
            sample_weight: a weight for each row.
            augmentation: True for a default that suits the inputs, a name, an object such as
                ``MixUp(0.2)``, a function ``(key, x, y) -> (x, y)`` on a batch, or a list of these;
                see `thinkml.core.make_augmentation`.
            groups: which rows belong together, so that ``validation_split`` does not part them.
            resume: go on from the newest checkpoint of the newest run in ``checkpoint_dir``, as if
                the training had never stopped; where there is none, begin. Needs the
                ``'checkpoint'`` callback.
            progress: show what is trained and a progress bar on stderr.

        Warns:
            ThinkMLWarning: if training diverges (the loss is NaN or infinite; it then stops), if
                the classes of a trained model change.

        Returns:
            the `thinkml.monitoring.History`: ``{'loss': [...], 'val_loss': [...], ...}`` by epoch,
            and the loss of each step.

        Raises:
            DataError: for data that can't be trained on, naming the argument and the fix.
            ConfigError: for a setting, loss or metric that is unknown or does not fit.
            ModelTypeError: for an object that is not a model.
            CheckpointError: if checkpoints can't be written, or none can be read.
            DivergedError: if the loss is NaN or infinite and ``config.on_nan`` is ``'raise'``.
        """
        _check_switches(resume=resume, progress=progress)
        config = _without_traces(self.config) if self.config.fast_dev_run else self.config
        callbacks, checkpoint = make_callbacks(
            config.callbacks, config.early_stopping, config.lr_schedule
        )
        asked = Asked(
            X_train, y_train, X_val, y_val, loss_fn, metrics, class_weights, sample_weight,
            augmentation, groups,
        )  # fmt: skip
        problem = make_problem(model, asked, config, recorded_for(callbacks))
        metric_names = _history_names(problem)
        check_callbacks(callbacks, metric_names)
        checkpoints = _open_checkpoints(checkpoint, config, resume, metric_names)
        resumed = None if checkpoints is None else checkpoints.resumed_settings
        if config.learning_rate == 'auto':
            if resumed is None:
                self.learning_rate_range = learning_rate_range(model, problem, config)
                rate = self.learning_rate_range.suggestion
            else:
                rate = resumed['learning_rate']
            config = dataclasses.replace(config, learning_rate=rate)
        settings = _settings(config, problem, asked)
        if checkpoints is not None:
            checkpoints.check_same_run(settings, callbacks, fixed_length=needs_length(config))
        prepared = prepare(model, problem, config)
        run = Run(
            model, prepared.functional.write, config, History(), prepared.state, metric_names,
            callbacks, settings,
        )  # fmt: skip
        states = _restored(run, checkpoints, prepared)
        self._history = run.history

        shown = progress or 'progress' in config.callbacks
        bar = ProgressBar(prepared.total_steps, shown, initial=run.step)
        if shown:
            print(_describe(run, problem, checkpoints), file=sys.stderr)
        # A SIGTERM that was noted is sent on at the end of this block.
        with noted_signals(checkpoints is not None) as signals, _recorded(run, problem):
            first_step = run.step
            try:
                fit(
                    run, prepared.program, prepared.feed, prepared.validation, bar, checkpoints,
                    states, signals,
                )  # fmt: skip
            except BaseException:
                if run.step > first_step:
                    _write_back(run)
                raise
            _write_back(run)
            if run.stop_reason is not None and (shown or signals.terminated):
                print(
                    f'After epoch {run.epoch}: {run.stop_reason.rstrip(".")}.',
                    file=sys.stderr,
                    flush=True,
                )
        return run.history

    def find_learning_rate(
        self,
        model: Any,
        X_train: Any,
        y_train: Any = None,
        *,
        loss_fn: str | LossFn | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
    ) -> LearningRateRange:
        """Tries rates from 1e-6 to 10 on a copy of the model, one for each of 100 steps.

        ``TrainingConfig(learning_rate='auto')`` does it before training and takes the suggestion.

        Args:
            model: as in `train`.
            X_train: as in `train`.
            y_train: as in `train`.
            loss_fn: as in `train`.
            class_weights: as in `train`.
            sample_weight: as in `train`.
            augmentation: as in `train`.

        Returns:
            the rates, the losses and the suggestion; ``.plot()`` draws them.
        """
        asked = Asked(
            X_train, y_train, loss_fn=loss_fn, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation,
        )  # fmt: skip
        problem = make_problem(model, asked, self.config)
        return learning_rate_range(model, problem, self.config)

    def find_batch_size(
        self,
        model: Any,
        X_train: Any,
        y_train: Any = None,
        *,
        loss_fn: str | LossFn | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
    ) -> int:
        """Returns the largest power of two that fits the device's memory, and the data, as batch.

        The compiler tells what a step needs; nothing is trained. Larger batches are computed
        faster, not always learned from better.

        Args:
            model: as in `train`.
            X_train: as in `train`.
            y_train: as in `train`.
            loss_fn: as in `train`.
            class_weights: as in `train`.
            sample_weight: as in `train`.
            augmentation: as in `train`.
        """
        asked = Asked(
            X_train, y_train, loss_fn=loss_fn, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation,
        )  # fmt: skip
        problem = make_problem(model, asked, self.config)
        return largest_batch_size(model, problem, self.config)

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


def _check_switches(**switches: Any) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            where = ' checkpoint_dir, in the config, says where from.' if name == 'resume' else ''
            raise ConfigError(f'{name}: got {value!r}, expected True or False.{where}')


def _without_traces(config: TrainingConfig) -> TrainingConfig:
    """The config of a trial run: one epoch, and of the callbacks only the user's own."""
    own = tuple(c for c in config.callbacks if not isinstance(c, str) and not isinstance(c, OWN))
    return dataclasses.replace(config, epochs=1, callbacks=own, early_stopping=False)


def _history_names(problem: Problem) -> tuple[str, ...]:
    shared = ('loss', *problem.objective.metric_names)
    names = (*shared, *problem.objective.training_metrics)
    return names if problem.val is None else (*names, *(f'val_{name}' for name in shared))


def _settings(config: TrainingConfig, problem: Problem, asked: Asked) -> dict[str, Any]:
    """What the run is made of, as plain values: what a run that goes on must have in common."""
    objective = problem.objective
    return config.to_dict() | {
        'loss_fn': objective.loss_name,
        'metrics': [*objective.metric_names, *objective.training_metrics],
        'class_weights': None if asked.class_weights is None else str(asked.class_weights),
        'augmentation': None if objective.augment is None else _described(asked.augmentation),
        'task': str(problem.task),
        'data': problem.fingerprint,
        'validation': problem.val_fingerprint,
    }


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
    resume: bool,
    metric_names: tuple[str, ...],
) -> Checkpoints | None:
    if checkpoint is not None:
        return Checkpoints(checkpoint, config.checkpoint_dir, resume, metric_names)
    if resume and not config.fast_dev_run:
        raise ConfigError(
            "resume: got True without checkpoints, expected callbacks=['checkpoint'] in the config."
        )
    return None


def _restored(
    run: Run, checkpoints: Checkpoints | None, prepared: Prepared
) -> dict[str, list[Any]]:
    if checkpoints is None:
        return {}
    checkpoints.check_space(run.state)
    return checkpoints.restore(run, empty_metrics(prepared.program.metrics))


@contextlib.contextmanager
def _recorded(run: Run, problem: Problem) -> Iterator[None]:
    """Notes the run in the model's record, and forgets it if it fails before its first step."""
    record = record_of(run.user_model)
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


def _describe(run: Run, problem: Problem, checkpoints: Checkpoints | None) -> str:
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


def _rows_of(problem: Problem) -> str:
    train, val = problem.train, problem.val
    rows = f'{len(train.rows):,} rows' if isinstance(train, Examples) else 'batches'
    shown = f'{rows} of {problem.inputs}'
    return shown + (f', {len(val.rows):,} for validation' if isinstance(val, Examples) else '')


def _optimizer_of(config: TrainingConfig) -> str:
    if not isinstance(config.optimizer, str):
        return 'an optimizer of your own'
    rate = config.learning_rate
    return f'{config.optimizer} {rate:g}' if isinstance(rate, int | float) else config.optimizer


def _write_back(run: Run) -> None:
    """Puts the trained arrays into the user's object."""
    # A dispatch that failed, or a second Ctrl-C, took the donated arrays with it.
    states = [state for state in (run.state, run.kept) if state is not None and _is_usable(state)]
    if run.best_arrays is None and not states:
        warnings.warn(
            'model: what was learned is lost with the step that failed; the model is as it was '
            "when last written. callbacks=['checkpoint'] keeps every epoch on disk.",
            ThinkMLWarning,
            stacklevel=3,
        )
        return
    if run.best_arrays is None and states[0] is not run.state:
        warnings.warn(
            f'model: a step failed; the model has what was learned in the {int(states[0].step):,} '
            'steps before the dispatch it was in.',
            ThinkMLWarning,
            stacklevel=3,
        )
    run.write(*(run.best_arrays or (states[0].eval_params, states[0].model_state)))
    if states:
        record_of(run.user_model).optimizer = optimizer_arrays(states[0])


def _is_usable(state: TrainState) -> bool:
    try:
        jax.block_until_ready(state)
    except RuntimeError:  # donated, or the outcome of a step that failed
        return False
    return True
