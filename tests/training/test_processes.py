"""Trainings of several processes, which here talk over localhost."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm
from tests.processes import end, outputs_of, run_together, started_together, wait_until
from thinkml.data.rows import Rows
from thinkml.errors import ConfigError, ProcessError
from thinkml.evaluation import ModelEvaluator
from thinkml.monitoring import TrainingMonitor
from thinkml.training import (
    Checkpoint,
    DistributedTrainer,
    ModelTrainer,
    TrainingConfig,
    validation_clock,
)

# A test starts up to four processes, each of which compiles.
pytestmark = pytest.mark.timeout(1800)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(203, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)
SETTINGS = {
    'epochs': 2, 'batch_size': 16, 'optimizer': 'momentum', 'learning_rate': 0.05,
    'validation_split': 0.2, 'steps_per_dispatch': 2,
}  # fmt: skip
MANY = 20_000


def calling(function, *arguments, **named):
    """Returns the code of a process that calls a function of this file and prints its result.

    The function makes a trainer first, which meets the other processes.
    """
    call = f'test_processes.{function.__name__}(*{arguments!r}, **{named!r})'
    return (
        'import json\nfrom tests.training import test_processes\n'
        f'print(json.dumps({call}), flush=True)'
    )


def results_of(outputs):
    """Returns what the function returned in each process."""
    return [json.loads(output) for output, _ in outputs]


def new_model(seed=0):
    return DropoutBatchNorm(6, 3, nnx.Rngs(seed))


def small_model():
    return nnx.Linear(6, 3, rngs=nnx.Rngs(0))


def trained(trainer, make_model=new_model, y=Y, **options):
    model = make_model()
    options = {'metrics': ['f1', 'roc_auc'], 'progress': False, **options}
    return as_json(trainer.train(model, X, y, **options), model)


def as_json(history, model):
    kept = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    arrays = {str(path): np.asarray(value).tolist() for path, value in nnx.to_flat_state(kept)}
    return {'history': dict(history), 'losses': history.step_loss.tolist(), 'arrays': arrays}


def assert_same(got, expected, tolerance=1e-5):
    for part in ('history', 'arrays'):
        for name, values in expected[part].items():
            np.testing.assert_allclose(got[part][name], values, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got['losses'], expected['losses'], rtol=0, atol=tolerance)


@pytest.fixture(scope='module')
def alone():
    return trained(ModelTrainer(TrainingConfig(**SETTINGS)))


@pytest.fixture(scope='module')
def small_alone():
    return trained(ModelTrainer(TrainingConfig(**SETTINGS)), small_model, metrics=[])


# --- what two processes do in one go ------------------------------------------------------------


def in_one_go(folder, killed):
    """Does in each of two processes, one after the other, what many tests look at.

    One device of each trains, so that little is compiled; all four train what is streamed.
    """
    return {
        'resident': met('coordinator'),
        'streamed': trained_and_evaluated(f'{folder}/streamed', 'mirrored', 1_500),
        'batches': trained_on_batches(partial(DistributedTrainer, num_gpus=2)),
        'read in parts': read(f'{folder}/x.npy', 400_000),
        'read in a stream': read(f'{folder}/x.npy', 50_000),
        'differences': differences(),
        'stopped': stopped(),
        'validated by time': validated_by_time(),
        'resumed': saved(killed, resume=True, num_gpus=2),
        'whole': saved(f'{folder}/whole', num_gpus=2),
    }


@pytest.fixture(scope='module')
def together(killed, tmp_path_factory):
    """What the two processes returned, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp('together')
    np.save(folder / 'x.npy', RNG.normal(size=(MANY, 6)).astype(np.float32))
    shutil.copytree(killed.folder, folder / 'killed')
    code = calling(in_one_go, str(folder), str(folder / 'killed'))
    return SimpleNamespace(folder=folder, results=results_of(run_together(code, 2, devices=2)))


def met(way):
    """Trains on one device of each process, which meet in another way than by SLURM."""
    slurm = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith('SLURM')}
    job, own = slurm['SLURM_JOB_ID'], slurm['SLURM_PROCID']
    by = {}
    if way == 'mpi':
        os.environ |= {
            'OMPI_MCA_orte_hnp_uri': f'{job}.0;tcp://127.0.0.1:1', 'OMPI_COMM_WORLD_SIZE': '2',
            'OMPI_COMM_WORLD_RANK': own, 'OMPI_COMM_WORLD_LOCAL_RANK': own,
        }  # fmt: skip
    else:
        port = int(job) % 4096 + 61440
        by = {'coordinator': f'localhost:{port}', 'num_processes': 2, 'process_id': int(own)}
    trainer = DistributedTrainer(TrainingConfig(**SETTINGS), num_gpus=2, **by)
    assert [device.process_index for device in trainer.devices] == [0, 1]
    return trained(trainer)


def test_processes_meet_by_a_coordinator_and_train_on_some_of_their_devices(together, alone):
    for result in together.results:
        assert_same(result['resident'], alone)


@pytest.mark.slow
def test_processes_meet_by_mpi_and_train_on_some_of_their_devices(alone):
    for result in results_of(run_together(calling(met, 'mpi'), 2, devices=2)):
        assert_same(result, alone)


def trained_and_evaluated(folder, strategy, budget):
    """Trains, records, evaluates and reports, each process in a folder of its own."""
    config = TrainingConfig(
        **SETTINGS, device_data_bytes=budget, checkpoint_dir=f'{folder}/checkpoints',
        callbacks=['checkpoint', 'tensorboard', 'csv', 'progress'],
    )  # fmt: skip
    trainer, monitor = DistributedTrainer(config, strategy=strategy), TrainingMonitor()
    evaluator, model = ModelEvaluator(devices=trainer.devices), new_model()
    own = Path(folder, str(jax.process_index()))
    own.mkdir(parents=True)
    with contextlib.chdir(own), contextlib.redirect_stderr(io.StringIO()) as errors:
        history = trainer.train(model, X, Y, metrics=['f1', 'roc_auc'], progress=False)
        evaluation = evaluator.evaluate(model, X, Y)
        evaluator.generate_report(evaluation).save('report.html')
        monitor.track_progress(model)
        monitor.plot_progress('curves.png')
    is_alone = strategy == 'mirrored' and jax.process_index() == 0
    alone = ModelEvaluator().evaluate(model, X, Y, confidence=None) if is_alone else None
    return {
        'trained': as_json(history, model),
        'has bar': 'epoch 2' in errors.getvalue(),
        'evaluated': dict(evaluation.metrics),
        'evaluated alone': alone and dict(alone.metrics),
    }


def assert_trained_as_one(results, alone):
    assert all(result['trained'] == results[0]['trained'] for result in results)
    assert_same(results[0]['trained'], alone)


def assert_evaluated_together(results):
    together, alone = results[0]['evaluated'], results[0]['evaluated alone']
    assert all(result['evaluated'] == together for result in results)
    assert together['accuracy'] > 0.5
    assert alone is None or alone == pytest.approx(together, rel=0, abs=1e-6)


def assert_written_by_the_first(results, folder):
    assert [result['has bar'] for result in results] == [True] + [False] * (len(results) - 1)
    written = sorted(path.name for path in folder.glob('[0-9]/**/*') if path.is_file())
    of_logs = [name for name in written if 'tfevents' in name]
    assert len(of_logs) == 2 and len(list(folder.glob('0/logs/run-*/train/*tfevents*'))) == 1
    assert set(written) - set(of_logs) == {'curves.png', 'history.csv', 'report.html'}
    assert not [path for number in range(1, len(results)) for path in folder.glob(f'{number}/*')]
    assert [path.name for path in folder.glob('checkpoints/*')] == ['run-1']


def test_processes_train_as_one(together, alone):
    assert_trained_as_one([result['streamed'] for result in together.results], alone)


def test_processes_evaluate_together(together):
    assert_evaluated_together([result['streamed'] for result in together.results])


def test_the_first_process_writes(together):
    results = [result['streamed'] for result in together.results]
    assert_written_by_the_first(results, together.folder / 'streamed')


def for_each_budget(folder, strategy, budgets):
    return [trained_and_evaluated(f'{folder}/{budget}', strategy, budget) for budget in budgets]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('count', 'devices', 'strategy', 'budgets'),
    [
        (2, 2, 'fsdp', [None]),
        (4, 1, 'mirrored', [5_000, 1_500]),  # rows in parts, and streamed
    ],
)
def test_any_number_of_processes_is_as_one(count, devices, strategy, budgets, alone, tmp_path):
    code = calling(for_each_budget, str(tmp_path), strategy, budgets)
    of_processes = results_of(run_together(code, count, devices=devices))
    for budget, results in zip(budgets, zip(*of_processes, strict=True), strict=True):
        assert_trained_as_one(results, alone)
        assert_evaluated_together(results)
        assert_written_by_the_first(results, tmp_path / str(budget))


def read(path, budget):
    """Returns which rows of the file this process takes."""
    rows, take = set(), Rows.take
    config = TrainingConfig(epochs=1, batch_size=1000, device_data_bytes=budget)
    trainer = DistributedTrainer(config, num_gpus=2)
    model, stored = small_model(), np.load(path, mmap_mode='r')
    with mock.patch.object(Rows, 'take', lambda self, at: rows.update(at) or take(self, at)):
        trainer.train(model, stored, np.arange(MANY) % 3, metrics=[], progress=False)
    return sorted(map(int, rows))


@pytest.mark.parametrize('way', ['parts', 'a stream'])
def test_a_process_reads_the_rows_of_its_devices(way, together):
    first, second = (set(result[f'read in {way}']) for result in together.results)
    assert first | second == set(range(MANY))
    shared = 4096 + 1024  # what each compares with the others, and tries the model on
    assert max(len(first), len(second)) <= MANY / 2 + shared


def trained_on_batches(make_trainer):
    def batches():
        for first in range(0, len(X), 16):
            yield X[first : first + 16], Y[first : first + 16]

    trainer = make_trainer(
        TrainingConfig(**SETTINGS | {'validation_split': 0, 'early_stopping': True})
    )
    model = new_model()
    return as_json(trainer.train(model, batches, None, X, Y, progress=False), model)


def test_processes_train_on_batches_as_one(together):
    alone = trained_on_batches(ModelTrainer)
    for result in together.results:
        assert_same(result['batches'], alone)


def differences():
    """Returns what the errors say where the model's seed or the data differ."""
    own, told = jax.process_index(), []
    trainer = DistributedTrainer(TrainingConfig(**SETTINGS))
    for options in (
        {'make_model': lambda: new_model(seed=own)},
        {'y': Y if own else Y[::-1].copy()},
    ):
        with pytest.raises(ConfigError) as caught:
            trained(trainer, **options)
        told += [line for line in str(caught.value).splitlines() if line.startswith('  - ')]
    return told


def test_what_differs_between_processes_is_told_in_all_of_them(together):
    for result in together.results:
        assert result['differences'] == [
            f'  - {what}: not the same in process 1 as in process 0.'
            for what in (
                'the initial arrays of the model',
                'X_train, y_train or their weights',
                'X_val or y_val',
            )
        ]


def stopped():
    """Returns the number of epochs, and what ended the run."""

    def stop(run):
        if jax.process_index() == 1 and run.epoch >= 3:
            run.stop('enough')

    settings = SETTINGS | {'epochs': 10_000, 'steps_per_dispatch': None}
    trainer = DistributedTrainer(TrainingConfig(**settings, callbacks=[stop]), num_gpus=2)
    trained(trainer)
    return trainer._result.history.epochs, trainer._result.history.events


def test_one_process_that_stops_stops_all(together):
    first, second = (result['stopped'] for result in together.results)
    assert first == [3, [[3, 'process 1 ended the run']]]
    assert second == [3, [[3, 'enough']]]


def validated_by_time():
    """Returns the steps of the validations; only the first process has a clock that goes on."""
    clock = SimpleNamespace(now=0)
    clock.monotonic = lambda: clock.now

    def second(run):
        clock.now += 1 - jax.process_index()

    settings = SETTINGS | {'epochs': 1, 'validate_every': '2s'}
    callback = SimpleNamespace(on_chunk_end=second)
    trainer = DistributedTrainer(TrainingConfig(**settings, callbacks=[callback]), num_gpus=2)
    with mock.patch.object(validation_clock, 'time', clock):
        trained(trainer)
    return trainer._result.history.epoch_ends


def test_the_first_process_decides_when_all_validate(together):
    assert [result['validated by time'] for result in together.results] == [[6, 11], [6, 11]]


# --- processes that end before the training does ------------------------------------------------


class Holds:
    """A callback that holds the training after its sixth step until a file is there."""

    def __init__(self, folder):
        self.released = Path(folder, 'released')

    def on_chunk_end(self, run):
        while run.step == 6 and not self.released.exists():
            time.sleep(0.05)


def saved(folder, *callbacks, num_gpus=None, **options):
    """Trains with a checkpoint after each fourth step."""
    callbacks = [Checkpoint(folder, every_steps=4), *callbacks]
    trainer = DistributedTrainer(TrainingConfig(**SETTINGS, callbacks=callbacks), num_gpus=num_gpus)
    return trained(trainer, **options)


def held(folder):
    with telling_of_lost_processes():
        saved(folder, Holds(folder))


@contextlib.contextmanager
def telling_of_lost_processes():
    try:
        yield
    except ProcessError as error:
        print(type(error).__name__, error, flush=True)
        os._exit(3)


def wait_for_checkpoint(folder, processes):
    wait_until((folder / 'run-1' / '4').exists, processes)


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """The folder of a run whose second process was killed, and how the first one ended."""
    folder = tmp_path_factory.mktemp('killed')
    with started_together(calling(held, str(folder)), 2) as processes:
        wait_for_checkpoint(folder, processes)
        end(processes[1])
        (folder / 'released').touch()
        output, errors = outputs_of(processes[0])
    return SimpleNamespace(
        folder=folder, code=processes[0].returncode, output=output, errors=errors
    )


def assert_told_of_a_lost_process(code, output, errors):
    assert code == 3, errors[-3000:]
    assert output.startswith('ProcessError process 0 of 2 has lost the connection to'), output
    assert 'resume=True' in output


def test_a_killed_process_ends_the_others_and_is_told(killed):
    assert_told_of_a_lost_process(killed.code, killed.output, killed.errors)


def test_a_run_that_was_killed_equals_one_that_was_not(together, alone):
    first, second = together.results
    assert first['resumed'] == second['resumed'] == first['whole']
    assert_same(first['resumed'], alone)


def test_a_run_that_was_killed_goes_on_in_one_process(killed, alone, tmp_path):
    folder = shutil.copytree(killed.folder, tmp_path / 'killed')
    assert_same(saved(folder, resume=True), alone)


@pytest.mark.slow
@pytest.mark.parametrize(('first', 'second'), [(4, 2), (2, 4)])
def test_a_run_that_was_killed_goes_on_with_another_number(first, second, alone, tmp_path):
    with started_together(calling(held, str(tmp_path)), first) as processes:
        wait_for_checkpoint(tmp_path, processes)
        for process in processes:
            end(process)
    results = results_of(run_together(calling(saved, str(tmp_path), resume=True), second))
    assert all(result == results[0] for result in results)
    assert_same(results[0], alone)


def raises(run):
    if jax.process_index() == 1:
        raise RuntimeError('of its own')


def failing():
    trainer = DistributedTrainer(TrainingConfig(**SETTINGS, callbacks=[raises]))
    with telling_of_lost_processes():
        trained(trainer, small_model, metrics=[])


def test_a_process_that_raises_ends_the_others_and_is_told():
    with started_together(calling(failing), 2) as processes:
        (output, errors), (_, of_lost) = map(outputs_of, processes)
    assert_told_of_a_lost_process(processes[0].returncode, output, errors)
    assert processes[1].returncode == 1 and 'RuntimeError: of its own' in of_lost


@pytest.mark.slow
def test_the_first_process_ends_the_others_too(tmp_path):
    with started_together(calling(held, str(tmp_path)), 2) as (first, second):
        wait_for_checkpoint(tmp_path, [first, second])
        end(first)
        (tmp_path / 'released').touch()
        said = ''.join(outputs_of(second))
    assert second.returncode != 0
    # The words of the one who notices first: of ThinkML, or of JAX, which then ends it.
    assert 'has lost the connection to' in said or 'another task died' in said, said


class Ends:
    """A callback that prints that the training ends, in the first process before the second."""

    def on_train_end(self, run):
        print('ends', flush=True)
        time.sleep(4 * jax.process_index())


def held_until_told(folder, handler):
    if handler == 'own':
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    saved(folder, Holds(folder), Ends(), make_model=small_model, metrics=[])
    print('went on', flush=True)


@pytest.mark.parametrize(
    ('told', 'handler', 'code'),
    [
        ((1, 0), '', -signal.SIGTERM),
        pytest.param((0,), '', -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param((1,), '', -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param((0, 1), 'own', 5, marks=pytest.mark.slow),
    ],
)
def test_processes_that_are_told_to_end_save_together_and_wait_for_each_other(
    told, handler, code, small_alone, tmp_path
):
    with started_together(calling(held_until_told, str(tmp_path), handler), 2) as processes:
        wait_for_checkpoint(tmp_path, processes)
        for index in told:
            processes[index].send_signal(signal.SIGTERM)
        (tmp_path / 'released').touch()
        outputs = [outputs_of(process) for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, outputs
    for output, errors in outputs:
        assert output == 'ends\n' and 'terminated, saved after 6 steps' in errors, outputs
    resumed = saved(tmp_path, make_model=small_model, metrics=[], resume=True)
    assert_same(resumed, small_alone)


def slow_to_read():
    trainer = DistributedTrainer(TrainingConfig(**SETTINGS))
    time.sleep(40 * jax.process_index())
    return trained(trainer)


@pytest.mark.slow
def test_processes_wait_for_one_that_is_slow_to_read_its_data(alone):
    # Gloo, which connects them on CPUs, waits for half a minute only.
    for result in results_of(run_together(calling(slow_to_read), 2)):
        assert_same(result, alone)


# --- how processes meet -------------------------------------------------------------------------


def too_late():
    jax.devices()
    with pytest.raises(ProcessError) as caught:
        DistributedTrainer()
    return str(caught.value)


@pytest.mark.slow
def test_a_trainer_that_comes_too_late_says_so():
    for result in results_of(run_together(calling(too_late), 2)):
        assert 'Create the DistributedTrainer before the model' in result


def test_a_coordinator_that_comes_too_late_says_so():
    jax.devices()
    with pytest.raises(ProcessError, match='Create the DistributedTrainer before the model'):
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
        with pytest.raises(ProcessError, match='Create the DistributedTrainer before the model'):
            DistributedTrainer()
    else:
        assert len(DistributedTrainer().devices) >= 1
