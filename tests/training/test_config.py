import copy
import dataclasses
import datetime
import inspect

import numpy as np
import optax
import pytest

from thinkml.errors import ConfigError
from thinkml.training import (
    Checkpoint,
    EarlyStopping,
    ModelTrainer,
    TensorBoard,
    TrainingConfig,
)
from thinkml.training.callback import CALLBACKS, Callback
from thinkml.training.callbacks.dispatch import make_callbacks
from thinkml.training.config_validation import NAMES_ELSEWHERE, TRAIN_ARGUMENTS


class Misspelt:
    def on_epoch_ends(self, run):
        raise AssertionError

    def __repr__(self):
        return 'Misspelt()'  # an id that every process gives


class AsInKeras:
    def on_epoch_end(self, epoch, logs):
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


def test_each_callback_name_stands_for_a_callback():
    made, checkpoint = make_callbacks(TrainingConfig(callbacks=[*CALLBACKS, 'progress']))
    assert all(isinstance(each, Callback) for each in (*made, checkpoint))
    assert len(made) + 1 == len(CALLBACKS)


@pytest.mark.parametrize('other', [Checkpoint(), TensorBoard(), Callback(), EarlyStopping])
def test_early_stopping_is_a_callback_that_can_stop(other):
    with pytest.raises(ConfigError, match='early_stopping: got'):
        TrainingConfig(early_stopping=other)


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


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'learning_rate': '1e-3'}, "got '1e-3', expected a number above 0, 'auto'"),
        ({'optimizer': 'AdamW'}, "Did you mean 'adamw'"),
        ({'optimizer': lambda: None}, 'called with a learning rate'),
        ({'early_stopping': {'patience': 5}}, r'EarlyStopping\(patience=5\)'),
        ({'validation_split': 20}, r'0\.2 is 20 %'),
        ({'validation_split': '20%'}, r'0\.2 is 20 %'),
        ({'validation_split': ('first', 0.1)}, "'last', fraction"),
        ({'validation_split': ('last', 10)}, "'last', fraction"),
        ({'lr_schedule': 'onecycle'}, "Did you mean 'one_cycle'"),
        ({'lr_schedule': lambda step: 0.1}, 'Pass it as learning_rate'),
        ({'warmup_steps': '5%'}, 'None or a whole number'),
        ({'weight_decay': '0.01'}, 'None or a number of at least 0'),
        ({'gradient_clip_norm': 0}, 'None or a number above 0'),
        ({'accumulate_steps': 0}, 'a whole number of at least 1'),
        ({'ema_decay': 99.9}, 'between 0 and 1'),
        ({'precision': 'fp16'}, r'In float16 .* needs loss scaling'),
        ({'precision': '16-mixed'}, r'In float16 .* needs loss scaling'),
        ({'precision': 16}, r'In float16 .* needs loss scaling'),
        ({'precision': 'bf61'}, "Did you mean 'bf16'"),
        ({'on_nan': 'rase'}, "Did you mean 'raise'"),
        ({'on_nan': ['raise']}, 'expected one of'),
        ({'checkpoint_dir': None}, 'expected a path'),
        ({'max_steps': 1e3}, 'a whole number of at least 1'),
        ({'max_time': '1h'}, "'HH:MM:SS'"),
        ({'max_time': '00:00:00'}, 'above 0'),
        ({'max_time': datetime.timedelta(seconds=-1)}, 'above 0'),
        ({'limit_train_batches': 1.5}, 'fraction above 0 and up to 1'),
        ({'limit_train_batches': '10%'}, 'fraction above 0 and up to 1'),
        ({'fast_dev_run': 'yes'}, 'True, False or a number of steps'),
        ({'device_data_bytes': '1GB'}, 'a number of bytes'),
        ({'callbacks': [EarlyStopping]}, r'got the class EarlyStopping, .*: EarlyStopping\(\)'),
        ({'callbacks': [lambda: None]}, 'expected one argument, the run'),
        ({'callbacks': [lambda epoch, logs: None]}, r'\(epoch, logs\)'),
        ({'callbacks': [AsInKeras()]}, r'on_epoch_end.*\(epoch, logs\)'),
    ],
)  # fmt: skip
def test_messages_say_what_to_write(settings, says):
    name = next(iter(settings))
    with pytest.raises(ConfigError, match=f'(?s)- {name}: .*{says}'):
        TrainingConfig(**settings)


@pytest.mark.parametrize(
    ('rate', 'says'),
    [
        (lambda step: 0.1 if step < 5 else 0.2, 'use jnp.where for if'),
        (lambda epoch, rate: rate, "missing 1 required positional argument: 'rate'"),
        (lambda step: np.ones(3), r'returned shape \(3,\)'),
    ],
)
def test_a_schedule_of_ones_own_is_tried(rate, says):
    with pytest.raises(ConfigError, match=f'(?s)- learning_rate: .*{says}'):
        TrainingConfig(learning_rate=rate)


def test_a_schedule_of_ones_own_stands_alone():
    with pytest.raises(ConfigError, match=r'(?s)- lr_schedule: .*- warmup_steps: got 5 together'):
        TrainingConfig(learning_rate=lambda step: 0.1, lr_schedule='cosine', warmup_steps=5)
    TrainingConfig(learning_rate=lambda step: 0.1, lr_schedule='reduce_on_plateau')


def test_an_optax_transformation_has_its_own_numbers():
    with pytest.raises(ConfigError) as error:
        TrainingConfig(
            optimizer=optax.adam(0.1), learning_rate='auto', weight_decay=0.1, warmup_steps=5,
            lr_schedule='cosine',
        )  # fmt: skip
    assert str(error.value).count('the optimizer is an optax transformation') == 4
    TrainingConfig(optimizer=optax.adam(0.1), gradient_clip_norm=1.0, ema_decay=0.9)


def test_names_of_other_libraries_lead_to_ours():
    with pytest.raises(ConfigError) as error:
        TrainingConfig(max_epochs=3, lr=0.1, class_weight='balanced', verbose=0)
    message = str(error.value)
    assert 'max_epochs: unknown setting. Here it is epochs.' in message
    assert 'lr: unknown setting. Here it is learning_rate.' in message
    assert 'class_weight: unknown setting. It is an argument of train: train(..., class' in message
    parameters = inspect.signature(ModelTrainer.train).parameters
    assert all(set(names.split(', ')) <= set(parameters) for names in TRAIN_ARGUMENTS.values())
    fields = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert {name.partition('=')[0] for name in NAMES_ELSEWHERE.values()} <= fields
    assert not fields & {*NAMES_ELSEWHERE, *TRAIN_ARGUMENTS}
