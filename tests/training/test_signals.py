"""Ctrl-C and SIGTERM during a training."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.models_for_tests import mlp
from tests.training.test_resume import Watcher, run
from thinkml.checkpoint import Checkpointer
from thinkml.errors import ThinkMLWarning
from thinkml.model_record import record_of
from thinkml.models import predict
from thinkml.training import ModelTrainer, TrainingConfig
from thinkml.training.signals import catch_signals


@pytest.fixture
def terminated():
    """Installs a custom handler of SIGTERM, which records what it finds."""
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


class Sends:
    """Sends this process a signal."""

    def __init__(self, number, at):
        self.number, self.at = number, at

    def on_train_start(self, run):
        if self.at == 'start':
            signal.raise_signal(self.number)

    def on_chunk_end(self, run):
        if run.step == self.at:
            signal.raise_signal(self.number)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp('uninterrupted'), epochs=2)


@pytest.mark.parametrize('at', ['start', 5, 6])
def test_sigterm_saves_at_the_next_border_and_reaches_the_users_handler(
    tmp_path, at, terminated, uninterrupted, capsys
):
    settings = {'steps_per_dispatch': 1, 'epochs': 2, 'checkpoint': {'every_epochs': 9}}
    stopped = run(tmp_path, callbacks=[Sends(signal.SIGTERM, at)], **settings)
    step = 1 if at == 'start' else at  # compilation is not interrupted
    assert terminated == [signal.SIGTERM]
    assert stopped.history.interrupted and stopped.history.steps == step
    told = capsys.readouterr().err
    assert f'terminated, saved after {step} steps; resume=True continues from {tmp_path}' in told
    checkpointer = Checkpointer(tmp_path / 'run-1')
    assert checkpointer.latest_sound() == step
    resumed = run(tmp_path, resume=True, epochs=2)
    assert resumed.watcher.first_step == step
    assert resumed == uninterrupted


def test_without_checkpoints_sigterm_reaches_the_users_handler_at_once(terminated):
    class Ends(Sends):
        def on_chunk_end(self, run):
            super().on_chunk_end(run)
            found.append(list(terminated))

    found = []
    history = trained(Ends(signal.SIGTERM, at=1), epochs=1, steps_per_dispatch=1)
    assert found[0] == terminated == [signal.SIGTERM]
    assert not history.interrupted and history.epochs == 1


def test_the_users_handler_finds_everything_in_its_place(tmp_path):
    found = {}

    class Ends(Watcher):
        def on_train_end(self, run):
            super().on_train_end(run)
            found['model'] = run.user_model

    def handler(number, frame):
        history = record_of(found['model']).runs[-1]
        found['history'] = history.interrupted, history.steps
        found['steps'] = Checkpointer(tmp_path / 'run-1').steps()
        raise SystemExit(3)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit):
            run(tmp_path, callbacks=[Sends(signal.SIGTERM, 5), Ends()], steps_per_dispatch=1)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found['history'] == (True, 5) and 5 in found['steps']


def test_it_is_not_called_saved_when_it_is_not(tmp_path, terminated, capsys, monkeypatch):
    def refuse(*args, **about):
        raise OSError('refused')

    monkeypatch.setattr('thinkml.checkpoint.manifest.write', refuse)
    with pytest.warns(ThinkMLWarning, match='step: 3 could not be written'):
        run(tmp_path, callbacks=[Sends(signal.SIGTERM, 3)], steps_per_dispatch=1)
    assert 'terminated, not saved after 3 steps' in capsys.readouterr().err
    assert terminated


def test_a_training_that_fails_passes_sigterm_on(tmp_path, terminated):
    class Fails:
        def on_chunk_end(self, run):
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError('failed')

    with pytest.raises(RuntimeError, match='failed'):
        run(tmp_path, callbacks=[Fails()])
    assert terminated == [signal.SIGTERM]


WORKER = """
import sys
from tests.training.test_resume import X, Y, network
from thinkml.training import Checkpoint, ModelTrainer, TrainingConfig

class Tells:
    def on_chunk_end(self, run):
        print('step', run.step, flush=True)

callbacks = [Checkpoint(sys.argv[1], every_epochs=10**6)] if sys.argv[1] else []
config = TrainingConfig(epochs=10**6, steps_per_dispatch=1, callbacks=[*callbacks, Tells()])
ModelTrainer(config).train(network(), X, Y, progress=False)
"""


@contextlib.contextmanager
def worker(directory):
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'}
    with subprocess.Popen(
        [sys.executable, '-W', 'error', '-c', WORKER, str(directory)],
        cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_process_that_is_told_to_end_saves_says_where_and_ends(tmp_path):
    with worker(tmp_path) as process:
        first = process.stdout.readline()
        process.terminate()
        # Not `communicate`, which does not return what `readline` has read beyond its line.
        told, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == -signal.SIGTERM, errors
    last = int((first + told).split()[-1])
    (said,) = re.findall(r'saved after ([\d,]+) steps; resume=True continues from (.*)\.', errors)
    assert said == (f'{last:,}', str(tmp_path / 'run-1'))
    assert Checkpointer(tmp_path / 'run-1').latest_sound() == last


@pytest.mark.slow
def test_without_checkpoints_sigterm_is_what_it_was():
    with worker('') as process:
        process.stdout.readline()
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert errors == ''


class CtrlC:
    """A callback that sends Ctrl-C in one of the hooks, a number of times."""

    def __init__(self, hook, times):
        self.hook, self.times = hook, times

    def on_epoch_end(self, run):
        self.send('on_epoch_end')

    def on_train_end(self, run):
        self.send('on_train_end')

    def send(self, hook):
        while hook == self.hook and self.times:
            self.times -= 1
            signal.raise_signal(signal.SIGINT)


X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def trained(*callbacks, model=None, **settings):
    model = mlp(4, 2) if model is None else model
    config = TrainingConfig(**{'epochs': 3, 'callbacks': callbacks} | settings)
    return ModelTrainer(config).train(model, X, Y, progress=False)


@pytest.mark.parametrize('hook', ['on_epoch_end', 'on_train_end'])
def test_a_second_ctrl_c_ends_a_loop_of_trainings_and_keeps_what_was_learned(hook):
    models = [mlp(4, 2), mlp(4, 2)]
    with pytest.raises(KeyboardInterrupt):
        for model in models:
            trained(CtrlC(hook, times=2), model=model)
    first, second = (record_of(model).runs for model in models)
    assert first[0].interrupted and first[0].epochs == (1 if hook == 'on_epoch_end' else 3)
    assert [text for _, text in first[0].events] == ['interrupted'] and not second
    assert predict(models[0], X).dtype == Y.dtype
    twin = mlp(4, 2)
    trained(model=twin, epochs=first[0].epochs)
    assert (twin.layers[0].kernel[...] == models[0].layers[0].kernel[...]).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize('epochs', [1, 3])
def test_ctrl_c_while_callbacks_end_is_noted(epochs):
    history = trained(CtrlC('on_train_end', times=1), epochs=epochs)
    assert history.interrupted and history.epochs == epochs
    assert history.events == [(epochs, 'interrupted')]


def test_a_later_ctrl_c_waits_until_the_arrays_are_written():
    steps = []
    with pytest.raises(KeyboardInterrupt), catch_signals(terminate=False) as signals:
        signal.raise_signal(signal.SIGINT)
        with signals.deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            steps.append('written')
        steps.append('after')
    assert steps == ['written']


def test_only_the_first_ctrl_c_is_noted():
    with pytest.raises(KeyboardInterrupt), catch_signals(terminate=False) as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.interrupted and not signals.terminated
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_is_sent_on_once_the_handlers_are_back(terminated):
    handler = signal.getsignal(signal.SIGTERM)
    with catch_signals(terminate=True) as outer:
        with catch_signals(terminate=True) as inner:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert inner.terminated and not outer.terminated
        assert outer.terminated and not terminated
    assert terminated == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_somebody_elses_handler_of_ctrl_c_stays(terminated):
    found = []
    before = signal.signal(signal.SIGINT, lambda number, frame: found.append(number))
    try:
        with catch_signals(terminate=False) as signals:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [signal.SIGINT] and terminated == [signal.SIGTERM]
    assert not signals.interrupted and not signals.terminated


def test_in_another_thread_nothing_is_touched():
    handlers = []

    def look():
        with catch_signals(terminate=True):
            handlers.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler, signal.SIG_DFL]
