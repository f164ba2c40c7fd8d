"""TransferLearner: what one model has learned, taken over by another."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from thinkml.core.model.partly_frozen import PartlyFrozen
from thinkml.core.model.training_lock import check_not_trained
from thinkml.core.objectives.losses import LossFn, decides
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import (
    Rows,
    check_targets,
    encode_targets,
    fingerprint,
    is_batches,
    open_batches,
    open_data,
    some_rows,
    warn_of_other_ranges,
    with_ranges,
)
from thinkml.data.input_range import LARGEST_STANDARDISED
from thinkml.errors import ConfigError, DataError, NotTrainedError, is_number, is_whole, warn_user
from thinkml.model_record import InputSpec, attach_record, record_of
from thinkml.models.model_table import Table
from thinkml.models.transfer_model import TransferModel
from thinkml.models.zoo import check_weights
from thinkml.monitoring import History
from thinkml.training.config import TrainingConfig
from thinkml.training.train import (
    TrainResult,
    check_config,
    check_switches,
    open_training,
    run_training,
)
from thinkml.training.training_data import TrainRequest
from thinkml.training.training_setup import check_pixels_of, probe_of
from thinkml.training.transfer.backbone import (
    Backbone,
    Role,
    check_layout,
    check_part,
    load_base,
    open_base,
    role_of,
    shared_tensors,
    take_over,
)
from thinkml.training.transfer.feature_cache import kept_features
from thinkml.training.transfer.layer_groups import (
    LayerGroups,
    as_headed,
    check_layers,
    chosen,
    low_rank_targets,
    parts_of_headed,
    parts_of_new,
    parts_of_sharing,
    parts_of_trained,
    rates_of,
    summary_of,
)


class TransferLearner:
    """Fine-tunes a pretrained model for a task of one's own.

    Args:
        base_model: what was trained before: a name of `thinkml.models.list_models` with pretrained
            weights, the path of a saved model, or an NNX module. It stays as it is.
        fine_tune_layers: what of the base is trained besides the head: the last so many of its
            layers (a convolution or dense layer with its normalisation is one), ``'all'``, or
            patterns of their names such as ``['stages.3.*']``. What is frozen has no gradients and
            no optimizer state, and its BatchNorm keeps to its stored statistics.
        config: the settings; None for the defaults of `TrainingConfig`, with a tenth of the
            learning rate where layers of the base are trained.
        weights: of an architecture: ``'auto'`` for pretrained ones if they can be found or
            downloaded, and random ones with a warning if not; ``'required'`` to make that an
            error; the path of a file; None for random ones.
        layer_decay: the learning rate of each layer is this times that of the layer after it
            (discriminative learning rates); 1 for the same everywhere.
        head_epochs: how many of the epochs, the first ones, train the head alone, so that what
            flows back from a random head does no harm to the base (gradual unfreezing).
        lora_rank: train updates of this rank to the kernels of all dense and attention layers of
            the base that are frozen otherwise (LoRA); None for none. They are added to the kernels
            in the end.
        cache_bytes: how much memory the features may take that a base gives while it is frozen
            altogether, and which are computed only once; more go to files.

    Attributes:
        config: the settings; None for the defaults.
        loaded: what was loaded: of pretrained weights, or of the base into a whole model, by name;
            None where nothing was.

    Raises:
        ConfigError: for settings that are impossible.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.models import predict
        >>> from thinkml.training import TransferLearner
        >>> X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
        >>> base = nnx.Sequential(nnx.Linear(4, 16, rngs=nnx.Rngs(0)), nnx.relu)
        >>> learner = TransferLearner(base, fine_tune_layers=0)
        >>> model = learner.fine_tune(X_train=X, y_train=X[:, 0] > 0, epochs=2, progress=False)
        >>> print(learner.summary())
        layer          parameters  trained  learning rate
        base.layers.0          80  no
        head                   34  yes      x 1
        >>> predict(model, X).shape
        (64,)

    Reference:
        Howard and Ruder, 2018, *Universal language model fine-tuning for text classification*
        (gradual unfreezing, discriminative rates); Hu et al., 2021, *LoRA: low-rank adaptation of
        large language models*.
    """

    def __init__(
        self,
        base_model: Any,
        fine_tune_layers: int | Literal['all'] | Sequence[str] = 0,
        *,
        config: TrainingConfig | None = None,
        weights: str | os.PathLike[str] | None = 'auto',
        layer_decay: float = 1.0,
        head_epochs: int = 0,
        lora_rank: int | None = None,
        cache_bytes: int = 2**31,
    ):
        check_config(config)
        check_layers(fine_tune_layers)
        for name, value, least in (
            ('head_epochs', head_epochs, 0),
            ('lora_rank', 1 if lora_rank is None else lora_rank, 1),
            ('cache_bytes', cache_bytes, 0),
        ):
            if not (is_whole(value) and value >= least):
                raise ConfigError(
                    f'{name}: got {value!r}, expected a whole number of at least {least}.'
                )
        if not (is_number(layer_decay) and 0 < layer_decay <= 1):
            raise ConfigError(f'layer_decay: got {layer_decay!r}, expected more than 0, at most 1.')
        self.base_model = base_model
        self.fine_tune_layers = fine_tune_layers
        self.config = config
        self.weights = check_weights(weights)
        self.layer_decay = layer_decay
        self.head_epochs = head_epochs
        self.lora_rank = lora_rank
        self.cache_bytes = cache_bytes
        self.loaded: Any = None
        self._result: TrainResult | None = None
        self._summary: Table | None = None

    @property
    def history(self) -> History | None:
        """Of the last run; None before."""
        return None if self._result is None else self._result.history

    def fine_tune(
        self,
        model: Any = None,
        X_train: Any = None,
        y_train: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        epochs: int | None = None,
        role: Role | None = None,
        loss_fn: str | LossFn | None = None,
        metrics: Sequence[Any] | None = None,
        class_weights: Any = None,
        sample_weight: Any = None,
        augmentation: Any = None,
        groups: Any = None,
        progress: bool = True,
    ) -> nnx.Module:
        """Fine-tunes, and returns a model that is ready to predict.

        Images of whole numbers from 0 to 255 are normalised as the architecture's pretrained
        weights expect; images of floats are taken to be normalised already. A whole model of one's
        own gets them as they are. Columns of frames go by the names the base was trained on.

        Args:
            model: None for a linear head with an output for each class; a head, which takes
                features ``[rows, features]`` and is put onto the base; or a whole model, which
                takes ``X_train``: what it shares with the base, by name and shape, is loaded from
                there. A whole model that shares nothing with the base is fine-tuned by itself,
                with a warning: its last layers if it was trained before, else all of it. Which of
                them it is, is decided by shapes. Trained in place.
            X_train: as in `ModelTrainer.train`.
            y_train: as in `ModelTrainer.train`.
            X_val: as in `ModelTrainer.train`.
            y_val: as in `ModelTrainer.train`.
            epochs: in place of ``config.epochs``.
            role: ``'head'`` or ``'model'``, where shapes leave open what ``model`` is.
            loss_fn: as in `ModelTrainer.train`.
            metrics: as in `ModelTrainer.train`.
            class_weights: as in `ModelTrainer.train`.
            sample_weight: as in `ModelTrainer.train`.
            augmentation: as in `ModelTrainer.train`.
            groups: as in `ModelTrainer.train`.
            progress: as in `ModelTrainer.train`.

        Returns:
            the whole model: ``model`` itself if it is one, else the base and the head as a
            `thinkml.models.TransferModel`.

        Warns:
            PretrainedWeightsWarning: if no pretrained weights were found.
            ThinkMLWarning: if ``model`` shares nothing with the base, or is a whole model that
                gets images that are not normalised; for images on another scale than those the
                base was trained on.

        Raises:
            DataError: for data or a model that fit neither each other nor the base.
            ConfigError: for settings that are impossible, or if it is open what ``model`` is.
            ModelTypeError: for a model that is no NNX module.
            WeightsError: if the weights are required and not to be found, or don't fit.
        """
        check_switches(progress=progress)
        if model is not None:
            check_part(model)
            check_not_trained(model)
        asked = TrainRequest(
            X_train, y_train, X_val, y_val, loss_fn, metrics, class_weights, sample_weight,
            augmentation, groups,
        )  # fmt: skip
        base_model = load_base(self.base_model)
        data = _Data.opened(asked, _known_inputs(model, base_model))
        asked = asked._replace(known=data.inputs)
        parts = self._parts(model, role, asked, data, base_model)
        trained = chosen(parts.layers, self.fine_tune_layers)
        rates = rates_of(parts, trained, self.layer_decay)
        if not rates and self.lora_rank is None:
            raise ConfigError(
                'fine_tune_layers: got 0 for a model that is fine-tuned by itself, so that nothing '
                'would be trained. Pass how many of its last layers to train.'
            )
        low_rank = {} if self.lora_rank is None else low_rank_targets(parts, rates)
        self._summary = summary_of(parts, rates, low_rank)
        is_head_alone = not trained and not low_rank
        config = self._config(epochs, of_base=bool(trained) and bool(parts.head))
        head_epochs = config.epochs if is_head_alone else min(self.head_epochs, config.epochs)
        self._result = None
        rest: TrainingConfig | None = config
        if head_epochs and parts.head:
            first = dataclasses.replace(config, epochs=head_epochs)
            result = self._train_head(parts, asked, data, first, progress)
            rest = _left_of(config, result)
        if rest is not None and head_epochs < config.epochs:
            rest = dataclasses.replace(rest, epochs=config.epochs - head_epochs)
            frozen = PartlyFrozen(parts.model, rates, low_rank, self.lora_rank or 0)
            self._train_unfrozen(frozen, asked, rest, progress)
        return parts.model

    def summary(self) -> Table:
        """Returns a table of the layers of the model last fine-tuned: what of it was trained.

        Raises:
            NotTrainedError: before `fine_tune`.
        """
        if self._summary is None:
            raise NotTrainedError('summary: nothing was fine-tuned yet. Call fine_tune(...) first.')
        return self._summary

    def get_metrics(self) -> dict[str, float]:
        """Returns the last epoch's metrics of the latest run, see `ModelTrainer.get_metrics`.

        Raises:
            NotTrainedError: before the first epoch has ended.
        """
        if self._result is None:
            raise NotTrainedError(
                'get_metrics: no epoch was trained yet. Call fine_tune(...) first.'
            )
        return self._result.metrics()

    def _config(self, epochs: int | None, *, of_base: bool) -> TrainingConfig:
        config = self.config
        if config is None:
            config = TrainingConfig()
            if of_base:
                config = dataclasses.replace(config, learning_rate=config.learning_rate / 10)
        return config if epochs is None else dataclasses.replace(config, epochs=epochs)

    def _parts(
        self, model: Any, role: Role | None, asked: TrainRequest, data: '_Data', base_model: Any
    ) -> LayerGroups:
        is_path = isinstance(self.base_model, str | os.PathLike)
        base = open_base(base_model, data.probe, str(self.base_model) if is_path else None)
        if model is None:
            model, role = _linear_head(base, data, asked, self.config), 'head'
        else:
            role = role_of(model, base, data.probe, role)
        if role == 'head':
            check_layout(base, data.probe)
            model = base.with_head(model)
        check_pixels_of(model, data.inputs)
        if role == 'head':
            self.loaded = base.load(self.weights)
            return parts_of_headed(model, data.probe)
        if shared := shared_tensors(model, base):
            self.loaded = None
            if base.load(self.weights) or base.is_pretrained:
                self.loaded = take_over(model, base, shared)
            normalises = isinstance(model, TransferModel) and model.standardises_pixels
            if base.normalised and data.raw_values and not normalises:
                warn_user(
                    f'X_train: {data.raw_values}, which a whole model gets as they are, not '
                    f'normalised as {base.name} expects. Pass get_preprocessing({base.name!r})('
                    'X_train).'
                )
            return parts_of_sharing(model, shared, data.probe)
        self.loaded = None
        was_trained = bool(record_of(model).runs)
        warn_user(
            f'model: it has no tensor in common with {base.name}, so it is fine-tuned by itself: '
            + ('its last layers.' if was_trained else 'all of it, from what it has.')
            + f' Pass a head, which takes features (rows, {base.num_features}), or None, to put '
            'one onto the base.'
        )
        return parts_of_trained(model, data.probe) if was_trained else parts_of_new(model)

    def _train(
        self, model: Any, asked: TrainRequest, config: TrainingConfig, progress: bool
    ) -> TrainResult:
        with open_training(model, asked, config) as opened:
            self._result = opened.result  # now, so that it is there after an interruption
            run_training(opened, progress=progress)
        return opened.result

    def _train_unfrozen(
        self, model: PartlyFrozen, asked: TrainRequest, config: TrainingConfig, progress: bool
    ) -> TrainResult:
        """Trains the parameters that are not frozen; the record is that of the whole model."""
        attach_record(model, record_of(model.model))
        return self._train(model, asked, config, progress)

    def _train_head(
        self,
        parts: LayerGroups,
        asked: TrainRequest,
        data: '_Data',
        config: TrainingConfig,
        progress: bool,
    ) -> TrainResult:
        whole = None
        if not (
            data.rows is None
            or asked.augmentation
            or config.fast_dev_run
            or is_batches(asked.X_val)
        ):
            whole = as_headed(parts, data.probe)
        if whole is None or data.rows is None:
            frozen = PartlyFrozen(parts.model, dict.fromkeys(parts.head, 1.0))
            return self._train_unfrozen(frozen, asked, config, progress)
        so_far = record_of(parts.model)
        if so_far.runs:
            known = dataclasses.replace(so_far, runs=list(so_far.runs), input_spec=None)
            attach_record(whole.head, known)
        with kept_features(self.cache_bytes) as features:
            cached = asked._replace(
                X_train=features.of(whole, data.rows, 'train'), y_train=data.targets, known=None
            )
            if asked.X_val is not None:
                rows, targets = open_data(asked.X_val, asked.y_val, 'X_val', 'y_val', data.inputs)
                cached = cached._replace(X_val=features.of(whole, rows, 'val'), y_val=targets)
            try:
                result = self._train(whole.head, cached, config, progress)
            except KeyboardInterrupt:  # which keeps what was learned
                self._describe_whole(parts, whole.head, data)
                raise
        self._describe_whole(parts, whole.head, data)
        return result

    def _describe_whole(self, parts: LayerGroups, head: nnx.Module, data: '_Data') -> None:
        """Makes what is known of a trained head known of the whole model."""
        learned = record_of(head)
        assert learned.task is not None and data.rows is not None
        labels = encode_targets(data.targets, learned.task, 'y_train')
        record = dataclasses.replace(
            learned,
            input_spec=data.inputs,
            optimizer=None,
            data_fingerprint=fingerprint(data.rows, labels),
        )
        attach_record(parts.model, record)
        parts.model.eval()


def _left_of(config: TrainingConfig, result: TrainResult) -> TrainingConfig | None:
    """Returns the settings with what a first run leaves of their limits; None for nothing."""
    history = result.history
    if result.was_stopped:
        return None
    steps, seconds = config.max_steps, config.max_seconds
    if steps is not None:
        steps -= history.steps
    if seconds is not None:
        seconds -= history.seconds
    if any(left is not None and left <= 0 for left in (steps, seconds)):
        return None
    return dataclasses.replace(config, max_steps=steps, max_time=seconds)


@dataclasses.dataclass(frozen=True)
class _Data:
    """What is known of the training data before it is encoded.

    Attributes:
        inputs: what a row of the inputs looks like.
        rows: the inputs; None where they come in batches.
        targets: as the user has them, of the first batch where they come in batches.
    """

    inputs: InputSpec
    rows: Rows | None
    targets: Any

    @classmethod
    def opened(cls, asked: TrainRequest, known: InputSpec | None) -> '_Data':
        names = None if known is None else known.names_alone()
        if asked.X_train is None:
            raise DataError('X_train: got None, expected the inputs to fine-tune on.')
        if is_batches(asked.X_train):
            batches = open_batches(asked.X_train, 'X_train', label=asked.y_train, like=names)
            if batches.has_one_epoch:
                raise DataError(
                    'X_train: got an iterator, which is used up once it is looked at. Pass the '
                    'function that makes it, without calling it, or an object with __iter__.'
                )
            first = batches.peek()
            rows, targets = None, check_targets(first.y, 'X_train, batch 1')
            inputs = with_ranges(batches.inputs, first.x)
        else:
            rows, targets = open_data(asked.X_train, asked.y_train, like=names)
            targets = check_targets(targets, 'y_train')
            inputs = with_ranges(rows.inputs, some_rows(rows))
        if known is not None:
            warn_of_other_ranges(inputs, known, 'X_train')
        return cls(inputs, rows, targets)

    @property
    def raw_values(self) -> str | None:
        """The values in words, where they are not those of normalised pictures; else None."""
        parts = jax.tree.leaves(self.inputs.arrays)
        if all(np.issubdtype(part.dtype, np.integer) for part in parts):
            return 'whole numbers'
        spans = [part.range for part in parts if part.range is not None]
        largest = max((abs(value) for span in spans for value in span), default=0)
        return f'values of up to {largest:.4g}' if largest > LARGEST_STANDARDISED else None

    @property
    def probe(self) -> Any:
        """A few rows of the inputs, as shapes and dtypes."""
        return probe_of(self.inputs, PROBE_ROWS)


def _known_inputs(model: Any, base_model: Any) -> InputSpec | None:
    """Returns what a whole model, or the base, was trained on before.

    A head was trained on features, which are plain rows of numbers and say nothing of the inputs.
    """
    own, of_base = (
        record_of(part).input_spec if isinstance(part, nnx.Module) else None
        for part in (model, base_model)
    )
    is_whole = own is not None and (own.has_columns or _are_pictures(own))
    return own if is_whole and not (of_base and of_base.has_columns) else of_base


def _are_pictures(spec: InputSpec) -> bool:
    return any(len(part.shape) > 1 for part in jax.tree.leaves(spec.arrays))


def _linear_head(
    base: Backbone, data: _Data, asked: TrainRequest, config: TrainingConfig | None
) -> nnx.Linear:
    """A dense layer with an output for each class, label or number of the targets."""
    if data.rows is None:
        raise DataError(
            'model: got None for batches, of which only the first was looked at, so the number of '
            f'classes is open. Pass nnx.Linear({base.num_features}, classes, rngs=nnx.Rngs(0)).'
        )
    targets = np.asarray(data.targets)
    if targets.ndim == 2 and targets.shape[1] > 1:
        outputs = targets.shape[1]
    elif decides(asked.loss_fn) == 'regression' or not _are_labels(targets):
        outputs = 1
    else:
        outputs = max(2, len(np.unique(targets)))
    return nnx.Linear(
        base.num_features, outputs, kernel_init=nnx.initializers.normal(0.01),
        rngs=nnx.Rngs((config or TrainingConfig()).seed),
    )  # fmt: skip


def _are_labels(targets: np.ndarray) -> bool:
    return targets.dtype.kind != 'f' or bool(np.isin(targets, (0, 1)).all())
