"""Training and evaluation mode: a model's own methods, and layers that were frozen by hand."""

import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ThinkMLWarning
from thinkml.models import predict_proba
from thinkml.training import ModelTrainer, TrainingConfig, TransferLearner

X = np.random.default_rng(0).normal(3, 2, size=(40, 4)).astype(np.float32)
Y = (X[:, 0] > 3).astype(int)


class Net(nnx.Module):
    """Two normalisations, of which the first is meant to keep its statistics."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.BatchNorm(4, rngs=rngs)
        self.hidden = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.second(self.hidden(self.first(x))))


class Keeps(Net):
    calls = 0

    def train(self, **attributes):
        Keeps.calls += 1
        super().train(**attributes)
        self.first.eval()


class Block(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def train(self, **attributes):
        super().train(**attributes)
        self.norm.eval()

    def __call__(self, x):
        return self.norm(x)


class Learns(Net):
    """Has a method train that is something else."""

    def train(self, X, y):
        raise NotImplementedError


class IsFlagged(Net):
    """Has a value where flax has a method."""

    eval = None

    def __init__(self):
        super().__init__()
        self.train = True


class Flagged(Block):
    train = True

    def __init__(self):
        self.norm = IsFlagged()


def trained(model):
    ModelTrainer(TrainingConfig(epochs=3)).train(model, X, Y, progress=False)
    return model


def moved(norm):
    return bool((norm.mean[...] != 0).any())


def test_a_models_own_train_is_called_and_what_it_keeps_frozen_stays():
    model = trained(Keeps())
    assert Keeps.calls and not moved(model.first) and moved(model.second)
    assert model.first.use_running_average and model.second.use_running_average  # eval mode
    again = trained(model)
    assert not moved(again.first)
    learner = TransferLearner(Keeps(), 'all', config=TrainingConfig(epochs=1))
    model = learner.fine_tune(Keeps(), X, Y, role='model', progress=False)
    assert not moved(model.first) and moved(model.second)
    assert predict_proba(model, X).shape == (40, 2)


def test_a_method_train_that_needs_arguments_is_something_else():
    model = trained(Learns())
    assert moved(model.first) and moved(model.second)


@pytest.mark.parametrize('make', [IsFlagged, Flagged])
def test_a_value_called_train_is_something_else(make):
    model = trained(make())
    assert moved(getattr(model, 'norm', model).first)


@pytest.mark.parametrize('how', ['eval', 'attribute'])
def test_a_layer_that_was_frozen_by_hand_is_warned_of(how):
    model = Net()
    if how == 'eval':
        model.first.eval()
    else:
        model.first.use_running_average = True
    with pytest.warns(ThinkMLWarning, match='model: first is in evaluation mode beside'):
        trained(model)
    trained(model)  # all layers are in evaluation mode after a training
    model = Net()
    model.eval()
    trained(model)
    assert moved(model.first)


def test_a_dropout_that_was_switched_off_by_hand_is_warned_of():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=rngs),
        nnx.Dropout(0.5, deterministic=True, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
        nnx.Linear(4, 2, rngs=rngs),
    )
    with pytest.warns(ThinkMLWarning, match='layers.1 is in evaluation mode'):
        trained(model)
    model.layers[1].deterministic = True
    model.train()
    trained(model)


def test_a_method_train_of_a_layer_which_flax_does_not_call_is_warned_of():
    model = nnx.Sequential(Block(), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    with pytest.warns(ThinkMLWarning, match='model: layers.0.train is not called'):
        trained(model)
