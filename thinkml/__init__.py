"""ThinkML: training, monitoring and evaluation of models with JAX and Flax.

Each subpackage is imported when it is first used, so ``import thinkml`` is fast and does not import
JAX.

Example:
    >>> import thinkml
    >>> thinkml.errors.ConfigError.__name__
    'ConfigError'
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinkml import core as core
    from thinkml import data as data
    from thinkml import errors as errors
    from thinkml import evaluation as evaluation
    from thinkml import models as models
    from thinkml import monitoring as monitoring
    from thinkml import optimization as optimization
    from thinkml import sklearn as sklearn
    from thinkml import training as training

__version__ = '0.1.0'

_PACKAGES = (
    'core', 'data', 'errors', 'evaluation', 'models', 'monitoring', 'optimization', 'sklearn',
    'training',
)  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    if name in _PACKAGES:
        return importlib.import_module(f'thinkml.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES])
