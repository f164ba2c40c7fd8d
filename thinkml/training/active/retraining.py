"""Retraining: training on all labels so far, from the initial or from the last weights."""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from thinkml.core import functionalize
from thinkml.core.model.functional import outputs_of
from thinkml.core.model.training_lock import check_not_trained
from thinkml.core.objectives.losses import LossFn, decides
from thinkml.core.objectives.metric_table import METRIC_TABLE, metric_name
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import (
    check_lengths,
    check_targets,
    encode_targets,
    infer_task,
    open_data,
    open_rows,
)
from thinkml.data.inputs import probe_of
from thinkml.data.targets import elements_of
from thinkml.errors import ConfigError, DataError, ModelTypeError, warn_user
from thinkml.evaluation import ModelEvaluator
from thinkml.evaluation.metrics.registry import check_fit
from thinkml.model_record import InputSpec, ModelRecord, attach_record, record_of, record_to_change
from thinkml.tasks import IGNORE_LABEL, Task, TaskKind, single_task
from thinkml.training.active.pool import Pool
from thinkml.training.active.pool_predictions import Ensemble
from thinkml.training.config import TrainingConfig
from thinkml.training.train import train
from thinkml.training.training_data import TrainRequest
from thinkml.typing import Inputs, Labels, Model, PyTree

_MIN_PADDED_ROWS = 64

Retrain = Literal['reset', 'warm']

# The start of an error about a model with several heads.
_MODEL = 'model: active learning needs'


@dataclasses.dataclass(frozen=True)
class RetrainingSettings:
    """Settings of training, see `ActiveLearner`."""

    config: TrainingConfig
    classes: Sequence[Any] | None
    loss_fn: str | LossFn | None
    class_weights: Mapping[Any, float] | str | None
    augmentation: Any
    metrics: Sequence[str] | None

    def __post_init__(self) -> None:
        if decides(self.loss_fn) == 'sequence':
            raise ConfigError(
                f'loss_fn: got {self.loss_fn!r}, expected a loss of classes, labels or numbers: '
                'rows are ranked by their predictions, which sequences have none of for each '
                'class. Train with ModelTrainer on rows that you choose.'
            )


class Retraining:
    """Models with their initial weights, their validation data and the settings of training.

    Args:
        models: the user's objects.
        settings: the settings of training.
        pool: the rows.
        X_val: see `ActiveLearner.train`.
        y_val: see `ActiveLearner.train`.
        pool_labels: all labels of the pool in an experiment; None if they are unknown.
        retrain: see `ActiveLearner.train`.

    Attributes:
        models: as passed.
        task: the task; None until there are enough labels to infer it.
        is_trained: True if the models were trained, here or before.

    Raises:
        DataError: for data and labels that do not fit the models.
        ConfigError: for a value of ``retrain`` that is neither ``'reset'`` nor ``'warm'``.
        ModelTypeError: for an ensemble of models with different numbers of outputs.
    """

    def __init__(
        self,
        models: Sequence[Model],
        settings: RetrainingSettings,
        pool: Pool,
        X_val: Inputs,
        y_val: Labels,
        pool_labels: np.ndarray | None,
        retrain: Retrain,
    ):
        if retrain not in ('reset', 'warm'):
            raise ConfigError(f"retrain: got {retrain!r}, expected 'reset' or 'warm'.")
        self.models = models
        self._settings = settings
        self._retrain = retrain
        self._inputs = pool.inputs
        probe = probe_of(self._inputs, PROBE_ROWS)
        shapes = [outputs_of(model, probe, 'X_unlabeled').shape or (1,) for model in models]
        if len(set(shapes)) > 1:
            counts = ', '.join(' x '.join(map(str, shape)) for shape in shapes)
            raise ModelTypeError(
                f'model: got models of {counts} outputs, expected an ensemble of models with the '
                'same number of outputs.'
            )
        self._row_outputs = shapes[0]
        self.task: Task | None = None
        self.task = self._initial_task(pool, pool_labels)
        self.is_trained = self._has_earlier_runs()
        self._has_warned = False
        if pool.initial_labels is not None:
            self._check(pool.initial_labels, 'y_labeled')
        if (X_val is None) != (y_val is None):
            missing, other = ('X_val', 'y_val') if X_val is None else ('y_val', 'X_val')
            raise DataError(f'{missing}: got None together with {other}, expected both or neither.')
        self._validation = None
        if X_val is not None and self.has_elements and len(models) > 1:
            raise ConfigError(
                'X_val: got validation data for an ensemble of models with outputs for each '
                'element of a row, expected None: these are validated as single models only.'
            )
        if X_val is not None:
            rows, labels = open_data(X_val, y_val, 'X_val', 'y_val', self._inputs)
            labels = check_targets(labels, 'y_val')
            check_lengths({'X_val': rows, 'y_val': labels})
            self._check(labels, 'y_val')
            self._validation = (X_val, y_val)
        seed = settings.config.seed
        self._initial = [_InitialWeights.from_model(model, probe, seed) for model in models]

    def _check(self, labels: np.ndarray, argument: str) -> None:
        if self.task is not None:
            encode_targets(labels, self.task, argument)

    @property
    def has_elements(self) -> bool:
        """Returns True if a row has a target for each of its elements, such as tokens or pixels."""
        return len(self._row_outputs) > 1 if self.task is None else bool(self.task.element_shape)

    @property
    def weights_hash(self) -> str:
        """Returns the hash of the initial weights."""
        digest = hashlib.sha256()
        for initial in self._initial:
            for leaf in jax.tree.leaves(initial.arrays):
                digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    @property
    def has_validation(self) -> bool:
        """Returns True if there is validation data."""
        return self._validation is not None

    @property
    def metric(self) -> str | None:
        """Returns the validation metric that is to improve; None if there is none yet."""
        if self._validation is None or self.task is None:
            return None
        return f'val_{metric_name(self._metrics(self.task)[0])}'

    def reset(self) -> None:
        """Restores the models' initial weights and records."""
        for model, initial in zip(self.models, self._initial, strict=True):
            initial.restore(model)
        self.is_trained = self._has_earlier_runs()

    def _has_earlier_runs(self) -> bool:
        return self.task is not None and all(record_of(model).runs for model in self.models)

    def fit(self, x: PyTree, y: np.ndarray | None) -> dict[str, float] | None:
        """Trains on rows and their labels, and returns the metrics.

        Returns:
            The metrics; None if there are too few labels. These are: no labels, labels of one
            class only, or of fewer classes than outputs while the classes are not known.

        Raises:
            DataError: for labels that the models can't learn.
            ConfigError: for metrics that do not fit the task.
            KeyboardInterrupt: after Ctrl-C; the models keep what they learned until then.
        """
        if y is None or not self._can_learn(y):
            return None
        assert self.task is not None
        check_fit(self._metrics(self.task), self.task.kind, self.task.classes)
        per_model: list[dict[str, float]] = []
        for model in self.models:
            check_not_trained(model)
        for index, (model, initial) in enumerate(zip(self.models, self._initial, strict=True)):
            if self._retrain == 'reset':
                initial.restore(model)
            record_to_change(model).task = self.task
            per_model.append(self._train(model, index, x, y))
        self.is_trained = True
        metrics = {
            name: float(np.mean([metrics[name] for metrics in per_model])) for name in per_model[0]
        }
        return metrics | self._validate()

    def _train(self, model: Model, index: int, x: PyTree, y: np.ndarray) -> dict[str, float]:
        settings = self._settings
        config = dataclasses.replace(settings.config, seed=settings.config.seed + index)
        X_val, y_val = (self._validation or (None, None)) if config.early_stopping else (None, None)
        # The arrays are padded, so that the next iterations have the same shapes and compile
        # nothing.
        num_padded = max(_MIN_PADDED_ROWS, 2 ** (len(y) - 1).bit_length())
        padded = np.arange(num_padded) % len(y)
        request = TrainRequest(
            X_train=jax.tree.map(lambda leaf: leaf[padded], x),
            y_train=y[padded],
            X_val=X_val,
            y_val=y_val,
            loss_fn=settings.loss_fn,
            class_weights=settings.class_weights,
            augmentation=settings.augmentation,
            rows=np.arange(len(y)),
            known=self._inputs,
        )
        history = train(model, request, config).history
        if history.interrupted:  # this training ended normally, but active learning is to end too
            raise KeyboardInterrupt
        return {n: v for n, v in history.last().items() if not n.startswith('val_')}

    def _validate(self) -> dict[str, float]:
        if self._validation is None or self.task is None:
            return {}
        model = self.models[0]
        if len(self.models) > 1:
            model = Ensemble(
                self.models, self.task, lambda X: open_rows(X, 'X_val', like=self._inputs)
            )
        evaluation = ModelEvaluator().evaluate(
            model, *self._validation, metrics=self._metrics(self.task), confidence=None
        )
        return {f'val_{name}': value for name, value in evaluation.metrics.items()}

    def _metrics(self, task: Task) -> Sequence[str]:
        return self._settings.metrics or _default_metrics(task.kind)

    def _initial_task(self, pool: Pool, pool_labels: np.ndarray | None) -> Task | None:
        if self._settings.classes is not None:
            classes = check_targets(self._settings.classes, 'classes')
            element_shape = self._row_outputs[:-1]
            num_rows = -(-len(classes) // math.prod(element_shape))
            if element_shape and classes.ndim == 1:
                classes = np.resize(classes, (num_rows, *element_shape))
            return self._infer_task(classes, 'classes')
        if pool_labels is not None:
            labels = check_targets(pool_labels, 'y_unlabeled').tolist()
            return self._infer_task(pool.with_initial_labels(labels, 'y_unlabeled'), 'y_unlabeled')
        if pool.initial_labels is not None:
            return self._task_or_none(pool.initial_labels)
        return single_task(record_of(self.models[0]).task, _MODEL)

    def _task_or_none(self, y: np.ndarray) -> Task | None:
        """Returns the task of labels; None if there are too few to infer it."""
        try:
            return self._infer_task(y, 'y_labeled')
        except DataError:
            *element_shape, num_outputs = self._row_outputs
            has_shape = y.shape[1 : 1 + len(element_shape)] == tuple(element_shape)
            if not has_shape or self._num_labels(y) >= max(2, num_outputs):
                raise
            return None

    def _num_labels(self, y: np.ndarray) -> int:
        """Returns the number of different labels, of rows or of their elements."""
        if self.task is not None:
            labels, marker = elements_of(y, self.task), self.task.ignored
        elif self.has_elements:
            labels, marker = y.reshape(-1), IGNORE_LABEL
        else:
            labels, marker = y, IGNORE_LABEL if y.ndim == 1 and y.dtype.kind == 'i' else None
        if marker is not None and labels.dtype.kind != 'U':
            labels = labels[labels != marker]
        return len(np.unique(labels, axis=0))

    def _infer_task(self, y: Labels, argument: str) -> Task:
        return infer_task(
            y, self._row_outputs, argument=argument, decided=decides(self._settings.loss_fn),
            known=single_task(record_of(self.models[0]).task, _MODEL),
        )  # fmt: skip

    def _can_learn(self, y: np.ndarray) -> bool:
        """Returns True if there are enough labels; infers the task if it is not known yet."""
        self.task = self.task or self._task_or_none(y)
        if self.task is None:
            self._warn_of_missing_classes(y)
            return False
        return not self.task.is_classification or self._num_labels(y) > 1

    def _warn_of_missing_classes(self, y: np.ndarray) -> None:
        count = self._num_labels(y)
        if count > 1 and not self._has_warned:
            self._has_warned = True
            warn_user(
                f'classes: got {count} different labels so far, but the model has '
                f'{self._row_outputs[-1]} outputs. Rows are chosen without the model until there '
                'is a label for each output. Pass all possible labels, '
                'ActiveLearner(classes=[...]), or use whole numbers from 0 as labels.'
            )


def _default_metrics(kind: TaskKind) -> tuple[str, ...]:
    """Returns the names of the metrics that are measured if none are requested."""
    return tuple(s.name for s in METRIC_TABLE.values() if kind in s.active_learning_tasks)


def trained_input_spec(models: Sequence[Model]) -> InputSpec | None:
    """Returns the inputs that models were trained on before; None if none of them was trained.

    Raises:
        DataError: if they were trained on different columns, or on the same ones in different
            orders.
    """
    found = [spec for model in models if (spec := record_of(model).input_spec) is not None]
    named = [spec for spec in found if spec.has_columns]
    if len({str(spec.names_alone()) for spec in named}) > 1:
        raise DataError(
            f'model: got models that were trained on {" and on ".join(map(str, named))}, expected '
            'an ensemble that was trained on the same columns in the same order.'
        )
    return next(iter(named + found), None)


@dataclasses.dataclass(frozen=True)
class _InitialWeights:
    """A copy of a model's arrays and record."""

    arrays: PyTree
    spec: PyTree
    record: ModelRecord

    @classmethod
    def from_model(cls, model: Model, spec: PyTree, seed: int) -> '_InitialWeights':
        functional = functionalize(model, spec, jax.random.key(seed))
        arrays = jax.device_get((functional.params, functional.model_state))
        record = copy.copy(record_of(model))
        record.runs = list(record.runs)
        return cls(jax.tree.map(np.copy, arrays), spec, record)

    def restore(self, model: Model) -> None:
        """Writes the arrays into a model and attaches a copy of the record."""
        functional = functionalize(model, self.spec, jax.random.key(0))
        functional.write(*jax.tree.map(jax.numpy.asarray, self.arrays))
        record = copy.copy(self.record)
        record.runs = list(record.runs)
        attach_record(model, record)
