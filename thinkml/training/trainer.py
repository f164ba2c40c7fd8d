"""ModelTrainer: training with everything checked before and recorded after."""

from collections.abc import Sequence
from typing import Any

from thinkml.core.objectives.losses import LossFn
from thinkml.monitoring import History
from thinkml.training.config import TrainingConfig
from thinkml.training.memory_plan import reduce_memory
from thinkml.training.train import Latest, Resume, check_config, check_switches, train
from thinkml.training.training_setup import TrainRequest, make_setup
from thinkml.training.tuning import LearningRateRange, largest_batch_size, learning_rate_range


class ModelTrainer:
    """Trains models on arrays, frames, files and streams.

    Args:
        config: the settings; None for the defaults of `TrainingConfig`.

    Attributes:
        config: the settings.

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
        self.config = check_config(config)
        self._latest = Latest()

    @property
    def learning_rate_range(self) -> LearningRateRange | None:
        """What ``learning_rate='auto'`` measured last; None before."""
        return self._latest.learning_rate_range

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
        resume: Resume = False,
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
                `thinkml.data.open_batches`. Columns of frames go by the names that the model was
                trained on before.
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
            resume: continue from the newest checkpoint of the newest run in ``checkpoint_dir``, or
                of the run whose directory that is, as if the training had never stopped; where
                there is none, begin. Needs the ``'checkpoint'`` callback. A run that early stopping
                or ``run.stop`` has ended stays as it is; ``'continue'`` trains it on, and early
                stopping waits for an improvement from there.
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
        check_switches(resume=resume, progress=progress)
        asked = TrainRequest(
            X_train, y_train, X_val, y_val, loss_fn, metrics, class_weights, sample_weight,
            augmentation, groups,
        )  # fmt: skip
        return train(self._latest, model, asked, self.config, resume=resume, progress=progress)

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
        asked = TrainRequest(
            X_train, y_train, loss_fn=loss_fn, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation,
        )  # fmt: skip
        problem = make_setup(model, asked, self.config)
        saving, _ = reduce_memory(model, problem, self.config, None)
        return learning_rate_range(model, problem, self.config, None, saving)

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
        asked = TrainRequest(
            X_train, y_train, loss_fn=loss_fn, class_weights=class_weights,
            sample_weight=sample_weight, augmentation=augmentation,
        )  # fmt: skip
        problem = make_setup(model, asked, self.config)
        return largest_batch_size(model, problem, self.config)

    def get_metrics(self) -> dict[str, float]:
        """Returns the last epoch's metrics of the latest run as plain floats.

        After early stopping the model holds the parameters of ``history.best_epoch``, not those
        of the last epoch.

        Raises:
            NotTrainedError: before the first epoch has ended.
        """
        return self._latest.metrics()
