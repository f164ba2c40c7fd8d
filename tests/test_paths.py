"""Paths that users name: ~, relative ones after a change of directory, and schemes."""

import os
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tests.evaluation.drawn import analyze
from tests.models_for_tests import mlp
from tests.training.active.made import CONFIG, POOL, X
from thinkml.checkpoint import Checkpointer, load_arrays, save_arrays
from thinkml.errors import ConfigError
from thinkml.evaluation import ModelEvaluator
from thinkml.models import ModelManager, create, load_safetensors, save_safetensors
from thinkml.monitoring import TrainingMonitor
from thinkml.paths import local_path
from thinkml.training import ActiveLearner, Checkpoint, TrainingConfig
from thinkml.training.base_model import open_base


def linear():
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def monitor():
    found = TrainingMonitor()
    found.track_progress(type('Model', (), {})())
    return found


def learner():
    found = ActiveLearner(mlp(6, 3), 'random', config=CONFIG)
    found.start(X[POOL])
    return found


def save_session(path):
    found = learner()
    found.save(path)
    found.close()


def save_weights(path):
    save_safetensors(linear(), path + '.safetensors')
    load_safetensors(path + '.safetensors', into=linear())


def save_model(path):
    ModelManager().save_model(linear(), path)
    ModelManager().load_model(path)
    open_base(path, None) if False else None


def save_named_model(path):
    ModelManager(path).save_model(linear(), 'small')


def save_checkpoint(path):
    checkpointer = Checkpointer(path)
    checkpointer.save(1, {'w': np.ones(2)})
    checkpointer.close()


def write_arrays(path):
    save_arrays(path, {'w': np.ones(2)})
    load_arrays(path)


def save_report(path):
    ModelEvaluator().generate_report(analyze('binary').evaluation).save(path + '.txt')


WRITERS = {
    'plot': lambda path: monitor().plot_progress(path + '.svg'),
    'watch': lambda path: monitor().watch(path + '.svg').stop(),
    'report': save_report,
    'model': save_model,
    'root': save_named_model,
    'safetensors': save_weights,
    'arrays': write_arrays,
    'checkpointer': save_checkpoint,
    'session': save_session,
}
