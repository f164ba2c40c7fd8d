"""Targets of models with several heads: a dict of arrays, or a tuple for a tuple of outputs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from thinkml.core.model.functional import HeadOutputs, Outputs
from thinkml.core.objectives.heads import part_of
from thinkml.data.targets import (
    check_targets,
    encode_targets,
    named_targets,
    refuse_parts,
)
from thinkml.data.task_inference import infer_task
from thinkml.errors import ConfigError, DataError, did_you_mean
from thinkml.task_types import TASK_TYPES, Decision, TaskKind
from thinkml.tasks import IGNORE_LABEL, AnyTask, Composite, Task
from thinkml.typing import Labels, PyTree


def check_any_targets(y: Labels, argument: str) -> PyTree:
    """Returns targets as an array, or as a dict of arrays for several heads.

    The names of a tuple of targets are their positions, as text.

    Raises:
        DataError: see `check_targets`.
    """
    named = named_targets(y)
    if named is None:
        return check_targets(y, argument)
    if not named:
        raise DataError(f'{argument}: got an empty dict, expected the targets of each head.')
    return {name: check_targets(part, f'{argument}[{name!r}]') for name, part in named.items()}


def infer_any_task(
    targets: PyTree,
    outputs: Outputs | HeadOutputs,
    *,
    argument: str = 'y_train',
    decided: Callable[[str | None], Decision | None] = lambda head: None,
    requested: Callable[[str | None], Task | TaskKind | None] = lambda head: None,
    known: AnyTask | None = None,
    ignore_label: Callable[[str | None], int | None] = lambda head: None,
) -> AnyTask:
    """Infers the task of a model with one output or with several heads, see `infer_task`.

    Args:
        targets: from `check_any_targets`.
        outputs: the model's outputs.
        argument: the name of the targets in error messages.
        decided: returns the kind of task that the loss of a head requires; its argument is the name
            of the head, or None for one output.
        requested: returns the task of a head that the user passed, or its kind; None to infer it.
        known: the task that the model was trained on before.
        ignore_label: returns the ignored label of a head; None for the default.

    Raises:
        DataError: if the targets do not fit the outputs.
    """

    def infer(y: np.ndarray, shape: tuple[int, ...], where: str, head: str | None, known: Any):
        marker, request = ignore_label(head), requested(head)
        known = request if isinstance(request, Task) else known
        kind = request.kind if isinstance(request, Task) else request
        task = infer_task(
            y, shape,
            argument=where, decided=decided(head) if kind is None else TASK_TYPES[kind].decision,
            known=known if isinstance(known, Task) else None,
            ignore_label=IGNORE_LABEL if marker is None else marker,
        )  # fmt: skip
        differs = task != request if isinstance(request, Task) else task.kind != kind
        if request is not None and differs:
            raise DataError(_other_task(task, request, where))
        return task

    if isinstance(outputs, Outputs):
        refuse_heads(targets, argument)
        return infer(targets, outputs.shape, argument, None, known)
    if not isinstance(targets, dict):
        raise DataError(_one_target(targets, outputs, argument))
    _check_names(targets, outputs, argument)
    before = known.by_name if isinstance(known, Composite) else {}
    heads = tuple(
        (name, infer(targets[name], one.shape, f'{argument}[{name!r}]', name, before.get(name)))
        for name, one in outputs.heads.items()
        if name in targets
    )
    return Composite(heads, outputs.is_tuple)


def task_of_numbers(outputs: Outputs | HeadOutputs) -> AnyTask:
    """Returns the task of outputs that are predicted as they are."""

    def task_of(shape: tuple[int, ...]) -> Task:
        width = shape[-1] if shape else 1
        return Task(
            'regression', None, width, target_shape=shape[-1:], element_shape=shape[:-1]
        )  # fmt: skip

    if isinstance(outputs, Outputs):
        return task_of(outputs.shape)
    heads = tuple((name, task_of(one.shape)) for name, one in outputs.heads.items())
    return Composite(heads, outputs.is_tuple)


def _other_task(found: Task, requested: Task | TaskKind | None, argument: str) -> str:
    shown = requested.in_words if isinstance(requested, Task) else repr(requested)
    return (
        f'task: got {shown}, but {argument} and the outputs of the model are those of '
        f'{found.in_words}. Change the targets or the outputs, or leave task out.'
    )


def refuse_heads(targets: PyTree, argument: str) -> None:
    """Raises a `DataError` for targets of several heads, from `check_any_targets`."""
    if isinstance(targets, dict) and list(targets) == list(map(str, range(len(targets)))):
        targets = tuple(targets.values())
    refuse_parts(targets, argument)


def _one_target(targets: Any, outputs: HeadOutputs, argument: str) -> str:
    got = f'{argument}: got one array of shape {targets.shape}'
    if outputs.is_tuple:
        return (
            f'{got}, but the model returns a tuple of {len(outputs.heads)} arrays. Pass a tuple of '
            'targets, one for each, or let the model return a dict and pass the targets of some '
            'outputs by name.'
        )
    return (
        f'{got}, but the model returns a dict of {_names(outputs.heads)}. Pass a dict with the '
        'targets of the outputs to train, by these names.'
    )


def _check_names(targets: dict[str, Any], outputs: HeadOutputs, argument: str) -> None:
    if outputs.is_tuple and len(targets) > len(outputs.heads):
        raise DataError(
            f'{argument}: got {len(targets)} arrays, but the model returns a tuple of '
            f'{len(outputs.heads)}, expected one for each.'
        )
    unknown = [name for name in targets if name not in outputs.heads]
    if unknown:
        hint = did_you_mean(unknown[0], outputs.heads) if isinstance(unknown[0], str) else ''
        raise DataError(
            f'{argument}: got targets of {_names(targets)}, but the model returns '
            f'{_names(outputs.heads)}. Use the names of its outputs.{hint}'
        )
    if outputs.is_tuple and len(targets) < len(outputs.heads):
        raise DataError(
            f'{argument}: got {len(targets)} arrays, but the model returns a tuple of '
            f'{len(outputs.heads)}. Pass one for each; to train only some outputs, let the model '
            'return a dict.'
        )


def _names(parts: Mapping[str, Any]) -> str:
    return ', '.join(map(repr, parts))


def encode_any_targets(y: PyTree, task: AnyTask, argument: str = 'y_train') -> PyTree:
    """Encodes targets for the losses, see `encode_targets`; a dict of arrays for several heads.

    Raises:
        DataError: for targets that do not fit the task.
    """
    if isinstance(task, Task):
        return encode_targets(y, task, argument)
    y = check_any_targets(y, argument)
    if not isinstance(y, dict) or y.keys() != task.by_name.keys():
        got = _names(y) if isinstance(y, dict) else 'one array'
        raise DataError(
            f'{argument}: got {got}, expected targets of {_names(task.by_name)} as in training.'
        )
    return {
        name: encode_targets(y[name], head, f'{argument}[{name!r}]') for name, head in task.heads
    }


@contextlib.contextmanager
def naming_head(head: str) -> Iterator[None]:
    """Adds the name of a head to the errors that are raised within the block."""
    try:
        yield
    except (DataError, ConfigError) as error:
        raise type(error)(f'head {head!r}: {error}') from error


def by_head(task: AnyTask, values: Any) -> Iterator[tuple[Any, Task, Any]]:
    """Yields the name, the task and the value of each head; the name is None for one output."""
    if isinstance(task, Task):
        yield None, task, values
    else:
        yield from ((name, head, part_of(values, name)) for name, head in task.heads)


def argument_of_head(argument: str, head: str | None) -> str:
    """Returns the argument of a head's value, for errors; the head is None for one output."""
    return argument if head is None else f'{argument}[{head!r}]'


def num_rows_of(tree: PyTree) -> int:
    """Returns the number of rows of an array, or of the arrays of a pytree."""
    return len(jax.tree.leaves(tree)[0])


def rows_at(tree: PyTree, rows: Any) -> PyTree:
    """Returns some rows of an array, or of each array of a pytree."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)
