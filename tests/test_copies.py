"""Tests of copies of models and trainers: a model's copies keep its record."""

import copy
import pickle

import jax
import numpy as np
import pytest
from flax import linen, nnx

from tests.models_for_tests import DropoutBatchNorm, apply_mlp, init_mlp
from thinkml.errors import ConfigError, NotTrainedError
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import attach_record, record_of
from thinkml.models import ModelManager, from_functions, from_linen, predict
from thinkml.training import (
    ActiveLearner,
    DistributedTrainer,
    ModelTrainer,
    TrainingConfig,
    TransferLearner,
)

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.array(['ant', 'bee', 'cat'])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)]
OTHER = np.array(['x', 'y', 'z'])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)]


def train(model, y=Y, **settings):
    config = TrainingConfig(**{'epochs': 1, 'learning_rate': 0.05} | settings)
    return ModelTrainer(config).train(model, X, y, progress=False)


def net():
    return DropoutBatchNorm(4, 3, nnx.Rngs(0))


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def in_halves(model):
    return nnx.merge(*nnx.split(model))


def as_tree(model):
    return jax.tree.map(jax.numpy.copy, model)


WAYS = [copy.copy, copy.deepcopy, pickled]
WAYS_OF_NNX = [*WAYS, nnx.clone, in_halves, as_tree]
MODELS = {
    'functions': lambda: from_functions(init_mlp, apply_mlp),
    'linen': lambda: from_linen(linen.Dense(3)),
}


@pytest.fixture(scope='module')
def trained():
    model = net()
    train(model, epochs=20)
    return model


@pytest.mark.parametrize('way', WAYS_OF_NNX)
def test_a_copy_knows_its_classes_and_saves_them(way, trained, tmp_path):
    twin = way(trained)
    np.testing.assert_array_equal(predict(twin, X), predict(trained, X))
    assert record_of(twin) == record_of(trained)
    manager = ModelManager()
    manager.save_model(way(twin), tmp_path / 'twin')  # a copy of a copy
    loaded = manager.load_model(tmp_path / 'twin')
    assert record_of(loaded).task == record_of(trained).task
    np.testing.assert_array_equal(predict(way(loaded), X), predict(trained, X))


@pytest.mark.parametrize('kind', MODELS)
def test_copies_of_other_models_know_their_classes_too(kind):
    model = MODELS[kind]()
    train(model)
    for way in WAYS if kind == 'functions' else WAYS[:2]:  # Linen's initialisers can't be pickled
        np.testing.assert_array_equal(predict(way(model), X), predict(model, X))


@pytest.mark.parametrize('way', WAYS_OF_NNX[1:])
def test_a_copy_and_its_original_are_trained_apart(way):
    model = net()
    train(model)
    before = set(Y)
    twin, later = way(model), way(model)
    with pytest.warns(UserWarning, match='change their meaning'):
        train(twin, OTHER)
    assert set(predict(twin, X)) <= set(OTHER) and set(predict(model, X)) <= before
    with pytest.warns(UserWarning, match='change their meaning'):
        train(model, OTHER)
    assert set(predict(later, X)) <= before  # first used after the original was trained again
    assert len(record_of(later).runs) == 1 and len(record_of(model).runs) == 2
    assert set(predict(way(model), X)) <= set(OTHER)


def test_a_copy_that_a_callback_keeps_knows_its_classes():
    kept = []
    train(net(), epochs=2, callbacks=[lambda run: kept.append(nnx.clone(run.model))])
    assert all(set(predict(model, X)) <= set(Y) for model in kept)


def test_a_copy_of_a_fine_tuned_model_knows_its_classes(trained):
    learner = TransferLearner(trained, config=TrainingConfig(epochs=1))
    model = learner.fine_tune(X_train=X, y_train=OTHER, progress=False)
    for way in (copy.deepcopy, nnx.clone):
        assert set(predict(way(model), X)) <= set(OTHER)


def test_what_is_known_of_a_model_asks_for_no_other_program(trained, count_compiles):
    predict(trained, X)
    model = net()
    train(model)
    assert count_compiles(predict, nnx.clone(trained), X) == 0
    assert count_compiles(train, model) == 0
    assert count_compiles(train, nnx.clone(trained)) == 0


def linear(seed):
    return nnx.Linear(4, 3, rngs=nnx.Rngs(seed))


def test_a_trained_model_has_the_tree_structure_of_an_untrained_one():
    initial, model = linear(0), linear(0)
    train(model)
    twin = nnx.clone(model)
    moved = jax.tree.map(lambda before, after: after - before, initial, model)
    assert (moved.kernel[...] == model.kernel[...] - initial.kernel[...]).all()
    assert jax.tree.structure(initial) == jax.tree.structure(model)
    assert nnx.graphdef(initial) == nnx.graphdef(model)
    traces = []
    forward = nnx.jit(lambda model, x: traces.append(1) or model(x))
    for one in (initial, model, nnx.clone(model)):
        forward(one, X)
    assert len(traces) == 1
    for change in (lambda: forward(model, X), lambda: setattr(model, 'note', 'kept')):
        change()  # flax then replaces the names of its children
        predict(model, X)
        assert set(predict(nnx.clone(model), X)) <= set(Y)
    with pytest.warns(UserWarning, match='change their meaning'):
        train(model, OTHER)
    assert set(predict(twin, X)) <= set(Y)


def test_a_function_that_is_compiled_for_one_model_gives_its_classes_to_no_other():
    ants, letters = linear(0), linear(1)
    train(ants)
    train(letters, OTHER)

    @nnx.jit
    def shrink(model):
        model.kernel[...] *= 0.5

    double = jax.jit(lambda model: jax.tree.map(lambda array: 2 * array, model))
    for model in (ants, letters):
        shrink(model)
    for way in (double, nnx.clone, copy.deepcopy):
        assert set(predict(way(ants), X)) <= set(Y)
        assert set(predict(way(letters), X)) <= set(OTHER)


def test_a_record_that_is_attached_is_a_copy(trained):
    model = net()
    nnx.update(model, nnx.state(trained))
    with pytest.raises(NotTrainedError, match='attach_record'):
        predict(model, X)
    attach_record(model, record_of(trained))
    np.testing.assert_array_equal(predict(model, X), predict(trained, X))
    with pytest.warns(UserWarning, match='change their meaning'):
        train(model, OTHER)
    assert set(predict(trained, X)) <= set(Y) and len(record_of(trained).runs) == 1


@pytest.mark.parametrize('way', WAYS)
def test_trainers_and_evaluators_can_be_copied(way, trained):
    config = TrainingConfig(epochs=1)
    trainer = DistributedTrainer(config, num_gpus=1)
    trainer.train(net(), X, Y, progress=False)
    twin = way(trainer)
    assert twin.devices == trainer.devices and twin.get_metrics() == trainer.get_metrics()
    twin.train(net(), X, Y, progress=False)
    named = way(ModelTrainer(config, devices=jax.devices()[:1]))
    assert named.devices == jax.devices()[:1] and named.strategy == 'mirrored'
    evaluator = ModelEvaluator(devices=jax.devices()[:1])
    assert dict(way(evaluator).evaluate(trained, X, Y).metrics) == dict(
        evaluator.evaluate(trained, X, Y).metrics
    )


@pytest.mark.parametrize('way', WAYS)
def test_an_active_learner_is_copied_until_its_session_begins(way):
    learner = ActiveLearner(net(), 'margin', config=TrainingConfig(epochs=1), query_size=3)
    twin = way(learner)
    for one in (learner, twin):
        one.start(X, X[:20], Y[:20])
    assert twin.query().tolist() == learner.query().tolist()
    with pytest.raises(ConfigError, match=r'learner: .* save\(path\), and load'):
        way(learner)
