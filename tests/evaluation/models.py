"""Models whose outputs a test chooses."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from thinkml.model_record import ModelRecord, attach_record
from thinkml.tasks import Task


class Shifted(nnx.Module):
    """A model that returns its inputs plus a parameter, so a test chooses its outputs."""

    def __init__(self, shift=0.0):
        self.shift = nnx.Param(jnp.float32(shift))

    def __call__(self, x):
        return x + self.shift[...]


def known(model, kind, classes, num_outputs, target_shape=()):
    attach_record(model, ModelRecord(task=Task(kind, classes, num_outputs, target_shape)))
    return model


def logits_and_labels(n, k, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    return (1.5 * np.eye(k)[labels] + rng.normal(size=(n, k))).astype(np.float32), labels
