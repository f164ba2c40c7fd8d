"""Loggers: each run writes complete curves and tables, however often it is stopped."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.models_for_tests import mlp
from thinkml.errors import ConfigError
from thinkml.monitoring import CSVWriter, EventWriter
from thinkml.training import (
    ActiveLearner,
    Checkpoint,
    CSVLogger,
    MLflow,
    ModelTrainer,
    Profiler,
    TensorBoard,
    TrainingConfig,
    TransferLearner,
    WandB,
)
from thinkml.training.run_checkpoints import Checkpoints

X = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)
STEPS = [4, 8, 12, 16]


def train(checkpoint_dir=None, *, callbacks=(), resume=False, metrics=None, **settings):
    """Trains with both loggers at their default paths."""
    if checkpoint_dir is not None:
        callbacks = [*callbacks, Checkpoint(checkpoint_dir, every_steps=3)]
    config = TrainingConfig(
        callbacks=['csv', 'tensorboard', *callbacks],
        **{'batch_size': 20, 'validation_split': 0.2, 'lr_schedule': 'reduce_on_plateau'}
        | settings,
    )
    trainer = ModelTrainer(config)
    return trainer.train(mlp(4, 3), X, Y, resume=resume, metrics=metrics, progress=False)


def table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def points(directory, wall_time=False):
    """Returns the curves that TensorBoard shows."""
    shown = {}
    for name in ('train', 'validation'):
        accumulator = EventAccumulator(str(directory / name)).Reload()
        for tag in accumulator.Tags()['scalars']:
            if not tag.startswith('results/'):
                shown[name, tag] = [
                    (e.step, e.value, *([e.wall_time] if wall_time else []))
                    for e in accumulator.Scalars(tag)
                ]
    return shown


class Crash:
    """A callback that fails after a number of steps."""

    def __init__(self, step):
        self.step = step

    def on_chunk_end(self, run):
        if run.step >= self.step:
            raise RuntimeError('crash')


def crashed(step, checkpoint_dir, **settings):
    with pytest.raises(RuntimeError, match='crash'):
        train(checkpoint_dir, callbacks=[Crash(step)], steps_per_dispatch=1, **settings)


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """Changes to an empty directory, and returns the directory of the logs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'logs'


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """Returns the table and the curves of a run that was not stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('whole'))
        train('checkpoints', epochs=4)
        return table('logs/history.csv'), points(Path('logs/run-1'))


def quick():
    """Trains another run that shares the logs but not the checkpoints."""
    return train('quick', epochs=1, seed=7)


def is_of_quick(directory, path):
    return set(map(len, points(directory).values())) == {1} and len(table(path)) == 1


def test_a_resumed_run_continues_its_own_curve_and_table(logs, uninterrupted):
    crashed(10, 'checkpoints', epochs=4)
    quick()
    train('checkpoints', epochs=4, resume=True)
    assert sorted(path.name for path in logs.iterdir()) == [
        'history-1.csv', 'history.csv', 'run-1', 'run-2',
    ]  # fmt: skip
    assert is_of_quick(logs / 'run-2', logs / 'history.csv')
    assert (table(logs / 'history-1.csv'), points(logs / 'run-1')) == uninterrupted


def test_each_run_of_one_directory_of_checkpoints_has_its_own(logs, uninterrupted):
    crashed(10, 'checkpoints', epochs=4)
    train('checkpoints', epochs=1, seed=7)
    train('checkpoints/run-1', epochs=4, resume=True)
    assert is_of_quick(logs / 'run-2', logs / 'history.csv')
    assert (table(logs / 'history-1.csv'), points(logs / 'run-1')) == uninterrupted


@pytest.mark.parametrize('is_followed', [False, True], ids=['alone', 'and another run'])
def test_what_was_deleted_in_between_is_filled_in(logs, uninterrupted, is_followed):
    crashed(10, 'checkpoints', epochs=4)
    shutil.rmtree(logs)
    if is_followed:  # it gets the names of the first one
        quick()
    train('checkpoints', epochs=4, resume=True)
    run = logs / ('run-2' if is_followed else 'run-1')
    assert (table(logs / 'history.csv'), points(run)) == uninterrupted
    if is_followed:
        assert is_of_quick(logs / 'run-1', logs / 'history-1.csv')


def test_a_table_of_longer_epochs_is_not_taken_for_ones_own(logs, uninterrupted):
    crashed(10, 'checkpoints', epochs=4)
    shutil.rmtree(logs)
    train('other', epochs=1, batch_size=2)  # its only row is of a later step
    train('checkpoints', epochs=4, resume=True)
    assert [row['step'] for row in table(logs / 'history-1.csv')] == ['40']
    assert table(logs / 'history.csv') == uninterrupted[0]


@pytest.mark.parametrize('directory', ['./logs', 'absolute', 'moved'])
def test_curves_are_known_by_whichever_path(logs, uninterrupted, directory):
    crashed(10, 'checkpoints', epochs=4)
    quick()
    if directory == 'moved':
        logs = logs.rename(logs.with_name('moved'))
    path = logs if directory == 'absolute' else directory
    config = TrainingConfig(
        batch_size=20, validation_split=0.2, epochs=4, checkpoint_dir='checkpoints',
        lr_schedule='reduce_on_plateau', callbacks=['checkpoint', TensorBoard(path)],
    )  # fmt: skip
    ModelTrainer(config).train(mlp(4, 3), X, Y, resume=True, progress=False)
    assert sorted(path.name for path in logs.glob('run-*')) == ['run-1', 'run-2']
    assert points(logs / 'run-1') == uninterrupted[1]


def test_logs_may_be_in_the_directory_of_checkpoints(logs, uninterrupted):
    loggers = [CSVLogger('runs/history.csv'), TensorBoard('runs')]
    with pytest.raises(RuntimeError, match='crash'):
        train('runs', epochs=4, callbacks=[*loggers, Crash(10)], steps_per_dispatch=1)
    train('runs', epochs=4, callbacks=loggers, resume=True)
    assert sorted(path.name for path in Path('runs').iterdir()) == ['history.csv', 'run-1', 'run-2']
    found = table('runs/history.csv'), points(Path('runs/run-2'))
    assert found == uninterrupted


@pytest.mark.parametrize(
    'loggers',
    [
        lambda logs: [CSVLogger(), CSVLogger()],
        lambda logs: [CSVLogger(), CSVLogger(logs / 'history.csv')],
        lambda logs: [TensorBoard(), TensorBoard('./logs')],
    ],
)
def test_two_loggers_of_one_place_are_refused(logs, loggers, count_compiles):
    def start():
        with pytest.raises(ConfigError, match=r'^callbacks: got two .* objects that write to /'):
            train(callbacks=loggers(logs))

    assert count_compiles(start) == 0 and not logs.exists()


def test_points_that_a_kill_took_are_filled_in(logs, uninterrupted):
    crashed(10, 'checkpoints', epochs=4)
    before = points(logs / 'run-1', wall_time=True)['train', 'loss']
    for path in (*logs.rglob('*.tfevents.*'), logs / 'history.csv'):
        path.write_bytes(path.read_bytes()[:150])  # the part that was written to disk
    train('checkpoints', epochs=4, resume=True)
    assert (table(logs / 'history.csv'), points(logs / 'run-1')) == uninterrupted
    after = points(logs / 'run-1', wall_time=True)['train', 'loss']
    resumed_at = after[2][2]
    assert [time for *_, time in after[:2]] == pytest.approx([t for *_, t in before], abs=0.1)
    assert resumed_at > before[-1][2]


@pytest.mark.parametrize('is_active', [False, True])
def test_a_service_gets_the_epochs_before_in_a_new_run(logs, is_active, monkeypatch):
    """A run that is active already has the epochs."""
    sent = []

    class Service:
        is_ours = not is_active
        hyperparameters = close = staticmethod(lambda *_: None)

        def __init__(self, *_, **__):
            self.rows = []
            sent.append(self.rows)

        def write(self, step, values):
            self.rows.append((step, values))

    monkeypatch.setattr('thinkml.training.callbacks.loggers.WandbWriter', Service)
    monkeypatch.setattr('thinkml.training.callbacks.loggers.MlflowWriter', Service)
    services = [WandB('digits'), MLflow()]
    train('whole', epochs=4, callbacks=services)
    train('parts', epochs=2, callbacks=services)
    train('parts', epochs=4, callbacks=services, resume=True)
    whole = sent[0]
    assert [step for step, _ in whole] == STEPS and sent[1] == whole
    assert sent[4:] == 2 * [whole[2:] if is_active else whole]


def test_a_logger_that_is_added_writes_the_epochs_before(logs, uninterrupted):
    crashed(10, 'checkpoints', epochs=4)
    shutil.rmtree(logs)
    more = [CSVLogger('more/table.csv'), TensorBoard('more')]
    train('checkpoints', epochs=4, resume=True, callbacks=more)
    found = table(logs.parent / 'more/table.csv'), points(logs.parent / 'more/run-1')
    assert found == uninterrupted


def test_each_epoch_is_in_the_files_when_it_has_ended(logs):
    seen = []

    def look(run):
        seen.append(({len(curve) for curve in points(logs / 'run-1').values()}, run.epoch))

    train(epochs=3, callbacks=[look])
    assert seen == [({1}, 1), ({2}, 2), ({3}, 3)]


class Meanwhile:
    """A callback that trains another run meanwhile, and records a value from then on."""

    def on_epoch_end(self, run):
        if run.epoch == 2:
            quick()
        if run.epoch >= 2:
            run.history.add_to_epoch({'later': 1.0})


def test_runs_at_once_do_not_mix(logs, uninterrupted):
    train('checkpoints', epochs=4, callbacks=[Meanwhile()])
    assert is_of_quick(logs / 'run-2', logs / 'history.csv')
    found = table(logs / 'history-1.csv')
    assert [row.pop('later') for row in found] == ['', '', 'nan', 'nan']
    assert found == uninterrupted[0]
    assert len(points(logs / 'run-1').pop(('train', 'later'))) == 2


def test_a_table_may_be_in_the_directory_of_its_run(logs, uninterrupted):
    """The checkpoint directory is locked while the run is trained."""
    table_of_run = [CSVLogger('checkpoints/run-1/history.csv')]
    train('checkpoints', epochs=2)
    train('checkpoints/run-1', epochs=4, resume=True, callbacks=table_of_run)
    assert table(logs.parent / 'checkpoints/run-1/history.csv') == uninterrupted[0]


def test_a_table_that_is_deleted_while_a_run_writes_it_is_whole_again(logs, uninterrupted):
    def delete(run):
        if run.epoch == 2:
            (logs / 'history.csv').unlink()

    train('checkpoints', epochs=4, callbacks=[delete])
    assert table(logs / 'history.csv') == uninterrupted[0]


def test_a_new_run_leaves_the_tables_of_earlier_ones(logs):
    for epochs in (1, 2, 3):
        train(epochs=epochs)
    found = {path.name: len(table(path)) for path in logs.glob('*.csv')}
    assert found == {'history-1.csv': 1, 'history-2.csv': 2, 'history.csv': 3}
    with pytest.raises(RuntimeError, match='crash'):
        train(callbacks=[Crash(1)], steps_per_dispatch=1)
    assert not (logs / 'history.csv').exists()  # the run ended before its first row


def test_each_training_of_active_and_transfer_learning_has_its_own(logs):
    config = TrainingConfig(epochs=2, callbacks=['csv', 'tensorboard'])
    learner = ActiveLearner(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), 'margin', config=config)
    learner.train(X[:20], Y[:20], X[20:], n_iterations=2, y_unlabeled=Y[20:], progress=False)
    assert [len(table(path)) for path in logs.glob('*.csv')] == [2, 2, 2]
    base = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu)
    learner = TransferLearner(base, 'all', config=config, head_epochs=1)
    learner.fine_tune(X_train=X, y_train=Y, epochs=3, progress=False)
    assert len(table(logs / 'history-4.csv')) == 1 and len(table(logs / 'history.csv')) == 2
    assert len(list(logs.glob('run-*'))) == 5


def test_checkpoints_from_before_runs_knew_their_logs(logs, uninterrupted, monkeypatch):
    """They continue the newest logs, and lose none of their values."""
    new = Checkpoints._metadata_of

    def old(self, run):
        return {k: v for k, v in new(self, run).items() if k not in ('logs', 'epoch_ends')}

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, '_metadata_of', old)
        crashed(10, 'checkpoints', epochs=4)
    crashed(14, 'checkpoints', epochs=4, resume=True)
    train('checkpoints', epochs=4, resume=True)
    assert (table(logs / 'history.csv'), points(logs / 'run-1')) == uninterrupted


# --- unwritable paths ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name', ['step', 'learning_rate', 'step_seconds', 'input_wait', 'val_loss', 'val_anything']
)
def test_names_that_mean_something_else_are_refused(logs, name, count_compiles):
    def metric(logits, labels):
        return logits[:, 0]

    metric.__name__ = name

    def start():
        with pytest.raises(ConfigError, match=f"^metrics: got one called '{name}'"):
            train(metrics=[metric])

    assert count_compiles(start) == 0
    assert not logs.exists()


def test_a_value_called_step_is_refused_by_tables(tmp_path):
    writer = CSVWriter(tmp_path / 'run.csv')
    with pytest.raises(ConfigError, match=r"^values: got one called 'step'"):
        writer.write(1, {'loss': 0.5, 'step': 2.0})
    writer.write(1, {'loss': 0.5})
    assert table(tmp_path / 'run.csv') == [{'step': '1', 'loss': '0.5'}]


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda folder, file: CSVLogger(folder), 'path: got .*, which is a directory'),
        (lambda folder, file: CSVLogger(file / 'a.csv'), 'path: got .* is a file'),
        (lambda folder, file: CSVLogger(file), "path: got .* first column is 'step'"),
        (lambda folder, file: CSVLogger(3), 'path: got 3, expected a path'),
        (lambda folder, file: TensorBoard(file), 'directory: got .* is a file'),
        (lambda folder, file: TensorBoard(str(file / 'below')), 'directory: got .* is a file'),
        (lambda folder, file: TensorBoard(None), 'directory: got None, expected a path'),
        (lambda folder, file: Profiler(file), 'directory: got .* is a file'),
        (lambda folder, file: Checkpoint(3), 'directory: got 3, expected a path'),
    ],
)
def test_places_that_can_not_be_written_are_told_before_any_compile(
    logs, make, says, count_compiles
):
    file = logs.parent / 'file'
    file.write_text('text')

    def start():
        with pytest.raises(ConfigError, match=says):
            train(callbacks=[make(logs.parent, file)])

    assert count_compiles(start) == 0
    assert file.read_text() == 'text' and not logs.exists()


def test_a_file_is_not_a_directory_of_events(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(ConfigError, match=r'^directory: got .* is a file'):
            EventWriter(path)
        with pytest.raises(ConfigError, match=r'^path: got '):
            CSVWriter(path / 'a.csv')
