"""Model architectures, ready to train, and the loading of pretrained weights into them."""

from thinkml.models.zoo.catalog import get_preprocessing as get_preprocessing
from thinkml.models.zoo.catalog import list_models as list_models
from thinkml.models.zoo.cnn import CNN as CNN
from thinkml.models.zoo.convnext import ConvNeXt as ConvNeXt
from thinkml.models.zoo.create import create as create
from thinkml.models.zoo.load import LoadReport as LoadReport
from thinkml.models.zoo.load import load_tensors as load_tensors
from thinkml.models.zoo.mlp import MLP as MLP
from thinkml.models.zoo.preprocessing import Preprocessing as Preprocessing
from thinkml.models.zoo.pretrained_weights import check_weights as check_weights
from thinkml.models.zoo.pretrained_weights import load_pretrained as load_pretrained
from thinkml.models.zoo.resnet import ResNet as ResNet
from thinkml.models.zoo.tabular_resnet import ResidualMLP as ResidualMLP
from thinkml.models.zoo.vit import ViT as ViT
