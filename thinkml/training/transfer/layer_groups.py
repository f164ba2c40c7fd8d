"""LayerGroups: a model split into pretrained layers and a head, and which of them are trained."""

import dataclasses
import fnmatch
from collections.abc import Container, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from thinkml.core import num_outputs
from thinkml.core.model.layer_inspection import Layer, last_dense, layers_in_order
from thinkml.errors import ConfigError, is_whole
from thinkml.models.model_table import Table
from thinkml.models.transfer_model import PassThrough, TransferModel
from thinkml.training.transfer.backbone import ParameterPath, get_at_path, without_last_layer
from thinkml.typing import PyTree

_BASE, _HEAD = 'base', 'head'


@dataclasses.dataclass(frozen=True)
class LayerGroups:
    """A model split into the layers of its base and a head.

    Attributes:
        model: the whole model.
        layers: the layers of the base in the order of their computation; their paths are those in
            the whole model.
        head: the paths of all other parameters.
    """

    model: nnx.Module
    layers: list[Layer]
    head: frozenset[ParameterPath]


def groups_of_headed(model: TransferModel, inputs: PyTree) -> LayerGroups:
    """Returns the layer groups of a base with a head on it.

    Raises:
        DataError: if the base does not take the inputs.
    """
    num_outputs(model, inputs, 'X_train')
    layers = [
        dataclasses.replace(
            layer,
            name=f'{_BASE}.{layer.name}'.rstrip('.'),
            params=tuple((_BASE, *path) for path in layer.params),
        )
        for layer in layers_in_order(model.base, jax.eval_shape(model.normalised, inputs))
    ]
    return LayerGroups(model, layers, frozenset(p for p in _params(model) if p[0] == _HEAD))


def groups_of_sharing(
    model: nnx.Module, shared: Container[ParameterPath], inputs: PyTree
) -> LayerGroups:
    """Returns the layer groups of a whole model that shares tensors with the base."""
    layers = [
        dataclasses.replace(layer, params=params)
        for layer in layers_in_order(model, inputs)
        if (params := tuple(path for path in layer.params if path in shared))
    ]
    return LayerGroups(model, layers, frozenset(p for p in _params(model) if p not in shared))


def groups_of_trained(model: nnx.Module, inputs: PyTree) -> LayerGroups:
    """Returns the layer groups of a trained model that is fine-tuned by itself: all are base."""
    return LayerGroups(model, layers_in_order(model, inputs), frozenset())


def groups_of_untrained(model: nnx.Module) -> LayerGroups:
    """Returns the layer groups of a model without pretrained layers: all parameters are head."""
    return LayerGroups(model, [], frozenset(_params(model)))


def split_head(groups: LayerGroups, inputs: PyTree) -> TransferModel | None:
    """Returns the model as a base and a head, which is the same object; None if that is impossible.

    It is possible if the head's parameters are those of the dense layer that computes the outputs,
    and if no layer before it is random, or changes, while its parameters are frozen.
    """
    model = groups.model
    if isinstance(model, TransferModel):
        return model if all(path[0] == _HEAD for path in groups.head) else None
    last = last_dense(model, inputs)
    if not last or not isinstance(get_at_path(model, last), nnx.Linear):
        return None
    with_params = {path[:-1] for path in _params(model)}
    other_state = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Param)))
    if groups.head != {path for path in _params(model) if path[:-1] == last} or any(
        path[:-1] not in with_params for path, _ in other_state
    ):
        return None
    base = without_last_layer(nnx.clone(model), inputs)
    is_removed = isinstance(get_at_path(base, last), PassThrough)
    return TransferModel(base, get_at_path(model, last)) if is_removed else None


def _params(model: nnx.Module) -> list[ParameterPath]:
    return [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]


def check_fine_tune_layers(value: Any) -> None:
    """Raises a `ConfigError` for a value that does not name layers."""
    if value == 'all' or (is_whole(value) and value >= 0):
        return
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(name, str) for name in value):
        raise ConfigError(
            f'fine_tune_layers: got {value!r}, expected the number of last layers, '
            "'all', or a list of patterns of their names such as ['stages.3.*']."
        )


def select_layers(layers: list[Layer], fine_tune_layers: Any) -> list[Layer]:
    """Returns the layers that are trained; all of them if there are fewer than requested.

    Raises:
        ConfigError: if a pattern matches no layer.
    """
    if fine_tune_layers == 'all':
        return layers
    if is_whole(fine_tune_layers):
        return layers[max(0, len(layers) - fine_tune_layers) :]
    for pattern in fine_tune_layers:
        if not any(_matches(layer, pattern) for layer in layers):
            names = [layer.name.removeprefix(f'{_BASE}.') for layer in layers]
            shown = names if len(names) <= 12 else [*names[:6], '...', *names[-6:]]
            raise ConfigError(
                f'fine_tune_layers: got {pattern!r}, which matches none of the layers '
                f'{", ".join(shown)}.'
            )
    return [layer for layer in layers if any(_matches(layer, p) for p in fine_tune_layers)]


def _matches(layer: Layer, pattern: str) -> bool:
    names = (layer.name, layer.name.removeprefix(f'{_BASE}.'))
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def rate_factors(
    groups: LayerGroups, trained: list[Layer], layer_decay: float
) -> dict[ParameterPath, float]:
    """Returns a factor of the learning rate for each trained parameter.

    It falls by ``layer_decay`` with each layer from the head down, trained or not.
    """
    rates = dict.fromkeys(groups.head, 1.0)
    for depth, layer in enumerate(reversed(groups.layers), start=1 if groups.head else 0):
        if layer in trained:
            rates |= dict.fromkeys(layer.params, layer_decay**depth)
    return rates


def low_rank_targets(
    groups: LayerGroups, rates: Mapping[ParameterPath, float]
) -> dict[ParameterPath, int]:
    """Returns the frozen kernels of dense and attention layers, with their number of input axes.

    Raises:
        ConfigError: if there are none.
    """
    targets = {}
    for path in (path for layer in groups.layers for path in layer.params):
        module = get_at_path(groups.model, path[:-1])
        if path in rates or path[-1] != 'kernel':
            continue
        if isinstance(module, nnx.Linear):
            targets[path] = 1
        elif isinstance(module, nnx.LinearGeneral):
            inputs = module.in_features
            targets[path] = len(inputs) if isinstance(inputs, tuple) else 1
    if not targets:
        raise ConfigError(
            'lora_rank: the base has no dense or attention layers that are frozen. Leave it out, '
            'and choose fine_tune_layers instead.'
        )
    return targets


def summary_table(
    groups: LayerGroups,
    rates: Mapping[ParameterPath, float],
    low_rank: Mapping[ParameterPath, int],
) -> Table:
    """Returns a table with a row for each layer of the base, and one for the head."""
    rows = []
    for layer in groups.layers:
        trained = [rates[path] for path in layer.params if path in rates]
        adapted = any(path in low_rank for path in layer.params)
        row = {'layer': layer.name, 'parameters': layer.num_parameters}
        row['trained'] = 'low rank' if adapted else 'yes' if trained else 'no'
        rows.append(row | ({'learning rate': f'x {trained[0]:.3g}'} if trained else {}))
    if groups.head:
        params = dict(nnx.to_flat_state(nnx.state(groups.model, nnx.Param)))
        count = sum(params[path].get_value().size for path in groups.head)
        rows.append({'layer': _HEAD, 'parameters': count, 'trained': 'yes', 'learning rate': 'x 1'})
    return Table.of(rows)
