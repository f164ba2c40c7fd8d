import csv
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)

from thinkml.errors import ConfigError
from thinkml.monitoring import CSVWriter, EventWriter, MlflowWriter, WandbWriter

# The values of a run of five epochs; validation begins with the third.
EPOCHS = [
    (10, {'epoch': 1, 'loss': 1 / 3}),
    (20, {'epoch': 2, 'loss': 0.25}),
    (30, {'epoch': 3, 'loss': 0.125, 'val_loss': 2 / 3}),
    (40, {'epoch': 4, 'loss': math.nan, 'val_loss': math.inf}),
    (50, {'epoch': 5, 'loss': 0.0625}),
]


def curve(directory: Path, tag: str) -> list[tuple[int, float]]:
    """Returns the points of a curve, as TensorBoard shows them."""
    events = EventAccumulator(str(directory)).Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def tags(directory: Path) -> set[str]:
    return set(EventAccumulator(str(directory)).Reload().Tags()['scalars'])


def test_training_and_validation_are_one_chart(tmp_path):
    directory = tmp_path / 'deep' / 'er'
    writer = EventWriter(directory)
    writer.write(100, {'loss': 0.5, 'val_loss': 0.75, 'learning_rate': 0.125})
    writer.write(2**40, {'loss': 0.25})
    writer.close()
    assert sorted(path.name for path in directory.iterdir()) == ['train', 'validation']
    assert tags(directory / 'train') == {'loss', 'learning_rate'}
    assert tags(directory / 'validation') == {'loss'}
    assert curve(directory / 'train', 'loss') == [(100, 0.5), (2**40, 0.25)]
    assert curve(directory / 'train', 'learning_rate') == [(100, 0.125)]
    assert curve(directory / 'validation', 'loss') == [(100, 0.75)]


def test_points_are_in_the_files_when_write_returns(tmp_path):
    code = (
        'import os, signal, sys\n'
        'from thinkml.monitoring import EventWriter\n'
        'writer = EventWriter(sys.argv[1])\n'
        'for step in (1, 2, 3):\n'
        '    writer.write(step, {"loss": 0.5, "accuracy": 1.0, "val_loss": 0.25})\n'
        f'os.kill(os.getpid(), {int(signal.SIGKILL)})\n'
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert curve(tmp_path / 'train', 'loss') == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert curve(tmp_path / 'train', 'accuracy') == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert curve(tmp_path / 'validation', 'loss') == [(1, 0.25), (2, 0.25), (3, 0.25)]


def test_a_diverged_loss_is_written_too(tmp_path):
    writer = EventWriter(str(tmp_path))
    writer.write(1, {'loss': np.float32('nan')})
    writer.close()
    [(step, value)] = curve(tmp_path / 'train', 'loss')
    assert step == 1 and math.isnan(value)


def write_events(directory: Path, epochs: list, start_step: int) -> None:
    writer = EventWriter(directory, start_step)
    for step, values in epochs:
        writer.write(step, values)
    writer.close()


@pytest.mark.parametrize('resumed_after', range(5))
def test_a_resumed_run_draws_the_curves_of_an_uninterrupted_one(tmp_path, resumed_after):
    epochs = [
        (step, {'loss': 1 / step, 'val_loss': 2 / step, 'accuracy': 1 - 1 / step})
        for step in range(10, 60, 10)
    ]
    write_events(tmp_path / 'whole', epochs, 0)
    # The values after the checkpoint differ, so that the test would see a curve of them.
    lost = [(step, {name: -1.0 for name in values}) for step, values in epochs[resumed_after:]]
    write_events(tmp_path / 'resumed', epochs[:resumed_after] + lost, 0)
    write_events(tmp_path / 'resumed', epochs[resumed_after:], 10 * resumed_after)
    for run, tag in [('train', 'loss'), ('train', 'accuracy'), ('validation', 'loss')]:
        expected = curve(tmp_path / 'whole' / run, tag)
        assert len(expected) == 5
        assert curve(tmp_path / 'resumed' / run, tag) == expected


def test_a_new_run_takes_the_place_of_the_one_before(tmp_path):
    for value in (0.5, 0.25):  # in the same second: in separate files, read in this order
        write_events(tmp_path, [(1, {'loss': value}), (2, {'loss': value})], 0)
    assert curve(tmp_path / 'train', 'loss') == [(1, 0.25), (2, 0.25)]
    assert len(list((tmp_path / 'train').iterdir())) == 2


def hparams_table(logdir: Path) -> dict[str, dict]:
    """Returns the rows of the HPARAMS tab by run, as TensorBoard finds them."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(logdir))
    backend = backend_context.Context(TBContext(data_provider=provider))
    request = api_pb2.GetExperimentRequest(include_metrics=True)
    of = (context.RequestContext(), backend, 'experiment')
    metrics = get_experiment.Handler(*of, request).run().metric_infos
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        allowed_statuses=api_pb2.Status.values(),
        col_params=[api_pb2.ColParams(metric=metric.name) for metric in metrics],
    )
    return {
        row.name: {name: getattr(v, v.WhichOneof('kind')) for name, v in row.hparams.items()}
        | {metric.name.tag: metric.value for metric in row.metric_values}
        for row in list_session_groups.Handler(*of, request).run().session_groups
    }


@pytest.mark.parametrize(('directory', 'prefix'), [('logs', ''), ('logs/first', 'first/')])
def test_hyperparameters_are_a_row_with_the_curves_and_results(tmp_path, directory, prefix):
    writer = EventWriter(tmp_path / directory)
    writer.write(10, {'loss': 0.5, 'val_loss': 0.75})
    values = {'optimizer': 'adam', 'batch_size': 32, 'shuffle': True, 'schedule': None, 'l': [1]}
    writer.hyperparameters(values, {'val_loss': 0.625})
    writer.close()
    expected = {'optimizer': 'adam', 'batch_size': 32, 'shuffle': True, 'schedule': 'None'}
    expected |= {'l': '[1]', 'loss': 0.5, 'results/val_loss': 0.625}
    assert hparams_table(tmp_path / 'logs') == {f'{prefix}train': expected}


def test_runs_with_other_hyperparameters_are_rows_of_one_table(tmp_path):
    for name, values in [('a', {'depth': 2}), ('b', {'depth': 3, 'dropout': 0.5})]:
        writer = EventWriter(tmp_path / name)
        writer.hyperparameters(values, {})  # at the start
        writer.write(1, {'loss': 0.25})
        writer.close()
    assert hparams_table(tmp_path) == {
        'a/train': {'depth': 2, 'loss': 0.25},
        'b/train': {'depth': 3, 'dropout': 0.5, 'loss': 0.25},
    }


def write_table(path: Path, epochs: list, start_step: int = 0) -> bytes:
    writer = CSVWriter(path, start_step)
    for step, values in epochs:
        writer.write(step, values)
    writer.close()
    return path.read_bytes()


def test_the_table_reads_back_to_the_same_numbers(tmp_path):
    path = tmp_path / 'deep' / 'er' / 'run.csv'
    text = write_table(path, EPOCHS).decode()
    assert text == (
        'step,epoch,loss,val_loss\n'
        '10,1,0.3333333333333333,\n'
        '20,2,0.25,\n'
        '30,3,0.125,0.6666666666666666\n'
        '40,4,nan,inf\n'
        '50,5,0.0625,\n'
    )
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    for row, (step, values) in zip(rows, EPOCHS, strict=True):
        read = {name: float(cell) for name, cell in row.items() if cell}
        np.testing.assert_equal(read, {'step': step, **values})


def test_arrays_scalars_and_awkward_names(tmp_path):
    path = tmp_path / 'run.csv'
    values = {'a, "b"': np.float32(0.5), 'größe': np.int64(2**62), 'x\ny': np.array(0.25)}
    write_table(path, [(np.int64(1), values), (2, {'loss': 1.0})])
    write_table(path, [(3, values)], start_step=2)
    with path.open(encoding='utf-8', newline='') as file:
        header, *rows = csv.reader(file)
    assert header == ['step', 'a, "b"', 'größe', 'x\ny', 'loss']
    assert rows == [
        ['1', '0.5', str(2**62), '0.25', ''],
        ['2', '', '', '', '1.0'],
        ['3', '0.5', str(2**62), '0.25', ''],
    ]


@pytest.mark.parametrize('checkpoint', range(6))
def test_killed_at_any_byte_and_resumed_equals_uninterrupted(tmp_path, checkpoint):
    whole = write_table(tmp_path / 'whole.csv', EPOCHS)
    path = tmp_path / 'killed.csv'
    kept = write_table(path, EPOCHS[:checkpoint])
    start_step = 10 * checkpoint
    for reached in range(checkpoint, 6):
        written = write_table(path, EPOCHS[:reached])
        last_row = written.splitlines(keepends=True)[-1] if reached > checkpoint else b''
        for lost in range(len(last_row)):
            path.write_bytes(written[: len(written) - lost])
            CSVWriter(path, start_step)
            assert path.read_bytes() == kept  # unchanged since the checkpoint
        assert write_table(path, EPOCHS[checkpoint:], start_step) == whole


def test_a_row_is_in_the_file_when_write_returns(tmp_path):
    path = tmp_path / 'run.csv'
    code = (
        'import os, signal, sys\n'
        'from thinkml.monitoring import CSVWriter\n'
        'writer = CSVWriter(sys.argv[1])\n'
        'writer.write(1, {"loss": 0.5})\n'
        'writer.write(2, {"loss": 0.25})\n'
        f'os.kill(os.getpid(), {int(signal.SIGTERM)})\n'
    )
    done = subprocess.run([sys.executable, '-c', code, str(path)], check=False)
    assert done.returncode == -signal.SIGTERM
    assert path.read_text() == 'step,loss\n1,0.5\n2,0.25\n'


def test_a_new_column_that_can_not_be_written_leaves_the_table(tmp_path, monkeypatch):
    path = tmp_path / 'run.csv'
    before = write_table(path, EPOCHS[:2])
    writer = CSVWriter(path, start_step=20)

    def disk_is_full(*_):
        raise OSError('No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', disk_is_full)
        with pytest.raises(OSError, match='No space left'):
            writer.write(*EPOCHS[2])
    assert path.read_bytes() == before
    writer.write(*EPOCHS[2])
    assert path.read_bytes() == write_table(tmp_path / 'whole.csv', EPOCHS[:3])


def test_a_spreadsheet_may_have_saved_it(tmp_path):
    path = tmp_path / 'run.csv'
    path.write_bytes(b'\xef\xbb\xbfstep,loss\r\n10,0.5\r\n20,0.25\r\n')
    assert write_table(path, [(20, {'loss': 0.125})], 10) == b'step,loss\n10,0.5\n20,0.125\n'


@pytest.mark.parametrize(
    'content',
    [b'a,b\n1,2\n', b'step;loss\n1;2\n', b'step,loss\nx,2\n', b'text', b'\x00\xff\xfe\n', b'step'],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    path = tmp_path / 'data.csv'
    path.write_bytes(content)
    for start_step in (0, 10):
        with pytest.raises(
            ConfigError, match=r"path: got '.*data\.csv', .* first column is 'step'"
        ):
            CSVWriter(path, start_step)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('writer', [EventWriter, CSVWriter])
@pytest.mark.parametrize('start_step', [-1, 1.5, True, None, '3'])
def test_impossible_start_steps_are_refused(tmp_path, writer, start_step):
    with pytest.raises(ConfigError, match=r'start_step: got .*, expected the whole number'):
        writer(tmp_path / 'run', start_step)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('writer', 'package'), [(WandbWriter, 'wandb'), (MlflowWriter, 'mlflow')])
def test_what_to_install_is_said(writer, package, monkeypatch, tmp_path):
    message = rf'{writer.__name__}: needs .* {package}, .*: pip install {package}'
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=message):
        writer()
    # Runs are kept in a folder of the package's name, which Python imports as an empty package.
    del sys.modules[package]
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    (tmp_path / package).mkdir()
    with pytest.raises(ConfigError, match=message):
        writer()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Replaces a package by a module and returns it."""

    def install(package: str, source: str):
        monkeypatch.setitem(sys.modules, package, None)  # restored, or removed, afterwards
        del sys.modules[package]
        (tmp_path / f'{package}.py').write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return __import__(package)

    return install


WANDB = """
calls = []
run = None

class Values:
    def __init__(self, name):
        self.name = name
    def update(self, values, **options):
        calls.append((self.name, values, options))

class Run:
    config, summary = Values('config'), Values('summary')
    def log(self, values, step):
        calls.append(('log', values, step))
    def finish(self):
        calls.append(('finish',))

def init(**settings):
    calls.append(('init', settings))
    return Run()
"""


def drive(writer) -> None:
    writer.write(np.int64(10), {'loss': np.float32(0.5)})
    writer.write(20, {'loss': 0.25, 'val_loss': 0.75})
    writer.hyperparameters({'batch_size': 32}, {'val_loss': 0.625})
    writer.close()


def test_what_wandb_is_told(stand_in):
    wandb = stand_in('wandb', WANDB)
    drive(WandbWriter('digits', mode='offline', id='7'))
    told = [
        ('log', {'loss': 0.5}, 10),
        ('log', {'loss': 0.25, 'val_loss': 0.75}, 20),
        ('config', {'batch_size': 32}, {'allow_val_change': True}),
        ('summary', {'results/val_loss': 0.625}, {}),
    ]
    settings = {'project': 'digits', 'mode': 'offline', 'id': '7'}
    assert wandb.calls == [('init', settings), *told, ('finish',)]
    assert [type(wandb.calls[1][2]), type(wandb.calls[1][1]['loss'])] == [int, float]
    wandb.run = wandb.Run()
    wandb.calls.clear()
    drive(WandbWriter())
    assert wandb.calls == told  # an active run is not ended


def test_wandb_itself_takes_it(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb', reason='needs wandb (pip install wandb)')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    writer = WandbWriter('digits', mode='offline', dir=str(tmp_path))
    run = wandb.run
    drive(writer)
    assert wandb.run is None
    assert dict(run.config) == {'batch_size': 32}
    [path] = tmp_path.glob('wandb/offline-run-*/run-*.wandb')
    content = path.read_bytes()  # records with names and numbers as text
    for text in (b'loss', b'0.5', b'0.25', b'val_loss', b'0.75', b'results/val_loss', b'0.625'):
        assert text in content


MLFLOW = """
import types
calls = []
active = None

def active_run():
    return active

def run(run_id):
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

class MlflowClient:
    def __init__(self, tracking_uri=None):
        calls.append(('client', tracking_uri))
    def get_experiment_by_name(self, name):
        known = {'Default': types.SimpleNamespace(experiment_id='0')}
        return known.get(name)
    def create_experiment(self, name):
        calls.append(('experiment', name))
        return '1'
    def create_run(self, experiment_id):
        calls.append(('run', experiment_id))
        return run('new')
    def log_metric(self, run_id, name, value, step):
        calls.append(('metric', run_id, name, value, step))
    def log_param(self, run_id, name, value):
        calls.append(('param', run_id, name, value))
    def set_terminated(self, run_id):
        calls.append(('terminated', run_id))
"""


def test_what_mlflow_is_told(stand_in):
    mlflow = stand_in('mlflow', MLFLOW)

    def told(run_id):
        return [
            ('metric', run_id, 'loss', 0.5, 10),
            ('metric', run_id, 'loss', 0.25, 20),
            ('metric', run_id, 'val_loss', 0.75, 20),
            ('param', run_id, 'batch_size', 32),
            ('metric', run_id, 'results/val_loss', 0.625, 20),
        ]

    for arguments, first in [
        (('digits', 'sqlite:///x.db'), [('client', 'sqlite:///x.db'), ('experiment', 'digits')]),
        ((), [('client', None)]),
    ]:
        drive(MlflowWriter(*arguments))
        created = [('run', '1' if arguments else '0')]
        assert mlflow.calls == [*first, *created, *told('new'), ('terminated', 'new')]
        mlflow.calls.clear()
    mlflow.active = mlflow.run('active')
    drive(MlflowWriter())
    assert mlflow.calls == [('client', None), *told('active')]  # an active run is not ended


@pytest.mark.filterwarnings('default:::sqlalchemy', 'default:::mlflow')
def test_mlflow_itself_takes_it(tmp_path):
    mlflow = pytest.importorskip('mlflow', reason='needs mlflow (pip install mlflow)')
    uri = f'sqlite:///{tmp_path / "runs.db"}'
    for _ in range(2):  # the second time the experiment exists
        drive(MlflowWriter('digits', uri))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name('digits')
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    for run in runs:
        assert run.info.status == 'FINISHED'
        assert run.data.params == {'batch_size': '32'}
        assert run.data.metrics == {'loss': 0.25, 'val_loss': 0.75, 'results/val_loss': 0.625}
        points = client.get_metric_history(run.info.run_id, 'loss')
        assert [(point.step, point.value) for point in points] == [(10, 0.5), (20, 0.25)]
