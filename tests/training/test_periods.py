"""Validation by steps: periods of a number of steps through the epochs."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError
from thinkml.training import EarlyStopping, ModelTrainer, TrainingConfig

ROWS = 50
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
Y = X.sum(axis=1)
SETTINGS = {'epochs': 3, 'batch_size': 8, 'learning_rate': 0.05, 'validation_split': 0}  # 7 steps


def train(settings=None, X=X, y=Y, **more):
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    config = TrainingConfig(**SETTINGS | (settings or {}))
    history = ModelTrainer(config).train(model, X, y, progress=False, **more)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), history


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('storage', [{}, {'device_data_bytes': 100}], ids=['resident', 'streamed'])
@pytest.mark.parametrize('every', [1, 4, 7, 10, 100])
def test_the_parameters_are_those_without_it(every, storage):
    plain, epochs = train(storage)
    params, history = train(storage | {'validate_every': every}, X_val=X, y_val=Y)
    assert_equal(plain, params)
    np.testing.assert_array_equal(history.step_loss, epochs.step_loss)
    assert history.epochs == -(-21 // every) == len(history['val_loss'])
    assert history.steps == 21


def test_the_mean_of_a_period_is_that_of_its_rows():
    _, epochs = train()
    _, history = train({'validate_every': 7})
    np.testing.assert_allclose(history['loss'], epochs['loss'], rtol=1e-6)
    rows = np.array([*[8] * 6, 2] * 3)
    _, history = train({'validate_every': 5})
    for index, loss in enumerate(history['loss']):
        part = slice(5 * index, 5 * index + 5)
        assert loss == pytest.approx(np.average(history.step_loss[part], weights=rows[part]))


def test_callbacks_count_validations():
    seen = []
    settings = {
        'epochs': 40, 'validate_every': 3, 'early_stopping': EarlyStopping(patience=2),
        'learning_rate': 1e-12, 'callbacks': [lambda run: seen.append(run.step)],
    }  # fmt: skip
    _, history = train(settings, X_val=X, y_val=Y)
    assert seen == [3 * (i + 1) for i in range(len(seen))] and history.epochs == len(seen) <= 4


def test_a_resumed_run_is_the_same_run(tmp_path):
    settings = {'validate_every': 5, 'callbacks': ['checkpoint'], 'batch_size': 6}
    run = functools.partial(train, X_val=X, y_val=Y)
    whole, history = run(settings | {'checkpoint_dir': str(tmp_path / 'a')})
    part = settings | {'checkpoint_dir': str(tmp_path / 'b')}
    run(part | {'max_steps': 13})
    resumed, again = run(part, resume='continue')
    assert dict(history) == dict(again)
    assert_equal(whole, resumed)
    with pytest.raises(ConfigError, match='validate_every: 5 in the checkpoint, 6 now'):
        run(part | {'validate_every': 6}, resume=True)


def test_the_last_steps_of_a_schedule_are_those_without_it():
    schedule = {'lr_schedule': 'cosine'}
    assert_equal(train(schedule)[0], train(schedule | {'validate_every': 4})[0])


def test_buckets_are_validated_by_steps():
    from tests.training.test_sequences import TAGS, TOKENS, Reader, params_of
    from tests.training.test_sequences import train as train_sequences

    plain, _ = train_sequences(Reader(), TOKENS, TAGS)
    model, history = train_sequences(
        Reader(), TOKENS, TAGS, {'validate_every': 4}, X_val=TOKENS, y_val=TAGS
    )
    assert_equal(params_of(plain), params_of(model))
    assert len(history['val_loss']) == history.epochs > 2


def test_batches_are_refused_with_the_way_that_works():
    with pytest.raises(ConfigError, match=r'validate_every: got 5 for batches.*limit_train_'):
        train({'validate_every': 5}, X=lambda: iter([(X, Y)]), y=None)
    with pytest.raises(ConfigError, match='validate_every: got 0'):
        TrainingConfig(validate_every=0)
