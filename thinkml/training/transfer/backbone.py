"""The base of a transfer: a model that returns features, and how another model fits to it."""

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping
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
from thinkml.data.example_datasets import is_array
from thinkml.errors import ConfigError, DataError, ModelTypeError, unknown_name
from thinkml.models import ModelManager
from thinkml.models.transfer_model import PassThrough, TransferModel
from thinkml.models.zoo import create, get_preprocessing, list_models, load_pretrained
from thinkml.paths import local_path

Role = Literal['head', 'model']
Place = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model that returns features.

    Attributes:
        name: of the architecture, the path, or the class.
        model: the module; the caller's own is not touched.
        num_features: the length of a row of features.
        is_pretrained: whether it is loaded or the caller's, so that there is nothing to find.
        normalised: mean and std of the channels, see `TransferModel`; None for none.
    """

    name: str
    model: nnx.Module
    num_features: int
    is_pretrained: bool
    normalised: tuple[Any, Any] | None = None

    def with_head(self, head: nnx.Module) -> TransferModel:
        """The base and a head as one model."""
        mean, std = self.normalised or (None, None)
        return TransferModel(self.model, head, mean, std)

    def load(self, weights: Any) -> Any:
        """Loads pretrained weights into an architecture of the zoo; says which."""
        if self.is_pretrained or weights is None:
            return None
        return load_pretrained(self.model, self.name, weights)


def load_base(base_model: Any) -> Any:
    """Returns the saved model for its path, and all else as it is.

    Raises:
        ConfigError: for a name that is neither a path nor in the zoo.
    """
    is_named = isinstance(base_model, str | os.PathLike) and base_model not in list_models()
    if not is_named:
        return base_model
    if not local_path(base_model, 'base_model').exists():
        known = unknown_name('base_model', str(base_model), list_models())
        raise ConfigError(f'{known} There is no saved model at this path either.')
    return ModelManager().load_model(base_model)


def open_base(base_model: Any, inputs: Any, name: str | None = None) -> Backbone:
    """Makes the base of what `load_base` returned, without its pretrained weights.

    Args:
        base_model: a name of the zoo, or an NNX module.
        inputs: a row of the inputs, as `jax.ShapeDtypeStruct`, for models whose last layer is to
            be taken away.
        name: of the module; None for that of its class.

    Raises:
        ConfigError: for a name that is neither.
        ModelTypeError: for a model that is no NNX module.
    """
    if isinstance(base_model, str) and base_model in list_models():
        preprocessing = get_preprocessing(base_model)
        if preprocessing is None:
            raise ConfigError(
                f'base_model: there are no pretrained weights of {base_model!r}. Pass a model that '
                'you have trained, or its path.'
            )
        model = create(base_model, None)
        normalised = (preprocessing.mean, preprocessing.std)
        return Backbone(base_model, model, model.num_features, False, normalised)
    name, model = name or type(base_model).__name__, base_model
    if not isinstance(model, nnx.Module):
        raise ModelTypeError(
            f'base_model: got a {type(model).__name__}, expected a flax.nnx.Module, the path of '
            f'a saved one, or one of {", ".join(list_models())}. A Linen module becomes one by '
            'nnx.bridge.ToNNX.'
        )
    num_outputs(model, inputs, 'X_train')  # says so if it can't take them
    headless = without_last_layer(nnx.clone(model), inputs)
    return Backbone(name, headless, num_outputs(headless, inputs, 'X_train'), True)


def without_last_layer(model: nnx.Module, inputs: Any) -> nnx.Module:
    """Takes away the dense layer that computes a model's outputs, if there is one.

    It stays where the model does more with its result than return it: squeeze it, for instance.
    """
    last = last_dense(model, inputs)
    if not last or not isinstance(layer := at(model, last), nnx.Linear):
        return model
    _put(model, last, PassThrough())
    if _failure(model, inputs) is None and num_outputs(model, inputs) == layer.in_features:
        return model
    _put(model, last, layer)
    return model


def _put(model: nnx.Module, path: Place, module: nnx.Module) -> None:
    owner = at(model, path[:-1])
    if isinstance(path[-1], str):
        setattr(owner, path[-1], module)
    else:
        owner[path[-1]] = module


def at(model: nnx.Module, path: Place) -> Any:
    """What is at a path in a model."""

    def step(node: Any, name: Any) -> Any:
        return getattr(node, name) if isinstance(name, str) and hasattr(node, name) else node[name]

    return functools.reduce(step, path, model)


def check_part(model: Any) -> None:
    """Raises a `ModelTypeError` for anything but an NNX module."""
    if isinstance(model, nnx.Module):
        return
    hint = 'A Linen module becomes one by nnx.bridge.ToNNX.'
    if is_array(model) or is_frame(model) or isinstance(model, Collection) or is_batches(model):
        hint = 'Data goes by name: fine_tune(X_train=images, y_train=labels).'
    raise ModelTypeError(
        f'model: got a {type(model).__name__}, expected a flax.nnx.Module, or None for a linear '
        f'head. {hint}'
    )


def role_of(model: Any, base: Backbone, inputs: Any, role: Role | None) -> Role:
    """Says by shapes whether a model takes features (a head) or the inputs themselves.

    Raises:
        ConfigError: if it takes both and ``role`` does not say which.
        ModelTypeError: for what is no NNX module.
        DataError: if it takes neither.
    """
    if role not in ('head', 'model', None):
        raise ConfigError(unknown_name('role', role, ('head', 'model')))
    check_part(model)
    features = jax.ShapeDtypeStruct((PROBE_ROWS, base.num_features), np.float32)
    failures = {
        found: failure
        for found, x in (('head', features), ('model', inputs))
        if (failure := _failure(model, x)) is not None
    }
    if role is not None:
        if role in failures:
            raise failures[role]
        return role
    if not failures:
        raise ConfigError(
            f'role: the model takes both the features of {base.name}, {base.num_features} a row, '
            "and X_train. Pass role='head' to put it onto the base, or role='model' to load what "
            'of the base it has itself.'
        )
    if len(failures) == 2:
        check_layout(base, inputs)
        raise DataError(
            f'model: it takes neither the features of {base.name}, {base.num_features} a row, nor '
            f'X_train. As a head it fails with: {failures["head"]}\nWith X_train: '
            f'{failures["model"]}'
        )
    return 'model' if 'head' in failures else 'head'


def check_layout(base: Backbone, inputs: Any) -> None:
    """Raises a `DataError` for pictures that a base of the zoo does not take."""
    shape = getattr(inputs, 'shape', (None,))[1:]
    if base.normalised is not None and not fits(shape, (None, None, 3)):
        raise DataError(
            f'X_train: got rows of shape {shape}, expected (height, width, 3), the pictures that '
            f'{base.name} takes.{layout_hint(shape, (None, None, 3), "X_train")}'
        )


def _failure(model: nnx.Module, x: Any) -> Exception | None:
    try:
        num_outputs(model, x, 'X_train')
    except (DataError, ModelTypeError) as error:
        return error
    return None


def shared_tensors(model: nnx.Module, base: Backbone) -> dict[Place, Place]:
    """Which tensors of a model are the base's: those of equal name and shape.

    The base may be a part of the model (``model.backbone``): then all its names have the same
    beginning.

    Returns:
        the path in the base of each path in the model.
    """
    of_base, of_model = _shapes(base.model), _shapes(model)
    by_prefix: dict[Place, dict[Place, Place]] = {}
    for own, shape in of_model.items():
        for cut in range(len(own)):
            if of_base.get(own[cut:]) == shape:
                by_prefix.setdefault(own[:cut], {})[own] = own[cut:]
    return max(by_prefix.values(), key=len, default={})


@dataclasses.dataclass(frozen=True)
class TransferredWeights:
    """What a whole model has taken over from a base.

    Attributes:
        source: the base.
        taken: names of the model's tensors that are the base's now.
        kept: names of those that are as they were, since the base has none of that name and shape.
    """

    source: str
    taken: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        count = f'{len(self.taken)} tensors of {self.source} loaded: {", ".join(self.taken)}'
        return count + (f'. Kept: {", ".join(self.kept)}.' if self.kept else '.')


def take_over(
    model: nnx.Module, base: Backbone, shared: Mapping[Place, Place]
) -> TransferredWeights:
    """Copies the base's tensors into a model, see `shared_tensors`."""
    arrays = dict(nnx.to_flat_state(nnx.state(base.model, nnx.Any(nnx.Param, nnx.BatchStat))))
    for own, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
        if own in shared:
            old = variable.get_value()
            _variable(model, own).set_value(arrays[shared[own]].get_value().astype(old.dtype))
    names = {path: '.'.join(map(str, path)) for path in _shapes(model)}
    return TransferredWeights(
        base.name,
        tuple(sorted(name for path, name in names.items() if path in shared)),
        tuple(sorted(name for path, name in names.items() if path not in shared)),
    )


def _variable(model: nnx.Module, path: Place) -> nnx.Variable:
    return getattr(at(model, path[:-1]), path[-1])


def _shapes(model: nnx.Module) -> dict[Place, tuple[int, ...]]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {path: variable.get_value().shape for path, variable in state}
