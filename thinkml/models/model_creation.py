"""Model creation: an untrained model from a name of the zoo, a factory or another model."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

from thinkml.core.model.functional import is_model
from thinkml.errors import ConfigError, unknown_name
from thinkml.model_record import ModelRecord, attach_record
from thinkml.models.zoo.catalog import ARCHITECTURES
from thinkml.models.zoo.create import create
from thinkml.typing import Model


def create_model(
    model: Any,
    parameters: Mapping[str, Any],
    row_shape: tuple[int, ...],
    num_outputs: int,
    seed: int,
    prefix: str = '',
) -> Model:
    """Returns the model that a training starts from.

    Args:
        model: a name of the zoo, a factory that is called with ``rngs`` and the parameters, or a
            model, which is copied without its record.
        parameters: the arguments of the zoo's class or of the factory.
        row_shape: the shape of a row of inputs. ``in_features`` is its size, for a class or factory
            that takes it.
        num_outputs: ``num_classes``, for a class or factory that takes it.
        seed: the seed of the random weights.
        prefix: the start of the parameters' names in error messages.

    Raises:
        ConfigError: for an unknown name, a parameter that is unknown or missing, or a value of
            ``model`` that is none of these.
    """
    if is_model(model):
        if parameters:
            raise ConfigError(
                f'{prefix}{next(iter(parameters))}: got it beside a {type(model).__name__}, which '
                'is built already, expected the name of an architecture or a factory as model.'
            )
        copied = copy.deepcopy(model)
        attach_record(copied, ModelRecord())  # the weights alone are the start
        return copied
    if isinstance(model, str):
        if model not in ARCHITECTURES:
            raise ConfigError(unknown_name('model', model, ARCHITECTURES))
        architecture = ARCHITECTURES[model]
        takes = {**_arguments(architecture.make), 'weights': None}
        defaults = architecture.options
    elif callable(model):
        takes, defaults = _arguments(model), {}
    else:
        raise ConfigError(
            f"model: got {model!r}, expected the name of an architecture such as 'mlp', a function "
            'make_model(*, rngs, ...) that returns a model, or a model.'
        )
    of_data = {'in_features': math.prod(row_shape), 'num_classes': num_outputs}
    of_data = {name: value for name, value in of_data.items() if name in takes}
    _check_parameters(takes, parameters, {*defaults, *of_data, *parameters, 'rngs'}, prefix)
    arguments = {**of_data, **parameters}
    if isinstance(model, str):
        return create(model, **arguments, seed=seed)
    made = model(**arguments, **({'rngs': nnx.Rngs(seed)} if 'rngs' in takes else {}))
    if not is_model(made):
        raise ConfigError(
            f'model: the factory returned a {type(made).__name__}, expected a model, such as a '
            'flax.nnx.Module.'
        )
    return made


def parameters_of(model: Any) -> list[str]:
    """Returns the names of the parameters that `create_model` takes; none for a model."""
    if is_model(model):
        return []
    if isinstance(model, str) and model in ARCHITECTURES:
        return [*_named(_arguments(ARCHITECTURES[model].make))]
    return [*_named(_arguments(model))] if callable(model) else []


def _named(takes: Mapping[str, inspect.Parameter | None]) -> dict[str, inspect.Parameter | None]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: part
        for name, part in takes.items()
        if name != 'rngs' and not (part and part.kind in variadic)
    }


def _arguments(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    # The metaclass of modules hides their signature.
    found = dict(inspect.signature(make.__init__ if inspect.isclass(make) else make).parameters)
    if inspect.isclass(make):
        del found['self']
    return found


def _check_parameters(
    takes: Mapping[str, inspect.Parameter | None],
    passed: Iterable[str],
    given: set[str],
    prefix: str,
) -> None:
    """Raises a `ConfigError` for a parameter that a factory does not take, or lacks."""
    kinds, named = inspect.Parameter, _named(takes)
    takes_any = any(part and part.kind is kinds.VAR_KEYWORD for part in takes.values())
    allowed = [prefix + name for name in named]
    for name in passed:
        if prefix + name not in allowed and not takes_any:
            raise ConfigError(unknown_name('model', prefix + name, allowed))
    for name, part in named.items():
        if part and part.default is kinds.empty and name not in given:
            raise ConfigError(
                f'{prefix}{name}: got nothing, expected a value for the argument {name!r} of the '
                f'model. Pass {prefix}{name}=...'
            )
