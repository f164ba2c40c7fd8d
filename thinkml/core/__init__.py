"""The functional core: pure functions and pytrees for custom training loops."""

from typing import TYPE_CHECKING

from thinkml import compilation_cache, lazy
from thinkml.core.model.adapters import ApplyFn as ApplyFn
from thinkml.core.model.adapters import FunctionalModel as FunctionalModel
from thinkml.core.model.forward import inference_batch_size as inference_batch_size
from thinkml.core.model.forward import make_predict as make_predict
from thinkml.core.model.forward import predict_outputs as predict_outputs
from thinkml.core.model.functional import check_trainable as check_trainable
from thinkml.core.model.functional import functionalize as functionalize
from thinkml.core.model.functional import is_model as is_model
from thinkml.core.model.functional import last_activation as last_activation
from thinkml.core.model.functional import num_outputs as num_outputs
from thinkml.core.model.mc_dropout import WithDropout as WithDropout
from thinkml.core.model.mixed_precision import get_compute_dtype as get_compute_dtype
from thinkml.core.objectives.ctc import CTC as CTC
from thinkml.core.objectives.heads import Head as Head
from thinkml.core.objectives.heads import HeadLosses as HeadLosses
from thinkml.core.objectives.losses import BinaryCrossEntropy as BinaryCrossEntropy
from thinkml.core.objectives.losses import CrossEntropy as CrossEntropy
from thinkml.core.objectives.losses import Dice as Dice
from thinkml.core.objectives.losses import Focal as Focal
from thinkml.core.objectives.losses import Huber as Huber
from thinkml.core.objectives.losses import Quantile as Quantile
from thinkml.core.objectives.losses import get_loss as get_loss
from thinkml.core.objectives.losses import weighted_mean as weighted_mean
from thinkml.core.objectives.metric_table import check_metric as check_metric
from thinkml.core.objectives.metric_table import is_higher_better as is_higher_better
from thinkml.core.objectives.metric_table import metric_name as metric_name
from thinkml.core.objectives.model_objective import Objective as Objective
from thinkml.core.objectives.model_objective import ObjectiveBatch as ObjectiveBatch
from thinkml.core.objectives.model_objective import ObjectiveLoss as ObjectiveLoss
from thinkml.core.objectives.streaming_metrics import WeightedMean as WeightedMean
from thinkml.core.objectives.streaming_metrics import compute as compute
from thinkml.core.objectives.streaming_metrics import make_head_metrics as make_head_metrics
from thinkml.core.objectives.streaming_metrics import make_metrics as make_metrics
from thinkml.core.objectives.streaming_metrics import (
    make_objective_metrics as make_objective_metrics,
)
from thinkml.core.train.augmentation_registry import AUGMENTATIONS as AUGMENTATIONS
from thinkml.core.train.augmentation_registry import check_augmentation as check_augmentation
from thinkml.core.train.augmentation_registry import make_augmentation as make_augmentation
from thinkml.core.train.augmentations import ColorJitter as ColorJitter
from thinkml.core.train.augmentations import CutMix as CutMix
from thinkml.core.train.augmentations import Cutout as Cutout
from thinkml.core.train.augmentations import GaussianNoise as GaussianNoise
from thinkml.core.train.augmentations import MixUp as MixUp
from thinkml.core.train.augmentations import RandomCrop as RandomCrop
from thinkml.core.train.augmentations import RandomFlip as RandomFlip
from thinkml.core.train.augmentations import RandomRotation as RandomRotation
from thinkml.core.train.aux_losses import AuxLosses as AuxLosses
from thinkml.core.train.batch_feed import Block as Block
from thinkml.core.train.batch_feed import BucketFeed as BucketFeed
from thinkml.core.train.batch_feed import DeviceData as DeviceData
from thinkml.core.train.batch_feed import Feed as Feed
from thinkml.core.train.batch_feed import ResidentFeed as ResidentFeed
from thinkml.core.train.batch_feed import Shortening as Shortening
from thinkml.core.train.custom_step import StepState as StepState
from thinkml.core.train.hyperparameters import get_learning_rate as get_learning_rate
from thinkml.core.train.hyperparameters import scale_learning_rate as scale_learning_rate
from thinkml.core.train.hyperparameters import set_hyperparams as set_hyperparams
from thinkml.core.train.hyperparameters import set_learning_rate as set_learning_rate
from thinkml.core.train.loop import Chunk as Chunk
from thinkml.core.train.loop import Position as Position
from thinkml.core.train.loop import empty_metrics as empty_metrics
from thinkml.core.train.loop import evaluate as evaluate
from thinkml.core.train.loop import train_chunks as train_chunks
from thinkml.core.train.optimizers import OPTIMIZERS as OPTIMIZERS
from thinkml.core.train.optimizers import decay_mask as decay_mask
from thinkml.core.train.optimizers import make_optimizer as make_optimizer
from thinkml.core.train.schedules import SCHEDULES as SCHEDULES
from thinkml.core.train.state import Ema as Ema
from thinkml.core.train.state import TrainState as TrainState
from thinkml.core.train.state import init_state as init_state
from thinkml.core.train.step import Batch as Batch
from thinkml.core.train.step import StepOutput as StepOutput
from thinkml.core.train.step import make_eval_step as make_eval_step
from thinkml.core.train.step import make_train_step as make_train_step

if TYPE_CHECKING:
    from thinkml.core.active.acquisition import bald as bald
    from thinkml.core.active.acquisition import entropy as entropy
    from thinkml.core.active.acquisition import expected_gradient_length as expected_gradient_length
    from thinkml.core.active.acquisition import least_confident as least_confident
    from thinkml.core.active.acquisition import margin as margin
    from thinkml.core.active.acquisition import variance as variance
    from thinkml.core.active.acquisition import variation_ratio as variation_ratio
    from thinkml.core.active.selection import Selection as Selection
    from thinkml.core.active.selection import at_random as at_random
    from thinkml.core.active.selection import badge as badge
    from thinkml.core.active.selection import diverse as diverse
    from thinkml.core.active.selection import highest as highest
    from thinkml.core.active.selection import k_center_greedy as k_center_greedy
    from thinkml.core.active.selection import typiclust as typiclust
    from thinkml.core.model.exported_forward import ExportedModel as ExportedModel
    from thinkml.core.model.exported_forward import export_forward as export_forward
    from thinkml.core.model.feature_extraction import WithFeatures as WithFeatures

__getattr__, __dir__ = lazy.names(__name__, {
    'thinkml.core.active.acquisition':
        'bald entropy expected_gradient_length least_confident margin variance variation_ratio',
    'thinkml.core.model.exported_forward': 'ExportedModel export_forward',
    'thinkml.core.model.feature_extraction': 'WithFeatures',
    'thinkml.core.active.selection':
        'Selection at_random badge diverse highest k_center_greedy typiclust',
})  # fmt: skip

compilation_cache.switch_on()
