"""Training: TrainingConfig, ModelTrainer, callbacks, and the pieces a config is made of."""

from thinkml.core import BinaryCrossEntropy as BinaryCrossEntropy
from thinkml.core import ColorJitter as ColorJitter
from thinkml.core import CrossEntropy as CrossEntropy
from thinkml.core import CutMix as CutMix
from thinkml.core import Cutout as Cutout
from thinkml.core import Focal as Focal
from thinkml.core import GaussianNoise as GaussianNoise
from thinkml.core import Huber as Huber
from thinkml.core import MixUp as MixUp
from thinkml.core import RandomCrop as RandomCrop
from thinkml.core import RandomFlip as RandomFlip
from thinkml.core import RandomRotation as RandomRotation
from thinkml.monitoring import TrainingMonitor as TrainingMonitor
from thinkml.training.callbacks import Callback as Callback
from thinkml.training.checkpointing import Checkpoint as Checkpoint
from thinkml.training.config import TrainingConfig as TrainingConfig
from thinkml.training.distributed import DistributedTrainer as DistributedTrainer
from thinkml.training.loggers import CSVLogger as CSVLogger
from thinkml.training.loggers import MLflow as MLflow
from thinkml.training.loggers import TensorBoard as TensorBoard
from thinkml.training.loggers import WandB as WandB
from thinkml.training.profiler import Profiler as Profiler
from thinkml.training.run import Run as Run
from thinkml.training.trainer import ModelTrainer as ModelTrainer
from thinkml.training.watching import EarlyStopping as EarlyStopping
from thinkml.training.watching import ReduceLROnPlateau as ReduceLROnPlateau
