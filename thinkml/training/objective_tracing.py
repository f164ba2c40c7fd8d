"""Tracing of objectives and custom steps, which call the model, on the shapes of a few rows."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from thinkml.core import make_augmentation
from thinkml.core.objectives.model_objective import ObjectiveBatch
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.core.train.augmentation_registry import make_head_augmentation, mixes_examples
from thinkml.core.train.step import AugmentFn
from thinkml.errors import ConfigError, ModelTypeError
from thinkml.tasks import TaskKind
from thinkml.training.objective import augmented_labels, label_probe
from thinkml.typing import PyTree


def probe_batch(x: PyTree, y: PyTree, *, has_labels: bool) -> ObjectiveBatch:
    """Returns the shapes and dtypes of a few rows, as an objective or a step gets them.

    Args:
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
        y: encoded targets, or `jax.ShapeDtypeStruct` of them.
        has_labels: False for a training without labels.
    """
    x, y = jax.tree.map(label_probe, (x, y))
    weight: Any = jax.ShapeDtypeStruct((PROBE_ROWS,), jnp.float32)
    return ObjectiveBatch(x, y if has_labels else None, weight)


def make_row_augmentation(augmentation: Any, x: PyTree, y: PyTree) -> AugmentFn | None:
    """Returns an augmentation that is checked on the inputs, and that mixes no classes.

    Flips, crops and rotations move the targets of pixels along, as for other losses.

    Args:
        augmentation: see `thinkml.core.make_augmentation`.
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
        y: encoded targets, or the first of them.

    Raises:
        ConfigError: for one that does not fit the inputs or the targets.
    """
    labels = jax.tree.map(label_probe, y)
    if isinstance(labels, Mapping):
        kinds = {name: _kind_and_axes(part) for name, part in labels.items()}
        augment = make_head_augmentation(augmentation, x, kinds)
    else:
        kind, axes = _kind_and_axes(labels)
        augment = make_augmentation(augmentation, x, kind, 1, axes)
        if mixes_examples(augment) and not _are_floats(labels):
            raise ConfigError(
                'augmentation: got one that mixes examples, but an objective or a step gets class '
                'indices, which can not be mixed. Mix them in the function, which has all rows of '
                'a batch.'
            )
    if augment is not None:
        augmented_labels(augment, x, labels)
    return augment


def _kind_and_axes(labels: jax.ShapeDtypeStruct) -> tuple[TaskKind, tuple[int, ...]]:
    """Returns the kind of targets, and the axes of the pixels that have a target each."""
    axes = labels.shape[1:3] if len(labels.shape) > 2 else ()
    return 'multiclass' if axes and not _are_floats(labels) else 'regression', axes


def _are_floats(labels: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(labels.dtype, jnp.floating)


@contextlib.contextmanager
def naming_failures(failed: str) -> Iterator[None]:
    """Raises the errors of a function that is traced as errors in the user's argument.

    Args:
        failed: the beginning of the message: the argument, and what failed.
    """
    try:
        yield
    except (ConfigError, ModelTypeError) as error:
        raise type(error)(with_rows(error)) from error
    except Exception as error:
        raise ConfigError(f'{failed}: {type(error).__name__}: {with_rows(error)}') from error
