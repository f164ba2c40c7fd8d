"""Tracing of objectives and custom steps, which call the model, on the shapes of a few rows."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from thinkml.core import make_augmentation
from thinkml.core.objectives.model_objective import ObjectiveBatch
from thinkml.core.objectives.probe_sizes import PROBE_ROWS, with_rows
from thinkml.core.train.step import AugmentFn
from thinkml.errors import ConfigError, ModelTypeError
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

    Args:
        augmentation: see `thinkml.core.make_augmentation`.
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
        y: encoded targets, or the first of them.
    """
    augment = make_augmentation(augmentation, x, 'regression', 1)
    if augment is not None:
        augmented_labels(augment, x, jax.tree.map(label_probe, y))
    return augment


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
