"""TransferLearner: fine-tunes a pretrained model."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

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
from thinkml.data.inputs import probe_of
from thinkml.errors import ConfigError, DataError, NotTrainedError, is_number, is_whole, warn_user
from thinkml.model_record import InputSpec, attach_record, record_of
from thinkml.models.model_table import Table
from thinkml.models.transfer_model import TransferModel
from thinkml.models.zoo import check_weights
from thinkml.monitoring import History
from thinkml.tasks import IGNORE_LABEL, single_task
from thinkml.training.config import TrainingConfig
from thinkml.training.input_checks import check_pixels_of
from thinkml.training.train import (
    TrainResult,
    check_config,
    check_switches,
    open_training,
    run_training,
)
from thinkml.training.training_data import TrainRequest
from thinkml.training.transfer.backbone import (
    Backbone,
    Role,
    check_layout,
    check_module,
    infer_role,
    load_backbone,
    make_backbone,
    shared_tensors,
    transfer_weights,
)
from thinkml.training.transfer.feature_cache import open_feature_cache
from thinkml.training.transfer.layer_groups import (
    LayerGroups,
    check_fine_tune_layers,
    groups_of_headed,
    groups_of_sharing,
    groups_of_trained,
    groups_of_untrained,
    low_rank_targets,
    rate_factors,
    select_layers,
    split_head,
    summary_table,
)
from thinkml.training.validation_sets import (
    argument_of,
    labels_argument_of,
    prefix_of,
    split_sets,
)
from thinkml.typing import Inputs, Labels, Model, PyTree


class TransferLearner:
    """A learner that fine-tunes a pretrained model for your task.

    Args:
        base_model: the pretrained model: a name of `thinkml.models.list_models` with pretrained
            weights, the path of a saved model, or an NNX module. It is not changed.
        fine_tune_layers: the layers of the base to train in addition to the head: the number of its
            last layers (a convolution or dense layer with its normalisation is one), ``'all'``, or
            patterns of their names such as ``['stages.3.*']``. Frozen layers have no gradients and
            no optimizer state, and their BatchNorm uses its stored statistics.
        config: the settings; None for the defaults of `TrainingConfig`, with a tenth of the
            learning rate if layers of the base are trained.
        weights: the weights of an architecture: ``'auto'`` for pretrained ones if they can be found
            or downloaded, and random ones with a warning if not; ``'required'`` to make that an
            error; the path of a file; None for random ones.
        layer_decay: the learning rate of each layer is this times that of the layer after it
            (discriminative learning rates); 1 for the same rate in all layers.
        head_epochs: the number of epochs at the start that train the head alone, so that gradients
            from a random head do no harm to the base (gradual unfreezing).
        lora_rank: the rank of trained updates to the kernels of all dense and attention layers of
            the base that are frozen otherwise (LoRA); None for none. The updates are added to the
            kernels at the end.
        cache_bytes: the memory for the features of an entirely frozen base, which are computed only
            once; features beyond it are stored in files.

    Attributes:
        config: the settings; None for the defaults.
        loaded: the loaded tensors by name, from pretrained weights or from the base into a whole
            model; None if nothing was loaded.

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
        base_model: str | os.PathLike[str] | Model,
        fine_tune_layers: int | Literal['all'] | Sequence[str] = 0,
        *,
        config: TrainingConfig | None = None,
        weights: str | os.PathLike[str] | None = 'auto',
        layer_decay: float = 1.0,
        head_epochs: int = 0,
        lora_rank: int | None = None,
        cache_bytes: int = 2**31,
    ):
        if isinstance(check_config(config).optimizer, Mapping):
            raise ConfigError(
                'optimizer: got patterns, expected one optimizer: fine-tuning trains the layers '
                'that fine_tune_layers names, with rates by layer_decay, and freezes the others.'
            )
        check_fine_tune_layers(fine_tune_layers)
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
        """Returns the history of the last run; None before the first."""
        return None if self._result is None else self._result.history

    def fine_tune(
        self,
        model: Model | None = None,
        X_train: Inputs = None,
        y_train: Labels = None,
        X_val: Inputs = None,
        y_val: Labels = None,
        *,
        epochs: int | None = None,
        role: Role | None = None,
        loss_fn: str | LossFn | None = None,
        metrics: Sequence[Any] | None = None,
        class_weights: Mapping[Any, float] | str | None = None,
        sample_weight: ArrayLike | None = None,
        augmentation: Any = None,
        groups: ArrayLike | None = None,
        progress: bool = True,
    ) -> nnx.Module:
        """Trains the head and the chosen layers, and returns a model that is ready to predict.

        Images of whole numbers from 0 to 255 are normalised as the architecture's pretrained
        weights expect; images of floats are assumed to be normalised already. A whole model that
        you pass gets images unchanged. Columns of frames are matched by the names that the base
        was trained on.

        Args:
            model: None for a linear head with an output for each class; a head, which takes
                features ``[rows, features]`` and is put onto the base; or a whole model, which
                takes ``X_train``: the tensors that it shares with the base, by name and shape, are
                loaded from there. A whole model that shares nothing with the base is fine-tuned by
                itself, with a warning: its last layers if it was trained before, else all of it.
                Shapes decide if it is a head or a whole model. It is trained in place.
            X_train: as in `ModelTrainer.train`.
            y_train: as in `ModelTrainer.train`.
            X_val: as in `ModelTrainer.train`.
            y_val: as in `ModelTrainer.train`.
            epochs: the number of epochs; None for ``config.epochs``.
            role: ``'head'`` or ``'model'``, if shapes leave open what ``model`` is; else None.
            loss_fn: as in `ModelTrainer.train`.
            metrics: as in `ModelTrainer.train`.
            class_weights: as in `ModelTrainer.train`.
            sample_weight: as in `ModelTrainer.train`.
            augmentation: as in `ModelTrainer.train`.
            groups: as in `ModelTrainer.train`.
            progress: as in `ModelTrainer.train`.

        Returns:
            The whole model: ``model`` itself if it is one, else the base and the head as a
            `thinkml.models.TransferModel`.

        Warns:
            PretrainedWeightsWarning: if no pretrained weights were found.
            ThinkMLWarning: if ``model`` shares nothing with the base, or is a whole model and the
                images are not normalised; if the images are on another scale than those that the
                base was trained on.

        Raises:
            DataError: for data or a model that match neither each other nor the base.
            ConfigError: for settings that are impossible, or if the role of ``model`` is ambiguous.
            ModelTypeError: for a model that is not an NNX module.
            WeightsError: if required weights are not found, or if weights do not fit the model.
        """
        check_switches(progress=progress)
        if model is not None:
            check_module(model)
            check_not_trained(model)
        request = TrainRequest(
            X_train=X_train,
            y_train=y_train,
            X_val=X_val,
            y_val=y_val,
            loss_fn=loss_fn,
            metrics=metrics,
            class_weights=class_weights,
            sample_weight=sample_weight,
            augmentation=augmentation,
            groups=groups,
        )
        base_model = load_backbone(self.base_model)
        data = _TrainingData.open(request, _trained_input_spec(model, base_model))
        request = request._replace(known=data.inputs)
        layer_groups = self._make_layer_groups(model, role, request, data, base_model)
        trained = select_layers(layer_groups.layers, self.fine_tune_layers)
        rates = rate_factors(layer_groups, trained, self.layer_decay)
        if not rates and self.lora_rank is None:
            raise ConfigError(
                'fine_tune_layers: got 0 for a model that is fine-tuned by itself, so nothing '
                'would be trained. Pass the number of its last layers to train.'
            )
        low_rank = {} if self.lora_rank is None else low_rank_targets(layer_groups, rates)
        self._summary = summary_table(layer_groups, rates, low_rank)
        trains_head_only = not trained and not low_rank
        trains_base = bool(trained) and bool(layer_groups.head)
        config = self._make_config(epochs, trains_base=trains_base)
        head_epochs = config.epochs if trains_head_only else min(self.head_epochs, config.epochs)
        self._result = None
        remaining: TrainingConfig | None = config
        if head_epochs and layer_groups.head:
            head_config = dataclasses.replace(config, epochs=head_epochs)
            result = self._train_head(layer_groups, request, data, head_config, progress)
            remaining = _remaining_config(config, result)
        if remaining is not None and head_epochs < config.epochs:
            remaining = dataclasses.replace(remaining, epochs=config.epochs - head_epochs)
            frozen = PartlyFrozen(layer_groups.model, rates, low_rank, self.lora_rank or 0)
            self._train_unfrozen(frozen, request, remaining, progress)
        return layer_groups.model

    def summary(self) -> Table:
        """Returns a table of the layers of the last fine-tuned model, and which were trained.

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

    def _make_config(self, epochs: int | None, *, trains_base: bool) -> TrainingConfig:
        config = self.config
        if config is None:
            config = TrainingConfig()
            if trains_base:
                config = dataclasses.replace(config, learning_rate=config.learning_rate / 10)
        return config if epochs is None else dataclasses.replace(config, epochs=epochs)

    def _make_layer_groups(
        self,
        model: Model | None,
        role: Role | None,
        request: TrainRequest,
        data: '_TrainingData',
        base_model: str | Model,
    ) -> LayerGroups:
        is_path = isinstance(self.base_model, str | os.PathLike)
        base = make_backbone(base_model, data.probe, str(self.base_model) if is_path else None)
        if model is None:
            model, role = _linear_head(base, data, request, self.config), 'head'
        else:
            role = infer_role(model, base, data.probe, role)
        if role == 'head':
            check_layout(base, data.probe)
            model = base.with_head(model)
        check_pixels_of(model, data.inputs)
        if role == 'head':
            self.loaded = base.load(self.weights)
            return groups_of_headed(model, data.probe)
        if shared := shared_tensors(model, base):
            self.loaded = None
            if base.load(self.weights) or base.is_pretrained:
                self.loaded = transfer_weights(model, base, shared)
            normalises = isinstance(model, TransferModel) and model.standardises_pixels
            if base.normalisation and data.raw_values and not normalises:
                warn_user(
                    f'X_train: {data.raw_values}, which a whole model gets unchanged, not '
                    f'normalised as {base.name} expects. Pass get_preprocessing({base.name!r})('
                    'X_train).'
                )
            return groups_of_sharing(model, shared, data.probe)
        self.loaded = None
        was_trained = bool(record_of(model).runs)
        warn_user(
            f'model: it has no tensor in common with {base.name}, so it is fine-tuned by itself: '
            + ('its last layers.' if was_trained else 'all of it, from its present weights.')
            + f' Pass a head, which takes features (rows, {base.num_features}), or None, to put '
            'one onto the base.'
        )
        return groups_of_trained(model, data.probe) if was_trained else groups_of_untrained(model)

    def _train(
        self, model: Model, request: TrainRequest, config: TrainingConfig, progress: bool
    ) -> TrainResult:
        with open_training(model, request, config) as training:
            self._result = training.result  # set first, so that it is there after an interruption
            run_training(training, progress=progress)
        return training.result

    def _train_unfrozen(
        self, model: PartlyFrozen, request: TrainRequest, config: TrainingConfig, progress: bool
    ) -> TrainResult:
        """Trains the parameters that are not frozen, with the record of the whole model."""
        attach_record(model, record_of(model.model))
        return self._train(model, request, config, progress)

    def _train_head(
        self,
        groups: LayerGroups,
        request: TrainRequest,
        data: '_TrainingData',
        config: TrainingConfig,
        progress: bool,
    ) -> TrainResult:
        """Trains the head alone, on features that are computed once if possible."""
        headed, sets = None, split_sets(request)
        if not (
            data.rows is None
            or request.augmentation
            or config.fast_dev_run
            or any(is_batches(X) for X, _ in sets.values())
        ):
            headed = split_head(groups, data.probe)
        if headed is None or data.rows is None:
            frozen = PartlyFrozen(groups.model, dict.fromkeys(groups.head, 1.0))
            return self._train_unfrozen(frozen, request, config, progress)
        record = record_of(groups.model)
        if record.runs:
            head_record = dataclasses.replace(record, runs=list(record.runs), input_spec=None)
            attach_record(headed.head, head_record)
        with open_feature_cache(self.cache_bytes) as cache:
            features = cache.compute(headed, data.rows, 'train')
            cached = request._replace(X_train=features, y_train=data.targets, known=None)
            found = {}
            for name, (X, y) in sets.items():
                arguments = argument_of(name), labels_argument_of(name)
                rows, targets = open_data(X, y, *arguments, data.inputs)
                found[name] = cache.compute(headed, rows, prefix_of(name)[:-1]), targets
            if None in found:
                cached = cached._replace(X_val=found[None][0], y_val=found[None][1])
            elif found:
                cached = cached._replace(X_val=found, y_val=None)
            try:
                result = self._train(headed.head, cached, config, progress)
            except KeyboardInterrupt:  # the model keeps what it learned until then
                self._copy_record(headed.head, groups, data)
                raise
        self._copy_record(headed.head, groups, data)
        return result

    def _copy_record(self, head: nnx.Module, groups: LayerGroups, data: '_TrainingData') -> None:
        """Copies the record of a trained head to the whole model."""
        head_record = record_of(head)
        task = single_task(head_record.task, 'model: fine-tuning needs')
        assert task is not None and data.rows is not None
        labels = encode_targets(data.targets, task, 'y_train')
        record = dataclasses.replace(
            head_record,
            input_spec=data.inputs,
            optimizer=None,
            data_fingerprint=fingerprint(data.rows, labels),
        )
        attach_record(groups.model, record)
        groups.model.eval()


def _remaining_config(config: TrainingConfig, result: TrainResult) -> TrainingConfig | None:
    """Returns the settings with the limits that a first run leaves; None if it ends training."""
    history = result.history
    if result.was_stopped:
        return None
    steps, seconds = config.max_steps, config.max_seconds
    if steps is not None:
        steps -= history.steps
    if seconds is not None:
        seconds -= history.seconds
    if any(limit is not None and limit <= 0 for limit in (steps, seconds)):
        return None
    return dataclasses.replace(config, max_steps=steps, max_time=seconds)


@dataclasses.dataclass(frozen=True)
class _TrainingData:
    """Training data before its targets are encoded.

    Attributes:
        inputs: the names, shapes, dtypes and ranges of a row of the inputs.
        rows: the inputs; None if they come in batches.
        targets: the user's targets; those of the first batch if they come in batches.
    """

    inputs: InputSpec
    rows: Rows | None
    targets: np.ndarray

    @classmethod
    def open(cls, request: TrainRequest, trained_spec: InputSpec | None) -> '_TrainingData':
        """Opens and checks the training data of a request.

        Args:
            request: the arguments of `TransferLearner.fine_tune`.
            trained_spec: the inputs that the base was trained on; None if they are not known.

        Raises:
            DataError: for data that can't be used, or can be read only once.
        """
        names = None if trained_spec is None else trained_spec.names_alone()
        if request.X_train is None:
            raise DataError('X_train: got None, expected the inputs to fine-tune on.')
        if is_batches(request.X_train):
            batches = open_batches(request.X_train, 'X_train', label=request.y_train, like=names)
            if batches.has_one_epoch:
                raise DataError(
                    'X_train: got an iterator, which can be read only once. Pass the '
                    'function that makes it, without calling it, or an object with __iter__.'
                )
            first = batches.peek()
            rows, targets = None, check_targets(first.y, 'X_train, batch 1')
            inputs = with_ranges(batches.inputs, first.x)
        else:
            rows, targets = open_data(request.X_train, request.y_train, like=names)
            targets = check_targets(targets, 'y_train')
            inputs = with_ranges(rows.inputs, some_rows(rows))
        if trained_spec is not None:
            warn_of_other_ranges(inputs, trained_spec, 'X_train')
        return cls(inputs, rows, targets)

    @property
    def raw_values(self) -> str | None:
        """Describes the values if they are not those of normalised images; None if they are."""
        parts = jax.tree.leaves(self.inputs.arrays)
        if all(np.issubdtype(part.dtype, np.integer) for part in parts):
            return 'whole numbers'
        ranges = [part.range for part in parts if part.range is not None]
        largest = max((abs(value) for limits in ranges for value in limits), default=0)
        return f'values of up to {largest:.4g}' if largest > LARGEST_STANDARDISED else None

    @property
    def probe(self) -> PyTree:
        """Returns a few rows of the inputs, as shapes and dtypes."""
        return probe_of(self.inputs, PROBE_ROWS)


def _trained_input_spec(model: Model | None, base_model: str | Model) -> InputSpec | None:
    """Returns the inputs that a whole model, or the base, was trained on before.

    A head was trained on features: plain rows of numbers, which do not describe the inputs.
    """
    model_spec, base_spec = (
        record_of(part).input_spec if isinstance(part, nnx.Module) else None
        for part in (model, base_model)
    )
    is_whole_model = model_spec is not None and (model_spec.has_columns or _are_images(model_spec))
    return model_spec if is_whole_model and not (base_spec and base_spec.has_columns) else base_spec


def _are_images(spec: InputSpec) -> bool:
    return any(len(part.shape) > 1 for part in jax.tree.leaves(spec.arrays))


def _linear_head(
    base: Backbone, data: _TrainingData, request: TrainRequest, config: TrainingConfig | None
) -> nnx.Linear:
    """Returns a dense layer with an output for each class, label or number of the targets."""
    if data.rows is None:
        raise DataError(
            'model: got None for batches. Only the first batch was read, so the '
            'number of classes is not known. Pass '
            f'nnx.Linear({base.num_features}, classes, rngs=nnx.Rngs(0)).'
        )
    targets = np.asarray(data.targets)
    if targets.ndim == 2 and targets.shape[1] > 1:
        outputs = targets.shape[1]
    elif decides(request.loss_fn) == 'regression' or not _are_labels(targets):
        outputs = 1
    else:
        counted = targets if targets.dtype.kind == 'U' else targets[targets != IGNORE_LABEL]
        outputs = max(2, len(np.unique(counted)))
    return nnx.Linear(
        base.num_features, outputs, kernel_init=nnx.initializers.normal(0.01),
        rngs=nnx.Rngs((config or TrainingConfig()).seed),
    )  # fmt: skip


def _are_labels(targets: np.ndarray) -> bool:
    return targets.dtype.kind != 'f' or bool(np.isin(targets, (0, 1)).all())
