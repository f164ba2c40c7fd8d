"""Trainings of several processes, which here talk over localhost."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm
from tests.processes import end, outputs_of, run_together, started_together, wait_until
from thinkml.errors import ProcessError
from thinkml.training import DistributedTrainer, ModelTrainer, TrainingConfig

# Each test starts up to eight processes, each of which compiles.
pytestmark = pytest.mark.timeout(1800)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(203, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)
SETTINGS = {
    'epochs': 4, 'batch_size': 16, 'optimizer': 'momentum', 'learning_rate': 0.05,
    'validation_split': 0.2, 'steps_per_dispatch': 4,
}  # fmt: skip

# What every script begins with. The trainer comes first: it meets the other processes.
BEGIN = """
import json, os, sys, time
import numpy as np
from flax import nnx
from tests.models_for_tests import DropoutBatchNorm
from tests.training.test_processes import SETTINGS, X, Y, arrays_of, trained
from thinkml.errors import ProcessError
from thinkml.training import Checkpoint, DistributedTrainer, TrainingConfig
"""


def arrays_of(model):
    kept = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return {str(path): np.asarray(value).tolist() for path, value in nnx.to_flat_state(kept)}


def trained(trainer, seed=0, y=Y, **options):
    model = DropoutBatchNorm(6, 3, nnx.Rngs(seed))
    options = {'metrics': ['f1', 'roc_auc'], 'progress': False, **options}
    history = trainer.train(model, X, y, **options)
    return {
        'history': dict(history), 'losses': history.step_loss.tolist(), 'arrays': arrays_of(model),
    }  # fmt: skip


def assert_same(got, expected, tolerance=1e-5):
    for part in ('history', 'arrays'):
        for name, values in expected[part].items():
            np.testing.assert_allclose(got[part][name], values, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got['losses'], expected['losses'], rtol=0, atol=tolerance)


@pytest.fixture(scope='module')
def alone():
    return trained(ModelTrainer(TrainingConfig(**SETTINGS)))


SAME = """
strategy, budget, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
config = TrainingConfig(
    **SETTINGS, device_data_bytes=budget, checkpoint_dir=folder + '/checkpoints',
    callbacks=['checkpoint', 'tensorboard', 'csv', 'progress'],
)
os.chdir(folder)
trainer = DistributedTrainer(config, strategy=strategy)
print(json.dumps(trained(trainer)))
"""


@pytest.mark.parametrize(
    ('count', 'devices', 'strategy', 'budget'),
    [
        (2, 1, 'mirrored', None),
        pytest.param(2, 2, 'fsdp', None, marks=pytest.mark.slow),
        pytest.param(4, 1, 'mirrored', 5_000, marks=pytest.mark.slow),  # rows in parts
        (4, 1, 'mirrored', 1_500),  # streamed
    ],
)
def test_processes_train_as_one(count, devices, strategy, budget, alone, tmp_path):
    outputs = run_together(
        BEGIN + SAME, count, strategy, json.dumps(budget), tmp_path, devices=devices
    )
    results = [json.loads(output) for output, _ in outputs]
    for result in results:
        assert result == results[0]
    assert_same(results[0], alone)
    bars = ['epoch 4' in errors for _, errors in outputs]
    assert bars == [True] + [False] * (count - 1)
    assert len(list(tmp_path.glob('logs/run-*/train/*tfevents*'))) == 1
    assert [path.name for path in tmp_path.glob('checkpoints/*')] == ['run-1']


READ = """
from thinkml.data.rows import Rows

read, take = set(), Rows.take
Rows.take = lambda rows, indices: read.update(indices) or take(rows, indices)
stored = np.load(sys.argv[1], mmap_mode='r')
budget = int(sys.argv[2])
config = TrainingConfig(epochs=1, batch_size=100, device_data_bytes=budget)
DistributedTrainer(config).train(
    DropoutBatchNorm(6, 3, nnx.Rngs(0)), stored, np.arange(len(stored)) % 3, progress=False
)
print(json.dumps(sorted(map(int, read))))
"""


@pytest.mark.parametrize('budget', [800_000, 100_000], ids=['parted', 'streamed'])
def test_a_process_reads_the_rows_of_its_devices(budget, tmp_path):
    rows = 40_000
    np.save(tmp_path / 'x.npy', RNG.normal(size=(rows, 6)).astype(np.float32))
    outputs = run_together(BEGIN + READ, 2, tmp_path / 'x.npy', budget)
    first, second = (set(json.loads(output)) for output, _ in outputs)
    assert first | second == set(range(rows))
    shared = 4096 + 1024  # what each compares with the others, and tries the model on
    assert max(len(first), len(second)) <= rows / 2 + shared


BATCHES = """
def batches():
    for first in range(0, len(X), 16):
        yield X[first : first + 16], Y[first : first + 16]

config = TrainingConfig(**SETTINGS | {'validation_split': 0, 'early_stopping': True})
trainer = DistributedTrainer(config)
model = DropoutBatchNorm(6, 3, nnx.Rngs(0))
history = trainer.train(model, batches, None, X, Y, progress=False)
print(json.dumps({'history': dict(history), 'losses': history.step_loss.tolist(),
                  'arrays': arrays_of(model)}))
"""


def test_processes_train_on_batches_as_one():
    outputs = run_together(BEGIN + BATCHES, 2)
    [(alone, _)] = run_together(BEGIN + BATCHES, 1)
    for output, _ in outputs:
        assert_same(json.loads(output), json.loads(alone))


RESUMED = """
folder, pause, resume = sys.argv[1], float(sys.argv[2]), sys.argv[3] == 'resume'

class Slow:
    def on_chunk_end(self, run):
        time.sleep(pause)

config = TrainingConfig(
    **SETTINGS, callbacks=[Checkpoint(folder, every_steps=2), Slow()],
)
print(json.dumps(trained(DistributedTrainer(config), resume=resume)))
"""


def wait_for_checkpoints(folder, processes):
    wait_until(lambda: any(int(path.name) >= 6 for path in folder.glob('run-1/[0-9]*')), processes)


def killed_after_some_checkpoints(count, folder):
    with started_together(BEGIN + RESUMED, count, folder, 0.4, 'begin') as processes:
        wait_for_checkpoints(folder, processes)
        for process in processes:
            end(process)


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        (2, 2),
        (2, 1),
        pytest.param(4, 2, marks=pytest.mark.slow),
        pytest.param(2, 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_killed_goes_on_with_another_number(first, second, alone, tmp_path):
    killed_after_some_checkpoints(first, tmp_path)
    outputs = run_together(BEGIN + RESUMED, second, tmp_path, 0, 'resume')
    results = [json.loads(output) for output, _ in outputs]
    assert all(result == results[0] for result in results)
    assert_same(results[0], alone)
    if first == second:
        [(whole, _), *_] = run_together(BEGIN + RESUMED, first, tmp_path / 'whole', 0, 'begin')
        assert json.loads(whole) == results[0]


def test_processes_that_are_told_to_end_save_together(alone, tmp_path):
    with started_together(BEGIN + RESUMED, 2, tmp_path, 0.4, 'begin') as processes:
        wait_for_checkpoints(tmp_path, processes)
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)  # as from two machines
        outputs = [outputs_of(process) for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2
    assert any('terminated, saved after' in errors for _, errors in outputs), outputs
    [(resumed, _)] = run_together(BEGIN + RESUMED, 1, tmp_path, 0, 'resume')
    assert_same(json.loads(resumed), alone)


ENDING = """
import signal
folder, handler = sys.argv[1:]
own = os.environ['SLURM_PROCID']

class Slow:
    def on_chunk_end(self, run):
        time.sleep(0.2)

    def on_train_end(self, run):
        print('ends', flush=True)
        time.sleep(4 if own == '1' else 0)  # the first process, which coordinates, comes first

if handler == 'own':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
config = TrainingConfig(
    **SETTINGS | {'epochs': 10_000}, callbacks=[Checkpoint(folder, every_steps=2), Slow()],
)
trained(DistributedTrainer(config))
print('went on', flush=True)
"""


@pytest.mark.parametrize(
    ('told', 'handler', 'code'),
    [
        ((1, 0), '', -signal.SIGTERM),
        ((0,), '', -signal.SIGTERM),
        pytest.param((1,), '', -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param((0, 1), 'own', 5, marks=pytest.mark.slow),
    ],
)
def test_processes_that_are_told_to_end_wait_for_each_other(told, handler, code, tmp_path):
    with started_together(BEGIN + ENDING, 2, tmp_path, handler) as processes:
        wait_for_checkpoints(tmp_path, processes)
        for index in told:
            processes[index].send_signal(signal.SIGTERM)
        outputs = [outputs_of(process) for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, outputs
    for output, errors in outputs:
        assert output == 'ends\n' and 'terminated, saved after' in errors, outputs


SLOW_TO_READ = """
trainer = DistributedTrainer(TrainingConfig(**SETTINGS))
if os.environ['SLURM_PROCID'] == '1':
    time.sleep(40)
print(json.dumps(trained(trainer)))
"""


@pytest.mark.slow
def test_processes_wait_for_one_that_is_slow_to_read_its_data(alone):
    # Gloo, which connects them on CPUs, waits for half a minute only.
    for output, _ in run_together(BEGIN + SLOW_TO_READ, 2):
        assert_same(json.loads(output), alone)


DYING = """
dying, way = sys.argv[1:]

def die(run):
    if run.epoch == 2 and os.environ['SLURM_PROCID'] == dying:
        if way == 'killed':
            os.kill(os.getpid(), 9)
        raise RuntimeError('of its own')

config = TrainingConfig(**SETTINGS | {'epochs': 10_000}, callbacks=[die])
try:
    trained(DistributedTrainer(config))
except ProcessError as error:
    print(type(error).__name__, error, flush=True)
    os._exit(3)
"""


@pytest.mark.parametrize(('way', 'code'), [('killed', -signal.SIGKILL), ('raises', 1)])
def test_a_lost_process_ends_the_others_and_is_told(way, code):
    with started_together(BEGIN + DYING, 2, 1, way) as processes:
        (output, errors), (_, of_lost) = map(outputs_of, processes)
    assert [process.returncode for process in processes] == [3, code], errors[-3000:]
    assert output.startswith('ProcessError process 0 of 2 has lost another one'), output
    assert 'resume=True' in output
    assert ('RuntimeError: of its own' in of_lost) == (way == 'raises')


@pytest.mark.slow
def test_the_first_process_ends_the_others_too():
    with started_together(BEGIN + DYING, 2, 0, 'killed') as (_, second):
        said = ''.join(outputs_of(second))
    assert second.returncode != 0
    # The words of the one who notices first: of ThinkML, or of JAX, which then ends it.
    assert 'has lost another one' in said or 'another task died' in said, said


DIFFERENT = """
from thinkml.errors import ConfigError
own = int(os.environ['SLURM_PROCID'])
trainer = DistributedTrainer(TrainingConfig(**SETTINGS))
for options in ({'seed': own}, {'y': Y if own else Y[::-1].copy()}):
    try:
        trained(trainer, **options)
    except ConfigError as error:
        print(str(error))
"""


def test_what_differs_between_processes_is_told_in_all_of_them():
    for output, _ in run_together(BEGIN + DIFFERENT, 2):
        problems = [line for line in output.splitlines() if line.startswith('  - ')]
        assert problems == [
            f'  - {what}: not the same in process 1 as in process 0.'
            for what in (
                'the initial arrays of the model',
                'X_train, y_train or their weights',
                'X_val or y_val',
            )
        ]


ENDED = """
own = int(os.environ['SLURM_PROCID'])
config = TrainingConfig(**SETTINGS | {'epochs': 10_000, 'steps_per_dispatch': None},
                        callbacks=[lambda run: own and run.epoch >= 3 and run.stop('enough')])
trainer = DistributedTrainer(config)
result = trained(trainer)
print(len(result['history']['loss']), trainer._latest.history.events)
"""


EVALUATED = """
from pathlib import Path
from thinkml.evaluation import ModelEvaluator
from thinkml.monitoring import TrainingMonitor

own = Path(sys.argv[2], os.environ['SLURM_PROCID'])
own.mkdir()
os.chdir(own)
config = TrainingConfig(**SETTINGS, callbacks=['tensorboard', 'csv'])
trainer = DistributedTrainer(config, strategy=sys.argv[1])
model = DropoutBatchNorm(6, 3, nnx.Rngs(0))
trainer.train(model, X, Y, progress=False)
evaluator = ModelEvaluator(devices=trainer.devices)
together = evaluator.evaluate(model, X, Y)
print(json.dumps(together.metrics))
evaluator.generate_report(together).save('report.html')
monitor = TrainingMonitor()
monitor.track_progress(model)
monitor.plot_progress('curves.png')
if trainer.strategy == 'mirrored' and own.name == '0':
    alone = ModelEvaluator().evaluate(model, X, Y)
    assert all(abs(alone[name] - value) < 1e-6 for name, value in together.metrics.items())
"""


@pytest.mark.parametrize('strategy', ['mirrored', pytest.param('fsdp', marks=pytest.mark.slow)])
def test_processes_evaluate_together_and_the_first_one_writes(strategy, tmp_path):
    outputs = run_together(BEGIN + EVALUATED, 2, strategy, tmp_path, devices=2)
    results = [json.loads(output) for output, _ in outputs]
    assert results[0] == results[1] and results[0]['accuracy'] > 0.5
    written = {path.name for path in tmp_path.glob('0/**/*') if path.is_file()}
    assert written >= {'report.html', 'curves.png'} and len(written) == 5, written
    assert not list(tmp_path.glob('1/*'))


def test_one_process_that_stops_stops_all():
    (first, _), (second, _) = run_together(BEGIN + ENDED, 2)
    assert first == "3 [(3, 'process 1 ended the run')]\n"
    assert second == "3 [(3, 'enough')]\n"


MET = """
of_slurm = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith('SLURM')}
job, own = of_slurm['SLURM_JOB_ID'], of_slurm['SLURM_PROCID']
by = {}
if sys.argv[1] == 'mpi':
    os.environ |= {
        'OMPI_MCA_orte_hnp_uri': f'{job}.0;tcp://127.0.0.1:1', 'OMPI_COMM_WORLD_SIZE': '2',
        'OMPI_COMM_WORLD_RANK': own, 'OMPI_COMM_WORLD_LOCAL_RANK': own,
    }
else:
    port = int(job) % 4096 + 61440
    by = {'coordinator': f'localhost:{port}', 'num_processes': 2, 'process_id': int(own)}
trainer = DistributedTrainer(TrainingConfig(**SETTINGS), num_gpus=2, **by)
assert [device.process_index for device in trainer.devices] == [0, 1]
print(json.dumps(trained(trainer)))
"""


@pytest.mark.parametrize('way', ['coordinator', pytest.param('mpi', marks=pytest.mark.slow)])
def test_processes_meet_in_other_ways_and_train_on_some_of_their_devices(way, alone):
    for output, _ in run_together(BEGIN + MET, 2, way, devices=2):
        assert_same(json.loads(output), alone)


LATE = """
import jax
jax.devices()
from thinkml.errors import ProcessError
try:
    DistributedTrainer()
except ProcessError as error:
    print(error)
"""


def test_a_trainer_that_comes_too_late_says_so():
    for output, _ in run_together(BEGIN + LATE, 2):
        assert 'Make the DistributedTrainer before the model' in output


def test_a_coordinator_that_comes_too_late_says_so():
    jax.devices()
    with pytest.raises(ProcessError, match='Make the DistributedTrainer before the model'):
        DistributedTrainer(coordinator='localhost:1', num_processes=2, process_id=0)


STEP = {
    'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'a', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0',
    'SLURM_NTASKS': '2',
}  # fmt: skip


@pytest.mark.parametrize(
    ('environment', 'is_one'),
    [
        ({}, False),
        (STEP, True),
        (STEP | {'SLURM_NTASKS': '1'}, False),
        ({name: STEP[name] for name in STEP if name != 'SLURM_STEP_NODELIST'}, False),  # sbatch
        ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
        ({'TPU_WORKER_HOSTNAMES': 'one'}, False),
        ({'TPU_WORKER_HOSTNAMES': 'one,two'}, True),
        ({'JOB_COMPLETION_INDEX': '0'}, True),
    ],
)
def test_a_process_alone_is_no_run_of_several(environment, is_one, monkeypatch):
    for name in [name for name in os.environ if name.startswith(('SLURM', 'OMPI', 'TPU'))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if is_one:
        with pytest.raises(ProcessError, match='Make the DistributedTrainer before the model'):
            DistributedTrainer()
    else:
        assert len(DistributedTrainer().devices) >= 1
