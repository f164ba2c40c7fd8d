"""Train/eval modes: switching NNX modules, and finding settings that the switch changes."""

import inspect
from collections.abc import Iterator
from typing import Literal

from flax import nnx

Mode = Literal['train', 'eval']
_FLAGS = ('deterministic', 'use_running_average')


def switch(module: nnx.Module, mode: Mode) -> None:
    """Calls ``module.train()`` or ``module.eval()``; a class may override them.

    If an attribute of that name is a value, or a method that needs arguments, it has another
    meaning. In that case the method of `flax.nnx.Module` is called.
    """
    method = getattr(module, mode)
    parameters = inspect.signature(method).parameters.values() if callable(method) else ()
    if not callable(method) or any(map(_is_required, parameters)):
        method = getattr(nnx.Module, mode).__get__(module)
    method()


def to_training(module: nnx.Module) -> None:
    """Puts a module into training mode."""
    switch(module, 'train')


def frozen_by_hand(model: nnx.Module) -> list[str]:
    """Returns the names of layers in evaluation mode that training puts into training mode.

    The list is empty if all layers are in evaluation mode, as in a trained or loaded model.
    """
    before = dict(_mode_flags(model))
    if len({any(flags) for flags in before.values()}) < 2:
        return []
    copy = nnx.clone(model)
    to_training(copy)
    after = dict(_mode_flags(copy))
    return [name for name, flags in before.items() if any(flags) and not any(after[name])]


def inner_switches(model: nnx.Module) -> list[str]:
    """Returns the overridden ``train`` and ``eval`` methods of submodules: flax won't call them.

    A method is left out if the model's class overrides it too, because it may call the others.
    """
    return [
        f'{name}.{mode}'
        for mode in ('train', 'eval')
        if not _is_overridden(model, mode)
        for name, module in _modules(model)
        if _is_overridden(module, mode)
    ]


def _is_overridden(module: nnx.Module, mode: Mode) -> bool:
    method = getattr(type(module), mode)
    return callable(method) and not method.__module__.startswith('flax.')


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _mode_flags(model: nnx.Module) -> Iterator[tuple[str, list[bool]]]:
    for name, module in _modules(model):
        values = [vars(module).get(flag) for flag in _FLAGS]
        if flags := [value for value in values if isinstance(value, bool)]:
            yield name, flags


def _modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Yields the submodules of a model with their names, each of them once."""
    for path, node in nnx.iter_graph(model):
        if path and isinstance(node, nnx.Module):
            yield '.'.join(map(str, path)), node
