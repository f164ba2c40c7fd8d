"""Makers of models: functions of a seed that return a model with its initial weights."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from thinkml.core.model.functional import is_model
from thinkml.errors import ConfigError, ModelTypeError
from thinkml.typing import Model


def model_maker(make_model: Any, parameters: Mapping[str, Any]) -> Callable[[int], Model]:
    """Returns a function of a seed that makes a model with its initial weights."""
    if is_model(make_model):
        if parameters:
            raise ConfigError(
                f'model_parameters: got {", ".join(parameters)} beside a model, expected none. '
                'Pass a function that makes the model.'
            )
        if not isinstance(make_model, nnx.Module):
            raise ModelTypeError(
                f'make_model: got {type(make_model).__name__}, expected an NNX module or a '
                'function that makes the model, for instance lambda: from_linen(Net()).'
            )
        return lambda seed: nnx.clone(make_model)
    if not callable(make_model):
        raise ModelTypeError(
            f'make_model: got {make_model!r}, expected a function that makes a model.'
        )
    takes_rngs = 'rngs' in inspect.signature(make_model).parameters

    def make(seed: int) -> Model:
        rngs = {'rngs': nnx.Rngs(seed)} if takes_rngs else {}
        model = make_model(**rngs, **parameters)
        if not is_model(model):
            raise ModelTypeError(
                f'make_model: it returned {type(model).__name__}, expected a model.'
            )
        return model

    return make
