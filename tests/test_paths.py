"""Tests of paths that users pass: ~, relative ones after a change of directory, and schemes."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.evaluation.plot_reading import analyze
from tests.models_for_tests import mlp
from tests.training.active.made import CONFIG, POOL, X
from thinkml.checkpoint import Checkpointer, load_arrays, save_arrays
from thinkml.errors import CheckpointError, ConfigError, ModelFileError
from thinkml.evaluation import ModelEvaluator
from thinkml.models import ModelManager, create, load_safetensors, save_safetensors
from thinkml.monitoring import CSVWriter, EventWriter, TrainingMonitor
from thinkml.paths import local_path
from thinkml.training import (
    ActiveLearner,
    Checkpoint,
    CSVLogger,
    ModelTrainer,
    Profiler,
    TensorBoard,
    TrainingConfig,
)
from thinkml.training.transfer.backbone import load_backbone


def linear():
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def monitor():
    found = TrainingMonitor()
    found.track_progress(type('Model', (), {})())
    return found


def learner():
    found = ActiveLearner(mlp(6, 3), 'random', config=CONFIG)
    found.start(X[POOL])
    return found


def save_session(path):
    found = learner()
    found.save(path)
    found.close()


def save_weights(path):
    save_safetensors(linear(), path + '.safetensors')
    load_safetensors(path + '.safetensors', into=linear())


def save_model(path):
    ModelManager().save_model(linear(), path)
    ModelManager().load_model(path)
    load_backbone(path)


def save_named_model(path):
    ModelManager(path).save_model(linear(), 'small')


def save_checkpoint(path):
    checkpointer = Checkpointer(path)
    checkpointer.save(1, {'w': np.ones(2)})
    checkpointer.close()


def write_arrays(path):
    save_arrays(path, {'w': np.ones(2)})
    load_arrays(path)


def save_report(path):
    ModelEvaluator().generate_report(analyze('binary').evaluation).save(path + '.txt')


def train(callbacks, checkpoint_dir='checkpoints'):
    config = TrainingConfig(
        epochs=1, batch_size=4, callbacks=callbacks, checkpoint_dir=checkpoint_dir,
        steps_per_dispatch=1,
    )  # fmt: skip
    X, y = np.ones((8, 2), np.float32), np.arange(8) % 2
    return ModelTrainer(config).train(linear(), X, y, progress=False)


def write_table(path):
    CSVWriter(path + '.csv').write(1, {'loss': 0.5})


def write_events(path):
    writer = EventWriter(path)
    writer.write(1, {'loss': 0.5})
    writer.close()


# Functions that write, and the argument that their errors name.
WRITERS = {
    'plot': (lambda path: monitor().plot_progress(path + '.svg'), 'path'),
    'watch': (lambda path: monitor().watch(path + '.svg').stop(), 'path'),
    'report': (save_report, 'path'),
    'model': (save_model, 'path'),
    'root': (save_named_model, 'root'),
    'safetensors': (save_weights, 'path'),
    'arrays': (write_arrays, 'path'),
    'checkpointer': (save_checkpoint, 'directory'),
    'session': (save_session, 'path'),
    'csv writer': (write_table, 'path'),
    'event writer': (write_events, 'directory'),
    'checkpoint_dir': (lambda path: train(['checkpoint'], path), 'checkpoint_dir'),
    'Checkpoint': (lambda path: train([Checkpoint(path)]), 'directory'),
    'TensorBoard': (lambda path: train([TensorBoard(path)]), 'directory'),
    'CSVLogger': (lambda path: train([CSVLogger(path + '.csv')]), 'path'),
    'Profiler': (lambda path: train([Profiler(path, skip=1)]), 'directory'),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Creates a home directory and another working directory."""
    (tmp_path / 'home').mkdir()
    (tmp_path / 'work').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path / 'work')
    return tmp_path / 'home'


@pytest.mark.parametrize('name', WRITERS)
def test_a_tilde_is_the_home_directory(home, name):
    write, _ = WRITERS[name]
    write('~/of the home')
    (found,) = home.glob('of the home*')
    assert found.stat().st_size and not any(Path.cwd().iterdir())


@pytest.mark.parametrize('scheme', ['gs://bucket/run', 's3:/bucket/run', 'hdfs://host:1/run'])
@pytest.mark.parametrize('name', WRITERS)
def test_schemes_are_refused_before_anything_is_done(home, name, scheme, count_compiles):
    write, argument = WRITERS[name]

    def refused():
        with pytest.raises(ConfigError, match=f'(?m)^(  - )?{argument}: got .{scheme}.* on this'):
            write(scheme)

    jax.numpy.zeros(2)
    assert count_compiles(refused) == 0 or name in ('model', 'session', 'safetensors')
    assert not any(Path.cwd().iterdir()) and not any(home.iterdir())


READERS = {
    'load_model': lambda path: ModelManager().load_model(path),
    'base_model': lambda path: load_backbone(path),
    'weights': lambda path: create('resnet18', 2, weights=path),
    'load_safetensors': lambda path: load_safetensors(path, into=linear()),
    'load': lambda path: learner().load(path, X[POOL]),
    'load_arrays': load_arrays,
    'export': lambda path: ModelManager().export('somewhere/model', path + '.safetensors'),
}


@pytest.mark.parametrize('name', READERS)
def test_nothing_is_read_from_a_scheme(home, name):
    with pytest.raises(ConfigError, match=r'got .gs://bucket/run.* on this machine.* gs://'):
        READERS[name]('gs://bucket/run')


@pytest.mark.parametrize(
    ('path', 'says'),
    [
        ('file:///data/run', "expected a plain path, such as '/data/run'"),
        (Path('gs://bucket/run'), "got 'gs:/bucket/run', expected a path on this machine"),
        ('', "got '', expected a path"),
        (b'run', "got b'run', expected a path"),
        (3, 'got 3, expected a path'),
        ('a\0b', 'expected a path'),
    ],
)
def test_what_is_not_a_path_is_refused(path, says):
    with pytest.raises(ConfigError, match=f'^checkpoint_dir: .*{says}'):
        local_path(path, 'checkpoint_dir')
    with pytest.raises(ConfigError, match=f'checkpoint_dir: .*{says}'):
        TrainingConfig(checkpoint_dir=path)


def test_the_path_of_a_saved_model_is_given_back(home):
    assert ModelManager().save_model(linear(), '~/model') == home / 'model'
    assert ModelManager().save_model(linear(), 'model') == Path('model')
    assert save_safetensors(linear(), 'a.safetensors') == Path('a.safetensors')


def test_drives_and_colons_are_paths(tmp_path):
    assert local_path('C:/run').name == 'run'
    assert local_path(tmp_path / 'a:b') == tmp_path / 'a:b'
    assert local_path('~nobody-of-that-name/run').name == 'run'


def test_relative_paths_stay_what_they_are_in_another_directory(home, monkeypatch):
    """The working directory changes in the first step and between two calls."""
    start, elsewhere = Path.cwd(), home

    class Move:
        def on_chunk_end(self, run):
            os.chdir(elsewhere)

    train(
        [
            Move(),
            TensorBoard('events'),
            CSVLogger('table.csv'),
            Profiler('trace', skip=1),
            Checkpoint('kept'),
        ]
    )
    assert {path.name for path in start.iterdir()} == {'events', 'table.csv', 'trace', 'kept'}
    assert (start / 'table.csv').read_text().count('\n') == 2
    monkeypatch.chdir(start)
    writer, manager, watch = CSVWriter('run.csv'), ModelManager('models'), monitor().watch('a.svg')
    session = learner()
    session.save('session')
    monkeypatch.chdir(elsewhere)
    writer.write(1, {'loss': 0.5})
    manager.save_model(linear(), 'small')
    watch.stop()
    session.teach([0], [1])
    session.close()
    names = {'run.csv', 'models', 'a.svg', 'session'}
    assert names <= {path.name for path in start.iterdir()} and not any(elsewhere.iterdir())


# Paths that can't be written: below a file, or an existing directory.
TO_FILES = ('plot', 'watch', 'report', 'csv writer', 'CSVLogger')
TO_DIRECTORIES = (
    'session', 'event writer', 'checkpoint_dir', 'Checkpoint', 'TensorBoard', 'Profiler'
)  # fmt: skip


@pytest.mark.parametrize('name', [*TO_FILES, *TO_DIRECTORIES])
def test_a_file_is_not_a_directory(home, name):
    write, argument = WRITERS[name]
    Path('taken').write_text('a file')
    kind = CheckpointError if name in ('checkpoint_dir', 'Checkpoint') else ConfigError
    with pytest.raises(kind, match=f"^{argument}: got '?.*taken/below.*taken' is a file"):
        write('taken/below')
    assert [path.name for path in Path.cwd().iterdir()] == ['taken']


@pytest.mark.parametrize('name', TO_FILES)
def test_a_directory_is_not_a_file(home, name):
    write, argument = WRITERS[name]
    for ending in ('.svg', '.txt', '.csv'):
        Path('taken' + ending).mkdir()
    with pytest.raises(ConfigError, match=f"^{argument}: got 'taken.*, which is a directory"):
        write('taken')
    assert not any(any(path.iterdir()) for path in Path.cwd().iterdir())


@pytest.mark.parametrize('taken', ['taken.safetensors/below', 'taken'])
def test_weights_that_can_not_be_written_name_the_path(home, taken):
    Path('taken.safetensors').touch() if '/' in taken else Path('taken.safetensors').mkdir()
    with pytest.raises(ModelFileError, match=r'^path: .* could not be written'):
        save_weights(taken)


def test_the_working_directory_has_a_name(home, monkeypatch):
    manager = ModelManager('.')
    manager.save_model(linear(), 'small')
    assert (Path.cwd() / 'small').is_dir()
    monkeypatch.chdir(ModelManager().save_model(linear(), 'model'))
    assert type(ModelManager().load_model('.')) is nnx.Linear
    assert type(ModelManager().load_model(Path('../model'))) is nnx.Linear


def test_what_holds_bytes_or_much_is_named_in_one_line(home):
    class Bytes:
        def __fspath__(self):
            return b'plot.svg'

    with pytest.raises(ConfigError, match=r'^path: got .*Bytes.*, expected a path'):
        monitor().plot_progress(Bytes())
    with pytest.raises(ConfigError, match=r'^path: got (MLP|Sequential), expected'):
        ModelManager().save_model('model', mlp(6, 3))
