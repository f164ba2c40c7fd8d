"""Training: TrainingConfig, ModelTrainer and callbacks."""

from thinkml.monitoring import TrainingMonitor as TrainingMonitor
from thinkml.training.callbacks import Callback as Callback
from thinkml.training.callbacks import Checkpoint as Checkpoint
from thinkml.training.callbacks import EarlyStopping as EarlyStopping
from thinkml.training.callbacks import TensorBoard as TensorBoard
from thinkml.training.config import TrainingConfig as TrainingConfig
from thinkml.training.run import Run as Run
from thinkml.training.trainer import ModelTrainer as ModelTrainer
