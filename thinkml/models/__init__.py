"""Models: adapters, predictions, and model files."""

from thinkml.core.adapters import from_functions as from_functions
from thinkml.core.adapters import from_linen as from_linen
from thinkml.models.manager import ModelManager as ModelManager
from thinkml.models.predict import predict as predict
from thinkml.models.predict import predict_proba as predict_proba
