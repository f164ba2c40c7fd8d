"""The functional core: pure functions and pytrees, for people who write their own loop."""

from thinkml.core.adapters import ApplyFn as ApplyFn
from thinkml.core.adapters import FunctionalModel as FunctionalModel
from thinkml.core.functional import check_trainable as check_trainable
from thinkml.core.functional import functionalize as functionalize
from thinkml.core.functional import last_activation as last_activation
from thinkml.core.functional import num_outputs as num_outputs
from thinkml.core.loop import Chunk as Chunk
from thinkml.core.loop import DeviceData as DeviceData
from thinkml.core.loop import evaluate as evaluate
from thinkml.core.loop import train_chunks as train_chunks
from thinkml.core.losses import get_loss as get_loss
from thinkml.core.losses import weighted_mean as weighted_mean
from thinkml.core.metrics import WeightedMean as WeightedMean
from thinkml.core.metrics import make_metrics as make_metrics
from thinkml.core.optimizers import OPTIMIZERS as OPTIMIZERS
from thinkml.core.optimizers import make_optimizer as make_optimizer
from thinkml.core.optimizers import set_learning_rate as set_learning_rate
from thinkml.core.predict import inference_batch_size as inference_batch_size
from thinkml.core.predict import predict_outputs as predict_outputs
from thinkml.core.state import TrainState as TrainState
from thinkml.core.state import init_state as init_state
from thinkml.core.step import Batch as Batch
from thinkml.core.step import StepOutput as StepOutput
from thinkml.core.step import make_eval_step as make_eval_step
from thinkml.core.step import make_train_step as make_train_step
