"""A model file as bytes."""

import dataclasses

import numpy as np
import pytest

from tests.models_for_tests import mlp
from thinkml.errors import ModelFileError
from thinkml.models import predict_proba, record_of
from thinkml.models.model_bytes import ModelBytes
from thinkml.training import ModelTrainer, TrainingConfig


@pytest.fixture(scope='module')
def data():
    X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(int)


@pytest.fixture(scope='module')
def model(data):
    model = mlp(4, 2)
    ModelTrainer(TrainingConfig(epochs=2)).train(model, *data, progress=False)
    return model


def test_bytes_hold_the_weights_the_record_and_the_optimizer(model, data):
    read = ModelBytes.from_model(model).to_model()
    assert np.array_equal(predict_proba(read, data[0]), predict_proba(model, data[0]))
    assert record_of(read) == record_of(model)
    assert record_of(read).origin is record_of(model).origin is None
    expected = record_of(model).optimizer
    found = record_of(read).optimizer
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_bytes_of_an_untrained_model_hold_its_weights():
    model = mlp(4, 2, seed=5)
    read = ModelBytes.from_model(model).to_model()
    assert np.array_equal(read.layers[0].kernel[...], model.layers[0].kernel[...])


def test_damaged_bytes_are_refused(model):
    good = ModelBytes.from_model(model)
    position = good.data.index(b'"kind"')  # in model.json
    changed = good.data[:position] + b'"kine"' + good.data[position + 6 :]
    for data in (good.data[: len(good.data) // 2], changed):
        with pytest.raises(ModelFileError):
            dataclasses.replace(good, data=data).to_model()
