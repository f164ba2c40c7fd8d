import copy
import dataclasses
import inspect

import numpy as np
import pytest

from thinkml.errors import ConfigError
from thinkml.training import EarlyStopping, TrainingConfig
from thinkml.training.callbacks import BY_NAME
from thinkml.training.config import CALLBACKS


class Misspelt:
    def on_epoch_ends(self, run):
        raise AssertionError


def test_the_documented_fields():
    config = TrainingConfig(
        batch_size=32,
        epochs=100,
        learning_rate=0.001,
        optimizer='adam',
        early_stopping=True,
        validation_split=0.2,
        callbacks=['checkpoint', 'tensorboard'],
    )
    assert config.callbacks == ('checkpoint', 'tensorboard')
    assert list(inspect.signature(TrainingConfig).parameters)[:3] == [
        'batch_size', 'epochs', 'learning_rate',
    ]  # fmt: skip


def test_it_is_frozen_equal_by_value_and_can_be_copied():
    config = TrainingConfig(epochs=3, seed=np.int64(7))
    assert config == TrainingConfig(epochs=3, seed=7) != TrainingConfig(epochs=4, seed=7)
    assert dataclasses.replace(config, epochs=4).epochs == 4
    assert type(config.seed) is int and config.to_dict()['seed'] == 7
    assert hash(TrainingConfig(early_stopping=EarlyStopping())) is not None
    assert copy.deepcopy(config) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 5


def test_each_callback_name_stands_for_something():
    assert set(CALLBACKS) == set(BY_NAME)


def test_every_problem_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        TrainingConfig(batchsize=1, epochs=0, optimizer='adm', callbacks=['tensorbord'])
    message = str(error.value)
    assert "batchsize: unknown setting. Did you mean 'batch_size'?" in message
    assert 'epochs: got 0, expected a whole number of at least 1.' in message
    assert "Did you mean 'adam'?" in message and "Did you mean 'tensorboard'?" in message


@pytest.mark.parametrize(
    'settings',
    [
        {'batch_size': 0}, {'batch_size': 2.5}, {'batch_size': True}, {'batch_size': None},
        {'epochs': -1}, {'epochs': '10'},
        {'learning_rate': 0}, {'learning_rate': float('nan')}, {'learning_rate': float('inf')},
        {'learning_rate': 'fast'}, {'learning_rate': [0.1]},
        {'validation_split': 1.0}, {'validation_split': -0.1},
        {'optimizer': 'sdg'}, {'optimizer': None}, {'optimizer': ['adam']},
        {'early_stopping': 5}, {'early_stopping': EarlyStopping},
        {'callbacks': 'checkpoint'}, {'callbacks': [3]}, {'callbacks': None},
        {'callbacks': [Misspelt()]},
        {'seed': -1}, {'seed': 0.5}, {'steps_per_dispatch': 0},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_values_are_value_errors_naming_the_field(settings):
    with pytest.raises(ValueError, match=f'{next(iter(settings))}: '):
        TrainingConfig(**settings)


def test_an_unknown_field_is_a_type_error_as_python_users_expect():
    with pytest.raises(TypeError, match='lr: unknown setting'):
        TrainingConfig(lr=0.1)


@pytest.mark.parametrize(
    'settings',
    [
        {'mode': 'mini'},
        {'patience': 0},
        {'patience': '5'},
        {'min_delta': -1},
        {'min_delta': float('nan')},
    ],
)
def test_early_stopping_settings(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        EarlyStopping(**settings)
