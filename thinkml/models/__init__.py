"""Models: adapters, predictions, model files, and architectures with pretrained weights."""

from thinkml.core.model.adapters import from_functions as from_functions
from thinkml.core.model.adapters import from_linen as from_linen
from thinkml.core.model.attention import dot_product_attention as dot_product_attention
from thinkml.model_record import attach_record as attach_record
from thinkml.model_record import record_of as record_of
from thinkml.models.inspection import Inspection as Inspection
from thinkml.models.inspection import Parameter as Parameter
from thinkml.models.manager import ModelManager as ModelManager
from thinkml.models.model_table import Table as Table
from thinkml.models.predict import predict as predict
from thinkml.models.predict import predict_proba as predict_proba
from thinkml.models.serialization.export import load_safetensors as load_safetensors
from thinkml.models.serialization.export import save_safetensors as save_safetensors
from thinkml.models.transfer_model import TransferModel as TransferModel
from thinkml.models.zoo import Preprocessing as Preprocessing
from thinkml.models.zoo import create as create
from thinkml.models.zoo import get_preprocessing as get_preprocessing
from thinkml.models.zoo import list_models as list_models
