"""Training on the labels so far: from the first weights or from the last."""

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from thinkml.core import functionalize, num_outputs
from thinkml.core.model.training_lock import check_not_trained
from thinkml.core.objectives.losses import decides
from thinkml.core.objectives.metric_names import metric_name
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import (
    check_lengths,
    check_targets,
    encode_targets,
    infer_task,
    open_data,
    open_rows,
)
from thinkml.errors import ConfigError, DataError, ModelTypeError, warn_user
from thinkml.evaluation import ModelEvaluator
from thinkml.evaluation.metrics.registry import check_fit
from thinkml.model_record import InputSpec, Task, attach_record, record_of, record_to_change
from thinkml.training.active.pool import Pool
from thinkml.training.active.pool_predictions import Ensemble
from thinkml.training.config import TrainingConfig
from thinkml.training.train import train
from thinkml.training.training_data import TrainRequest
from thinkml.training.training_setup import probe_of

_LEAST_ROOM = 64

Retrain = Literal['reset', 'warm']

_METRICS = {
    'binary': ('accuracy', 'log_loss'),
    'multiclass': ('accuracy', 'log_loss'),
    'multilabel': ('accuracy', 'f1'),
    'regression': ('rmse', 'r2'),
}


@dataclasses.dataclass(frozen=True)
class RetrainingSettings:
    """How models are trained, see `ActiveLearner`."""

    config: TrainingConfig
    classes: Sequence[Any] | None
    loss_fn: Any
    class_weights: Any
    augmentation: Any
    metrics: Sequence[str] | None


class Retraining:
    """Models, their first weights, and what they are validated on.

    Args:
        models: the user's objects.
        settings: how they are trained.
        pool: the rows.
        X_val: see `ActiveLearner.train`.
        y_val: likewise.
        all_labels: of the pool, where an experiment knows them.
        retrain: see `ActiveLearner.train`.

    Attributes:
        models: as passed.
        task: what is predicted; None until enough labels tell.
        has_learned: whether the models were trained, here or before.

    Raises:
        DataError: for data and labels that don't fit the models.
        ConfigError: for ``retrain`` that is neither.
        ModelTypeError: for an ensemble of models with other numbers of outputs.
    """

    def __init__(
        self,
        models: Sequence[Any],
        settings: RetrainingSettings,
        pool: Pool,
        X_val: Any,
        y_val: Any,
        all_labels: np.ndarray | None,
        retrain: Retrain,
    ):
        if retrain not in ('reset', 'warm'):
            raise ConfigError(f"retrain: got {retrain!r}, expected 'reset' or 'warm'.")
        self.models = models
        self._settings = settings
        self._retrain = retrain
        self._inputs = pool.inputs
        probe = probe_of(self._inputs, PROBE_ROWS)
        counts = [num_outputs(model, probe, 'X_unlabeled') for model in models]
        if len(set(counts)) > 1:
            raise ModelTypeError(
                f'model: got models of {", ".join(map(str, counts))} outputs, expected an ensemble '
                'of models that predict the same.'
            )
        self._num_outputs = counts[0]
        self.task = self._known_task(pool, all_labels)
        self.has_learned = self._were_trained()
        self._was_told = False
        if pool.first_labels is not None:
            self._check(pool.first_labels, 'y_labeled')
        if (X_val is None) != (y_val is None):
            missing, given = ('X_val', 'y_val') if X_val is None else ('y_val', 'X_val')
            raise DataError(f'{missing}: got None together with {given}, expected both or neither.')
        self._validation = None
        if X_val is not None:
            rows, labels = open_data(X_val, y_val, 'X_val', 'y_val', self._inputs)
            labels = check_targets(labels, 'y_val')
            check_lengths({'X_val': rows, 'y_val': labels})
            self._check(labels, 'y_val')
            self._validation = (X_val, y_val)
        self._first = [_FirstWeights.of(model, probe, settings.config.seed) for model in models]

    def _check(self, labels: np.ndarray, argument: str) -> None:
        if self.task is not None:
            encode_targets(labels, self.task, argument)

    @property
    def weights_hash(self) -> str:
        """Identifies the first weights."""
        digest = hashlib.sha256()
        for first in self._first:
            for leaf in jax.tree.leaves(first.arrays):
                digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    @property
    def has_validation(self) -> bool:
        """Whether there is validation data."""
        return self._validation is not None

    @property
    def metric(self) -> str | None:
        """The validation metric that is to gain."""
        if self._validation is None or self.task is None:
            return None
        return f'val_{metric_name(self._metrics(self.task)[0])}'

    def reset(self) -> None:
        """Puts the first weights back, and what was known of the models then."""
        for model, first in zip(self.models, self._first, strict=True):
            first.put_back(model)
        self.has_learned = self._were_trained()

    def _were_trained(self) -> bool:
        return self.task is not None and all(record_of(model).runs for model in self.models)

    def fit(self, x: Any, y: np.ndarray | None) -> dict[str, float] | None:
        """Trains on rows and their labels, and returns the metrics.

        Returns:
            None where there are too few labels: none, of one class only, or of fewer classes than
            there are outputs while nobody says which classes there will be.

        Raises:
            DataError: for labels that the models can't learn.
            ConfigError: for metrics that don't fit the task.
            KeyboardInterrupt: after Ctrl-C; the models stay as far as they got.
        """
        if y is None or not self._can_learn(y):
            return None
        assert self.task is not None
        check_fit(self._metrics(self.task), self.task.kind)
        found: list[dict[str, float]] = []
        for model in self.models:
            check_not_trained(model)
        for index, (model, first) in enumerate(zip(self.models, self._first, strict=True)):
            if self._retrain == 'reset':
                first.put_back(model)
            record_to_change(model).task = self.task
            found.append(self._train(model, index, x, y))
        self.has_learned = True
        metrics = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        return metrics | self._validate()

    def _train(self, model: Any, index: int, x: Any, y: np.ndarray) -> dict[str, float]:
        settings = self._settings
        config = dataclasses.replace(settings.config, seed=settings.config.seed + index)
        X_val, y_val = (self._validation or (None, None)) if config.early_stopping else (None, None)
        # In an array that has room for more, so that the next rounds compile nothing.
        place = np.arange(max(_LEAST_ROOM, 2 ** (len(y) - 1).bit_length())) % len(y)
        asked = TrainRequest(
            jax.tree.map(lambda leaf: leaf[place], x), y[place], X_val, y_val,
            loss_fn=settings.loss_fn, class_weights=settings.class_weights,
            augmentation=settings.augmentation, rows=np.arange(len(y)), known=self._inputs,
        )  # fmt: skip
        history = train(model, asked, config).history
        if history.interrupted:  # a training ends early then; all of the learning is to end
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
        return self._settings.metrics or _METRICS[task.kind]

    def _known_task(self, pool: Pool, all_labels: np.ndarray | None) -> Task | None:
        if self._settings.classes is not None:
            return self._inferred(self._settings.classes, 'classes')
        if all_labels is not None:
            labels = check_targets(all_labels, 'y_unlabeled').tolist()
            return self._inferred(pool.with_first(labels, 'y_unlabeled'), 'y_unlabeled')
        if pool.first_labels is not None:
            return self._task_of(pool.first_labels)
        return record_of(self.models[0]).task

    def _task_of(self, y: np.ndarray) -> Task | None:
        """What labels are for; None where they are too few to tell."""
        try:
            return self._inferred(y, 'y_labeled')
        except DataError:
            if len(np.unique(y, axis=0)) >= max(2, self._num_outputs):
                raise
            return None

    def _inferred(self, y: Any, argument: str) -> Task:
        return infer_task(
            y, self._num_outputs, argument=argument, decided=decides(self._settings.loss_fn),
            known=record_of(self.models[0]).task,
        )  # fmt: skip

    def _can_learn(self, y: np.ndarray) -> bool:
        """Whether there is something to learn; finds out what, if that is not known yet."""
        self.task = self.task or self._task_of(y)
        if self.task is None:
            self._tell(y)
            return False
        return not self.task.is_classification or len(np.unique(y, axis=0)) > 1

    def _tell(self, y: np.ndarray) -> None:
        count = len(np.unique(y, axis=0))
        if count > 1 and not self._was_told:
            self._was_told = True
            warn_user(
                f'classes: {count} different labels so far, and the model has {self._num_outputs} '
                'outputs. Rows are chosen without it until each has its label. Pass all labels '
                'there may be, ActiveLearner(classes=[...]), or label by whole numbers from 0.'
            )


def known_inputs(models: Sequence[Any]) -> InputSpec | None:
    """Returns what models were trained on before; None where none of them was.

    Raises:
        DataError: if they were trained on different columns, or on these in different orders.
    """
    found = [spec for model in models if (spec := record_of(model).input_spec) is not None]
    named = [spec for spec in found if spec.has_columns]
    if len({str(spec.names_alone()) for spec in named}) > 1:
        raise DataError(
            f'model: got models that were trained on {" and on ".join(map(str, named))}, expected '
            'an ensemble that was trained on the same columns in one order. Train them alike.'
        )
    return next(iter(named + found), None)


@dataclasses.dataclass(frozen=True)
class _FirstWeights:
    """A model's arrays and record, as they were."""

    arrays: Any
    spec: Any
    record: Any

    @classmethod
    def of(cls, model: Any, spec: Any, seed: int) -> '_FirstWeights':
        functional = functionalize(model, spec, jax.random.key(seed))
        arrays = jax.device_get((functional.params, functional.model_state))
        record = copy.copy(record_of(model))
        record.runs = list(record.runs)
        return cls(jax.tree.map(np.copy, arrays), spec, record)

    def put_back(self, model: Any) -> None:
        functional = functionalize(model, self.spec, jax.random.key(0))
        functional.write(*jax.tree.map(jax.numpy.asarray, self.arrays))
        record = copy.copy(self.record)
        record.runs = list(record.runs)
        attach_record(model, record)
