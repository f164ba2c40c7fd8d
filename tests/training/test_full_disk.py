"""A disk that is full costs what can't be written, and no training."""

import csv
import resource

import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ThinkMLWarning
from thinkml.history import History
from thinkml.model_record import record_of
from thinkml.monitoring import CSVWriter, EventWriter, TrainingMonitor
from thinkml.training import CSVLogger, ModelTrainer, Profiler, TensorBoard, TrainingConfig


@pytest.fixture
def limit():
    """A function that lets files grow to a number of bytes: as a full disk refuses more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size=soft: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FullFrom:
    def __init__(self, limit, epoch):
        self.limit, self.epoch = limit, epoch

    def on_epoch_end(self, run):
        if run.epoch == self.epoch:
            self.limit(0)


def train(*callbacks, epochs=4):
    config = TrainingConfig(
        epochs=epochs, batch_size=4, callbacks=list(callbacks), steps_per_dispatch=1
    )
    X, y = np.eye(8, 2, dtype=np.float32), np.arange(8) % 2
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    return ModelTrainer(config).train(model, X, y, progress=False)


@pytest.mark.parametrize('logger', [TensorBoard, CSVLogger])
@pytest.mark.parametrize('epoch', [1, 4])
def test_loggers_warn_and_the_history_is_whole(tmp_path, limit, capfd, logger, epoch):
    with pytest.warns(ThinkMLWarning, match=f'{logger.__name__} could not write') as caught:
        history = train(FullFrom(limit, epoch), logger(tmp_path / 'logs'))
    assert history.epochs == 4 and len(history['loss']) == 4
    lost = 4 - epoch + 1
    assert sum('could not write epoch' in str(warning.message) for warning in caught) == lost
    assert 'Traceback' not in capfd.readouterr().err


def test_a_profile_that_can_not_be_written_is_a_warning(tmp_path, limit):
    with pytest.warns(ThinkMLWarning, match='the profiler could not write its trace'):
        limit(0)
        assert train(Profiler(tmp_path / 'trace', skip=1)).epochs == 4
    limit()
    train(Profiler(tmp_path / 'trace', skip=1))
    assert [*tmp_path.rglob('*.xplane.pb')]


def test_a_watched_plot_that_can_not_be_written_is_a_warning(tmp_path, limit):
    model, history = type('Model', (), {})(), History()
    record_of(model).runs.append(history)
    monitor = TrainingMonitor()
    monitor.track_progress(model)
    watch = monitor.watch(tmp_path / 'progress.svg', every_seconds=1000)
    history.add_epoch({'loss': 0.5})
    limit(0)
    with pytest.warns(ThinkMLWarning, match='watch: the plot could not be drawn'):
        watch.stop()


def test_a_row_of_which_a_part_was_written_is_not_left_in_the_table(tmp_path, limit):
    writer = CSVWriter(tmp_path / 'run.csv')
    writer.write(1, {'loss': 0.5})
    limit((tmp_path / 'run.csv').stat().st_size + 3)
    with pytest.raises(OSError):
        writer.write(2, {'loss': 0.25})
    limit()
    writer.write(3, {'loss': 0.125})
    with open(tmp_path / 'run.csv') as file:
        assert [row['step'] for row in csv.DictReader(file)] == ['1', '3']


def test_a_point_of_which_a_part_was_written_is_not_left_in_the_events(tmp_path, limit):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = EventWriter(tmp_path)
    writer.write(1, {'loss': 0.5})
    (file,) = (tmp_path / 'train').iterdir()
    limit(file.stat().st_size + 10)
    with pytest.raises(OSError):
        writer.write(2, {'loss': 0.25})
    limit()
    writer.write(3, {'loss': 0.125})
    points = EventAccumulator(str(tmp_path / 'train')).Reload().Scalars('loss')
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (3, 0.125)]
    writer.close()
