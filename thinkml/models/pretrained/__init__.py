"""Files of pretrained weights: how they are found, and read without running anything in them."""

from thinkml.models.pretrained.keras_file import is_keras_file as is_keras_file
from thinkml.models.pretrained.keras_file import read_keras_file as read_keras_file
from thinkml.models.pretrained.weight_files import open_tensors as open_tensors
from thinkml.models.pretrained.weight_sources import Source as Source
from thinkml.models.pretrained.weight_sources import download_advice as download_advice
from thinkml.models.pretrained.weight_sources import find_weights as find_weights
