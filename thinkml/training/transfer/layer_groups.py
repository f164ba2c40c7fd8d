"""What of a model was learned before, and what of that is trained again."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from thinkml.core import num_outputs
from thinkml.core.model.layer_inspection import Layer, last_dense, layers_in_order
from thinkml.errors import ConfigError, is_whole
from thinkml.models.model_table import Table
from thinkml.models.transfer_model import PassThrough, TransferModel
from thinkml.training.transfer.backbone import Place, at, without_last_layer

_BASE, _HEAD = 'base', 'head'


@dataclasses.dataclass(frozen=True)
class LayerGroups:
    """A model in two parts.

    Attributes:
        model: the whole.
        layers: of the base, in the order they are computed in; paths are those in the whole.
        head: the paths of all other parameters.
    """

    model: nnx.Module
    layers: list[Layer]
    head: frozenset[Place]


def parts_of_headed(model: TransferModel, inputs: Any) -> LayerGroups:
    """The parts of a base with a head on it.

    Raises:
        DataError: if the inputs are not what the base takes.
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


def parts_of_sharing(model: nnx.Module, shared: Mapping[Place, Any], inputs: Any) -> LayerGroups:
    """The parts of a model that has tensors of the base within it."""
    layers = [
        dataclasses.replace(layer, params=own)
        for layer in layers_in_order(model, inputs)
        if (own := tuple(path for path in layer.params if path in shared))
    ]
    return LayerGroups(model, layers, frozenset(p for p in _params(model) if p not in shared))


def parts_of_trained(model: nnx.Module, inputs: Any) -> LayerGroups:
    """A model that is its own base."""
    return LayerGroups(model, layers_in_order(model, inputs), frozenset())


def parts_of_new(model: nnx.Module) -> LayerGroups:
    """A model that has no base at all."""
    return LayerGroups(model, [], frozenset(_params(model)))


def as_headed(parts: LayerGroups, inputs: Any) -> TransferModel | None:
    """The same model as a base and a head, which is its own; None if it is not of that form.

    It is if all parameters of the head are those of the dense layer that computes the outputs, and
    if nothing before it is random, or changes, while its parameters are frozen.
    """
    model = parts.model
    if isinstance(model, TransferModel):
        return model if all(path[0] == _HEAD for path in parts.head) else None
    last = last_dense(model, inputs)
    if not last or not isinstance(at(model, last), nnx.Linear):
        return None
    with_params = {path[:-1] for path in _params(model)}
    changing = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Param)))
    if parts.head != {path for path in _params(model) if path[:-1] == last} or any(
        path[:-1] not in with_params for path, _ in changing
    ):
        return None
    base = without_last_layer(nnx.clone(model), inputs)
    is_taken = isinstance(at(base, last), PassThrough)
    return TransferModel(base, at(model, last)) if is_taken else None


def _params(model: nnx.Module) -> list[Place]:
    return [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]


def check_layers(fine_tune_layers: Any) -> None:
    """Raises a `ConfigError` for what names no layers."""
    value = fine_tune_layers
    if value == 'all' or (is_whole(value) and value >= 0):
        return
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(name, str) for name in value):
        raise ConfigError(
            f'fine_tune_layers: got {value!r}, expected how many of the last layers, '
            "'all', or a list of patterns of their names such as ['stages.3.*']."
        )


def chosen(layers: list[Layer], fine_tune_layers: Any) -> list[Layer]:
    """The layers that are trained; all of them where there are fewer.

    Raises:
        ConfigError: if a pattern fits none.
    """
    if fine_tune_layers == 'all':
        return layers
    if is_whole(fine_tune_layers):
        return layers[max(0, len(layers) - fine_tune_layers) :]
    for pattern in fine_tune_layers:
        if not any(_fits(layer, pattern) for layer in layers):
            names = [layer.name.removeprefix(f'{_BASE}.') for layer in layers]
            shown = names if len(names) <= 12 else [*names[:6], '...', *names[-6:]]
            raise ConfigError(
                f'fine_tune_layers: got {pattern!r}, which fits none of the layers '
                f'{", ".join(shown)}.'
            )
    return [layer for layer in layers if any(_fits(layer, p) for p in fine_tune_layers)]


def _fits(layer: Layer, pattern: str) -> bool:
    names = (layer.name, layer.name.removeprefix(f'{_BASE}.'))
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def rates_of(parts: LayerGroups, trained: list[Layer], layer_decay: float) -> dict[Place, float]:
    """A factor of the learning rate for each trained parameter.

    It falls by ``layer_decay`` with each layer from the head down, whether trained or not.
    """
    rates = dict.fromkeys(parts.head, 1.0)
    for depth, layer in enumerate(reversed(parts.layers), start=1 if parts.head else 0):
        if layer in trained:
            rates |= dict.fromkeys(layer.params, layer_decay**depth)
    return rates


def low_rank_targets(parts: LayerGroups, rates: Mapping[Place, float]) -> dict[Place, int]:
    """The frozen kernels of dense and attention layers, with how many axes are inputs.

    Raises:
        ConfigError: if there are none.
    """
    targets = {}
    for path in (path for layer in parts.layers for path in layer.params):
        module = at(parts.model, path[:-1])
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


def summary_of(
    parts: LayerGroups, rates: Mapping[Place, float], low_rank: Mapping[Place, int]
) -> Table:
    """A row for each layer of the base, and one for the head."""
    rows = []
    for layer in parts.layers:
        trained = [rates[path] for path in layer.params if path in rates]
        adapted = any(path in low_rank for path in layer.params)
        row = {'layer': layer.name, 'parameters': layer.num_parameters}
        row['trained'] = 'low rank' if adapted else 'yes' if trained else 'no'
        rows.append(row | ({'learning rate': f'x {trained[0]:.3g}'} if trained else {}))
    if parts.head:
        sizes = dict(nnx.to_flat_state(nnx.state(parts.model, nnx.Param)))
        count = sum(sizes[path].get_value().size for path in parts.head)
        rows.append({'layer': _HEAD, 'parameters': count, 'trained': 'yes', 'learning rate': 'x 1'})
    return Table.of(rows)
