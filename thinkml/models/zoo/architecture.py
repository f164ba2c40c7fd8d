"""The entry of an architecture in the catalog."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from thinkml.models.pretrained.weight_sources import Source
from thinkml.models.zoo.preprocessing import Preprocessing
from thinkml.models.zoo.tensor_names import TensorNames


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model class with its defaults and its pretrained weights.

    Attributes:
        make: the class.
        options: the arguments it is called with, unless the user passes others.
        preprocessing: the preparation of images that the pretrained weights need; None if there
            are no pretrained weights.
        sources: the files of pretrained weights, those that may be downloaded first. All were
            trained on images that were prepared in the same way.
        tensor_names: the names that other libraries use for the tensors of the class.
    """

    make: type[Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    sources: Sequence[Source] = ()
    tensor_names: TensorNames = dataclasses.field(default_factory=TensorNames)
