"""How many copies of a state, and of the data, a training holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.errors import ThinkMLWarning
from thinkml.training import (
    EarlyStopping,
    ModelTrainer,
    TrainingConfig,
    fit,
    nonfinite,
    watching,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 256)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
PARAMETERS = 4 * (256 * 512 + 512 + 512 * 2 + 2)
STATE = 3 * PARAMETERS  # with Adam's moments
DATA = X.nbytes


def live():
    return sum(array.nbytes for array in jax.live_arrays())


class Copies:
    """What lives when a part of the training makes a copy, beyond what lived before."""

    def __init__(self, module, monkeypatch):
        self.before, self.seen = live(), []
        copy_arrays = module.copy_arrays

        def noted(tree):
            self.seen.append(live() - self.before)
            return copy_arrays(tree)

        monkeypatch.setattr(module, 'copy_arrays', noted)


@pytest.mark.parametrize('epochs', [1, 4])
def test_there_is_one_state_when_a_copy_of_it_is_made(epochs, monkeypatch):
    model = mlp(256, 2, hidden=512)
    copies = Copies(fit, monkeypatch)
    ModelTrainer(TrainingConfig(epochs=epochs, batch_size=16)).train(model, X, Y, progress=False)
    assert len(copies.seen) > epochs
    assert max(copies.seen) < STATE + DATA + PARAMETERS / 2


def test_without_going_back_there_is_one_state(monkeypatch):
    model, seen, before = mlp(256, 2, hidden=512), [], live()
    config = TrainingConfig(
        epochs=3, batch_size=16, on_nan='ignore', callbacks=[lambda run: seen.append(live())]
    )
    ModelTrainer(config).train(model, X, Y, progress=False)
    assert max(seen) - before < STATE + DATA + PARAMETERS / 2


def test_the_best_epoch_before_is_gone_when_a_better_one_is_kept(monkeypatch):
    model = mlp(256, 2, hidden=512)
    copies = Copies(watching, monkeypatch)
    stopping = EarlyStopping(monitor='loss', patience=50)
    config = TrainingConfig(epochs=5, batch_size=16, callbacks=[stopping])
    ModelTrainer(config).train(model, X, Y, progress=False)
    assert len(copies.seen) > 2
    assert max(copies.seen) < 2 * STATE + DATA + PARAMETERS / 2


class Looked(nnx.Module):
    """A row of the table breaks when its id first comes; no loss ever sees it before."""

    def __init__(self):
        self.table = nnx.Embed(64, 2048, rngs=nnx.Rngs(0))
        self.table.embedding[...] = self.table.embedding[...].at[7].set(0.0)
        self.out = nnx.Linear(1, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.out(jnp.sqrt(jnp.sum(self.table(x) ** 2, axis=1, keepdims=True)))


def test_going_back_takes_no_more_than_going_on(monkeypatch):
    ids = np.resize([1, 2, 3], 96)
    ids[50] = 7
    model, parameters = Looked(), 64 * 2048 * 4
    copies = Copies(nonfinite, monkeypatch)
    config = TrainingConfig(epochs=1, batch_size=8, steps_per_dispatch=16)
    with pytest.warns(ThinkMLWarning, match='the gradient is not finite'):
        ModelTrainer(config).train(model, ids, ids % 2, progress=False)
    assert len(copies.seen) > 2
    # The state before the chunk; what is computed again is made of the copy.
    assert max(copies.seen) < 3.5 * parameters
