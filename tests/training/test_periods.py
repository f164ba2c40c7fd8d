"""Validation by steps and by time: periods through the epochs, of rows and of batches."""

import functools
import types

import jax
import numpy as np
import pytest
from flax import nnx

from thinkml.checkpoint import Checkpointer
from thinkml.core.train.batch_feed import epoch_order
from thinkml.data import capacity
from thinkml.errors import ConfigError, DataError
from thinkml.training import (
    Checkpoint,
    EarlyStopping,
    ModelTrainer,
    TrainingConfig,
    load_checkpoint,
    validation_clock,
)
from thinkml.training.random_keys import run_keys

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


# --- streams --------------------------------------------------------------------------------------


class Loader:
    """Batches in the order of the rows of an array; its length is unknown."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = epoch_order(np.arange(ROWS), capacity(ROWS), run_keys(0).shuffle, self.epoch)
        for first in range(0, ROWS, 8):
            rows = order[first : first + 8]
            yield X[rows], Y[rows]


def endless():
    rng = np.random.default_rng(1)
    while True:
        rows = rng.integers(0, ROWS, 8)
        yield X[rows], Y[rows]


stream = functools.partial(train, X=Loader(), y=None, X_val=X, y_val=Y)


@pytest.mark.parametrize('every', [4, 10])
def test_a_stream_has_the_history_of_the_array_at_the_same_steps(every):
    params, history = train({'validate_every': every}, X_val=X, y_val=Y)
    same, streamed = stream({'validate_every': every})
    assert streamed.epoch_ends == history.epoch_ends == [*range(every, 21, every), 21]
    for name in ('loss', 'val_loss'):
        np.testing.assert_allclose(streamed[name], history[name], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), same, params)
    assert_equal(same, train(X=Loader(), y=None)[0])  # the bits of a run without validation


@pytest.mark.parametrize('stop', [5, 7, 8, 10])  # in a period, at the ends of an epoch and of both
def test_a_stream_resumes_at_the_same_batch(stop, tmp_path):
    settings = {'validate_every': 5, 'callbacks': [Checkpoint(every_steps=3)]}
    whole, history = stream(settings | {'checkpoint_dir': str(tmp_path / 'a')})
    part = settings | {'checkpoint_dir': str(tmp_path / 'b')}
    stream(part | {'max_steps': stop})
    resumed, again = stream(part, resume=True)
    assert again == history
    assert_equal(whole, resumed)


@pytest.mark.parametrize('every', [4, 6])
def test_a_longer_run_continues_the_last_period(every, tmp_path):
    part = {'validate_every': every, 'checkpoint_dir': str(tmp_path), 'callbacks': ['checkpoint']}
    _, first = stream(part | {'epochs': 2})
    assert first.epoch_ends[-1] == 14
    params, history = stream(part, resume=True)
    whole, expected = stream({'validate_every': every})
    assert history == expected
    assert_equal(params, whole)


@pytest.mark.parametrize(
    'settings',
    [{'validate_every': 4}, {'max_steps': 18}],
    ids=['shorter period', 'part of an epoch'],
)
def test_the_last_validation_may_be_the_best(settings, tmp_path):
    settings = settings | {'checkpoint_dir': str(tmp_path), 'early_stopping': True}
    settings |= {'callbacks': [Checkpoint(keep=1)]}
    params, history = train(settings, X_val=X, y_val=Y)
    losses = history['val_loss']
    assert np.argmin(losses) == len(losses) - 1 and history.best_epoch == len(losses)
    run = Checkpointer.to_read(tmp_path / 'run-1')
    assert run.steps() == [run.best_step()] == [history.steps]
    best = load_checkpoint(tmp_path / 'run-1', nnx.Linear(4, 1, rngs=nnx.Rngs(0)), 'best')
    assert_equal(params, nnx.to_pure_dict(nnx.state(best, nnx.Param)))
    # A longer run continues the period, and compares with the best value of whole ones.
    longer = settings | {'epochs': 4, 'max_steps': None}
    continued, history = train(longer, X_val=X, y_val=Y, resume='continue')
    whole, expected = train(longer | {'callbacks': []}, X_val=X, y_val=Y)
    assert history == expected and run.best_step() == history.steps
    assert_equal(continued, whole)


def test_a_last_validation_that_is_worse_is_not_the_best(tmp_path):
    settings = {'validate_every': 4, 'checkpoint_dir': str(tmp_path), 'learning_rate': 0.5}
    _, history = train(settings | {'callbacks': ['checkpoint']}, X_val=X, y_val=-Y)
    best = int(np.argmin(history['val_loss']))
    assert best < len(history['val_loss']) - 1
    assert Checkpointer.to_read(tmp_path / 'run-1').best_step() == history.epoch_ends[best]


def test_an_endless_stream_is_validated_stopped_and_keeps_its_best(tmp_path):
    settings = {
        'validate_every': 4, 'max_steps': 1000, 'learning_rate': 0.5, 'batch_size': 8,
        'early_stopping': EarlyStopping(monitor='val_wrong_loss', patience=3),
        'callbacks': [Checkpoint(tmp_path, keep=1, monitor='val_wrong_loss')],
    }  # fmt: skip
    sets = {'right': (X, Y), 'wrong': (X, -Y)}
    params, history = train(settings, X=endless, y=None, X_val=sets)
    losses = history['val_wrong_loss']
    best = int(np.argmin(losses))
    assert len(losses) == best + 4 and history.best_epoch == best + 1
    assert history.epoch_ends == [4 * (index + 1) for index in range(len(losses))]
    steps = sorted(int(path.name) for path in tmp_path.glob('run-1/[0-9]*'))
    assert steps == sorted({4 * (best + 1), history.steps})
    shorter = settings | {'max_steps': 4 * (best + 1), 'early_stopping': False, 'callbacks': []}
    assert_equal(params, train(shorter, X=endless, y=None, X_val=sets)[0])


def test_metrics_that_keep_scores_know_the_length_of_a_period():
    labels = (Y > 0).astype(int)

    def batches():
        for first in range(0, ROWS, 8):
            yield X[first : first + 8], labels[first : first + 8]

    settings = SETTINGS | {'epochs': 2, 'validate_every': 5}
    history = ModelTrainer(TrainingConfig(**settings)).train(
        nnx.Linear(4, 2, rngs=nnx.Rngs(0)), batches, None, X, labels,
        metrics=['roc_auc'], progress=False,
    )  # fmt: skip
    assert history.epoch_ends == [5, 10, 14] and np.isfinite(history['roc_auc']).all()
    with pytest.raises(ConfigError, match='batches that have no length'):
        ModelTrainer(TrainingConfig(**settings | {'validate_every': '1m'})).train(
            nnx.Linear(4, 2, rngs=nnx.Rngs(0)), batches, None, metrics=['roc_auc'], progress=False
        )


# --- time -----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by one second in each dispatch."""
    found = types.SimpleNamespace(now=0.0)
    found.monotonic = lambda: found.now
    monkeypatch.setattr(validation_clock, 'time', found)
    return found


class Second:
    def __init__(self, clock):
        self.clock = clock

    def on_chunk_end(self, run):
        self.clock.now += 1


@pytest.mark.parametrize('kind', ['rows', 'batches'])
def test_the_time_decides_at_the_ends_of_dispatches(kind, clock):
    run = functools.partial(train, X_val=X, y_val=Y) if kind == 'rows' else stream
    settings = {'steps_per_dispatch': 2, 'callbacks': [Second(clock)]}
    plain, epochs = run(settings)
    params, history = run(settings | {'validate_every': '2s'})
    # Dispatches end after 2, 4, 6 and 7 steps of each epoch. In the third, two seconds are over.
    assert history.epoch_ends == [6, 11, 16, 21]
    rows = np.array([*[8] * 6, 2] * 3)
    np.testing.assert_allclose(
        history['loss'][1], np.average(history.step_loss[6:11], weights=rows[6:11]), rtol=1e-6
    )
    assert_equal(plain, params)
    np.testing.assert_array_equal(history.step_loss, epochs.step_loss)


def test_the_time_of_validation_does_not_count(clock):
    def validates_for_long(run):
        clock.now += 100

    settings = {'steps_per_dispatch': 2, 'callbacks': [Second(clock), validates_for_long]}
    _, history = train(settings | {'validate_every': '2s'}, X_val=X, y_val=Y)
    assert history.epoch_ends == [6, 11, 16, 21]


def test_a_run_by_time_resumes_to_the_same_parameters(clock, tmp_path):
    settings = {
        'steps_per_dispatch': 2, 'validate_every': '0.04m', 'checkpoint_dir': str(tmp_path),
        'callbacks': [Second(clock), Checkpoint(every_steps=2)],
    }  # fmt: skip
    stream(settings | {'max_steps': 12})
    resumed, history = stream(settings, resume=True)
    whole, expected = stream({})
    assert_equal(whole, resumed)
    np.testing.assert_array_equal(history.step_loss, expected.step_loss)
    saved = Checkpointer(tmp_path / 'run-1')
    assert saved.metadata(max(saved.steps()))['history']['epoch_ends'] == history.epoch_ends[:-1]
    assert history.epoch_ends[0] == 7 and history.epoch_ends[-1] == 21


@pytest.mark.parametrize(
    'value', [0, None, '', 'epochs', '10', '10 m', '0s', '-1m', '1d', 2.5, True]
)
def test_other_values_are_refused(value):
    with pytest.raises(ConfigError, match=r"validate_every: got .*'epoch', a whole .*'10m'"):
        TrainingConfig(validate_every=value)


def test_times_have_units():
    seconds = {'90s': 90, '10m': 600, '1.5h': 5400}
    assert {text: TrainingConfig(validate_every=text).period_seconds for text in seconds} == seconds
    assert TrainingConfig(validate_every=5).period_seconds is None


def test_validation_data_that_is_used_up_is_refused():
    with pytest.raises(DataError, match=r'X_val: got an iterator.* validate_every=5'):
        train({'validate_every': 5, 'max_steps': 9}, X=endless, y=None, X_val=endless())
