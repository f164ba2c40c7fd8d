"""Callbacks: when they are called, what they write, what they change."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from tests.models_for_tests import mlp
from thinkml.errors import ConfigError, ThinkMLWarning
from thinkml.training import (
    Callback,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    ModelTrainer,
    Profiler,
    ReduceLROnPlateau,
    TensorBoard,
    TrainingConfig,
)
from thinkml.training.callbacks.dispatch import make_callbacks
from thinkml.training.callbacks.loggers import LearningRateMonitor


def rows(num_rows=100, seed=0):
    X = np.random.default_rng(seed).normal(size=(num_rows, 4)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)


def train(callbacks, *, model=None, progress=False, metrics=None, **settings):
    settings = {'epochs': 3, 'batch_size': 20, 'validation_split': 0.2} | settings
    trainer = ModelTrainer(TrainingConfig(callbacks=callbacks, **settings))
    return trainer.train(model or mlp(4, 3), *rows(), metrics=metrics, progress=progress)


def params_of(model):
    return jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


# --- when -------------------------------------------------------------------------------------


class Noting:
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def on_train_start(self, run):
        self._note('start', run)

    def on_chunk_end(self, run):
        self._note('chunk', run)

    def on_epoch_end(self, run):
        self._note('epoch', run)

    def on_train_end(self, run):
        self._note('end', run)

    def _note(self, hook, run):
        self.calls.append((self.name, hook, run.epoch, run.step))


def test_hooks_are_called_in_order():
    calls = []
    train([Noting('a', calls), Noting('b', calls)], epochs=2, steps_per_dispatch=2, max_steps=7)

    def both(*call):
        return [('a', *call), ('b', *call)]

    assert calls == [
        *both('start', 0, 0),
        *both('chunk', 0, 2), *both('chunk', 0, 4), *both('epoch', 1, 4),
        # The epoch that max_steps cuts short is measured as well.
        *both('chunk', 1, 6), *both('chunk', 1, 7), *both('epoch', 2, 7),
        *reversed(both('end', 2, 7)),
    ]  # fmt: skip


class Counting(Callback):
    """Counts epochs, notes its name, and keeps the count in checkpoints."""

    def __init__(self, name='counting', order=0, calls=None):
        self.name, self.order, self.count = name, order, 0
        self.calls = [] if calls is None else calls

    def on_epoch_end(self, run):
        self.count += 1
        self.calls.append(self.name)

    def state_dict(self):
        return {'count': self.count}

    def load_state_dict(self, state):
        self.count = state['count']


def test_callbacks_of_a_lower_order_are_called_first():
    calls = []
    late, early = Counting('late', 1, calls), Counting('early', -1, calls)
    train([late, lambda run: calls.append('function'), early], epochs=1)
    assert calls == ['early', 'function', 'late']
    assert (late.count, early.count) == (1, 1), 'a run uses the objects themselves'


def test_the_state_of_a_subclass_is_resumed(tmp_path):
    settings = {'checkpoint_dir': tmp_path, 'epochs': 2}
    train(['checkpoint', Counting()], **settings)
    resumed = Counting()
    trainer = ModelTrainer(
        TrainingConfig(
            callbacks=['checkpoint', resumed], checkpoint_dir=tmp_path, epochs=3, batch_size=20,
            validation_split=0.2,
        )
    )  # fmt: skip
    trainer.train(mlp(4, 3), *rows(), resume=True, progress=False)
    assert resumed.count == 3


def test_hooks_and_states_may_be_set_on_an_object(tmp_path):
    calls = []
    callback, duck = Callback(), type('Duck', (), {'order': 'mine'})()
    callback.on_epoch_end = duck.on_chunk_end = lambda run: calls.append(run.epoch)
    train([callback, duck], epochs=1)
    assert set(calls) == {0, 1}


def test_a_subclass_may_refuse_a_run(count_compiles):
    class NeedsRecall(Callback):
        def check(self, metric_names):
            if 'recall' not in metric_names:
                raise ConfigError('callbacks: NeedsRecall needs metrics=["recall"].')

    def start():
        with pytest.raises(ConfigError, match='NeedsRecall'):
            train([NeedsRecall()])

    assert count_compiles(start) == 0
    train([NeedsRecall()], metrics=['recall'], epochs=1)


def test_a_trial_run_keeps_subclasses_that_write_nothing():
    class Writes(Counting):
        in_trial_runs = False

    kept, left_out = Counting(), Writes()
    train([kept, left_out], fast_dev_run=True)
    assert (kept.count, left_out.count) == (1, 0)


def test_a_chunk_hook_may_stop_within_an_epoch():
    class Stops:
        def on_chunk_end(self, run):
            if run.step == 6:
                run.stop('enough')

    model, twin = mlp(4, 3), mlp(4, 3)
    history = train([Stops()], model=model, steps_per_dispatch=1)
    assert history.steps == 6 and history.epoch_ends == [4, 6]
    assert history.events == [(1, 'enough')]
    same = train([], model=twin, max_steps=6)
    assert dict(history) == dict(same)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), params_of(twin))


def test_a_hook_may_replace_the_state():
    def freeze(run):
        run.state = run.state.replace(params=jax.tree.map(jnp.zeros_like, run.state.params))

    model = mlp(4, 3)
    train([freeze], model=model, epochs=2)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(params_of(model)))


def test_what_was_started_is_ended_whatever_fails():
    calls = []

    class Fails:
        def on_chunk_end(self, run):
            raise RuntimeError('no more')

    with pytest.raises(RuntimeError, match='no more'):
        train([Noting('a', calls), Fails()])
    assert [hook for _, hook, _, _ in calls] == ['start', 'chunk', 'end']


def test_callbacks_are_those_given_in_their_order():
    own = lambda run: None  # noqa: E731
    names = [own, 'lr_monitor', 'checkpoint', 'progress', 'lr_monitor', own]
    made, checkpoint = make_callbacks(TrainingConfig(callbacks=names))
    assert made[0] is own and isinstance(made[1], LearningRateMonitor) and len(made) == 2
    assert checkpoint == Checkpoint()


def test_an_object_says_in_detail_what_its_name_says():
    detailed = Checkpoint(keep=5), EarlyStopping(patience=3), TensorBoard('elsewhere')
    names = ['checkpoint', 'early_stopping', 'tensorboard', *detailed]
    made, checkpoint = make_callbacks(TrainingConfig(callbacks=names, early_stopping=True))
    assert checkpoint == detailed[0] and made[0] == detailed[1] and len(made) == 2
    assert made[1] == detailed[2]
    with pytest.raises(ConfigError, match='got 2 Checkpoints'):
        make_callbacks(TrainingConfig(callbacks=[Checkpoint(), Checkpoint('other')]))


# --- what is written --------------------------------------------------------------------------


def test_tensorboard_reads_the_values(tmp_path):
    history = train(
        [TensorBoard(tmp_path), 'lr_monitor'], lr_schedule='cosine', weight_decay=0.01,
        metrics=['f1'],
    )  # fmt: skip
    shown = {
        part: EventAccumulator(str(tmp_path / 'run-1' / part)).Reload()
        for part in ('train', 'validation')
    }
    for name, values in history.items():
        tag = name.removeprefix('val_')
        points = shown['train' if tag == name else 'validation'].Scalars(tag)
        assert [point.step for point in points] == [4, 8, 12]
        assert [point.value for point in points] == pytest.approx(values, rel=1e-6)
    assert {'learning_rate', 'grad_norm', 'f1', 'loss'} <= set(history)
    plugin = shown['train'].SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(plugin).hparams
    assert settings['weight_decay'].number_value == pytest.approx(0.01)
    assert settings['lr_schedule'].string_value == 'cosine'
    assert settings['loss_fn'].string_value == 'cross_entropy'


def test_each_run_has_its_own_events(tmp_path):
    for _ in range(2):
        train([TensorBoard(tmp_path)], epochs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run-1', 'run-2']


def test_the_table_holds_the_history(tmp_path):
    path = tmp_path / 'deep' / 'history.csv'
    for epochs in (1, 3):  # a new run replaces the table of the one before
        history = train([CSVLogger(path)], epochs=epochs)
    table = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(row['step']) for row in table] == history.epoch_ends == [4, 8, 12]
    for name, values in history.items():
        assert [float(row[name]) for row in table] == values
    assert float(table[0]['learning_rate']) == pytest.approx(0.001)


def test_loggers_by_name_write_to_logs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(['tensorboard', 'csv'], epochs=1)
    assert sorted(path.name for path in (tmp_path / 'logs').iterdir()) == ['history.csv', 'run-1']


def test_progress_is_shown_where_it_is_asked_for(capsys):
    train(['progress'], progress=False)
    shown = capsys.readouterr().err
    assert '12/12 steps' in shown and 'val_loss' in shown
    train([], progress=False)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('callback', ['profiler', Profiler('elsewhere', skip=0)])
def test_the_profiler_leaves_a_trace(callback, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train([callback], steps_per_dispatch=2)
    root = tmp_path / ('logs/profile' if callback == 'profiler' else 'elsewhere')
    (trace,) = root.rglob('*.xplane.pb')
    assert b'_run_steps' in trace.read_bytes(), 'the compiled steps are in it'


def test_a_run_too_short_for_a_trace_is_told(tmp_path):
    with pytest.warns(ThinkMLWarning, match='ended after 1 dispatches and it skips 2'):
        train([Profiler(tmp_path)], epochs=1, steps_per_dispatch=4)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match='skip: got -1'):
        Profiler(skip=-1)


# --- the learning rate ------------------------------------------------------------------------


def test_the_rate_of_optimizers_of_ones_own():
    injected = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 12))
    history = train(['lr_monitor'], optimizer=injected)
    expected = [0.1 * (1 - step / 12) for step in (3, 7, 11)]
    np.testing.assert_allclose(history['learning_rate'], expected, rtol=1e-5)
    with pytest.warns(ThinkMLWarning, match="'lr_monitor' records nothing"):
        history = train(['lr_monitor'], optimizer=optax.sgd(0.1))
    assert 'learning_rate' not in history


@pytest.mark.parametrize('make', [optax.sgd, optax.inject_hyperparams(optax.sgd)])
def test_a_rate_that_is_built_in_can_not_be_lowered(make):
    with pytest.raises(ConfigError, match='ReduceLROnPlateau, but the optimizer has its own'):
        train([ReduceLROnPlateau()], optimizer=make(learning_rate=0.1))


def test_a_metric_that_is_never_a_number_is_said_to_be_none():
    def undefined(logits, labels):
        return logits[:, 0] * jnp.nan

    with pytest.warns(ThinkMLWarning, match='undefined, which EarlyStopping watched, was NaN'):
        history = train([EarlyStopping('undefined', 'min', patience=2)], metrics=[undefined])
    assert history.epochs == 2
    assert history.events[-1][1].endswith('undefined has not improved for 2 epochs, it is NaN')


@pytest.mark.parametrize('watcher', [EarlyStopping, ReduceLROnPlateau])
def test_a_metric_of_validation_needs_validation_data(watcher):
    with pytest.raises(ConfigError, match=r"'val_loss', but there is no validation data"):
        train([watcher('val_loss')], validation_split=0.0)


def keras_plateau(values, *, rate, factor, patience, min_delta, min_rate):
    """The rate of each epoch by the rule of Keras' ReduceLROnPlateau without a cooldown."""
    rates, best, wait = [], np.inf, 0
    for value in values:
        rates.append(rate)
        if value < best - min_delta:
            best, wait = value, 0
            continue
        wait += 1
        if wait >= patience:
            rate, wait = max(rate * factor, min_rate), 0
    return rates


def keras_early_stopping(values, *, patience, min_delta, start_from_epoch):
    """Epochs trained by the rule of Keras' EarlyStopping, and the best of those it watched."""
    best, wait, epochs = np.inf, 0, len(values)
    for epoch, value in enumerate(values):
        if epoch < start_from_epoch:
            continue
        wait += 1
        if value < best - min_delta:
            best, wait = value, 0
        elif wait >= patience:
            epochs = epoch + 1
            break
    return epochs, start_from_epoch + int(np.argmin(values[start_from_epoch:epochs])) + 1


def scripted(values):
    """A metric of the whole epoch whose values are these."""
    values = iter(values)

    def score(logits, labels):
        float(logits[0, 0])  # refuses to be traced
        return next(values)

    return score


@pytest.mark.parametrize('seed', range(4))
def test_plateaus_and_early_stopping_follow_the_rules_of_keras(seed):
    rng = np.random.default_rng(seed)
    values = np.round(3 * 0.9 ** np.arange(40) + rng.normal(size=40) * 0.3, 2)
    rule = {'factor': 0.5, 'patience': 2 + seed % 2, 'min_delta': 0.05, 'min_rate': 1e-3}
    stop = {'patience': 6, 'min_delta': 0.1, 'start_from_epoch': 3 * seed}
    watched = {'monitor': 'score', 'mode': 'min'}
    kept = []
    history = train(
        ['lr_monitor', ReduceLROnPlateau(**watched, **rule), EarlyStopping(**watched, **stop),
         lambda run: kept.append(jax.device_get(run.state.params))],
        metrics=[scripted(values)], epochs=40, learning_rate=0.02, validation_split=0,
        model=(model := mlp(4, 3)),
    )  # fmt: skip
    epochs, best_epoch = keras_early_stopping(values, **stop)
    assert (history.epochs, history.best_epoch) == (epochs, best_epoch)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), kept[best_epoch - 1])
    rates = keras_plateau(values[:epochs], rate=0.02, **rule)
    np.testing.assert_allclose(history['learning_rate'], rates, rtol=1e-5)


@pytest.mark.parametrize(
    ('mode', 'values', 'settings', 'best'),
    [
        ('min', [0.62, 0.41, 0.3, 0.24, 0.187], {'min_delta': 0.5}, 5),
        ('max', [0.5, 0.6, 0.65, 0.55], {'min_delta': 0.2}, 3),
        ('min', [3.0, 1.9, 1.8, 2.5], {'min_delta': 1.0, 'patience': 2}, 3),
        ('min', [3.0, 2.0, 2.5, 2.4], {'start_from_epoch': 2}, 4),
        ('min', [1.0, 2.0, 3.0, 4.0], {'start_from_epoch': 4}, None),
        ('min', [np.nan] * 4, {}, None),
    ],
)
@pytest.mark.filterwarnings('ignore:monitor. val_score, which EarlyStopping watched, was NaN')
def test_the_best_value_is_kept_however_little_it_gained(mode, values, settings, best):
    kept = []
    model = mlp(4, 3)
    history = train(
        [EarlyStopping('val_score', mode, **settings),
         lambda run: kept.append(jax.device_get(run.state.params))],
        metrics=[scripted(np.repeat(values, 2))], epochs=len(values), model=model,
    )  # fmt: skip
    assert history.epochs == len(values)
    assert history.best_epoch == best
    last = kept[(best or len(values)) - 1]
    jax.tree.map(np.testing.assert_array_equal, params_of(model), last)


def test_patience_counts_gains_beyond_min_delta_alone():
    stopping = EarlyStopping('score', 'min', min_delta=0.5, patience=2)
    history = train(
        [stopping], metrics=[scripted([3.0, 2.8, 2.4, 2.3, 2.2])], epochs=5, validation_split=0
    )
    assert (history.epochs, history.best_epoch) == (5, 5)
    values = [3.0, 2.8, 2.6, 2.4]
    history = train([stopping], metrics=[scripted(values)], epochs=4, validation_split=0)
    assert (history.epochs, history.best_epoch) == (3, 3)


def test_a_cooldown_waits_so_many_epochs():
    plateau = ReduceLROnPlateau(
        monitor='score', mode='max', factor=0.1, patience=1, cooldown=2, min_delta=0
    )
    history = train(
        ['lr_monitor', plateau], metrics=[scripted([1.0] * 8)], epochs=8, learning_rate=1.0,
        optimizer='sgd', validation_split=0,
    )  # fmt: skip
    expected = [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    np.testing.assert_allclose(history['learning_rate'], expected, rtol=1e-5)


def test_the_last_parameters_are_kept_where_the_best_are_not_asked_for():
    stopping = EarlyStopping('score', 'min', patience=2, restore_best=False)
    model, twin = mlp(4, 3), mlp(4, 3)
    history = train([stopping], model=model, metrics=[scripted([1, 2, 3.0])], validation_split=0)
    assert history.epochs == 3
    train([], model=twin, validation_split=0)
    jax.tree.map(np.testing.assert_array_equal, params_of(model), params_of(twin))


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: EarlyStopping(monitor=3), 'monitor: got 3'),
        (lambda: EarlyStopping(restore_best='yes'), "restore_best: got 'yes'"),
        (lambda: EarlyStopping(start_from_epoch=-1), 'start_from_epoch: got -1'),
        (lambda: ReduceLROnPlateau(monitor=['loss']), 'monitor: got'),
        (lambda: ReduceLROnPlateau(factor=2), 'factor: got 2'),
        (lambda: ReduceLROnPlateau(cooldown=0.5), 'cooldown: got 0.5'),
        (lambda: ReduceLROnPlateau(min_rate='0'), "min_rate: got '0'"),
    ],
)
def test_settings_that_make_no_sense(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize('kind', [EarlyStopping, ReduceLROnPlateau, Checkpoint])
def test_what_is_not_recorded_can_not_be_watched(kind, count_compiles, tmp_path):
    def attempt():
        with pytest.raises(ConfigError, match="Did you mean 'val_accuracy'"):
            train([kind(monitor='val_acc')], checkpoint_dir=tmp_path)

    assert count_compiles(attempt) == 0
