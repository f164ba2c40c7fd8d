"""What a training records of itself, what it warns of, and how it is watched."""

import csv
import math
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.errors import ThinkMLWarning
from thinkml.history import MACHINE_VALUES, History
from thinkml.model_record import record_of
from thinkml.models import ModelManager
from thinkml.monitoring import TrainingMonitor
from thinkml.training import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    ModelTrainer,
    TrainingConfig,
    run_warnings,
)
from thinkml.training.callbacks import device_stats


def rows(num_rows=80, seed=0):
    X = np.random.default_rng(seed).normal(size=(num_rows, 4)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)


def train(callbacks=(), *, model=None, resume=False, metrics=None, data=None, **settings):
    settings = {'epochs': 3, 'batch_size': 20} | settings
    trainer = ModelTrainer(TrainingConfig(callbacks=callbacks, **settings))
    return trainer.train(
        model or mlp(4, 3), *(data or rows()), metrics=metrics, resume=resume, progress=False
    )


# --- time -------------------------------------------------------------------------------------


def test_throughput_is_the_time_of_a_step_and_the_share_of_waiting(clock):
    def takes_long(run):
        clock.now += 100.0  # other callbacks are in neither

    # Dispatches of two steps; the first one, with its data, compiles and is left out.
    history = train(['throughput', takes_long], steps_per_dispatch=2)
    assert history['step_seconds'] == [1.0, 1.0, 1.0]
    assert history['input_wait'] == [0.0, 3 / 7, 3 / 7]


def test_an_epoch_that_only_compiles_has_no_throughput(clock):
    history = train(['throughput'], steps_per_dispatch=4, epochs=2)
    np.testing.assert_equal(history['step_seconds'], [math.nan, 0.5])
    np.testing.assert_equal(history['input_wait'], [math.nan, 0.6])


def test_a_run_that_waits_for_its_input_is_told_once(clock):
    with pytest.warns(ThinkMLWarning, match='waits for its input') as caught:
        train(steps_per_dispatch=4, epochs=20)
    (warning,) = caught  # after six epochs of 5 s and more are timed
    assert '60% of the first 30 s' in str(warning.message) and warning.filename == __file__


def test_a_run_that_waits_little_is_not_told(clock):
    train(steps_per_dispatch=1, epochs=20)  # 3 s of 11: less than 30 %


def test_data_on_the_device_is_not_waited_for(clock, monkeypatch):
    monkeypatch.setattr(run_warnings, 'ResidentFeed', clock.feed_class)
    train(steps_per_dispatch=4, epochs=20)


def test_a_feed_that_waits_tells_each_chunk_so(clock):
    class Waits:
        def on_train_start(self, run):
            self.seen = []

        def on_chunk_end(self, run):
            self.seen.append(run.times[:3])

    waits = Waits()
    train([waits], steps_per_dispatch=2, epochs=2)
    assert waits.seen == [(0, 0.0, 0.0), (2, 2.0, 0.0), (4, 4.0, 3.0), (6, 6.0, 3.0)]


# --- memory -----------------------------------------------------------------------------------


class Device:
    platform = 'made-up'

    def __init__(self, *stats):
        self.stats = stats

    def memory_stats(self):
        return None if not self.stats else dict(zip(NAMES, self.stats, strict=True))


NAMES = ('bytes_in_use', 'peak_bytes_in_use', 'num_allocs')


def test_the_memory_of_the_fullest_device_is_recorded(monkeypatch):
    monkeypatch.setattr(
        device_stats, '_devices', lambda run: [Device(10, 50, 1), Device(20, 30, 9)]
    )
    history = train(['device_stats'])
    assert history[:, NAMES[:2]] == [(20.0, 50.0)] * 3
    assert NAMES[2] not in history


def test_a_device_that_tells_nothing_is_a_warning(monkeypatch):
    monkeypatch.setattr(device_stats, '_devices', lambda run: [Device(1, 2, 3), Device()])
    with pytest.warns(ThinkMLWarning, match="'device_stats' records nothing.*'made-up'"):
        history = train(['device_stats'])
    assert not set(NAMES) & set(history)


def test_loggers_write_what_recorders_recorded_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(device_stats, '_devices', lambda run: [Device(10, 50, 1)])
    path = tmp_path / 'history.csv'
    history = train([CSVLogger(path), 'throughput', 'device_stats'])
    table = list(csv.DictReader(path.read_text().splitlines()))
    for name in MACHINE_VALUES & set(history):
        np.testing.assert_equal([float(row[name]) for row in table], history[name])


# --- the step ---------------------------------------------------------------------------------


def test_update_ratio_is_how_far_the_parameters_moved():
    kept = []

    def keep(run):
        kept.append(jax.tree.leaves(jax.device_get(run.state.params)))

    model = mlp(4, 3)
    before = jax.tree.leaves(jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    history = train([keep], model=model, metrics=['update_ratio', 'accuracy'], batch_size=80,
                    optimizer='sgd', learning_rate=0.1, validation_split=0.2)  # fmt: skip
    ratios = []
    for old, new in zip([before, *kept], kept, strict=False):
        moved = sum(((a - b).astype(float) ** 2).sum() for a, b in zip(old, new, strict=True))
        ratios.append(math.sqrt(moved / sum((a.astype(float) ** 2).sum() for a in new)))
    np.testing.assert_allclose(history['update_ratio'], ratios, rtol=1e-4)
    assert 'val_update_ratio' not in history


def test_norms_are_of_all_steps():
    kept = []

    class Keeps:
        def on_chunk_end(self, run):
            kept.append(jax.tree.leaves(jax.device_get(run.state.params)))

    settings = {'batch_size': 1, 'epochs': 1, 'optimizer': 'sgd', 'learning_rate': 0.1}
    history = train(
        [Keeps()], data=rows(80), metrics=['grad_norm'], steps_per_dispatch=1, **settings
    )
    before = jax.tree.leaves(jax.device_get(nnx.to_pure_dict(nnx.state(mlp(4, 3), nnx.Param))))
    norms = [
        math.sqrt(
            sum((((a - b) / 0.1).astype(float) ** 2).sum() for a, b in zip(o, n, strict=True))
        )
        for o, n in zip([before, *kept], kept, strict=False)
    ]
    assert history['grad_norm'][0] == pytest.approx(np.mean(norms), rel=1e-3)


def test_recording_changes_nothing_else():
    models = [mlp(4, 3) for _ in range(3)]
    history = train(model=models[0])
    recorded = train(['throughput', 'lr_monitor'], model=models[1])
    train(model=models[2], metrics=['grad_norm', 'update_ratio'])
    assert all(recorded[name] == history[name] for name in history)
    plain, watched, measured = (nnx.to_pure_dict(nnx.state(model)) for model in models)
    jax.tree.map(np.testing.assert_array_equal, plain, watched)
    # Another compiled program, which may round differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, measured)


# --- validation that goes wrong ---------------------------------------------------------------


def history_of(loss, val_loss):
    history = History()
    for values in zip(loss, val_loss, strict=True):
        history.add_epoch(dict(zip(('loss', 'val_loss'), values, strict=True)))
        if values[1] < min(history['val_loss'][:-1], default=math.inf):
            history.best_epoch = history.epochs
    return history


def run_of(history, callbacks=()):
    return types.SimpleNamespace(history=history, epoch=history.epochs, callbacks=callbacks)


EPOCHS = np.arange(60)
FALLING = 0.9**EPOCHS
CURVES = {
    'falls, then rises': (FALLING, FALLING + 0.01 * EPOCHS, True),
    'only rises': (FALLING, 1 + 0.05 * EPOCHS, True),
    'rises as the training loss does': (1 + FALLING[::-1], 1 + 0.05 * EPOCHS, False),
    'stays': (FALLING, FALLING + 0.5, False),
    'noise at its lowest': (FALLING, FALLING + 1e-4 * (EPOCHS % 2), False),
    'rises since a short while': (FALLING, np.maximum(FALLING, 0.3 * (EPOCHS > 50)), False),
    'one epoch out of line': (FALLING, np.where(EPOCHS == 59, 5.0, 0.3 + FALLING), False),
    'a little worse': (FALLING, 1 + FALLING + 0.002 * EPOCHS, False),
    'negative': (FALLING - 5, FALLING - 5 + 0.05 * EPOCHS, True),
}


@pytest.mark.parametrize('name', CURVES)
def test_a_validation_loss_that_rises_for_long(name):
    loss, val_loss, is_rising = CURVES[name]
    history = history_of(loss, val_loss)
    if not is_rising:
        run_warnings.warn_of_validation(run_of(history))
        assert history.events == []
        return
    with pytest.warns(ThinkMLWarning, match=f'risen since epoch {history.best_epoch}.*overfits'):
        run_warnings.warn_of_validation(run_of(history))
    assert history.events == [(60, f'validation loss has risen since epoch {history.best_epoch}')]
    run_warnings.warn_of_validation(run_of(history))  # is told once, also in a run that goes on
    again = history_of(loss, val_loss)
    run_warnings.warn_of_validation(run_of(again, [EarlyStopping(patience=50)]))
    assert again.events == []


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite(value):
    history = history_of([0.5, 0.4], [0.5, value])
    with pytest.warns(ThinkMLWarning, match=f'After epoch 2 the validation loss is {value}'):
        run_warnings.warn_of_validation(run_of(history))
    assert history.events == [(2, f'validation loss is {value}')]
    both = history_of([0.5, value], [0.5, value])  # which `on_nan` is for
    run_warnings.warn_of_validation(run_of(both))
    assert both.events == []


def test_a_training_tells_of_its_validation_once():
    def roots(predictions, targets):
        return (predictions - jnp.sqrt(targets)) ** 2

    X = rows()[0]
    y, negative = np.abs(X[:, 0]), -np.abs(X[:, 1])
    with pytest.warns(ThinkMLWarning, match='validation loss is nan') as caught:
        history = ModelTrainer(TrainingConfig(epochs=4)).train(
            mlp(4, 1), X, y, X, negative, loss_fn=roots, progress=False
        )
    (warning,) = caught
    assert warning.filename == __file__
    assert history.events == [(1, 'validation loss is nan')]


# --- resuming ---------------------------------------------------------------------------------


class Crash:
    def __init__(self, step):
        self.step = step

    def on_chunk_end(self, run):
        if run.step >= self.step:
            raise RuntimeError('crash')


def test_what_is_recorded_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    def record(directory, *more, resume=False):
        return train(
            [Checkpoint(directory, every_steps=3), 'throughput', 'lr_monitor', *more],
            metrics=['grad_norm', 'update_ratio'], steps_per_dispatch=1, resume=resume,
        )  # fmt: skip

    whole = record(tmp_path / 'whole')
    for step in (5, 8):
        with pytest.raises(RuntimeError, match='crash'):
            record(tmp_path / 'parts', Crash(step), resume=True)
    resumed = record(tmp_path / 'parts', resume=True)
    assert resumed == whole
    assert (whole.resumed_at, resumed.resumed_at) == ([], [4, 6])
    assert set(resumed) == set(whole) >= {'step_seconds', 'input_wait', 'update_ratio'}
    again = record(tmp_path / 'parts', resume=True)  # nothing is left to train
    assert again == whole and again.resumed_at == [4, 6]


def test_a_resumed_run_takes_the_place_of_the_one_it_continues(tmp_path):
    model, monitor = mlp(4, 3), TrainingMonitor()
    monitor.track_progress(model)
    earlier = train(model=model)
    with pytest.raises(RuntimeError, match='crash'):
        train([Checkpoint(tmp_path), Crash(10)], model=model, steps_per_dispatch=2)
    assert len(record_of(model).runs) == 2
    resumed = train([Checkpoint(tmp_path)], model=model, resume=True)
    assert record_of(model).runs == [earlier, resumed]
    (line,) = [a for a in monitor.plot_progress().axes[0].lines if a.get_label() == 'loss'][1:]
    assert list(line.get_xdata()) == [4, 5, 6]


# --- watching ---------------------------------------------------------------------------------


def test_a_monitor_is_asked_from_a_callback():
    model, monitor, seen = mlp(4, 3), TrainingMonitor(), []

    def ask(run):
        monitor.track_progress(run.user_model)  # as often as one likes
        seen.append(monitor.get_current_metrics())
        assert len(monitor.plot_progress().axes) == 2

    history = train([ask], model=model)
    assert seen == history[:]
    later = train([ask], model=model)
    assert seen == history[:] + later[:]


def test_a_training_in_another_thread_is_followed():
    model, monitor, seen = mlp(4, 3), TrainingMonitor(), []
    monitor.track_progress(model, metrics=['loss'], interval=2)
    goes_on, ended = threading.Semaphore(0), threading.Semaphore(0)

    class Waits:
        def on_chunk_end(self, run):
            ended.release()
            assert goes_on.acquire(timeout=60)

    histories = []
    thread = threading.Thread(
        target=lambda: histories.append(train([Waits()], model=model, steps_per_dispatch=3))
    )
    thread.start()
    for _ in range(6):  # three steps and one, three times
        assert ended.acquire(timeout=60)
        seen.append(monitor.get_current_metrics()['loss'])
        monitor.plot_progress()
        goes_on.release()
    thread.join()
    (history,) = histories
    steps = history.step_loss.astype(float)
    expected = [steps[at - 2 : at].mean() for at in (3, 7, 11)]
    np.testing.assert_allclose(seen[::2], expected, rtol=1e-6)
    assert monitor.get_current_metrics() == {'loss': history[-1, 'loss']}


def test_a_loaded_model_brings_its_history_along(tmp_path):
    model = mlp(4, 3)
    histories = [train(['throughput'], model=model, validation_split=0.2) for _ in range(2)]
    ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(tmp_path / 'model')
    shown = []
    for owner in (model, loaded):
        monitor = TrainingMonitor()
        monitor.track_progress(owner)
        axes = monitor.plot_progress().axes
        shown.append(
            (
                monitor.get_current_metrics(),
                [[line.get_xydata().tolist() for line in panel.lines] for panel in axes],
            )
        )
    assert shown[0] == shown[1]
    for before, after in zip(histories, record_of(loaded).runs, strict=True):
        assert after == before and after.to_json() == before.to_json()
        np.testing.assert_equal(after[:, ('loss', 'val_loss')], before[:, ('loss', 'val_loss')])
        np.testing.assert_equal(after[-1], before[-1])
    later = train(model=loaded)
    assert record_of(loaded).runs == [*histories, later]
