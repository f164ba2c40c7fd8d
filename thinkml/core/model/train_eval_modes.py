"""Training and evaluation mode of NNX modules, and what a switch of all of them undoes."""

import inspect
from collections.abc import Iterator
from typing import Literal

from flax import nnx

Mode = Literal['train', 'eval']
_FLAGS = ('deterministic', 'use_running_average')


def switch(module: nnx.Module, mode: Mode) -> None:
    """Calls ``module.train()`` or ``module.eval()``, the class's own where it has one.

    An attribute of that name that is a value, or a method that needs arguments, is something else
    and is left alone.
    """
    own = getattr(module, mode)
    if not callable(own) or any(map(_is_required, inspect.signature(own).parameters.values())):
        own = getattr(nnx.Module, mode).__get__(module)
    own()


def to_training(module: nnx.Module) -> None:
    """Puts a module into training mode."""
    switch(module, 'train')


def frozen_by_hand(model: nnx.Module) -> list[str]:
    """Returns the names of layers in evaluation mode that training puts into training mode.

    Empty where all layers are in evaluation mode, as they are in a model that was trained or
    loaded.
    """
    before = dict(_flags_of(model))
    if len({any(flags) for flags in before.values()}) < 2:
        return []
    copy = nnx.clone(model)
    to_training(copy)
    after = dict(_flags_of(copy))
    return [name for name, flags in before.items() if any(flags) and not any(after[name])]


def inner_switches(model: nnx.Module) -> list[str]:
    """Returns the methods ``train`` and ``eval`` within a model that flax does not call.

    Empty for a model whose class has such a method itself, which may call them.
    """
    return [
        f'{name}.{mode}'
        for mode in ('train', 'eval')
        if not _is_own(model, mode)
        for name, module in _modules(model)
        if _is_own(module, mode)
    ]


def _is_own(module: nnx.Module, mode: Mode) -> bool:
    method = getattr(type(module), mode)
    return callable(method) and not method.__module__.startswith('flax.')


def _is_required(parameter: inspect.Parameter) -> bool:
    named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in named


def _flags_of(model: nnx.Module) -> Iterator[tuple[str, list[bool]]]:
    for name, module in _modules(model):
        values = [vars(module).get(flag) for flag in _FLAGS]
        if flags := [value for value in values if isinstance(value, bool)]:
            yield name, flags


def _modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """The modules of a model, each once, by name; itself is not among them."""
    for path, node in nnx.iter_graph(model):
        if path and isinstance(node, nnx.Module):
            yield '.'.join(map(str, path)), node
