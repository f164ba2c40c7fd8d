"""A server that saves models over one another until it is killed, in one process per line of input.

Everything is imported once, and the server forks before jax has started a thread.
"""

import importlib
import os
import sys

import jax.numpy as jnp
import numpy as np
from flax import nnx

from thinkml.models import ModelManager


class Full(nnx.Module):
    """A model with two arrays that are filled with one number."""

    def __init__(self, number):
        self.small = nnx.Param(jnp.asarray(np.full((3,), number, np.float32)))
        self.large = nnx.Param(jnp.asarray(np.full((200, 300), number, np.float32)))


class FullToo(nnx.Module):
    """A model with one such array, of another shape."""

    def __init__(self, number):
        self.large = nnx.Param(jnp.asarray(np.full((50_000,), number, np.float32)))


KINDS = (Full, FullToo)


def save_over_and_over(path, number):
    while True:
        model = KINDS[number % 2](number)
        ModelManager().save_model(model, path, {'number': number}, overwrite=True)
        print(os.getpid(), number, flush=True)
        number += 1


def serve(path):
    importlib.import_module('orbax.checkpoint')
    print('imported', flush=True)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            save_over_and_over(path, int(line))
        os.waitpid(child, 0)
        print('ended', flush=True)
