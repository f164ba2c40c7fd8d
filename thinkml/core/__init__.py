"""The functional core: pure functions and pytrees, for people who write their own loop."""

from typing import TYPE_CHECKING

from thinkml import compilation_cache, lazy
from thinkml.core.adapters import ApplyFn as ApplyFn
from thinkml.core.adapters import FunctionalModel as FunctionalModel
from thinkml.core.augment import ColorJitter as ColorJitter
from thinkml.core.augment import CutMix as CutMix
from thinkml.core.augment import Cutout as Cutout
from thinkml.core.augment import GaussianNoise as GaussianNoise
from thinkml.core.augment import MixUp as MixUp
from thinkml.core.augment import RandomCrop as RandomCrop
from thinkml.core.augment import RandomFlip as RandomFlip
from thinkml.core.augment import RandomRotation as RandomRotation
from thinkml.core.augmentation import AUGMENTATIONS as AUGMENTATIONS
from thinkml.core.augmentation import check_augmentation as check_augmentation
from thinkml.core.augmentation import make_augmentation as make_augmentation
from thinkml.core.dropout import WithDropout as WithDropout
from thinkml.core.feed import Block as Block
from thinkml.core.feed import DeviceData as DeviceData
from thinkml.core.feed import Feed as Feed
from thinkml.core.feed import ResidentFeed as ResidentFeed
from thinkml.core.functional import check_trainable as check_trainable
from thinkml.core.functional import functionalize as functionalize
from thinkml.core.functional import is_model as is_model
from thinkml.core.functional import last_activation as last_activation
from thinkml.core.functional import num_outputs as num_outputs
from thinkml.core.loop import Chunk as Chunk
from thinkml.core.loop import Position as Position
from thinkml.core.loop import empty_metrics as empty_metrics
from thinkml.core.loop import evaluate as evaluate
from thinkml.core.loop import train_chunks as train_chunks
from thinkml.core.losses import BinaryCrossEntropy as BinaryCrossEntropy
from thinkml.core.losses import CrossEntropy as CrossEntropy
from thinkml.core.losses import Focal as Focal
from thinkml.core.losses import Huber as Huber
from thinkml.core.losses import get_loss as get_loss
from thinkml.core.losses import weighted_mean as weighted_mean
from thinkml.core.metric_names import check_metric as check_metric
from thinkml.core.metric_names import is_higher_better as is_higher_better
from thinkml.core.metric_names import metric_name as metric_name
from thinkml.core.metrics import WeightedMean as WeightedMean
from thinkml.core.metrics import compute as compute
from thinkml.core.metrics import make_metrics as make_metrics
from thinkml.core.optimizers import OPTIMIZERS as OPTIMIZERS
from thinkml.core.optimizers import decay_mask as decay_mask
from thinkml.core.optimizers import get_learning_rate as get_learning_rate
from thinkml.core.optimizers import make_optimizer as make_optimizer
from thinkml.core.optimizers import scale_learning_rate as scale_learning_rate
from thinkml.core.optimizers import set_hyperparams as set_hyperparams
from thinkml.core.optimizers import set_learning_rate as set_learning_rate
from thinkml.core.precision import get_compute_dtype as get_compute_dtype
from thinkml.core.predict import inference_batch_size as inference_batch_size
from thinkml.core.predict import make_predict as make_predict
from thinkml.core.predict import predict_outputs as predict_outputs
from thinkml.core.schedules import SCHEDULES as SCHEDULES
from thinkml.core.state import Ema as Ema
from thinkml.core.state import TrainState as TrainState
from thinkml.core.state import init_state as init_state
from thinkml.core.step import Batch as Batch
from thinkml.core.step import StepOutput as StepOutput
from thinkml.core.step import make_eval_step as make_eval_step
from thinkml.core.step import make_train_step as make_train_step

if TYPE_CHECKING:
    from thinkml.core.acquisition import bald as bald
    from thinkml.core.acquisition import entropy as entropy
    from thinkml.core.acquisition import expected_gradient_length as expected_gradient_length
    from thinkml.core.acquisition import least_confident as least_confident
    from thinkml.core.acquisition import margin as margin
    from thinkml.core.acquisition import variance as variance
    from thinkml.core.acquisition import variation_ratio as variation_ratio
    from thinkml.core.exported import ExportedModel as ExportedModel
    from thinkml.core.exported import export_forward as export_forward
    from thinkml.core.features import WithFeatures as WithFeatures
    from thinkml.core.selection import Selection as Selection
    from thinkml.core.selection import at_random as at_random
    from thinkml.core.selection import badge as badge
    from thinkml.core.selection import diverse as diverse
    from thinkml.core.selection import highest as highest
    from thinkml.core.selection import k_center_greedy as k_center_greedy
    from thinkml.core.selection import typiclust as typiclust

__getattr__, __dir__ = lazy.names(__name__, {
    'thinkml.core.acquisition':
        'bald entropy expected_gradient_length least_confident margin variance variation_ratio',
    'thinkml.core.exported': 'ExportedModel export_forward',
    'thinkml.core.features': 'WithFeatures',
    'thinkml.core.selection': 'Selection at_random badge diverse highest k_center_greedy typiclust',
})  # fmt: skip

compilation_cache.switch_on()
