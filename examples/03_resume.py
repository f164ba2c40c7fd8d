"""A training that is stopped in the middle of an epoch and resumed by another trainer."""

import tempfile

import jax
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from thinkml.training import Checkpoint, ModelTrainer, TrainingConfig

X, y = load_digits(return_X_y=True)
X = X / 16


def make_model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Dropout(0.2, rngs=rngs),
        nnx.Linear(64, 10, rngs=rngs),
    )  # fmt: skip


def train(directory, *, max_steps=None, resume=False):
    model = make_model()
    config = TrainingConfig(
        epochs=8,
        early_stopping=True,
        validation_split=0.2,
        callbacks=[Checkpoint(directory, every_steps=20)],
        max_steps=max_steps,
    )
    history = ModelTrainer(config).train(model, X, y, resume=resume, progress=False)
    return model, history


with tempfile.TemporaryDirectory() as uninterrupted, tempfile.TemporaryDirectory() as interrupted:
    expected, history = train(uninterrupted)
    print('without a stop:', history)

    _, stopped = train(interrupted, max_steps=100)  # in the middle of the third epoch
    print('stopped after', stopped.steps, 'steps')
    model, resumed = train(interrupted, resume=True)
    print('resumed:       ', resumed)

pairs = zip(
    jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))),
    jax.tree.leaves(nnx.to_pure_dict(nnx.state(expected, nnx.Param))),
    strict=True,
)
print('the same bits: ', all(np.array_equal(a, b) for a, b in pairs) and resumed == history)
