"""Backbone: a model that returns features, and how another model is matched to it."""

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from thinkml.core import num_outputs
from thinkml.core.model.image_layout import fits, layout_hint
from thinkml.core.model.layer_inspection import last_dense
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.data import is_batches
from thinkml.data.dataframes import is_frame
from thinkml.data.map_style_datasets import is_array
from thinkml.errors import ConfigError, DataError, ModelTypeError, unknown_name
from thinkml.models import ModelManager
from thinkml.models.transfer_model import PassThrough, TransferModel
from thinkml.models.zoo import create, get_preprocessing, list_models, load_pretrained
from thinkml.paths import local_path
from thinkml.typing import Model, PyTree

Role = Literal['head', 'model']
ParameterPath = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model that returns features.

    Attributes:
        name: the name of the architecture, the path, or the name of the class.
        model: the module; a copy if it is the user's, which is not changed.
        num_features: the length of a row of features.
        is_pretrained: True if it is a saved model or the user's, so that no weights are to be
            loaded.
        normalisation: mean and std of the channels, see `TransferModel`; None for none.
    """

    name: str
    model: nnx.Module
    num_features: int
    is_pretrained: bool
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None

    def with_head(self, head: nnx.Module) -> TransferModel:
        """Returns the base and a head as one model."""
        mean, std = self.normalisation or (None, None)
        return TransferModel(self.model, head, mean, std)

    def load(self, weights: str | os.PathLike[str] | None) -> Any:
        """Loads pretrained weights into an architecture of the zoo, and returns which."""
        if self.is_pretrained or weights is None:
            return None
        return load_pretrained(self.model, self.name, weights)


def load_backbone(base_model: str | os.PathLike[str] | Model) -> str | Model:
    """Returns the saved model for a path, and everything else unchanged.

    Raises:
        ConfigError: for a name that is neither a path nor in the zoo.
    """
    is_path = isinstance(base_model, str | os.PathLike) and base_model not in list_models()
    if not is_path:
        return base_model
    if not local_path(base_model, 'base_model').exists():
        message = unknown_name('base_model', str(base_model), list_models())
        raise ConfigError(f'{message} There is no saved model at this path either.')
    return ModelManager().load_model(base_model)


def make_backbone(base_model: str | Model, inputs: PyTree, name: str | None = None) -> Backbone:
    """Makes a backbone from the result of `load_backbone`, without its pretrained weights.

    Args:
        base_model: a name of the zoo, or an NNX module.
        inputs: a row of the inputs, as `jax.ShapeDtypeStruct`, for models whose last layer is to
            be removed.
        name: the name of the module; None for that of its class.

    Raises:
        ConfigError: for an architecture of the zoo that has no pretrained weights.
        ModelTypeError: for a model that is not an NNX module.
    """
    if isinstance(base_model, str) and base_model in list_models():
        preprocessing = get_preprocessing(base_model)
        if preprocessing is None:
            raise ConfigError(
                f'base_model: there are no pretrained weights of {base_model!r}. Pass a model that '
                'you have trained, or its path.'
            )
        model = create(base_model, None)
        return Backbone(
            name=base_model,
            model=model,
            num_features=model.num_features,
            is_pretrained=False,
            normalisation=(preprocessing.mean, preprocessing.std),
        )
    name, model = name or type(base_model).__name__, base_model
    if not isinstance(model, nnx.Module):
        raise ModelTypeError(
            f'base_model: got a {type(model).__name__}, expected a flax.nnx.Module, the path of '
            f'a saved one, or one of {", ".join(list_models())}. Convert a Linen module with '
            'nnx.bridge.ToNNX.'
        )
    num_outputs(model, inputs, 'X_train')  # raises an error if the model can't take them
    headless = without_last_layer(nnx.clone(model), inputs)
    num_features = num_outputs(headless, inputs, 'X_train')
    return Backbone(name=name, model=headless, num_features=num_features, is_pretrained=True)


def without_last_layer(model: nnx.Module, inputs: PyTree) -> nnx.Module:
    """Removes the dense layer that computes a model's outputs, if there is one, in place.

    The layer stays if the model does more than return its result: squeeze it, for instance.
    """
    last = last_dense(model, inputs)
    if not last or not isinstance(layer := get_at_path(model, last), nnx.Linear):
        return model
    _set_at_path(model, last, PassThrough())
    if _tracing_error(model, inputs) is None and num_outputs(model, inputs) == layer.in_features:
        return model
    _set_at_path(model, last, layer)
    return model


def _set_at_path(model: nnx.Module, path: ParameterPath, module: nnx.Module) -> None:
    parent = get_at_path(model, path[:-1])
    if isinstance(path[-1], str):
        setattr(parent, path[-1], module)
    else:
        parent[path[-1]] = module


def get_at_path(model: nnx.Module, path: ParameterPath) -> Any:
    """Returns the module or array at a path in a model."""

    def step(node: Any, name: Any) -> Any:
        return getattr(node, name) if isinstance(name, str) and hasattr(node, name) else node[name]

    return functools.reduce(step, path, model)


def check_module(model: Model) -> None:
    """Raises a `ModelTypeError` for anything but an NNX module."""
    if isinstance(model, nnx.Module):
        return
    hint = 'Convert a Linen module with nnx.bridge.ToNNX.'
    if is_array(model) or is_frame(model) or isinstance(model, Collection) or is_batches(model):
        hint = 'Pass data by name: fine_tune(X_train=images, y_train=labels).'
    raise ModelTypeError(
        f'model: got a {type(model).__name__}, expected a flax.nnx.Module, or None for a linear '
        f'head. {hint}'
    )


def infer_role(model: Model, base: Backbone, inputs: PyTree, role: Role | None) -> Role:
    """Infers from shapes if a model takes features (a head) or the inputs (a whole model).

    Raises:
        ConfigError: if it takes both and ``role`` is None.
        ModelTypeError: for anything but an NNX module.
        DataError: if it takes neither.
    """
    if role not in ('head', 'model', None):
        raise ConfigError(unknown_name('role', role, ('head', 'model')))
    check_module(model)
    features = jax.ShapeDtypeStruct((PROBE_ROWS, base.num_features), np.float32)
    errors = {
        candidate: error
        for candidate, x in (('head', features), ('model', inputs))
        if (error := _tracing_error(model, x)) is not None
    }
    if role is not None:
        if role in errors:
            raise errors[role]
        return role
    if not errors:
        raise ConfigError(
            f'role: the model takes both the features of {base.name}, {base.num_features} a row, '
            "and X_train. Pass role='head' to put it onto the base, or role='model' to load the "
            'tensors that it shares with the base.'
        )
    if len(errors) == 2:
        check_layout(base, inputs)
        raise DataError(
            f'model: it takes neither the features of {base.name}, {base.num_features} a row, nor '
            f'X_train. As a head it fails with: {errors["head"]}\nWith X_train: '
            f'{errors["model"]}'
        )
    return 'model' if 'head' in errors else 'head'


def check_layout(base: Backbone, inputs: PyTree) -> None:
    """Raises a `DataError` for images that a base of the zoo does not take."""
    shape = getattr(inputs, 'shape', (None,))[1:]
    if base.normalisation is not None and not fits(shape, (None, None, 3)):
        raise DataError(
            f'X_train: got rows of shape {shape}, expected (height, width, 3), the images that '
            f'{base.name} takes.{layout_hint(shape, (None, None, 3), "X_train")}'
        )


def _tracing_error(model: nnx.Module, x: PyTree) -> Exception | None:
    try:
        num_outputs(model, x, 'X_train')
    except (DataError, ModelTypeError) as error:
        return error
    return None


def shared_tensors(model: nnx.Module, base: Backbone) -> dict[ParameterPath, ParameterPath]:
    """Finds the tensors that a model shares with the base: those of equal name and shape.

    The base may be a part of the model (``model.backbone``): then all its names have the same
    prefix.

    Returns:
        The path in the base for each path in the model.
    """
    base_shapes = _shapes(base.model)
    by_prefix: dict[ParameterPath, dict[ParameterPath, ParameterPath]] = {}
    for path, shape in _shapes(model).items():
        for length in range(len(path)):
            prefix, rest = path[:length], path[length:]
            if base_shapes.get(rest) == shape:
                by_prefix.setdefault(prefix, {})[path] = rest
    return max(by_prefix.values(), key=len, default={})


@dataclasses.dataclass(frozen=True)
class TransferredWeights:
    """The names of the tensors that a whole model got from a base.

    Attributes:
        source: the name of the base.
        taken: names of the model's tensors that were loaded from the base.
        kept: names of the tensors that were not changed, since the base has none of that name and
            shape.
    """

    source: str
    taken: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        count = f'{len(self.taken)} tensors of {self.source} loaded: {", ".join(self.taken)}'
        return count + (f'. Kept: {", ".join(self.kept)}.' if self.kept else '.')


def transfer_weights(
    model: nnx.Module, base: Backbone, shared: Mapping[ParameterPath, ParameterPath]
) -> TransferredWeights:
    """Copies the base's tensors into a model, see `shared_tensors`."""
    arrays = dict(nnx.to_flat_state(nnx.state(base.model, nnx.Any(nnx.Param, nnx.BatchStat))))
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
        if path in shared:
            value = arrays[shared[path]].get_value().astype(variable.get_value().dtype)
            _get_variable(model, path).set_value(value)
    names = {path: '.'.join(map(str, path)) for path in _shapes(model)}
    return TransferredWeights(
        source=base.name,
        taken=tuple(sorted(name for path, name in names.items() if path in shared)),
        kept=tuple(sorted(name for path, name in names.items() if path not in shared)),
    )


def _get_variable(model: nnx.Module, path: ParameterPath) -> nnx.Variable:
    return getattr(get_at_path(model, path[:-1]), path[-1])


def _shapes(model: nnx.Module) -> dict[ParameterPath, tuple[int, ...]]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {path: variable.get_value().shape for path, variable in state}
