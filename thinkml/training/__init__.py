"""Training: TrainingConfig, ModelTrainer, callbacks, and the pieces a config is made of."""

from typing import TYPE_CHECKING

from thinkml import lazy
from thinkml.core import CTC as CTC
from thinkml.core import BinaryCrossEntropy as BinaryCrossEntropy
from thinkml.core import ColorJitter as ColorJitter
from thinkml.core import CrossEntropy as CrossEntropy
from thinkml.core import CutMix as CutMix
from thinkml.core import Cutout as Cutout
from thinkml.core import Dice as Dice
from thinkml.core import Focal as Focal
from thinkml.core import GaussianNoise as GaussianNoise
from thinkml.core import Huber as Huber
from thinkml.core import MixUp as MixUp
from thinkml.core import Objective as Objective
from thinkml.core import Quantile as Quantile
from thinkml.core import RandomCrop as RandomCrop
from thinkml.core import RandomFlip as RandomFlip
from thinkml.core import RandomRotation as RandomRotation
from thinkml.core import StepOutput as StepOutput
from thinkml.core import StepState as StepState
from thinkml.training.callback import Callback as Callback
from thinkml.training.callbacks.checkpoint import Checkpoint as Checkpoint
from thinkml.training.callbacks.early_stopping import EarlyStopping as EarlyStopping
from thinkml.training.callbacks.loggers import CSVLogger as CSVLogger
from thinkml.training.callbacks.loggers import MLflow as MLflow
from thinkml.training.callbacks.loggers import TensorBoard as TensorBoard
from thinkml.training.callbacks.loggers import WandB as WandB
from thinkml.training.callbacks.profiler import Profiler as Profiler
from thinkml.training.callbacks.reduce_lr import ReduceLROnPlateau as ReduceLROnPlateau
from thinkml.training.config import TrainingConfig as TrainingConfig
from thinkml.training.run import Run as Run
from thinkml.training.trainer import DistributedTrainer as DistributedTrainer
from thinkml.training.trainer import ModelTrainer as ModelTrainer

if TYPE_CHECKING:
    from thinkml.monitoring import TrainingMonitor as TrainingMonitor
    from thinkml.training.active.history import ActiveHistory as ActiveHistory
    from thinkml.training.active.history import ActiveQuery as ActiveQuery
    from thinkml.training.active.learner import ActiveLearner as ActiveLearner
    from thinkml.training.active.strategies import DiverseBatches as DiverseBatches
    from thinkml.training.checkpoint_weights import load_checkpoint as load_checkpoint
    from thinkml.training.memory_plan import Plan as Plan
    from thinkml.training.memory_plan import PlannedArray as PlannedArray
    from thinkml.training.memory_plan import PlannedPart as PlannedPart
    from thinkml.training.step_bounds import StepBounds as StepBounds
    from thinkml.training.target_plan import TargetPlan as TargetPlan
    from thinkml.training.transfer.learner import TransferLearner as TransferLearner

__getattr__, __dir__ = lazy.names(__name__, {
    'thinkml.monitoring': 'TrainingMonitor',
    'thinkml.training.active.history': 'ActiveHistory ActiveQuery',
    'thinkml.training.active.learner': 'ActiveLearner',
    'thinkml.training.active.strategies': 'DiverseBatches',
    'thinkml.training.checkpoint_weights': 'load_checkpoint',
    'thinkml.training.memory_plan': 'Plan PlannedArray PlannedPart',
    'thinkml.training.step_bounds': 'StepBounds',
    'thinkml.training.target_plan': 'TargetPlan',
    'thinkml.training.transfer.learner': 'TransferLearner',
})  # fmt: skip
